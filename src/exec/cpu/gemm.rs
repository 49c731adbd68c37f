//! Convolutions and matrix products: a register tile of several pixels by two vectors of output channels.
//!
//! Guarantee: every output is bias + sum over (tap, input channel) in that order, one fused multiply-add each; which
//! tile, chunk or thread computed it does not show in its bits. Taps that fall outside of the picture read zeros.

use std::array::from_fn;

use bytemuck::{Pod, Zeroable};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use crate::ops::Shape;

/// Vectors of output channels in a register tile.
const VECTORS: usize = 2;
/// Pixels of a register tile with 32 registers: 28 sums, two vectors of weights, one of input.
const PIXELS_32: usize = 14;
/// Pixels of a register tile with 16 registers.
const PIXELS_16: usize = 6;
/// Bytes of input that a task reads again for every block of output channels; fits a second-level cache.
const TASK_BYTES: usize = 192 * 1024;

/// A cache line, so that vectors of weights don't straddle two.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// Weights in the order in which the kernel reads them: [output block][tap][input][lane], then the bias.
///
/// A block is two vectors of output channels, or one at the end; lanes beyond the last output are zero.
pub(super) struct Packed {
    taps: usize,
    inputs: usize,
    outputs: usize,
    lanes: usize,
    weights: Vec<Line>,
    bias: Vec<Line>,
}

/// What a product is taken over: a picture batch whose pixels have as many channels as the weights have inputs.
#[derive(Clone, Copy)]
pub(super) struct Grid<'a> {
    /// Extent of `data`.
    pub(super) shape: Shape,
    /// NHWC.
    pub(super) data: &'a [f32],
}

struct Lanes;

impl WithSimd for Lanes {
    type Output = usize;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> usize {
        S::F32_LANES
    }
}

impl Packed {
    /// Packs `weight(tap, input, output)` and `bias(output)`; `taps` is 1 or 9 (rows of a 3x3 kernel).
    pub(super) fn new(
        (taps, inputs, outputs): (usize, usize, usize),
        weight: impl Fn(usize, usize, usize) -> f32 + Sync,
        bias: impl Fn(usize) -> f32,
    ) -> Self {
        let lanes = pulp::Arch::new().dispatch(Lanes);
        let padded = outputs.next_multiple_of(lanes);
        let lines = |floats: usize| vec![Line::zeroed(); floats.div_ceil(16)];
        let mut packed = Self {
            taps,
            inputs,
            outputs,
            lanes,
            weights: lines(taps * inputs * padded),
            bias: lines(padded),
        };
        let block = taps * inputs * VECTORS * lanes;
        let all = &mut bytemuck::cast_slice_mut(&mut packed.weights)[..taps * inputs * padded];
        all.par_chunks_mut(block.max(1)).enumerate().for_each(|(b, part)| {
            let width = part.len() / (taps * inputs);
            for (row, values) in part.chunks_exact_mut(width).enumerate() {
                let first = b * VECTORS * lanes;
                for (o, value) in (first..outputs).zip(values) {
                    *value = weight(row / inputs, row % inputs, o);
                }
            }
        });
        let values: &mut [f32] = bytemuck::cast_slice_mut(&mut packed.bias);
        for (o, value) in values[..outputs].iter_mut().enumerate() {
            *value = bias(o);
        }
        packed
    }

    /// A 1-tap product without bias.
    pub(super) fn matrix(
        (inputs, outputs): (usize, usize),
        weight: impl Fn(usize, usize) -> f32 + Sync,
    ) -> Self {
        Self::new((1, inputs, outputs), |_, i, o| weight(i, o), |_| 0.0)
    }

    /// Taps, inputs, outputs.
    pub(super) fn extent(&self) -> (usize, usize, usize) {
        (self.taps, self.inputs, self.outputs)
    }

    fn block_width(&self) -> usize {
        VECTORS * self.lanes
    }

    fn blocks(&self) -> usize {
        self.outputs.div_ceil(self.block_width())
    }

