//! Convolutions and matrix products: bands of the input, packed in the order of the kernels, times packed weights.
//!
//! A task copies a few rows of the input with their neighbours into a [`Band`], applies the prologue (norm,
//! SiLU, upsampling) and rounds to the product's precision. It then runs the kernels over all blocks of outputs and
//! adds the residual as it stores. Pixels past the edges are zeros in the band.
//!
//! Guarantee: every output is bias + sum over (block of 32 inputs, tap, input) in that order; its bits do not depend on
//! the tile, band or thread that computed it.

use std::{
    cell::RefCell,
    time::{Duration, Instant},
};

use bytemuck::{Pod, Zeroable};
use half::bf16;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::{
    input::Input,
    kernels::{
        self, BLOCK, Band, Bf16Isa, COLUMN, Epilogue, SLACK, SUMS, Step, TILE, Tiles, VECTORS,
        Value,
    },
};
use crate::ops::Shape;

/// Bytes of a band: with the weights of a block of outputs it fits the second-level cache.
const BAND_BYTES: usize = 512 * 1024;

/// Multiply-adds that one thread finishes before others could start.
const SMALL: usize = 1 << 18;

/// A cache line, so that rows of weights and bands don't straddle two.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// Instructions of products.
#[derive(Clone, Copy, Debug)]
pub(super) struct KernelConfig {
    /// Instructions for f32.
    pub(super) arch: Arch,
    /// Instructions for products in bf16; None: products are f32.
    pub(super) bf16: Option<Bf16Isa>,
}

/// Packed weights and bias of a product.
///
/// f32: [block][step][input][output of the block]; a block is two vectors, or one at the end. bf16: [column of 16
/// outputs][step][pair of inputs][output][2]; a block is two columns, or one. What is beyond the last input or output
/// is zero. A step is a block of 32 inputs at one tap.
pub(super) struct Packed {
    config: KernelConfig,
    taps: usize,
    inputs: usize,
    outputs: usize,
    /// Outputs per vector (f32) or column (bf16).
    unit: usize,
    weights: Vec<Line>,
    bias: Vec<Line>,
}

struct Lanes;

impl WithSimd for Lanes {
    type Output = usize;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> usize {
        S::F32_LANES
    }
}

fn lines(bytes: usize) -> Vec<Line> {
    vec![Line::zeroed(); bytes.div_ceil(size_of::<Line>())]
}

impl Packed {
    /// Packs `weight(tap, input, output)` and `bias(output)`; `taps` is 1 or 9 (rows of a 3x3 kernel).
    pub(super) fn new(
        config: KernelConfig,
        (taps, inputs, outputs): (usize, usize, usize),
        weight: impl Fn(usize, usize, usize) -> f32 + Sync,
        bias: impl Fn(usize) -> f32,
    ) -> Self {
        let unit = config.bf16.map_or_else(|| config.arch.dispatch(Lanes), |_| COLUMN);
        let padded = outputs.next_multiple_of(unit);
        let steps = taps * inputs.div_ceil(BLOCK);
        // First input, tap and number of inputs of a step.
        let step = |s: usize| {
            let first = s / taps * BLOCK;
            (first, s % taps, BLOCK.min(inputs - first))
        };
        let mut packed = Self {
            config,
            taps,
            inputs,
            outputs,
            unit,
            weights: Vec::new(),
            bias: lines(4 * padded),
        };
        if config.bf16.is_some() {
            packed.weights = lines(2 * steps * TILE * padded / COLUMN);
            let all: &mut [bf16] = bytemuck::cast_slice_mut(&mut packed.weights);
            let column = (steps * TILE).max(1);
            all[..steps * TILE * padded / COLUMN].par_chunks_mut(column).enumerate().for_each(
                |(b, part)| {
                    for (s, tile) in part.chunks_exact_mut(TILE).enumerate() {
                        let (first, tap, inputs) = step(s);
                        for (o, n) in (b * COLUMN..outputs).zip(0..COLUMN) {
                            for i in 0..inputs {
                                tile[(i / 2 * COLUMN + n) * 2 + i % 2] =
                                    bf16::from_f32(weight(tap, first + i, o));
                            }
                        }
                    }
                },
            );
        } else {
            let rows = taps * inputs;
            packed.weights = lines(4 * rows * padded);
            let all: &mut [f32] = bytemuck::cast_slice_mut(&mut packed.weights);
            let block = (rows * VECTORS * unit).max(1);
            all[..rows * padded].par_chunks_mut(block).enumerate().for_each(|(b, part)| {
                let width = part.len() / rows;
                let mut values = part.chunks_exact_mut(width);
                for s in 0..steps {
                    let (first, tap, inputs) = step(s);
                    for (i, values) in (first..first + inputs).zip(&mut values) {
                        for (o, value) in (b * VECTORS * unit..outputs).zip(values) {
                            *value = weight(tap, i, o);
                        }
                    }
                }
            });
        }
        let values: &mut [f32] = bytemuck::cast_slice_mut(&mut packed.bias);
        for (o, value) in values[..outputs].iter_mut().enumerate() {
            *value = bias(o);
        }
        packed
    }

