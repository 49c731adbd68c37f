//! What is done inside a convolution changes no bit of what is done after it.

use std::sync::Arc;

use tessera::{
    error::Result,
    exec::{
        gpu::{ConvVariant, Gpu, Lazy},
        reference::Reference,
    },
    model::{checkpoint::Checkpoint, decoder, unet},
    ops::{
        Conv2d, GroupNorm, Ops, PixelNorm, Shape, Window,
        cases::{self, OpCall, Random, Table, relative_error},
    },
};

use crate::{
    TOLERANCE,
    common::{gpu::gpu, model},
    f16::{F16_TOLERANCE, cooperative},
    weights,
};

/// The GPU without fusion: every result is read, so computed, before the next operator.
struct Eager(Gpu);

impl Eager {
    fn read(&mut self, x: Result<Lazy>) -> Result<Lazy> {
        let x = x?;
        self.0.crop(&x, Window { y: 0, x: 0, h: 1, w: 1 })?;
        Ok(x)
    }
}

/// Operators of [`Eager`]: those of [`Gpu`], read at once.
macro_rules! eager {
    ($($name:ident($($x:ident: $kind:ty),*);)*) => {
        $(fn $name(&mut self, $($x: $kind),*) -> Result<Lazy> {
            let x = self.0.$name($($x),*);
            self.read(x)
        })*
    };
}

impl Ops for Eager {
    type Tensor = Lazy;

    fn shape(&self, x: &Lazy) -> Shape {
        self.0.shape(x)
    }

    fn download(&mut self, x: &Lazy) -> Result<Vec<f32>> {
        self.0.download(x)
    }

    fn scalar(&mut self, name: &str) -> Result<f32> {
        self.0.scalar(name)
    }

    eager! {
        upload(shape: Shape, data: &[f32]);
        conv2d(x: &Lazy, p: &Conv2d);
        group_norm(x: &Lazy, p: &GroupNorm);
        pixel_norm(x: &Lazy, p: &PixelNorm);
        silu(x: &Lazy);
        scale_shift(x: &Lazy, pair: &Lazy, silu: bool);
        weighted_add(a: &Lazy, b: &Lazy, wa: f32, wb: f32);
        concat(a: &Lazy, b: &Lazy);
        avg_pool2(x: &Lazy);
        global_avg_pool(x: &Lazy);
        upsample_nearest2(x: &Lazy);
        fir_down2(x: &Lazy);
        fir_up2(x: &Lazy);
        pixel_unshuffle(x: &Lazy, r: usize);
        pixel_shuffle(x: &Lazy, r: usize);
        spatial_attention(q: &Lazy, k: &Lazy, v: &Lazy);
        channel_attention(q: &Lazy, k: &Lazy, v: &Lazy);
        crop(x: &Lazy, window: Window);
    }
}

/// What may be fused with a convolution.
#[derive(Clone, Copy, Debug)]
struct Fused {
    /// The input is enlarged.
    up: bool,
    /// A sum with another tensor follows, in which the convolution comes first, or second.
    first: Option<bool>,
    /// The other tensor is enlarged.
    addend_up: bool,
}

impl Fused {
    /// The forms that there are for a result of `shape`.
    fn all(shape: Shape) -> Vec<Self> {
        let plain = Self { up: false, first: None, addend_up: false };
        let mut all = vec![Self { up: true, ..plain }];
        for up in [false, true] {
            // The result of an enlarged input has even extents.
            let even = up || shape.h.is_multiple_of(2) && shape.w.is_multiple_of(2);
            for first in [Some(false), Some(true)] {
                all.push(Self { up, first, ..plain });
                if even {
                    all.push(Self { up, first, addend_up: true });
                }
            }
        }
        all
    }

    /// The convolution `p` of random values of `shape`, with this.
    fn run<O: Ops>(self, o: &mut O, p: &Conv2d, shape: Shape) -> Vec<f32> {
        let mut random = Random::new(21);
        let mut x = o.upload(shape, &random.values(shape.len(), 0.5, 1.5)).unwrap();
        if self.up {
            x = o.upsample_nearest2(&x).unwrap();
        }
        let mut y = o.conv2d(&x, p).unwrap();
        if let Some(first) = self.first {
            let mut shape = o.shape(&y);
            if self.addend_up {
                shape = Shape { h: shape.h / 2, w: shape.w / 2, ..shape };
            }
            let mut addend = o.upload(shape, &random.values(shape.len(), 0.5, 1.5)).unwrap();
            if self.addend_up {
                addend = o.upsample_nearest2(&addend).unwrap();
            }
            let (a, b) = if first { (&y, &addend) } else { (&addend, &y) };
            y = o.weighted_add(a, b, 0.75, -1.25).unwrap();
        }
        o.download(&y).unwrap()
    }
}

/// Every convolution of `table` with all that may be fused with it comes out as in the reference, but for `tolerance`, and has
/// the bits that it has where nothing is fused. Gives the bits of all.
fn fused_equal_the_reference(
    table: &Table,
    open: impl Fn() -> Gpu,
    tolerance: f64,
) -> Vec<Vec<u32>> {
    let (mut gpu, mut eager) = (open(), Eager(open()));
    let mut reference = Reference::new(table.weights.clone());
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    let mut all = Vec::new();
    for case in &table.cases {
        let OpCall::Conv2d(p) = &case.op else { continue };
        for fused in Fused::all(case.inputs[0].0) {
            let found = fused.run(&mut gpu, p, case.inputs[0].0);
            let wanted = fused.run(&mut reference, p, case.inputs[0].0);
            let error = relative_error(&found, &wanted);
            assert!(error <= tolerance, "{p:?} {fused:?}: {error:e}");
            let plain = fused.run(&mut eager, p, case.inputs[0].0);
            assert!(bits(&found) == bits(&plain), "{p:?} {fused:?}");
            all.push(bits(&found));
        }
    }
    all
}

