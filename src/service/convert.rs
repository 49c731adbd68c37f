//! Conversions between messages and domain types, and from errors to statuses with details.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use prost::Name;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::{
    api::{self, descriptors},
    engine::{
        plan::{Plan, Rect, STRENGTH, Spec, Steps, TileSize},
        provenance,
    },
    error::{Detail, Error, Kind, Resource, Result},
    image_out::Bits,
    jobs::{self, Job, Jobs, Models, Phase, Quote, Upload, record},
    model::{checkpoint::Checkpoint, sampler::Sampler},
};

/// Prefix of job names.
const JOBS: &str = "jobs/";
/// Prefix of model names.
const MODELS: &str = "models/";

/// The status code of a kind of error.
pub(super) fn code(kind: Kind) -> Code {
    match kind {
        Kind::InvalidArgument | Kind::InvalidImage => Code::InvalidArgument,
        Kind::NotFound => Code::NotFound,
        Kind::NotReady => Code::FailedPrecondition,
        Kind::Exhausted => Code::ResourceExhausted,
        Kind::Expired => Code::DeadlineExceeded,
        Kind::Cancelled => Code::Cancelled,
        Kind::Unavailable | Kind::Device => Code::Unavailable,
        Kind::Unauthenticated => Code::Unauthenticated,
        Kind::Damaged => Code::DataLoss,
        Kind::InvalidModel | Kind::Io | Kind::Internal => Code::Internal,
    }
}

/// True for internal failures, whose fields and causes are logged and not sent.
fn is_private(kind: Kind) -> bool {
    matches!(kind, Kind::Io | Kind::Internal | Kind::Device)
}

/// The message sent to clients for an error with the report `text`.
pub(super) fn public_message(kind: Kind, text: &str) -> String {
    match kind {
        Kind::Io => "the server's disk failed".to_owned(),
        Kind::Internal => "the server failed".to_owned(),
        Kind::Device => "the server's device failed".to_owned(),
        _ => text.to_owned(),
    }
}

/// The message sent to clients for the error that has ended a job. What went wrong inside a job is no fault of the client:
/// apart from what it can act on, only the log and the journal tell it.
pub(super) fn job_error(kind: Kind, text: &str) -> String {
    match kind {
        Kind::Expired | Kind::Cancelled | Kind::Exhausted | Kind::InvalidModel => text.to_owned(),
        Kind::Io | Kind::Device => public_message(kind, text),
        Kind::Damaged => "the server's files of the job are damaged".to_owned(),
        _ => public_message(Kind::Internal, text),
    }
}

/// The status code of the error that has ended a job.
pub(super) fn job_code(kind: Kind) -> Code {
    match kind {
        Kind::Expired | Kind::Exhausted | Kind::InvalidModel | Kind::Device | Kind::Damaged => {
            code(kind)
        }
        _ => Code::Internal,
    }
}

/// The fields of an error that are sent to clients.
pub(super) fn public_fields(error: &Error) -> serde_json::Map<String, serde_json::Value> {
    if is_private(error.kind()) { Default::default() } else { error.detail().fields() }
}

/// Type and full name of a resource in `ResourceInfo` and `PreconditionFailure`.
fn resource_name(resource: Resource, name: &str) -> (&'static str, String) {
    match resource {
        Resource::Job => ("tessera.v1.Job", format!("{JOBS}{name}")),
        Resource::Model => ("tessera.v1.Model", format!("{MODELS}{name}")),
        Resource::Tile => ("tessera.v1.Tile", format!("{JOBS}{name}")),
        _ => ("tessera.v1.Preview", format!("{JOBS}{name}/preview")),
    }
}

/// The gRPC status of an error of a call with the request `M`. As [`status`], and `BadRequest` has the path of the field from
/// the request.
pub(super) fn refused<M: Name>(error: Error) -> Status {
    let field = match error.kind() {
        // Of the uploaded file.
        Kind::InvalidImage => Some("data"),
        Kind::InvalidArgument => error.field(),
        _ => None,
    };
    status_with(&error, field.and_then(|field| descriptors::field_path(M::NAME, field)))
}

/// The gRPC status of an error. `ErrorInfo` has all its fields; `QuotaFailure`, `ResourceInfo` and `PreconditionFailure` have
/// those that they define; `RetryInfo` is present if a later attempt may succeed.
pub(super) fn status(error: &Error) -> Status {
    status_with(error, None)
}