    /// A matrix [inputs, outputs] as a 1-tap product without bias.
    pub(super) fn matrix(
        config: KernelConfig,
        (inputs, outputs): (usize, usize),
        weight: impl Fn(usize, usize) -> f32 + Sync,
    ) -> Self {
        Self::new(config, (1, inputs, outputs), |_, i, o| weight(i, o), |_| 0.0)
    }

    /// Taps, input channels, output channels.
    pub(super) fn extent(&self) -> (usize, usize, usize) {
        (self.taps, self.inputs, self.outputs)
    }

    fn block_width(&self) -> usize {
        VECTORS * self.unit
    }

    fn blocks(&self) -> usize {
        self.outputs.div_ceil(self.block_width())
    }

    /// Bytes of a point in a band.
    fn point_bytes(&self) -> usize {
        let value = if self.config.bf16.is_some() { size_of::<bf16>() } else { size_of::<f32>() };
        self.inputs.next_multiple_of(BLOCK) * value
    }

    /// First output of block `b`, and its number of outputs with padding.
    fn block(&self, b: usize) -> (usize, usize) {
        let padded = self.outputs.next_multiple_of(self.unit);
        let first = b * self.block_width();
        (first, self.block_width().min(padded - first))
    }

    /// The product at every pixel, input [n, h, w, in] -> `out` [n, h, w, out], on all cores; with `residual` the
    /// weighted sum.
    pub(super) fn run(&self, input: &Input, residual: Option<&Residual>, out: &mut [f32]) {
        let shape = input.grid();
        let picture = shape.pixels() * self.outputs;
        for (n, out) in out.chunks_exact_mut(picture).enumerate() {
            let plane = Plane { input, n, residual };
            let radius = usize::from(self.taps == 9);
            let flat = radius == 0 && !input.up && residual.is_none_or(|residual| !residual.up);
            let (h, w) = if flat { (shape.pixels(), 1) } else { (shape.h, shape.w) };
            let work = self.taps * self.inputs * self.outputs * shape.pixels();
            let threads = if work < SMALL { 1 } else { rayon::current_num_threads() };
            let (rows, columns) = self.cut(h, w, radius, threads);
            let (bands, blocks) = (h.div_ceil(rows), self.blocks());
            let task =
                Task { packed: self, plane, radius, w, first: 0, columns, blocks: (0, blocks) };
            if bands == 1 && threads == 1 {
                task.run(out);
                continue;
            }
            let groups = if bands < threads { blocks.min(threads.div_ceil(bands)) } else { 1 };
            if groups == 1 {
                out.par_chunks_mut(rows * w * self.outputs).enumerate().for_each(|(i, out)| {
                    Task { first: i * rows, ..task }.run(out);
                });
                continue;
            }
            // Too few bands for all threads: split the outputs as well.
            let per_group = blocks.div_ceil(groups);
            let group_width = per_group * self.block_width();
            let parts: Vec<Vec<f32>> = (0..bands * blocks.div_ceil(per_group))
                .into_par_iter()
                .map(|i| {
                    let (band, group) = (i % bands, i / bands);
                    let width = group_width.min(self.outputs - group * group_width);
                    let mut part = vec![0.0; rows.min(h - band * rows) * w * width];
                    let blocks = (group * per_group, ((group + 1) * per_group).min(blocks));
                    Task { first: band * rows, blocks, ..task }.run(&mut part);
                    part
                })
                .collect();
            for (i, part) in parts.iter().enumerate() {
                let (band, group) = (i % bands, i / bands);
                let width = group_width.min(self.outputs - group * group_width);
                let out = out[band * rows * w * self.outputs..].chunks_exact_mut(self.outputs);
                for (out, part) in out.zip(part.chunks_exact(width)) {
                    out[group * group_width..][..width].copy_from_slice(part);
                }
            }
        }
    }