/// What is fused with a convolution of any variant comes out as in the reference and changes no bit; variants of f32 have
/// the same bits with it.
#[test]
fn fusion_with_a_convolution_changes_no_bit() {
    let mut table = cases::table(6);
    // The reference takes long for the largest.
    table.cases.retain(|case| case.inputs[0].0.pixels() < 1000);
    if let Some((gpu, _lock)) = gpu(Arc::default()) {
        drop(gpu);
        let [one, other] = ConvVariant::SAME_BITS.map(|variant| {
            let open = || Gpu::new(None, table.weights.clone()).unwrap();
            fused_equal_the_reference(&table, || open().with_convolutions(variant), TOLERANCE)
        });
        assert!(one == other);
        let open = || Gpu::new(None, table.weights.clone()).unwrap();
        let fewer = || open().with_convolutions(ConvVariant::Winograd);
        fused_equal_the_reference(&table, fewer, TOLERANCE);
    }
    if let Some((index, _lock)) = cooperative() {
        let open = || Gpu::with_f16(Some(index), table.weights.clone()).unwrap();
        fused_equal_the_reference(&table, open, F16_TOLERANCE);
    }
}

/// The networks of a model with fusion give the bits of those without, for two sizes of pictures and several at once.
#[test]
fn fusion_changes_no_bit_of_a_network() {
    let Some((gpu, _lock)) = gpu(Arc::default()) else { return };
    drop(gpu);
    let model = model("net-a");
    let open = || Gpu::new(None, model.weights.clone()).unwrap();
    for (batch, times) in [(1, 1), (2, 2)] {
        let fused = network_bits(&mut open(), &model, batch, times);
        assert!(fused == network_bits(&mut Eager(open()), &model, batch, times));
    }
}

/// All values that the networks of `model` give for random latents of `batch` pictures, as bits.
fn network_bits<O: Ops>(o: &mut O, model: &Checkpoint, batch: usize, times: usize) -> Vec<u32> {
    let (arch, mut random) = (&model.arch, Random::new(2));
    let side = times * arch.coarsest_factor();
    let z: Vec<_> = (arch.levels.iter().zip(arch.grids(side, side)))
        .map(|(level, (rows, columns))| {
            let shape = Shape::new(batch, rows, columns, level.channels);
            o.upload(shape, &random.values(shape.len(), 0.0, 1.0)).unwrap()
        })
        .collect();
    let mut outputs = unet::predict(o, arch, &z, &[0.3]).unwrap();
    let (h, r) = decoder::global_stage(o, arch, &z).unwrap();
    outputs.push(decoder::local_stage(o, arch, h, r).unwrap());
    let values = outputs.iter().flat_map(|output| o.download(output).unwrap());
    values.map(f32::to_bits).collect()
}

/// What waits is right however it is read: never, once or several times, by its clone, by itself after a sum, in several
/// sums, twice in one sum, beside another that waits.
#[test]
fn what_waits_is_right_however_it_is_read() {
    fn run<O: Ops>(o: &mut O, layers: &[Conv2d; 2]) -> Vec<Vec<f32>> {
        let shape = Shape::new(2, 3, 5, 8);
        let x = o.upload(shape, &Random::new(22).values(shape.len(), 0.5, 1.5)).unwrap();
        let [p, q] = layers;
        let mut all = Vec::new();
        let mut sum = |o: &mut O, a: &O::Tensor, b: &O::Tensor| {
            let sum = o.weighted_add(a, b, 0.75, -1.25).unwrap();
            all.push(o.download(&sum).unwrap());
        };
        let (one, other) = (o.conv2d(&x, p).unwrap(), o.conv2d(&x, q).unwrap());
        sum(o, &one, &other);
        sum(o, &other, &x);
        sum(o, &x, &other);
        sum(o, &one, &one);
        let again = o.conv2d(&x, p).unwrap();
        sum(o, &again, &again.clone());
        sum(o, &again, &other);
        // Never read.
        o.conv2d(&other, q).unwrap();
        let (twice, large) = (o.conv2d(&other, p).unwrap(), o.upsample_nearest2(&other).unwrap());
        let (larger, of_large) =
            (o.upsample_nearest2(&large).unwrap(), o.conv2d(&large, q).unwrap());
        sum(o, &large, &of_large);
        sum(o, &large, &large);
        let mut read = vec![twice.clone(), twice, other, again, one, large, larger, of_large];
        read.push(o.silu(&read[0]).unwrap());
        all.extend(read.iter().map(|x| o.download(x).unwrap()));
        all
    }
    let layer = |name: &str, kernel| {
        let (in_channels, out_channels) = (8, 8);
        Conv2d { name: name.into(), in_channels, out_channels, kernel, whole: true }
    };
    let layers = [layer("one", 3), layer("other", 1)];
    let weights = weights(layers.iter().flat_map(Conv2d::params), 23);
    let Some((mut gpu, _lock)) = gpu(weights.clone()) else { return };
    let (found, wanted) = (run(&mut gpu, &layers), run(&mut Reference::new(weights), &layers));
    for (i, (found, wanted)) in found.iter().zip(&wanted).enumerate() {
        let error = relative_error(found, wanted);
        assert!(error <= TOLERANCE, "{i}: {error:e}");
    }
}
