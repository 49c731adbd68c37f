//! TIFF 6.0 and BigTIFF: the first page of full size.

use std::io::{BufRead, Read as _, Seek, SeekFrom};

use image::metadata::Orientation;
use tiff::{
    TiffError, TiffUnsupportedError,
    decoder::{Decoder, DecodingResult, ifd::Value},
    tags::{ByteOrder, Tag},
};

use super::{
    Limits, WORKING_SPACE,
    colour::{Colour, ycbcr_to_rgb},
    damaged, exif, jpeg_scan,
    overlay::Overlay,
    raster::{Alpha, Lab, Model, Raster, Samples},
    refused, unreadable,
};
use crate::{
    attribution::Attribution,
    error::{Error, Result},
};

/// Most pages that are looked at for one of full size.
const MAX_PAGES: usize = 64;

/// What is expected of photometric interpretations that are not read.
const RGB: &str = "RGB (raw camera data: develop them first)";

/// Compression by LZW (TIFF 6.0, section 13).
const LZW: u16 = 5;

/// Compression by Zstandard (libtiff).
const ZSTANDARD: u16 = 50000;

/// Compressions that are unpacked here: the decoder fails on some tiles of LZW, and needs a library
/// in C for Zstandard.
const UNPACKED: [u16; 2] = [LZW, ZSTANDARD];

/// Compression by JPEG (TIFF Technical Note 2).
const JPEG: u16 = 7;

/// The predictor of horizontal differences (TIFF 6.0, section 14).
const HORIZONTAL: u16 = 2;

/// Photometric interpretations (TIFF 6.0, p. 37 and section 23; ICC for the last).
mod photometric {
    pub(super) const WHITE_IS_ZERO: u16 = 0;
    pub(super) const BLACK_IS_ZERO: u16 = 1;
    pub(super) const RGB: u16 = 2;
    pub(super) const PALETTE: u16 = 3;
    pub(super) const CMYK: u16 = 5;
    pub(super) const YCBCR: u16 = 6;
    pub(super) const CIELAB: u16 = 8;
    pub(super) const ICCLAB: u16 = 9;
}

type Source<R> = Decoder<Overlay<R>>;

/// Reads a TIFF.
pub(super) fn decode<R: BufRead + Seek>(source: R, limits: Limits) -> Result<Raster> {
    let mut decoder =
        Decoder::new(Overlay::new(source)).map_err(failed)?.with_limits(memory(limits));
    let page = full_size_page(&mut decoder)?;
    let (width, height) = decoder.dimensions().map_err(failed)?;
    limits.check(width, height)?;
    let kind = Kind::of(&mut decoder)?;
    if kind.compression == JPEG {
        check_jpegs(&mut decoder, &kind, limits)?;
    }
    replace_tags(&mut decoder, page, &kind)?;
    let samples = if kind.is_planar || UNPACKED.contains(&kind.compression) {
        match kind.bits {
            16 => Samples::U16(assembled(&mut decoder, &kind, limits)?),
            _ => Samples::U8(assembled(&mut decoder, &kind, limits)?),
        }
    } else {
        match decoder.read_image().map_err(failed)? {
            DecodingResult::U8(samples) => Samples::U8(samples),
            DecodingResult::U16(samples) => Samples::U16(samples),
            _ => return Err(other_samples(kind.bits)),
        }
    };
    let samples = kind.colours(&mut decoder, samples, (width, height))?;
    let profile = decoder.find_tag(Tag::IccProfile).ok().flatten();
    let profile = profile.and_then(|value| value.into_u8_vec().ok());
    let (orientation, attribution) = described(&mut decoder);
    Ok(Raster {
        width,
        height,
        model: kind.model,
        alpha: kind.alpha_of(&samples)?,
        samples,
        colour: profile.map_or(Colour::Srgb, Colour::Icc),
        orientation,
        attribution,
    })
}