    /// Rows of a task, and columns of one of its bands.
    fn cut(&self, h: usize, w: usize, radius: usize, threads: usize) -> (usize, usize) {
        let points = BAND_BYTES / self.point_bytes().max(1);
        let most = if points < 2048 { 64 } else { 128 };
        let columns = w.div_ceil(w.div_ceil(most));
        let rows = (points / (columns + 2 * radius)).saturating_sub(2 * radius).max(1);
        // As many tasks as threads, or several times as many if they are large compared with their edges.
        let many = h.div_ceil(4 * threads);
        let wanted = if many >= 16 && many * columns >= 1024 { many } else { h.div_ceil(threads) };
        (rows.min(wanted), columns)
    }

    /// The product of a matrix `rows` [count, inputs] -> `out` [count, outputs], on this thread.
    pub(super) fn run_rows(&self, rows: &[f32], out: &mut [f32]) {
        let shape = Shape::new(1, rows.len() / self.inputs.max(1), 1, self.inputs);
        let input = Input::plain(shape, rows);
        let plane = Plane { input: &input, n: 0, residual: None };
        let blocks = (0, self.blocks());
        Task { packed: self, plane, radius: 0, w: 1, first: 0, columns: 1, blocks }.run(out);
    }
}

/// The shortest time of a small product for each of `configs` on this thread, measured in turns so that other load
/// affects all.
pub(super) fn shortest<const N: usize>(configs: [KernelConfig; N]) -> [Duration; N] {
    const TIMES: usize = 8;
    const EXTENT: usize = 192;
    let matrices =
        configs.map(|config| Packed::matrix(config, (EXTENT, EXTENT), |i, o| (i + o) as f32));
    let (rows, mut out) = (vec![1.0; EXTENT * EXTENT], vec![0.0; EXTENT * EXTENT]);
    let mut shortest = [Duration::MAX; N];
    for _ in 0..TIMES {
        for (matrix, shortest) in matrices.iter().zip(&mut shortest) {
            let began = Instant::now();
            matrix.run_rows(&rows, &mut out);
            *shortest = began.elapsed().min(*shortest);
        }
    }
    shortest
}

/// The other term of a weighted sum with a product: wa data + wb product.
#[derive(Clone, Copy)]
pub(super) struct Residual<'a> {
    /// Values, NHWC, with the product's channels.
    pub(super) data: &'a [f32],
    /// True if it is nearest-upsampled as it is read.
    pub(super) up: bool,
    /// Factor of `data`.
    pub(super) wa: f32,
    /// Factor of the product.
    pub(super) wb: f32,
}

impl Residual<'_> {
    /// Its values for picture `n` of a product over `grid` with `channels` output channels.
    pub(super) fn picture(&self, grid: Shape, n: usize, channels: usize) -> &[f32] {
        let values = grid.pixels() / if self.up { 4 } else { 1 } * channels;
        &self.data[n * values..][..values]
    }
}

/// Index of the residual's pixel for the product's pixel (y, x), with rows of `w` pixels.
#[inline(always)]
pub(super) fn residual_pixel(up: bool, w: usize, y: usize, x: usize) -> usize {
    if up { y / 2 * (w / 2) + x / 2 } else { y * w + x }
}

/// One picture of the batch.
#[derive(Clone, Copy)]
struct Plane<'a> {
    input: &'a Input<'a>,
    n: usize,
    residual: Option<&'a Residual<'a>>,
}

