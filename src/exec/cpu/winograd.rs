//! 3x3 convolutions by Winograd's F(4x4, 3x3), in f32.
//!
//! Three passes, each on all cores, over as many rows of output tiles at a time as fit the third-level cache: input
//! transform (B^T d B of the paper), a batched GEMM with the transformed weights, one matrix per tile element, and
//! output transform (A^T m A).

use std::{array::from_fn, sync::Arc};

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::{
    conv::{KernelConfig, Packed, Residual, residual_pixel},
    input::{Input, Prologue},
    pool::Pool,
};
use crate::{
    exec::winograd::{self, INPUT_TILE, OUTPUT_TILE, TILE_ELEMENTS, transformed},
    ops::{Conv2d, Shape},
};

/// Bytes of transformed inputs and products at a time.
const BYTES: usize = 8 * 1024 * 1024;

/// Output tiles of a row that one task transforms: their input tiles overlap.
const RUN: usize = 8;

/// Channels are multiples of the vector length of any instruction set.
const GROUP: usize = 16;

/// A layer with transformed and packed weights.
pub(super) struct Winograd {
    config: KernelConfig,
    /// One matrix [in, out] per tile element.
    elements: Vec<Packed>,
    bias: Vec<f32>,
    inputs: usize,
}

/// Results of a row of output tiles.
struct Row<'a> {
    /// Picture of the batch.
    n: usize,
    /// First row of results.
    y: usize,
    out: &'a mut [f32],
}

impl Winograd {
    /// True if `p` may be computed by this algorithm.
    pub(super) fn is_supported(p: &Conv2d) -> bool {
        winograd::is_supported(p, GROUP)
    }

    /// Taps, input channels, output channels.
    pub(super) fn extent(&self) -> (usize, usize, usize) {
        (9, self.inputs, self.bias.len())
    }

    /// Packs `p`; products are f32 also if `config` has bf16.
    pub(super) fn new(config: KernelConfig, p: &Conv2d, weight: &[f32], bias: &[f32]) -> Self {
        let config = KernelConfig { bf16: None, ..config };
        let (inputs, outputs) = (p.in_channels, p.out_channels);
        let (weight, _) = weight.as_chunks();
        // [in][tile element][out]
        let mut all = vec![0.0; inputs * TILE_ELEMENTS * outputs];
        all.par_chunks_mut(TILE_ELEMENTS * outputs).enumerate().for_each(|(i, all)| {
            for o in 0..outputs {
                for (at, value) in transformed(&weight[o * inputs + i]).into_iter().enumerate() {
                    all[at * outputs + o] = value;
                }
            }
        });
        let element = |at| {
            let weight = |i: usize, o: usize| all[(i * TILE_ELEMENTS + at) * outputs + o];
            Packed::matrix(config, (inputs, outputs), weight)
        };
        let elements = (0..TILE_ELEMENTS).into_par_iter().map(element).collect();
        Self { config, elements, bias: bias.to_vec(), inputs }
    }

    /// The convolution, input [n, h, w, in] -> `out` [n, h, w, out]; with `residual` the weighted sum.
    pub(super) fn run(
        &self,
        input: &Input,
        residual: Option<&Residual>,
        out: &mut [f32],
        pool: &Arc<Pool>,
    ) {
        let (grid, outputs) = (input.grid(), self.bias.len());
        let columns = grid.w.div_ceil(OUTPUT_TILE);
        let pictures = out.chunks_exact_mut(grid.pixels() * outputs).enumerate();
        let mut rows: Vec<Row> = pictures
            .flat_map(|(n, picture)| {
                let rows = picture.chunks_mut(OUTPUT_TILE * grid.w * outputs).enumerate();
                rows.map(move |(i, out)| Row { n, y: i * OUTPUT_TILE, out })
            })
            .collect();
        let row_bytes = TILE_ELEMENTS * columns * (self.inputs + outputs) * size_of::<f32>();
        let at_once = (BYTES / row_bytes).clamp(1, rows.len());
        let mut inputs = pool.take(at_once * columns * TILE_ELEMENTS * self.inputs);
        let mut products = pool.take(at_once * columns * TILE_ELEMENTS * outputs);
        for rows in rows.chunks_mut(at_once) {
            let tiles = rows.len() * columns;
            let inputs = &mut inputs[..tiles * TILE_ELEMENTS * self.inputs];
            let products = &mut products[..tiles * TILE_ELEMENTS * outputs];
            self.transform_input(input, rows, inputs, pool);
            self.multiply(inputs, products);
            rows.par_iter_mut().enumerate().for_each(|(i, row)| {
                let first = i * columns;
                let (n, y, out) = (row.n, row.y, &mut *row.out);
                let (products, bias) = (&*products, &self.bias[..]);
                self.config.arch.dispatch(OutputTransform {
                    products,
                    tiles,
                    first,
                    bias,
                    residual,
                    grid,
                    n,
                    y,
                    out,
                });
            });
        }
    }