fn memory(limits: Limits) -> tiff::decoder::Limits {
    let bytes = usize::try_from(limits.bytes()).unwrap_or(usize::MAX);
    let mut memory = tiff::decoder::Limits::default();
    (memory.decoding_buffer_size, memory.intermediate_buffer_size) = (bytes, bytes);
    memory.ifd_value_size = WORKING_SPACE as usize;
    memory
}

fn failed(error: TiffError) -> Error {
    match error {
        TiffError::IoError(source) => unreadable(source),
        TiffError::LimitsExceeded => refused("too large", "a TIFF that takes less memory"),
        TiffError::UnsupportedError(TiffUnsupportedError::UnknownInterpretation) => {
            refused("a TIFF of another photometric interpretation", RGB)
        }
        TiffError::UnsupportedError(what) => refused(
            format!("a TIFF of another kind: {what}"),
            "8 or 16 bits, compressed by Deflate or LZW if at all",
        ),
        other => damaged("TIFF", other),
    }
}

/// A tag's unsigned value.
fn number<R: BufRead + Seek>(decoder: &mut Source<R>, tag: Tag) -> Result<Option<u16>> {
    decoder.find_tag_unsigned(tag).map_err(failed)
}

/// A tag's unsigned values.
fn numbers<T: TryFrom<u64>, R: BufRead + Seek>(
    decoder: &mut Source<R>,
    tag: Tag,
) -> Result<Vec<T>> {
    Ok(decoder.find_tag_unsigned_vec(tag).map_err(failed)?.unwrap_or_default())
}

/// Goes to the first page that is neither a reduced version of another nor a mask.
fn full_size_page<R: BufRead + Seek>(decoder: &mut Source<R>) -> Result<usize> {
    /// SubfileType of an image of reduced size (TIFF 6.0, p. 40).
    const REDUCED: u16 = 2;
    for page in 0..MAX_PAGES {
        // Bits of NewSubfileType: reduced size, one of several pages, a mask.
        let bits = number(decoder, Tag::NewSubfileType)?.unwrap_or(0);
        let is_reduced = bits & 0b101 != 0 || number(decoder, Tag::SubfileType)? == Some(REDUCED);
        if !is_reduced {
            return Ok(page);
        }
        if !decoder.more_images() {
            break;
        }
        decoder.next_image().map_err(failed)?;
    }
    Err(refused(
        "a TIFF of thumbnails alone",
        "a page of full size (raw camera data: develop them first)",
    ))
}

/// What the samples of a page are.
#[derive(Debug)]
struct Kind {
    photometric: u16,
    compression: u16,
    bits: u16,
    model: Model,
    /// How many samples a pixel has beyond its colours, and what the first one is.
    extra: Extra,
    samples: usize,
    /// Whether each sample of a pixel lies in a plane of its own.
    is_planar: bool,
    predictor: u16,
    /// Offset and length of every strip or tile.
    chunks: Vec<(u64, u64)>,
}

/// A sample beyond the colours (TIFF 6.0, p. 31).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extra {
    None,
    Alpha(Alpha),
    /// A sample of which the file does not say what it is.
    Unknown,
}