/// Consecutive rows of a picture from `first` on, some blocks of outputs.
#[derive(Clone, Copy)]
struct Task<'a> {
    packed: &'a Packed,
    plane: Plane<'a>,
    /// Neighbours on each side that a pixel reads.
    radius: usize,
    /// Pixels of a row.
    w: usize,
    first: usize,
    /// Columns of a band.
    columns: usize,
    blocks: (usize, usize),
}

/// Buffers that a thread keeps between tasks.
#[derive(Default)]
struct Scratch {
    band: Vec<Line>,
    steps: Vec<Step>,
    sums: Vec<Line>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl Task<'_> {
    /// Writes `out`, the rows of the task: [pixel, outputs of the blocks].
    fn run(self, out: &mut [f32]) {
        SCRATCH.with_borrow_mut(|scratch| {
            let KernelConfig { arch, bf16 } = self.packed.config;
            match bf16 {
                None => arch.dispatch(RunF32 { task: self, out, scratch }),
                Some(isa) => {
                    let _tiles = Tiles::new(isa);
                    kernels::dispatch_bf16(arch, RunBf16 { task: self, out, scratch, isa });
                }
            }
        });
    }

    /// Outputs per pixel of `out` of [`Task::run`].
    fn stride(&self) -> usize {
        let width = self.packed.block_width();
        (self.blocks.1 * width).min(self.packed.outputs) - self.blocks.0 * width
    }

    /// Calls `block(band, b, sums, epilogue)` for every band of the task and every block of outputs.
    #[inline(always)]
    fn each<T: Value>(
        &self,
        scratch: &mut Scratch,
        out: &mut [f32],
        mut block: impl FnMut(Band<T>, usize, &mut [f32], &mut StoreEpilogue),
    ) {
        let (stride, radius, inputs) = (self.stride(), self.radius, self.packed.inputs);
        let rows = out.len() / (self.w * stride);
        let blocks = inputs.div_ceil(BLOCK);
        scratch.sums.resize(SUMS / 16, Line::zeroed());
        let mut x0 = 0;
        while x0 < self.w {
            let columns = self.columns.min(self.w - x0);
            let row = columns + 2 * radius;
            // The kernels read past the neighbours of the last point.
            let points = (rows + 2 * radius) * row + SLACK;
            let values = blocks * points * BLOCK;
            let needed = (values * size_of::<T>()).div_ceil(size_of::<Line>());
            if scratch.band.len() < needed {
                scratch.band.resize(needed, Line::zeroed());
            }
            let band: &mut [T] = &mut bytemuck::cast_slice_mut(&mut scratch.band)[..values];
            let window = Window { points, row, rows, x0, columns };
            self.plane.fill::<T>(self, band, &window);
            scratch.steps.clear();
            for b in 0..blocks {
                for tap in 0..self.packed.taps {
                    let (dy, dx) = (tap / 3, tap % 3);
                    let offset = (b * points + dy * row + dx) * BLOCK;
                    scratch.steps.push(Step { offset, inputs: BLOCK.min(inputs - b * BLOCK) });
                }
            }
            let sums: &mut [f32] = bytemuck::cast_slice_mut(&mut scratch.sums);
            let band = Band::new(band, &scratch.steps, rows * row - 2 * radius);
            for b in self.blocks.0..self.blocks.1 {
                let (first, width) = self.packed.block(b);
                let outputs = width.min(self.packed.outputs - first);
                let column = first - self.blocks.0 * self.packed.block_width();
                let residual =
                    self.plane.residual.map(|r| self.plane.block_residual(r, self, first));
                let mut epilogue = StoreEpilogue {
                    out,
                    stride,
                    column,
                    outputs,
                    width,
                    row,
                    columns,
                    x0,
                    w: self.w,
                    residual,
                    y0: self.first,
                };
                block(band, b, sums, &mut epilogue);
            }
            x0 += columns;
        }
    }
}

/// The part of a task in a band.
struct Window {
    points: usize,
    row: usize,
    rows: usize,
    x0: usize,
    columns: usize,
}

