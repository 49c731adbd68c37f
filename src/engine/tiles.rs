//! Tiled decode: every tile size and every order give the same pixels, bit for bit, on the same device.
//!
//! The global stage runs once and its output stays on the device. A tile then needs a window of it, its own rectangle
//! and the halo around, which the finite reach of the local stage's operators bounds; memory follows the tile, not the
//! picture. Decoded pixels go into the memory-mapped [`Canvas`], from which the writers read.

use std::path::Path;

use crate::{
    engine::{
        Cancel,
        plan::{Rect, Tile},
    },
    error::{Error, Result},
    image_out::{Area, Bits, PixelSource, RawPixels},
    model::{arch::Arch, decoder, sampler::Latent},
    ops::{Ops, Window},
    store::{self, Arena},
};

/// The global stage's output of one picture, from which any tile can be decoded at any time.
pub struct TileDecoder<'a, O: Ops> {
    arch: &'a Arch,
    /// Features on the finest latent's grid.
    features: O::Tensor,
    /// RGB stream on the same grid.
    rgb: O::Tensor,
}

impl<'a, O: Ops> TileDecoder<'a, O> {
    /// Runs the global stage on `latents`, finest first, as the encoder's means are: not normalised.
    ///
    /// # Errors
    /// When an operator fails.
    pub fn new(ops: &mut O, arch: &'a Arch, latents: &[Latent]) -> Result<Self> {
        let uploaded: Vec<_> = latents
            .iter()
            .map(|latent| ops.upload(latent.shape, &latent.data))
            .collect::<Result<_>>()?;
        let (features, rgb) = decoder::global_stage(ops, arch, &uploaded)?;
        Ok(Self { arch, features, rgb })
    }

    /// The pixels of `tile`: rows of RGB, black at -1 and white at 1.
    ///
    /// # Errors
    /// When an operator fails.
    pub fn decode(&self, ops: &mut O, tile: &Tile) -> Result<Vec<f32>> {
        let features = ops.crop(&self.features, tile.window)?;
        let rgb = ops.crop(&self.rgb, tile.window)?;
        let decoded = decoder::local_stage(ops, self.arch, features, rgb)?;
        // The halo ends here, on the device: only the tile's own pixels are copied back.
        let factor = self.arch.finest_factor();
        let own = Window {
            y: tile.rect.y - tile.window.y * factor,
            x: tile.rect.x - tile.window.x * factor,
            h: tile.rect.height,
            w: tile.rect.width,
        };
        let own = ops.crop(&decoded, own)?;
        ops.download(&own)
    }
}

/// The sample of `value` among levels 0 to `most`: [-1, 1] becomes [0, most], rounded half to even; what lies outside
/// is clamped.
fn quantise(value: f32, most: f32) -> f32 {
    ((value * 0.5 + 0.5) * most).round_ties_even().clamp(0.0, most)
}

/// A picture being decoded: RGB samples, row by row, in a memory-mapped file that goes with the value.
pub struct Canvas {
    arena: Arena,
    width: usize,
    height: usize,
    bits: Bits,
}

impl Canvas {
    /// Reserves the whole picture in a nameless file in `dir`, so that a full disk is an error now and not later.
    ///
    /// # Errors
    /// [`crate::error::Kind::Io`] when the file can't be made or the disk is full.
    pub fn create(dir: &Path, width: usize, height: usize, bits: Bits) -> Result<Self> {
        let arena = Arena::create(dir, (width * height * bits.pixel_len()) as u64)?;
        Ok(Self { arena, width, height, bits })
    }

    /// Writes the values of one tile.
    ///
    /// # Errors
    /// [`crate::error::Kind::InvalidModel`] when a value is not a number: the weights overflowed.
    pub fn put(&mut self, rect: Rect, values: &[f32]) -> Result<()> {
        if let Some(value) = values.iter().find(|v| !v.is_finite()) {
            let Rect { x, y, width, height } = rect;
            return Err(Error::model(format!(
                "decoding pixels {x},{y} to {},{} gave {value}: the model's weights overflow",
                x + width,
                y + height
            )));
        }
        let pixel = self.bits.pixel_len();
        let target = store::Rect {
            offset: (rect.y * self.width + rect.x) * pixel,
            stride: self.width * pixel,
            row_len: rect.width * pixel,
            rows: rect.height,
        };
        match self.bits {
            Bits::Eight => {
                let samples: Vec<u8> = values.iter().map(|&v| quantise(v, 255.0) as u8).collect();
                self.arena.write_rect(target, &samples)
            }
            Bits::Sixteen => {
                let samples: Vec<u16> =
                    values.iter().map(|&v| quantise(v, 65535.0) as u16).collect();
                self.arena.write_rect(target, &samples)
            }
        }
    }
}

impl Canvas {
    /// Samples of the picture: rows without gaps, R G B, in the machine's byte order.
    pub fn bytes(&self) -> &[u8] {
        self.arena.bytes()
    }

    /// Bits of a sample.
    pub fn bits(&self) -> Bits {
        self.bits
    }

    /// The picture for a writer, which ends at once when `cancel` is raised.
    pub fn source<'a>(&'a self, cancel: &'a Cancel) -> impl PixelSource + 'a {
        Source { canvas: self, cancel }
    }
}

struct Source<'a> {
    canvas: &'a Canvas,
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

    fn read(&self, area: Area, buffer: &mut [u8]) -> Result<()> {
        self.cancel.check()?;
        RawPixels::new(self.canvas.bytes(), self.width(), self.height(), self.bits())?
            .read(area, buffer)
    }
}
