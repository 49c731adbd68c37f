//! HTTP beside gRPC: the viewer at `/`, and every job's picture as Deep Zoom, IIIF and files.
//!
//! The guarantee: pictures can be looked at from the moment they are queued. A tile shows the pixels that are decoded, the
//! newest preview where none are, and nothing where there is no preview either; it may be cached only once all its pixels
//! are final. What a client sends never becomes a path: jobs are found by their id in the register, everything else is a
//! number or one of a few words. Disks are read and pictures encoded away from the threads that serve connections.
//!
//! Pages of other hosts may read Deep Zoom and IIIF where everybody may (no tokens): viewers of such pictures are such
//! pages, and whoever has a picture's address, which can't be guessed, was given it. They may read nothing else: not the
//! list of jobs, and no calls are answered to them.
//!
//! | path | what |
//! |---|---|
//! | `/` | the viewer, from `viewer/dist`, embedded |
//! | `/jobs/{id}/image.dzi`, `/jobs/{id}/image_files/{level}/{column}_{row}.png` | Deep Zoom: tiles of 256 pixels, no overlap |
//! | `/jobs/{id}/iiif/info.json`, `/jobs/{id}/iiif/{region}/{size}/0/default.{jpg,png}` | IIIF Image API 3, level 0 |
//! | `/jobs/{id}/preview.png` | the newest preview |
//! | `/jobs/{id}/image.tiff`, `/jobs/{id}/image.png` | the finished picture, with its metadata |
//! | POST `/jobs?strength=0.5&seed=7` | takes a picture in (the body) and queues its editing; the fields of `JobSpec` |

mod assets;
mod download;
mod iiif;
mod order;
pub(in crate::service) mod reply;
mod scene;
mod views;

use std::sync::Arc;

use axum::{
    Router,
    extract::{Path, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, header},
    middleware,
    response::Response,
    routing::{get, post},
};
use tokio::sync::Semaphore;
use tokio_stream::StreamExt as _;

use crate::geometry::{TILE, TilePosition};
use crate::{
    error::{Error, Kind, Resource, Result},
    image_out::Format,
    jobs::{self, Job, Jobs},
    service::{access::Client, upload::Uploads},
};
use reply::Failure;
use scene::{Encoding, Scene};
use views::Views;

/// What a page of this server may do: nothing with any other host.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; \
     connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What the handlers share.
struct Site {
    jobs: Jobs,
    views: Views,
    /// Places for those who compose and encode: more than there are processors would only wait in memory.
    work: Semaphore,
    /// One whole picture is written at a time; others wait and then find theirs written.
    pictures: Semaphore,
}

/// All routes, to be served or merged with others.
pub fn router(jobs: Jobs) -> Router {
    viewer().merge(pictures(jobs, true))
}

/// The viewer's files, which anybody may have: it asks for a token itself where the server wants one.
pub fn viewer() -> Router {
    assets::routes().layer(middleware::map_response(guarded))
}

/// The pictures of jobs; `open`: pages of other hosts may show them.
pub fn pictures(jobs: Jobs, open: bool) -> Router {
    let processors = std::thread::available_parallelism().map_or(2, usize::from);
    let site = Site {
        jobs,
        views: Views::default(),
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
        tiled = tiled.layer(middleware::map_response(opened));
    }
    tiled
        .route("/jobs/{id}/preview.png", get(preview))
        .route("/jobs/{id}/image.tiff", get(tiff))
        .route("/jobs/{id}/image.png", get(png))
        .with_state(Arc::new(site))
        .layer(middleware::map_response(guarded))
}

