//! 3x3 convolutions of whole grids by Winograd's F(4x4, 3x3), in f32.
//!
//! Three passes, each on all cores, over some rows of squares at a time, as many as a third-level cache has room for: the
//! inputs of all squares are transformed (B^T d B of the paper), multiplied by the transformed weights as 36 matrices, and the
//! products transformed to results (A^T m A).

use std::{array::from_fn, sync::Arc};

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::{
    conv::{Add, Mode, Packed, added_pixel},
    input::{Input, Load},
    pool::Pool,
};
use crate::{
    exec::winograd::{PATCH, POSITIONS, SQUARE, fits, transformed},
    ops::{Conv2d, Shape},
};

/// Bytes of transformed inputs and products at a time.
const BYTES: usize = 8 * 1024 * 1024;

/// Squares of a row that one task transforms: its patches share their edges.
const RUN: usize = 8;

/// Channels come in whole vectors of any instruction set.
const GROUP: usize = 16;

/// A layer with its weights transformed and packed.
pub(super) struct Squares {
    mode: Mode,
    /// One matrix for each position of a patch.
    positions: Vec<Packed>,
    bias: Vec<f32>,
    inputs: usize,
}

/// The results of a row of squares.
struct Row<'a> {
    /// Picture of the batch.
    n: usize,
    /// First of its rows of results.
    y: usize,
    out: &'a mut [f32],
}

impl Squares {
    /// Whether `p` may be computed so.
    pub(super) fn fit(p: &Conv2d) -> bool {
        fits(p, GROUP)
    }

    /// Taps, inputs, outputs.
    pub(super) fn extent(&self) -> (usize, usize, usize) {
        (9, self.inputs, self.bias.len())
    }

    /// `p` with its parameters; products are f32 whatever `mode` says.
    pub(super) fn new(mode: Mode, p: &Conv2d, weight: &[f32], bias: &[f32]) -> Self {
        let mode = Mode { wide: None, ..mode };
        let (inputs, outputs) = (p.in_channels, p.out_channels);
        let (weight, _) = weight.as_chunks();
        // [in][position][out]
        let mut all = vec![0.0; inputs * POSITIONS * outputs];
        all.par_chunks_mut(POSITIONS * outputs).enumerate().for_each(|(i, all)| {
            for o in 0..outputs {
                for (at, value) in transformed(&weight[o * inputs + i]).into_iter().enumerate() {
                    all[at * outputs + o] = value;
                }
            }
        });
        let position = |at| {
            let weight = |i: usize, o: usize| all[(i * POSITIONS + at) * outputs + o];
            Packed::matrix(mode, (inputs, outputs), weight)
        };
        let positions = (0..POSITIONS).into_par_iter().map(position).collect();
        Self { mode, positions, bias: bias.to_vec(), inputs }
    }

    /// out = the convolution of `input`, or its sum with `add`.
    pub(super) fn run(&self, input: &Input, add: Option<&Add>, out: &mut [f32], pool: &Arc<Pool>) {
        let (grid, outputs) = (input.grid(), self.bias.len());
        let columns = grid.w.div_ceil(SQUARE);
        let pictures = out.chunks_exact_mut(grid.pixels() * outputs).enumerate();
        let mut rows: Vec<Row> = pictures
            .flat_map(|(n, picture)| {
                let rows = picture.chunks_mut(SQUARE * grid.w * outputs).enumerate();
                rows.map(move |(i, out)| Row { n, y: i * SQUARE, out })
            })
            .collect();
        let row_bytes = POSITIONS * columns * (self.inputs + outputs) * size_of::<f32>();
        let at_once = (BYTES / row_bytes).clamp(1, rows.len());
        let mut inputs = pool.take(at_once * columns * POSITIONS * self.inputs);
        let mut products = pool.take(at_once * columns * POSITIONS * outputs);
        for rows in rows.chunks_mut(at_once) {
            let squares = rows.len() * columns;
            let inputs = &mut inputs[..squares * POSITIONS * self.inputs];
            let products = &mut products[..squares * POSITIONS * outputs];
            self.enter(input, rows, inputs, pool);
            self.multiply(inputs, products);
            rows.par_iter_mut().enumerate().for_each(|(i, row)| {
                let first = i * columns;
                let (n, y, out) = (row.n, row.y, &mut *row.out);
                let (products, bias) = (&*products, &self.bias[..]);
                self.mode.arch.dispatch(Leave {
                    products,
                    squares,
                    first,
                    bias,
                    add,
                    grid,
                    n,
                    y,
                    out,
                });
            });
        }
    }