    /// Weights, bias and number of outputs of block `b`.
    fn block(&self, b: usize) -> (&[f32], &[f32], usize) {
        let padded = self.outputs.next_multiple_of(self.lanes);
        let (first, last) = (b * self.block_width(), ((b + 1) * self.block_width()).min(padded));
        let rows = self.taps * self.inputs;
        let weights: &[f32] = bytemuck::cast_slice(&self.weights);
        let bias: &[f32] = bytemuck::cast_slice(&self.bias);
        let outputs = self.outputs.min(last) - first;
        (&weights[rows * first..rows * last], &bias[first..last], outputs)
    }

    /// out [pixels, outputs] = the product at every pixel of `grid`, on all cores.
    pub(super) fn run(&self, grid: Grid, out: &mut [f32]) {
        let pixels = grid.shape.n * grid.shape.pixels();
        let blocks = self.blocks();
        let threads = rayon::current_num_threads();
        if pixels < 4 * PIXELS_32 * threads && blocks > 1 && threads > 1 {
            // Few pixels, so the weights are the work: every thread reads its own blocks of them.
            let mut parts = vec![0.0; pixels * blocks * self.block_width()];
            let part = pixels * self.block_width();
            parts.par_chunks_mut(part.max(1)).enumerate().for_each(|(b, part)| {
                let width = self.block(b).2;
                let task = Task { packed: self, grid, first: 0, blocks: (b, b + 1), stride: width };
                task.run(&mut part[..pixels * width]);
            });
            for (b, part) in parts.chunks_exact(part.max(1)).enumerate() {
                let width = self.block(b).2;
                let rows = out.chunks_exact_mut(self.outputs).zip(part.chunks_exact(width));
                for (out, part) in rows {
                    out[b * self.block_width()..][..width].copy_from_slice(part);
                }
            }
            return;
        }
        let cached = (TASK_BYTES / (4 * self.inputs.max(self.outputs))).max(4 * PIXELS_32);
        let balanced = pixels.div_ceil(8 * threads).max(2 * PIXELS_32);
        let chunk = cached.min(balanced).next_multiple_of(PIXELS_32);
        out.par_chunks_mut(chunk * self.outputs).enumerate().for_each(|(i, part)| {
            let (first, stride) = (i * chunk, self.outputs);
            Task { packed: self, grid, first, blocks: (0, blocks), stride }.run(part);
        });
    }

    /// The same for the rows of a matrix [rows, inputs], on this thread.
    pub(super) fn run_rows(&self, rows: &[f32], out: &mut [f32]) {
        let shape = Shape::new(1, 1, rows.len() / self.inputs.max(1), self.inputs);
        let grid = Grid { shape, data: rows };
        Task { packed: self, grid, first: 0, blocks: (0, self.blocks()), stride: self.outputs }
            .run(out);
    }
}

/// Consecutive pixels from `first` on, some output blocks.
struct Task<'a> {
    packed: &'a Packed,
    grid: Grid<'a>,
    first: usize,
    blocks: (usize, usize),
    stride: usize,
}

impl Task<'_> {
    /// `out`: [pixels of the task, stride], the first output block at column 0.
    fn run(self, out: &mut [f32]) {
        pulp::Arch::new().dispatch(Run { task: self, out });
    }
}

struct Run<'a, 'b> {
    task: Task<'a>,
    out: &'b mut [f32],
}

impl WithSimd for Run<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { task, out } = self;
        let packed = task.packed;
        let zeros = vec![0.0; packed.inputs];
        for b in task.blocks.0..task.blocks.1 {
            let (weights, bias, outputs) = packed.block(b);
            let column = (b - task.blocks.0) * packed.block_width();
            let block = Block { weights, bias, outputs, column };
            if bias.len() > S::F32_LANES {
                tiles::<S, VECTORS>(simd, &task, &block, &zeros, out);
            } else {
                tiles::<S, 1>(simd, &task, &block, &zeros, out);
            }
        }
    }
}

struct Block<'a> {
    weights: &'a [f32],
    bias: &'a [f32],
    outputs: usize,
    column: usize,
}

