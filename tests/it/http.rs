//! HTTP's promises, on the router itself: pictures that are being made can be looked at, final ones are those of the file,
//! and every address has an answer.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::{Body, to_bytes},
    http::{HeaderMap, Request, StatusCode, header},
};
use image::{DynamicImage, GenericImageView as _};
use tempfile::TempDir;
use tessera::{
    engine::{
        device::Choice,
        plan::{Spec, TileSize},
    },
    image_out::Bits,
    jobs::{Job, Jobs, Models, Phase},
    service::http,
};
use tower::ServiceExt as _;

use crate::common::{
    self,
    jobs::{request, settings},
};

/// Jobs with a random model: of `sizes` in multiples of 16 for net-a, of 4 for net-b.
struct Site {
    jobs: Jobs,
    router: Router,
    _directory: TempDir,
}

impl Site {
    fn open(model: &str, devices: Vec<Choice>) -> Self {
        let model = common::model(model);
        let directory = tempfile::tempdir().unwrap();
        let settings = settings(directory.path(), devices);
        let jobs = Jobs::open(settings, Models::new(vec![Arc::new(model)]).unwrap()).unwrap();
        Self { router: http::router(jobs.clone()), jobs, _directory: directory }
    }

    fn create(&self, width: usize, height: usize, tile: TileSize, bits: Bits) -> Arc<Job> {
        let spec = Spec::new(&self.jobs.models().first().arch, 7);
        let spec = Spec { width, height, steps: 4.into(), tile, bits, ..spec };
        self.jobs.create(request(&self.jobs, spec)).unwrap()
    }

    async fn ask(&self, path: &str, headers: &[(header::HeaderName, &str)]) -> Answer {
        let mut request = Request::get(path);
        for (name, value) in headers {
            request = request.header(name, *value);
        }
        self.send(request.body(Body::empty()).unwrap()).await
    }

    async fn send(&self, request: Request<Body>) -> Answer {
        let answer = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = answer.into_parts();
        let body = to_bytes(body, 64 << 20).await.unwrap().to_vec();
        Answer { status: parts.status, headers: parts.headers, body }
    }

    async fn get(&self, path: &str) -> Answer {
        self.ask(path, &[]).await
    }