    /// Transforms what `rows` are computed from to `out`: [position][square][in].
    fn enter(&self, input: &Input, rows: &[Row], out: &mut [f32], pool: &Arc<Pool>) {
        let (grid, c) = (input.grid(), self.inputs);
        let columns = grid.w.div_ceil(SQUARE);
        let runs = (0..columns).step_by(RUN).map(|first| (first, RUN.min(columns - first)));
        let places = rows.iter().flat_map(|row| runs.clone().map(move |run| (row.n, row.y, run)));
        let mut tasks: Vec<_> =
            places.map(|place| (place, Vec::with_capacity(POSITIONS))).collect();
        for mut position in out.chunks_exact_mut(rows.len() * columns * c) {
            for ((.., (_, count)), own) in &mut tasks {
                let (head, tail) = position.split_at_mut(*count * c);
                own.push(head);
                position = tail;
            }
        }
        tasks.into_par_iter().for_each(|((n, y, (first, count)), mut out)| {
            let x = first * SQUARE;
            let source = Source::new(input, n, (y, PATCH), (x, count * SQUARE + 2));
            let mut changed = pool.take(source.changed_len() + c);
            let (changed, zeros) = changed.split_at_mut(source.changed_len());
            zeros.fill(0.0);
            let out = &mut out[..];
            self.mode.arch.dispatch(Enter { source, changed, zeros, y, x, count, out });
        });
    }

    /// Multiplies `inputs`, as [`Squares::enter`] left them, to `products`: [position][square][out].
    fn multiply(&self, inputs: &[f32], products: &mut [f32]) {
        let (rows, part) = (inputs.len() / POSITIONS, products.len() / POSITIONS);
        let products = products.par_chunks_exact_mut(part).zip(inputs.par_chunks_exact(rows));
        let products = products.with_max_len(1).zip(&self.positions);
        products.for_each(|((products, inputs), packed)| packed.run_rows(inputs, products));
    }
}

/// A window of one picture of an input.
struct Source<'a> {
    input: &'a Input<'a>,
    n: usize,
    /// Rows and columns of the input's data that the window needs: first and end.
    rows: (usize, usize),
    columns: (usize, usize),
    /// Whether something is done to the values.
    changes: bool,
}

impl<'a> Source<'a> {
    /// `rows` and `columns` of the grid, each a first, counted from one before the grid's edge, and a number.
    fn new(input: &'a Input<'a>, n: usize, rows: (usize, usize), columns: (usize, usize)) -> Self {
        let grid = input.grid();
        let factor = if input.up { 2 } else { 1 };
        let inside = |(first, count): (usize, usize), extent: usize| {
            let end = (first + count - 1).min(extent);
            (first.saturating_sub(1) / factor, end.div_ceil(factor))
        };
        let changes = input.silu || !matches!(input.load, Load::Plain);
        Self { input, n, rows: inside(rows, grid.h), columns: inside(columns, grid.w), changes }
    }

    /// Number of values that something is done to.
    fn changed_len(&self) -> usize {
        let extent = |(first, end): (usize, usize)| end - first;
        let len = extent(self.rows) * extent(self.columns) * self.input.shape.c;
        if self.changes { len } else { 0 }
    }

    /// The window's pixels of row `y` of the input's data, as they are.
    fn row(&self, y: usize) -> &'a [f32] {
        let shape = self.input.shape;
        let at = (self.n * shape.h + y) * shape.w;
        &self.input.data[(at + self.columns.0) * shape.c..(at + self.columns.1) * shape.c]
    }

    /// Writes the window with what is done to it done.
    #[inline(always)]
    fn change(&self, out: &mut [f32]) {
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

    /// Channels of the pixel at a row and a column of the grid, counted from one before its edges; `changed` is what
    /// [`Source::change`] wrote.
    #[inline(always)]
    fn pixel<'b>(&self, changed: &'b [f32], zeros: &'b [f32], y: usize, x: usize) -> &'b [f32]
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
        let pixels = if self.changes { &changed[(y - self.rows.0) * row..] } else { self.row(y) };
        &pixels[x * c..][..c]
    }
}

