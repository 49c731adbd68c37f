//! `tessera devices`: lists devices.

use std::fmt::Write as _;

use serde::Serialize;

use super::progress::{Progress, ProgressArgs};
use crate::{engine::device, error::Result};

/// List the devices and the one that "auto" selects
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) progress: ProgressArgs,
}

#[derive(Serialize)]
#[serde(tag = "event", rename = "devices")]
struct Report {
    devices: Vec<device::Info>,
}

pub(super) fn run(_: &Args, progress: &mut Progress) -> Result<()> {
    let devices = device::list();
    let mut out = String::new();
    for device in &devices {
        let mark = if device.auto { "*" } else { " " };
        // Writing to a String does not fail.
        let _ = writeln!(out, "{mark} {:<6}  {}", device.selector, device.description);
    }
    out.push_str("\n* taken by --device auto\n");
    progress.json(&Report { devices });
    progress.result(&out)
}
