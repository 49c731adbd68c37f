//! The engine's promises, over the interpreters: tiles equal the whole, seeds decide, cancelling works.

use std::{collections::BTreeMap, sync::Arc};

use tessera::{
    engine::{
        self, Cancel, Event, encode,
        latents::LatentFile,
        plan::{Plan, Rect, Spec, TileSize, Tiling},
        run::{Run, Task},
        tiles::{self, PixelBuffer, TileDecoder, samples},
    },
    error::{Error, Kind, Result},
    exec::{
        cpu::{Cpu, Kernels},
        reference::Reference,
    },
    graph::Backend,
    image_in::Picture,
    image_out::Bits,
    model::{
        arch::Arch,
        decoder::{self, Part},
        sampler::{Latent, Sampler, latent_shapes},
    },
    ops::{testing::Random, weights::Weights},
};

use crate::common::{
    engine::{generate, generate_on, spec, together_equals_alone},
    model, psnr, unit16,
};

fn random_latents(arch: &Arch, width: usize, height: usize, seed: u64) -> Vec<Latent> {
    let mut random = Random::new(seed);
    let (width, height) = padded(arch, width, height);
    let shapes = latent_shapes(arch, 1, width, height);
    shapes
        .into_iter()
        .map(|s| Latent { shape: s, data: random.values(s.len(), 0.0, 1.0) })
        .collect()
}

fn padded(arch: &Arch, width: usize, height: usize) -> (usize, usize) {
    let factor = arch.coarsest_factor();
    (width.next_multiple_of(factor), height.next_multiple_of(factor))
}

/// `items` in an order that `random` draws.
fn shuffled<T>(mut items: Vec<T>, random: &mut Random) -> Vec<T> {
    for i in (1..items.len()).rev() {
        let draw = random.values(1, 0.5, 0.5)[0].clamp(0.0, 0.999);
        items.swap(i, (draw * (i + 1) as f32) as usize);
    }
    items
}

/// Seed of the decoder's noise.
const SEED: u64 = 7;

/// All pixels from one run of both stages, without tiles.
fn whole<O: Backend>(ops: &mut O, arch: &Arch, latents: &[Latent]) -> (usize, Vec<f32>) {
    let shapes: Vec<_> = latents.iter().map(|latent| latent.shape).collect();
    let graph = decoder::graph(arch, &shapes).unwrap();
    let grid = Rect { x: 0, y: 0, width: shapes[0].w, height: shapes[0].h };
    let noise = [Part::Global, Part::Local]
        .map(|part| decoder::noise_inputs(arch, part, SEED, grid))
        .concat();
    let inputs = latents.iter().map(|l| (l.shape, l.data.clone())).chain(noise);
    let inputs = inputs.map(|(shape, data)| ops.upload(shape, &data).unwrap()).collect();
    let picture = ops.run(&graph, inputs).unwrap().remove(0);
    (ops.shape(&picture).w, ops.download(&picture).unwrap())
}

