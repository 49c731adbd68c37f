//! PNG output.

use std::path::Path;

use png::{
    BitDepth, ColorType, Encoder, EncodingError, PixelDimensions, SrgbRenderingIntent, Unit,
};

use super::{Bits, Metadata, PixelSource, check_size, metadata::ascii};
use crate::{
    error::{Error, Result},
    geometry::Rect,
    store::AtomicFile,
};

/// Writes `source` as a PNG to `path`, replacing an existing file.
///
/// It has an sRGB chunk, the description, program and time as text, and the generation metadata as XMP. Rows are read
/// and compressed one by one.
///
/// # Errors
///
/// See [`write`](super::write()).
pub fn write_png(path: &Path, source: &dyn PixelSource, metadata: &Metadata) -> Result<()> {
    check_size(source, i32::MAX as u32)?;
    let failed = |error| match error {
        EncodingError::IoError(source) => Error::io("write", path, source),
        other => Error::internal(format!("encoding {}", path.display())).with_source(other),
    };
    let mut file = AtomicFile::create(path)?;
    let mut writer =
        encoder(&mut file, source, metadata).and_then(Encoder::write_header).map_err(failed)?;
    let mut rows = writer.stream_writer().map_err(failed)?;
    let width = source.width() as usize;
    let mut row = vec![0; width * source.bits().pixel_len()];
    for y in 0..source.height() as usize {
        source.read(Rect { x: 0, y, width, height: 1 }, &mut row)?;
        if source.bits() == Bits::Sixteen {
            for sample in row.chunks_exact_mut(2) {
                let big_endian = u16::from_ne_bytes([sample[0], sample[1]]).to_be_bytes();
                sample.copy_from_slice(&big_endian);
            }
        }
        std::io::Write::write_all(&mut rows, &row)
            .map_err(|source| Error::io("write", path, source))?;
    }
    rows.finish().map_err(failed)?;
    writer.finish().map_err(failed)?;
    file.commit()
}

/// The header and all text.
fn encoder<'a>(
    file: &'a mut AtomicFile,
    source: &dyn PixelSource,
    metadata: &Metadata,
) -> Result<Encoder<'static, &'a mut AtomicFile>, EncodingError> {
    let mut encoder = Encoder::new(file, source.width(), source.height());
    encoder.set_color(ColorType::Rgb);
    encoder.set_depth(match source.bits() {
        Bits::Eight => BitDepth::Eight,
        Bits::Sixteen => BitDepth::Sixteen,
    });
    encoder.set_source_srgb(SrgbRenderingIntent::Perceptual);
    let attribution = metadata.attribution();
    // 72 pixels per inch if nothing else is known, as in the TIFF.
    let [xppu, yppu] = attribution
        .resolution
        .unwrap_or([72.0; 2])
        .map(|per_inch| (per_inch / 0.0254).round() as u32);
    encoder.set_pixel_dims(Some(PixelDimensions { xppu, yppu, unit: Unit::Meter }));
    let texts = [
        ("Software", Some(Metadata::software().to_owned())),
        ("Creation Time", metadata.rfc3339_time()),
        ("Description", Some(metadata.ascii_description())),
        ("Author", attribution.artist.as_deref().map(ascii)),
        ("Copyright", attribution.copyright.as_deref().map(ascii)),
    ];
    for (keyword, text) in texts.into_iter().filter_map(|(keyword, text)| Some((keyword, text?))) {
        encoder.add_text_chunk(keyword.to_owned(), text)?;
    }
    encoder.add_itxt_chunk("XML:com.adobe.xmp".to_owned(), metadata.xmp())?;
    Ok(encoder)
}