/// A column or row of B^T d.
#[inline(always)]
fn enter<S: Simd>(simd: S, d: [S::f32s; PATCH]) -> [S::f32s; PATCH] {
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
fn leave<S: Simd>(simd: S, m: [S::f32s; PATCH]) -> [S::f32s; SQUARE] {
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

/// `$value` of 0 to 5. (A map of an array is a call, which would not be inlined into the instruction set's function.)
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

/// Transforms `count` patches of `source` whose squares begin at row `y` and column `x`.
struct Enter<'a, 'b> {
    source: Source<'a>,
    changed: &'a mut [f32],
    zeros: &'a [f32],
    y: usize,
    x: usize,
    count: usize,
    /// For each position [square][in].
    out: &'a mut [&'b mut [f32]],
}

impl WithSimd for Enter<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { source, changed, zeros, y, x, count, out } = self;
        if source.changes {
            source.change(changed);
        }
        let (changed, vectors) = (&*changed, source.input.shape.c / S::F32_LANES);
        for s in 0..count {
            let pixel = |i: usize, j: usize| {
                let pixel = source.pixel(changed, zeros, y + i, x + s * SQUARE + j);
                &S::as_simd_f32s(pixel).0[..vectors]
            };
            let patch: [[&[S::f32s]; PATCH]; PATCH] = from_fn(|i| from_fn(|j| pixel(i, j)));
            for v in 0..vectors {
                let columns = six!(j => enter(simd, six!(i => patch[i][j][v])));
                for i in 0..PATCH {
                    let row = enter(simd, six!(j => columns[j][i]));
                    for (j, value) in row.into_iter().enumerate() {
                        let position = S::as_mut_simd_f32s(out[i * PATCH + j]).0;
                        position[s * vectors + v] = value;
                    }
                }
            }
        }
    }
}

/// Transforms the products of a row of squares, of which the first is `first` of `squares`, to results.
struct Leave<'a> {
    /// [position][square][out]
    products: &'a [f32],
    squares: usize,
    first: usize,
    bias: &'a [f32],
    add: Option<&'a Add<'a>>,
    grid: Shape,
    n: usize,
    y: usize,
    out: &'a mut [f32],
}

impl WithSimd for Leave<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { products, squares, first, bias, add, grid, n, y, out } = self;
        let (products, (bias, _)) = (S::as_simd_f32s(products).0, S::as_simd_f32s(bias));
        let (vectors, (out, _)) = (bias.len(), S::as_mut_simd_f32s(out));
        let added =
            add.map(|add| (add, S::as_simd_f32s(add.picture(grid, n, vectors * S::F32_LANES)).0));
        let rows = out.len() / (grid.w * vectors);
        for (s, x) in (0..grid.w).step_by(SQUARE).enumerate() {
            let columns = SQUARE.min(grid.w - x);
            for (v, &bias) in bias.iter().enumerate() {
                let at = |p: usize| (p * squares + first + s) * vectors + v;
                let m = six!(i => leave(simd, six!(j => products[at(i * PATCH + j)])));
                for j in 0..columns {
                    let column = leave(simd, six!(i => m[i][j]));
                    for (i, value) in column.into_iter().enumerate().take(rows) {
                        let mut value = simd.add_f32s(value, bias);
                        if let Some((add, added)) = added {
                            let pixel = added_pixel(add.up, grid.w, y + i, x + j);
                            let other =
                                simd.mul_f32s(simd.splat_f32s(add.wa), added[pixel * vectors + v]);
                            let own = simd.mul_f32s(simd.splat_f32s(add.wb), value);
                            value = simd.add_f32s(other, own);
                        }
                        out[(i * grid.w + x + j) * vectors + v] = value;
                    }
                }
            }
        }
    }
}
