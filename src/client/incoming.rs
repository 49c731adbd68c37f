//! A picture that is read while its tiles arrive: readers block until their area is complete.
//!
//! Completion, failure and cancellation wake all readers, so no reader blocks forever.

use std::{
    path::Path,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
};

use crate::{
    api::{ImageFormat, Job, Tile},
    engine::{
        plan::{MAX_EXTENT, MAX_TILE, MIN_TILE, Rect},
        tiles::PixelBuffer,
    },
    error::{Error, Expected, Kind, Result},
    image_out::{Bits, Metadata, PixelSource, RawPixels},
};

/// Validated size and tiling of a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    width: usize,
    height: usize,
    bits: Bits,
    /// Side of a tile in pixels.
    side: usize,
}

impl Layout {
    /// The layout of a job.
    ///
    /// # Errors
    /// [`Kind::Internal`] naming the invalid field of the server's response.
    pub(super) fn of(job: &Job) -> Result<Self> {
        let refused = |field: &'static str, value: u32, expected: Expected| {
            Error::wrong(Kind::Internal, field, value, expected)
        };
        let spec = job.spec.clone().unwrap_or_default();
        for (field, value) in [("width", spec.width), ("height", spec.height)] {
            if !(1..=MAX_EXTENT).contains(&(value as usize)) {
                return Err(refused(field, value, Expected::within(1..=MAX_EXTENT)));
            }
        }
        let side = spec.tile_size as usize;
        if !(MIN_TILE..=MAX_TILE).contains(&side) {
            return Err(refused(
                "tile_size",
                spec.tile_size,
                Expected::within(MIN_TILE..=MAX_TILE),
            ));
        }
        let bits = match spec.bits {
            8 => Bits::Eight,
            16 => Bits::Sixteen,
            other => return Err(refused("bits", other, "8 or 16".into())),
        };
        let layout = Self { width: spec.width as usize, height: spec.height as usize, bits, side };
        for (field, value, expected) in [
            ("tile_columns", job.tile_columns, layout.columns()),
            ("tile_rows", job.tile_rows, layout.rows()),
        ] {
            if value as usize != expected {
                return Err(refused(field, value, expected.to_string().into()));
            }
        }
        Ok(layout)
    }

    fn columns(self) -> usize {
        self.width.div_ceil(self.side)
    }

    fn rows(self) -> usize {
        self.height.div_ceil(self.side)
    }

    /// Rectangle of an existing tile.
    fn rect(self, column: usize, row: usize) -> Rect {
        let (x, y) = (column * self.side, row * self.side);
        let (width, height) = (self.side.min(self.width - x), self.side.min(self.height - y));
        Rect { x, y, width, height }
    }

    /// Checks the position, rectangle and format of a tile and returns its index.
    ///
    /// # Errors
    /// [`Kind::Internal`]: a repeated request would not help.
    pub(super) fn index(self, tile: &Tile) -> Result<usize> {
        let refused = |part: &str, expected: &'static str| {
            let (column, row) = (tile.column, tile.row);
            let field = format!("{part} of the server's tile in column {column}, row {row}");
            Err(Error::wrong(Kind::Internal, field, "wrong", expected))
        };
        let (column, row) = (tile.column as usize, tile.row as usize);
        if column >= self.columns() || row >= self.rows() || tile.level != 0 {
            return refused("place", "a tile of the picture");
        }
        let expected = self.rect(column, row);
        let rect = tile.rect.unwrap_or_default();
        let found = [rect.x, rect.y, rect.width, rect.height].map(|v| v as usize);
        if found != [expected.x, expected.y, expected.width, expected.height] {
            return refused("rectangle", "the pixels of the tile");
        }
        if tile.format() != ImageFormat::Raw {
            return refused("format", "raw samples");
        }
        Ok(row * self.columns() + column)
    }

    /// Checks the length and checksum of a tile.
    ///
    /// # Errors
    /// [`Kind::Io`] if they do not match.
    pub(super) fn check(self, tile: &Tile) -> Result<()> {
        let damaged = |part: &str, found: usize, expected: usize| {
            let (column, row) = (tile.column, tile.row);
            let field = format!("{part} of the received tile in column {column}, row {row}");
            Err(Error::wrong(Kind::Io, field, found, expected.to_string()))
        };
        let rect = self.rect(tile.column as usize, tile.row as usize);
        let expected = rect.width * rect.height * self.bits.pixel_len();
        if tile.data.len() != expected {
            return damaged("length", tile.data.len(), expected);
        }
        let crc32c = crc32c::crc32c(&tile.data);
        if crc32c != tile.crc32c {
            return damaged("CRC32C", crc32c as usize, tile.crc32c as usize);
        }
        Ok(())
    }
}

