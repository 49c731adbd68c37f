//! The layout of Cloud Optimized GeoTIFF: all directories first, then the tiles of the smallest overview, and those of the
//! picture last. A reader gets the whole structure by one request for the beginning of the file, and each tile by one more.
//!
//! A file that the writer of TIFF has made is copied in this order. Tags and tiles keep their bytes, except the offsets.

use std::io::{self, Read, Seek, SeekFrom, Write};

/// Tags of the offsets and of the lengths of tiles (TIFF 6.0, section 15).
const TILE_OFFSETS: u16 = 324;
const TILE_BYTE_COUNTS: u16 = 325;

/// Sizes of the parts of a classic TIFF or a BigTIFF.
#[derive(Clone, Copy)]
struct Kind {
    /// Bytes of the header, before the first directory.
    header: u64,
    /// Bytes of the number of entries of a directory.
    count: usize,
    /// Bytes of an offset, and of the number of values of an entry.
    word: usize,
}

const CLASSIC: Kind = Kind { header: 8, count: 2, word: 4 };
const BIG: Kind = Kind { header: 16, count: 8, word: 8 };

/// An entry of a directory, with its values.
struct Entry {
    tag: u16,
    kind: u16,
    count: u64,
    values: Vec<u8>,
}

/// A directory, and where its tiles are in the file that is read.
struct Directory {
    entries: Vec<Entry>,
    tiles: Vec<(u64, u64)>,
}

