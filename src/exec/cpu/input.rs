//! What a product reads, and what is done to it on the way: norm, scale and shift, SiLU, enlarging.

use pulp::Arch;

use super::{
    kernels::BLOCK,
    math::{activate, for_units},
    norm::{Affine, Channels, inverse_rms},
};
use crate::ops::Shape;

/// What is done to the input's values before they are multiplied.
#[derive(Clone)]
pub(super) enum Load {
    /// Nothing.
    Plain,
    /// An affine map per channel, one for every picture or one for all.
    Affine(Vec<Affine>),
    /// RMS norm over the channels of the pixel, times these.
    Pixel(Channels),
}

/// What a product is taken over.
#[derive(Clone, Copy)]
pub(super) struct Input<'a> {
    /// Extent of `data`.
    pub(super) shape: Shape,
    /// NHWC.
    pub(super) data: &'a [f32],
    /// What is done to a pixel first.
    pub(super) load: &'a Load,
    /// Whether SiLU is next.
    pub(super) silu: bool,
    /// Whether every pixel then becomes 2x2.
    pub(super) up: bool,
}

impl<'a> Input<'a> {
    /// `data` as it is.
    pub(super) fn plain(shape: Shape, data: &'a [f32]) -> Self {
        Self { shape, data, load: &Load::Plain, silu: false, up: false }
    }

    /// Calls `to(pixel, block, values, number of channels)` for `pixels` of picture `n`, with what is done to them done.
    #[inline(always)]
    pub(super) fn each_block(
        &self,
        n: usize,
        pixels: &[f32],
        to: impl FnMut(usize, usize, [f32; BLOCK], usize),
    ) {
        let c = self.shape.c;
        match (self.load, self.silu) {
            (Load::Plain, false) => each_block::<false>(pixels, c, Keep, to),
            (Load::Plain, true) => each_block::<true>(pixels, c, Keep, to),
            (Load::Affine(maps), false) => {
                each_block::<false>(pixels, c, &maps[n % maps.len()], to)
            }
            (Load::Affine(maps), true) => each_block::<true>(pixels, c, &maps[n % maps.len()], to),
            (Load::Pixel(gains), false) => each_block::<false>(pixels, c, Rms(gains), to),
            (Load::Pixel(gains), true) => each_block::<true>(pixels, c, Rms(gains), to),
        }
    }

    /// Writes the input with what is done to it, but for the enlarging, to `out`.
    pub(super) fn write(&self, arch: Arch, out: &mut [f32]) {
        let (c, picture) = (self.shape.c, self.shape.pixels() * self.shape.c);
        let pictures = self.data.chunks_exact(picture).zip(out.chunks_exact_mut(picture));
        for (n, (data, out)) in pictures.enumerate() {
            for_units(
                arch,
                out,
                c,
                #[inline(always)]
                |first, out| {
                    let pixels = &data[first * c..][..out.len()];
                    self.each_block(
                        n,
                        pixels,
                        #[inline(always)]
                        |j, b, x, channels| {
                            out[j * c + b * BLOCK..][..channels].copy_from_slice(&x[..channels]);
                        },
                    );
                },
            );
        }
    }

    /// Extent of the product's grid, with the input's channels.
    pub(super) fn grid(&self) -> Shape {
        let factor = if self.up { 2 } else { 1 };
        Shape { h: self.shape.h * factor, w: self.shape.w * factor, ..self.shape }
    }
}

/// What is done to a pixel, block by block.
trait Change {
    /// What all blocks of the pixel need to know.
    fn look(&self, pixel: &[f32]) -> f32;
    fn block(&self, look: f32, b: usize, x: [f32; BLOCK]) -> [f32; BLOCK];
}

struct Keep;

impl Change for Keep {
    #[inline(always)]
    fn look(&self, _: &[f32]) -> f32 {
        0.0
    }

    #[inline(always)]
    fn block(&self, _: f32, _: usize, x: [f32; BLOCK]) -> [f32; BLOCK] {
        x
    }
}

impl Change for &Affine {
    #[inline(always)]
    fn look(&self, _: &[f32]) -> f32 {
        0.0
    }

    #[inline(always)]
    fn block(&self, _: f32, b: usize, x: [f32; BLOCK]) -> [f32; BLOCK] {
        self.apply(b, x)
    }
}

struct Rms<'a>(&'a Channels);

impl Change for Rms<'_> {
    #[inline(always)]
    fn look(&self, pixel: &[f32]) -> f32 {
        inverse_rms(pixel)
    }

    #[inline(always)]
    fn block(&self, look: f32, b: usize, x: [f32; BLOCK]) -> [f32; BLOCK] {
        self.0.scale(b, look, x)
    }
}

/// Calls `to(pixel, block, changed values, number of channels)`, SiLU applied to the values if asked for.
#[inline(always)]
fn each_block<const SILU: bool>(
    pixels: &[f32],
    channels: usize,
    change: impl Change,
    mut to: impl FnMut(usize, usize, [f32; BLOCK], usize),
) {
    for (j, pixel) in pixels.chunks_exact(channels).enumerate() {
        let look = change.look(pixel);
        let (whole, rest) = pixel.as_chunks::<BLOCK>();
        for (b, chunk) in whole.iter().enumerate() {
            to(j, b, finished::<SILU>(change.block(look, b, *chunk)), BLOCK);
        }
        if !rest.is_empty() {
            let (b, len) = (whole.len(), rest.len());
            // The usual lengths are moved as vectors.
            let x = match len {
                24 => padded::<24>(rest),
                16 => padded::<16>(rest),
                _ => some(rest),
            };
            to(j, b, finished::<SILU>(change.block(look, b, x)), len);
        }
    }
}

/// SiLU if asked for.
#[inline(always)]
fn finished<const SILU: bool>(x: [f32; BLOCK]) -> [f32; BLOCK] {
    let mut x = x;
    for x in &mut x {
        *x = activate::<SILU>(*x);
    }
    x
}

/// N values, and zeros up to a block.
#[inline(always)]
fn padded<const N: usize>(values: &[f32]) -> [f32; BLOCK] {
    let mut x = [0.0; BLOCK];
    for (x, &value) in x[..N].iter_mut().zip(&values[..N]) {
        *x = value;
    }
    x
}

/// The same for any number of values.
#[inline(always)]
fn some(values: &[f32]) -> [f32; BLOCK] {
    let mut x = [0.0; BLOCK];
    for (x, &value) in x.iter_mut().zip(values) {
        *x = value;
    }
    x
}