/// As [`status`], with a `BadRequest` for the field of the request with the path `field`.
fn status_with(error: &Error, field: Option<String>) -> Status {
    let (kind, code) = (error.kind(), code(error.kind()));
    let report = error.report().to_string();
    if is_private(kind) {
        tracing::error!("a call failed: {report}");
    }
    let text = public_message(kind, &report);
    let mut details = ErrorDetails::new();
    let metadata: HashMap<String, String> = public_fields(error)
        .into_iter()
        .map(|(name, value)| match value {
            serde_json::Value::String(text) => (name, text),
            other => (name, other.to_string()),
        })
        .collect();
    details.set_error_info(kind.name().to_ascii_uppercase(), api::ERROR_DOMAIN, metadata);
    if let Some(delay) = error.retry_after() {
        details.set_retry_info(Some(delay));
    }
    if let Some(field) = field {
        details.add_bad_request_violation(field, error.to_string());
    }
    if !is_private(kind) {
        match error.detail() {
            Detail::Exhausted { resource, .. } => {
                details.add_quota_failure_violation(resource.as_ref(), error.to_string());
            }
            Detail::NotFound { resource, name } => {
                let (kind, name) = resource_name(*resource, name);
                details.set_resource_info(kind, name, "", error.to_string());
            }
            Detail::State { resource, name, required, .. } => {
                let (_, name) = resource_name(*resource, name);
                let required = required.to_ascii_uppercase();
                details.add_precondition_failure_violation(required, name, error.to_string());
            }
            _ => {}
        }
    }
    Status::with_error_details(code, text, details)
}

/// The id in `jobs/{id}`.
pub(super) fn job_id(name: &str) -> Result<&str> {
    id(name, JOBS)
}

fn id<'a>(name: &'a str, prefix: &str) -> Result<&'a str> {
    let id = name.strip_prefix(prefix).filter(|id| !id.is_empty() && !id.contains('/'));
    id.ok_or_else(|| Error::invalid("name", format!("{name:?}"), format!("{prefix}ID")))
}

/// The named model, or the default for an empty name.
pub(super) fn model<'a>(name: &str, models: &'a Models) -> Result<&'a Arc<Checkpoint>> {
    if name.is_empty() { Ok(models.first()) } else { models.named(id(name, MODELS)?) }
}

/// Creates the job of a request. Errors have the names of the API's fields.
///
/// # Errors
/// Those of [`Jobs::create`].
pub(super) fn create(jobs: &Jobs, request: jobs::Request) -> Result<Arc<Job>> {
    jobs.create(request).map_err(with_api_field)
}

/// Plans and quotes a spec. Errors have the names of the API's fields.
///
/// # Errors
/// Those of [`Jobs::quote`].
pub(super) fn quote(jobs: &Jobs, spec: &Spec, model: &Checkpoint) -> Result<(Plan, Quote)> {
    jobs.quote(spec, model).map_err(with_api_field)
}

/// The error about a field of [`Spec`] as one about the field of `JobSpec`.
fn with_api_field(error: Error) -> Error {
    match error.field() {
        Some("tile") => error.with_field("tile_size"),
        _ => error,
    }
}

/// Converts a request and fills in defaults.
///
/// # Errors
/// [`Kind::InvalidArgument`] and [`Kind::NotFound`]. Sizes are checked by [`jobs::Request::plan`].
pub fn request(
    message: api::CreateJobRequest,
    owner: String,
    models: &Models,
) -> Result<jobs::Request> {
    let deadline = message.deadline.map(|deadline| time("deadline", deadline)).transpose()?;
    let asked = message.spec.unwrap_or_default();
    let model = model(&asked.model, models).map_err(|error| error.with_field("model"))?;
    Ok(jobs::Request {
        model: model.clone(),
        spec: spec(&asked, model)?,
        request_id: message.request_id,
        deadline,
        viewport: message.viewport.map(rect),
        owner,
        source: None,
    })
}

/// Converts a request to edit the picture `source`.
///
/// # Errors
/// Those of [`request`], and [`Kind::InvalidArgument`] for a size other than the picture's.
pub(super) fn edit(
    message: api::CreateJobRequest,
    owner: String,
    models: &Models,
    source: Upload,
) -> Result<jobs::Request> {
    let asked = message.spec.clone().unwrap_or_default();
    let (width, height) = source.size();
    for (field, asked, own) in [("width", asked.width, width), ("height", asked.height, height)] {
        if asked != 0 && asked as usize != own {
            return Err(Error::invalid(field, asked, format!("{own}, the picture's own")));
        }
    }
    let mut request = request(message, owner, models)?;
    (request.spec.width, request.spec.height) = (width, height);
    request.spec.strength = Some(asked.strength.unwrap_or(STRENGTH));
    request.source = Some(source);
    Ok(request)
}

