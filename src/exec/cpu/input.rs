//! Inputs of products with a fused prologue: norm, scale and shift, SiLU, nearest-neighbour upsampling.

use pulp::Arch;

use super::{
    kernels::BLOCK,
    math::{activate, for_units},
    norm::{Affine, Channels, inverse_rms},
};
use crate::ops::Shape;

/// Normalisation that is applied to the input's values as they are loaded.
#[derive(Clone)]
pub(super) enum Prologue {
    /// None.
    Plain,
    /// An affine map per channel, for each picture or one for all.
    Affine(Vec<Affine>),
    /// RMS norm over the channels of the pixel, with these gains.
    Pixel(Channels),
}

/// Input of a product.
#[derive(Clone, Copy)]
pub(super) struct Input<'a> {
    /// Shape of `data`.
    pub(super) shape: Shape,
    /// Values, NHWC.
    pub(super) data: &'a [f32],
    /// Applied first.
    pub(super) prologue: &'a Prologue,
    /// True if SiLU is applied next.
    pub(super) silu: bool,
    /// True if the result is then nearest-upsampled.
    pub(super) up: bool,
}

impl<'a> Input<'a> {
    /// `data` without a prologue.
    pub(super) fn plain(shape: Shape, data: &'a [f32]) -> Self {
        Self { shape, data, prologue: &Prologue::Plain, silu: false, up: false }
    }

    /// Calls `to(pixel, block, values, number of channels)` for `pixels` of picture `n` with the prologue and SiLU
    /// applied.
    #[inline(always)]
    pub(super) fn each_block(
        &self,
        n: usize,
        pixels: &[f32],
        to: impl FnMut(usize, usize, [f32; BLOCK], usize),
    ) {
        let c = self.shape.c;
        match (self.prologue, self.silu) {
            (Prologue::Plain, false) => each_block::<false>(pixels, c, Identity, to),
            (Prologue::Plain, true) => each_block::<true>(pixels, c, Identity, to),
            (Prologue::Affine(maps), false) => {
                each_block::<false>(pixels, c, &maps[n % maps.len()], to)
            }
            (Prologue::Affine(maps), true) => {
                each_block::<true>(pixels, c, &maps[n % maps.len()], to)
            }
            (Prologue::Pixel(gains), false) => each_block::<false>(pixels, c, Rms(gains), to),
            (Prologue::Pixel(gains), true) => each_block::<true>(pixels, c, Rms(gains), to),
        }
    }

    /// Writes the input to `out` with the prologue and SiLU applied, not upsampled.
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

    /// Shape of the input after upsampling.
    pub(super) fn grid(&self) -> Shape {
        let factor = if self.up { 2 } else { 1 };
        Shape { h: self.shape.h * factor, w: self.shape.w * factor, ..self.shape }
    }
}

/// A transform of a pixel, block by block.
trait Transform {
    /// A statistic of the whole pixel that every block needs.
    fn prepare(&self, pixel: &[f32]) -> f32;
    /// Block `b` of the pixel, transformed.
    fn block(&self, prepared: f32, b: usize, x: [f32; BLOCK]) -> [f32; BLOCK];
}

struct Identity;

impl Transform for Identity {
    #[inline(always)]
    fn prepare(&self, _: &[f32]) -> f32 {
        0.0
    }

    #[inline(always)]
    fn block(&self, _: f32, _: usize, x: [f32; BLOCK]) -> [f32; BLOCK] {
        x
    }
}

impl Transform for &Affine {
    #[inline(always)]
    fn prepare(&self, _: &[f32]) -> f32 {
        0.0
    }

    #[inline(always)]
    fn block(&self, _: f32, b: usize, x: [f32; BLOCK]) -> [f32; BLOCK] {
        self.apply(b, x)
    }
}

struct Rms<'a>(&'a Channels);

impl Transform for Rms<'_> {
    #[inline(always)]
    fn prepare(&self, pixel: &[f32]) -> f32 {
        inverse_rms(pixel)
    }

    #[inline(always)]
    fn block(&self, prepared: f32, b: usize, x: [f32; BLOCK]) -> [f32; BLOCK] {
        self.0.scale(b, prepared, x)
    }
}

/// Calls `to(pixel, block, values, number of channels)` with `transform` and, if SILU, SiLU applied.
#[inline(always)]
fn each_block<const SILU: bool>(
    pixels: &[f32],
    channels: usize,
    transform: impl Transform,
    mut to: impl FnMut(usize, usize, [f32; BLOCK], usize),
) {
    for (j, pixel) in pixels.chunks_exact(channels).enumerate() {
        let prepared = transform.prepare(pixel);
        let (whole, rest) = pixel.as_chunks::<BLOCK>();
        for (b, chunk) in whole.iter().enumerate() {
            to(j, b, activated::<SILU>(transform.block(prepared, b, *chunk)), BLOCK);
        }
        if !rest.is_empty() {
            let (b, len) = (whole.len(), rest.len());
            // Common lengths are copied as vectors.
            let x = match len {
                24 => zero_padded_const::<24>(rest),
                16 => zero_padded_const::<16>(rest),
                _ => zero_padded(rest),
            };
            to(j, b, activated::<SILU>(transform.block(prepared, b, x)), len);
        }
    }
}

/// SiLU of every value if SILU.
#[inline(always)]
fn activated<const SILU: bool>(x: [f32; BLOCK]) -> [f32; BLOCK] {
    let mut x = x;
    for x in &mut x {
        *x = activate::<SILU>(*x);
    }
    x
}

/// N values, padded with zeros to a block.
#[inline(always)]
fn zero_padded_const<const N: usize>(values: &[f32]) -> [f32; BLOCK] {
    let mut x = [0.0; BLOCK];
    for (x, &value) in x[..N].iter_mut().zip(&values[..N]) {
        *x = value;
    }
    x
}

/// At most a block of values, padded with zeros to a block.
#[inline(always)]
fn zero_padded(values: &[f32]) -> [f32; BLOCK] {
    let mut x = [0.0; BLOCK];
    for (x, &value) in x.iter_mut().zip(values) {
        *x = value;
    }
    x
}
