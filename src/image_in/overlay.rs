//! A source some of whose bytes are replaced on the way.

use std::io::{BufRead, Read, Result, Seek, SeekFrom};

/// A source that reads as `inner` with some bytes replaced.
#[derive(Debug)]
pub(super) struct Overlay<R> {
    inner: R,
    at: u64,
    /// Offsets and the bytes that stand there.
    replaced: Vec<(u64, [u8; 2])>,
}

impl<R: Read + Seek> Overlay<R> {
    /// `inner`, which is at its start, with nothing replaced.
    pub(super) fn new(inner: R) -> Self {
        Self { inner, at: 0, replaced: Vec::new() }
    }

    /// Reads `bytes` in place of those from `offset` on.
    pub(super) fn replace(&mut self, offset: u64, bytes: [u8; 2]) {
        self.replaced.push((offset, bytes));
    }
}

impl<R: Read> Read for Overlay<R> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let count = self.inner.read(buffer)?;
        for (offset, bytes) in &self.replaced {
            for (position, byte) in (*offset..).zip(bytes) {
                let place = position.checked_sub(self.at).filter(|&place| place < count as u64);
                if let Some(place) = place {
                    buffer[place as usize] = *byte;
                }
            }
        }
        self.at += count as u64;
        Ok(count)
    }
}

impl<R: BufRead + Seek> Seek for Overlay<R> {
    fn seek(&mut self, to: SeekFrom) -> Result<u64> {
        self.at = self.inner.seek(to)?;
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    #[test]
    fn bytes_are_replaced_wherever_reading_begins_and_ends() -> Result<()> {
        let whole = b"0123ab6789";
        for start in 0..10 {
            for len in 0..=10 - start {
                let mut source = Overlay::new(Cursor::new(b"0123456789"));
                source.replace(4, *b"ab");
                source.seek(SeekFrom::Start(start as u64))?;
                let mut read = vec![0; len];
                source.read_exact(&mut read)?;
                assert_eq!(read, whole[start..start + len]);
            }
        }
        Ok(())
    }
}
