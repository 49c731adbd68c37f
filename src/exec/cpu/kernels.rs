//! The innermost loops: register tiles of several points by several outputs, in f32 through pulp and in bf16 with f32
//! sums on AVX512-BF16 and AMX. The only file of the CPU backend with `unsafe` code.
//!
//! They read a [`Band`]: blocks of 32 channels, so that neighbouring points are always 32 values apart and every
//! address is a constant offset from one register. Every sum is bias + the steps in their order, for every tile.

#![allow(
    unsafe_code,
    reason = "addresses without checks in the innermost loop, instructions that Rust does not name"
)]

use std::array::from_fn;

use bytemuck::Pod;
use half::bf16;
use pulp::{Arch, Simd, WithSimd};

/// Channels of a block; a block of bf16 is a row of an AMX tile.
pub(super) const BLOCK: usize = 32;
/// Outputs of a column of bf16 weights: those of an AMX tile.
pub(super) const COLUMN: usize = 16;
/// Values of one step of a column, 16 pairs of inputs by 16 outputs.
pub(super) const TILE: usize = BLOCK * COLUMN;
/// Points of the largest tile: the kernels read up to this many points past the last one.
pub(super) const SLACK: usize = 64;
/// Vectors of outputs in an f32 tile.
pub(super) const VECTORS: usize = 2;
/// Points of an f32 tile with 32 registers: 28 sums, two vectors of weights, one of input.
const POINTS_32: usize = 14;
/// Points of an f32 tile with 16 registers.
const POINTS_16: usize = 6;
/// Sums of the largest tile of any kernel.
pub(super) const SUMS: usize = 64 * 32;

/// Type of a band's values.
pub(super) trait Value: Pod + Send + Sync {
    /// A block of values rounded to nearest, ties to even; may flush subnormals to zero, as bf16 products do.
    fn block(x: [f32; BLOCK]) -> [Self; BLOCK];
}

impl Value for f32 {
    #[inline(always)]
    fn block(x: [f32; BLOCK]) -> [f32; BLOCK] {
        x
    }
}

impl Value for bf16 {
    #[inline(always)]
    fn block(x: [f32; BLOCK]) -> [bf16; BLOCK] {
        if x86::has_avx512_bf16() {
            // SAFETY: the instructions are available.
            return unsafe { x86::rounded(x) };
        }
        x.map(bf16::from_f32)
    }
}

/// As [`Arch::dispatch`], and with AVX512-BF16 where this machine has it, so that its instructions are inlined.
pub(super) fn dispatch_bf16<W: WithSimd>(arch: Arch, work: W) -> W::Output {
    #[cfg(target_arch = "x86_64")]
    if let (Arch::V4(simd), true) = (arch, x86::has_avx512_bf16()) {
        // SAFETY: the instructions are available.
        return unsafe { x86::dispatch(simd, work) };
    }
    arch.dispatch(work)
}

/// Instruction sets for bf16 products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bf16Isa {
    /// AVX512-BF16.
    Avx512,
    /// AMX-BF16.
    Amx,
}

impl Bf16Isa {
    /// True if this process may use the instructions.
    pub(super) fn available(self) -> bool {
        match self {
            Self::Avx512 => x86::has_avx512_bf16(),
            Self::Amx => x86::has_amx(),
        }
    }
}

/// A term of every sum: the inputs of one block at one tap.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    /// Offset in values from an output's point to the first input.
    pub(super) offset: usize,
    /// Number of inputs, at most [`BLOCK`].
    pub(super) inputs: usize,
}

/// Input of a product, [block][point][channel of the block], with the steps of its sums.
#[derive(Clone, Copy)]
pub(super) struct Band<'a, T> {
    values: &'a [T],
    steps: &'a [Step],
    points: usize,
}

