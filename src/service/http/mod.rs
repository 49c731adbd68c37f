//! HTTP on the port of gRPC: the viewer at `/`, and every job's picture as Deep Zoom, IIIF and files.
//!
//! Guarantees: a picture can be viewed as soon as its job is queued. A tile shows decoded pixels, elsewhere the newest
//! preview, and is transparent without one. It may be cached once all its pixels are final. Client input never becomes a
//! file path: jobs are looked up by id, everything else is a number or a keyword. Blocking work runs on blocking threads.
//!
//! Without tokens, web pages of other hosts may read Deep Zoom and IIIF, as viewers do; a picture's URL is unguessable. They
//! may read nothing else and make no calls.
//!
//! | path | content |
//! |---|---|
//! | `/` | the viewer, from `viewer/dist`, embedded |
//! | `/jobs/{id}/image.dzi`, `/jobs/{id}/image_files/{level}/{column}_{row}.png` | Deep Zoom: tiles of 256 pixels, no overlap |
//! | `/jobs/{id}/iiif/info.json`, `/jobs/{id}/iiif/{region}/{size}/0/default.{jpg,png}` | IIIF Image API 3, level 0 |
//! | `/jobs/{id}/preview.png` | the newest preview |
//! | `/jobs/{id}/image.tiff`, `/jobs/{id}/image.png` | the finished picture, with its metadata |
//! | POST `/jobs?strength=0.5&seed=7` | creates a job that edits the picture in the body; the query has fields of `JobSpec` |

mod assets;
mod composite;
mod download;
mod iiif;
mod links;
mod query;
pub(in crate::service) mod reply;
mod tile_cache;

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{Path, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, header},
    response::Response,
    routing::{get, post},
};
use tokio::sync::Semaphore;
use tokio_stream::StreamExt as _;
use tower_http::{
    cors::{Any, CorsLayer},
    set_header::SetResponseHeaderLayer,
};

use crate::{
    error::{Error, Kind, Resource, Result},
    geometry::{TILE, TilePosition},
    image_out::Format,
    jobs::{self, Job, Jobs},
    service::{access::Caller, blocking::blocking, upload::Uploads},
};
use composite::{CompositeImage, Encoding};
use reply::Failure;
use tile_cache::TileCache;

/// Content security policy: only this host.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; \
     connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Time for which browsers may keep the answer to a preflight request.
const PREFLIGHT_AGE: Duration = Duration::from_secs(3600);

/// State shared by the handlers.
struct HttpState {
    jobs: Jobs,
    cache: TileCache,
    /// Permits to compose and encode, one per processor.
    work: Semaphore,
    /// Permit to write a whole picture file; later requests find the file.
    pictures: Semaphore,
}

/// All routes.
pub fn router(jobs: Jobs) -> Router {
    viewer().merge(pictures(jobs, true))
}

/// The viewer's files. They are public: the viewer asks for a token if the server requires one.
pub fn viewer() -> Router {
    security_headers(assets::routes())
}

/// Routes of the jobs' pictures. `open`: pages of other hosts may read Deep Zoom and IIIF.
pub fn pictures(jobs: Jobs, open: bool) -> Router {
    let processors = std::thread::available_parallelism().map_or(2, usize::from);
    let state = HttpState {
        jobs,
        cache: TileCache::default(),
        work: Semaphore::new(processors),
        pictures: Semaphore::new(1),
    };
    let mut tiled = Router::new()
        .route("/jobs/{id}/image.dzi", get(deep_zoom))
        .route("/jobs/{id}/image_files/{level}/{name}", get(deep_zoom_tile))
        .route("/jobs/{id}/iiif", get(iiif::redirect))
        .route("/jobs/{id}/iiif/info.json", get(iiif::info))
        .route("/jobs/{id}/iiif/{region}/{size}/{rotation}/{name}", get(iiif::image));
    if open {
        let header = HeaderName::from_static("cross-origin-resource-policy");
        let policy = HeaderValue::from_static("cross-origin");
        // Answers preflight requests too. Viewers may add headers of their own; `*` does not include `authorization`.
        let cors = CorsLayer::new()
            .allow_origin(Any)
            .allow_methods([Method::GET, Method::HEAD])
            .allow_headers(Any)
            .max_age(PREFLIGHT_AGE);
        tiled = tiled.layer(cors).layer(SetResponseHeaderLayer::overriding(header, policy));
    }
    let router = tiled
        .route("/jobs/{id}/preview.png", get(preview))
        .route("/jobs/{id}/image.tiff", get(tiff))
        .route("/jobs/{id}/image.png", get(png))
        .with_state(Arc::new(state));
    security_headers(router)
}