/// Converts a spec and fills in defaults.
pub(super) fn spec(message: &api::JobSpec, model: &Checkpoint) -> Result<Spec> {
    let mut spec = Spec::new(&model.arch, message.seed);
    let chosen = |value: u32, default: usize| if value == 0 { default } else { value as usize };
    spec.width = chosen(message.width, spec.width);
    spec.height = chosen(message.height, spec.height);
    spec.steps = steps(message, model)?;
    if message.tile_size != 0 {
        spec.tile = TileSize::Pixels(message.tile_size as usize);
    }
    spec.strength = message.strength;
    spec.bits = match message.bits {
        0 | 8 => Bits::Eight,
        16 => Bits::Sixteen,
        bits => return Err(Error::invalid("bits", bits, "8 or 16")),
    };
    spec.sampler = match api::Sampler::try_from(message.sampler) {
        Ok(api::Sampler::Unspecified | api::Sampler::Dpmpp) => Sampler::Dpmpp,
        Ok(api::Sampler::Heun) => Sampler::Heun,
        Ok(api::Sampler::Ddim) => Sampler::Ddim,
        Err(_) => {
            return Err(Error::invalid("sampler", message.sampler, "a number of enum Sampler"));
        }
    };
    spec.labels = model.labels(spec.seed, &message.labels)?;
    spec.guidance = message.guidance.unwrap_or(spec.guidance);
    Ok(spec)
}

/// The steps of a spec.
fn steps(message: &api::JobSpec, model: &Checkpoint) -> Result<Steps> {
    let named = &message.group_steps;
    if named.is_empty() {
        return Ok(match message.steps {
            0 => Spec::new(&model.arch, message.seed).steps,
            total => Steps::Total(total as usize),
        });
    }
    let steps =
        Steps::named(&model.arch, named.iter().map(|(name, &n)| (name.as_str(), n as usize)))?;
    let total = steps.total();
    match message.steps as usize {
        0 => Ok(steps),
        asked if asked == total => Ok(steps),
        asked => {
            let expected = format!("{total}, the sum of group_steps, or 0");
            Err(Error::invalid("steps", asked, expected))
        }
    }
}

/// Converts a spec for `model` to a message.
pub(super) fn spec_message(spec: &Spec, model: &Checkpoint, models: &Models) -> api::JobSpec {
    let groups = provenance::group_steps(model, spec).into_iter();
    let labels = provenance::labels(model, spec).into_iter();
    api::JobSpec {
        model: format!("{MODELS}{}", models.name_of(model)),
        group_steps: groups.map(|(name, steps)| (name.to_owned(), steps as u32)).collect(),
        labels: labels.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        guidance: (!model.arch.labels.is_empty()).then_some(spec.guidance),
        seed: spec.seed,
        width: spec.width as u32,
        height: spec.height as u32,
        steps: spec.steps.total() as u32,
        sampler: match spec.sampler {
            Sampler::Dpmpp => api::Sampler::Dpmpp,
            Sampler::Heun => api::Sampler::Heun,
            Sampler::Ddim => api::Sampler::Ddim,
        }
        .into(),
        tile_size: match spec.tile {
            TileSize::Pixels(side) => side as u32,
            TileSize::Whole => 0,
        },
        bits: spec.bits.per_sample() as u32,
        strength: spec.strength,
    }
}

/// Converts a rectangle.
pub(super) fn rect(message: api::Rect) -> Rect {
    let api::Rect { x, y, width, height } = message;
    let [x, y, width, height] = [x, y, width, height].map(|v| v as usize);
    Rect { x, y, width, height }
}

/// Converts a rectangle to a message.
pub(super) fn rect_message(rect: Rect) -> api::Rect {
    let [x, y, width, height] = [rect.x, rect.y, rect.width, rect.height].map(|v| v as u32);
    api::Rect { x, y, width, height }
}

