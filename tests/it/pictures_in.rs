//! Reading pictures: what is in the file, or an error that says what is wrong with it.

mod colour;
mod jpeg;
mod tiff_variants;

use std::{
    fs,
    io::{Cursor, Write},
    path::{Path, PathBuf},
};

use image::{
    DynamicImage, ExtendedColorType, ImageEncoder, ImageError,
    codecs::{jpeg::JpegEncoder, png::PngEncoder, tiff::TiffEncoder, webp::WebPEncoder},
};
use tessera::{
    error::{Error, Kind},
    image_in::{self, Limits, Photo, Picture},
};
use tiff::tags::Tag;

type Outcome<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

/// xorshift64
fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state >> 20
}

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    (0..len).map(|_| random(&mut state) as u8).collect()
}

/// An encoded picture of `color`, as large as `bytes` says.
fn encoded(
    format: &str,
    bytes: &[u8],
    (width, height): (u32, u32),
    color: ExtendedColorType,
    exif: Option<Vec<u8>>,
) -> image::ImageResult<Vec<u8>> {
    let mut out = Cursor::new(Vec::new());
    match format {
        "png" => {
            let mut encoder = PngEncoder::new(&mut out);
            exif.map_or(Ok(()), |e| encoder.set_exif_metadata(e))
                .map_err(ImageError::Unsupported)?;
            encoder.write_image(bytes, width, height, color)?;
        }
        "jpeg" => {
            let mut encoder = JpegEncoder::new_with_quality(&mut out, 100);
            exif.map_or(Ok(()), |e| encoder.set_exif_metadata(e))
                .map_err(ImageError::Unsupported)?;
            encoder.write_image(bytes, width, height, color)?;
        }
        "webp" => {
            let mut encoder = WebPEncoder::new_lossless(&mut out);
            exif.map_or(Ok(()), |e| encoder.set_exif_metadata(e))
                .map_err(ImageError::Unsupported)?;
            encoder.write_image(bytes, width, height, color)?;
        }
        _ => TiffEncoder::new(&mut out).write_image(bytes, width, height, color)?,
    }
    Ok(out.into_inner())
}

/// Writes `bytes` to a file whose name says nothing about its format, and reads it.
fn read_photo(directory: &Path, bytes: &[u8]) -> tessera::error::Result<Photo> {
    let io = |source| Error::io("write in", directory, source);
    let mut file = tempfile::NamedTempFile::new_in(directory).map_err(io)?;
    file.write_all(bytes).map_err(io)?;
    image_in::read(file.path(), Limits { side: 4096, pixels: 1 << 20 })
}

/// The pixels alone.
fn read(directory: &Path, bytes: &[u8]) -> tessera::error::Result<Picture> {
    read_photo(directory, bytes).map(|photo| photo.picture)
}

/// Kind and message of the error that reading `bytes` gives.
fn refusal(directory: &Path, bytes: &[u8]) -> (Option<Kind>, String) {
    match read(directory, bytes) {
        Ok(picture) => (None, format!("read as {}x{}", picture.width, picture.height)),
        Err(error) => (Some(error.kind()), error.to_string()),
    }
}

