//! One image: plan, denoise, decode; synchronous.
//!
//! Everything here is generic over [`Backend`], so that the same code runs on every backend. Progress goes to an
//! [`Observer`], and a [`Cancel`] flag is checked before every step and every tile. The crate's documentation opens
//! with an example.

pub mod denoise;
pub mod device;
pub mod encode;
pub mod latents;
pub mod plan;
pub mod provenance;
pub mod run;
pub mod tiles;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use serde::Serialize;

use crate::{
    error::{Error, Result},
    graph::{Backend, Download},
    image_in::Picture,
    model::{arch::Arch, checkpoint::Checkpoint, sampler::Latent},
};
use plan::{Plan, Rect, Tiling};
use run::{Outcome, Run, Task};
use tiles::{PixelBuffer, TileDecoder};

/// Progress of an image.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A remark for the user; nothing is wrong.
    Notice {
        /// The remark, a sentence.
        message: String,
    },
    /// Denoising begins.
    Denoising {
        /// Steps in all.
        of: usize,
    },
    /// A denoising step is done.
    Step {
        /// Steps done.
        step: usize,
        /// Steps in all.
        of: usize,
        /// Shared sigma reached.
        sigma: f64,
    },
    /// A level is settled: it does not change any more while finer ones do.
    Settled {
        /// The level, 0 the finest.
        level: usize,
        /// Steps done.
        step: usize,
        /// Rows of its grid.
        rows: usize,
        /// Columns of its grid.
        columns: usize,
    },
    /// Decoding begins.
    Decoding {
        /// Tiles in all.
        of: usize,
    },
    /// A tile is decoded.
    Tile {
        /// Tiles done.
        tile: usize,
        /// Tiles in all.
        of: usize,
        /// Its pixels in the picture.
        #[serde(flatten)]
        rect: Rect,
    },
}

/// Receives events on the thread that computes. Any `FnMut(Event)` is one.
pub trait Observer {
    /// Receives the next event.
    fn event(&mut self, event: Event);
}

impl<F: FnMut(Event)> Observer for F {
    fn event(&mut self, event: Event) {
        self(event);
    }
}

/// A flag that any thread may set to end the work at the next step or tile; clones share it.
///
/// ```
/// use tessera::engine::Cancel;
///
/// let cancel = Cancel::default();
/// let other = cancel.clone();
/// std::thread::spawn(move || other.cancel()).join().unwrap();
/// assert!(cancel.check().is_err());
/// ```
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Sets the flag.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// True once the flag is set.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Fails once the flag is set.
    ///
    /// # Errors
    /// [`Kind::Cancelled`](crate::error::Kind).
    pub fn check(&self) -> Result<()> {
        match self.is_cancelled() {
            true => Err(Error::cancelled("the operation")),
            false => Ok(()),
        }
    }
}

/// Generates the picture of `plan`: denoises its latents, then decodes them tile by tile into a nameless file in the
/// directory `scratch`.
///
/// # Errors
/// [`Kind::Cancelled`](crate::error::Kind) when `cancel` was set; [`Kind::InvalidModel`](crate::error::Kind) when the
/// weights overflow; [`Kind::Device`](crate::error::Kind) or [`Kind::Io`](crate::error::Kind) when the device or the
/// disk fails.
pub fn generate<O: Backend>(
    ops: &mut O,
    model: &Checkpoint,
    plan: &Plan,
    scratch: &Path,
    observer: &mut dyn Observer,
    cancel: &Cancel,
) -> Result<PixelBuffer> {
    let task = Task { model, plan, cancel };
    complete(ops, task, Run::new(plan), scratch, observer)
}

/// Generates a variation of `picture` (SDEdit): encodes it, adds the noise of the plan's strength, and continues as
/// [`generate`] does.
///
/// # Errors
/// As [`generate`]; [`Kind::InvalidImage`](crate::error::Kind) when the picture is not of the plan's size.
pub fn edit<O: Backend>(
    ops: &mut O,
    model: &Checkpoint,
    plan: &Plan,
    picture: Picture,
    scratch: &Path,
    observer: &mut dyn Observer,
    cancel: &Cancel,
) -> Result<PixelBuffer> {
    let task = Task { model, plan, cancel };
    complete(ops, task, Run::edit(plan, || Ok(picture)), scratch, observer)
}