    /// Transforms the input tiles of `rows` to `out` [tile element][tile][in].
    fn transform_input(&self, input: &Input, rows: &[Row], out: &mut [f32], pool: &Arc<Pool>) {
        let (grid, c) = (input.grid(), self.inputs);
        let columns = grid.w.div_ceil(OUTPUT_TILE);
        let runs = (0..columns).step_by(RUN).map(|first| (first, RUN.min(columns - first)));
        let places = rows.iter().flat_map(|row| runs.clone().map(move |run| (row.n, row.y, run)));
        let mut tasks: Vec<_> =
            places.map(|place| (place, Vec::with_capacity(TILE_ELEMENTS))).collect();
        for mut element in out.chunks_exact_mut(rows.len() * columns * c) {
            for ((.., (_, count)), own) in &mut tasks {
                let (head, tail) = element.split_at_mut(*count * c);
                own.push(head);
                element = tail;
            }
        }
        tasks.into_par_iter().for_each(|((n, y, (first, count)), mut out)| {
            let x = first * OUTPUT_TILE;
            let source = Source::new(input, n, (y, INPUT_TILE), (x, count * OUTPUT_TILE + 2));
            let mut prepared = pool.take(source.prepared_len() + c);
            let (prepared, zeros) = prepared.split_at_mut(source.prepared_len());
            zeros.fill(0.0);
            let out = &mut out[..];
            self.config.arch.dispatch(InputTransform { source, prepared, zeros, y, x, count, out });
        });
    }

    /// The batched GEMM: `inputs` [tile element][tile][in] -> `products` [tile element][tile][out].
    fn multiply(&self, inputs: &[f32], products: &mut [f32]) {
        let (rows, part) = (inputs.len() / TILE_ELEMENTS, products.len() / TILE_ELEMENTS);
        let products = products.par_chunks_exact_mut(part).zip(inputs.par_chunks_exact(rows));
        let products = products.with_max_len(1).zip(&self.elements);
        products.for_each(|((products, inputs), packed)| packed.run_rows(inputs, products));
    }
}

/// A window of one picture of an input.
struct Source<'a> {
    input: &'a Input<'a>,
    n: usize,
    /// First and end of the rows and columns of the input's data that the window needs.
    rows: (usize, usize),
    columns: (usize, usize),
    /// True if the values must be transformed first.
    has_prologue: bool,
}

impl<'a> Source<'a> {
    /// `rows` and `columns` of the grid as (first, number); the first is counted from one before the grid's edge.
    fn new(input: &'a Input<'a>, n: usize, rows: (usize, usize), columns: (usize, usize)) -> Self {
        let grid = input.grid();
        let factor = if input.up { 2 } else { 1 };
        let inside = |(first, count): (usize, usize), extent: usize| {
            let end = (first + count - 1).min(extent);
            (first.saturating_sub(1) / factor, end.div_ceil(factor))
        };
        let has_prologue = input.silu || !matches!(input.prologue, Prologue::Plain);
        Self {
            input,
            n,
            rows: inside(rows, grid.h),
            columns: inside(columns, grid.w),
            has_prologue,
        }
    }

