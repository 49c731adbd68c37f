//! What the fuzzers call, and `tests/fuzz.rs` with bytes of its own: hostile bytes in, no panic, errors of a kind that
//! blames the bytes. Whatever is accepted must be of use.

use std::{
    path::Path,
    sync::{Arc, LazyLock},
};

use prost::Message as _;
use tessera::{
    api::CreateJobRequest,
    error::{Error, Kind},
    jobs::{self, Models, files::JobDirectory, record::Record},
    model::checkpoint::Checkpoint,
    service,
    store::journal,
};

/// The tiny model that requests are checked against.
static MODELS: LazyLock<Models> = LazyLock::new(|| {
    let bytes = include_bytes!("../tests/fixtures/net-a.safetensors");
    let model = Checkpoint::from_bytes(bytes).expect("the model of the tests");
    Models::new(vec![Arc::new(model)]).expect("one model")
});

/// An order as it comes over the wire, up to the plan of its picture. True: it was accepted.
pub(crate) fn request(bytes: &[u8]) -> bool {
    let Ok(message) = CreateJobRequest::decode(bytes) else { return false };
    let checked =
        service::request(message, String::new(), &MODELS).and_then(|request| request.plan());
    match checked {
        Ok(plan) => {
            assert!(plan.picture_bytes > 0 && plan.flops > 0 && !plan.tiling.tiles.is_empty());
            true
        }
        Err(error) => {
            blames_the_client(&error);
            false
        }
    }
}

/// A journal's file, and the job that it tells of. True: there is one.
pub(crate) fn journal(bytes: &[u8]) -> bool {
    let Some((records, len)) = journal::scan(bytes) else { return false };
    assert!(len <= bytes.len() && records.iter().map(Vec::len).sum::<usize>() <= len);
    // What was read is read again from what is left of it.
    assert_eq!(journal::scan(&bytes[..len]), Some((records.clone(), len)));
    recover(&records)
}

/// Records of a journal, a line each, as if their checksums were right. True: they tell of a job.
pub(crate) fn records(bytes: &[u8]) -> bool {
    let lines: Vec<_> = bytes.split(|&byte| byte == b'\n').map(<[u8]>::to_vec).collect();
    recover(&lines)
}

fn recover(records: &[Vec<u8>]) -> bool {
    let records: Result<Vec<_>, _> =
        records.iter().map(|bytes| Record::from_bytes(bytes)).collect();
    let directory = JobDirectory::new(Path::new("nowhere"), "0");
    let job = records.and_then(|records| {
        let count = records.len();
        jobs::recover(directory, "0", records, &MODELS).map(|job| (job, count))
    });
    match job {
        Ok((job, count)) => {
            let now = job.snapshot();
            assert_eq!(now.sequence, count as u64);
            assert!(now.tiles_done <= job.plan.tiling.tiles.len());
            assert_eq!(job.events_after(0, usize::MAX).len(), count);
            for (_, record) in job.events_after(0, usize::MAX) {
                jobs::record::from_ms(record.time_ms);
            }
            let read = job.newest_preview().and_then(|level| job.preview(level));
            assert!(read.is_err(), "there are no files");
            true
        }
        Err(error) => {
            blames_the_client(&error);
            false
        }
    }
}

fn blames_the_client(error: &Error) {
    assert!(
        matches!(error.kind(), Kind::InvalidArgument | Kind::NotFound),
        "{:?}: {error}",
        error.kind()
    );
    assert!(!error.to_string().is_empty());
}