fn tiled_equals_whole<O: Backend>(
    name: &str,
    sizes: &[(usize, usize)],
    make: impl Fn(Arc<Weights>) -> O,
) {
    let model = model(name);
    let arch = &model.arch;
    let mut random = Random::new(11);
    for &(width, height) in sizes {
        let mut ops = make(model.weights.clone());
        let latents = random_latents(arch, width, height, 5);
        let (stride, expected) = whole(&mut ops, arch, &latents);
        let tilings = [64, 100, 256].map(TileSize::Pixels);
        for tile in tilings.into_iter().chain([TileSize::Whole]) {
            let tiling = Tiling::new(arch, width, height, tile).unwrap();
            let decoder = TileDecoder::new(&mut ops, arch, &latents, SEED).unwrap();
            for tile in shuffled(tiling.tiles, &mut random) {
                let values = decoder.decode(&mut ops, arch, &tile).unwrap();
                let Rect { x, y, width, .. } = tile.rect;
                for (i, row) in values.chunks_exact(3 * width).enumerate() {
                    let start = 3 * ((y + i) * stride + x);
                    let same = row.iter().zip(&expected[start..start + 3 * width]);
                    for (j, (a, b)) in same.enumerate() {
                        let at = (x + j / 3, y + i);
                        assert!(
                            a.to_bits() == b.to_bits(),
                            "{name} {tile:?}: {a} != {b} at {at:?}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn preview_depends_on_its_level_and_coarser_ones() {
    let model = model("net-a");
    let arch = &model.arch;
    let mut ops = Cpu::new(model.weights.clone());
    let latents = random_latents(arch, 96, 64, 3);
    for seen in 0..latents.len() {
        let preview = tiles::preview(&mut ops, arch, &latents, seen, SEED).unwrap();
        // Twice the level's grid, where that is not finer than the finest; the 1x1 level counts as the coarsest.
        let grid = Some(arch.levels[seen].factor).filter(|&factor| factor > 0);
        let factor = (grid.unwrap_or(arch.coarsest_factor()) / 2).max(arch.finest_factor());
        assert_eq!((preview.0.width, preview.0.height), (96 / factor, 64 / factor));
        for level in 0..latents.len() {
            let mut changed = latents.clone();
            changed[level].data.iter_mut().for_each(|value| *value += 1.0);
            let changed = tiles::preview(&mut ops, arch, &changed, seen, SEED).unwrap();
            assert_eq!(changed == preview, level < seen, "{level} in {seen}");
        }
    }
    // The finest one is what the global stage, which is run anyway, ends with.
    let decoder = TileDecoder::new(&mut ops, arch, &latents, SEED).unwrap();
    let preview = tiles::preview(&mut ops, arch, &latents, 0, SEED).unwrap();
    assert_eq!(decoder.preview(&mut ops).unwrap(), preview);
}

#[test]
fn tiled_decode_equals_the_whole_bit_for_bit_on_the_reference() {
    // Grids of odd sides; pictures that end within a latent's pixel; tiles that do not divide them.
    tiled_equals_whole("net-a", &[(208, 144), (149, 67)], Reference::new);
    tiled_equals_whole("net-b", &[(108, 76), (131, 70)], Reference::new);
    tiled_equals_whole("net-c", &[(176, 80), (201, 111)], Reference::new);
    tiled_equals_whole("net-g", &[(160, 96), (201, 111)], Reference::new);
}

#[test]
fn tiled_decode_equals_the_whole_bit_for_bit_on_the_cpu() {
    tiled_equals_whole("net-a", &[(656, 304), (149, 67), (16, 16)], Cpu::new);
    tiled_equals_whole("net-b", &[(140, 76), (131, 70), (4, 4)], Cpu::new);
    tiled_equals_whole("net-c", &[(560, 272), (201, 111), (16, 16)], Cpu::new);
    tiled_equals_whole("net-g", &[(544, 288), (201, 111), (32, 32)], Cpu::new);
}

#[test]
fn tiled_decode_equals_the_whole_bit_for_bit_in_bf16() {
    let bf16 = Kernels::ALL.iter().copied().filter(|kernels| kernels.is_bf16());
    for kernels in bf16.filter(|kernels| kernels.available()) {
        let cpu = |weights| Cpu::with_kernels(weights, kernels).unwrap();
        tiled_equals_whole("net-a", &[(656, 304), (149, 67), (16, 16)], cpu);
        tiled_equals_whole("net-b", &[(140, 76), (131, 70), (4, 4)], cpu);
        tiled_equals_whole("net-g", &[(544, 288), (201, 111), (32, 32)], cpu);
    }
}

/// The whole way from a seed to a picture, where the CPU has bf16: 45 dB from f32 or better.
#[test]
fn bf16_picture_is_within_45_db_of_f32() {
    let Some(kernels) = Kernels::best(true) else { return eprintln!("this CPU has no bf16") };
    for net in ["net-a", "net-c", "net-g"] {
        let model = model(net);
        let spec = spec(&model, 5, TileSize::Pixels(64), Bits::Sixteen);
        let labels = model.labels(5, &BTreeMap::new()).unwrap();
        let [width, height] = [spec.width, spec.height]
            .map(|side| side.next_multiple_of(model.arch.coarsest_factor()));
        let spec = Spec { labels, width, height, ..spec };
        let mut cpu = Cpu::with_kernels(model.weights.clone(), kernels).unwrap();
        let found = generate_on(&mut cpu, &model, spec.clone());
        let wanted = generate(&model, spec);
        let psnr = psnr(&unit16(&found), &unit16(&wanted));
        eprintln!("{net}: {psnr:.1} dB");
        assert!(psnr >= 45.0, "{net}: {psnr:.1} dB");
    }
}

#[test]
fn tile_size_does_not_change_a_pixel() {
    let model = model("net-a");
    for bits in [Bits::Eight, Bits::Sixteen] {
        let expected = generate(&model, spec(&model, 3, TileSize::Whole, bits));
        assert_eq!(expected.len(), 208 * 144 * bits.pixel_len());
        for tile in [64, 100, 1000] {
            let found = generate(&model, spec(&model, 3, TileSize::Pixels(tile), bits));
            assert!(found == expected, "tile {tile}, {bits:?}");
        }
    }
}

#[test]
fn seed_alone_decides_the_picture() {
    let model = model("net-c");
    for &method in Sampler::ALL {
        let picture = |seed| {
            let spec = spec(&model, seed, TileSize::Pixels(64), Bits::Eight);
            generate(&model, Spec { sampler: method, ..spec })
        };
        assert!(picture(1) == picture(1), "{method:?}");
        assert!(picture(1) != picture(2), "{method:?}");
    }
}

#[test]
fn batched_steps_equal_single_steps_on_the_cpu() {
    together_equals_alone(Reference::new);
    for kernels in Kernels::ALL.iter().copied().filter(|kernels| kernels.available()) {
        together_equals_alone(|weights| Cpu::with_kernels(weights, kernels).unwrap());
    }
}

#[test]
fn latents_of_cpu_and_reference_agree() {
    let model = model("net-a");
    let plan = Plan::new(spec(&model, 9, TileSize::Whole, Bits::Eight), &model.arch).unwrap();
    let (mut silent, cancel) = (|_: Event| {}, Cancel::default());
    let mut cpu = Cpu::new(model.weights.clone());
    let mut reference = Reference::new(model.weights.clone());
    let task = Task { model: &model, plan: &plan, cancel: &cancel };
    let (mut a, mut b) = (Run::new(&plan), Run::new(&plan));
    let a = a.denoise(&mut cpu, task, &mut silent).unwrap();
    let b = b.denoise(&mut reference, task, &mut silent).unwrap();
    for (a, b) in a.iter().zip(b) {
        let square = |v: f64| v * v;
        let error: f64 = a.data.iter().zip(&b.data).map(|(a, b)| square(f64::from(a - b))).sum();
        let norm: f64 = b.data.iter().map(|&b| square(f64::from(b))).sum();
        assert!((error / norm).sqrt() <= 1e-4, "relative error {}", (error / norm).sqrt());
    }
}

/// With strength 0 a picture comes out as it is reconstructed, but for the rounding of two changes of scale; tiles don't show.
#[test]
fn edit_of_strength_0_is_a_reconstruction() {
    let model = model("net-a");
    let (width, height) = (149, 67);
    let samples = Random::new(4).values(3 * width * height, 0.0, 0.5);
    let (w, h) = (width as u32, height as u32);
    let picture = Picture { width: w, height: h, bits: 8, samples };
    let mut cpu = Cpu::new(model.weights.clone());
    let (dir, cancel) = (tempfile::tempdir().unwrap(), Cancel::default());
    let mut silent = |_: Event| {};
    let bits = Bits::Sixteen;
    let mut edits = [TileSize::Whole, TileSize::Pixels(64)].map(|tile| {
        let spec = Spec { width, height, strength: Some(0.0), ..spec(&model, 1, tile, bits) };
        let plan = Plan::new(spec, &model.arch).unwrap();
        let picture = picture.clone();
        engine::edit(&mut cpu, &model, &plan, picture, dir.path(), &mut silent, &cancel)
            .unwrap()
            .bytes()
            .to_vec()
    });
    assert!(edits[0] == edits[1]);
    let tiling = Tiling::new(&model.arch, width, height, TileSize::Whole).unwrap();
    let canvas = PixelBuffer::create(dir.path(), width, height, bits).unwrap();
    let arch = &model.arch;
    let wanted =
        engine::reconstruct(&mut cpu, arch, picture, &tiling, canvas, &mut silent, &cancel)
            .unwrap();
    let wanted = wanted.bytes();
    let samples = |bytes: &[u8]| -> Vec<u16> {
        bytes.chunks_exact(2).map(|b| u16::from_ne_bytes([b[0], b[1]])).collect()
    };
    let (found, wanted) = (samples(&std::mem::take(&mut edits[0])), samples(wanted));
    assert!(wanted.iter().any(|&v| v != wanted[0]));
    let furthest = found.iter().zip(&wanted).map(|(a, b)| a.abs_diff(*b)).max();
    assert!(furthest <= Some(16), "{furthest:?} of 65535");
}

#[test]
fn events_report_every_step_level_and_tile_once_in_order() {
    let model = model("net-a");
    let plan = Plan::new(spec(&model, 1, TileSize::Pixels(64), Bits::Eight), &model.arch).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut events = Vec::new();
    let mut observer = |event: Event| events.push(event);
    let mut ops = Cpu::new(model.weights.clone());
    engine::generate(&mut ops, &model, &plan, dir.path(), &mut observer, &Cancel::default())
        .unwrap();
    let (mut steps, mut settled, mut tiles) = (Vec::new(), Vec::new(), Vec::new());
    for event in &events {
        match event {
            Event::Step { step, of: 4, .. } => steps.push(*step),
            // A level is announced after the step that settled it, coarse ones no later than fine ones.
            Event::Settled { level, step, .. } if steps.last() == Some(step) => {
                settled.push(*level)
            }
            Event::Tile { tile, of: 12, rect } => tiles.push((*tile, *rect)),
            Event::Notice { message } => assert!(message.contains("96x64"), "{message}"),
            Event::Denoising { of: 4 } | Event::Decoding { of: 12 } => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(steps, [1, 2, 3, 4]);
    assert_eq!(settled, [2, 1, 0]);
    assert!(tiles.iter().map(|(i, _)| *i).eq(1..=12));
    assert!(tiles.iter().map(|(_, rect)| *rect).eq(plan.tiling.tiles.iter().map(|t| t.rect)));
}

/// Generates, cancelling at the first event that `when` picks; gives the outcome and the events after it.
fn cancelled(when: impl Fn(&Event) -> bool) -> (Result<PixelBuffer, Error>, Vec<Event>) {
    let model = model("net-a");
    let plan = Plan::new(spec(&model, 1, TileSize::Pixels(64), Bits::Eight), &model.arch).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let cancel = Cancel::default();
    let mut after = Vec::new();
    let mut observer = |event: Event| {
        if cancel.is_cancelled() {
            after.push(event);
        } else if when(&event) {
            cancel.cancel();
        }
    };
    let mut ops = Cpu::new(model.weights.clone());
    let outcome = engine::generate(&mut ops, &model, &plan, dir.path(), &mut observer, &cancel);
    (outcome, after)
}

#[test]
fn cancel_ends_between_two_steps_or_tiles() {
    let step = cancelled(|event| matches!(event, Event::Step { step: 2, .. }));
    let tile = cancelled(|event| matches!(event, Event::Tile { tile: 3, .. }));
    for (outcome, after) in [step, tile] {
        assert_eq!(outcome.err().map(|e| e.kind()), Some(Kind::Cancelled));
        assert_eq!(after, []);
    }
}

#[test]
fn tiles_cover_every_pixel_once_and_read_only_the_grid() {
    let mut random = Random::new(3);
    let arch = model("net-a").arch;
    for _ in 0..60 {
        let mut draw = |most: usize| {
            let value = random.values(1, 0.5, 0.5)[0].clamp(0.0, 1.0);
            1 + (value * (most - 1) as f32) as usize
        };
        let (width, height, side) = (draw(700), draw(700), 63 + draw(961));
        let tiling = Tiling::new(&arch, width, height, TileSize::Pixels(side)).unwrap();
        let (grid_w, grid_h) = padded(&arch, width, height);
        let (grid_w, grid_h) = (grid_w / arch.finest_factor(), grid_h / arch.finest_factor());
        let mut covered = vec![0u8; width * height];
        for tile in &tiling.tiles {
            let Rect { x, y, width: w, height: h } = tile.rect;
            assert!(w <= side && h <= side && w > 0 && h > 0);
            let window = tile.window;
            assert!(window.x + window.width <= grid_w && window.y + window.height <= grid_h);
            for row in y..y + h {
                covered[row * width + x..][..w].iter_mut().for_each(|count| *count += 1);
            }
        }
        assert!(covered.iter().all(|&count| count == 1), "{width}x{height}, tile {side}");
    }
}

#[test]
fn tile_memory_does_not_grow_with_the_picture() {
    let arch = model("net-a").arch;
    let window = |width, height| {
        Tiling::new(&arch, width, height, TileSize::Pixels(256)).unwrap().largest_window()
    };
    assert_eq!(window(1024, 1024), window(16384, 16384));
}

#[test]
fn encode_pads_odd_sizes_by_repeating_edges() {
    let model = model("net-a");
    let mut random = Random::new(8);
    let samples = random.values(37 * 21 * 3, 0.0, 0.5);
    let mut wide = Vec::new();
    for y in 0..32 {
        for x in 0..48 {
            let at = 3 * (usize::min(y, 20) * 37 + usize::min(x, 36));
            wide.extend_from_slice(&samples[at..at + 3]);
        }
    }
    let mut ops = Reference::new(model.weights.clone());
    let mut encode = |width, height, samples| {
        let picture = Picture { width, height, bits: 8, samples };
        encode::encode(&mut ops, &model.arch, picture).unwrap()
    };
    assert_eq!(encode(37, 21, samples), encode(48, 32, wide));
}

#[test]
fn psnr_is_infinite_for_equal_pictures_and_right_for_known_errors() {
    let dir = tempfile::tempdir().unwrap();
    for (bits, most) in [(Bits::Eight, 255.0), (Bits::Sixteen, 65535.0)] {
        let mut canvas = PixelBuffer::create(dir.path(), 2, 2, bits).unwrap();
        let rect = Rect { x: 0, y: 0, width: 2, height: 2 };
        canvas.put(rect, &samples(rect, &[1.0; 12], bits).unwrap()).unwrap();
        let mut picture = Picture { width: 2, height: 2, bits: 8, samples: vec![1.0; 12] };
        assert_eq!(encode::psnr(&picture, &canvas), f64::INFINITY);
        // One of twelve samples is off by half of the range.
        picture.samples[5] = 0.0;
        let expected = 10.0 * (4.0f64 * 12.0).log10();
        assert!((encode::psnr(&picture, &canvas) - expected).abs() < 1e-9);
        // What lies outside of the range is clamped, and halves go to the even sample.
        let values = [[-3.0, 9.0, (1.0 / most) as f32 * 126.0], [-1.0; 3], [-1.0; 3], [-1.0; 3]];
        canvas.put(rect, &samples(rect, &values.concat(), bits).unwrap()).unwrap();
        let first = &canvas.bytes()[..2 * bits.sample_len()];
        assert!(first[..bits.sample_len()].iter().all(|&b| b == 0));
        assert!(first[bits.sample_len()..].iter().all(|&b| b == 255));
    }
}

#[test]
fn latent_file_reads_back_what_was_written() {
    let model = model("net-a");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("latents.safetensors");
    let latents = random_latents(&model.arch, 53, 37, 2);
    let file = LatentFile { width: 53, height: 37, latents };
    file.write(&path, &model).unwrap();
    assert_eq!(LatentFile::read(&path, &model).unwrap(), file);
}

#[test]
fn overflow_is_an_error_and_not_a_picture() {
    let mut model = model("net-a");
    let mut weights = Weights::clone(&model.weights);
    let (name, mut param) = weights
        .iter()
        .find(|(name, _)| *name == "unet.enter.weight")
        .map(|(n, p)| (n.to_owned(), p.clone()))
        .unwrap();
    param.data.fill(f32::MAX);
    weights.insert(name, param);
    model.weights = Arc::new(weights);
    let plan = Plan::new(spec(&model, 1, TileSize::Whole, Bits::Eight), &model.arch).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut ops = Cpu::new(model.weights.clone());
    let mut silent = |_: Event| {};
    let outcome =
        engine::generate(&mut ops, &model, &plan, dir.path(), &mut silent, &Cancel::default());
    let error = outcome.err().unwrap();
    assert_eq!(error.kind(), Kind::InvalidModel);
    assert!(error.to_string().contains("overflow"), "{error}");
}