impl Kind {
    fn of<R: BufRead + Seek>(decoder: &mut Source<R>) -> Result<Self> {
        let need = |tag: Option<u16>| {
            tag.ok_or_else(|| refused("a TIFF without photometric interpretation", "a whole TIFF"))
        };
        let photometric = need(number(decoder, Tag::PhotometricInterpretation)?)?;
        let compression = number(decoder, Tag::Compression)?.unwrap_or(1);
        let bits: Vec<u16> = numbers(decoder, Tag::BitsPerSample)?;
        let bits = bits.first().copied().unwrap_or(1);
        let samples = usize::from(number(decoder, Tag::SamplesPerPixel)?.unwrap_or(1));
        check_format(&numbers::<u16, _>(decoder, Tag::SampleFormat)?)?;
        let model = match photometric {
            photometric::WHITE_IS_ZERO | photometric::BLACK_IS_ZERO => Model::Gray,
            photometric::RGB | photometric::PALETTE => Model::Rgb,
            photometric::CMYK => Model::Cmyk,
            photometric::YCBCR if compression == JPEG => Model::Rgb,
            photometric::YCBCR => {
                return Err(refused("a TIFF of YCbCr samples without JPEG", RGB));
            }
            photometric::CIELAB => Model::Lab(Lab::Cie),
            photometric::ICCLAB => Model::Lab(Lab::Icc),
            other => {
                return Err(refused(format!("a TIFF of photometric interpretation {other}"), RGB));
            }
        };
        let channels = if photometric == photometric::PALETTE { 1 } else { model.channels() };
        let inks = number(decoder, Tag::Unknown(332))?.unwrap_or(1);
        if model == Model::Cmyk && inks != 1 {
            return Err(refused("a TIFF of inks that are not CMYK", RGB));
        }
        let few = photometric == photometric::PALETTE || model == Model::Gray && samples == 1;
        let most = if photometric == photometric::PALETTE { 8 } else { 16 };
        if !(matches!(bits, 8 | 16) || few && matches!(bits, 1 | 2 | 4)) || bits > most {
            return Err(other_samples(bits));
        }
        let extra: Vec<u16> = numbers(decoder, Tag::ExtraSamples)?;
        let extra = match (samples.checked_sub(channels), extra.as_slice()) {
            (Some(0), _) => Extra::None,
            (Some(1), [1]) => Extra::Alpha(Alpha::Premultiplied),
            // Where the tag is missing, Pillow and libvips take the sample for alpha, too.
            (Some(1), [] | [2]) => Extra::Alpha(Alpha::Straight),
            (Some(1), [0]) => Extra::Unknown,
            _ => {
                return Err(refused(
                    format!("a TIFF of {samples} samples a pixel"),
                    format!("{channels}, and one of alpha"),
                ));
            }
        };
        if extra != Extra::None && photometric == photometric::PALETTE {
            return Err(refused("a TIFF of a palette with alpha", RGB));
        }
        let is_planar = samples > 1 && number(decoder, Tag::PlanarConfiguration)? == Some(2);
        let predictor = number(decoder, Tag::Predictor)?.unwrap_or(1);
        let mut chunks = Vec::new();
        for (offsets, lengths) in
            [(Tag::StripOffsets, Tag::StripByteCounts), (Tag::TileOffsets, Tag::TileByteCounts)]
        {
            let offsets: Vec<u64> = numbers(decoder, offsets)?;
            let lengths: Vec<u64> = numbers(decoder, lengths)?;
            chunks.extend(offsets.into_iter().zip(lengths));
        }
        Ok(Self {
            photometric,
            compression,
            bits,
            model,
            extra,
            samples,
            is_planar,
            predictor,
            chunks,
        })
    }

    /// The alpha of a pixel's last sample. One that the file does not explain is none where it is
    /// the largest value everywhere, and refused elsewhere: readers disagree about it.
    fn alpha_of(&self, samples: &Samples) -> Result<Option<Alpha>> {
        let is_opaque = || match samples {
            Samples::U8(s) => s.chunks_exact(self.samples).all(|p| p.last() == Some(&u8::MAX)),
            Samples::U16(s) => s.chunks_exact(self.samples).all(|p| p.last() == Some(&u16::MAX)),
        };
        match self.extra {
            Extra::None => Ok(None),
            Extra::Alpha(alpha) => Ok(Some(alpha)),
            Extra::Unknown if is_opaque() => Ok(Some(Alpha::Straight)),
            Extra::Unknown => Err(refused(
                format!("a TIFF of {} samples a pixel, the last one unexplained", self.samples),
                "the tag ExtraSamples to tell whether it is alpha, or no such sample",
            )),
        }
    }

