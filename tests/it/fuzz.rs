//! The fuzzers' entry functions, driven on a stable toolchain by seeded changes of valid bytes: nothing panics, every error
//! is of a kind that blames the bytes, and enough gets through to reach what lies behind the parsers.
//!
//! TESSERA_FUZZ_CASES is the number of changed inputs for every entry function, TESSERA_FUZZ_SEED their seed.

#[path = "../../fuzz/entries.rs"]
mod entries;

use prost::Message as _;
use tessera::{
    api::{CreateJobRequest, EditPictureRequest, JobSpec, Rect, edit_picture_request::Part},
    engine::plan::Spec,
    error::Kind,
    jobs::record::{Event, JobRequest, Record, StoredSpec},
    model::arch::Arch,
    store::{DirectoryLock, Journal},
};

use crate::common::model;

/// The number in the environment variable `name`, or `default`.
fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// SplitMix64 (Steele et al. 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    /// Start and end of a part of `len` bytes.
    fn part(&mut self, len: usize) -> std::ops::Range<usize> {
        let start = self.below(len + 1);
        start..start + self.below((len - start).min(24) + 1)
    }
}

/// Texts that are often too much for somebody.
const NASTY: [&[u8]; 10] = [
    b"-1",
    b"0",
    b"18446744073709551616",
    b"1e999",
    b"null",
    b"\"",
    b"{}",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    b"\x00",
    b"../../etc/passwd",
];

/// One of `seeds`, changed in a few places.
fn changed(seeds: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut bytes = seeds[random.below(seeds.len())].clone();
    for _ in 0..=random.below(3) {
        let part = random.part(bytes.len());
        match random.below(6) {
            0 if !bytes.is_empty() => {
                let at = random.below(bytes.len());
                bytes[at] ^= 1 << random.below(8);
            }
            1 if !bytes.is_empty() => {
                let at = random.below(bytes.len());
                bytes[at] = random.next() as u8;
            }
            2 => drop(bytes.drain(part)),
            3 => {
                let again = bytes[part.clone()].to_vec();
                bytes.splice(part.start..part.start, again);
            }
            4 => drop(bytes.splice(part, NASTY[random.below(NASTY.len())].to_vec())),
            _ => {
                let other = &seeds[random.below(seeds.len())];
                let from = random.part(other.len());
                bytes.splice(part, other[from].to_vec());
            }
        }
    }
    bytes
}

/// Every seed is accepted, as are some changed ones, and others are not.
fn drive(seeds: &[Vec<u8>], entry: fn(&[u8]) -> bool) {
    assert!(seeds.iter().all(|seed| entry(seed)), "the seeds are valid");
    let cases = setting("TESSERA_FUZZ_CASES", 4000);
    let mut random = Random(setting("TESSERA_FUZZ_SEED", 11));
    let accepted = (0..cases).filter(|_| entry(&changed(seeds, &mut random))).count() as u64;
    println!("{accepted} of {cases} were accepted");
    assert!((cases / 50..cases).contains(&accepted), "{accepted} of {cases} were accepted");
}

fn arch() -> Arch {
    model("net-a").arch
}

fn requests() -> Vec<Vec<u8>> {
    let spec = |width, height| JobSpec { seed: 7, width, height, steps: 3, ..JobSpec::default() };
    let all = [
        CreateJobRequest::default(),
        CreateJobRequest { spec: Some(spec(64, 32)), ..Default::default() },
        CreateJobRequest {
            spec: Some(JobSpec {
                model: "models/net-a".into(),
                sampler: 2,
                tile_size: 64,
                bits: 16,
                ..spec(96, 64)
            }),
            request_id: "ä".repeat(128),
            deadline: Some(prost_types::Timestamp { seconds: 1 << 33, nanos: 5 }),
            viewport: Some(Rect { x: 10, y: 20, width: 30, height: 40 }),
        },
    ];
    all.iter().map(CreateJobRequest::encode_to_vec).collect()
}

/// Records of a queued job, a finished one, and one that failed.
fn jobs() -> Vec<Vec<Vec<u8>>> {
    let mut spec = Spec::new(&arch(), u64::MAX);
    (spec.width, spec.height, spec.steps) = (96, 64, 2.into());
    let order = JobRequest {
        spec: StoredSpec::from(&spec),
        model_sha256: "0".repeat(64),
        request_id: "mine".into(),
        deadline_ms: Some(1 << 42),
        owner: String::new(),
        source_sha256: None,
        attribution: Default::default(),
        notices: vec!["read".into()],
        viewport: None,
    };
    let queued = || Event::Queued { request: order.clone(), compute_us: 12, latent_values: 900 };
    let started = || Event::Started { device: "CPU".into() };
    let step = |step| Event::Step { step, of: 2, sigma: 0.5, slot: step % 2, crc32c: 7 };
    let settled = |level| Event::Settled { level, rows: 4, columns: 6, pictured: level == 0 };
    let finished = Event::Finished { receipt: "{}".into(), description: "a picture".into() };
    let failed = Event::Failed { kind: Kind::Expired, message: "late".into() };
    let tile = Event::Tile { index: 0, crc32c: 9 };
    let jobs = [
        vec![queued()],
        vec![queued(), started(), step(1), settled(1), step(2), settled(0), tile, finished],
        vec![queued(), started(), failed],
        vec![queued(), Event::Cancelled],
    ];
    let bytes = |event| Record::now(event).to_bytes().unwrap();
    jobs.into_iter().map(|events| events.into_iter().map(bytes).collect()).collect()
}

/// Small pictures of every format and variant, by file name.
fn pictures() -> Vec<Vec<u8>> {
    let folder =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pictures/small");
    let mut paths: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() > 10, "there are pictures");
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

#[test]
fn pictures_are_read_without_a_panic() {
    drive(&pictures(), entries::picture);
}

#[test]
fn uploads_are_received_without_a_panic() {
    let order = CreateJobRequest {
        spec: Some(JobSpec { seed: 7, steps: 3, ..JobSpec::default() }),
        ..Default::default()
    };
    let upload = |picture: &Vec<u8>| {
        let parts = picture.chunks(300).map(|part| Part::Data(part.to_vec()));
        let parts = std::iter::once(Part::Job(order.clone())).chain(parts);
        parts
            .flat_map(|part| {
                EditPictureRequest { part: Some(part) }.encode_length_delimited_to_vec()
            })
            .collect()
    };
    let uploads: Vec<_> = pictures().iter().map(upload).collect();
    drive(&uploads, entries::upload);
}

#[test]
fn checkpoints_are_read_without_a_panic() {
    let whole = std::fs::read(crate::common::fixture("net-c.safetensors")).unwrap();
    drive(&[whole], entries::checkpoint);
}

#[test]
fn orders_are_checked_without_a_panic() {
    drive(&requests(), entries::request);
}

#[test]
fn records_of_a_journal_are_read_without_a_panic() {
    let seeds: Vec<_> = jobs().iter().map(|records| records.join(&b'\n')).collect();
    drive(&seeds, entries::records);
}

#[test]
fn journals_are_read_without_a_panic() {
    let dir = tempfile::tempdir().unwrap();
    let disk = DirectoryLock::acquire(dir.path()).unwrap();
    let file = |records: Vec<Vec<u8>>| {
        let path = dir.path().join("journal");
        Journal::create(&disk, &path).unwrap().append(&records).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        bytes
    };
    let seeds: Vec<_> = jobs().into_iter().map(file).collect();
    drive(&seeds, entries::journal);
}