/// Advances `run` to its end.
fn complete<O: Backend>(
    ops: &mut O,
    task: Task<'_>,
    mut run: Run<O>,
    scratch: &Path,
    observer: &mut dyn Observer,
) -> Result<PixelBuffer> {
    let Task { plan, cancel, .. } = task;
    // A full disk must be an error before the arithmetic, which may take hours.
    let canvas = PixelBuffer::create(scratch, plan.spec.width, plan.spec.height, plan.spec.bits)?;
    for message in &plan.notices {
        observer.event(Event::Notice { message: message.clone() });
    }
    run.denoise(ops, task, observer)?;
    observer.event(Event::Decoding { of: plan.tiling.tiles.len() });
    run.advance(ops, task, Run::<O>::first_left)?;
    let begin = |ops: &mut O| match run.advance(ops, task, Run::<O>::first_left)? {
        Outcome::Tile { index, pixels } => Ok(Some((index, pixels))),
        _ => Ok(None),
    };
    collect(ops, &plan.tiling, begin, canvas, observer, cancel)
}

/// Encodes `picture` and decodes it again onto `canvas`, which `tiling` covers; sides that are no multiple of the
/// coarsest factor are padded and cropped. The decoder's noise is that of seed 0.
///
/// # Errors
/// As [`generate`].
pub fn reconstruct<O: Backend>(
    ops: &mut O,
    arch: &Arch,
    picture: Picture,
    tiling: &Tiling,
    canvas: PixelBuffer,
    observer: &mut dyn Observer,
    cancel: &Cancel,
) -> Result<PixelBuffer> {
    let latents = encode::encode(ops, arch, picture)?;
    decode(ops, arch, (&latents, 0), tiling, canvas, observer, cancel)
}

/// Decodes `latents`, finest first, not normalised, tile by tile onto `canvas`; `seed` is that of the decoder's noise, where
/// the model has it.
///
/// # Errors
/// As [`generate`].
pub fn decode<O: Backend>(
    ops: &mut O,
    arch: &Arch,
    (latents, seed): (&[Latent], u64),
    tiling: &Tiling,
    canvas: PixelBuffer,
    observer: &mut dyn Observer,
    cancel: &Cancel,
) -> Result<PixelBuffer> {
    cancel.check()?;
    observer.event(Event::Decoding { of: tiling.tiles.len() });
    let decoder = TileDecoder::new(ops, arch, latents, seed)?;
    let mut left = tiling.tiles.iter().enumerate();
    let begin = |ops: &mut O| {
        let next = left.next();
        next.map(|(index, tile)| Ok((index, decoder.begin(ops, arch, tile)?))).transpose()
    };
    collect(ops, tiling, begin, canvas, observer, cancel)
}

/// Puts the tiles that `begin` begins onto `canvas`, until it returns none.
fn collect<O: Backend>(
    ops: &mut O,
    tiling: &Tiling,
    mut begin: impl FnMut(&mut O) -> Result<Option<(usize, Download)>>,
    mut canvas: PixelBuffer,
    observer: &mut dyn Observer,
    cancel: &Cancel,
) -> Result<PixelBuffer> {
    let (mut before, mut done) = (None, 0);
    loop {
        cancel.check()?;
        let begun = begin(ops)?;
        let ended = begun.is_none();
        // The previous tile is copied back while the device computes this one.
        if let Some((index, pixels)) = std::mem::replace(&mut before, begun) {
            let rect = tiling.tiles[index].rect;
            canvas.put(rect, &tiles::samples(rect, &pixels.wait()?, canvas.bits())?)?;
            done += 1;
            observer.event(Event::Tile { tile: done, of: tiling.tiles.len(), rect });
        }
        if ended {
            return Ok(canvas);
        }
    }
}
