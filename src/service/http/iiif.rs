//! IIIF Image API 3.0, compliance level 0 (<https://iiif.io/api/image/3.0/>): `info.json` and the tiles and sizes that it
//! lists. Other requests are rejected.

use axum::{
    extract::{Path, State},
    http::{HeaderMap, StatusCode, Uri, header},
    response::IntoResponse,
};
use serde_json::json;

use super::{
    Arc, HttpResult, HttpState, Part,
    composite::{CompositeImage, Encoding},
    links, number, reply,
};
use crate::{
    engine::plan::Rect,
    error::{Error, Resource, Result},
    geometry::{Pyramid, TILE, TilePosition},
    service::access::Caller,
};

/// Longest side of a picture sent as one image.
const MAX_WHOLE: usize = 1024;

/// `/jobs/{id}/iiif` redirects to the description, as the specification requires.
pub(super) async fn redirect(
    State(state): State<Arc<HttpState>>,
    caller: Caller,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> HttpResult {
    let id = &caller.job(&state.jobs, &id)?.id;
    let place = format!("{}/jobs/{id}/iiif/info.json", links::prefix(&headers));
    let place = [(header::LOCATION, place)];
    Ok((StatusCode::SEE_OTHER, place).into_response())
}

/// The description of a picture.
pub(super) async fn info(
    State(state): State<Arc<HttpState>>,
    caller: Caller,
    Path(id): Path<String>,
    uri: Uri,
    headers: HeaderMap,
) -> HttpResult {
    let job = caller.job(&state.jobs, &id)?;
    let pyramid = CompositeImage::pyramid(&job);
    let largest = pyramid.within(MAX_WHOLE);
    let (width, height) = pyramid.size(largest);
    let sizes: Vec<_> = (0..=largest)
        .map(|level| pyramid.size(level))
        .map(|(width, height)| json!({"width": width, "height": height}))
        .collect();
    // From the level that fits one tile; it is among the sizes.
    let factors: Vec<_> =
        (0..=pyramid.last() - pyramid.within(TILE)).map(|shift| 1usize << shift).collect();
    let info = json!({
        "@context": "http://iiif.io/api/image/3/context.json",
        "id": format!("{}/jobs/{}/iiif", links::base(&uri, &headers), job.id),
        "type": "ImageService3",
        "protocol": "http://iiif.io/api/image",
        "profile": "level0",
        "width": pyramid.width,
        "height": pyramid.height,
        "maxWidth": width,
        "maxHeight": height,
        "sizes": sizes,
        "tiles": [{"width": TILE, "height": TILE, "scaleFactors": factors}],
        "extraFormats": ["png"],
        "preferredFormats": ["png", "jpg"],
    });
    let kind = "application/ld+json;profile=\"http://iiif.io/api/image/3/context.json\"";
    Ok(reply::no_store(kind, info.to_string()))
}

/// A tile or a listed size of the whole picture.
pub(super) async fn image(
    State(state): State<Arc<HttpState>>,
    caller: Caller,
    Path((id, region, size, rotation, name)): Path<(String, String, String, String, String)>,
    headers: HeaderMap,
) -> HttpResult {
    let job = caller.job(&state.jobs, &id)?;
    let pyramid = CompositeImage::pyramid(&job);
    if rotation != "0" {
        return Err(Error::invalid("rotation", format!("{rotation:?}"), "0").into());
    }
    let encoding = match name.split_once('.') {
        Some(("default" | "color", "jpg")) => Encoding::Jpeg,
        Some(("default" | "color", "png")) => Encoding::Png,
        _ => {
            return Err(Error::invalid(
                "quality.format",
                format!("{name:?}"),
                "default.jpg or default.png",
            )
            .into());
        }
    };
    let part = asked(pyramid, &region, &size)?;
    let kind = if encoding == Encoding::Jpeg { "jpg" } else { "png" };
    let name = match part {
        Part::Level(level) => format!("whole-{level}-{kind}"),
        Part::Tile(TilePosition { level, column, row }) => format!("{level}-{column}-{row}-{kind}"),
    };
    state.part(job, &headers, name, part, encoding).await
}

/// The part of the picture with this region and size.
fn asked(pyramid: Pyramid, region: &str, size: &str) -> Result<Part> {
    // Valid regions and sizes are those that info.json lists.
    let name = format!("{region}/{size}");
    let unlisted = || Error::not_found(Resource::Tile, name);
    let size = match size {
        "max" => None,
        _ => Some(numbers::<2>("size", size).map_err(|error| {
            let expected = "max or width,height as info.json lists them, such as 512,256";
            Error::invalid("size", size, expected).with_source(error)
        })?),
    };
    let all = Rect { x: 0, y: 0, width: pyramid.width, height: pyramid.height };
    let rect = match region {
        "full" => all,
        _ => {
            let [x, y, width, height] = numbers("region", region)?;
            Rect { x, y, width, height }
        }
    };
    let largest = pyramid.within(MAX_WHOLE);
    if rect == all {
        let fits = |&level: &usize| {
            let (width, height) = pyramid.size(level);
            size.map_or(level == largest, |size| size == [width, height])
        };
        if let Some(level) = (0..=largest).rev().find(fits) {
            return Ok(Part::Level(level));
        }
    }
    let tile = |level: usize| {
        let side = TILE << (pyramid.last() - level);
        let place = TilePosition { level, column: rect.x / side, row: rect.y / side };
        let area = pyramid.area(place).ok()?;
        let fits = size.is_none_or(|size| size == [area.width, area.height]);
        let max = size.is_some() || level == pyramid.last();
        (fits && max && pyramid.under(level, area) == rect).then_some(Part::Tile(place))
    };
    (0..=pyramid.last()).rev().find_map(tile).ok_or_else(unlisted)
}

/// Parses exactly `N` numbers separated by commas.
fn numbers<const N: usize>(field: &'static str, text: &str) -> Result<[usize; N]> {
    let numbers = text.split(',').map(|text| number(field, text)).collect::<Result<Vec<_>>>()?;
    let found = numbers.len();
    numbers
        .try_into()
        .map_err(|_| Error::invalid(field, format!("{found} numbers"), format!("{N} numbers")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn iiif_parts_are_those_that_info_json_lists() {
        let pyramid = Pyramid { width: 1500, height: 700 };
        let tile = |region, size| match asked(pyramid, region, size) {
            Ok(Part::Tile(TilePosition { level, column, row })) => Some((level, column, row)),
            Ok(Part::Level(_)) | Err(_) => None,
        };
        let whole = |region, size| match asked(pyramid, region, size) {
            Ok(Part::Level(level)) => Some(level),
            Ok(Part::Tile(_)) | Err(_) => None,
        };
        assert_eq!(tile("256,512,256,188", "256,188"), Some((11, 1, 2)));
        assert_eq!(tile("1280,0,220,256", "max"), Some((11, 5, 0)));
        assert_eq!(tile("1024,512,476,188", "238,94"), Some((10, 2, 1)));
        assert_eq!(whole("full", "750,350"), Some(10));
        assert_eq!(whole("full", "max"), Some(10));
        assert_eq!(whole("0,0,1500,700", "188,88"), Some(8));
        for (region, size, kind) in [
            ("full", "1500,700", Kind::NotFound),
            ("0,0,100,100", "100,100", Kind::NotFound),
            ("256,512,256,188", "128,94", Kind::NotFound),
            ("1536,0,256,256", "256,256", Kind::NotFound),
            ("0,0,256", "256,256", Kind::InvalidArgument),
            ("-1,0,256,256", "256,256", Kind::InvalidArgument),
            ("pct:0,0,50,50", "max", Kind::InvalidArgument),
            ("full", "256,", Kind::InvalidArgument),
            ("999999999,999999999,999999999,999999999", "1,1", Kind::NotFound),
        ] {
            let Err(error) = asked(pyramid, region, size) else { panic!("{region} {size}") };
            assert_eq!(error.kind(), kind, "{region} {size}");
        }
    }
}