impl<'a, T: Value> Band<'a, T> {
    /// A band for `points` outputs, each the sum over `steps`. No step may leave `values`, also for [`SLACK`] points
    /// past the last.
    pub(super) fn new(values: &'a [T], steps: &'a [Step], points: usize) -> Self {
        let reach = steps.iter().map(|step| step.offset).max().unwrap_or(0);
        assert!(reach + (points + SLACK) * BLOCK <= values.len());
        assert!(steps.iter().all(|step| step.inputs <= BLOCK));
        Self { values, steps, points }
    }

    fn inputs(&self) -> usize {
        self.steps.iter().map(|step| step.inputs).sum()
    }
}

/// Consumer of a kernel's sums.
pub(super) trait Epilogue {
    /// Takes the sums [count, width of the block] of `count` points from `first` on.
    fn store<S: Simd>(&mut self, simd: S, first: usize, count: usize, sums: &[f32]);
}

/// All points of `band` by one block of outputs: V vectors of `weights` [step][input][V] and of `bias`.
#[inline(always)]
pub(super) fn f32_block<S: Simd, const V: usize>(
    simd: S,
    band: Band<f32>,
    weights: &[f32],
    bias: &[f32],
    sums: &mut [f32],
    epilogue: &mut impl Epilogue,
) {
    let width = V * S::F32_LANES;
    assert!(
        weights.len() >= band.inputs() * width
            && bias.len() >= width
            && sums.len() >= POINTS_32 * width
    );
    let (mut at, weights, bias) = (0, weights.as_ptr(), bias.as_ptr());
    while at < band.points {
        let left = band.points - at;
        let sums = &mut sums[..];
        // SAFETY: the lengths of weights, bias and sums are checked above, those of the band in `Band::new`, whose
        // slack is larger than any tile here.
        let points = unsafe {
            if S::REGISTER_COUNT >= 32 && left > 8 {
                f32_tile::<S, POINTS_32, V>(simd, &band, at, weights, bias, sums.as_mut_ptr())
            } else if S::REGISTER_COUNT >= 32 && left > 4 {
                f32_tile::<S, 8, V>(simd, &band, at, weights, bias, sums.as_mut_ptr())
            } else if left > 4 {
                f32_tile::<S, POINTS_16, V>(simd, &band, at, weights, bias, sums.as_mut_ptr())
            } else if left > 1 {
                f32_tile::<S, 4, V>(simd, &band, at, weights, bias, sums.as_mut_ptr())
            } else {
                f32_tile::<S, 1, V>(simd, &band, at, weights, bias, sums.as_mut_ptr())
            }
        };
        let count = points.min(left);
        epilogue.store(simd, at, count, &sums[..count * width]);
        at += count;
    }
}

/// Computes P points from `first` on; returns P. For the pointers see [`f32_block`].
#[inline(always)]
unsafe fn f32_tile<S: Simd, const P: usize, const V: usize>(
    simd: S,
    band: &Band<f32>,
    first: usize,
    weights: *const f32,
    bias: *const f32,
    out: *mut f32,
) -> usize {
    // SAFETY: the caller's.
    unsafe {
        let load = |at: *const f32| at.cast::<S::f32s>().read_unaligned();
        let lanes = S::F32_LANES;
        let start: [S::f32s; V] = from_fn(|v| load(bias.add(v * lanes)));
        let mut sums = [start; P];
        let mut weights = weights;
        let points = band.values.as_ptr().add(first * BLOCK);
        for step in band.steps {
            let x = points.add(step.offset);
            for i in 0..step.inputs {
                let w: [S::f32s; V] = from_fn(|v| load(weights.add(v * lanes)));
                for (p, sums) in sums.iter_mut().enumerate() {
                    let x = simd.splat_f32s(*x.add(p * BLOCK + i));
                    for (sum, &w) in sums.iter_mut().zip(&w) {
                        *sum = simd.mul_add_e_f32s(x, w, *sum);
                    }
                }
                weights = weights.add(V * lanes);
            }
        }
        // The loop below indexes memory; the copy leaves `sums` to the registers.
        let finished = sums;
        for (p, sums) in finished.iter().enumerate() {
            for (v, &sum) in sums.iter().enumerate() {
                out.add((p * V + v) * lanes).cast::<S::f32s>().write_unaligned(sum);
            }
        }
        P
    }
}