/// Converts a quote to a message.
pub(super) fn quote_message(quote: &Quote, tiles: usize, notices: &[String]) -> api::Quote {
    api::Quote {
        memory_bytes: quote.memory_bytes,
        disk_bytes: quote.disk_bytes,
        flops: quote.flops,
        compute_time: prost_types::Duration::try_from(quote.compute_time).ok(),
        tiles: tiles as u32,
        notices: notices.to_vec(),
    }
}

/// Converts a job to a message.
pub(super) fn job_message(job: &Job, models: &Models) -> api::Job {
    let now = job.snapshot();
    let tiling = &job.plan.tiling;
    api::Job {
        name: format!("{JOBS}{}", job.id),
        spec: Some(spec_message(&job.plan.spec, &job.model, models)),
        state: match now.phase {
            Phase::Queued => api::JobState::Queued,
            Phase::Denoising => api::JobState::Denoising,
            Phase::Decoding => api::JobState::Decoding,
            Phase::Finished => api::JobState::Finished,
            Phase::Failed => api::JobState::Failed,
            Phase::Cancelled => api::JobState::Cancelled,
        }
        .into(),
        create_time: Some(timestamp(now.created_ms)),
        end_time: now.ended_ms.map(timestamp),
        sequence: now.sequence,
        steps_done: now.steps_done as u32,
        tiles_done: now.tiles_done as u32,
        tile_columns: tiling.columns as u32,
        tile_rows: tiling.rows as u32,
        error: now.error.map(|(kind, text)| job_error(kind, &text)).unwrap_or_default(),
        quote: Some(quote_message(&job.quote, tiling.tiles.len(), &job.plan.notices)),
        viewport: now.viewport.map(rect_message),
        owner: job.request.owner.clone(),
        paused: now.paused.map(|pause| pause.text().to_owned()).unwrap_or_default(),
    }
}

/// The message of a job as it was when it was queued.
pub(super) fn queued_message(job: &Job, models: &Models) -> api::Job {
    api::Job {
        state: api::JobState::Queued.into(),
        end_time: None,
        sequence: 1,
        steps_done: 0,
        tiles_done: 0,
        error: String::new(),
        viewport: None,
        paused: String::new(),
        ..job_message(job, models)
    }
}

/// Converts milliseconds since 1970 to a message.
pub(super) fn timestamp(ms: u64) -> prost_types::Timestamp {
    record::from_ms(ms).into()
}

/// Converts a timestamp from 1970 to the end of the year 9999.
fn time(field: &'static str, message: prost_types::Timestamp) -> Result<SystemTime> {
    let seconds = u64::try_from(message.seconds).ok().filter(|&seconds| seconds <= LAST_SECOND);
    let nanos = u32::try_from(message.nanos).ok().filter(|&nanos| nanos < 1_000_000_000);
    seconds.zip(nanos).map(|(s, ns)| SystemTime::UNIX_EPOCH + Duration::new(s, ns)).ok_or_else(
        || {
            let value = format!("{} s and {} ns", message.seconds, message.nanos);
            let expected = format!("0 to {LAST_SECOND} s and 0 to 999999999 ns, since 1970");
            Error::invalid(field, value, expected)
        },
    )
}

/// The last second of the year 9999, since 1970.
const LAST_SECOND: u64 = 253_402_300_799;

/// Converts a model to a message.
pub(super) fn model_message(model: &Checkpoint, models: &Models) -> api::Model {
    let arch = &model.arch;
    let levels = arch.levels.iter().map(|level| api::model::Level {
        factor: level.factor as u32,
        channels: level.channels as u32,
    });
    let labels = arch
        .labels
        .iter()
        .map(|label| api::model::Label { name: label.name.clone(), values: label.values.clone() });
    let groups = arch.groups.iter().map(|group| api::model::Group {
        name: group.name.clone(),
        levels: group.levels.iter().map(|&level| level as u32).collect(),
    });
    let sizes = arch
        .sizes
        .iter()
        .map(|&[width, height]| api::model::Size { width: width as u32, height: height as u32 });
    api::Model {
        name: format!("{MODELS}{}", models.name_of(model)),
        sha256: model.sha256.clone(),
        width: arch.width() as u32,
        height: arch.height() as u32,
        size_multiple: arch.coarsest_factor() as u32,
        max_extent: crate::engine::plan::MAX_EXTENT as u32,
        levels: levels.collect(),
        labels: labels.collect(),
        groups: groups.collect(),
        sizes: sizes.collect(),
    }
}
