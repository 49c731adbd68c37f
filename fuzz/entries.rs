//! What the fuzzers call, and `tests/fuzz.rs` with bytes of its own: hostile bytes in, no panic, errors of a kind that
//! blames the bytes. Whatever is accepted must be of use.

use std::{
    io::Cursor,
    path::Path,
    sync::{Arc, LazyLock},
};

use prost::Message as _;
use tessera::{
    api::{CreateJobRequest, EditPictureRequest, edit_picture_request::Part},
    error::{Error, Kind},
    image_in::{self, Limits},
    jobs::{self, Models, Receiving, files::JobDirectory, record::Record},
    model::checkpoint::Checkpoint,
    service,
    store::{DirectoryLock, Disk, journal},
};

/// The tiny model that requests are checked against.
static MODELS: LazyLock<Models> = LazyLock::new(|| {
    let bytes = include_bytes!("../tests/fixtures/net-a.safetensors");
    let model = Checkpoint::from_bytes(bytes).expect("the model of the tests");
    Models::new(vec![Arc::new(model)]).expect("one model")
});

/// A disk without jobs.
static DISK: LazyLock<Arc<dyn Disk>> = LazyLock::new(|| {
    let directory = std::env::temp_dir().join(format!("tessera-fuzz-{}", std::process::id()));
    Arc::new(DirectoryLock::acquire(&directory).expect("a directory of this process"))
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
    let directory = JobDirectory::new(DISK.clone(), Path::new("nowhere"), "0");
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

/// A file that is said to be a picture. True: it is one.
pub(crate) fn picture(bytes: &[u8]) -> bool {
    match image_in::decode(Cursor::new(bytes), Limits { side: 4096, pixels: 1 << 16 }) {
        Ok(photo) => {
            let picture = photo.picture;
            let pixels = picture.width as usize * picture.height as usize;
            assert_eq!(picture.samples.len(), 3 * pixels);
            assert!(picture.samples.iter().all(|v| (-1.0..=1.0).contains(v)));
            true
        }
        Err(error) => {
            assert_eq!(error.kind(), Kind::InvalidImage, "{error}");
            false
        }
    }
}

/// A file that is said to be a checkpoint. True: it is one.
pub(crate) fn checkpoint(bytes: &[u8]) -> bool {
    match Checkpoint::from_bytes(bytes) {
        Ok(model) => {
            assert!(model.weights.iter().all(|(_, p)| p.data.iter().all(|v| v.is_finite())));
            true
        }
        Err(error) => {
            assert_eq!(error.kind(), Kind::InvalidModel, "{error}");
            false
        }
    }
}

/// The messages of an upload, each after its length: the order, then parts of a picture's file. True: it was accepted.
pub(crate) fn upload(mut bytes: &[u8]) -> bool {
    let mut messages = Vec::new();
    while !bytes.is_empty() {
        match EditPictureRequest::decode_length_delimited(&mut bytes) {
            Ok(message) => messages.push(message.part),
            Err(_) => return false,
        }
    }
    let mut messages = messages.into_iter();
    let Some(Some(Part::Job(order))) = messages.next() else { return false };
    if let Err(error) = service::request(order, String::new(), &MODELS) {
        blames_the_client(&error);
        return false;
    }
    let folder = std::env::temp_dir();
    let mut receiving = Receiving::create(&folder).expect("a file for the upload");
    for part in messages {
        let Some(Part::Data(data)) = part else { return false };
        receiving.write(&data).expect("room for a small picture");
    }
    match receiving.finish() {
        Ok(upload) => {
            assert!(upload.size().0 > 0 && upload.size().1 > 0 && upload.sha256().len() == 64);
            true
        }
        Err(error) => {
            assert_eq!(error.kind(), Kind::InvalidImage, "{error}");
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