    /// The answer to a browser that asks if a page of another host may send a request with headers of its own.
    async fn preflight(&self, path: &str) -> Answer {
        let request = Request::options(path)
            .header(header::ORIGIN, "https://viewer.example")
            .header(header::ACCESS_CONTROL_REQUEST_METHOD, "GET")
            .header(header::ACCESS_CONTROL_REQUEST_HEADERS, "accept,x-requested-with");
        self.send(request.body(Body::empty()).unwrap()).await
    }
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: header::HeaderName) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    fn picture(&self) -> DynamicImage {
        assert_eq!(self.status, StatusCode::OK, "{}", self.text());
        image::load_from_memory(&self.body).unwrap()
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

fn cpu() -> Vec<Choice> {
    vec!["cpu".parse().unwrap()]
}

async fn until(job: &Job, enough: impl Fn(&Job) -> bool) {
    for _ in 0..20_000 {
        if enough(job) {
            return;
        }
        let now = job.snapshot();
        assert!(!matches!(now.phase, Phase::Failed | Phase::Cancelled), "{now:?}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("the job does not get on: {:?}", job.snapshot());
}

async fn finished(job: &Job) {
    until(job, |job| job.snapshot().phase == Phase::Finished).await;
}

/// RGB of 8 bits of the whole picture.
fn samples(job: &Job) -> image::RgbImage {
    let spec = &job.plan.spec;
    let rect = tessera::engine::plan::Rect { x: 0, y: 0, width: spec.width, height: spec.height };
    let bytes = job.read(rect).unwrap();
    let bytes = match spec.bits {
        Bits::Eight => bytes,
        Bits::Sixteen => (bytes.chunks_exact(2))
            .map(|s| (f32::from(u16::from_ne_bytes([s[0], s[1]])) / 257.0).round() as u8)
            .collect(),
    };
    image::RgbImage::from_raw(spec.width as u32, spec.height as u32, bytes).unwrap()
}

/// Half the sides, rounded up; the last column and row count twice where there is no next one.
fn halved(from: &image::RgbImage) -> image::RgbImage {
    let (width, height) = from.dimensions();
    image::RgbImage::from_fn(width.div_ceil(2), height.div_ceil(2), |x, y| {
        let at = |dx: u32, dy: u32| {
            from.get_pixel((2 * x + dx).min(width - 1), (2 * y + dy).min(height - 1))
                .0
                .map(u32::from)
        };
        let four = [at(0, 0), at(1, 0), at(0, 1), at(1, 1)];
        image::Rgb(std::array::from_fn(|c| {
            ((four.iter().map(|pixel| pixel[c]).sum::<u32>() + 2) / 4) as u8
        }))
    })
}

#[tokio::test]
async fn tiles_of_every_level_are_the_finished_picture() {
    let cases = [
        ("net-a", 528, 304, TileSize::Pixels(100), Bits::Eight),
        ("net-a", 272, 528, TileSize::Whole, Bits::Sixteen),
        ("net-b", 260, 4, TileSize::Pixels(64), Bits::Eight),
        ("net-b", 4, 4, TileSize::Pixels(64), Bits::Eight),
    ];
    for (model, width, height, tile, bits) in cases {
        let site = Site::open(model, cpu());
        let job = site.create(width, height, tile, bits);
        finished(&job).await;
        let description = site.get(&format!("/jobs/{}/image.dzi", job.id)).await.text();
        assert!(description.contains(&format!("Width=\"{width}\" Height=\"{height}\"")));
        assert!(description.contains("TileSize=\"256\"") && description.contains("Overlap=\"0\""));
        let mut expected = samples(&job);
        let last = (width.max(height) as f64).log2().ceil() as usize;
        for level in (0..=last).rev() {
            let (columns, rows) = (expected.width().div_ceil(256), expected.height().div_ceil(256));
            for (column, row) in (0..rows).flat_map(|row| (0..columns).map(move |c| (c, row))) {
                let path = format!("/jobs/{}/image_files/{level}/{column}_{row}.png", job.id);
                let answer = site.get(&path).await;
                let (x, y) = (256 * column, 256 * row);
                let (w, h) = (256.min(expected.width() - x), 256.min(expected.height() - y));
                let part = expected.view(x, y, w, h).to_image();
                assert_eq!(answer.picture().into_rgb8(), part, "{model} {path}");
                // Final: it may be kept, and is not sent again.
                assert!(answer.header(header::CACHE_CONTROL).contains("immutable"));
                let tag = answer.header(header::ETAG);
                assert!(tag.starts_with('"') && tag.contains(&job.id));
                let again = site.ask(&path, &[(header::IF_NONE_MATCH, tag)]).await;
                assert_eq!((again.status, again.body.len()), (StatusCode::NOT_MODIFIED, 0));
            }
            for (column, row) in [(columns, 0), (0, rows)] {
                let path = format!("/jobs/{}/image_files/{level}/{column}_{row}.png", job.id);
                assert_eq!(site.get(&path).await.status, StatusCode::NOT_FOUND, "{path}");
            }
            expected = halved(&expected);
        }
        let past = format!("/jobs/{}/image_files/{}/0_0.png", job.id, last + 1);
        assert_eq!(site.get(&past).await.status, StatusCode::NOT_FOUND);
    }
}

#[tokio::test]
async fn queued_picture_is_transparent_and_never_cached() {
    let site = Site::open("net-a", Vec::new());
    let job = site.create(528, 304, TileSize::Pixels(64), Bits::Eight);
    for (tile, size) in [("10/2_1", (16, 48)), ("8/0_0", (132, 76)), ("0/0_0", (1, 1))] {
        let answer = site.get(&format!("/jobs/{}/image_files/{tile}.png", job.id)).await;
        assert_eq!(answer.header(header::CACHE_CONTROL), "no-store");
        assert!(!answer.headers.contains_key(header::ETAG));
        let picture = answer.picture().into_rgba8();
        assert_eq!(picture.dimensions(), size);
        assert!(picture.pixels().all(|pixel| pixel.0[3] == 0));
    }
    let base = format!("/jobs/{}", job.id);
    assert_eq!(site.get(&format!("{base}/preview.png")).await.status, StatusCode::NOT_FOUND);
    for file in ["image.tiff", "image.png"] {
        let answer = site.get(&format!("{base}/{file}")).await;
        assert_eq!(answer.status, StatusCode::CONFLICT);
        let problem: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(
            (&problem["kind"], &problem["required"]),
            (&"not_ready".into(), &"finished".into())
        );
    }
    // JPEG has no transparency: what is not there is black.
    let jpeg = site.get(&format!("{base}/iiif/full/132,76/0/default.jpg")).await;
    assert_eq!(jpeg.header(header::CONTENT_TYPE), "image/jpeg");
    assert!(jpeg.picture().into_rgb8().pixels().all(|pixel| pixel.0 == [0, 0, 0]));
}

#[tokio::test]
async fn half_decoded_picture_shows_finished_tiles_and_the_preview_elsewhere() {
    let site = Site::open("net-a", cpu());
    let job = site.create(1040, 528, TileSize::Pixels(64), Bits::Eight);
    until(&job, |job| job.snapshot().tiles_done >= 3).await;
    // It stops where it is, as for a restart.
    let jobs = site.jobs.clone();
    tokio::task::spawn_blocking(move || jobs.close()).await.unwrap();
    let tiles = &job.plan.tiling.tiles;
    let done: Vec<_> = (0..tiles.len()).map(|index| job.read_tile(index).ok()).collect();
    let count = done.iter().flatten().count();
    assert!((3..tiles.len()).contains(&count), "{count} of {}", tiles.len());

    let preview = site.get(&format!("/jobs/{}/preview.png", job.id)).await;
    assert_eq!(preview.header(header::CACHE_CONTROL), "no-store");
    let preview = preview.picture().into_rgb8();
    assert_eq!(preview.dimensions(), (260, 132));

    let (mut kept, mut fleeting) = (0, 0);
    for (column, row) in (0..3).flat_map(|row| (0..5).map(move |column| (column, row))) {
        let answer = site.get(&format!("/jobs/{}/image_files/11/{column}_{row}.png", job.id)).await;
        let picture = answer.picture();
        assert_eq!(picture.color(), image::ColorType::Rgb8, "nothing is missing");
        let picture = picture.into_rgb8();
        let mut complete = true;
        for (y, x) in (0..picture.height()).flat_map(|y| (0..picture.width()).map(move |x| (y, x)))
        {
            let (full_x, full_y) = ((256 * column + x) as usize, (256 * row + y) as usize);
            let (index, tile) = job.tile(full_x / 64, full_y / 64).unwrap();
            let pixel = picture.get_pixel(x, y).0;
            match &done[index] {
                Some((bytes, _)) => {
                    let rect = tile.rect;
                    let at = 3 * ((full_y - rect.y) * rect.width + full_x - rect.x);
                    assert_eq!(pixel, bytes[at..at + 3], "{full_x} {full_y}");
                }
                None => {
                    complete = false;
                    // Smoothly scaled: within what the preview has around.
                    let (px, py) = (full_x as i64 / 4, full_y as i64 / 4);
                    let around = (-2..=2).flat_map(|dy| (-2..=2).map(move |dx| (px + dx, py + dy)));
                    let around = around
                        .map(|(x, y)| (x.clamp(0, 259) as u32, y.clamp(0, 131) as u32))
                        .map(|(x, y)| preview.get_pixel(x, y).0);
                    let (mut low, mut high) = ([255; 3], [0; 3]);
                    for near in around {
                        low = std::array::from_fn(|c| near[c].min(low[c]));
                        high = std::array::from_fn(|c| near[c].max(high[c]));
                    }
                    for c in 0..3 {
                        let slack = (high[c] - low[c]) / 4 + 1;
                        let range = low[c].saturating_sub(slack)..=high[c].saturating_add(slack);
                        assert!(range.contains(&pixel[c]), "{full_x} {full_y}: {pixel:?}");
                    }
                }
            }
        }
        match complete {
            true => kept += 1,
            false => fleeting += 1,
        }
        let cache = answer.header(header::CACHE_CONTROL);
        assert_eq!(cache.contains("immutable"), complete, "{column}_{row}: {cache}");
        assert_eq!(answer.headers.contains_key(header::ETAG), complete);
    }
    assert!(fleeting > 0, "{kept} tiles are complete");
    // Overviews are there too, and are not kept.
    let overview = site.get(&format!("/jobs/{}/image_files/8/0_0.png", job.id)).await;
    assert_eq!(overview.header(header::CACHE_CONTROL), "no-store");
    assert_eq!(overview.picture().into_rgb8().dimensions(), (130, 66));
}

#[tokio::test]
async fn iiif_serves_what_it_lists() {
    let site = Site::open("net-a", cpu());
    let job = site.create(1104, 528, TileSize::Pixels(512), Bits::Eight);
    finished(&job).await;
    let base = format!("/jobs/{}/iiif", job.id);
    assert_eq!(site.get(&base).await.header(header::LOCATION), format!("{base}/info.json"));
    let host = [(header::HOST, "pictures.example:8443")];
    let info = site.ask(&format!("{base}/info.json"), &host).await;
    assert!(info.header(header::CONTENT_TYPE).starts_with("application/ld+json"));
    let info: serde_json::Value = serde_json::from_slice(&info.body).unwrap();
    assert_eq!(info["id"], format!("http://pictures.example:8443{base}"));
    assert_eq!(info["profile"], "level0");
    let factors: Vec<_> = info["tiles"][0]["scaleFactors"].as_array().unwrap().iter().collect();
    assert_eq!(factors, [1, 2, 4, 8]);
    let picture = samples(&job);
    // Every tile at every factor, in the canonical form of the standard.
    let mut level = picture.clone();
    for factor in [1u32, 2, 4, 8] {
        let side = 256 * factor;
        for (x, y) in (0..528)
            .step_by(side as usize)
            .flat_map(|y| (0..1104).step_by(side as usize).map(move |x| (x, y)))
        {
            let (w, h) = (side.min(1104 - x), side.min(528 - y));
            let (tile_w, tile_h) = (w.div_ceil(factor), h.div_ceil(factor));
            let path = format!("{base}/{x},{y},{w},{h}/{tile_w},{tile_h}/0/default");
            let tile = site.get(&format!("{path}.png")).await.picture().into_rgb8();
            let expected = level.view(x / factor, y / factor, tile_w, tile_h).to_image();
            assert_eq!(tile, expected, "{path}");
            let jpeg = site.get(&format!("{path}.jpg")).await;
            assert_eq!(jpeg.picture().dimensions(), (tile_w, tile_h));
        }
        level = halved(&level);
    }
    for size in info["sizes"].as_array().unwrap() {
        let (width, height) = (size["width"].as_u64().unwrap(), size["height"].as_u64().unwrap());
        let whole =
            site.get(&format!("{base}/full/{width},{height}/0/default.jpg")).await.picture();
        assert_eq!((u64::from(whole.width()), u64::from(whole.height())), (width, height));
    }
    let most = site.get(&format!("{base}/full/max/0/default.png")).await.picture().into_rgb8();
    assert_eq!(most, halved(&picture));
    for (rest, status) in [
        ("full/1104,528/0/default.jpg", StatusCode::NOT_FOUND),
        ("0,0,100,100/100,100/0/default.jpg", StatusCode::NOT_FOUND),
        ("full/max/90/default.jpg", StatusCode::BAD_REQUEST),
        ("full/max/0/gray.jpg", StatusCode::BAD_REQUEST),
        ("full/max/0/default.gif", StatusCode::BAD_REQUEST),
        ("square/max/0/default.jpg", StatusCode::BAD_REQUEST),
        ("0,0,-1,9/max/0/default.jpg", StatusCode::BAD_REQUEST),
        ("full/^max/0/default.jpg", StatusCode::BAD_REQUEST),
    ] {
        assert_eq!(site.get(&format!("{base}/{rest}")).await.status, status, "{rest}");
    }
}

#[tokio::test]
async fn links_begin_with_the_path_of_a_proxy() {
    let site = Site::open("net-a", Vec::new());
    let job = site.create(96, 64, TileSize::Pixels(64), Bits::Eight);
    let base = format!("/jobs/{}/iiif", job.id);
    let prefix = header::HeaderName::from_static("x-forwarded-prefix");
    for (sent, path) in [
        ("/pictures/tessera", "/pictures/tessera"),
        ("/pictures/", "/pictures"),
        ("//evil.example", ""),
        ("/a\"b", ""),
    ] {
        let headers = [(header::HOST, "pictures.example"), (prefix.clone(), sent)];
        let moved = site.ask(&base, &headers).await;
        assert_eq!(moved.status, StatusCode::SEE_OTHER);
        assert_eq!(moved.header(header::LOCATION), format!("{path}{base}/info.json"), "{sent}");
        let info = site.ask(&format!("{base}/info.json"), &headers).await;
        let info: serde_json::Value = serde_json::from_slice(&info.body).unwrap();
        assert_eq!(info["id"], format!("http://pictures.example{path}{base}"), "{sent}");
    }
    // The viewer has addresses that are relative to its own.
    let page = site.get("/").await.text();
    for absolute in ["href=\"/", "src=\"/"] {
        assert!(!page.contains(absolute), "{page}");
    }
}

#[tokio::test]
async fn cors_lets_other_pages_read_public_tiles_only() {
    let site = Site::open("net-a", Vec::new());
    let job = site.create(96, 64, TileSize::Pixels(64), Bits::Eight);
    let base = format!("/jobs/{}", job.id);
    let closed = Site { router: http::pictures(site.jobs.clone(), false), ..site };
    let open = http::router(closed.jobs.clone());
    let policy = header::HeaderName::from_static("cross-origin-resource-policy");
    for (router, tokens) in [(open, false), (closed.router.clone(), true)] {
        let site =
            Site { router, jobs: closed.jobs.clone(), _directory: tempfile::tempdir().unwrap() };
        for (path, tiled) in [
            ("image.dzi", true),
            ("image_files/7/0_0.png", true),
            ("iiif/info.json", true),
            ("iiif/full/max/0/default.jpg", true),
            ("iiif/full/max/0/default.gif", true),
            ("preview.png", false),
            ("image.tiff", false),
        ] {
            let answer = site.get(&format!("{base}/{path}")).await;
            let expected =
                if tiled && !tokens { ("*", "cross-origin") } else { ("", "same-origin") };
            let found =
                (answer.header(header::ACCESS_CONTROL_ALLOW_ORIGIN), answer.header(policy.clone()));
            assert_eq!(found, expected, "{path}, tokens: {tokens}");
            // The same for requests that browsers ask about before they send them.
            let asked = site.preflight(&format!("{base}/{path}")).await;
            assert_eq!(asked.status.is_success(), tiled && !tokens, "{path}, tokens: {tokens}");
            let methods = asked.header(header::ACCESS_CONTROL_ALLOW_METHODS);
            let headers = asked.header(header::ACCESS_CONTROL_ALLOW_HEADERS);
            let allowed = asked.header(header::ACCESS_CONTROL_ALLOW_ORIGIN);
            let expected = if tiled && !tokens { ("GET,HEAD", "*", "*") } else { ("", "", "") };
            assert_eq!((methods, headers, allowed), expected, "{path}, tokens: {tokens}");
        }
    }
}

#[tokio::test]
async fn downloads_are_the_files_and_resume() {
    let site = Site::open("net-a", cpu());
    let job = site.create(208, 144, TileSize::Pixels(64), Bits::Sixteen);
    finished(&job).await;
    let png = site.get(&format!("/jobs/{}/image.png", job.id)).await;
    assert_eq!(png.header(header::CONTENT_TYPE), "image/png");
    let picture = png.picture();
    assert_eq!(picture.color(), image::ColorType::Rgb16);
    assert_eq!(picture.dimensions(), (208, 144));

    let path = format!("/jobs/{}/image.tiff", job.id);
    let whole = site.get(&path).await;
    assert_eq!(whole.picture().dimensions(), (208, 144));
    let named = whole.header(header::CONTENT_DISPOSITION);
    assert_eq!(named, "attachment; filename=\"tessera-7-208x144.tiff\"");
    let tag = whole.header(header::ETAG);
    let len = whole.body.len();
    assert_eq!(whole.header(header::CONTENT_LENGTH), len.to_string());
    for (first, last) in [(0, 0), (100, 4000), (len - 1, len - 1)] {
        let range = format!("bytes={first}-{last}");
        let part = site.ask(&path, &[(header::RANGE, &range), (header::IF_RANGE, tag)]).await;
        assert_eq!(part.status, StatusCode::PARTIAL_CONTENT);
        assert_eq!(part.body, whole.body[first..=last]);
        let named = part.header(header::CONTENT_RANGE);
        assert_eq!(named, format!("bytes {first}-{last}/{len}"));
    }
    let range = (header::RANGE, "bytes=10-20");
    let other = site.ask(&path, &[range, (header::IF_RANGE, "\"another\"")]).await;
    assert_eq!((other.status, other.body.len()), (StatusCode::OK, len));
    let past = site.ask(&path, &[(header::RANGE, "bytes=99999999-")]).await;
    assert_eq!(past.status, StatusCode::RANGE_NOT_SATISFIABLE);
    assert_eq!(
        site.ask(&path, &[(header::IF_NONE_MATCH, tag)]).await.status,
        StatusCode::NOT_MODIFIED
    );
}

#[tokio::test]
async fn if_none_match_any_means_every_representation() {
    let site = Site::open("net-a", cpu());
    let job = site.create(208, 144, TileSize::Pixels(64), Bits::Eight);
    finished(&job).await;
    let any = [(header::IF_NONE_MATCH, "*")];
    let base = format!("/jobs/{}", job.id);
    for (path, tagged) in [
        (format!("{base}/image_files/8/0_0.png"), true),
        (format!("{base}/image.tiff"), true),
        (format!("{base}/iiif/full/max/0/default.jpg"), true),
        (format!("{base}/image.dzi"), false),
        (format!("{base}/iiif/info.json"), false),
        (format!("{base}/preview.png"), false),
        ("/".to_owned(), true),
    ] {
        let whole = site.get(&path).await;
        let answer = site.ask(&path, &any).await;
        assert_eq!((answer.status, answer.body.len()), (StatusCode::NOT_MODIFIED, 0), "{path}");
        for name in [header::ETAG, header::CACHE_CONTROL] {
            assert_eq!(answer.headers.get(&name), whole.headers.get(&name), "{path}: {name}");
        }
        assert_eq!(answer.headers.contains_key(header::ETAG), tagged, "{path}");
    }
    for path in [format!("{base}/image_files/9/9_9.png"), "/jobs/none/image.dzi".to_owned()] {
        assert_eq!(site.ask(&path, &any).await.status, StatusCode::NOT_FOUND, "{path}");
    }
}

#[tokio::test]
async fn hostile_paths_get_a_short_answer() {
    let site = Site::open("net-a", Vec::new());
    let job = site.create(96, 64, TileSize::Pixels(64), Bits::Eight);
    let id = &job.id;
    let long = "9".repeat(4000);
    for (path, status) in [
        ("/jobs/unknown/image.dzi".to_owned(), StatusCode::NOT_FOUND),
        ("/jobs/..%2F..%2Fetc/image.tiff".to_owned(), StatusCode::NOT_FOUND),
        (format!("/jobs/%2E%2E%2F{id}/preview.png"), StatusCode::NOT_FOUND),
        (format!("/jobs/.{id}/image.png"), StatusCode::NOT_FOUND),
        (format!("/jobs/{}/image.dzi", id.to_uppercase() + "A"), StatusCode::NOT_FOUND),
        (format!("/jobs/{id}/image_files/99/0_0.png"), StatusCode::NOT_FOUND),
        (format!("/jobs/{id}/image_files/999999999/999999999_0.png"), StatusCode::NOT_FOUND),
        (format!("/jobs/{id}/image_files/7/999999999_999999999.png"), StatusCode::NOT_FOUND),
        (format!("/jobs/{id}/image_files/-1/0_0.png"), StatusCode::BAD_REQUEST),
        (format!("/jobs/{id}/image_files/{long}/0_0.png"), StatusCode::BAD_REQUEST),
        (format!("/jobs/{id}/image_files/7/0_0.jpg"), StatusCode::BAD_REQUEST),
        (format!("/jobs/{id}/image_files/7/0.png"), StatusCode::BAD_REQUEST),
        (format!("/jobs/{id}/image_files/7/+1_0.png"), StatusCode::BAD_REQUEST),
        (format!("/jobs/{id}/image_files/7/_.png"), StatusCode::BAD_REQUEST),
        (format!("/jobs/{id}/image_files/7/%FF_0.png"), StatusCode::BAD_REQUEST),
        (format!("/jobs/{id}/journal"), StatusCode::NOT_FOUND),
        ("/viewer/dist/index.html".to_owned(), StatusCode::NOT_FOUND),
    ] {
        let answer = site.get(&path).await;
        assert_eq!(answer.status, status, "{path:.80}");
        assert!(answer.body.len() < 700, "{}", answer.text());
        assert!(!answer.text().contains("/tmp"), "{}", answer.text());
    }
    // What was deleted is gone, whatever was looked at before.
    let tile = format!("/jobs/{id}/image_files/7/0_0.png");
    assert_eq!(site.get(&tile).await.status, StatusCode::OK);
    site.jobs.delete(id).unwrap();
    assert_eq!(site.get(&tile).await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn viewer_is_complete_and_names_no_other_host() {
    let site = Site::open("net-a", Vec::new());
    for (path, kind) in [
        ("/", "text/html"),
        ("/viewer.js", "text/javascript"),
        ("/viewer.css", "text/css"),
        ("/icon.svg", "image/svg+xml"),
        ("/LICENSES.txt", "text/plain"),
    ] {
        let answer = site.get(path).await;
        assert_eq!(answer.status, StatusCode::OK, "{path}");
        assert!(answer.header(header::CONTENT_TYPE).starts_with(kind), "{path}");
        assert_eq!(answer.header(header::X_CONTENT_TYPE_OPTIONS), "nosniff");
        let policy = answer.header(header::CONTENT_SECURITY_POLICY);
        assert!(policy.starts_with("default-src 'none'") && !policy.contains("http"), "{policy}");
        assert!(!policy.contains("unsafe"), "{policy}");
        let tag = answer.header(header::ETAG);
        let again = site.ask(path, &[(header::IF_NONE_MATCH, tag)]).await;
        assert_eq!(again.status, StatusCode::NOT_MODIFIED, "{path}");
        let packed = site.ask(path, &[(header::ACCEPT_ENCODING, "br, gzip")]).await;
        assert_eq!(packed.header(header::CONTENT_ENCODING), "gzip");
        let mut unpacked = Vec::new();
        let mut decoder = flate2::read::GzDecoder::new(packed.body.as_slice());
        std::io::Read::read_to_end(&mut decoder, &mut unpacked).unwrap();
        assert_eq!(unpacked, answer.body, "{path}");
    }
    let page = site.get("/").await.text();
    assert!(!page.contains("http:") && !page.contains("https:"), "the page loads from here alone");
    let licences = site.get("/LICENSES.txt").await.text();
    for package in ["openseadragon", "@connectrpc/connect", "@bufbuild/protobuf"] {
        assert!(licences.contains(package), "{package}");
    }
}