    /// Stored samples as those of the model: packed bits apart, palettes looked up, white at the top, RGB.
    fn colours<R: BufRead + Seek>(
        &self,
        decoder: &mut Source<R>,
        samples: Samples,
        size: (u32, u32),
    ) -> Result<Samples> {
        let mut samples = match samples {
            Samples::U8(packed) if self.bits < 8 => {
                Samples::U8(stretched(&packed, self.bits, size))
            }
            samples => samples,
        };
        match (self.photometric, &mut samples) {
            (photometric::PALETTE, Samples::U8(indices)) => {
                return Ok(Samples::U8(looked_up(decoder, indices, self.bits)?));
            }
            (photometric::WHITE_IS_ZERO, Samples::U8(samples)) => {
                samples.iter_mut().step_by(self.samples).for_each(|v| *v = u8::MAX - *v);
            }
            (photometric::WHITE_IS_ZERO, Samples::U16(samples)) => {
                samples.iter_mut().step_by(self.samples).for_each(|v| *v = u16::MAX - *v);
            }
            (photometric::YCBCR, Samples::U8(samples)) => ycbcr_to_rgb(samples, self.samples),
            _ => {}
        }
        Ok(samples)
    }
}

/// Refuses samples that are not unsigned integers.
fn check_format(formats: &[u16]) -> Result<()> {
    let what = match formats.iter().find(|&&format| !matches!(format, 1 | 4)) {
        None => return Ok(()),
        Some(3) => "floating-point samples, of which the file does not say what white is",
        Some(2) => "signed samples",
        Some(_) => "complex samples",
    };
    Err(refused(format!("of {what}"), "unsigned samples of 8 or 16 bits"))
}

/// Replaces tags so that the decoder reads samples as they are: it knows neither palettes nor
/// CIELab, inverts grey of one sample only, and leaves out samples that are not explained.
fn replace_tags<R: BufRead + Seek>(
    decoder: &mut Source<R>,
    page: usize,
    kind: &Kind,
) -> Result<()> {
    let stored_as = match kind.photometric {
        photometric::WHITE_IS_ZERO | photometric::PALETTE => Some(photometric::BLACK_IS_ZERO),
        photometric::CIELAB | photometric::ICCLAB => Some(photometric::RGB),
        _ => None,
    };
    let mut replaced = false;
    let alpha = (kind.extra == Extra::Unknown).then_some(2);
    for (tag, value) in [(Tag::PhotometricInterpretation, stored_as), (Tag::ExtraSamples, alpha)] {
        if let Some(value) = value
            && let Some(offset) = place_of(decoder, tag)?
        {
            let little = matches!(decoder.byte_order(), ByteOrder::LittleEndian);
            let bytes = if little { u16::to_le_bytes(value) } else { u16::to_be_bytes(value) };
            decoder.inner().replace(offset, bytes);
            replaced = true;
        }
    }
    if replaced { decoder.seek_to_image(page).map_err(failed) } else { Ok(()) }
}

/// Where the value of a tag of one SHORT stands in the file; nothing if the page lacks the tag.
fn place_of<R: BufRead + Seek>(decoder: &mut Source<R>, tag: Tag) -> Result<Option<u64>> {
    const SHORT: u16 = 3;
    let Some(directory) = decoder.ifd_pointer() else { return Ok(None) };
    let mut at = directory.0;
    decoder.goto_offset_u64(0).map_err(unreadable)?;
    decoder.read_short().map_err(unreadable)?;
    let is_big = decoder.read_short().map_err(unreadable)? == 43;
    decoder.goto_offset_u64(at).map_err(unreadable)?;
    let (count, entry, value) = if is_big {
        (decoder.read_long8().map_err(unreadable)?, 20, 12)
    } else {
        (u64::from(decoder.read_short().map_err(unreadable)?), 12, 8)
    };
    at += if is_big { 8 } else { 2 };
    for _ in 0..count {
        decoder.goto_offset_u64(at).map_err(unreadable)?;
        if decoder.read_short().map_err(unreadable)? == tag.to_u16() {
            let is_short = decoder.read_short().map_err(unreadable)? == SHORT;
            return if is_short { Ok(Some(at + value)) } else { Err(odd_tag()) };
        }
        at = at.checked_add(entry).ok_or_else(odd_tag)?;
    }
    Ok(None)
}