/// Adds security headers to responses that do not have them, and answers `If-None-Match: *`.
fn security_headers(router: Router) -> Router {
    let router = router.layer(axum::middleware::from_fn(reply::unless_present));
    let headers = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ];
    headers.into_iter().fold(router, |router, (name, value)| {
        let value = HeaderValue::from_static(value);
        router.layer(SetResponseHeaderLayer::if_not_present(name, value))
    })
}

type HttpResult = Result<Response, Failure>;

impl HttpState {
    /// Runs `task` on a blocking thread when a permit is available.
    async fn work<T: Send + 'static>(
        permits: &Semaphore,
        task: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let _permit = permits.acquire().await.map_err(|_| jobs::shutting_down())?;
        blocking(task).await
    }

    /// Composes and encodes a part of a job's picture; `part_name` identifies it within the job.
    async fn part(
        self: &Arc<Self>,
        job: Arc<Job>,
        headers: &HeaderMap,
        part_name: String,
        part: Part,
        encoding: Encoding,
    ) -> HttpResult {
        let tag = format!("\"{}-{part_name}\"", job.id);
        let state = self.clone();
        // Only final pixels have a tag.
        if reply::etag_matches(headers, &tag) {
            return Ok(reply::not_modified(&tag));
        }
        let compose = move || {
            let mut composite = state.cache.composite(job)?;
            let (block, complete) = match part {
                Part::Tile(place) => composite.tile(&state.cache, place)?,
                Part::Level(level) => composite.level(&state.cache, level)?,
            };
            Ok((block.encode(encoding)?, complete))
        };
        let (bytes, complete) = Self::work(&self.work, compose).await?;
        let kind = encoding.content_type();
        Ok(match complete {
            true => reply::immutable(kind, &tag, bytes),
            false => reply::no_store(kind, bytes),
        })
    }
}

/// A part of a picture.
#[derive(Clone, Copy)]
enum Part {
    /// A tile of the pyramid.
    Tile(TilePosition),
    /// A whole level, if small.
    Level(usize),
}

async fn deep_zoom(
    State(state): State<Arc<HttpState>>,
    caller: Caller,
    Path(id): Path<String>,
) -> HttpResult {
    let spec = &caller.job(&state.jobs, &id)?.plan.spec;
    let (width, height) = (spec.width, spec.height);
    let text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <Image xmlns=\"http://schemas.microsoft.com/deepzoom/2008\" Format=\"png\" Overlap=\"0\" TileSize=\"{TILE}\">\
         <Size Width=\"{width}\" Height=\"{height}\"/></Image>\n"
    );
    Ok(reply::no_store("application/xml", text))
}

async fn deep_zoom_tile(
    State(state): State<Arc<HttpState>>,
    caller: Caller,
    Path((id, level, name)): Path<(String, String, String)>,
    headers: HeaderMap,
) -> HttpResult {
    let job = caller.job(&state.jobs, &id)?;
    let place = name.strip_suffix(".png").and_then(|name| name.split_once('_'));
    let (column, row) =
        place.ok_or_else(|| Error::invalid("name", format!("{name:?}"), "COLUMN_ROW.png"))?;
    let place = TilePosition {
        level: number("level", &level)?,
        column: number("column", column)?,
        row: number("row", row)?,
    };
    CompositeImage::pyramid(&job).area(place)?;
    let part_name = format!("{}-{}-{}", place.level, place.column, place.row);
    state.part(job, &headers, part_name, Part::Tile(place), Encoding::Png).await
}

