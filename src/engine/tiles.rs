//! Tiled decode: every tile size and every order give the same pixels, bit for bit, on the same device.
//!
//! The global stage runs once and its output stays on the device. A tile needs a window of it: its own rectangle and
//! the halo, which the receptive field of the local stage bounds. So memory depends on the size of a tile, not on that
//! of the picture. Decoded pixels go into the memory-mapped [`PixelBuffer`], from which the writers read.

use std::path::Path;

use crate::{
    engine::{
        Cancel,
        plan::{Rect, Tile},
    },
    error::{Error, Result},
    graph::{Backend, Download, Input},
    image_out::{Bits, PixelSource, RawPixels},
    model::{
        arch::Arch,
        decoder::{self, Part},
        sampler::Latent,
    },
    store::{self, BackingFile},
};

/// The global stage's output of one picture, from which any tile can be decoded at any time.
pub struct TileDecoder<O: Backend> {
    /// Features [1, H/f, W/f, c] on the finest latent's grid.
    features: O::Tensor,
    /// RGB stream [1, H/f, W/f, 3].
    rgb: O::Tensor,
    /// Seed of the decoder's noise.
    seed: u64,
}

impl<O: Backend> TileDecoder<O> {
    /// Runs the global stage on `latents`, finest first, not normalised, with the decoder's noise of `seed`.
    ///
    /// # Errors
    /// The backend's.
    pub fn new(ops: &mut O, arch: &Arch, latents: &[Latent], seed: u64) -> Result<Self> {
        let mut uploaded: Vec<_> = latents
            .iter()
            .map(|latent| ops.upload(latent.shape, &latent.data))
            .collect::<Result<_>>()?;
        uploaded.extend(upload_noise(ops, arch, Part::Global, seed, whole_grid(latents))?);
        let shapes: Vec<_> = latents.iter().map(|latent| latent.shape).collect();
        let graph = decoder::global_graph(arch, &shapes)?;
        let [features, rgb] = results(ops.run(&graph, uploaded)?)?;
        Ok(Self { features, rgb, seed })
    }

    /// Decodes `tile`: [height, width, 3] of its rectangle, black at -1 and white at 1.
    ///
    /// # Errors
    /// The backend's.
    pub fn decode(&self, ops: &mut O, arch: &Arch, tile: &Tile) -> Result<Vec<f32>> {
        self.begin(ops, arch, tile)?.wait()
    }

    /// As [`TileDecoder::decode`] without blocking: the device can compute the next tile while this one is copied back.
    ///
    /// # Errors
    /// The backend's; those of the copy come from [`Download::wait`].
    pub fn begin(&self, ops: &mut O, arch: &Arch, tile: &Tile) -> Result<Download> {
        let factor = arch.finest_factor();
        let own = Rect {
            x: tile.rect.x - tile.window.x * factor,
            y: tile.rect.y - tile.window.y * factor,
            width: tile.rect.width,
            height: tile.rect.height,
        };
        let graph = decoder::tile_graph(arch, tile.window.height, tile.window.width, own)?;
        let noise = decoder::noise_inputs(arch, Part::Local, self.seed, tile.window);
        let stage = [&self.features, &self.rgb].map(|x| Input::Window(x, tile.window));
        let noise = noise.iter().map(|(shape, values)| Input::Host(*shape, values));
        let inputs: Vec<_> = stage.into_iter().chain(noise).collect();
        let [own] = results(ops.evaluate(&graph, &inputs)?)?;
        Ok(own)
    }

    /// A preview, rows of 8-bit RGB, on the finest latent's grid, without the detail of the local stage.
    ///
    /// # Errors
    /// Those of [`preview`].
    pub fn preview(&self, ops: &mut O) -> Result<(Rect, Vec<u8>)> {
        small(ops, &self.rgb)
    }
}

/// The whole grid of the finest of `latents`.
fn whole_grid(latents: &[Latent]) -> Rect {
    let (width, height) = latents.first().map_or((0, 0), |z| (z.shape.w, z.shape.h));
    Rect { x: 0, y: 0, width, height }
}

/// The decoder's inputs of noise for `window`, on the device.
fn upload_noise<O: Backend>(
    ops: &mut O,
    arch: &Arch,
    part: Part,
    seed: u64,
    window: Rect,
) -> Result<Vec<O::Tensor>> {
    let inputs = decoder::noise_inputs(arch, part, seed, window);
    inputs.iter().map(|(shape, values)| ops.upload(*shape, values)).collect()
}