    /// Number of values to be transformed.
    fn prepared_len(&self) -> usize {
        let extent = |(first, end): (usize, usize)| end - first;
        let len = extent(self.rows) * extent(self.columns) * self.input.shape.c;
        if self.has_prologue { len } else { 0 }
    }

    /// The window's pixels of row `y` of the input's data.
    fn row(&self, y: usize) -> &'a [f32] {
        let shape = self.input.shape;
        let at = (self.n * shape.h + y) * shape.w;
        &self.input.data[(at + self.columns.0) * shape.c..(at + self.columns.1) * shape.c]
    }

    /// Writes the window to `out` with the prologue and SiLU applied.
    #[inline(always)]
    fn prepare(&self, out: &mut [f32]) {
        let c = self.input.shape.c;
        let row = (self.columns.1 - self.columns.0) * c;
        for (out, y) in out.chunks_exact_mut(row).zip(self.rows.0..) {
            self.input.each_block(
                self.n,
                self.row(y),
                #[inline(always)]
                |j, b, x, channels| {
                    out[j * c + b * x.len()..][..channels].copy_from_slice(&x[..channels]);
                },
            );
        }
    }

    /// Channels of the pixel at row `y` and column `x` of the grid, counted from one before its edges; `prepared` is
    /// the output of [`Source::prepare`].
    #[inline(always)]
    fn pixel<'b>(&self, prepared: &'b [f32], zeros: &'b [f32], y: usize, x: usize) -> &'b [f32]
    where
        'a: 'b,
    {
        let (grid, c) = (self.input.grid(), self.input.shape.c);
        if y == 0 || y > grid.h || x == 0 || x > grid.w {
            return zeros;
        }
        let factor = if self.input.up { 2 } else { 1 };
        let (y, x) = ((y - 1) / factor, (x - 1) / factor - self.columns.0);
        let row = (self.columns.1 - self.columns.0) * c;
        let pixels =
            if self.has_prologue { &prepared[(y - self.rows.0) * row..] } else { self.row(y) };
        &pixels[x * c..][..c]
    }
}

/// A column or row of B^T d.
#[inline(always)]
fn input_transform<S: Simd>(simd: S, d: [S::f32s; INPUT_TILE]) -> [S::f32s; INPUT_TILE] {
    let plus = |x: f32, a, b| simd.mul_add_e_f32s(simd.splat_f32s(x), a, b);
    let (odd, even) = (plus(-4.0, d[1], d[3]), plus(-4.0, d[2], d[4]));
    let (odd2, even2) = (simd.sub_f32s(d[3], d[1]), simd.sub_f32s(d[4], d[2]));
    [
        plus(4.0, d[0], plus(-5.0, d[2], d[4])),
        simd.add_f32s(even, odd),
        simd.sub_f32s(even, odd),
        plus(2.0, odd2, even2),
        plus(-2.0, odd2, even2),
        plus(4.0, d[1], plus(-5.0, d[3], d[5])),
    ]
}

/// A column or row of A^T m.
#[inline(always)]
fn output_transform<S: Simd>(simd: S, m: [S::f32s; INPUT_TILE]) -> [S::f32s; OUTPUT_TILE] {
    let plus = |x: f32, a, b| simd.mul_add_e_f32s(simd.splat_f32s(x), a, b);
    let (sum, sum2) = (simd.add_f32s(m[1], m[2]), simd.add_f32s(m[3], m[4]));
    let (difference, difference2) = (simd.sub_f32s(m[1], m[2]), simd.sub_f32s(m[3], m[4]));
    [
        simd.add_f32s(m[0], simd.add_f32s(sum, sum2)),
        plus(2.0, difference2, difference),
        plus(4.0, sum2, sum),
        simd.add_f32s(plus(8.0, difference2, difference), m[5]),
    ]
}

