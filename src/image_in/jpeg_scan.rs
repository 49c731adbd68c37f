//! A walk over the entropy-coded data of a JPEG (ITU-T T.81) that shows whether every block is there.
//!
//! Decoders fill what is missing with grey, without a word: a file cut short and closed by an end
//! marker, one with a hole, or one that lost a restart interval decodes. So the codes are read here
//! once, without the arithmetic: each scan must hold exactly the blocks of its frame, restart
//! markers must come in order, and at the end every coefficient must have been coded to its last bit.

use super::refused;
use crate::error::{Error, Result};

/// Bytes after the last block of a scan that are no error: some cameras pad.
const MAX_PADDING: usize = 4;

/// Most scans of a file.
const MAX_SCANS: usize = 100;

/// What the frame header says.
#[derive(Clone, Debug, Default)]
pub(super) struct Frame {
    pub(super) width: u16,
    pub(super) height: u16,
    pub(super) components: Vec<Component>,
    progressive: bool,
}

/// A component of a frame.
#[derive(Clone, Debug)]
pub(super) struct Component {
    pub(super) id: u8,
    horizontal: usize,
    vertical: usize,
    /// Blocks of a row, and rows, in the component alone (A.2.2).
    columns: usize,
    rows: usize,
    /// Blocks of a row with those that fill the last unit.
    stride: usize,
    /// By coefficient: the bits that are still to come, or none if it was not coded at all.
    missing: [Option<u8>; 64],
    /// Progressive: by block, a bit for each coefficient that is not zero.
    nonzero: Vec<u64>,
}

/// What the walk found.
#[derive(Clone, Debug, Default)]
pub(super) struct Walk {
    pub(super) frame: Frame,
    /// The transform of an Adobe marker, if there is one: 0 none, 1 YCbCr, 2 YCCK.
    pub(super) adobe: Option<u8>,
    /// Whether there is a JFIF marker.
    pub(super) jfif: bool,
}

/// Walks over a whole JPEG; `tables` is an abbreviated stream of tables before it (TIFF), or empty.
/// `check` sees the width and height before memory is taken.
///
/// # Errors
/// When it is damaged, cut short or of a process that is not read.
pub(super) fn walk(
    tables: &[u8],
    bytes: &[u8],
    check: impl Fn(u32, u32) -> Result<()>,
) -> Result<Walk> {
    let mut walker = Walker::default();
    if !tables.is_empty() {
        walker.segments(tables, &check)?;
    }
    if !walker.segments(bytes, &check)? {
        return Err(refused("cut short", "a JPEG with its end marker"));
    }
    walker.complete()?;
    Ok(walker.walk)
}

#[derive(Default)]
struct Walker {
    walk: Walk,
    dc: [Option<Huffman>; 4],
    ac: [Option<Huffman>; 4],
    /// Units between restart markers; 0: there are none.
    interval: usize,
    scans: usize,
}

fn broken(why: &str) -> Error {
    refused(format!("damaged: {why}"), "a whole JPEG")
}

fn unsupported(what: &str) -> Error {
    refused(format!("{what} JPEG"), "a baseline or progressive one")
}

fn short() -> Error {
    refused("cut short: data end before the last block", "a whole JPEG")
}

impl Walker {
    /// Reads segments up to the end marker. False: it is missing.
    fn segments(&mut self, bytes: &[u8], check: &impl Fn(u32, u32) -> Result<()>) -> Result<bool> {
        let mut at = 0;
        loop {
            // Bytes between segments are padding that decoders skip.
            let Some(skip) = bytes[at.min(bytes.len())..].iter().position(|&b| b == 0xFF) else {
                return Ok(false);
            };
            at += skip;
            while bytes.get(at) == Some(&0xFF) {
                at += 1;
            }
            let Some(&marker) = bytes.get(at) else { return Ok(false) };
            at += 1;
            match marker {
                0xD9 => return Ok(true),
                0x00 | 0x01 | 0xD0..=0xD8 => continue,
                _ => {}
            }
            let len = match bytes.get(at..at + 2) {
                Some(&[high, low]) => usize::from(u16::from_be_bytes([high, low])),
                _ => return Ok(false),
            };
            let Some(segment) = bytes.get(at + 2..at + len.max(2)) else { return Ok(false) };
            at += len.max(2);
            match marker {
                0xC0..=0xC2 => self.frame(segment, marker == 0xC2, check)?,
                0xC3 => return Err(unsupported("a lossless")),
                0xC5..=0xC7 => return Err(unsupported("a hierarchical")),
                0xC9..=0xCB | 0xCD..=0xCF => return Err(unsupported("an arithmetic-coded")),
                0xC4 => self.huffman_tables(segment)?,
                0xDD => match segment {
                    &[high, low] => self.interval = usize::from(u16::from_be_bytes([high, low])),
                    _ => return Err(broken("the restart interval has a wrong length")),
                },
                0xDA => at = self.scan(segment, bytes, at)?,
                0xE0 => self.walk.jfif |= segment.starts_with(b"JFIF\0"),
                0xEE if segment.starts_with(b"Adobe") => {
                    self.walk.adobe = segment.get(11).copied();
                }
                _ => {}
            }
        }
    }