fn odd_tag() -> Error {
    refused("damaged: a tag has a wrong type or place", "a whole TIFF")
}

/// Checks that no strip or tile of JPEG has a hole: the decoder would fill it with grey.
fn check_jpegs<R: BufRead + Seek>(
    decoder: &mut Source<R>,
    kind: &Kind,
    limits: Limits,
) -> Result<()> {
    let tables = decoder.find_tag(Tag::JPEGTables).map_err(failed)?;
    let tables = tables.map(Value::into_u8_vec).transpose().map_err(failed)?.unwrap_or_default();
    for (offset, length) in &kind.chunks {
        let bytes = bytes_at(decoder, *offset, *length, limits)?;
        jpeg_scan::walk(&tables, &bytes, |width, height| limits.check(width, height))?;
    }
    Ok(())
}

/// A stored sample, or a byte of packed ones.
trait Stored: Copy + Default {
    const BYTES: usize;

    fn of(decoded: DecodingResult) -> Option<Vec<Self>>;

    fn from_bytes(bytes: &[u8], order: ByteOrder) -> Self;

    /// The sum, modulo the number of values.
    fn plus(self, other: Self) -> Self;
}

impl Stored for u8 {
    const BYTES: usize = 1;

    fn of(decoded: DecodingResult) -> Option<Vec<Self>> {
        if let DecodingResult::U8(samples) = decoded { Some(samples) } else { None }
    }

    fn from_bytes(bytes: &[u8], _: ByteOrder) -> Self {
        bytes[0]
    }

    fn plus(self, other: Self) -> Self {
        self.wrapping_add(other)
    }
}

impl Stored for u16 {
    const BYTES: usize = 2;

    fn of(decoded: DecodingResult) -> Option<Vec<Self>> {
        if let DecodingResult::U16(samples) = decoded { Some(samples) } else { None }
    }

    fn from_bytes(bytes: &[u8], order: ByteOrder) -> Self {
        match order {
            ByteOrder::LittleEndian => Self::from_le_bytes([bytes[0], bytes[1]]),
            ByteOrder::BigEndian => Self::from_be_bytes([bytes[0], bytes[1]]),
        }
    }

    fn plus(self, other: Self) -> Self {
        self.wrapping_add(other)
    }
}

/// Reads a page strip by strip or tile by tile, and puts planes side by side.
///
/// As a whole, the decoder fails on planes in tiles that reach past the bottom, and on some tiles of
/// LZW (image-tiff 0.11: the padding of later planes; weezl 0.1: the end of a stream that is read
/// row by row).
fn assembled<T: Stored, R: BufRead + Seek>(
    decoder: &mut Source<R>,
    kind: &Kind,
    limits: Limits,
) -> Result<Vec<T>> {
    let (width, height) = decoder.dimensions().map_err(failed)?;
    let (across, down) = decoder.chunk_dimensions();
    if across == 0 || down == 0 {
        return Err(odd_tag());
    }
    // Several planes of one sample, or one of all.
    let (planes, together) = if kind.is_planar { (kind.samples, 1) } else { (1, kind.samples) };
    // Elements of so many pixels: samples, or bytes of packed ones.
    let elements = |pixels: u32| match kind.bits {
        bits @ ..8 => (pixels as usize * usize::from(bits)).div_ceil(8),
        _ => pixels as usize * together,
    };
    let row_len = elements(width);
    let mut samples = vec![T::default(); row_len * planes * height as usize];
    let (columns, rows) = (width.div_ceil(across), height.div_ceil(down));
    for plane in 0..planes {
        for place in 0..columns * rows {
            let (left, top) = (place % columns * across, place / columns * down);
            let index = plane as u32 * columns * rows + place;
            let len = elements(across.min(width - left));
            let (chunk, stride): (Vec<T>, _) = if UNPACKED.contains(&kind.compression) {
                let chunk =
                    unpacked(decoder, kind, index, (elements(across), down), together, limits)?;
                (chunk, elements(across))
            } else {
                let decoded = decoder.read_chunk(index).map_err(failed)?;
                (T::of(decoded).ok_or_else(|| other_samples(kind.bits))?, len)
            };
            let wanted = down.min(height - top) as usize;
            if chunk.len() < stride * wanted {
                return Err(refused("cut short: a strip or tile is too short", "a whole TIFF"));
            }
            for (line, y) in chunk.chunks_exact(stride).take(wanted).zip(top as usize..) {
                let start = (y * row_len + elements(left)) * planes + plane;
                let to = samples[start..].iter_mut().step_by(planes);
                to.zip(&line[..len]).for_each(|(to, from)| *to = *from);
            }
        }
    }
    Ok(samples)
}