/// The picture. One thread adds tiles, others read.
pub(super) struct Incoming {
    layout: Layout,
    state: Mutex<State>,
    /// Notified of every change of the state.
    changed: Condvar,
}

struct State {
    canvas: PixelBuffer,
    /// True for each received tile, row by row.
    there: Vec<bool>,
    missing: usize,
    metadata: Option<Metadata>,
    /// The error that ended the transfer.
    failure: Option<Error>,
}

impl State {
    fn check(&self) -> Result<()> {
        match &self.failure {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }
}

impl Incoming {
    /// Allocates the whole picture in an unnamed file in `dir`.
    ///
    /// # Errors
    /// [`Kind::Io`] if the disk is full.
    pub(super) fn new(dir: &Path, layout: Layout) -> Result<Self> {
        let canvas = PixelBuffer::create(dir, layout.width, layout.height, layout.bits)?;
        let missing = layout.columns() * layout.rows();
        let there = vec![false; missing];
        let state = State { canvas, there, missing, metadata: None, failure: None };
        Ok(Self { layout, state: Mutex::new(state), changed: Condvar::new() })
    }

    /// Adds the checked tile `index`.
    ///
    /// # Errors
    /// [`Kind::Internal`] if its size is wrong.
    pub(super) fn put(&self, index: usize, mut samples: Vec<u8>) -> Result<()> {
        if cfg!(target_endian = "big") && self.layout.bits == Bits::Sixteen {
            samples.as_chunks_mut::<2>().0.iter_mut().for_each(|sample| sample.reverse());
        }
        let columns = self.layout.columns();
        let rect = self.layout.rect(index % columns, index / columns);
        let mut state = self.state();
        state.canvas.put(rect, &samples)?;
        if !std::mem::replace(&mut state.there[index], true) {
            state.missing -= 1;
        }
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// Completes the picture with its metadata.
    ///
    /// # Errors
    /// [`Kind::Internal`] if a tile is missing.
    pub(super) fn finish(&self, metadata: Metadata) -> Result<()> {
        let mut state = self.state();
        if state.missing > 0 {
            let field = "missing tiles of the finished job";
            return Err(Error::wrong(Kind::Internal, field, state.missing, "0"));
        }
        state.metadata = Some(metadata);
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// Ends the transfer: pending and later reads return the first `error`.
    pub(super) fn fail(&self, error: Error) {
        self.state().failure.get_or_insert(error);
        self.changed.notify_all();
    }

    /// The metadata; blocks until the picture is complete.
    ///
    /// # Errors
    /// The error of [`Incoming::fail`].
    pub(super) fn metadata(&self) -> Result<Metadata> {
        let mut state = self.state();
        loop {
            state.check()?;
            if let Some(metadata) = &state.metadata {
                return Ok(metadata.clone());
            }
            state = self.wait(state);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A tile is marked after its samples are stored, so the state is consistent after a panic elsewhere.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// True if every tile that intersects `area` is received.
    fn covered(&self, state: &State, area: Rect) -> bool {
        let side = self.layout.side;
        let span = |start: usize, len: usize| start / side..(start + len).div_ceil(side);
        span(area.y, area.height).all(|row| {
            let tiles = &state.there[row * self.layout.columns()..][..self.layout.columns()];
            tiles[span(area.x, area.width)].iter().all(|&there| there)
        })
    }
}

impl PixelSource for Incoming {
    fn width(&self) -> u32 {
        self.layout.width as u32
    }

    fn height(&self) -> u32 {
        self.layout.height as u32
    }

    fn bits(&self) -> Bits {
        self.layout.bits
    }

    fn read(&self, area: Rect, buffer: &mut [u8]) -> Result<()> {
        let mut state = self.state();
        loop {
            state.check()?;
            if self.covered(&state, area) {
                break;
            }
            state = self.wait(state);
        }
        RawPixels::new(state.canvas.bytes(), self.width(), self.height(), self.bits())?
            .read(area, buffer)
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, thread, time::Duration};

    use super::*;
    use crate::api::JobSpec;

    fn job() -> Job {
        let spec = JobSpec { width: 100, height: 70, tile_size: 64, bits: 8, ..JobSpec::default() };
        Job { spec: Some(spec), tile_columns: 2, tile_rows: 2, ..Job::default() }
    }

    fn incoming() -> Result<Incoming> {
        Incoming::new(&std::env::temp_dir(), Layout::of(&job())?)
    }

    #[test]
    fn readers_wait_for_the_tiles_of_their_area_only() -> Result<()> {
        let incoming = Arc::new(incoming()?);
        let reader = incoming.clone();
        // Across the first two tiles.
        let area = Rect { x: 63, y: 10, width: 2, height: 1 };
        let reader = thread::spawn(move || {
            let mut buffer = [0; 6];
            reader.read(area, &mut buffer).map(|()| buffer)
        });
        incoming.put(0, vec![1; 64 * 64 * 3])?;
        thread::sleep(Duration::from_millis(30));
        assert!(!reader.is_finished());
        incoming.put(1, vec![2; 36 * 64 * 3])?;
        let read = reader.join().map_err(|_| Error::internal("a reader panicked"))??;
        assert_eq!(read, [1, 1, 1, 2, 2, 2]);
        Ok(())
    }

    #[test]
    fn failures_wake_readers_and_missing_tiles_prevent_completion() -> Result<()> {
        let incoming = Arc::new(incoming()?);
        let (reader, writer) = (incoming.clone(), incoming.clone());
        let area = Rect { x: 0, y: 0, width: 1, height: 1 };
        let reader = thread::spawn(move || reader.read(area, &mut [0; 3]).map_err(|e| e.kind()));
        let writer = thread::spawn(move || writer.metadata().map_err(|e| e.kind()));
        let metadata =
            Metadata { description: String::new(), created: None, receipt: serde_json::Map::new() };
        let missing = incoming.finish(metadata).err().map(|e| e.detail().fields());
        assert_eq!(missing.map(|fields| fields["value"].clone()), Some("4".into()));
        incoming.fail(Error::expired("the job", None));
        incoming.fail(Error::cancelled("the job"));
        assert!(matches!(reader.join(), Ok(Err(Kind::Expired))));
        assert!(matches!(writer.join(), Ok(Err(Kind::Expired))));
        Ok(())
    }

    #[test]
    fn invalid_layouts_are_rejected_before_allocation() {
        type Change = fn(&mut Job);
        let changes: [(&str, Change); 5] = [
            ("width", |job| job.spec = None),
            ("height", |job| set(job, |spec| spec.height = 1 << 30)),
            ("tile_size", |job| set(job, |spec| spec.tile_size = 0)),
            ("bits", |job| set(job, |spec| spec.bits = 12)),
            ("tile_rows", |job| job.tile_rows = 3),
        ];
        fn set(job: &mut Job, change: fn(&mut JobSpec)) {
            job.spec.as_mut().map(change).unwrap_or_default();
        }
        for (field, change) in changes {
            let mut job = job();
            change(&mut job);
            let error = Layout::of(&job).err();
            assert_eq!(error.as_ref().and_then(Error::field), Some(field));
        }
    }
}
