//! The plan of one image: everything that follows from the [`Spec`] and the architecture, before any arithmetic.
//!
//! A [`Plan`] can always be carried out: impossible sizes, step counts and tiles are refused when it is made, with the
//! wrong value, its limit and the nearest valid value.

use std::collections::BTreeMap;

pub use crate::geometry::Rect;
use crate::{
    error::{Error, Expected, Result},
    exec::memory::MEMORY,
    graph::Cost,
    image_out::Bits,
    model::{
        arch::{Arch, Label},
        cost, decoder, params,
        sampler::{Guidance, Sampler, latent_shapes},
        schedule::{Evaluation, Schedule},
    },
    ops::Shape,
};

/// Largest width or height of a generated picture, in pixels.
pub const MAX_EXTENT: usize = 16384;
/// Largest number of denoising steps.
pub const MAX_STEPS: usize = 1000;
/// Default strength of an edit; see [`Spec::strength`].
pub const STRENGTH: f64 = 0.5;
/// Default guidance by labels; see [`Spec::guidance`].
pub const GUIDANCE: f64 = 2.0;
/// Largest guidance.
pub const MAX_GUIDANCE: f64 = 20.0;
/// Largest share of a picture's operations for previews of the denoised estimate; see [`Plan::estimates`].
pub const ESTIMATE_SHARE: f64 = 0.03;
/// Previews of the denoised estimate of a group of levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EstimatePlan {
    /// Finest level that they show, one of the group.
    pub level: usize,
    /// Steps from one to the next, at least 1.
    pub period: usize,
}

/// Smallest side of a decoded tile, in pixels.
pub const MIN_TILE: usize = 64;
/// Largest side of a decoded tile, in pixels.
pub const MAX_TILE: usize = 1024;

/// Size of the tiles that the decoder's local stage runs on. It does not change a bit of the picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TileSize {
    /// Squares of this many pixels a side, from [`MIN_TILE`] to [`MAX_TILE`]; those at the right and bottom edges may
    /// be smaller.
    Pixels(usize),
    /// One tile, the whole picture.
    Whole,
}

impl TileSize {
    /// Checks that the side is in range.
    fn check(self) -> Result<()> {
        match self {
            Self::Pixels(tile) if !(MIN_TILE..=MAX_TILE).contains(&tile) => {
                Err(Error::invalid("tile", tile, Expected::range(MIN_TILE..=MAX_TILE, tile)))
            }
            _ => Ok(()),
        }
    }
}

/// Number of denoising steps.
///
/// ```
/// use tessera::engine::plan::Steps;
///
/// assert_eq!(Steps::Total(25).of_groups(2), [17, 8]);
/// assert_eq!(Steps::PerGroup(vec![30, 12]).total(), 42);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Steps {
    /// Steps of all groups of levels together; see [`Steps::of_groups`].
    Total(usize),
    /// Steps of each group, in the order of denoising.
    PerGroup(Vec<usize>),
}

impl Steps {
    /// Steps of each of the model's groups from `named`, steps by the name of the group.
    ///
    /// # Errors
    /// [`crate::error::Kind::InvalidArgument`] naming a group that the model does not have or that is missing.
    pub fn named<'a>(
        arch: &Arch,
        named: impl IntoIterator<Item = (&'a str, usize)>,
    ) -> Result<Self> {
        let names: Vec<_> = arch.groups.iter().map(|group| group.name.as_str()).collect();
        let mut steps = vec![None; names.len()];
        for (name, count) in named {
            match names.iter().position(|known| *known == name) {
                Some(at) => steps[at] = Some(count),
                None => {
                    let expected = format!("a group of the model: {}", names.join(", "));
                    return Err(Error::invalid("group_steps", name, expected));
                }
            }
        }
        let complete = names.iter().zip(steps).map(|(name, count)| {
            count.ok_or_else(|| {
                let field = format!("group_steps.{name}");
                Error::invalid(field, "missing", "the steps of each group of the model")
            })
        });
        complete.collect::<Result<_>>().map(Self::PerGroup)
    }

    /// Steps of all groups together.
    pub fn total(&self) -> usize {
        match self {
            Self::Total(steps) => *steps,
            Self::PerGroup(steps) => steps.iter().fold(0, |sum, count| sum.saturating_add(*count)),
        }
    }

