//! The log and the counts of what happens to jobs: one line each when a job is queued, started and ended.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
};

use crate::{
    error::Kind,
    jobs::{Job, PruneReason, Pruned, Timings, record::Event},
};

/// Numbers of ended jobs by their result.
pub type Ended = Family<EndedLabels, Counter>;

/// Labels of [`Ended`]. There are as many as kinds of errors, and two.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct EndedLabels {
    /// State of the job: `finished`, `failed` or `cancelled`.
    state: &'static str,
    /// Kind of the error of a failed job, else empty.
    reason: &'static str,
}

/// Numbers of removed jobs by the reason of the removal.
pub type PrunedCount = Family<PrunedLabels, Counter>;

/// Labels of [`PrunedCount`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PrunedLabels {
    /// `age` or `bytes`.
    reason: &'static str,
}

/// The count with 0 for each reason: a series that appears with its first event hides that event from rates.
pub(super) fn pruned_count() -> PrunedCount {
    let count = PrunedCount::default();
    for reason in [PruneReason::Age, PruneReason::Bytes] {
        drop(count.get_or_create(&PrunedLabels { reason: reason.name() }));
    }
    count
}

/// Counts and logs a removed job.
pub(super) fn pruned(timings: &Timings, pruned: &Pruned) {
    let Pruned { id, age, bytes, reason } = pruned;
    let (age, reason) = (age.as_secs(), reason.name());
    timings.pruned.get_or_create(&PrunedLabels { reason }).inc();
    tracing::info!(id, reason, age, bytes, "job pruned");
}

/// Counts an event of `job` that is durable.
pub(super) fn count(job: &Job, event: &Event) {
    let (state, reason) = match event {
        Event::Finished { .. } => ("finished", ""),
        Event::Cancelled => ("cancelled", ""),
        Event::Failed { kind, .. } => ("failed", kind.name()),
        _ => return,
    };
    if let Some(timings) = job.timings() {
        timings.ended.get_or_create(&EndedLabels { state, reason }).inc();
    }
}

/// Logs an event of `job` that is durable.
pub(super) fn log(job: &Job, event: &Event) {
    let (id, seconds) = (&job.id, seconds(job));
    match event {
        Event::Queued { request, .. } => {
            let spec = &job.plan.spec;
            let (width, height, steps) = (spec.width, spec.height, spec.steps.total());
            let (model, owner) = (&job.model.arch.name, &request.owner);
            tracing::info!(id, width, height, steps, model, owner, "job queued");
        }
        Event::Started { device } => tracing::info!(id, seconds, device, "job started"),
        Event::Finished { .. } => tracing::info!(id, seconds, "job finished"),
        Event::Cancelled => tracing::info!(id, seconds, "job cancelled"),
        Event::Failed { kind, message } => {
            let reason = kind.name();
            match is_fault(*kind) {
                true => tracing::error!(id, seconds, reason, error = message, "job failed"),
                false => tracing::info!(id, seconds, reason, error = message, "job failed"),
            }
        }
        Event::Step { .. } | Event::Settled { .. } | Event::Tile { .. } => {}
    }
}

/// True for failures of the server; others are the client's, such as a deadline that was too short.
fn is_fault(kind: Kind) -> bool {
    !matches!(kind, Kind::InvalidArgument | Kind::InvalidImage | Kind::Cancelled | Kind::Expired)
}

/// Seconds since the job's creation, in milliseconds' precision.
fn seconds(job: &Job) -> f64 {
    let now = super::to_ms(std::time::SystemTime::now());
    now.saturating_sub(job.snapshot().created_ms) as f64 / 1e3
}