#[test]
fn every_sample_type_becomes_rgb_between_minus_one_and_one() -> Outcome {
    use ExtendedColorType::{L8, L16, La8, La16, Rgb8, Rgb16, Rgba8, Rgba16};
    let directory = tempfile::tempdir()?;
    for color in [L8, La8, Rgb8, Rgba8, L16, La16, Rgb16, Rgba16] {
        let channels = usize::from(color.channel_count());
        let bits = color.bits_per_pixel() as usize / channels;
        let (width, height) = (13, 7);
        let bytes = noise(91 * channels * bits / 8, 1 + channels as u64);
        let stored: Vec<f64> = match bits {
            8 => bytes.iter().map(|&b| f64::from(b) / 255.0).collect(),
            _ => {
                let pairs = bytes.chunks_exact(2).map(|b| u16::from_ne_bytes([b[0], b[1]]));
                pairs.map(|s| f64::from(s) / 65_535.0).collect()
            }
        };
        let mut expected = Vec::new();
        for pixel in stored.chunks_exact(channels) {
            let alpha = if channels.is_multiple_of(2) { pixel[channels - 1] } else { 1.0 };
            for c in 0..3 {
                let value = pixel[if channels < 3 { 0 } else { c }];
                expected.push(2.0 * (value * alpha + 1.0 - alpha) - 1.0);
            }
        }
        for format in ["png", "tiff"] {
            if format == "tiff" && channels == 2 {
                continue; // the encoder used here has no grey with alpha
            }
            let file = encoded(format, &bytes, (width, height), color, None)?;
            let picture = read(directory.path(), &file)?;
            assert_eq!((picture.width, picture.height), (width, height), "{format} {color:?}");
            assert_eq!(usize::from(picture.bits), bits, "{format} {color:?}");
            assert_eq!(picture.samples.len(), expected.len(), "{format} {color:?}");
            for (value, expected) in picture.samples.iter().zip(&expected) {
                assert!((f64::from(*value) - expected).abs() < 1e-6, "{format} {color:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn jpegs_are_read_in_grey_and_colour() -> Outcome {
    let directory = tempfile::tempdir()?;
    for (color, pixel) in
        [(ExtendedColorType::L8, &[200_u8][..]), (ExtendedColorType::Rgb8, &[250, 128, 3][..])]
    {
        let file = encoded("jpeg", &pixel.repeat(33 * 17), (33, 17), color, None)?;
        let picture = read(directory.path(), &file)?;
        assert_eq!((picture.width, picture.height, picture.bits), (33, 17, 8));
        for (i, value) in picture.samples.iter().enumerate() {
            let expected = f32::from(pixel[i % 3 % pixel.len()]) / 127.5 - 1.0;
            assert!((value - expected).abs() < 3.0 / 127.5, "{color:?}: {value} {expected}");
        }
    }
    Ok(())
}

/// An EXIF block that holds an orientation alone.
fn exif(orientation: u8) -> Vec<u8> {
    let mut block = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".to_vec();
    block.extend_from_slice(&[orientation, 0, 0, 0, 0, 0, 0, 0]);
    block
}

/// Where EXIF's orientation takes the pixel (x, y) of a `width` x `height` picture.
fn upright(orientation: u8, (x, y): (u32, u32), (width, height): (u32, u32)) -> (u32, u32) {
    let (right, bottom) = (width - 1 - x, height - 1 - y);
    match orientation {
        2 => (right, y),
        3 => (right, bottom),
        4 => (x, bottom),
        5 => (y, x),
        6 => (bottom, x),
        7 => (bottom, right),
        8 => (y, right),
        _ => (x, y),
    }
}

#[test]
fn all_eight_orientations_are_applied_in_all_formats() -> Outcome {
    let directory = tempfile::tempdir()?;
    let (width, height) = (32, 16);
    // One white pixel's block, off every axis of symmetry and as large as a JPEG's.
    let stored = |x: u32, y: u32| if x >= 24 && y < 8 { 255 } else { 0 };
    let grey: Vec<u8> = (0..width * height).map(|i| stored(i % width, i / width)).collect();
    for orientation in 1..=8 {
        let size = (width, height);
        let mut files = Vec::new();
        for format in ["png", "jpeg", "webp"] {
            let exif = Some(exif(orientation));
            files.push(encoded(format, &grey, size, ExtendedColorType::L8, exif)?);
        }
        let mut out = Cursor::new(Vec::new());
        let mut tiff = tiff::encoder::TiffEncoder::new(&mut out)?;
        let mut image = tiff.new_image::<tiff::encoder::colortype::Gray8>(width, height)?;
        image.encoder().write_tag(Tag::Orientation, u16::from(orientation))?;
        image.write_data(&grey)?;
        files.push(out.into_inner());
        for file in files {
            let picture = read(directory.path(), &file)?;
            let turned = if orientation >= 5 { (height, width) } else { size };
            assert_eq!((picture.width, picture.height), turned, "orientation {orientation}");
            for y in 0..height {
                for x in 0..width {
                    let (to_x, to_y) = upright(orientation, (x, y), size);
                    let value = picture.samples[3 * (to_y * turned.0 + to_x) as usize];
                    assert_eq!(value > 0.0, stored(x, y) > 127, "orientation {orientation}");
                }
            }
        }
    }
    Ok(())
}

/// Small files of every format and their pictures.
fn small_files(directory: &Path) -> Outcome<Vec<(Vec<u8>, Picture)>> {
    let bytes = noise(3 * 23 * 19, 5);
    let mut files = Vec::new();
    for format in ["png", "jpeg", "tiff", "webp"] {
        let file = encoded(format, &bytes, (23, 19), ExtendedColorType::Rgb8, None)?;
        let picture = read(directory, &file)?;
        files.push((file, picture));
    }
    Ok(files)
}

#[test]
fn a_file_cut_short_anywhere_is_refused_or_whole() -> Outcome {
    let directory = tempfile::tempdir()?;
    for (file, picture) in small_files(directory.path())? {
        let mut refused = 0;
        for len in 0..file.len() {
            match read(directory.path(), &file[..len]) {
                // What follows the pixels may be missing.
                Ok(cut) => assert!(cut == picture, "read in part at {len} of {}", file.len()),
                Err(error) => {
                    assert_eq!(error.kind(), Kind::InvalidImage, "{len}: {error}");
                    refused += 1;
                }
            }
        }
        assert!(refused > file.len() * 9 / 10, "{refused} of {}", file.len());
    }
    Ok(())
}

#[test]
fn damaged_files_are_read_or_refused_and_never_end_the_process() -> Outcome {
    let directory = tempfile::tempdir()?;
    let mut state = 11;
    for (file, _) in small_files(directory.path())? {
        for _ in 0..1000 {
            let mut damaged = file.clone();
            for _ in 0..=random(&mut state) % 4 {
                // Half of the damage goes to the header, where it does most.
                let reach =
                    if random(&mut state).is_multiple_of(2) { 64 } else { file.len() as u64 };
                let at = random(&mut state) % reach;
                damaged[at as usize] = random(&mut state) as u8;
            }
            if let Err(error) = read(directory.path(), &damaged) {
                assert_eq!(error.kind(), Kind::InvalidImage, "{error}");
            }
        }
    }
    Ok(())
}

#[test]
fn missing_empty_and_foreign_files_and_directories_are_refused() -> Outcome {
    let directory = tempfile::tempdir()?;
    let missing = image_in::read(&directory.path().join("missing"), Limits::default());
    assert_eq!(missing.err().map(|e| e.kind()), Some(Kind::Io));
    let folder = image_in::read(directory.path(), Limits::default());
    assert_eq!(folder.err().map(|e| e.kind()), Some(Kind::InvalidImage));
    for (bytes, says) in [
        (&b""[..], "empty"),
        (b"x", "expected a JPEG, PNG, TIFF or WebP"),
        (b"Not a picture, though long enough to be one.", "expected a JPEG, PNG, TIFF or WebP"),
        (b"GIF89a\x01\0\x01\0\0\0\0;", "a GIF"),
        (b"\0\0\0\x20ftypavif\0\0\0\0", "an AVIF"),
        (b"\0\0\0\x20ftypheic\0\0\0\0", "a HEIC"),
    ] {
        let (kind, message) = refusal(directory.path(), bytes);
        assert_eq!(kind, Some(Kind::InvalidImage), "{message}");
        assert!(message.contains(says), "{message}");
    }
    let floats = DynamicImage::new_rgb32f(4, 4);
    let file = encoded("tiff", floats.as_bytes(), (4, 4), ExtendedColorType::Rgb32F, None)?;
    let (kind, message) = refusal(directory.path(), &file);
    assert_eq!(kind, Some(Kind::InvalidImage), "{message}");
    assert!(message.contains("floating-point"), "{message}");
    Ok(())
}

/// Headers of pictures of 65,000 x 65,000 pixels in a few dozen bytes.
fn bombs() -> Outcome<Vec<Vec<u8>>> {
    let mut png = Vec::new();
    let mut writer = png::Encoder::new(&mut png, 65_000, 65_000).write_header()?;
    writer.write_chunk(png::chunk::IDAT, &[0x78, 0x01])?;
    drop(writer);
    let mut jpeg = encoded("jpeg", &[0; 64], (8, 8), ExtendedColorType::L8, None)?;
    let frame = jpeg.windows(2).position(|w| w == [0xFF, 0xC0]).ok_or("no frame header")?;
    for at in [frame + 5, frame + 7] {
        jpeg[at..at + 2].copy_from_slice(&65_000_u16.to_be_bytes());
    }
    let mut tiff = Cursor::new(Vec::new());
    let mut encoder = tiff::encoder::TiffEncoder::new(&mut tiff)?;
    let mut directory = encoder.image_directory()?;
    for (tag, value) in [
        (Tag::ImageWidth, 65_000_u32),
        (Tag::ImageLength, 65_000),
        (Tag::BitsPerSample, 8),
        (Tag::Compression, 1),
        (Tag::PhotometricInterpretation, 1),
        (Tag::StripOffsets, 8),
        (Tag::StripByteCounts, 1),
    ] {
        directory.write_tag(tag, value)?;
    }
    directory.finish()?;
    Ok(vec![png, jpeg, tiff.into_inner()])
}

#[test]
fn a_small_file_of_a_huge_picture_is_refused_naming_size_and_limit() -> Outcome {
    let directory = tempfile::tempdir()?;
    let path: PathBuf = directory.path().join("bomb");
    for bomb in bombs()? {
        assert!(bomb.len() < 1000);
        fs::write(&path, bomb)?;
        for (limits, limit) in [
            (Limits::default(), "32768"),
            (Limits { side: 65_000, ..Limits::default() }, "134217728"),
        ] {
            let error = image_in::read(&path, limits).err().ok_or("the bomb was read")?;
            assert_eq!(error.kind(), Kind::InvalidImage, "{error}");
            let message = error.to_string();
            assert!(message.contains("65000x65000") && message.contains(limit), "{message}");
        }
    }
    Ok(())
}

/// An Exif block of an orientation, an author, rights, a date and a resolution of 300 x 150 pixels per inch.
fn full_exif(orientation: u16) -> Outcome<Vec<u8>> {
    use exif::{Field, In, Rational, Value, experimental::Writer};
    let text = |text: &str| Value::Ascii(vec![text.as_bytes().to_vec()]);
    let ratio = |num| Value::Rational(vec![Rational { num, denom: 10 }]);
    let fields = [
        (exif::Tag::Orientation, Value::Short(vec![orientation])),
        (exif::Tag::Artist, text("Ada Lovelace")),
        (exif::Tag::Copyright, text("(c) Ada \u{c5}")),
        (exif::Tag::DateTimeOriginal, text("2024:02:29 12:34:56")),
        (exif::Tag::DateTime, text("2025:01:01 00:00:00")),
        (exif::Tag::XResolution, ratio(3000)),
        (exif::Tag::YResolution, ratio(1500)),
        (exif::Tag::ResolutionUnit, Value::Short(vec![2])),
    ]
    .map(|(tag, value)| Field { tag, ifd_num: In::PRIMARY, value });
    let mut writer = Writer::new();
    fields.iter().for_each(|field| writer.push_field(field));
    let mut block = Cursor::new(Vec::new());
    writer.write(&mut block, false)?;
    Ok(block.into_inner())
}

#[test]
fn author_rights_date_and_resolution_are_read_in_every_format() -> Outcome {
    let directory = tempfile::tempdir()?;
    let pixels = noise(3 * 16 * 8, 2);
    for orientation in [1, 6] {
        for format in ["png", "jpeg", "webp"] {
            let exif = Some(full_exif(orientation)?);
            let file = encoded(format, &pixels, (16, 8), ExtendedColorType::Rgb8, exif)?;
            let Photo { attribution, .. } = read_photo(directory.path(), &file)?;
            assert_eq!(attribution.artist.as_deref(), Some("Ada Lovelace"), "{format}");
            assert_eq!(attribution.copyright.as_deref(), Some("(c) Ada \u{c5}"), "{format}");
            assert_eq!(attribution.taken.as_deref(), Some("2024:02:29 12:34:56"), "{format}");
            // A picture that is turned has its resolutions turned with it.
            let expected = if orientation == 6 { [150.0, 300.0] } else { [300.0, 150.0] };
            assert_eq!(attribution.resolution, Some(expected), "{format}");
        }
    }
    let mut out = Cursor::new(Vec::new());
    let mut tiff = tiff::encoder::TiffEncoder::new(&mut out)?;
    let mut image = tiff.new_image::<tiff::encoder::colortype::RGB8>(16, 8)?;
    image.encoder().write_tag(Tag::Artist, "Ada Lovelace")?;
    image.encoder().write_tag(Tag::Copyright, "(c) Ada")?;
    image.encoder().write_tag(Tag::DateTime, "2025:01:01 00:00:00")?;
    image.resolution(
        tiff::tags::ResolutionUnit::Centimeter,
        tiff::encoder::Rational { n: 100, d: 1 },
    );
    image.write_data(&pixels)?;
    let Photo { attribution, .. } = read_photo(directory.path(), &out.into_inner())?;
    assert_eq!(attribution.artist.as_deref(), Some("Ada Lovelace"));
    assert_eq!(attribution.copyright.as_deref(), Some("(c) Ada"));
    assert_eq!(attribution.taken.as_deref(), Some("2025:01:01 00:00:00"));
    let [x, y] = attribution.resolution.ok_or("no resolution")?;
    assert!((x - 254.0).abs() < 1e-6 && (y - 254.0).abs() < 1e-6);
    Ok(())
}