    /// Steps of each of `groups` groups. Of a total, two thirds are for the first one, which decides the layout, the rest in
    /// equal shares for the others, at least one each.
    pub fn of_groups(&self, groups: usize) -> Vec<usize> {
        let total = match self {
            Self::PerGroup(steps) => return steps.clone(),
            Self::Total(total) => *total,
        };
        let others = groups.saturating_sub(1);
        let later = match others {
            0 => 0,
            _ => (total / 3).max(others),
        };
        let share = |i: usize| later * (i + 1) / others - later * i / others;
        std::iter::once(total.saturating_sub(later)).chain((0..others).map(share)).collect()
    }

    /// Checks that each of the groups of `arch` has at least one step, and the total at most [`MAX_STEPS`].
    fn check(&self, arch: &Arch) -> Result<()> {
        let (total, groups) = (self.total(), arch.groups.len());
        if !(1..=MAX_STEPS).contains(&total) {
            return Err(Error::invalid("steps", total, Expected::range(1..=MAX_STEPS, total)));
        }
        match self {
            Self::Total(_) if total < groups => {
                let expected = format!("at least {groups}, one for each group of levels");
                Err(Error::invalid("steps", total, expected))
            }
            Self::Total(_) => Ok(()),
            Self::PerGroup(steps) if steps.len() != groups => {
                let expected = format!("the steps of {groups} groups");
                Err(Error::invalid("group_steps", format!("{steps:?}"), expected))
            }
            Self::PerGroup(steps) => match steps.iter().position(|&count| count == 0) {
                Some(at) => {
                    let field = format!("group_steps.{}", arch.groups[at].name);
                    Err(Error::invalid(field, 0, "at least 1"))
                }
                None => Ok(()),
            },
        }
    }
}

impl From<usize> for Steps {
    fn from(total: usize) -> Self {
        Self::Total(total)
    }
}

/// A request for one picture.
///
/// ```
/// use tessera::{engine::plan::{Plan, Spec}, model::checkpoint::Checkpoint};
///
/// let model = Checkpoint::open("tests/fixtures/net-a.safetensors".as_ref())?;
/// let spec = Spec { width: 192, steps: 8.into(), ..Spec::new(&model.arch, 42) };
/// let plan = Plan::new(spec.clone(), &model.arch)?;
/// assert_eq!(plan.tiling.tiles.len(), 1);
/// // Sides must be multiples of the coarsest factor, here 16.
/// assert!(Plan::new(Spec { width: 193, ..spec }, &model.arch).is_err());
/// # Ok::<(), tessera::error::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// Seed of the noise. The same seed and spec give the same picture on the same device.
    pub seed: u64,
    /// Width in pixels: a multiple of [`Arch::coarsest_factor`] up to [`MAX_EXTENT`]; any width for an edit.
    pub width: usize,
    /// Height in pixels, with the limits of the width.
    pub height: usize,
    /// Denoising steps, 1 to [`MAX_STEPS`] in all, at least one for each group of levels.
    pub steps: Steps,
    /// Sampler.
    pub sampler: Sampler,
    /// Size of the decoder's tiles.
    pub tile: TileSize,
    /// Bits of a sample.
    pub bits: Bits,
    /// Strength of an edit, 0 to 1: the share of the noise schedule that a given picture goes through. 0 only encodes
    /// and decodes it, 1 keeps nothing but its size. None: generate from noise alone.
    pub strength: Option<f64>,
    /// For each label of the model the row of its table, as [`Checkpoint::labels`] gives them: 0 if it is not given. Empty:
    /// no label is given.
    ///
    /// [`Checkpoint::labels`]: crate::model::checkpoint::Checkpoint::labels
    pub labels: Vec<usize>,
    /// Guidance by the labels, from 1 (none) to [`MAX_GUIDANCE`]. It takes a second evaluation in each step of the first
    /// group of levels.
    pub guidance: f64,
}

impl Spec {
    /// The defaults for a model: its trained size, 25 steps of DPM-Solver++(2M), tiles of 512 pixels, 8 bits.
    pub fn new(arch: &Arch, seed: u64) -> Self {
        Self {
            seed,
            width: arch.width(),
            height: arch.height(),
            steps: Steps::Total(25),
            sampler: Sampler::Dpmpp,
            tile: TileSize::Pixels(512),
            bits: Bits::Eight,
            strength: None,
            labels: Vec::new(),
            guidance: if arch.labels.is_empty() { 1.0 } else { GUIDANCE },
        }
    }

    /// The labels and their guidance; `None` if no label is given.
    pub fn labels_with_guidance(&self) -> Option<Guidance> {
        let (rows, scale) = (self.labels.clone(), self.guidance);
        (!rows.is_empty()).then_some(Guidance { rows, scale })
    }