    fn frame(
        &mut self,
        segment: &[u8],
        progressive: bool,
        check: &impl Fn(u32, u32) -> Result<()>,
    ) -> Result<()> {
        let wrong = || broken("the frame header is wrong");
        if !self.walk.frame.components.is_empty() {
            return Err(broken("there are two frame headers"));
        }
        let (&[precision, h1, h0, w1, w0, count], components) =
            segment.split_first_chunk().ok_or_else(wrong)?;
        let (height, width) = (u16::from_be_bytes([h1, h0]), u16::from_be_bytes([w1, w0]));
        if precision != 8 {
            return Err(refused(
                format!("a JPEG of {precision} bits a sample"),
                "8 bits, or a PNG or TIFF of 16",
            ));
        }
        check(u32::from(width), u32::from(height))?;
        if !matches!(count, 1 | 3 | 4) || components.len() != 3 * usize::from(count) {
            return Err(refused(
                format!("a JPEG of {count} components"),
                "1 (grey), 3 (colour) or 4 (CMYK)",
            ));
        }
        let factors = |c: &[u8]| (usize::from(c[1] >> 4), usize::from(c[1] & 15));
        if components
            .chunks_exact(3)
            .map(factors)
            .any(|(h, v)| !(1..=4).contains(&h) || !(1..=4).contains(&v))
        {
            return Err(wrong());
        }
        let widest = components.chunks_exact(3).map(|c| factors(c).0).max().unwrap_or(1);
        let tallest = components.chunks_exact(3).map(|c| factors(c).1).max().unwrap_or(1);
        let units = usize::from(width).div_ceil(8 * widest);
        let unit_rows = usize::from(height).div_ceil(8 * tallest);
        let components = components.chunks_exact(3).map(|c| {
            let (horizontal, vertical) = factors(c);
            let stride = units * horizontal;
            let blocks = if progressive { stride * unit_rows * vertical } else { 0 };
            Component {
                id: c[0],
                horizontal,
                vertical,
                columns: (usize::from(width) * horizontal).div_ceil(8 * widest),
                rows: (usize::from(height) * vertical).div_ceil(8 * tallest),
                stride,
                missing: [None; 64],
                nonzero: vec![0; blocks],
            }
        });
        self.walk.frame = Frame { width, height, components: components.collect(), progressive };
        Ok(())
    }

    fn huffman_tables(&mut self, mut segment: &[u8]) -> Result<()> {
        let wrong = || broken("the Huffman tables are wrong");
        while let Some((&place, rest)) = segment.split_first() {
            let (counts, rest) = rest.split_first_chunk::<16>().ok_or_else(wrong)?;
            let total = counts.iter().map(|&c| usize::from(c)).sum::<usize>();
            let values = rest.get(..total).ok_or_else(wrong)?;
            let table = Huffman::new(counts, values).ok_or_else(wrong)?;
            let tables = if place >> 4 == 0 { &mut self.dc } else { &mut self.ac };
            *tables.get_mut(usize::from(place & 15)).ok_or_else(wrong)? = Some(table);
            segment = &rest[total..];
        }
        Ok(())
    }

