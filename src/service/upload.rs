//! Uploads of source pictures by gRPC and HTTP.

use std::{sync::Arc, time::Duration};

use tokio::sync::Semaphore;
use tokio_stream::{Stream, StreamExt as _};

use crate::{
    api::CreateJobRequest,
    error::{Error, Result},
    jobs::{self, Job, Jobs},
    service::{
        access::{self, Client},
        blocking::blocking,
        convert,
    },
};

/// Concurrent uploads; others wait.
const MAX_UPLOADS: usize = 8;

/// Longest wait for the next bytes of a client.
const SILENCE: Duration = Duration::from_secs(30);

/// Receiver of uploads. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Uploads {
    jobs: Jobs,
    permits: Arc<Semaphore>,
    /// Checking a picture decodes it, which takes much memory: one at a time.
    checking: Arc<Semaphore>,
}

impl Uploads {
    pub(super) fn new(jobs: Jobs) -> Self {
        let permits = Arc::new(Semaphore::new(MAX_UPLOADS));
        Self { jobs, permits, checking: Arc::new(Semaphore::new(1)) }
    }

    /// Receives a picture and creates the job that edits it.
    ///
    /// # Errors
    /// Those of the stream; [`Kind::InvalidArgument`](crate::error::Kind) for the request and
    /// [`Kind::InvalidImage`](crate::error::Kind) for the picture; [`Kind::Expired`](crate::error::Kind) if the client stops sending;
    /// those of [`Jobs::create`].
    pub(super) async fn edit<B: AsRef<[u8]> + Send + 'static>(
        &self,
        client: Option<Client>,
        request: CreateJobRequest,
        mut data: impl Stream<Item = Result<B>> + Unpin,
    ) -> Result<Arc<Job>> {
        let stopping = |_| jobs::shutting_down();
        let _permit = self.permits.acquire().await.map_err(stopping)?;
        let jobs = self.jobs.clone();
        let mut receiving = blocking(move || jobs.receive()).await?;
        let silent = |_| Error::expired("waiting for the picture's next bytes", Some(SILENCE));
        while let Some(bytes) = tokio::time::timeout(SILENCE, data.next()).await.map_err(silent)? {
            let bytes = bytes?;
            receiving = blocking(move || {
                receiving.write(bytes.as_ref())?;
                Ok(receiving)
            })
            .await?;
        }
        let _check = self.checking.acquire().await.map_err(stopping)?;
        let jobs = self.jobs.clone();
        blocking(move || {
            let owner = client.as_ref().map(|client| client.name.clone()).unwrap_or_default();
            let request = convert::edit(request, owner, jobs.models(), receiving.finish()?)?;
            if let Some(client) = client {
                access::check_limits(&client, &request.spec, &jobs)?;
            }
            jobs.create(request)
        })
        .await
    }
}
