//! Uploads of source pictures by gRPC and HTTP.
//!
//! Guarantees: an upload is read at once or refused at once, so that it never holds up the other calls of its connection. A
//! client has at most [`MAX_PER_CLIENT`] of [`MAX_UPLOADS`] places, and each place is free again after a limited time: an
//! upload that is slower than [`LEAST_RATE`], pauses for [`SILENCE`] or takes longer than [`LONGEST`] is refused.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::http::Extensions;
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout_at},
};
use tokio_stream::{Stream, StreamExt as _};
use tokio_util::sync::CancellationToken;

use crate::{
    api::CreateJobRequest,
    error::{Error, Result},
    jobs::{self, Job, Jobs, RETRY_AFTER},
    service::{access::Caller, blocking::blocking, connections::Peer, convert},
};

/// Concurrent uploads.
const MAX_UPLOADS: usize = 32;

/// Concurrent uploads of one client: of one token or, without tokens, of one address.
const MAX_PER_CLIENT: usize = 16;

/// Longest wait for the next bytes of a client.
const SILENCE: Duration = Duration::from_secs(30);

/// Time before [`LEAST_RATE`] counts.
const START: Duration = Duration::from_secs(10);

/// Least mean rate of an upload, in bytes per second.
const LEAST_RATE: u64 = 16 << 10;

/// Longest time of an upload.
const LONGEST: Duration = Duration::from_secs(15 * 60);

/// One who uploads.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Uploader {
    /// Name of a client with a token.
    Client(String),
    /// Address of one without; `None` if it has no connection, as in tests.
    Address(Option<IpAddr>),
}

/// Receiver of uploads. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Uploads {
    jobs: Jobs,
    places: Arc<Places>,
    /// Checking a picture decodes it, which takes much memory: one at a time.
    checking: Arc<Semaphore>,
    stopping: CancellationToken,
}

/// An upload that has its place.
#[derive(Debug)]
pub(super) struct Receiver {
    uploads: Uploads,
    caller: Caller,
    pace: Pace,
    _place: Place,
}

impl Uploads {
    /// Uploads end when `stopping` is cancelled.
    pub(super) fn new(jobs: Jobs, stopping: CancellationToken) -> Self {
        let checking = Arc::new(Semaphore::new(1));
        Self { jobs, places: Arc::default(), checking, stopping }
    }

    /// Takes a place for the upload of a request with `extensions`.
    ///
    /// # Errors
    /// [`Kind::Exhausted`](crate::error::Kind) if all places, or those of the client, are taken.
    pub(super) fn begin(&self, extensions: &Extensions) -> Result<Receiver> {
        let caller = Caller::of(extensions);
        let uploader = match caller.name() {
            Some(name) => Uploader::Client(name.to_owned()),
            None => Uploader::Address(extensions.get::<Peer>().map(|peer| peer.0.ip())),
        };
        let place = self.places.take(uploader)?;
        Ok(Receiver { uploads: self.clone(), caller, pace: Pace::start(), _place: place })
    }
}

impl Receiver {
    /// Awaits the next part of the upload, after `received` bytes of it.
    ///
    /// # Errors
    /// [`Kind::Expired`](crate::error::Kind) if the client is too slow; [`Kind::Unavailable`](crate::error::Kind) if the server
    /// stops.
    pub(super) async fn next<T>(&self, received: u64, part: impl Future<Output = T>) -> Result<T> {
        let (deadline, limit) = self.pace.deadline(received, Instant::now());
        let late = |_| Error::expired("receiving the picture", Some(limit));
        tokio::select! {
            biased;
            () = self.uploads.stopping.cancelled() => Err(jobs::shutting_down()),
            part = timeout_at(deadline, part) => part.map_err(late),
        }
    }

    /// Receives a picture and creates the job that edits it.
    ///
    /// # Errors
    /// Those of the stream; [`Kind::InvalidArgument`](crate::error::Kind) for the request and
    /// [`Kind::InvalidImage`](crate::error::Kind) for the picture; those of [`Receiver::next`] and [`Jobs::create`].
    pub(super) async fn edit<B: AsRef<[u8]> + Send + 'static, E: From<Error>>(
        self,
        request: CreateJobRequest,
        mut data: impl Stream<Item = Result<B, E>> + Unpin,
    ) -> Result<Arc<Job>, E> {
        let jobs = self.uploads.jobs.clone();
        let mut receiving = blocking(move || jobs.receive()).await?;
        let mut received = 0;
        while let Some(bytes) = self.next(received, data.next()).await? {
            let bytes = bytes?;
            received += bytes.as_ref().len() as u64;
            receiving = blocking(move || {
                receiving.write(bytes.as_ref())?;
                Ok(receiving)
            })
            .await?;
        }
        let _check = tokio::select! {
            biased;
            () = self.uploads.stopping.cancelled() => return Err(jobs::shutting_down().into()),
            check = self.uploads.checking.acquire() => check.map_err(|_| jobs::shutting_down())?,
        };
        let (jobs, caller) = (self.uploads.jobs.clone(), self.caller);
        blocking(move || {
            let source = receiving.finish()?;
            let request = convert::edit(request, caller.owner(), jobs.models(), source)?;
            caller.check_limits(&request.spec, &jobs)?;
            convert::create(&jobs, request)
        })
        .await
        .map_err(E::from)
    }
}

