//! Graphs before they run: the halo makes tiles equal the whole, costs follow the sizes, every operator's receptive field
//! is right, printed graphs do not change unnoticed.

use std::collections::BTreeSet;

use tessera::{
    exec::{memory::MEMORY, reference::Reference},
    graph::{
        self, Backend, Fused, Fusion, GraphBuilder, Place, Source,
        testing::{apply, run_case},
    },
    model::{cost, decoder, encoder, sampler::latent_shapes, unet},
    ops::{self, Conv2d, Domain, Op, Rect, Shape, testing::Random},
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
        let part = Rect { x: outer.start, y: 0, width: outer.len(), height: rows };
        apply(&mut o, &Op::Crop(part), &[whole]).unwrap()
    };
    let inputs = vec![window(draw(8), 8), window(draw(3), 3)];
    let graph = decoder::local_graph(&arch, 1, rows, outer.len()).unwrap();
    let picture = o.run(&graph, inputs).unwrap().remove(0);
    let left = (inner.start - outer.start) * factor;
    let tile = Rect { x: left, y: 0, width: inner.len() * factor, height: rows * factor };
    let tile = apply(&mut o, &Op::Crop(tile), &[picture]).unwrap();
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

/// Peak memory counts what is alive, not what ever was.
#[test]
fn peak_counts_live_tensors() {
    let mut g = GraphBuilder::new();
    let mut x = g.input(Shape::new(1, 8, 8, 4)).unwrap();
    for _ in 0..10 {
        x = g.silu(x).unwrap();
    }
    assert_eq!(g.finish([x]).cost(None).unwrap().peak_bytes, 2 * 8 * 8 * 4 * 4);
}

/// Scratch memory of attention and of transformed squares counts beside the tensors, and so do packed weights, those of a layer
/// once: 36 values for each pair of channels where a 3x3 layer sees whole grids, else its taps.
#[test]
fn scratch_memory_and_packed_weights_are_counted() {
    let shape = Shape::new(1, 8, 8, 4);
    let tensor = 8 * 8 * 4 * 4;
    let mut g = GraphBuilder::new();
    let x = g.input(shape).unwrap();
    let y = g.spatial_attention(x, x, x).unwrap();
    assert_eq!(g.finish([y]).cost(Some(&MEMORY)).unwrap().peak_bytes, (2 + 2) * tensor);
    let layer = |name: &str, domain| Conv2d {
        name: name.into(),
        in_channels: 4,
        out_channels: 6,
        kernel: 3,
        domain,
    };
    let mut g = GraphBuilder::new();
    let x = g.input(shape).unwrap();
    for _ in 0..2 {
        g.conv2d(x, layer("whole", Domain::Whole)).unwrap();
        g.conv2d(x, layer("windows", Domain::Window)).unwrap();
    }
    let cost = g.finish([]).cost(Some(&MEMORY)).unwrap();
    assert_eq!(cost.packed_bytes, 4 * (36 + 9) * 4 * 6);
    assert_eq!(cost.peak_bytes, tensor + 8 * 8 * 6 * 4 + 4 * 36 * 4 * (4 + 6));
}

/// Sizes that no memory holds are an error, not an overflow.
#[test]
fn impossible_sizes_are_refused() {
    let arch = common::small_arch();
    assert!(cost::unet_cost(&arch, 0, 1, &MEMORY, 1 << 40, 1 << 40).is_err());
    assert!(cost::encoder_cost(&arch, &MEMORY, 0, 16).is_err());
    assert!(cost::encoder_cost(&arch, &MEMORY, 24, 16).is_err());
}