/// All pixels of the task in tiles: as many of the largest as fit, then smaller ones.
#[inline(always)]
fn tiles<S: Simd, const V: usize>(
    simd: S,
    task: &Task,
    block: &Block,
    zeros: &[f32],
    out: &mut [f32],
) {
    let pixels = out.len() / task.stride;
    let mut at = 0;
    while at < pixels {
        let (first, out) = (task.first + at, &mut out[at * task.stride + block.column..]);
        let left = pixels - at;
        at += if S::REGISTER_COUNT >= 32 && left >= PIXELS_32 {
            tile::<S, PIXELS_32, V>(simd, task, first, block, zeros, out)
        } else if S::REGISTER_COUNT >= 32 && left >= 8 {
            tile::<S, 8, V>(simd, task, first, block, zeros, out)
        } else if left >= PIXELS_16 {
            tile::<S, PIXELS_16, V>(simd, task, first, block, zeros, out)
        } else if left >= 4 {
            tile::<S, 4, V>(simd, task, first, block, zeros, out)
        } else if left >= 2 {
            tile::<S, 2, V>(simd, task, first, block, zeros, out)
        } else {
            tile::<S, 1, V>(simd, task, first, block, zeros, out)
        };
    }
}

/// P consecutive pixels from `first` on, V vectors of outputs; gives P.
#[inline(always)]
fn tile<S: Simd, const P: usize, const V: usize>(
    simd: S,
    task: &Task,
    first: usize,
    block: &Block,
    zeros: &[f32],
    out: &mut [f32],
) -> usize {
    let (inputs, shape) = (task.packed.inputs, task.grid.shape);
    let reach = if task.packed.taps == 9 { 1 } else { 0 };
    let (weights, _) = S::as_simd_f32s(block.weights);
    let (weights, _) = weights.as_chunks::<V>();
    let (bias, _) = S::as_simd_f32s(block.bias);
    let bias = &bias[..V];
    let mut sums: [[S::f32s; V]; P] = from_fn(|_| from_fn(|v| bias[v]));
    let inside = Inside::<P>::new(shape, first);
    for (tap, weights) in weights.chunks_exact(inputs).enumerate() {
        let (dy, dx) = if reach == 0 { (1, 1) } else { (tap / 3, tap % 3) };
        let mask = inside.rows[dy] & inside.columns[dx];
        if mask == 0 {
            continue;
        }
        // Pixels of a batch are consecutive, so a tap is a shift; one before the first pixel only where the mask is 0.
        let at = (first + dy * shape.w + dx).wrapping_sub(shape.w + 1);
        let mut pixels = [zeros; P];
        for (p, pixel) in pixels.iter_mut().enumerate() {
            if mask >> p & 1 == 1 {
                *pixel = &task.grid.data[at.wrapping_add(p) * inputs..];
            }
            *pixel = &pixel[..inputs];
        }
        for (i, weights) in weights.iter().enumerate() {
            for p in 0..P {
                let x = simd.splat_f32s(pixels[p][i]);
                for v in 0..V {
                    sums[p][v] = simd.mul_add_e_f32s(x, weights[v], sums[p][v]);
                }
            }
        }
    }
    // The loop below indexes memory; the copy leaves `sums` to the registers.
    let finished = sums;
    for (p, sums) in finished.iter().enumerate() {
        let out = &mut out[p * task.stride..][..block.outputs];
        for (part, &sum) in out.chunks_mut(S::F32_LANES).zip(sums) {
            simd.partial_store_f32s(part, sum);
        }
    }
    P
}

/// Which of P consecutive pixels have a neighbour in the picture: one bit a pixel, for -1, 0, +1 of each axis.
struct Inside<const P: usize> {
    rows: [u32; 3],
    columns: [u32; 3],
}

impl<const P: usize> Inside<P> {
    #[inline(always)]
    fn new(shape: Shape, first: usize) -> Self {
        let (mut x, mut y) = (first % shape.w, first / shape.w % shape.h);
        let all = u32::MAX >> (32 - P);
        let (mut rows, mut columns) = ([all; 3], [all; 3]);
        for p in 0..P {
            let bit = |at: bool| u32::from(at) << p;
            rows[0] &= !bit(y == 0);
            rows[2] &= !bit(y + 1 == shape.h);
            columns[0] &= !bit(x == 0);
            columns[2] &= !bit(x + 1 == shape.w);
            x += 1;
            if x == shape.w {
                (x, y) = (0, if y + 1 == shape.h { 0 } else { y + 1 });
            }
        }
        Self { rows, columns }
    }
}