    /// Reads a scan whose header is `segment` and whose data begin at `at`; gives where they end.
    fn scan(&mut self, segment: &[u8], bytes: &[u8], at: usize) -> Result<usize> {
        let wrong = || broken("a scan header is wrong");
        self.scans += 1;
        if self.scans > MAX_SCANS {
            return Err(refused(
                format!("a JPEG of more than {MAX_SCANS} scans"),
                format!("at most {MAX_SCANS} scans"),
            ));
        }
        let (&count, rest) = segment.split_first().ok_or_else(wrong)?;
        let count = usize::from(count);
        let (selectors, &[first, last, bits]) = rest.split_last_chunk::<3>().ok_or_else(wrong)?;
        if !(1..=4).contains(&count) || selectors.len() != 2 * count {
            return Err(wrong());
        }
        let frame = &mut self.walk.frame;
        let progressive = frame.progressive;
        let mut parts = Vec::with_capacity(count);
        for selector in selectors.chunks_exact(2) {
            let index = frame.components.iter().position(|c| c.id == selector[0]);
            let index =
                index.ok_or_else(|| broken("a scan is of a component that is not there"))?;
            if parts.iter().any(|part: &Part<'_>| part.index == index) {
                return Err(wrong());
            }
            parts.push(Part {
                index,
                dc: table(&self.dc, selector[1] >> 4),
                ac: table(&self.ac, selector[1] & 15),
            });
        }
        let process = if progressive {
            Process::progressive(first, last, bits >> 4, bits & 15, count).ok_or_else(wrong)?
        } else {
            Process::Sequential
        };
        for part in &parts {
            let (needs_dc, needs_ac) = process.tables();
            if needs_dc && part.dc.is_none() || needs_ac && part.ac.is_none() {
                return Err(broken("a scan uses a Huffman table that is not there"));
            }
            process.account(&mut frame.components[part.index].missing)?;
        }
        let mut reader = Bits { bytes, at, buffer: 0, count: 0 };
        let mut run = 0;
        let (columns, rows) = match parts.as_slice() {
            [part] => {
                let component = &frame.components[part.index];
                (component.columns, component.rows)
            }
            _ => {
                let component = &frame.components[parts[0].index];
                let columns = component.stride / component.horizontal;
                let tallest = frame.components.iter().map(|c| c.vertical).max().unwrap_or(1);
                (columns, usize::from(frame.height).div_ceil(8 * tallest))
            }
        };
        for unit in 0..columns * rows {
            if self.interval != 0 && unit != 0 && unit % self.interval == 0 {
                reader.restart(((unit / self.interval - 1) % 8) as u8)?;
                run = 0;
            }
            let (x, y) = (unit % columns, unit / columns);
            for part in &parts {
                let component = &mut frame.components[part.index];
                let (horizontal, vertical) =
                    if count == 1 { (1, 1) } else { (component.horizontal, component.vertical) };
                for row in 0..vertical {
                    for column in 0..horizontal {
                        let block =
                            (y * vertical + row) * component.stride + x * horizontal + column;
                        let nonzero = component.nonzero.get_mut(block);
                        process.block(&mut reader, part, nonzero, &mut run)?;
                    }
                }
            }
        }
        reader.end()
    }

    /// Whether all that the frame needs was coded.
    fn complete(&self) -> Result<()> {
        let components = &self.walk.frame.components;
        if components.is_empty() {
            return Err(broken("there is no frame header"));
        }
        let missing = components.iter().flat_map(|component| &component.missing);
        if missing.into_iter().any(|missing| *missing != Some(0)) {
            return Err(refused("cut short: scans are missing", "a whole JPEG"));
        }
        Ok(())
    }
}

fn table(tables: &[Option<Huffman>; 4], place: u8) -> Option<&Huffman> {
    tables.get(usize::from(place)).and_then(Option::as_ref)
}

/// A component in a scan, with its tables.
struct Part<'a> {
    index: usize,
    dc: Option<&'a Huffman>,
    ac: Option<&'a Huffman>,
}

/// What a scan codes (F.2 and G.1).
#[derive(Clone, Copy)]
enum Process {
    Sequential,
    /// The first bits of DC coefficients, all but the last `low`.
    DcFirst {
        low: u8,
    },
    /// Bit `low` of DC coefficients.
    DcRefine {
        low: u8,
    },
    /// The first bits of AC coefficients `first` to `last`.
    AcFirst {
        first: u8,
        last: u8,
        low: u8,
    },
    /// Bit `low` of AC coefficients `first` to `last`.
    AcRefine {
        first: u8,
        last: u8,
        low: u8,
    },
}

impl Process {
    fn progressive(first: u8, last: u8, high: u8, low: u8, components: usize) -> Option<Self> {
        let refines = high != 0;
        if low > 13 || refines && high != low + 1 {
            return None;
        }
        match (first, last, refines) {
            (0, 0, false) => Some(Self::DcFirst { low }),
            (0, 0, true) => Some(Self::DcRefine { low }),
            (1..=63, _, _) if last < first || last > 63 || components != 1 => None,
            (1..=63, _, false) => Some(Self::AcFirst { first, last, low }),
            (1..=63, _, true) => Some(Self::AcRefine { first, last, low }),
            _ => None,
        }
    }

    /// Whether a table for DC and one for AC coefficients is needed.
    fn tables(self) -> (bool, bool) {
        match self {
            Self::Sequential => (true, true),
            Self::DcFirst { .. } => (true, false),
            Self::DcRefine { .. } => (false, false),
            Self::AcFirst { .. } | Self::AcRefine { .. } => (false, true),
        }
    }