fn malformed(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Bytes of a value of a type (TIFF 6.0, p. 15; BigTIFF).
fn value_len(kind: u16) -> io::Result<u64> {
    match kind {
        1 | 2 | 6 | 7 => Ok(1),
        3 | 8 => Ok(2),
        4 | 9 | 11 | 13 => Ok(4),
        5 | 10 | 12 | 16 | 17 | 18 => Ok(8),
        _ => Err(malformed("a type of values")),
    }
}

/// An unsigned number of 2, 4 or 8 bytes in the machine's byte order, which is that of the files written here.
fn number(bytes: &[u8]) -> io::Result<u64> {
    let wrong = |_| malformed("a number");
    match bytes.len() {
        2 => bytes.try_into().map(u16::from_ne_bytes).map(u64::from).map_err(wrong),
        4 => bytes.try_into().map(u32::from_ne_bytes).map(u64::from).map_err(wrong),
        8 => bytes.try_into().map(u64::from_ne_bytes).map_err(wrong),
        _ => Err(malformed("a number")),
    }
}

/// Appends `value` in `len` bytes: 2, 4 or 8.
fn put(bytes: &mut Vec<u8>, value: u64, len: usize) -> io::Result<()> {
    let too_large = |_| malformed("an offset beyond the file's kind");
    match len {
        2 => bytes.extend(u16::try_from(value).map_err(too_large)?.to_ne_bytes()),
        4 => bytes.extend(u32::try_from(value).map_err(too_large)?.to_ne_bytes()),
        _ => bytes.extend(value.to_ne_bytes()),
    }
    Ok(())
}

/// `len` bytes from `offset` on.
fn read_at(file: &mut (impl Read + Seek), offset: u64, len: u64) -> io::Result<Vec<u8>> {
    file.seek(SeekFrom::Start(offset))?;
    let mut bytes = vec![0; usize::try_from(len).map_err(|_| malformed("a length"))?];
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// `length` rounded up to even: values and tiles begin at even offsets (TIFF 6.0, p. 15).
const fn even(length: u64) -> u64 {
    length.next_multiple_of(2)
}

impl Entry {
    /// The numbers of the entry, of the types SHORT, LONG or LONG8.
    fn numbers(&self) -> io::Result<Vec<u64>> {
        let len = value_len(self.kind)? as usize;
        self.values.chunks_exact(len).map(number).collect()
    }
}

impl Directory {
    /// Reads the directory at `offset`; the second value is the offset of the next one, or 0.
    fn read(file: &mut (impl Read + Seek), kind: Kind, offset: u64) -> io::Result<(Self, u64)> {
        let Kind { count, word, .. } = kind;
        let entries = number(&read_at(file, offset, count as u64)?)?;
        let entry_len = 4 + 2 * word;
        let bytes = read_at(file, offset + count as u64, entries * entry_len as u64 + word as u64)?;
        let (table, next) = bytes.split_at(bytes.len() - word);
        let entry = |bytes: &[u8]| {
            let (tag, kind) = (number(&bytes[..2])? as u16, number(&bytes[2..4])? as u16);
            let count = number(&bytes[4..4 + word])?;
            let len = count.checked_mul(value_len(kind)?).ok_or_else(|| malformed("a count"))?;
            let field = &bytes[4 + word..];
            let values = match len <= word as u64 {
                true => field[..len as usize].to_vec(),
                false => read_at(file, number(field)?, len)?,
            };
            Ok(Entry { tag, kind, count, values })
        };
        let entries: Vec<_> =
            table.chunks_exact(entry_len).map(entry).collect::<io::Result<_>>()?;
        let numbers = |tag| match entries.iter().find(|entry| entry.tag == tag) {
            Some(entry) => entry.numbers(),
            None => Err(malformed("a directory without tiles")),
        };
        let tiles = numbers(TILE_OFFSETS)?.into_iter().zip(numbers(TILE_BYTE_COUNTS)?).collect();
        Ok((Self { entries, tiles }, number(next)?))
    }

    /// Bytes of the directory and of the values after it.
    fn len(&self, kind: Kind) -> u64 {
        let Kind { count, word, .. } = kind;
        let outside = |entry: &&Entry| entry.values.len() > word;
        let values =
            self.entries.iter().filter(outside).map(|entry| even(entry.values.len() as u64));
        even((count + self.entries.len() * (4 + 2 * word) + word) as u64) + values.sum::<u64>()
    }

    /// The bytes of the directory at `offset` and of its values, with `next` as the offset of the next one.
    fn to_bytes(&self, kind: Kind, offset: u64, next: u64) -> io::Result<Vec<u8>> {
        let Kind { count, word, .. } = kind;
        let (mut table, mut values) = (Vec::new(), Vec::new());
        let len = count + self.entries.len() * (4 + 2 * word) + word;
        let first = offset + even(len as u64);
        put(&mut table, self.entries.len() as u64, count)?;
        for entry in &self.entries {
            put(&mut table, entry.tag.into(), 2)?;
            put(&mut table, entry.kind.into(), 2)?;
            put(&mut table, entry.count, word)?;
            if entry.values.len() <= word {
                table.extend(&entry.values);
                table.resize(table.len() + word - entry.values.len(), 0);
            } else {
                put(&mut table, first + values.len() as u64, word)?;
                values.extend(&entry.values);
                values.resize(even(values.len() as u64) as usize, 0);
            }
        }
        put(&mut table, next, word)?;
        table.resize(even(len as u64) as usize, 0);
        table.append(&mut values);
        Ok(table)
    }

    /// Sets the offsets of the tiles.
    fn set_offsets(&mut self, offsets: &[u64]) -> io::Result<()> {
        for entry in self.entries.iter_mut().filter(|entry| entry.tag == TILE_OFFSETS) {
            let len = value_len(entry.kind)? as usize;
            entry.values.clear();
            offsets.iter().try_for_each(|&offset| put(&mut entry.values, offset, len))?;
        }
        Ok(())
    }
}

/// Copies the TIFF `from`, whose directories all have tiles, to `to` in the order of a Cloud Optimized GeoTIFF.
pub(super) fn rearrange(from: &mut (impl Read + Seek), to: &mut impl Write) -> io::Result<()> {
    let start = read_at(from, 0, CLASSIC.header)?;
    let (kind, start) = match number(&start[2..4])? {
        42 => (CLASSIC, start),
        43 => (BIG, read_at(from, 0, BIG.header)?),
        _ => return Err(malformed("the version of TIFF")),
    };
    let (fixed, first) = start.split_at(start.len() - kind.word);
    let mut directories = Vec::new();
    let mut next = number(first)?;
    while next != 0 {
        let (directory, after) = Directory::read(from, kind, next)?;
        directories.push(directory);
        next = after;
    }
    let lengths: Vec<_> = directories.iter().map(|directory| directory.len(kind)).collect();
    let mut end = kind.header + lengths.iter().sum::<u64>();
    for directory in directories.iter_mut().rev() {
        let place = |&(_, len): &(u64, u64)| {
            let offset = end;
            end += even(len);
            offset
        };
        let offsets: Vec<_> = directory.tiles.iter().map(place).collect();
        directory.set_offsets(&offsets)?;
    }
    let mut head = fixed.to_vec();
    put(&mut head, kind.header, kind.word)?;
    for (number, (directory, len)) in directories.iter().zip(&lengths).enumerate() {
        let offset = head.len() as u64;
        let next = if number + 1 < directories.len() { offset + len } else { 0 };
        head.extend(directory.to_bytes(kind, offset, next)?);
    }
    to.write_all(&head)?;
    for directory in directories.iter().rev() {
        for &(offset, len) in &directory.tiles {
            let mut tile = read_at(from, offset, len)?;
            tile.resize(even(len) as usize, 0);
            to.write_all(&tile)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Cursor};

    use super::*;
    use crate::{
        error::Result,
        image_out::{Bits, CLASSIC_LIMIT, Metadata, RawPixels, TiffOptions, write_tiff},
        ops::testing::Random,
    };

    /// The directories of a file with their offsets, and the end of the last one's values.
    fn directories(file: &[u8]) -> (Vec<Directory>, Vec<u64>) {
        let kind = if number(&file[2..4]).unwrap() == 42 { CLASSIC } else { BIG };
        let header = kind.header as usize;
        let mut next = number(&file[header - kind.word..header]).unwrap();
        let (mut directories, mut offsets) = (Vec::new(), Vec::new());
        while next != 0 {
            offsets.push(next);
            let (directory, after) = Directory::read(&mut Cursor::new(file), kind, next).unwrap();
            offsets.push(next + directory.len(kind));
            directories.push(directory);
            next = after;
        }
        (directories, offsets)
    }

    /// The content of every tile, by directory.
    fn tiles<'a>(file: &'a [u8], directories: &[Directory]) -> Vec<Vec<&'a [u8]>> {
        let tile = |&(offset, len): &(u64, u64)| &file[offset as usize..(offset + len) as usize];
        directories.iter().map(|directory| directory.tiles.iter().map(tile).collect()).collect()
    }

    /// Directories without gaps from the header on, then the tiles from the smallest level to the largest; all tags and
    /// tiles as before, except the offsets.
    #[test]
    fn directories_come_first_and_tiles_follow_from_small_to_large() -> Result<()> {
        let mut random = Random::new(5);
        let folder = tempfile::tempdir().unwrap();
        for (width, height) in [(1, 1), (256, 256), (257, 1), (600, 300), (1030, 700)] {
            for (bits, classic_limit) in
                [(Bits::Eight, CLASSIC_LIMIT), (Bits::Sixteen, CLASSIC_LIMIT), (Bits::Eight, 0)]
            {
                let name = format!("{width}x{height}, {bits:?}, {classic_limit}");
                let len = width as usize * height as usize * bits.pixel_len();
                let pixels: Vec<_> = (0..len).map(|_| random.bits() as u8 & 31).collect();
                let source = RawPixels::new(&pixels, width, height, bits)?;
                let write = |cloud_optimized| {
                    let path = folder.path().join("a.tiff");
                    let plain = TiffOptions { classic_limit, ..TiffOptions::default() };
                    let options = TiffOptions { cloud_optimized, ..plain };
                    write_tiff(&path, &source, &Metadata::default(), options)?;
                    Ok::<_, crate::error::Error>(fs::read(&path).unwrap())
                };
                let (plain, file) = (write(false)?, write(true)?);
                let ((before, _), (now, offsets)) = (directories(&plain), directories(&file));

                assert_eq!(before.len(), now.len(), "{name}");
                for (before, now) in before.iter().zip(&now) {
                    assert_eq!(before.entries.len(), now.entries.len(), "{name}");
                    for (before, now) in before.entries.iter().zip(&now.entries) {
                        let of = |entry: &Entry| (entry.tag, entry.kind, entry.count);
                        assert_eq!(of(before), of(now), "{name}");
                        let same = before.values == now.values || now.tag == TILE_OFFSETS;
                        assert!(same, "{name}: tag {}", now.tag);
                    }
                }
                assert!(tiles(&plain, &before) == tiles(&file, &now), "{name}");

                let header = if classic_limit == 0 { BIG.header } else { CLASSIC.header };
                assert_eq!(offsets[0], header, "{name}");
                let mut end = *offsets.last().unwrap();
                let inner = &offsets[1..offsets.len() - 1];
                assert!(inner.chunks(2).all(|pair| pair[0] == pair[1]), "{name}: {offsets:?}");
                for &(offset, len) in now.iter().rev().flat_map(|level| &level.tiles) {
                    assert_eq!(offset, end, "{name}");
                    end = even(offset + len);
                }
                assert_eq!(end, file.len() as u64, "{name}");
            }
        }
        Ok(())
    }
}