impl Plane<'_> {
    /// Writes the points of `window` and their neighbours to `band`.
    #[inline(always)]
    fn fill<T: Value>(&self, task: &Task, band: &mut [T], window: &Window) {
        let (input, radius) = (self.input, task.radius);
        let shape = input.shape;
        let picture = &input.data[self.n * shape.pixels() * shape.c..][..shape.pixels() * shape.c];
        let points = window.points;
        if radius == 0 && task.w == 1 && !input.up {
            // Rows of one pixel are contiguous.
            let source = &picture[task.first * shape.c..][..window.rows * shape.c];
            return self.pack(source, band, points, 0, 1);
        }
        let grid = input.grid();
        for r in 0..window.rows + 2 * radius {
            let at = r * window.row;
            let y = (task.first + r).wrapping_sub(radius);
            let clear = |band: &mut [T], from: usize, to: usize| {
                for block in band.chunks_exact_mut(points * BLOCK) {
                    block[(at + from) * BLOCK..(at + to) * BLOCK].fill(T::zeroed());
                }
            };
            if y >= grid.h {
                clear(band, 0, window.row);
                continue;
            }
            let left = if window.x0 == 0 { radius } else { 0 };
            let right = if window.x0 + window.columns == grid.w { radius } else { 0 };
            clear(band, 0, left);
            clear(band, window.row - right, window.row);
            // Columns of the grid inside of the picture, and the point of the first.
            let (first, end) =
                (window.x0 + left - radius, window.x0 + window.columns + radius - right);
            let to = at + left;
            if !input.up {
                let source = &picture[(y * shape.w + first) * shape.c..][..(end - first) * shape.c];
                self.pack(source, band, points, to, 1);
                continue;
            }
            if r > 0 && y % 2 == 1 {
                for block in band.chunks_exact_mut(points * BLOCK) {
                    let (from, len) = ((to - window.row) * BLOCK, (end - first) * BLOCK);
                    block.copy_within(from..from + len, to * BLOCK);
                }
                continue;
            }
            let source = |x: usize, end: usize| {
                &picture[(y / 2 * shape.w + x) * shape.c..(y / 2 * shape.w + end) * shape.c]
            };
            // Whole pairs of columns, and a single column at either end.
            let (x, last) = (first.div_ceil(2), end / 2);
            if first % 2 == 1 {
                self.pack(source(first / 2, first / 2 + 1), band, points, to, 1);
            }
            if x < last {
                self.pack(source(x, last), band, points, to + 2 * x - first, 2);
                for block in band.chunks_exact_mut(points * BLOCK) {
                    let pairs =
                        &mut block[(to + 2 * x - first) * BLOCK..(to + 2 * last - first) * BLOCK];
                    for pair in pairs.chunks_exact_mut(2 * BLOCK) {
                        let (left, right) = pair.split_at_mut(BLOCK);
                        right.copy_from_slice(left);
                    }
                }
            }
            if end % 2 == 1 && end > first {
                self.pack(source(end / 2, end / 2 + 1), band, points, to + end - 1 - first, 1);
            }
        }
    }

    /// Writes the pixels of `source` to every `apart`-th point from `to` on.
    #[inline(always)]
    fn pack<T: Value>(
        &self,
        source: &[f32],
        band: &mut [T],
        points: usize,
        to: usize,
        apart: usize,
    ) {
        self.input.each_block(
            self.n,
            source,
            #[inline(always)]
            |j, b, x, _| {
                let out = &mut band[(b * points + to + j * apart) * BLOCK..][..BLOCK];
                out.copy_from_slice(&T::block(x));
            },
        );
    }

    /// The residual for the block of outputs from `first` on.
    fn block_residual<'a>(
        &'a self,
        residual: &'a Residual<'a>,
        task: &Task,
        first: usize,
    ) -> BlockResidual<'a> {
        let outputs = task.packed.outputs;
        let picture = residual.picture(self.input.grid(), self.n, outputs);
        let Residual { up, wa, wb, .. } = *residual;
        BlockResidual { picture, channels: outputs, first, up, wa, wb }
    }
}

/// A residual for one block of outputs of one picture.
struct BlockResidual<'a> {
    picture: &'a [f32],
    channels: usize,
    first: usize,
    up: bool,
    wa: f32,
    wb: f32,
}

