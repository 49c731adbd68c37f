//! The viewer's files: the built bundle of `viewer/`, embedded in the program.

use std::sync::LazyLock;

use axum::{
    Router,
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
    routing::get,
};
use flate2::{Compression, write::GzEncoder};
use sha2::{Digest, Sha256};

use super::reply::{Body, etag_matches};
use crate::store::hash::hex;

/// A file of the viewer.
struct Asset {
    path: &'static str,
    kind: &'static str,
    bytes: &'static [u8],
}

macro_rules! asset {
    ($path:literal, $file:literal, $kind:literal) => {
        Asset {
            path: $path,
            kind: $kind,
            bytes: include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/viewer/dist/", $file)),
        }
    };
}

const ASSETS: [Asset; 5] = [
    asset!("/", "index.html", "text/html; charset=utf-8"),
    asset!("/viewer.js", "viewer.js", "text/javascript; charset=utf-8"),
    asset!("/viewer.css", "viewer.css", "text/css; charset=utf-8"),
    asset!("/icon.svg", "icon.svg", "image/svg+xml"),
    asset!("/LICENSES.txt", "LICENSES.txt", "text/plain; charset=utf-8"),
];

/// A compressed asset.
struct Packed {
    tag: String,
    gzip: Vec<u8>,
}

/// Tags and compressed bytes, computed at the first request.
static PACKED: LazyLock<Vec<Packed>> = LazyLock::new(|| {
    let pack = |asset: &Asset| {
        let hash = Sha256::digest(asset.bytes);
        let digits = hex(&hash[..12]);
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        // Writing to memory does not fail; without compressed bytes the file is sent as it is.
        let written = std::io::Write::write_all(&mut encoder, asset.bytes);
        let gzip = written.and_then(|()| encoder.finish()).unwrap_or_default();
        Packed { tag: format!("\"{digits}\""), gzip }
    };
    ASSETS.iter().map(pack).collect()
});

/// The routes of the viewer.
pub(super) fn routes() -> Router {
    (0..ASSETS.len()).fold(Router::new(), |router, index| {
        router.route(
            ASSETS[index].path,
            get(move |headers: HeaderMap| async move { serve(index, &headers) }),
        )
    })
}

/// Responds with an asset. Browsers revalidate it at each load, so a new server version brings its viewer.
fn serve(index: usize, headers: &HeaderMap) -> Response {
    let (asset, packed) = (&ASSETS[index], &PACKED[index]);
    let caching = [
        (header::ETAG, packed.tag.as_str()),
        (header::CACHE_CONTROL, "no-cache"),
        (header::VARY, "accept-encoding"),
    ];
    if etag_matches(headers, &packed.tag) {
        return (axum::http::StatusCode::NOT_MODIFIED, caching).into_response();
    }
    let kind = [(header::CONTENT_TYPE, asset.kind)];
    let accepted = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|v| v.to_str().ok());
    let gzip = accepted.flat_map(|list| list.split(',')).any(|coding| coding.trim() == "gzip");
    match gzip && !packed.gzip.is_empty() {
        true => {
            let encoding = [(header::CONTENT_ENCODING, "gzip")];
            (caching, kind, encoding, Body::from(packed.gzip.as_slice())).into_response()
        }
        false => (caching, kind, Body::from(asset.bytes)).into_response(),
    }
}