/// Adds what every answer says to browsers.
async fn guarded(mut response: Response) -> Response {
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ] {
        response.headers_mut().entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

/// Lets pages of other hosts have the answer.
async fn opened(mut response: Response) -> Response {
    for (name, value) in [
        (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*"),
        (HeaderName::from_static("cross-origin-resource-policy"), "cross-origin"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

type Answer = Result<Response, Failure>;

impl Site {
    /// Runs `task` on a thread that may wait for disks, when there is a place for it.
    async fn work<T: Send + 'static>(
        places: &Semaphore,
        task: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let _place = places.acquire().await.map_err(|_| jobs::shutting_down())?;
        tokio::task::spawn_blocking(task)
            .await
            .map_err(|e| Error::internal("a picture's thread panicked").with_source(e))?
    }

    /// Composes and encodes a part of a job's picture; `what` names it within the job.
    async fn part(
        self: &Arc<Self>,
        job: Arc<Job>,
        headers: &HeaderMap,
        what: String,
        part: Part,
        encoding: Encoding,
    ) -> Answer {
        let tag = format!("\"{}-{what}\"", job.id);
        let site = self.clone();
        // Whoever has the tag has the final pixels: only those ever had one.
        if reply::knows(headers, &tag) {
            return Ok(reply::unchanged(&tag));
        }
        let compose = move || {
            let mut scene = site.views.scene(job)?;
            let (block, complete) = match part {
                Part::Tile(place) => scene.tile(&site.views, place)?,
                Part::Level(level) => scene.level(&site.views, level)?,
            };
            Ok((block.encode(encoding)?, complete))
        };
        let (bytes, complete) = Self::work(&self.work, compose).await?;
        let kind = encoding.content_type();
        Ok(match complete {
            true => reply::lasting(kind, &tag, bytes),
            false => reply::fleeting(kind, bytes),
        })
    }
}

/// A part of a picture that can be asked for.
#[derive(Clone, Copy)]
enum Part {
    /// A tile of the pyramid.
    Tile(TilePosition),
    /// A whole level, for small ones.
    Level(usize),
}

async fn deep_zoom(State(site): State<Arc<Site>>, Path(id): Path<String>) -> Answer {
    let spec = &site.jobs.get(&id)?.plan.spec;
    let (width, height) = (spec.width, spec.height);
    let text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <Image xmlns=\"http://schemas.microsoft.com/deepzoom/2008\" Format=\"png\" Overlap=\"0\" TileSize=\"{TILE}\">\
         <Size Width=\"{width}\" Height=\"{height}\"/></Image>\n"
    );
    Ok(reply::fleeting("application/xml", text))
}

async fn deep_zoom_tile(
    State(site): State<Arc<Site>>,
    Path((id, level, name)): Path<(String, String, String)>,
    headers: HeaderMap,
) -> Answer {
    let job = site.jobs.get(&id)?;
    let place = name.strip_suffix(".png").and_then(|name| name.split_once('_'));
    let (column, row) =
        place.ok_or_else(|| Error::invalid("name", format!("{name:?}"), "COLUMN_ROW.png"))?;
    let place = TilePosition {
        level: number("level", &level)?,
        column: number("column", column)?,
        row: number("row", row)?,
    };
    Scene::pyramid(&job).area(place)?;
    let what = format!("{}-{}-{}", place.level, place.column, place.row);
    site.part(job, &headers, what, Part::Tile(place), Encoding::Png).await
}

/// The way in for pictures that are edited.
pub(super) fn uploads(uploads: Uploads) -> Router {
    Router::new()
        .route("/jobs", post(edit))
        .with_state(uploads)
        .layer(middleware::map_response(guarded))
}

async fn edit(State(uploads): State<Uploads>, request: Request) -> Answer {
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    // Browsers let pages of other hosts send texts and forms unasked, pictures not.
    if !kind.is_some_and(|kind| kind.starts_with("image/")) {
        let error = match kind {
            Some(kind) => {
                Error::invalid("content-type", kind, "image/jpeg, image/png or image/tiff")
            }
            None => Error::missing("content-type", "image/jpeg, image/png or image/tiff"),
        };
        return Err(error.into());
    }
    let client = request.extensions().get::<Client>().cloned();
    let order = order::parse(request.uri().query().unwrap_or_default())?;
    let data = request
        .into_body()
        .into_data_stream()
        .map(|bytes| bytes.map_err(|e| Error::cancelled("the upload").with_source(e)));
    let job = uploads.edit(client, order, data).await?;
    let name = serde_json::json!({ "name": format!("jobs/{}", job.id) });
    Ok(reply::created(&format!("/jobs/{}/image.dzi", job.id), name.to_string()))
}

async fn preview(State(site): State<Arc<Site>>, Path(id): Path<String>) -> Answer {
    let job = site.jobs.get(&id)?;
    job.want_previews();
    let read = move || job.preview(job.newest_preview()?);
    match Site::work(&site.work, read).await {
        Ok(bytes) => Ok(reply::fleeting("image/png", bytes)),
        // To an image element a preview that is pending is one that does not exist.
        Err(error) if error.kind() == Kind::NotReady => {
            Err(Error::not_found(Resource::Preview, id).into())
        }
        Err(error) => Err(error.into()),
    }
}

async fn tiff(site: State<Arc<Site>>, id: Path<String>, headers: HeaderMap) -> Answer {
    picture(site, id, &headers, Format::Tiff).await
}

async fn png(site: State<Arc<Site>>, id: Path<String>, headers: HeaderMap) -> Answer {
    picture(site, id, &headers, Format::Png).await
}

async fn picture(
    State(site): State<Arc<Site>>,
    Path(id): Path<String>,
    headers: &HeaderMap,
    format: Format,
) -> Answer {
    let job = site.jobs.get(&id)?;
    let (extension, kind) = match format {
        Format::Tiff => ("tiff", "image/tiff"),
        Format::Png => ("png", "image/png"),
    };
    let spec = &job.plan.spec;
    let name = format!("tessera-{}-{}x{}.{extension}", spec.seed, spec.width, spec.height);
    let tag = format!("\"{}-{extension}\"", job.id);
    let jobs = site.jobs.clone();
    let path = Site::work(&site.pictures, move || jobs.picture(&job, format)).await?;
    let file = Site::work(&site.work, move || download::open(&path)).await?;
    Ok(download::send(file, headers, kind, &tag, &name))
}

/// A number as it stands in an address: digits and nothing else.
fn number(field: &'static str, text: &str) -> Result<usize> {
    let digits = (1..=9).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    let value = if digits { text.parse().ok() } else { None };
    value.ok_or_else(|| Error::invalid(field, format!("{text:?}"), "a number of 1 to 9 digits"))
}
