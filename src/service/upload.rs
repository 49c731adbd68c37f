//! Pictures that clients send to be edited, by gRPC and by HTTP.

use std::{sync::Arc, time::Duration};

use tokio::sync::Semaphore;
use tokio_stream::{Stream, StreamExt as _};

use crate::{
    api::CreateJobRequest,
    error::{Error, Result},
    jobs::{self, Job, Jobs},
    service::{
        access::{self, Client},
        convert,
    },
};

/// Pictures that arrive at one time; others wait.
const PLACES: usize = 8;

/// Longest wait for a client's next bytes.
const SILENCE: Duration = Duration::from_secs(30);

/// Where pictures arrive. Cloning shares it.
#[derive(Clone, Debug)]
pub(super) struct Uploads {
    jobs: Jobs,
    places: Arc<Semaphore>,
    /// Decoding a picture to see whether it is whole takes much memory: one at a time.
    checking: Arc<Semaphore>,
}

impl Uploads {
    pub(super) fn new(jobs: Jobs) -> Self {
        let places = Arc::new(Semaphore::new(PLACES));
        Self { jobs, places, checking: Arc::new(Semaphore::new(1)) }
    }

    /// Takes a picture in, and queues the job that edits it.
    ///
    /// # Errors
    /// What the stream gives; [`Kind::InvalidArgument`](crate::error::Kind) and [`Kind::InvalidImage`](crate::error::Kind) for what is wrong with order and picture;
    /// [`Kind::Expired`](crate::error::Kind) when the client falls silent; those of [`Jobs::create`].
    pub(super) async fn edit<B: AsRef<[u8]> + Send + 'static>(
        &self,
        client: Option<Client>,
        order: CreateJobRequest,
        mut data: impl Stream<Item = Result<B>> + Unpin,
    ) -> Result<Arc<Job>> {
        let stopping = |_| jobs::shutting_down();
        let _place = self.places.acquire().await.map_err(stopping)?;
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
        let _turn = self.checking.acquire().await.map_err(stopping)?;
        let jobs = self.jobs.clone();
        blocking(move || {
            let owner = client.as_ref().map(|client| client.name.clone()).unwrap_or_default();
            let request = convert::edit(order, owner, jobs.models(), receiving.finish()?)?;
            if let Some(client) = client {
                access::check_limits(&client, &request.spec, &jobs)?;
            }
            jobs.create(request)
        })
        .await
    }
}

/// Runs `work`, which may wait for a disk, on a thread that may.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Error::internal("a call panicked").with_source(e))
        .flatten()
}
