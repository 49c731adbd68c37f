//! `tessera watch`: shows a job's events.

use tokio_util::sync::CancellationToken;

use super::{
    progress::{Progress, ProgressArgs},
    server::{EventPrinter, RetryArgs, ServerArgs},
};
use crate::{
    api::{StreamOptions, job_event::Event},
    client::{self, sanitize},
    error::Result,
};

/// Watch a server's job until it ends
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Name of the job, as printed by "submit"
    #[arg(value_name = "JOB")]
    job: String,
    /// Omit the events up to this sequence number
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 0)]
    after: u64,
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    retry: RetryArgs,
    #[command(flatten)]
    pub(super) progress: ProgressArgs,
}

pub(super) fn run(args: &Args, progress: &mut Progress, cancel: &CancellationToken) -> Result<()> {
    let mut description = None;
    client::run(cancel, async {
        let client = args.server.connect_lazy(args.retry.retry())?;
        let job = client.get(&args.job).await?;
        let mut printer = EventPrinter::new(&job, progress);
        let options = StreamOptions {
            without_tile_data: true,
            without_previews: true,
            ..StreamOptions::default()
        };
        let mut watch = client.watch(&job.name, args.after, options);
        while let Some(event) = watch.next().await? {
            printer.show(&event, progress);
            match event.event {
                Some(Event::Finished(finished)) => description = Some(finished.description),
                Some(event) => client::job_failure(&job.name, &event).map_or(Ok(()), Err)?,
                None => {}
            }
        }
        Ok(())
    })?;
    progress.leave();
    let job = sanitize(&client::full_name(&args.job));
    match description {
        Some(description) => {
            progress.result(&format!("{job}  finished  {}\n", sanitize(&description)))
        }
        None => Ok(()),
    }
}