/// A preview, rows of 8-bit RGB, from the decoder's `latents` from `level` on, the coarsest ones. Finer ones count as
/// zero, as in training. The preview has twice the sides of `level`'s grid ([`decoder::preview_graph`]), at most those
/// of the finest latent's grid, so that a preview of a coarse level is cheap.
///
/// # Errors
/// The backend's; [`crate::error::Kind::InvalidModel`] when a value is not finite.
pub fn preview<O: Backend>(
    ops: &mut O,
    arch: &Arch,
    latents: &[Latent],
    level: usize,
    seed: u64,
) -> Result<(Rect, Vec<u8>)> {
    let seen = (latents.iter().enumerate()).map(|(i, latent)| match i < level {
        true => ops.upload(latent.shape, &vec![0.0; latent.data.len()]),
        false => ops.upload(latent.shape, &latent.data),
    });
    let mut seen = seen.collect::<Result<Vec<_>>>()?;
    seen.extend(upload_noise(ops, arch, Part::Preview(level), seed, whole_grid(latents))?);
    let shapes: Vec<_> = latents.iter().map(|latent| latent.shape).collect();
    let graph = decoder::preview_graph(arch, &shapes, level)?;
    let [rgb] = results(ops.run(&graph, seen)?)?;
    small(ops, &rgb)
}

/// The N results of a graph that has as many.
fn results<T, const N: usize>(results: Vec<T>) -> Result<[T; N]> {
    results.try_into().map_err(|_| Error::internal("a graph has another number of results"))
}

/// The RGB stream `rgb` [1, h, w, 3] as rows of 8-bit RGB.
fn small<O: Backend>(ops: &mut O, rgb: &O::Tensor) -> Result<(Rect, Vec<u8>)> {
    let shape = ops.shape(rgb);
    let rect = Rect { x: 0, y: 0, width: shape.w, height: shape.h };
    let samples = samples(rect, &ops.download(rgb)?, Bits::Eight)?;
    Ok((rect, samples))
}

/// `value` from -1 .. 1 to the integers 0 ..= `most`, rounded half to even; values outside are clamped.
fn quantise(value: f32, most: f32) -> f32 {
    ((value * 0.5 + 0.5) * most).round_ties_even().clamp(0.0, most)
}

/// Quantises `values` [height, width, 3] of `rect`: rows of RGB samples, in the machine's byte order.
///
/// # Errors
/// [`crate::error::Kind::InvalidModel`] when a value is not a number: the weights overflowed.
pub fn samples(rect: Rect, values: &[f32], bits: Bits) -> Result<Vec<u8>> {
    if let Some(value) = values.iter().find(|v| !v.is_finite()) {
        let Rect { x, y, width, height } = rect;
        let field = format!("a sample of {width}x{height} pixels at {x},{y}");
        return Err(Error::model(field, value, "a finite number: the model's weights overflow"));
    }
    Ok(match bits {
        Bits::Eight => values.iter().map(|&v| quantise(v, 255.0) as u8).collect(),
        Bits::Sixteen => {
            values.iter().flat_map(|&v| (quantise(v, 65535.0) as u16).to_ne_bytes()).collect()
        }
    })
}

/// Position of the samples of `rect` in a picture of `width` columns whose rows have no gaps.
pub fn placed(rect: Rect, width: usize, bits: Bits) -> store::RowSpan {
    let pixel = bits.pixel_len();
    store::RowSpan {
        offset: (rect.y * width + rect.x) * pixel,
        stride: width * pixel,
        row_len: rect.width * pixel,
        rows: rect.height,
    }
}

/// A picture being decoded: rows of RGB samples in a nameless memory-mapped file, which is deleted when the value is
/// dropped.
pub struct PixelBuffer {
    file: BackingFile,
    width: usize,
    height: usize,
    bits: Bits,
}

impl PixelBuffer {
    /// Allocates the whole picture in a nameless file in the directory `dir`, so that a full disk is an error here and
    /// not later.
    ///
    /// # Errors
    /// [`crate::error::Kind::Io`] when the file can't be made or the disk is full.
    pub fn create(dir: &Path, width: usize, height: usize, bits: Bits) -> Result<Self> {
        let file = BackingFile::create(dir, (width * height * bits.pixel_len()) as u64)?;
        Ok(Self { file, width, height, bits })
    }

    /// Writes the samples of one tile, as returned by [`samples`].
    ///
    /// # Errors
    /// [`crate::error::Kind::Internal`] when they don't fill `rect` or it leaves the picture.
    pub fn put(&mut self, rect: Rect, samples: &[u8]) -> Result<()> {
        self.file.write_rows(placed(rect, self.width, self.bits), samples)
    }

    /// All samples: rows without gaps, R G B, in the machine's byte order.
    pub fn bytes(&self) -> &[u8] {
        self.file.bytes()
    }

    /// Bits of a sample.
    pub fn bits(&self) -> Bits {
        self.bits
    }

    /// The picture as the input of a writer; reading fails once `cancel` is set.
    pub fn source<'a>(&'a self, cancel: &'a Cancel) -> impl PixelSource + 'a {
        Source { canvas: self, cancel }
    }
}

struct Source<'a> {
    canvas: &'a PixelBuffer,
    cancel: &'a Cancel,
}

impl PixelSource for Source<'_> {
    fn width(&self) -> u32 {
        self.canvas.width as u32
    }

    fn height(&self) -> u32 {
        self.canvas.height as u32
    }

    fn bits(&self) -> Bits {
        self.canvas.bits
    }

    fn read(&self, area: Rect, buffer: &mut [u8]) -> Result<()> {
        self.cancel.check()?;
        RawPixels::new(self.canvas.bytes(), self.width(), self.height(), self.bits())?
            .read(area, buffer)
    }
}