/// The route of uploads.
pub(super) fn uploads(uploads: Uploads) -> Router {
    security_headers(Router::new().route("/jobs", post(edit)).with_state(uploads))
}

async fn edit(State(uploads): State<Uploads>, request: Request) -> HttpResult {
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    // Browsers let pages of other hosts send texts and forms without a preflight request, but not pictures.
    if !kind.is_some_and(|kind| kind.starts_with("image/")) {
        let expected = "image/jpeg, image/png, image/tiff or image/webp";
        let error = match kind {
            Some(kind) => Error::invalid("content-type", kind, expected),
            None => Error::missing("content-type", expected),
        };
        return Err(error.into());
    }
    let order = query::parse(request.uri())?;
    let receiver = uploads.begin(request.extensions())?;
    let prefix = links::prefix(request.headers()).to_owned();
    let data = request.into_body().into_data_stream().map(|bytes| {
        bytes.map_err(|e| Failure::from(Error::cancelled("the upload").with_source(e)))
    });
    let job = receiver.edit(order, data).await?;
    let name = serde_json::json!({ "name": format!("jobs/{}", job.id) });
    Ok(reply::created(&format!("{prefix}/jobs/{}/image.dzi", job.id), name.to_string()))
}

async fn preview(
    State(state): State<Arc<HttpState>>,
    caller: Caller,
    Path(id): Path<String>,
) -> HttpResult {
    let job = caller.job(&state.jobs, &id)?;
    job.want_previews();
    let read = move || job.preview(job.newest_preview()?);
    match HttpState::work(&state.work, read).await {
        Ok(bytes) => Ok(reply::no_store("image/png", bytes)),
        // Image elements treat a pending preview as a missing one.
        Err(error) if error.kind() == Kind::NotReady => {
            Err(Error::not_found(Resource::Preview, id).into())
        }
        Err(error) => Err(error.into()),
    }
}

async fn tiff(
    state: State<Arc<HttpState>>,
    caller: Caller,
    id: Path<String>,
    headers: HeaderMap,
) -> HttpResult {
    picture(state, caller, id, &headers, Format::Tiff).await
}

async fn png(
    state: State<Arc<HttpState>>,
    caller: Caller,
    id: Path<String>,
    headers: HeaderMap,
) -> HttpResult {
    picture(state, caller, id, &headers, Format::Png).await
}

async fn picture(
    State(state): State<Arc<HttpState>>,
    caller: Caller,
    Path(id): Path<String>,
    headers: &HeaderMap,
    format: Format,
) -> HttpResult {
    let job = caller.job(&state.jobs, &id)?;
    let (extension, kind) = match format {
        Format::Tiff => ("tiff", "image/tiff"),
        Format::Png => ("png", "image/png"),
    };
    let spec = &job.plan.spec;
    let name = format!("tessera-{}-{}x{}.{extension}", spec.seed, spec.width, spec.height);
    let tag = format!("\"{}-{extension}\"", job.id);
    let jobs = state.jobs.clone();
    let path = HttpState::work(&state.pictures, move || jobs.picture(&job, format)).await?;
    let file = HttpState::work(&state.work, move || download::open(&path)).await?;
    Ok(download::send(file, headers, kind, &tag, &name))
}

/// Parses a number in a URL: digits only.
fn number(field: &'static str, text: &str) -> Result<usize> {
    let digits = (1..=9).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    let value = if digits { text.parse().ok() } else { None };
    value.ok_or_else(|| Error::invalid(field, format!("{text:?}"), "a number of 1 to 9 digits"))
}
