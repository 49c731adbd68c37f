//! The tracer's promises: its halo makes tiles equal the whole, its costs follow the sizes.

use tessera::{
    exec::{memory::MEMORY, reference::Reference},
    model::{cost, decoder},
    ops::{Conv2d, Domain, Ops, Rect, Shape, testing::Random, tracer::Tracer},
};

use crate::common;

/// The pixels of columns `inner` of a picture decoded from columns `outer` of the finest grid.
fn decode(outer: std::ops::Range<usize>, inner: std::ops::Range<usize>) -> Vec<f32> {
    let arch = common::small_arch();
    let mut o = Reference::new(common::random_weights(&arch, 3));
    let (rows, columns, factor) = (3, 21, arch.finest_factor());
    let mut random = Random::new(4);
    let mut draw = |c| random.values(rows * columns * c, 0.0, 1.0);
    let mut window = |data: Vec<f32>, c| {
        let whole = o.upload(Shape::new(1, rows, columns, c), &data).unwrap();
        o.crop(&whole, Rect { x: outer.start, y: 0, width: outer.len(), height: rows }).unwrap()
    };
    let (h, r) = (window(draw(8), 8), window(draw(3), 3));
    let picture = decoder::local_stage(&mut o, &arch, h, r).unwrap();
    let left = (inner.start - outer.start) * factor;
    let tile = Rect { x: left, y: 0, width: inner.len() * factor, height: rows * factor };
    let tile = o.crop(&picture, tile).unwrap();
    o.download(&tile).unwrap()
}

/// A window that has the halo around it gives the whole picture's bits; one pixel less on either side does not.
#[test]
fn halo_is_enough_and_not_too_much() {
    let halo = cost::halo(&common::small_arch()).unwrap();
    assert!((1..10).contains(&halo), "{halo}");
    let whole = decode(0..21, 10..11);
    assert_eq!(decode(10 - halo..11 + halo, 10..11), whole);
    assert_ne!(decode(10 - halo + 1..11 + halo, 10..11), whole);
    assert_ne!(decode(10 - halo..10 + halo, 10..11), whole);
}

/// FLOPs and memory of a local stage grow with its window alone.
#[test]
fn local_cost_is_proportional_to_the_window() {
    let arch = common::small_arch();
    let small = cost::local_cost(&arch, &MEMORY, 4, 4).unwrap();
    let large = cost::local_cost(&arch, &MEMORY, 8, 12).unwrap();
    assert_eq!(large.flops, 6 * small.flops);
    assert_eq!(large.peak_bytes, 6 * small.peak_bytes);
    assert_eq!(large.params, small.params);
}

/// Peak memory counts what is alive, not what ever was; dropping everything leaves the peak.
#[test]
fn peak_counts_live_tensors() {
    let mut o = Tracer::new();
    let mut x = o.input(Shape::new(1, 8, 8, 4)).unwrap();
    for _ in 0..10 {
        x = o.silu(&x).unwrap();
    }
    let copy = x.clone();
    drop((x, copy));
    assert_eq!(o.finish().peak_bytes, 2 * 8 * 8 * 4 * 4);
}

/// Scratch memory of attention and of transformed squares counts beside the tensors, and so do packed weights, those of a layer
/// once: 36 values for each pair of channels where a 3x3 layer sees whole grids, else its taps.
#[test]
fn scratch_memory_and_packed_weights_are_counted() {
    let shape = Shape::new(1, 8, 8, 4);
    let tensor = 8 * 8 * 4 * 4;
    let mut o = Tracer::with_memory(&MEMORY);
    let x = o.input(shape).unwrap();
    o.spatial_attention(&x, &x, &x).unwrap();
    assert_eq!(o.finish().peak_bytes, (2 + 2) * tensor);
    let layer = |name: &str, domain| Conv2d {
        name: name.into(),
        in_channels: 4,
        out_channels: 6,
        kernel: 3,
        domain,
    };
    let mut o = Tracer::with_memory(&MEMORY);
    let x = o.input(shape).unwrap();
    for _ in 0..2 {
        o.conv2d(&x, &layer("whole", Domain::Whole)).unwrap();
        o.conv2d(&x, &layer("windows", Domain::Window)).unwrap();
    }
    let cost = o.finish();
    assert_eq!(cost.packed_bytes, 4 * (36 + 9) * 4 * 6);
    assert_eq!(cost.peak_bytes, tensor + 8 * 8 * 6 * 4 + 4 * 36 * 4 * (4 + 6));
}

/// Sizes that no memory holds are an error, not an overflow.
#[test]
fn impossible_sizes_are_refused() {
    let arch = common::small_arch();
    assert!(cost::unet_cost(&arch, &MEMORY, 1 << 40, 1 << 40).is_err());
    assert!(cost::encoder_cost(&arch, &MEMORY, 0, 16).is_err());
    assert!(cost::encoder_cost(&arch, &MEMORY, 24, 16).is_err());
}