    /// Notes the bits that this scan brings.
    fn account(self, missing: &mut [Option<u8>; 64]) -> Result<()> {
        let (range, before, low) = match self {
            Self::Sequential => (0..=63, None, 0),
            Self::DcFirst { low } => (0..=0, None, low),
            Self::DcRefine { low } => (0..=0, Some(low + 1), low),
            Self::AcFirst { first, last, low } => (first..=last, None, low),
            Self::AcRefine { first, last, low } => (first..=last, Some(low + 1), low),
        };
        for coefficient in range {
            let state = &mut missing[usize::from(coefficient)];
            if *state != before {
                return Err(broken("the scans are not in order"));
            }
            *state = Some(low);
        }
        Ok(())
    }

    /// Reads a block; `nonzero` are its coefficients that are not zero, `run` how many blocks
    /// without news are still to come.
    fn block(
        self,
        bits: &mut Bits<'_>,
        part: &Part<'_>,
        nonzero: Option<&mut u64>,
        run: &mut u32,
    ) -> Result<()> {
        let missing = || broken("a table or block is not there");
        match self {
            Self::Sequential => {
                let (dc, ac) = part.dc.zip(part.ac).ok_or_else(missing)?;
                let size = bits.code(dc)?;
                bits.take(difference(size)?)?;
                let mut k = 1;
                while k < 64 {
                    let code = bits.code(ac)?;
                    let (zeros, size) = (u32::from(code >> 4), code & 15);
                    if size == 0 {
                        if zeros != 15 {
                            break;
                        }
                        k += 16;
                        continue;
                    }
                    k += zeros;
                    if k > 63 {
                        return Err(broken("a block has more than 64 coefficients"));
                    }
                    bits.take(u32::from(size))?;
                    k += 1;
                }
                Ok(())
            }
            Self::DcFirst { .. } => {
                let size = bits.code(part.dc.ok_or_else(missing)?)?;
                bits.take(difference(size)?).map(drop)
            }
            Self::DcRefine { .. } => bits.take(1).map(drop),
            Self::AcFirst { first, last, .. } => {
                if *run > 0 {
                    *run -= 1;
                    return Ok(());
                }
                let (table, nonzero) = part.ac.zip(nonzero).ok_or_else(missing)?;
                let (mut k, last) = (u32::from(first), u32::from(last));
                while k <= last {
                    let code = bits.code(table)?;
                    let (zeros, size) = (u32::from(code >> 4), code & 15);
                    if size != 0 {
                        k += zeros;
                        if k > last {
                            return Err(broken("a block has too many coefficients"));
                        }
                        bits.take(u32::from(size))?;
                        *nonzero |= 1 << k;
                        k += 1;
                    } else if zeros == 15 {
                        k += 16;
                    } else {
                        *run = (1 << zeros) + bits.take(zeros)? - 1;
                        break;
                    }
                }
                Ok(())
            }
            Self::AcRefine { first, last, .. } => {
                let (table, nonzero) = part.ac.zip(nonzero).ok_or_else(missing)?;
                let (mut k, last) = (u32::from(first), u32::from(last));
                if *run == 0 {
                    while k <= last {
                        let code = bits.code(table)?;
                        let (mut zeros, size) = (u32::from(code >> 4), code & 15);
                        if size == 0 && zeros != 15 {
                            *run = (1 << zeros) + bits.take(zeros)?;
                            break;
                        }
                        if size > 1 {
                            return Err(broken("a refined coefficient is too large"));
                        }
                        bits.take(u32::from(size))?;
                        while k <= last {
                            if *nonzero >> k & 1 == 1 {
                                bits.take(1)?;
                            } else if zeros == 0 {
                                break;
                            } else {
                                zeros -= 1;
                            }
                            k += 1;
                        }
                        if size == 1 {
                            if k > last {
                                return Err(broken("a block has too many coefficients"));
                            }
                            *nonzero |= 1 << k;
                        }
                        k += 1;
                    }
                }
                if *run > 0 {
                    // The rest of the block has no new coefficients, only bits of old ones.
                    let rest = (k..=last).filter(|&k| *nonzero >> k & 1 == 1).count() as u32;
                    bits.skip(rest)?;
                    *run -= 1;
                }
                Ok(())
            }
        }
    }
}

/// Bits of a DC difference.
fn difference(size: u8) -> Result<u32> {
    if size > 11 { Err(broken("a block's mean is too large")) } else { Ok(u32::from(size)) }
}

