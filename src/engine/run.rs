//! The state machine of one picture: source picture, denoising steps, global stage, tiles.
//!
//! A [`Run`] holds the state of a picture between two units of work. [`Run::advance`] computes the next unit and
//! [`Run::advance_batch`] the next step of several pictures at once; callers decide when, and which tile comes next.

use std::mem;

use crate::{
    engine::{Cancel, Event, Observer, denoise, plan::Plan, tiles::TileDecoder},
    error::{Error, Result},
    graph::{Backend, Download},
    image_in::Picture,
    model::{
        checkpoint::Checkpoint,
        sampler::{Latent, SamplerState},
    },
};

/// The picture that a [`Run`] computes: the same in all calls for one run.
#[derive(Clone, Copy, Debug)]
pub struct Task<'a> {
    /// The model.
    pub model: &'a Checkpoint,
    /// Plan of the picture.
    pub plan: &'a Plan,
    /// Ends the work at the next step or tile.
    pub cancel: &'a Cancel,
}

/// A unit of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Encode the source picture.
    Encode,
    /// The denoising step of this number, from 1.
    Step(usize),
    /// The decoder's global stage.
    GlobalStage,
    /// A tile.
    Tile,
}

/// A unit that is computed.
pub enum Outcome {
    /// The source picture is encoded.
    Encoded,
    /// A denoising step is done; see [`Run::sampling`].
    Step,
    /// The global stage is done; see [`Run::decoder`].
    GlobalStage,
    /// A tile has begun.
    Tile {
        /// Its index in the plan's tiling.
        index: usize,
        /// Its values, [height, width, 3], black at -1 and white at 1.
        pixels: Download,
    },
    /// No tile was left.
    Complete,
}

/// A source picture that is read when it is needed.
type Source = Box<dyn FnOnce() -> Result<Picture> + Send>;

enum State<B: Backend> {
    /// The source picture, until it is encoded.
    Encode(Option<Source>),
    Denoise(SamplerState),
    Decode(TileDecoder<B>),
}

/// The state of one picture between two units of work.
///
/// ```
/// use tessera::{
///     engine::{Cancel, plan::{Plan, Spec}, run::{Outcome, Run, Task, Unit}},
///     exec::cpu::Cpu,
///     model::checkpoint::Checkpoint,
/// };
///
/// let model = Checkpoint::open(std::path::Path::new("tests/fixtures/net-a.safetensors"))?;
/// let spec = Spec { width: 96, height: 64, steps: 2.into(), ..Spec::new(&model.arch, 7) };
/// let plan = Plan::new(spec, &model.arch)?;
/// let task = Task { model: &model, plan: &plan, cancel: &Cancel::default() };
/// let mut cpu = Cpu::new(model.weights.clone());
/// let mut run = Run::new(&plan);
/// assert_eq!(run.next(task), Some(Unit::Step(1)));
/// while run.next(task) != Some(Unit::Tile) {
///     run.advance(&mut cpu, task, Run::<Cpu>::first_left)?;
/// }
/// let Outcome::Tile { index: 0, pixels } = run.advance(&mut cpu, task, |_| Some(0))? else { panic!() };
/// assert_eq!(pixels.wait()?.len(), 96 * 64 * 3);
/// # Ok::<(), tessera::error::Error>(())
/// ```
pub struct Run<B: Backend> {
    state: State<B>,
    /// True for each tile that has begun.
    begun: Vec<bool>,
}

impl<B: Backend> Run<B> {
    /// A picture from noise.
    pub fn new(plan: &Plan) -> Self {
        Self::resume(denoise::begin(plan), vec![false; plan.tiling.tiles.len()])
    }

    /// A variation of the picture that `source` reads, called when the run is first advanced.
    pub fn edit(plan: &Plan, source: impl FnOnce() -> Result<Picture> + Send + 'static) -> Self {
        let state = State::Encode(Some(Box::new(source)));
        Self { state, begun: vec![false; plan.tiling.tiles.len()] }
    }

    /// A picture from a copy of the state of its denoising. `done` has an element for each tile of the plan, true if its
    /// pixels are known.
    pub fn resume(sampling: SamplerState, done: Vec<bool>) -> Self {
        Self { state: State::Denoise(sampling), begun: done }
    }

    /// Makes the tiles at `indices` of the plan's tiling be computed again.
    pub fn repeat_tiles(&mut self, indices: impl IntoIterator<Item = usize>) {
        indices.into_iter().for_each(|index| self.begun[index] = false);
    }

    /// The next unit; `None` once all tiles have begun.
    pub fn next(&self, task: Task<'_>) -> Option<Unit> {
        Some(match &self.state {
            _ if self.begun.iter().all(|&begun| begun) => return None,
            State::Encode(_) => Unit::Encode,
            State::Denoise(sampling) if sampling.step < task.plan.schedule.steps() => {
                Unit::Step(sampling.step + 1)
            }
            State::Denoise(_) => Unit::GlobalStage,
            State::Decode(_) => Unit::Tile,
        })
    }