/// Stores sums in the output with the residual added, without the points between the rows.
struct StoreEpilogue<'a, 'b> {
    out: &'b mut [f32],
    /// Outputs per pixel of `out`, and the first one written.
    stride: usize,
    column: usize,
    /// Outputs that are written, and those that the kernel computes, with padding.
    outputs: usize,
    width: usize,
    /// Points of a row of the band, and its pixels.
    row: usize,
    columns: usize,
    /// Position of the band's first pixel.
    x0: usize,
    y0: usize,
    /// Pixels of a row of the picture.
    w: usize,
    residual: Option<BlockResidual<'a>>,
}

impl Epilogue for StoreEpilogue<'_, '_> {
    #[inline(always)]
    fn store<S: Simd>(&mut self, simd: S, first: usize, count: usize, sums: &[f32]) {
        let (mut y, mut x) = (first / self.row, first % self.row);
        for sums in sums.chunks_exact(self.width).take(count) {
            if x < self.columns {
                let pixel = y * self.w + self.x0 + x;
                let out = &mut self.out[pixel * self.stride + self.column..][..self.outputs];
                let (sums, _) = S::as_simd_f32s(sums);
                let (whole, rest) = S::as_mut_simd_f32s(out);
                if let Some(residual) = &self.residual {
                    let (y, x) = (self.y0 + y, self.x0 + x);
                    let at = residual_pixel(residual.up, self.w, y, x);
                    let added = &residual.picture[at * residual.channels + residual.first..];
                    let added = &added[..self.outputs];
                    let (added, last) = S::as_simd_f32s(added);
                    let (wa, wb) = (simd.splat_f32s(residual.wa), simd.splat_f32s(residual.wb));
                    let sum = |a, b| simd.add_f32s(simd.mul_f32s(wa, a), simd.mul_f32s(wb, b));
                    for ((out, &a), &b) in whole.iter_mut().zip(added).zip(sums) {
                        *out = sum(a, b);
                    }
                    if !rest.is_empty() {
                        let sum = sum(simd.partial_load_f32s(last), sums[whole.len()]);
                        simd.partial_store_f32s(rest, sum);
                    }
                } else {
                    whole.iter_mut().zip(sums).for_each(|(out, &sum)| *out = sum);
                    if !rest.is_empty() {
                        simd.partial_store_f32s(rest, sums[whole.len()]);
                    }
                }
            }
            x += 1;
            if x == self.row {
                (x, y) = (0, y + 1);
            }
        }
    }
}

struct RunF32<'a, 'b> {
    task: Task<'a>,
    out: &'b mut [f32],
    scratch: &'b mut Scratch,
}

impl WithSimd for RunF32<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { task, out, scratch } = self;
        let packed = task.packed;
        let weights: &[f32] = bytemuck::cast_slice(&packed.weights);
        let bias: &[f32] = bytemuck::cast_slice(&packed.bias);
        let rows = packed.taps * packed.inputs;
        task.each(
            scratch,
            out,
            #[inline(always)]
            |band, b, sums, epilogue| {
                let (first, width) = packed.block(b);
                let (weights, bias) =
                    (&weights[rows * first..][..rows * width], &bias[first..][..width]);
                if width > S::F32_LANES {
                    kernels::f32_block::<S, VECTORS>(simd, band, weights, bias, sums, epilogue);
                } else {
                    kernels::f32_block::<S, 1>(simd, band, weights, bias, sums, epilogue);
                }
            },
        );
    }
}

struct RunBf16<'a, 'b> {
    task: Task<'a>,
    out: &'b mut [f32],
    scratch: &'b mut Scratch,
    isa: Bf16Isa,
}

impl WithSimd for RunBf16<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { task, out, scratch, isa } = self;
        let packed = task.packed;
        let weights: &[bf16] = bytemuck::cast_slice(&packed.weights);
        let bias: &[f32] = bytemuck::cast_slice(&packed.bias);
        let values = packed.taps * packed.inputs.div_ceil(BLOCK) * TILE;
        task.each(
            scratch,
            out,
            #[inline(always)]
            |band, b, sums, epilogue| {
                let (first, width) = packed.block(b);
                let (from, columns) = (first / COLUMN, width / COLUMN);
                let weights = &weights[values * from..][..values * columns];
                kernels::bf16_block(
                    simd,
                    isa,
                    band,
                    weights,
                    &bias[first..][..width],
                    sums,
                    epilogue,
                );
            },
        );
    }
}