/// The uploads in progress by client.
#[derive(Debug, Default)]
struct Places(Mutex<HashMap<Uploader, usize>>);

impl Places {
    /// A place for `uploader`.
    ///
    /// # Errors
    /// [`Kind::Exhausted`](crate::error::Kind).
    fn take(self: &Arc<Self>, uploader: Uploader) -> Result<Place> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let own = taken.get(&uploader).copied().unwrap_or_default();
        let all = taken.values().sum::<usize>();
        for (resource, taken, limit) in
            [("uploads_of_client", own, MAX_PER_CLIENT), ("uploads", all, MAX_UPLOADS)]
        {
            if taken >= limit {
                let error = Error::exhausted(resource, taken as u64 + 1, limit as u64);
                return Err(error.with_retry_after(RETRY_AFTER));
            }
        }
        taken.insert(uploader.clone(), own + 1);
        Ok(Place { places: self.clone(), uploader })
    }
}

/// A place among the uploads in progress.
#[derive(Debug)]
struct Place {
    places: Arc<Places>,
    uploader: Uploader,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.0.lock().unwrap_or_else(PoisonError::into_inner);
        match taken.get_mut(&self.uploader) {
            Some(own) if *own > 1 => *own -= 1,
            _ => drop(taken.remove(&self.uploader)),
        }
    }
}

/// The time that an upload may take.
#[derive(Clone, Copy, Debug)]
struct Pace {
    began: Instant,
}

impl Pace {
    fn start() -> Self {
        Self { began: Instant::now() }
    }

    /// The time until which the next bytes must come after `received` bytes, at the time `now`, and the limit that it follows
    /// from.
    fn deadline(&self, received: u64, now: Instant) -> (Instant, Duration) {
        let earned = START + Duration::from_millis(received * 1000 / LEAST_RATE);
        let limits = [
            (now + SILENCE, SILENCE),
            (self.began + earned, earned),
            (self.began + LONGEST, LONGEST),
        ];
        limits.into_iter().min().unwrap_or((now, Duration::ZERO))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn upload_places_are_shared_among_clients() {
        let places = Arc::new(Places::default());
        let client = |name: &str| Uploader::Client(name.to_owned());
        let mut held: Vec<_> =
            (0..MAX_PER_CLIENT).map(|_| places.take(client("a")).unwrap()).collect();
        let error = places.take(client("a")).unwrap_err();
        assert_eq!((error.kind(), error.retry_after()), (Kind::Exhausted, Some(RETRY_AFTER)));
        // Others have places left, until all are taken.
        for i in MAX_PER_CLIENT..MAX_UPLOADS {
            held.push(places.take(client(&format!("b{}", i / 4))).unwrap());
        }
        let error = places.take(client("c")).unwrap_err();
        assert_eq!((error.kind(), error.retry_after()), (Kind::Exhausted, Some(RETRY_AFTER)));
        held.pop();
        places.take(client("c")).unwrap();
        held.clear();
        assert!(places.0.lock().unwrap().is_empty());
    }

    #[test]
    fn upload_deadlines_follow_from_silence_rate_and_time() {
        let pace = Pace { began: Instant::now() };
        let after = |seconds| pace.began + Duration::from_secs(seconds);
        // A client that sends nothing, or a byte at a time.
        assert_eq!(pace.deadline(0, after(0)).0, after(10));
        assert_eq!(pace.deadline(1, after(8)).0, after(10));
        // One at twice the least rate may pause, but not for long.
        let (deadline, limit) = pace.deadline(2 * 100 * LEAST_RATE, after(100));
        assert_eq!((deadline, limit), (after(130), SILENCE));
        // One at the least rate gets a picture of 13 MiB through, and no larger one.
        for second in 0..900 {
            assert!(pace.deadline(second * LEAST_RATE, after(second)).0 > after(second));
        }
        assert_eq!(pace.deadline(1 << 40, after(899)).0, after(900));
    }
}