/// `[$value for $i in 0..6]`. (`array::map` is a call that would not be inlined into the function of the instruction
/// set.)
macro_rules! six {
    ($i:ident => $value:expr) => {
        six!($i => $value, 0usize, 1usize, 2usize, 3usize, 4usize, 5usize)
    };
    ($i:ident => $value:expr, $($at:expr),*) => {
        [$({
            let $i = $at;
            $value
        }),*]
    };
}

/// Input transform of `count` tiles of `source` whose output tiles begin at row `y` and column `x`.
struct InputTransform<'a, 'b> {
    source: Source<'a>,
    prepared: &'a mut [f32],
    zeros: &'a [f32],
    y: usize,
    x: usize,
    count: usize,
    /// Per tile element, [tile][in].
    out: &'a mut [&'b mut [f32]],
}

impl WithSimd for InputTransform<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { source, prepared, zeros, y, x, count, out } = self;
        if source.has_prologue {
            source.prepare(prepared);
        }
        let (prepared, vectors) = (&*prepared, source.input.shape.c / S::F32_LANES);
        for s in 0..count {
            let pixel = |i: usize, j: usize| {
                let pixel = source.pixel(prepared, zeros, y + i, x + s * OUTPUT_TILE + j);
                &S::as_simd_f32s(pixel).0[..vectors]
            };
            let input: [[&[S::f32s]; INPUT_TILE]; INPUT_TILE] =
                from_fn(|i| from_fn(|j| pixel(i, j)));
            for v in 0..vectors {
                let columns = six!(j => input_transform(simd, six!(i => input[i][j][v])));
                for i in 0..INPUT_TILE {
                    let row = input_transform(simd, six!(j => columns[j][i]));
                    for (j, value) in row.into_iter().enumerate() {
                        let element = S::as_mut_simd_f32s(out[i * INPUT_TILE + j]).0;
                        element[s * vectors + v] = value;
                    }
                }
            }
        }
    }
}

/// Output transform of a row of tiles, the first of which is `first` of `tiles`.
struct OutputTransform<'a> {
    /// [tile element][tile][out]
    products: &'a [f32],
    tiles: usize,
    first: usize,
    bias: &'a [f32],
    residual: Option<&'a Residual<'a>>,
    grid: Shape,
    n: usize,
    y: usize,
    out: &'a mut [f32],
}

impl WithSimd for OutputTransform<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { products, tiles, first, bias, residual, grid, n, y, out } = self;
        let (products, (bias, _)) = (S::as_simd_f32s(products).0, S::as_simd_f32s(bias));
        let (vectors, (out, _)) = (bias.len(), S::as_mut_simd_f32s(out));
        let residual = residual.map(|residual| {
            let picture = residual.picture(grid, n, vectors * S::F32_LANES);
            (residual, S::as_simd_f32s(picture).0)
        });
        let rows = out.len() / (grid.w * vectors);
        for (s, x) in (0..grid.w).step_by(OUTPUT_TILE).enumerate() {
            let columns = OUTPUT_TILE.min(grid.w - x);
            for (v, &bias) in bias.iter().enumerate() {
                let at = |p: usize| (p * tiles + first + s) * vectors + v;
                let m =
                    six!(i => output_transform(simd, six!(j => products[at(i * INPUT_TILE + j)])));
                for j in 0..columns {
                    let column = output_transform(simd, six!(i => m[i][j]));
                    for (i, value) in column.into_iter().enumerate().take(rows) {
                        let mut value = simd.add_f32s(value, bias);
                        if let Some((residual, added)) = residual {
                            let pixel = residual_pixel(residual.up, grid.w, y + i, x + j);
                            let other = simd
                                .mul_f32s(simd.splat_f32s(residual.wa), added[pixel * vectors + v]);
                            let own = simd.mul_f32s(simd.splat_f32s(residual.wb), value);
                            value = simd.add_f32s(other, own);
                        }
                        out[(i * grid.w + x + j) * vectors + v] = value;
                    }
                }
            }
        }
    }
}