    /// The first step of the schedule that is run. An edited picture gets the noise of that step (SDEdit, Meng et al.
    /// 2022).
    fn first_step(&self) -> usize {
        let made = self.strength.map_or(1.0, |strength| strength.clamp(0.0, 1.0));
        let steps = self.steps.total();
        steps - (made * steps as f64).round() as usize
    }
}

/// One tile of the local stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    /// Column in the grid of tiles, from 0.
    pub column: usize,
    /// Row in the grid of tiles, from 0.
    pub row: usize,
    /// Pixels of the picture that the tile decodes.
    pub rect: Rect,
    /// The part of the global stage's output that the tile reads, in pixels of the finest latent's grid: the tile and
    /// the halo around it, clipped to the grid.
    pub window: Rect,
}

/// The tiles of a picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tiling {
    /// Width of the picture.
    pub width: usize,
    /// Height of the picture.
    pub height: usize,
    /// Tiles, row by row.
    pub tiles: Vec<Tile>,
    /// Columns of tiles.
    pub columns: usize,
    /// Rows of tiles.
    pub rows: usize,
    /// Halo on every side of a tile, in pixels of the finest latent's grid.
    pub halo: usize,
}

impl Tiling {
    /// The tiles of a picture of `width` x `height` pixels; the grids of `arch`'s latents may reach past them.
    ///
    /// # Errors
    /// [`crate::error::Kind::InvalidArgument`] when the tile's side is out of range.
    pub fn new(arch: &Arch, width: usize, height: usize, tile: TileSize) -> Result<Self> {
        tile.check()?;
        let (side_x, side_y) = match tile {
            TileSize::Pixels(side) => (side, side),
            TileSize::Whole => (width, height),
        };
        let halo = cost::halo(arch)?;
        let factor = arch.finest_factor();
        let coarsest = arch.coarsest_factor();
        let padded = |extent: usize| extent.next_multiple_of(coarsest) / factor;
        let (columns, rows) = (width.div_ceil(side_x), height.div_ceil(side_y));
        let span = |index: usize, side: usize, extent: usize, grid: usize| {
            let start = index * side;
            let end = (start + side).min(extent);
            let first = (start / factor).saturating_sub(halo);
            let last = (end.div_ceil(factor) + halo).min(grid);
            (start, end - start, first, last - first)
        };
        let mut tiles = Vec::with_capacity(columns * rows);
        for row in 0..rows {
            let (y, h, window_y, window_h) = span(row, side_y, height, padded(height));
            for column in 0..columns {
                let (x, w, window_x, window_w) = span(column, side_x, width, padded(width));
                tiles.push(Tile {
                    column,
                    row,
                    rect: Rect { x, y, width: w, height: h },
                    window: Rect { x: window_x, y: window_y, width: window_w, height: window_h },
                });
            }
        }
        Ok(Self { width, height, tiles, columns, rows, halo })
    }

    /// Rows and columns of the largest window of any tile, in pixels of the finest latent's grid: they set the local
    /// stage's memory.
    pub fn largest_window(&self) -> (usize, usize) {
        let rows = self.tiles.iter().map(|t| t.window.height).max().unwrap_or(0);
        let columns = self.tiles.iter().map(|t| t.window.width).max().unwrap_or(0);
        (rows, columns)
    }
}

/// Everything that is known about an image before its first step.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The request.
    pub spec: Spec,
    /// Shape [1, H/f, W/f, C] of every level's latent, finest first, with the level's factor f and channels C.
    pub latents: Vec<Shape>,
    /// Sigma of every step and level.
    pub schedule: Schedule,
    /// The first step of the schedule that is run: 0, unless a picture is edited.
    pub first_step: usize,
    /// Tiles of the local stage.
    pub tiling: Tiling,
    /// Bytes of the decoded picture.
    pub picture_bytes: u64,
    /// Estimate of the peak memory in bytes: tensors, weights (as loaded and as packed for the device) and scratch
    /// memory of operators.
    pub peak_bytes: u64,
    /// Floating-point operations of the whole image.
    pub flops: u64,
    /// Floating-point operations of its parts.
    pub cost: CostBreakdown,
    /// Remarks for the user, such as an untrained size; nothing is wrong.
    pub notices: Vec<String>,
}