/// All points of `band` by one or two columns of 16 outputs: `weights` [column][step][pair of inputs][output][2].
///
/// `isa` must be available.
#[inline(always)]
pub(super) fn bf16_block<S: Simd>(
    simd: S,
    isa: Bf16Isa,
    band: Band<bf16>,
    weights: &[bf16],
    bias: &[f32],
    sums: &mut [f32],
    epilogue: &mut impl Epilogue,
) {
    let columns = bias.len() / COLUMN;
    let (steps, width) = (band.steps.len(), columns * COLUMN);
    assert!(matches!(columns, 1 | 2) && bias.len() == width && isa.available());
    assert!(weights.len() >= columns * steps * TILE && sums.len() >= SUMS);
    let mut at = 0;
    while at < band.points {
        let left = band.points - at;
        // SAFETY: the instructions are available; the lengths of weights, bias and sums are checked above, those of the
        // band in `Band::new`.
        let points = unsafe {
            let band = Operands {
                values: band.values.as_ptr().add(at * BLOCK),
                steps: band.steps,
                weights: weights.as_ptr(),
                bias: bias.as_ptr(),
                sums: sums.as_mut_ptr(),
            };
            match isa {
                Bf16Isa::Amx => x86::amx_tile(&band, columns, left),
                Bf16Isa::Avx512 => x86::avx512_tile(&band, columns, left),
            }
        };
        let count = points.min(left);
        epilogue.store(simd, at, count, &sums[..count * width]);
        at += count;
    }
}

/// Operands of one tile of a bf16 product, from its first point on.
#[cfg_attr(
    not(target_arch = "x86_64"),
    allow(dead_code, reason = "no CPU of another kind has bf16 here")
)]
struct Operands<'a> {
    values: *const bf16,
    steps: &'a [Step],
    weights: *const bf16,
    bias: *const f32,
    sums: *mut f32,
}

/// AMX tile registers, configured for this thread while the value lives.
pub(super) struct Tiles(bool);

