//! `tessera watch`: what becomes of a job.

use super::{
    progress::{Progress, ProgressArgs},
    server::{Follow, PatienceArgs, ServerArgs},
};
use crate::{
    api::{StreamOptions, job_event::Event},
    client::{self, plain},
    config::Config,
    engine::Cancel,
    error::Result,
};

/// Watch a server's job until it ends
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Name of the job, as "submit" prints it
    #[arg(value_name = "JOB")]
    job: String,
    /// Leave out the events up to this number
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 0)]
    after: u64,
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    patience: PatienceArgs,
    #[command(flatten)]
    pub(super) progress: ProgressArgs,
}

pub(super) fn run(
    args: &Args,
    config: &Config,
    progress: &mut Progress,
    cancel: &Cancel,
) -> Result<()> {
    let mut description = None;
    client::run(cancel, async {
        let client = args.server.connect_with(config, args.patience.retry()).await?;
        let job = client.get(&args.job).await?;
        let mut follow = Follow::new(&job, progress);
        let options = StreamOptions {
            without_tile_data: true,
            without_previews: true,
            ..StreamOptions::default()
        };
        let mut watch = client.watch(&job.name, args.after, options);
        while let Some(event) = watch.next().await? {
            follow.show(&event, progress);
            match event.event {
                Some(Event::Finished(finished)) => description = Some(finished.description),
                Some(event) => client::ended_badly(&job.name, &event).map_or(Ok(()), Err)?,
                None => {}
            }
        }
        Ok(())
    })?;
    progress.leave();
    let job = plain(&client::full_name(&args.job));
    match description {
        Some(description) => {
            progress.result(&format!("{job}  finished  {}\n", plain(&description)))
        }
        None => Ok(()),
    }
}