/// Samples of strip or tile `index`, of `rows` rows of `row_len` elements, unpacked here;
/// `together` of them are a pixel.
fn unpacked<T: Stored, R: BufRead + Seek>(
    decoder: &mut Source<R>,
    kind: &Kind,
    index: u32,
    (row_len, rows): (usize, u32),
    together: usize,
    limits: Limits,
) -> Result<Vec<T>> {
    let order = decoder.byte_order();
    let (offset, length) = *kind.chunks.get(index as usize).ok_or_else(odd_tag)?;
    let packed = bytes_at(decoder, offset, length, limits)?;
    let longest = (row_len * T::BYTES).saturating_mul(rows as usize);
    if longest as u64 > limits.bytes() {
        return Err(failed(TiffError::LimitsExceeded));
    }
    let bytes = match kind.compression {
        ZSTANDARD => unpacked_zstandard(&packed, longest)?,
        _ => unpacked_lzw(&packed, longest)?,
    };
    let mut samples: Vec<T> =
        bytes.chunks_exact(T::BYTES).map(|bytes| T::from_bytes(bytes, order)).collect();
    if kind.predictor == HORIZONTAL {
        for row in samples.chunks_mut(row_len) {
            for i in together..row.len() {
                row[i] = row[i].plus(row[i - together]);
            }
        }
    }
    Ok(samples)
}

/// At most `longest` bytes of an LZW stream (TIFF 6.0, section 13).
fn unpacked_lzw(packed: &[u8], longest: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; longest];
    let (mut read, mut written) = (0, 0);
    let mut decoder = weezl::decode::Decoder::with_tiff_size_switch(weezl::BitOrder::Msb, 8);
    while written < longest {
        let step = decoder.decode_bytes(&packed[read..], &mut bytes[written..]);
        read += step.consumed_in;
        written += step.consumed_out;
        match step.status {
            Ok(weezl::LzwStatus::Ok) if step.consumed_in + step.consumed_out > 0 => {}
            Ok(_) => break,
            Err(error) => return Err(damaged("TIFF", error)),
        }
    }
    // The last strip may have fewer rows.
    bytes.truncate(written);
    Ok(bytes)
}

/// At most `longest` bytes of a Zstandard frame (RFC 8878).
fn unpacked_zstandard(packed: &[u8], longest: usize) -> Result<Vec<u8>> {
    let decoder = ruzstd::decoding::StreamingDecoder::new(packed);
    let mut bytes = Vec::new();
    decoder
        .map_err(|error| damaged("TIFF", error))?
        .take(longest as u64)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    Ok(bytes)
}

/// `length` bytes from `offset` on.
fn bytes_at<R: BufRead + Seek>(
    decoder: &mut Source<R>,
    offset: u64,
    length: u64,
    limits: Limits,
) -> Result<Vec<u8>> {
    let longest = limits.bytes();
    if length > longest {
        return Err(refused(
            format!("a TIFF with a strip of {length} bytes"),
            format!("at most {longest} bytes"),
        ));
    }
    let source = decoder.inner();
    let mut bytes = Vec::new();
    source.seek(SeekFrom::Start(offset)).map_err(unreadable)?;
    source.take(length).read_to_end(&mut bytes).map_err(unreadable)?;
    Ok(bytes)
}

