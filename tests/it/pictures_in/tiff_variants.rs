//! TIFF in its variants: BigTIFF, JPEG within, alpha of both kinds, palettes, CIELab, thumbnails.

use std::io::{Cursor, Seek, Write};

use image::ExtendedColorType;
use tessera::error::Kind;
use tiff::{
    encoder::{TiffEncoder, TiffKind, TiffKindBig, TiffKindStandard},
    tags::Tag,
};

use super::{Outcome, encoded, noise, read, refusal};

/// A page: its size, tags of SHORTs, and its only strip.
struct Page<'a> {
    size: (u32, u32),
    tags: &'a [(Tag, &'a [u16])],
    strip: &'a [u8],
}

/// A file of these pages.
fn file<K: TiffKind>(pages: &[Page<'_>]) -> Outcome<Vec<u8>> {
    fn write<W: Write + Seek, K: TiffKind>(
        encoder: &mut TiffEncoder<W, K>,
        page: &Page<'_>,
    ) -> Outcome {
        let mut directory = encoder.image_directory()?;
        let offset = directory.write_data(page.strip)?;
        directory.write_tag(Tag::ImageWidth, page.size.0)?;
        directory.write_tag(Tag::ImageLength, page.size.1)?;
        directory.write_tag(Tag::RowsPerStrip, page.size.1)?;
        directory.write_tag(Tag::StripOffsets, offset as u32)?;
        directory.write_tag(Tag::StripByteCounts, page.strip.len() as u32)?;
        for (tag, values) in page.tags {
            directory.write_tag(*tag, *values)?;
        }
        Ok(directory.finish()?)
    }
    let mut out = Cursor::new(Vec::new());
    let mut encoder = TiffEncoder::<_, K>::new_generic(&mut out)?;
    for page in pages {
        write(&mut encoder, page)?;
    }
    Ok(out.into_inner())
}

/// A classic file of one page.
fn one(size: (u32, u32), tags: &[(Tag, &[u16])], strip: &[u8]) -> Outcome<Vec<u8>> {
    file::<TiffKindStandard>(&[Page { size, tags, strip }])
}

const SIZE: (u32, u32) = (7, 5);
const PIXELS: usize = 35;
const EIGHT: (Tag, &[u16]) = (Tag::BitsPerSample, &[8]);

fn photometric(value: &'static [u16; 1]) -> (Tag, &'static [u16]) {
    (Tag::PhotometricInterpretation, value)
}

fn samples(count: &'static [u16; 1]) -> (Tag, &'static [u16]) {
    (Tag::SamplesPerPixel, count)
}

/// What is read of `file`, in levels from 0 to 255.
fn levels(file: &[u8]) -> Outcome<Vec<f32>> {
    let directory = tempfile::tempdir()?;
    let picture = read(directory.path(), file)?;
    assert_eq!((picture.width, picture.height), SIZE);
    Ok(picture.samples.iter().map(|v| 127.5 * (v + 1.0)).collect())
}

fn assert_near(found: &[f32], expected: impl IntoIterator<Item = f32>, tolerance: f32, what: &str) {
    let expected: Vec<f32> = expected.into_iter().collect();
    assert_eq!(found.len(), expected.len(), "{what}");
    for (a, b) in found.iter().zip(expected) {
        assert!((a - b).abs() <= tolerance, "{what}: {a} {b}");
    }
}

#[test]
fn bigtiff_is_read_as_classic_tiff_is() -> Outcome {
    let strip = noise(3 * PIXELS, 7);
    let tags = [EIGHT, photometric(&[2]), samples(&[3])];
    let page = || Page { size: SIZE, tags: &tags, strip: &strip };
    let classic = levels(&file::<TiffKindStandard>(&[page()])?)?;
    let big = file::<TiffKindBig>(&[page()])?;
    assert_eq!(big[2], 43);
    assert_near(&levels(&big)?, classic, 0.0, "BigTIFF");
    Ok(())
}

#[test]
fn planes_of_samples_are_put_side_by_side() -> Outcome {
    let strip = noise(3 * PIXELS, 4);
    let tags = [EIGHT, photometric(&[2]), samples(&[3]), (Tag::PlanarConfiguration, &[2_u16][..])];
    // Three tiles of 16x16, a plane each, that reach past the picture's right and bottom.
    let tile = |plane: usize| {
        let mut tile = vec![99; 16 * 16];
        for i in 0..PIXELS {
            tile[i / SIZE.0 as usize * 16 + i % SIZE.0 as usize] = strip[plane * PIXELS + i];
        }
        tile
    };
    let mut out = Cursor::new(Vec::new());
    let mut encoder = TiffEncoder::new(&mut out)?;
    let mut directory = encoder.image_directory()?;
    let mut offsets = Vec::new();
    for plane in 0..3 {
        offsets.push(directory.write_data(tile(plane).as_slice())? as u32);
    }
    directory.write_tag(Tag::ImageWidth, SIZE.0)?;
    directory.write_tag(Tag::ImageLength, SIZE.1)?;
    directory.write_tag(Tag::TileWidth, 16_u16)?;
    directory.write_tag(Tag::TileLength, 16_u16)?;
    directory.write_tag(Tag::TileOffsets, offsets.as_slice())?;
    directory.write_tag(Tag::TileByteCounts, &[256_u32; 3][..])?;
    for (tag, values) in tags {
        directory.write_tag(tag, values)?;
    }
    directory.finish()?;
    let expected =
        (0..PIXELS).flat_map(|i| [0, 1, 2].map(|plane| f32::from(strip[plane * PIXELS + i])));
    assert_near(&levels(&out.into_inner())?, expected, 0.01, "planes");
    Ok(())
}

#[test]
fn ycbcr_of_a_jpeg_in_a_tiff_becomes_rgb_and_a_damaged_one_is_refused() -> Outcome {
    let pixel = [200, 60, 90];
    let jpeg = encoded("jpeg", &pixel.repeat(PIXELS), SIZE, ExtendedColorType::Rgb8, None)?;
    let tags = [EIGHT, photometric(&[6]), samples(&[3]), (Tag::Compression, &[7_u16][..])];
    let tiff = one(SIZE, &tags, &jpeg)?;
    assert_near(&levels(&tiff)?, pixel.map(f32::from).repeat(PIXELS), 3.0, "YCbCr");
    let scan = jpeg.windows(2).position(|w| w == [0xFF, 0xDA]).ok_or("no scan")?;
    let cut = [&jpeg[..scan + 16], &[0xFF, 0xD9]].concat();
    let directory = tempfile::tempdir()?;
    let (kind, message) = refusal(directory.path(), &one(SIZE, &tags, &cut)?);
    assert_eq!(kind, Some(Kind::InvalidImage), "{message}");
    Ok(())
}

#[test]
fn alpha_lies_over_white_premultiplied_or_not() -> Outcome {
    // Colours of a pixel, alpha, and what is seen over white.
    for (colours, alpha, seen) in [
        ([51, 102, 204], 255, [51.0, 102.0, 204.0]),
        ([51, 102, 204], 51, [214.2, 224.4, 244.8]),
        ([51, 102, 204], 0, [255.0; 3]),
    ] {
        let over_white = |c: u16| f32::from(c * alpha / 255);
        let straight = [colours.as_slice(), &[alpha]].concat();
        let premultiplied = [colours.map(|c| over_white(c) as u16).as_slice(), &[alpha]].concat();
        for (extra, pixel) in [(&[2], straight), (&[1], premultiplied)] {
            let strip: Vec<u8> = pixel.iter().map(|&v| v as u8).collect();
            let tags = [EIGHT, photometric(&[2]), samples(&[4]), (Tag::ExtraSamples, &extra[..])];
            let read = levels(&one(SIZE, &tags, &strip.repeat(PIXELS))?)?;
            assert_near(&read, seen.repeat(PIXELS), 1.0, "RGB and alpha");
        }
        let grey = [colours[0], alpha];
        for (extra, pixel) in [(&[2], grey), (&[1], [over_white(colours[0]) as u16, alpha])] {
            let strip: Vec<u8> = pixel.iter().map(|&v| v as u8).collect();
            let tags = [EIGHT, photometric(&[1]), samples(&[2]), (Tag::ExtraSamples, &extra[..])];
            let read = levels(&one(SIZE, &tags, &strip.repeat(PIXELS))?)?;
            assert_near(&read, vec![seen[0]; 3 * PIXELS], 1.0, "grey and alpha");
        }
    }
    Ok(())
}

#[test]
fn a_sample_that_is_not_explained_is_refused_unless_it_changes_nothing() -> Outcome {
    let directory = tempfile::tempdir()?;
    for photometry in [photometric(&[2]), photometric(&[1])] {
        let count: &[u16] = if photometry.1 == [2] { &[4] } else { &[2] };
        let tags = [EIGHT, photometry, (Tag::SamplesPerPixel, count), (Tag::ExtraSamples, &[0])];
        let file = |extra| {
            let mut pixel = vec![20; usize::from(count[0])];
            pixel[usize::from(count[0]) - 1] = extra;
            one(SIZE, &tags, &pixel.repeat(PIXELS))
        };
        assert_near(&levels(&file(255)?)?, vec![20.0; 3 * PIXELS], 0.01, "opaque");
        let (kind, message) = refusal(directory.path(), &file(99)?);
        assert_eq!(kind, Some(Kind::InvalidImage), "{message}");
        assert!(message.contains("ExtraSamples"), "{message}");
    }
    Ok(())
}

#[test]
fn palettes_of_all_depths_are_looked_up() -> Outcome {
    for bits in [1_u16, 2, 4, 8] {
        let count = 1_usize << bits;
        let palette: Vec<u16> = noise(6 * count, u64::from(bits))
            .chunks_exact(2)
            .map(|b| u16::from_be_bytes([b[0], b[1]]))
            .collect();
        let row_len = (SIZE.0 as usize * usize::from(bits)).div_ceil(8);
        let strip = noise(row_len * SIZE.1 as usize, 9);
        let depth = [bits];
        let tags = [
            (Tag::BitsPerSample, &depth[..]),
            photometric(&[3]),
            samples(&[1]),
            (Tag::ColorMap, &palette),
        ];
        let index = |x: usize, y: usize| {
            let bit = x * usize::from(bits);
            let byte = strip[y * row_len + bit / 8];
            usize::from(byte >> (8 - usize::from(bits) - bit % 8)) & (count - 1)
        };
        let expected = (0..PIXELS).flat_map(|i| {
            let index = index(i % SIZE.0 as usize, i / SIZE.0 as usize);
            [0, 1, 2].map(|channel| f32::from(palette[channel * count + index] >> 8))
        });
        assert_near(&levels(&one(SIZE, &tags, &strip)?)?, expected, 0.01, "palette");
    }
    Ok(())
}

#[test]
fn grey_of_few_bits_and_white_at_zero_are_read() -> Outcome {
    for (bits, interpretation, expected) in [
        (1_u16, &[1], [0.0, 255.0]),
        (1, &[0], [255.0, 0.0]),
        (2, &[1], [0.0, 170.0]),
        (4, &[0], [255.0, 119.0]),
    ] {
        // Pixels 0 and, in turns, 1, 2 or 8.
        let byte = match bits {
            1 => 0b0101_0101,
            2 => 0b0010_0010,
            _ => 0x08,
        };
        let row_len = (SIZE.0 as usize * usize::from(bits)).div_ceil(8);
        let depth = [bits];
        let tags = [(Tag::BitsPerSample, &depth[..]), photometric(interpretation), samples(&[1])];
        let read = levels(&one(SIZE, &tags, &vec![byte; row_len * SIZE.1 as usize])?)?;
        let row = (0..SIZE.0 as usize).flat_map(|x| [expected[x % 2]; 3]);
        assert_near(&read[..3 * SIZE.0 as usize], row, 0.01, &format!("{bits} bits"));
    }
    Ok(())
}

#[test]
fn cielab_is_converted() -> Outcome {
    // L* 54, a* 81, b* 70 is sRGB's red (Lindbloom's calculator gives 54.29, 80.81, 69.89).
    for (interpretation, pixel) in [(&[8], [138_u8, 81, 70]), (&[9], [138, 128 + 81, 128 + 70])] {
        let tags = [EIGHT, photometric(interpretation), samples(&[3])];
        let read = levels(&one(SIZE, &tags, &pixel.repeat(PIXELS))?)?;
        assert_near(&read, [255.0, 0.0, 0.0].repeat(PIXELS), 6.0, "CIELab");
    }
    Ok(())
}

#[test]
fn the_first_page_of_full_size_is_read() -> Outcome {
    let small = Page {
        size: (2, 2),
        tags: &[EIGHT, photometric(&[1]), samples(&[1]), (Tag::NewSubfileType, &[1])],
        strip: &[255; 4],
    };
    // A page of several has another bit of the same tag.
    for subfile in [[0], [2]] {
        let tags =
            [EIGHT, photometric(&[1]), samples(&[1]), (Tag::NewSubfileType, subfile.as_slice())];
        let pages = [Page { ..small }, Page { size: SIZE, tags: &tags, strip: &[90; PIXELS] }];
        let read = levels(&file::<TiffKindStandard>(&pages)?)?;
        assert_near(&read, vec![90.0; 3 * PIXELS], 0.01, "page");
    }
    let directory = tempfile::tempdir()?;
    let (kind, message) = refusal(directory.path(), &file::<TiffKindStandard>(&[small])?);
    assert_eq!(kind, Some(Kind::InvalidImage), "{message}");
    assert!(message.contains("thumbnails"), "{message}");
    Ok(())
}

#[test]
fn what_is_not_read_is_refused_with_a_way_out() -> Outcome {
    let directory = tempfile::tempdir()?;
    let strip = noise(12 * PIXELS, 3);
    for (tags, says) in [
        (
            vec![
                (Tag::BitsPerSample, &[32_u16][..]),
                photometric(&[2]),
                samples(&[3]),
                (Tag::SampleFormat, &[3, 3, 3]),
            ],
            "floating-point",
        ),
        (vec![(Tag::BitsPerSample, &[32]), photometric(&[2]), samples(&[3])], "8 or 16 bits"),
        (vec![EIGHT, photometric(&[6]), samples(&[3])], "expected RGB"),
        (vec![EIGHT, (Tag::PhotometricInterpretation, &[32803]), samples(&[1])], "develop"),
        (vec![EIGHT, photometric(&[2]), samples(&[3]), (Tag::Compression, &[34925])], "Deflate"),
    ] {
        let (kind, message) = refusal(directory.path(), &one(SIZE, &tags, &strip)?);
        assert_eq!(kind, Some(Kind::InvalidImage), "{message}");
        assert!(message.contains(says), "{message}");
    }
    Ok(())
}