/// A Huffman table (C.2, F.2.2.3).
struct Huffman {
    /// By the next 8 bits: length and value of a code of at most 8 bits, or length 0.
    short: [(u8, u8); 256],
    /// By length: one more than the largest code, shifted to 16 bits, and what leads from a code to its value.
    limit: [u32; 17],
    offset: [i32; 17],
    values: Vec<u8>,
}

impl Huffman {
    fn new(counts: &[u8; 16], values: &[u8]) -> Option<Self> {
        let mut table =
            Self { short: [(0, 0); 256], limit: [0; 17], offset: [0; 17], values: values.to_vec() };
        let (mut code, mut at) = (0_u32, 0_usize);
        for length in 1..=16_usize {
            let count = u32::from(counts[length - 1]);
            table.offset[length] = at as i32 - code as i32;
            for _ in 0..count {
                if length <= 8 {
                    let first = (code << (8 - length)) as usize;
                    let entries = table.short.get_mut(first..first + (1 << (8 - length)))?;
                    entries.fill((length as u8, *values.get(at)?));
                }
                code += 1;
                at += 1;
            }
            if code > 1 << length {
                return None;
            }
            table.limit[length] = code << (16 - length);
            code <<= 1;
        }
        Some(table)
    }
}

/// Bits of entropy-coded data, up to a marker.
struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
    /// The next `count` bits, at the low end.
    buffer: u64,
    count: u32,
}

impl Bits<'_> {
    /// Takes bytes in until there are more than 48 bits, or a marker or the end.
    fn fill(&mut self) {
        while self.count <= 48 {
            let byte = match self.bytes.get(self.at..) {
                Some([0xFF, 0x00, ..]) => {
                    self.at += 2;
                    0xFF
                }
                Some([0xFF, ..] | []) | None => return,
                Some([byte, ..]) => {
                    self.at += 1;
                    *byte
                }
            };
            self.buffer = self.buffer << 8 | u64::from(byte);
            self.count += 8;
        }
    }

    /// The next `count` bits, at most 16.
    fn take(&mut self, count: u32) -> Result<u32> {
        if self.count < count {
            self.fill();
            if self.count < count {
                return Err(short());
            }
        }
        self.count -= count;
        Ok((self.buffer >> self.count) as u32 & ((1 << count) - 1))
    }

    /// Passes over `count` bits.
    fn skip(&mut self, mut count: u32) -> Result<()> {
        while count > 0 {
            let some = count.min(16);
            self.take(some)?;
            count -= some;
        }
        Ok(())
    }

    /// The value of the next code.
    fn code(&mut self, table: &Huffman) -> Result<u8> {
        if self.count < 16 {
            self.fill();
        }
        // Past the end zeros stand for what is missing; a code that needs them is an error.
        let next = match self.count {
            count if count >= 16 => (self.buffer >> (count - 16)) as u32 & 0xFFFF,
            count => ((self.buffer << (16 - count)) as u32) & 0xFFFF,
        };
        let (length, value) = table.short[(next >> 8) as usize];
        if length != 0 {
            self.take(u32::from(length))?;
            return Ok(value);
        }
        for length in 9..=16 {
            if next < table.limit[length] {
                let code = (next >> (16 - length)) as i32;
                let value = usize::try_from(code + table.offset[length]);
                let value = value.ok().and_then(|place| table.values.get(place));
                self.take(length as u32)?;
                return value.copied().ok_or_else(|| broken("a code has no value"));
            }
        }
        if self.count < 16 { Err(short()) } else { Err(broken("a code is in no Huffman table")) }
    }

    /// Goes on after restart marker `number`, which must come now.
    fn restart(&mut self, number: u8) -> Result<()> {
        let at = self.end()?;
        let at = at + self.bytes[at..].iter().take_while(|&&byte| byte == 0xFF).count();
        if self.bytes.get(at) != Some(&(0xD0 + number)) {
            return Err(broken("a restart marker is missing"));
        }
        self.at = at + 1;
        (self.buffer, self.count) = (0, 0);
        Ok(())
    }

    /// Where the marker after the last block begins.
    fn end(&mut self) -> Result<usize> {
        let unread = (self.count / 8) as usize;
        let mut at = self.at;
        loop {
            match self.bytes.get(at..) {
                Some([0xFF, 0x00, ..]) => at += 2,
                Some([0xFF, ..] | []) | None => break,
                Some([_, ..]) => at += 1,
            }
        }
        if unread + at - self.at > MAX_PADDING {
            return Err(broken("a scan has more data than blocks"));
        }
        Ok(at.min(self.bytes.len()))
    }
}