fn other_samples(bits: u16) -> Error {
    refused(format!("of samples of {bits} bits"), "8 or 16 bits")
}

/// Samples of fewer than 8 bits, stretched to 8; rows begin at bytes. Indices of a palette too: see [`looked_up`].
fn stretched(packed: &[u8], bits: u16, (width, height): (u32, u32)) -> Vec<u8> {
    let row_len = (width as usize * usize::from(bits)).div_ceil(8);
    let largest = (1_u16 << bits) - 1;
    let mut samples = Vec::with_capacity(width as usize * height as usize);
    for row in packed.chunks_exact(row_len).take(height as usize) {
        for x in 0..width as usize {
            let bit = x * usize::from(bits);
            let shift = 8 - usize::from(bits) - bit % 8;
            let value = u16::from(row[bit / 8] >> shift) & largest;
            samples.push((value * 255 / largest) as u8);
        }
    }
    samples
}

/// RGB by the page's palette; `indices` of fewer than 8 bits are stretched to 8. Palettes have 16
/// bits, of which old programs fill 8 alone (as libtiff tells them: no value is above 255).
fn looked_up<R: BufRead + Seek>(
    decoder: &mut Source<R>,
    indices: &[u8],
    bits: u16,
) -> Result<Vec<u8>> {
    let palette: Vec<u16> = numbers(decoder, Tag::ColorMap)?;
    let count = 1_usize << bits;
    if palette.len() != 3 * count {
        return Err(refused(
            format!("a TIFF with a palette of {} values", palette.len()),
            format!("{} values for {bits} bits", 3 * count),
        ));
    }
    let shift = if palette.iter().all(|&value| value < 256) { 0 } else { 8 };
    let palette: Vec<u8> = palette.iter().map(|value| (value >> shift) as u8).collect();
    let step = 255 / (count - 1);
    let colour = |&index: &u8| {
        let index = usize::from(index) / step;
        [palette[index], palette[count + index], palette[2 * count + index]]
    };
    Ok(indices.iter().flat_map(colour).collect())
}

/// Orientation and attribution by the page's tags and its Exif directory.
fn described<R: BufRead + Seek>(decoder: &mut Source<R>) -> (Orientation, Attribution) {
    /// DateTimeOriginal, in the Exif directory.
    const TAKEN: Tag = Tag::Unknown(36867);
    let text = |value: Option<Value>| Attribution::text(&value?.into_string().ok()?);
    let code = decoder.find_tag_unsigned::<u8>(Tag::Orientation).ok().flatten();
    let orientation = code.and_then(Orientation::from_exif).unwrap_or(Orientation::NoTransforms);
    let mut find = |tag| decoder.find_tag(tag).ok().flatten();
    let ratio = |value: Option<Value>| match value? {
        Value::Rational(n, d) => Some(f64::from(n) / f64::from(d)),
        _ => None,
    };
    let artist = text(find(Tag::Artist));
    let copyright = text(find(Tag::Copyright));
    let changed = text(find(Tag::DateTime));
    let (x, y) = (ratio(find(Tag::XResolution)), ratio(find(Tag::YResolution)));
    let unit = find(Tag::ResolutionUnit).map_or(Some(2), |value| value.into_u32().ok());
    let exif = find(Tag::ExifDirectory).and_then(|value| value.into_ifd_pointer().ok());
    let exif = exif.and_then(|pointer| decoder.read_directory(pointer).ok());
    let taken = exif.and_then(|directory| {
        text(decoder.read_directory_tags(&directory).find_tag(TAKEN).ok().flatten())
    });
    let resolution = unit.and_then(exif::unit).zip(x.zip(y));
    let attribution = Attribution {
        artist,
        copyright,
        taken: [taken, changed].into_iter().flatten().find_map(|text| Attribution::date(&text)),
        resolution: resolution
            .and_then(|(unit, (x, y))| Attribution::pixels_per_inch([x, y], unit)),
    };
    (orientation, attribution)
}
