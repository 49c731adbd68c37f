//! Jobs in the process of the test.

use std::path::Path;

use tessera::{
    engine::{
        device::{Choice, Precision},
        plan::Spec,
    },
    jobs::{Jobs, Request, Retention, Settings},
};

/// Settings of jobs in `directory` on `devices`, with two slots each.
pub(crate) fn settings(directory: &Path, devices: Vec<Choice>) -> Settings {
    Settings {
        directory: directory.to_owned(),
        devices,
        fault: None,
        precision: Precision::F32,
        gpu_cache: None,
        memory: 1 << 32,
        queue: 100,
        active: 2,
        retention: Retention::default(),
    }
}

/// A request for a picture of `spec` by the first model of `jobs`.
pub(crate) fn request(jobs: &Jobs, spec: Spec) -> Request {
    Request {
        model: jobs.models().first().clone(),
        spec,
        request_id: String::new(),
        deadline: None,
        viewport: None,
        owner: String::new(),
        source: None,
    }
}