/// A change of one input pixel changes results only within the radius of the operator's rule; an operator without a
/// bounded radius changes the whole picture.
#[test]
fn receptive_fields_are_those_of_the_operators() {
    let suite = ops::testing::suite(12);
    let mut o = Reference::new(suite.weights.clone());
    let mut seen = BTreeSet::new();
    for case in &suite.cases {
        // Of attention it is the keys that every pixel of the result depends on.
        let attends = matches!(case.op, Op::SpatialAttention | Op::ChannelAttention);
        let input = usize::from(attends);
        let (shape, _) = &case.inputs[input];
        // The first case of an operator that is large enough in both directions; the reference is slow.
        // One channel attends to itself alone.
        let fits = shape.h >= 4 && shape.w >= 4 && shape.pixels() <= 400 && shape.c > 1;
        if matches!(case.op, Op::Crop(_)) || !fits || !seen.insert(case.op.name()) {
            continue;
        }
        let (y, x) = (shape.h / 2, shape.w / 2);
        let mut changed = case.clone();
        let pixel = (y * shape.w + x) * shape.c..(y * shape.w + x + 1) * shape.c;
        for value in &mut changed.inputs[input].1[pixel] {
            *value += 1.0 + value.abs();
        }
        let ((out, before), (_, after)) =
            (run_case(&mut o, case).unwrap(), run_case(&mut o, &changed).unwrap());
        let pixels = before.chunks_exact(out.c).zip(after.chunks_exact(out.c));
        let moved: Vec<_> = pixels.take(out.pixels()).map(|(a, b)| a != b).collect();
        let Some(radius) = case.op.radius(0) else {
            assert!(moved.iter().all(|&moved| moved), "{}", case.name);
            continue;
        };
        // First and last pixel of the result that cover a pixel of the input, along an axis of `of` and `n` pixels.
        let covered = |at: usize, of: usize, n: usize| (at * n / of, ((at + 1) * n).div_ceil(of));
        let (rows, columns) = (covered(y, shape.h, out.h), covered(x, shape.w, out.w));
        for (i, _) in moved.iter().enumerate().filter(|(_, moved)| **moved) {
            for (at, (first, end)) in [(i / out.w, rows), (i % out.w, columns)] {
                assert!(at + radius >= first && at < end + radius, "{} at {i}", case.name);
            }
        }
    }
    assert_eq!(seen.len(), 17, "{seen:?}");
}

/// With all that a backend may fuse, every value that an operator reads from memory is there when it runs, has not been
/// freed, and is freed once; nothing else is kept.
#[test]
fn fused_graphs_read_what_is_in_memory() {
    let arch = common::small_arch();
    let latents = latent_shapes(&arch, 1, 64, 32);
    let all = [
        unet::graph(&arch, 0, &latents).unwrap(),
        decoder::graph(&arch, &latents).unwrap(),
        encoder::graph(&arch, Shape::new(1, 32, 64, 3)).unwrap(),
    ];
    let fusions = [Fusion::ALL, Fusion::NONE, Fusion { norms: false, ..Fusion::ALL }];
    let mut fused_loads = 0;
    for (graph, fusion) in all.iter().flat_map(|graph| fusions.map(|fusion| (graph, fusion))) {
        let fused = Fused::new(graph, fusion);
        let mut alive = BTreeSet::new();
        for (value, node) in graph.values().zip(graph.nodes()) {
            let mut reads = Vec::new();
            if let (Source::Operator { op, inputs }, Place::Memory) =
                (&node.source, fused.place(value))
            {
                let mut read = inputs.clone();
                while let Some(value) = read.pop() {
                    match fused.place(value) {
                        Place::Memory => reads.push(value.index()),
                        Place::Load => {
                            let through = matches!(op, Op::Conv2d(_) | Op::WeightedAdd(_))
                                || op.name() == "scale_shift"
                                || op.name() == "silu"
                                || op.name() == "upsample_nearest2";
                            assert!(through, "{} reads {value:?}", op.name());
                            reads.push(fused.load(value).source.index());
                            fused_loads += 1;
                        }
                        Place::Sum => {
                            let Source::Operator { inputs, .. } = &graph.node(value).source else {
                                panic!("an input is no term")
                            };
                            read.extend(inputs);
                        }
                    }
                }
            }
            assert!(reads.iter().all(|read| alive.contains(read)), "{fusion:?} {node:?}");
            alive.insert(value.index());
            for freed in fused.freed_after(value) {
                assert!(alive.remove(&freed.index()), "{freed:?} is freed twice");
            }
        }
        let kept: BTreeSet<_> = graph.outputs().iter().map(|output| output.index()).collect();
        assert_eq!(alive, kept, "{fusion:?}");
        if fusion == Fusion::NONE {
            assert!(graph.values().all(|value| fused.place(value) == Place::Memory));
        }
    }
    assert!(fused_loads > 50, "{fused_loads}");
}

/// The printed graph of a block of each kind: operators, order, shapes, costs and layers.
#[test]
fn a_printed_graph_is_the_recorded_one() {
    let arch = common::small_arch();
    let graph = decoder::local_graph(&arch, 1, 2, 3).unwrap();
    let path = common::fixture("local_graph.txt");
    let recorded = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(graph.table().to_string(), recorded, "{}", path.display());
    let inputs = |node: &graph::Node| match &node.source {
        Source::Operator { inputs, .. } => inputs.len(),
        Source::Input => 0,
    };
    let edges: usize = graph.nodes().iter().map(inputs).sum();
    assert_eq!(graph.dot().to_string().matches(" -> ").count(), edges);
}