    /// The state of denoising, while it lasts.
    pub fn sampling(&self) -> Option<&SamplerState> {
        match &self.state {
            State::Denoise(sampling) => Some(sampling),
            State::Encode(_) | State::Decode(_) => None,
        }
    }

    /// The decoder, after the global stage.
    pub fn decoder(&self) -> Option<&TileDecoder<B>> {
        match &self.state {
            State::Decode(decoder) => Some(decoder),
            State::Encode(_) | State::Denoise(_) => None,
        }
    }

    /// The first tile that has not begun: the order of files.
    pub fn first_left(begun: &[bool]) -> Option<usize> {
        begun.iter().position(|&begun| !begun)
    }

    /// Computes the next unit. `pick` selects the next tile; its argument is true for each tile that has begun.
    ///
    /// # Errors
    /// [`Kind::Cancelled`](crate::error::Kind); [`Kind::InvalidModel`](crate::error::Kind) when the weights overflow;
    /// the backend's; those of reading the source picture. A step that failed can be repeated.
    pub fn advance(
        &mut self,
        backend: &mut B,
        task: Task<'_>,
        pick: impl FnOnce(&[bool]) -> Option<usize>,
    ) -> Result<Outcome> {
        let Task { model, plan, cancel } = task;
        cancel.check()?;
        match &mut self.state {
            State::Encode(source) => {
                let read = source.take().ok_or_else(|| Error::internal("a picture is read twice"));
                let sampling = denoise::begin_from(backend, model, plan, read?()?)?;
                self.state = State::Denoise(sampling);
                Ok(Outcome::Encoded)
            }
            State::Denoise(sampling) if sampling.step < plan.schedule.steps() => {
                denoise::step(backend, model, &mut [(plan, sampling)], cancel)?;
                Ok(Outcome::Step)
            }
            State::Denoise(sampling) => {
                let latents = denoise::denormalise(model, mem::take(&mut sampling.z));
                let decoder = TileDecoder::new(backend, &model.arch, &latents, plan.spec.seed)?;
                self.state = State::Decode(decoder);
                Ok(Outcome::GlobalStage)
            }
            State::Decode(decoder) => {
                let Some(index) = pick(&self.begun) else { return Ok(Outcome::Complete) };
                let pixels = decoder.begin(backend, &model.arch, &plan.tiling.tiles[index])?;
                self.begun[index] = true;
                Ok(Outcome::Tile { index, pixels })
            }
        }
    }

    /// Takes the next denoising step of all `members` as one batch for the network; runs that are not denoising are left
    /// as they are. The tasks must have one model, sampler and shape of latents.
    ///
    /// # Errors
    /// Those of [`Run::advance`], for the first member that fails; none has changed then.
    pub fn advance_batch(
        backend: &mut B,
        members: &mut [(Task<'_>, &mut Self)],
        cancel: &Cancel,
    ) -> Result<()> {
        let Some((Task { model, .. }, _)) = members.first() else { return Ok(()) };
        let model = *model;
        let mut steps: Vec<_> = (members.iter_mut())
            .filter_map(|(task, run)| match &mut run.state {
                State::Denoise(sampling) if sampling.step < task.plan.schedule.steps() => {
                    Some((task.plan, sampling))
                }
                _ => None,
            })
            .collect();
        denoise::step(backend, model, &mut steps, cancel)
    }

    /// Advances to the global stage, with an event for each step and each level that settles. Returns the normalised
    /// latents, finest first.
    ///
    /// # Errors
    /// Those of [`Run::advance`]; [`Kind::Internal`](crate::error::Kind) when the global stage is done already.
    pub fn denoise(
        &mut self,
        backend: &mut B,
        task: Task<'_>,
        observer: &mut dyn Observer,
    ) -> Result<&[Latent]> {
        let schedule = &task.plan.schedule;
        if self.next(task) == Some(Unit::Encode) {
            self.advance(backend, task, Self::first_left)?;
        }
        observer.event(Event::Denoising { of: schedule.steps() });
        while let Some(Unit::Step(step)) = self.next(task) {
            self.advance(backend, task, Self::first_left)?;
            let sigma = schedule.reached(step);
            observer.event(Event::Step { step, of: schedule.steps(), sigma });
            for (level, grid) in task.plan.latents.iter().enumerate().rev() {
                if schedule.settled(level) == step {
                    let (rows, columns) = (grid.h, grid.w);
                    observer.event(Event::Settled { level, step, rows, columns });
                }
            }
        }
        match &self.state {
            State::Denoise(sampling) => Ok(&sampling.z),
            _ => Err(Error::internal("latents are asked for after the global stage")),
        }
    }
}
