//! Several devices of one server: they share its queue, and when one stops to respond the others take over its jobs.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use tessera::{
    engine::{
        device::Choice,
        plan::{Spec, TileSize},
    },
    error::Kind,
    image_out::Bits,
    jobs::{DeviceFault, Job, Jobs, Models, Order, Phase, Settings, record::Event},
};

use crate::common::{
    engine::generate,
    gpu::any_adapter,
    jobs::{request, settings},
    model,
};

/// Units of a job of [`spec`]: steps, global stage, tiles.
const UNITS: u64 = 4 + 1 + 6;

fn spec(seed: u64) -> Spec {
    let spec = Spec::new(&model("net-a").arch, seed);
    let tile = TileSize::Pixels(64);
    Spec { width: 192, height: 128, steps: 4.into(), tile, bits: Bits::Eight, ..spec }
}

fn open(directory: &Path, devices: Vec<Choice>, fault: Option<DeviceFault>) -> Jobs {
    let settings = Settings { fault, active: 1, ..settings(directory, devices) };
    Jobs::open(settings, Models::new(vec![Arc::new(model("net-a"))]).unwrap()).unwrap()
}

fn create(jobs: &Jobs, spec: Spec) -> Arc<Job> {
    jobs.create(request(jobs, spec)).unwrap()
}

/// Blocks until `is_so` holds.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < Duration::from_secs(60), "{what}: not after a minute");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Samples of the whole picture.
fn samples(job: &Job) -> Vec<u8> {
    let Spec { width, height, .. } = job.plan.spec;
    job.read(tessera::geometry::Rect { x: 0, y: 0, width, height }).unwrap()
}

/// Descriptions of the devices that have begun with the job, in order; checks that its events announce each tile once.
fn started(job: &Job) -> Vec<String> {
    let (mut devices, mut tiles) = (Vec::new(), BTreeMap::new());
    for (_, record) in job.events_after(0, usize::MAX) {
        match record.event {
            Event::Started { device } => devices.push(device),
            Event::Tile { index, .. } => *tiles.entry(index).or_insert(0) += 1,
            _ => {}
        }
    }
    assert!(tiles.values().all(|&times| times == 1), "{tiles:?}");
    devices
}

/// Two devices work at a time, each on a job of its own, where one would finish the first job first.
#[test]
fn jobs_spread_over_devices() {
    for devices in [1, 2] {
        let dir = tempfile::tempdir().unwrap();
        let jobs = open(dir.path(), vec![Choice::Cpu; devices], None);
        let all = [1, 2].map(|seed| create(&jobs, Spec { steps: 1000.into(), ..spec(seed) }));
        let steps = || all.each_ref().map(|job| job.snapshot().steps_done);
        match devices {
            1 => {
                until("the first job goes on", || steps()[0] > 20);
                assert_eq!(steps()[1], 0);
            }
            _ => until("both jobs go on", || steps().iter().all(|&steps| steps > 0)),
        }
        for job in &all {
            jobs.cancel(&job.id).unwrap();
            until("the job ends", || job.snapshot().phase.is_last());
        }
    }
}

/// A device that fails at any unit of its first two jobs hands them back: the other one ends them with the bytes of a picture
/// that was left alone, no tile is announced twice, and the server stays healthy.
#[test]
fn jobs_of_a_device_that_fails_go_on_on_the_others() {
    let pictures: Vec<_> = (0..3).map(|seed| generate(&model("net-a"), spec(seed))).collect();
    let mut moved = 0;
    for after in 0..2 * UNITS {
        let dir = tempfile::tempdir().unwrap();
        let fault = Some(DeviceFault { device: 0, after });
        let jobs = open(dir.path(), vec![Choice::Cpu; 2], fault);
        let all: Vec<_> = (0..3).map(|seed| create(&jobs, spec(seed))).collect();
        until("all jobs end", || all.iter().all(|job| job.snapshot().phase.is_last()));
        for (job, picture) in all.iter().zip(&pictures) {
            let end = job.snapshot();
            assert_eq!(end.phase, Phase::Finished, "after {after}: {:?}", end.error);
            assert!(samples(job) == *picture, "after {after}: other bytes");
            moved += started(job).len() - 1;
        }
        assert!(jobs.is_healthy() && jobs.devices() >= 1, "after {after}");
    }
    assert!(moved as u64 >= UNITS, "{moved} jobs were handed back");
}

/// A job of a GPU that fails goes on on the CPU.
#[test]
fn jobs_of_a_gpu_that_fails_go_on_on_the_cpu() {
    let Some(_adapter) = any_adapter() else { return };
    let dir = tempfile::tempdir().unwrap();
    let fault = Some(DeviceFault { device: 0, after: 3 });
    let jobs = open(dir.path(), vec![Choice::Gpu(None), Choice::Cpu], fault);
    // Enough for the GPU to begin with one.
    let all: Vec<_> = (0..40).map(|seed| create(&jobs, spec(seed))).collect();
    until("all jobs end", || all.iter().all(|job| job.snapshot().phase.is_last()));
    let moved: Vec<_> = all.iter().filter(|job| started(job).len() == 2).collect();
    assert_eq!(moved.len(), 1);
    let devices = started(moved[0]);
    assert!(devices[0].contains("Vulkan") && devices[1].starts_with("CPU"), "{devices:?}");
    let wanted = generate(&model("net-a"), moved[0].plan.spec.clone());
    let found = samples(moved[0]);
    // Devices differ by rounding.
    assert!(found.iter().zip(&wanted).all(|(a, b)| a.abs_diff(*b) <= 1));
    assert!(all.iter().all(|job| job.snapshot().phase == Phase::Finished));
}

/// The last device is not taken off: its job fails with the reason, and the server says that it is not healthy.
#[test]
fn the_last_device_that_fails_is_an_error_of_its_job() {
    let dir = tempfile::tempdir().unwrap();
    let jobs = open(dir.path(), vec![Choice::Cpu], Some(DeviceFault { device: 0, after: 2 }));
    let job = create(&jobs, spec(1));
    until("the job ends", || job.snapshot().phase.is_last());
    let end = job.snapshot();
    assert_eq!(end.phase, Phase::Failed);
    let (kind, message) = end.error.unwrap();
    assert_eq!(kind, Kind::Device);
    assert!(message.contains("was made to fail"), "{message}");
    assert!(!jobs.is_healthy() && jobs.devices() == 0);
    assert_eq!(jobs.list(None, Order::OldestFirst, "", 10).len(), 1);
}