impl Tiles {
    /// Configures them if `isa` needs them.
    pub(super) fn new(isa: Bf16Isa) -> Self {
        let needed = isa == Bf16Isa::Amx && isa.available();
        if needed {
            // SAFETY: AMX is available and permitted.
            unsafe { x86::configure() };
        }
        Self(needed)
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        if self.0 {
            // SAFETY: AMX is available and permitted.
            unsafe { x86::release() };
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::{
        arch::{asm, x86_64::*},
        array::from_fn,
        sync::OnceLock,
    };

    use pulp::{WithSimd, x86::V4};

    use half::bf16;

    use super::{BLOCK, COLUMN, Operands, Step, TILE};

    pub(super) fn has_avx512_bf16() -> bool {
        is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16")
    }

    /// `work` with all instructions of `simd`, and AVX512-BF16.
    #[target_feature(enable = "fxsr,sse3,ssse3,sse4.1,sse4.2,popcnt,avx,avx2,bmi1,bmi2,fma,lzcnt")]
    #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512bf16")]
    pub(super) unsafe fn dispatch<W: WithSimd>(simd: V4, work: W) -> W::Output {
        work.with_simd(simd)
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    #[inline]
    pub(super) unsafe fn rounded(x: [f32; BLOCK]) -> [bf16; BLOCK] {
        let (low, high) = x.split_at(COLUMN);
        // SAFETY: both halves are 16 values; the result is as large as a block and has no padding.
        unsafe {
            let (low, high) = (_mm512_loadu_ps(low.as_ptr()), _mm512_loadu_ps(high.as_ptr()));
            std::mem::transmute::<__m512bh, [bf16; BLOCK]>(_mm512_cvtne2ps_pbh(high, low))
        }
    }

    pub(super) fn has_amx() -> bool {
        static FOUND: OnceLock<bool> = OnceLock::new();
        *FOUND.get_or_init(|| is_x86_feature_detected!("avx512f") && amx_permitted())
    }

    /// AMX-TILE and AMX-BF16 by CPUID's leaf 7, the tile state by XCR0, and the kernel's permission to use it.
    #[cfg(target_os = "linux")]
    fn amx_permitted() -> bool {
        const TILE_STATES: u32 = 3 << 17;
        const ARCH_PRCTL: i64 = 158;
        const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
        const XFEATURE_XTILEDATA: i64 = 18;
        let (states, answer): (u32, i64);
        // SAFETY: every x86-64 has CPUID; XGETBV is there if OSXSAVE is set; the system call reads and writes no memory
        // of ours.
        unsafe {
            let leaf = __cpuid_count(7, 0);
            if leaf.edx >> 24 & 1 == 0 || leaf.edx >> 22 & 1 == 0 || __cpuid(1).ecx >> 27 & 1 == 0 {
                return false;
            }
            asm!("xgetbv", in("ecx") 0, out("eax") states, out("edx") _, options(nomem, nostack));
            asm!("syscall", inlateout("rax") ARCH_PRCTL => answer, in("rdi") ARCH_REQ_XCOMP_PERM,
                in("rsi") XFEATURE_XTILEDATA, out("rcx") _, out("r11") _, options(nostack));
        }
        states & TILE_STATES == TILE_STATES && answer == 0
    }

    #[cfg(not(target_os = "linux"))]
    fn amx_permitted() -> bool {
        false
    }

    /// All eight tiles: 16 rows of 64 bytes.
    #[repr(C, align(64))]
    struct Layout {
        palette: u8,
        start_row: u8,
        reserved: [u8; 14],
        bytes: [u16; 16],
        rows: [u8; 16],
    }

    pub(super) unsafe fn configure() {
        let mut layout =
            Layout { palette: 1, start_row: 0, reserved: [0; 14], bytes: [0; 16], rows: [0; 16] };
        layout.bytes[..8].fill(64);
        layout.rows[..8].fill(16);
        // SAFETY: the caller's.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const layout, options(nostack, readonly)) };
    }

    pub(super) unsafe fn release() {
        // SAFETY: the caller's.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }

    /// A loop over the steps with sums in tiles 0 to 3: `$start` loads the bias, `$step` adds a step, `$end` stores.
    macro_rules! amx {
        ($band:expr, $width:expr, [$($start:literal),*], [$($step:literal),*], [$($end:literal),*]) => {{
            let band: &Operands = $band;
            asm!(
                $($start,)*
                "2:",
                "mov {x}, [{step}]",
                "lea {x}, [{values} + 2*{x}]",
                $($step,)*
                "add {w}, 1024",
                "add {step}, {size}",
                "cmp {step}, {end}",
                "jne 2b",
                "mov {x}, {sums}",
                $($end,)*
                x = out(reg) _,
                step = inout(reg) band.steps.as_ptr() => _,
                end = in(reg) band.steps.as_ptr_range().end,
                values = in(reg) band.values,
                w = inout(reg) band.weights => _,
                other = in(reg) band.steps.len() * 2 * TILE,
                bias = in(reg) band.bias,
                sums = in(reg) band.sums,
                row = in(reg) 64usize,
                width = in(reg) $width * 4usize,
                none = in(reg) 0usize,
                size = const size_of::<Step>(),
                options(nostack),
            )
        }};
    }

    /// Computes up to 32 points by 32 outputs, or 64 by 16; returns the number of points.
    #[inline(always)]
    pub(super) unsafe fn amx_tile(band: &Operands, columns: usize, left: usize) -> usize {
        const { assert!(std::mem::offset_of!(Step, offset) == 0) };
        if band.steps.is_empty() {
            return 0;
        }
        // SAFETY: the caller's.
        unsafe {
            match (columns, left) {
                (2, 17..) => {
                    amx!(
                        band,
                        32,
                        [
                            "tileloadd tmm0, [{bias} + {none}]",
                            "tileloadd tmm1, [{bias} + {none} + 64]",
                            "tileloadd tmm2, [{bias} + {none}]",
                            "tileloadd tmm3, [{bias} + {none} + 64]"
                        ],
                        [
                            "tileloadd tmm6, [{w} + {row}]",
                            "tileloadd tmm4, [{x} + {row}]",
                            "tdpbf16ps tmm0, tmm4, tmm6",
                            "add {w}, {other}",
                            "tileloadd tmm7, [{w} + {row}]",
                            "sub {w}, {other}",
                            "tdpbf16ps tmm1, tmm4, tmm7",
                            "tileloadd tmm5, [{x} + {row} + 1024]",
                            "tdpbf16ps tmm2, tmm5, tmm6",
                            "tdpbf16ps tmm3, tmm5, tmm7"
                        ],
                        [
                            "tilestored [{x} + {width}], tmm0",
                            "tilestored [{x} + {width} + 64], tmm1",
                            "tilestored [{x} + {width} + 2048], tmm2",
                            "tilestored [{x} + {width} + 2112], tmm3"
                        ]
                    );
                    32
                }
                (2, _) => {
                    amx!(
                        band,
                        32,
                        [
                            "tileloadd tmm0, [{bias} + {none}]",
                            "tileloadd tmm1, [{bias} + {none} + 64]"
                        ],
                        [
                            "tileloadd tmm6, [{w} + {row}]",
                            "tileloadd tmm4, [{x} + {row}]",
                            "tdpbf16ps tmm0, tmm4, tmm6",
                            "add {w}, {other}",
                            "tileloadd tmm7, [{w} + {row}]",
                            "sub {w}, {other}",
                            "tdpbf16ps tmm1, tmm4, tmm7"
                        ],
                        [
                            "tilestored [{x} + {width}], tmm0",
                            "tilestored [{x} + {width} + 64], tmm1"
                        ]
                    );
                    16
                }
                (_, 33..) => {
                    amx!(
                        band,
                        16,
                        [
                            // Every operand must be named; here there is no other column.
                            "mov {x}, {other}",
                            "tileloadd tmm0, [{bias} + {none}]",
                            "tileloadd tmm1, [{bias} + {none}]",
                            "tileloadd tmm2, [{bias} + {none}]",
                            "tileloadd tmm3, [{bias} + {none}]"
                        ],
                        [
                            "tileloadd tmm4, [{w} + {row}]",
                            "tileloadd tmm5, [{x} + {row}]",
                            "tdpbf16ps tmm0, tmm5, tmm4",
                            "tileloadd tmm6, [{x} + {row} + 1024]",
                            "tdpbf16ps tmm1, tmm6, tmm4",
                            "tileloadd tmm7, [{x} + {row} + 2048]",
                            "tdpbf16ps tmm2, tmm7, tmm4",
                            "tileloadd tmm5, [{x} + {row} + 3072]",
                            "tdpbf16ps tmm3, tmm5, tmm4"
                        ],
                        [
                            "tilestored [{x} + {width}], tmm0",
                            "tilestored [{x} + {width} + 1024], tmm1",
                            "tilestored [{x} + {width} + 2048], tmm2",
                            "tilestored [{x} + {width} + 3072], tmm3"
                        ]
                    );
                    64
                }
                _ => {
                    amx!(
                        band,
                        16,
                        [
                            // Every operand must be named; here there is no other column.
                            "mov {x}, {other}",
                            "tileloadd tmm0, [{bias} + {none}]",
                            "tileloadd tmm1, [{bias} + {none}]"
                        ],
                        [
                            "tileloadd tmm4, [{w} + {row}]",
                            "tileloadd tmm5, [{x} + {row}]",
                            "tdpbf16ps tmm0, tmm5, tmm4",
                            "tileloadd tmm6, [{x} + {row} + 1024]",
                            "tdpbf16ps tmm1, tmm6, tmm4"
                        ],
                        [
                            "tilestored [{x} + {width}], tmm0",
                            "tilestored [{x} + {width} + 1024], tmm1"
                        ]
                    );
                    32
                }
            }
        }
    }

    /// Computes up to 14 points by 32 or 16 outputs; returns the number of points.
    #[inline(always)]
    pub(super) unsafe fn avx512_tile(band: &Operands, columns: usize, left: usize) -> usize {
        // SAFETY: the caller's.
        unsafe {
            match (columns, left) {
                (2, 5..) => avx512::<14, 2>(band),
                (2, _) => avx512::<4, 2>(band),
                (_, 5..) => avx512::<14, 1>(band),
                _ => avx512::<4, 1>(band),
            }
        }
    }

    /// The bits reinterpreted as bf16.
    #[inline(always)]
    fn pairs(x: __m512i) -> __m512bh {
        // SAFETY: both are 64 bytes without padding.
        unsafe { std::mem::transmute::<__m512i, __m512bh>(x) }
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn avx512<const P: usize, const V: usize>(band: &Operands) -> usize {
        // SAFETY: the caller's.
        unsafe {
            let start: [__m512; V] = from_fn(|v| _mm512_loadu_ps(band.bias.add(v * COLUMN)));
            let mut sums = [start; P];
            for (s, step) in band.steps.iter().enumerate() {
                let x = band.values.add(step.offset).cast::<i32>();
                let columns: [*const bf16; V] =
                    from_fn(|v| band.weights.add((v * band.steps.len() + s) * TILE));
                for pair in 0..step.inputs.div_ceil(2) {
                    let load =
                        |v: usize| _mm512_loadu_si512(columns[v].add(pair * 2 * COLUMN).cast());
                    let w: [__m512i; V] = from_fn(load);
                    for (p, sums) in sums.iter_mut().enumerate() {
                        let x = _mm512_set1_epi32(x.add(p * BLOCK / 2 + pair).read_unaligned());
                        for (sum, &w) in sums.iter_mut().zip(&w) {
                            *sum = _mm512_dpbf16_ps(*sum, pairs(x), pairs(w));
                        }
                    }
                }
            }
            let finished = sums;
            for (p, sums) in finished.iter().enumerate() {
                for (v, &sum) in sums.iter().enumerate() {
                    _mm512_storeu_ps(band.sums.add((p * V + v) * COLUMN), sum);
                }
            }
            P
        }
    }
}

/// Stubs for CPUs without these instructions.
#[cfg(not(target_arch = "x86_64"))]
mod x86 {
    use half::bf16;

    use super::{BLOCK, Operands};

    pub(super) fn has_avx512_bf16() -> bool {
        false
    }

    pub(super) unsafe fn rounded(x: [f32; BLOCK]) -> [bf16; BLOCK] {
        x.map(bf16::from_f32)
    }

    pub(super) fn has_amx() -> bool {
        false
    }

    pub(super) unsafe fn configure() {}

    pub(super) unsafe fn release() {}

    pub(super) unsafe fn amx_tile(_: &Operands, _: usize, left: usize) -> usize {
        left
    }

    pub(super) unsafe fn avx512_tile(_: &Operands, _: usize, left: usize) -> usize {
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::Random;

    /// Blocks are rounded as single values are, by any instructions: random normal numbers, numbers halfway between two
    /// of bf16, the largest ones, infinities, zeros and NaN.
    #[test]
    fn bf16_blocks_are_rounded_as_their_values_are() {
        let mut random = Random::new(12);
        let mut values: Vec<f32> = (0..100_000)
            .map(|_| f32::from_bits(random.bits() as u32))
            .map(|x| if x.is_subnormal() { 0.0 } else { x })
            .collect();
        values.extend((0..1024).map(|i| f32::from_bits(0x3f80_8000 + (i << 16))));
        values.extend([f32::MAX, f32::MIN, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -0.0]);
        values.extend([f32::from_bits(0x7f80_0001), f32::from_bits(0xff80_ffff)]);
        values.resize(values.len().next_multiple_of(BLOCK), 1.0);
        for block in values.as_chunks::<BLOCK>().0 {
            let bits = |block: [bf16; BLOCK]| block.map(bf16::to_bits);
            assert_eq!(bits(bf16::block(*block)), bits(block.map(bf16::from_f32)), "{block:?}");
        }
    }
}