impl Plan {
    /// Plans `spec` for a model.
    ///
    /// # Errors
    /// [`crate::error::Kind::InvalidArgument`] naming field, value, limit and the nearest value that would do.
    pub fn new(spec: Spec, arch: &Arch) -> Result<Self> {
        // A given picture is padded and cut back, a new one is not.
        let multiple = if spec.strength.is_some() { 1 } else { arch.coarsest_factor() };
        check_extent("width", spec.width, multiple)?;
        check_extent("height", spec.height, multiple)?;
        if let Some(strength) = spec.strength.filter(|strength| !(0.0..=1.0).contains(strength)) {
            return Err(Error::invalid("strength", strength, "a number from 0 to 1"));
        }
        spec.steps.check(arch)?;
        if !(1.0..=MAX_GUIDANCE).contains(&spec.guidance) {
            let expected = format!("a number from 1 to {MAX_GUIDANCE}");
            return Err(Error::invalid("guidance", spec.guidance, expected));
        }
        let known = |(row, label): (&usize, &Label)| *row <= label.values.len();
        let count = spec.labels.len();
        if count > 0 && count != arch.labels.len()
            || !spec.labels.iter().zip(&arch.labels).all(known)
        {
            let expected = format!("a row for each of the model's {} labels", arch.labels.len());
            return Err(Error::invalid("labels", format!("{:?}", spec.labels), expected));
        }
        let tiling = Tiling::new(arch, spec.width, spec.height, spec.tile)?;
        let [width, height] =
            [spec.width, spec.height].map(|side| side.next_multiple_of(arch.coarsest_factor()));
        let latents = latent_shapes(arch, 1, width, height);
        let schedule = Schedule::of_groups(arch, &spec.steps.of_groups(arch.groups.len()));
        let first_step = spec.first_step();

        let guidance = spec.labels_with_guidance();
        let (mut unet, mut packed) = (Cost::default(), vec![0; arch.groups.len()]);
        // Evaluations by group and number of pyramids.
        let mut counts = BTreeMap::new();
        for Evaluation { group, sigma } in schedule.evaluations(spec.sampler, first_step) {
            let shape = arch.group(group);
            let guided = guidance.as_ref().is_some_and(|g| g.scale_at(shape, sigma) != 1.0);
            *counts.entry((group, if guided { 2 } else { 1 })).or_insert(0_u64) += 1;
        }
        for ((group, pyramids), count) in counts {
            let one = cost::unet_cost(arch, group, pyramids, &MEMORY, width, height)?;
            unet.flops += count * one.flops;
            packed[group] = one.packed_bytes.max(packed[group]);
            unet.peak_bytes = unet.peak_bytes.max(one.peak_bytes);
        }
        unet.packed_bytes = packed.iter().sum();
        let encode = match spec.strength {
            Some(_) => cost::encoder_cost(arch, &MEMORY, width, height)?,
            None => Cost::default(),
        };
        let decode = decode_cost(arch, &tiling)?;
        let steps = (schedule.steps() - first_step).max(1) as u64;
        let params = params::params(arch)?;
        let values: usize = params.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
        let samples = 3 * spec.width as u64 * spec.height as u64;

        let mut notices = Vec::new();
        if !arch.sizes.contains(&[spec.width, spec.height]) {
            let sizes: Vec<_> = arch.sizes.iter().map(|[w, h]| format!("{w}x{h}")).collect();
            notices.push(format!(
                "trained for {}; at {}x{} it may repeat or stretch what it knows",
                sizes.join(" and "),
                spec.width,
                spec.height
            ));
        }
        Ok(Self {
            latents,
            schedule,
            first_step,
            picture_bytes: samples * spec.bits.sample_len() as u64,
            peak_bytes: 4 * values as u64
                + (unet.packed_bytes + decode.packed_bytes + encode.packed_bytes)
                + unet.peak_bytes.max(decode.peak_bytes).max(encode.peak_bytes),
            flops: encode.flops + unet.flops + decode.flops,
            cost: CostBreakdown {
                encode_flops: encode.flops,
                step_flops: unet.flops / steps,
                global_flops: decode.global_flops,
                tile_flops: (decode.flops - decode.global_flops) / tiling.tiles.len() as u64,
            },
            notices,
            tiling,
            spec,
        })
    }

