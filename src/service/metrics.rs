//! `/metrics`, in the text format of Prometheus, version 0.0.4.

use std::fmt::Write as _;

use axum::{Router, extract::State, http::header, response::IntoResponse, routing::get};

use crate::jobs::Jobs;

/// The route.
pub(super) fn router(jobs: Jobs) -> Router {
    Router::new().route("/metrics", get(metrics)).with_state(jobs)
}

async fn metrics(State(jobs): State<Jobs>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text(&jobs))
}

fn text(jobs: &Jobs) -> String {
    let mut out =
        String::from("# HELP tessera_jobs Jobs on this server.\n# TYPE tessera_jobs gauge\n");
    // Writing to a String can't fail.
    for (phase, count) in jobs.phases() {
        let _ = writeln!(out, "tessera_jobs{{state=\"{}\"}} {count}", phase.name());
    }
    let gauges = [
        ("tessera_queue_waiting", "Jobs that wait.", jobs.waiting(None) as f64),
        ("tessera_device_flops", "Floating-point operations per second.", jobs.flops_per_second()),
        (
            "tessera_healthy",
            "Whether every device answers.",
            f64::from(u8::from(jobs.is_healthy())),
        ),
    ];
    for (name, help, value) in gauges {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}");
    }
    let counters = [
        ("tessera_steps_total", "Denoising steps of all jobs.", jobs.steps().taken()),
        ("tessera_step_turns_total", "Turns that took them.", jobs.steps().turns()),
    ];
    for (name, help, value) in counters {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} counter\n{name} {value}");
    }
    out
}