    /// The previews of the denoised estimate of each group of levels: such that they take at most [`ESTIMATE_SHARE`] of the
    /// picture's operations, and show as fine a level of the group as two of them in its steps can.
    ///
    /// # Errors
    /// When the decoder can't be traced for this size, which no plan has.
    pub fn estimates(&self, arch: &Arch) -> Result<Vec<EstimatePlan>> {
        let [width, height] = [self.spec.width, self.spec.height]
            .map(|side| side.next_multiple_of(arch.coarsest_factor()));
        let most = ESTIMATE_SHARE * self.flops as f64;
        let steps = self.schedule.steps();
        let of_group = |group: usize| {
            let own = (0..steps).filter(|&step| self.schedule.group(step) == group).count();
            let spatial = |&level: &usize| arch.levels[level].factor > 0;
            let mut found = EstimatePlan { level: arch.group(group).range().start, period: steps };
            for level in arch.group(group).range().filter(spatial) {
                let one = cost::preview_cost(arch, level, &MEMORY, width, height)?.flops;
                let period = (one as f64 * steps as f64 / most).ceil().max(1.0) as usize;
                found = EstimatePlan { level, period };
                if 2 * period <= own {
                    break;
                }
            }
            Ok(found)
        };
        (0..arch.groups.len()).map(of_group).collect()
    }

    /// Checks that `rect` is not empty and lies in the picture; `field` names it in the error.
    ///
    /// # Errors
    /// [`crate::error::Kind::InvalidArgument`] naming `field` with the member of [`Rect`], its value and its limits.
    pub fn check_rect(&self, field: &str, rect: Rect) -> Result<()> {
        let sides = [
            ("x", "width", rect.x, rect.width, self.spec.width),
            ("y", "height", rect.y, rect.height, self.spec.height),
        ];
        for (axis, side, start, len, extent) in sides {
            let invalid = |member, value, range| {
                Err(Error::invalid(
                    format!("{field}.{member}"),
                    value,
                    Expected::range(range, value),
                ))
            };
            if start >= extent {
                return invalid(axis, start, 0..=extent - 1);
            }
            if len == 0 || len > extent - start {
                return invalid(side, len, 1..=extent - start);
            }
        }
        Ok(())
    }
}

/// Floating-point operations of the parts of an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CostBreakdown {
    /// Encoding the picture that is edited; 0 without one.
    pub encode_flops: u64,
    /// A denoising step, on average.
    pub step_flops: u64,
    /// The decoder's global stage.
    pub global_flops: u64,
    /// A tile, on average.
    pub tile_flops: u64,
}

/// Cost of decoding one picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeCost {
    /// Floating-point operations, halos included.
    pub flops: u64,
    /// Those of the global stage.
    pub global_flops: u64,
    /// Most bytes of tensors and scratch memory at one time.
    pub peak_bytes: u64,
    /// Upper bound in bytes of a backend's packed weights.
    pub packed_bytes: u64,
}

/// Cost of the global stage and of all tiles of `tiling`.
///
/// # Errors
/// When the decoder can't be traced for this size.
pub fn decode_cost(arch: &Arch, tiling: &Tiling) -> Result<DecodeCost> {
    let coarsest = arch.coarsest_factor();
    let (width, height) =
        (tiling.width.next_multiple_of(coarsest), tiling.height.next_multiple_of(coarsest));
    let global = cost::global_cost(arch, &MEMORY, width, height)?;
    // A picture has at most nine different windows: corners, edges and the middle.
    let mut windows = std::collections::HashMap::new();
    for tile in &tiling.tiles {
        *windows.entry((tile.window.height, tile.window.width)).or_insert(0u64) += 1;
    }
    // The global stage's output stays: features and RGB stream on the finest latent's grid.
    let stage = arch.decoder.stages[decoder::local_stages(arch)];
    let grid = (width / arch.finest_factor()) * (height / arch.finest_factor());
    let kept = 4 * (grid * (stage.channels + 3)) as u64;
    let Cost { flops, peak_bytes, packed_bytes: global_packed, .. } = global;
    let mut total =
        DecodeCost { flops, global_flops: flops, peak_bytes, packed_bytes: global_packed };
    for ((rows, columns), count) in windows {
        let local = cost::local_cost(arch, &MEMORY, rows, columns)?;
        total.packed_bytes = global_packed + local.packed_bytes;
        total.flops += count * local.flops;
        total.peak_bytes = total.peak_bytes.max(kept + local.peak_bytes);
    }
    Ok(total)
}

/// Checks that a side of the picture is a multiple of `factor` up to [`MAX_EXTENT`].
fn check_extent(field: &'static str, value: usize, factor: usize) -> Result<()> {
    let most = MAX_EXTENT / factor * factor;
    if value > 0 && value <= most && value.is_multiple_of(factor) {
        return Ok(());
    }
    let nearest =
        (value.min(most).saturating_add(factor / 2) / factor * factor).clamp(factor, most);
    let [of, max, nearest] = [factor, most, nearest].map(|n| n as u64);
    Err(Error::invalid(field, value, Expected::Multiple { of, max, nearest }))
}
