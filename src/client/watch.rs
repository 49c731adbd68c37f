//! A job's events, each once and in order, over any number of connections.

use tonic::{Code, Status, Streaming};

use super::{Client, is_last, retry::Backoff, sanitize, status};
use crate::{
    api::{
        JobEvent, StreamOptions, WatchJobRequest, WatchJobResponse,
        job_event::{Event, Failed},
    },
    error::{Detail, Error, Kind, Result},
};

/// A watch of one job: see [`Client::watch`].
#[derive(Debug)]
pub struct Watch {
    client: Client,
    name: String,
    options: StreamOptions,
    /// Sequence number of the last returned event.
    last: u64,
    stream: Option<Streaming<WatchJobResponse>>,
    backoff: Backoff,
    /// True if the current outage was logged.
    logged: bool,
    /// True if the last event of the job was returned.
    ended: bool,
}

impl Watch {
    pub(super) fn new(client: Client, name: String, after: u64, options: StreamOptions) -> Self {
        let backoff = client.retry.backoff();
        Self {
            client,
            name,
            options,
            last: after,
            stream: None,
            backoff,
            logged: false,
            ended: false,
        }
    }

    /// The next event; `None` after the last one. Reconnects while the server is unavailable.
    ///
    /// Cancel safe: a dropped call loses no event.
    ///
    /// # Errors
    /// Those of the server unless they are transient; [`Kind::Unavailable`] after
    /// [`Retry::give_up`](super::Retry::give_up); [`Kind::Internal`] if the server omits an event.
    pub async fn next(&mut self) -> Result<Option<JobEvent>> {
        while !self.ended {
            let why = match self.receive().await {
                Ok(Some(event)) => match self.accept(event)? {
                    Some(event) => return Ok(Some(event)),
                    None => continue,
                },
                Ok(None) if self.ended => break,
                Ok(None) => Status::unavailable("the stream ended before the job"),
                Err(status) if status::is_transient(&status) || status::is_full(&status) => status,
                Err(status) => return Err(self.client.error(&status)),
            };
            self.stream = None;
            if !self.logged {
                self.logged = true;
                let (name, last) = (sanitize(&self.name), self.last);
                tracing::warn!("{name}: {}; resuming after event {last}", sanitize(why.message()));
            }
            if !self.backoff.pause().await {
                return Err(self.client.given_up(&why));
            }
        }
        Ok(None)
    }

    /// Sequence number of the last event that [`Watch::next`] returned.
    pub fn last_sequence(&self) -> u64 {
        self.last
    }

    /// The next event of the stream, which is opened if necessary. `None`: it ended.
    async fn receive(&mut self) -> Result<Option<JobEvent>, Status> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => {
                let request = WatchJobRequest {
                    name: self.name.clone(),
                    after_sequence: self.last,
                    options: Some(self.options),
                };
                let stream = self.client.try_watch(request).await?;
                self.backoff.answered();
                self.stream.insert(stream)
            }
        };
        match stream.message().await? {
            Some(WatchJobResponse { event: Some(event) }) => Ok(Some(event)),
            Some(WatchJobResponse { event: None }) => {
                Err(Status::internal("the server sent a message without an event"))
            }
            None => {
                // There is no event left if the last one was returned before.
                self.stream = None;
                let job = self.client.try_get(&self.name).await?;
                self.ended = is_last(job.state()) && job.sequence <= self.last;
                Ok(None)
            }
        }
    }

    /// Returns the event if it is the next one; `None` if it was returned before.
    fn accept(&mut self, event: JobEvent) -> Result<Option<JobEvent>> {
        if event.sequence <= self.last {
            return Ok(None);
        }
        if event.sequence != self.last + 1 {
            let field = format!("the server's event of {}", sanitize(&self.name));
            let expected = (self.last + 1).to_string();
            return Err(Error::wrong(Kind::Internal, field, event.sequence, expected));
        }
        self.last = event.sequence;
        self.backoff.reset();
        self.logged = false;
        self.ended = matches!(
            event.event,
            Some(Event::Finished(_) | Event::Failed(_) | Event::Cancelled(_))
        );
        Ok(Some(event))
    }
}

/// The error of a job whose last event is `event`; `None` if it is not a failure.
pub fn job_failure(job: &str, event: &Event) -> Option<Error> {
    let job = sanitize(job);
    match event {
        Event::Failed(Failed { code, message }) => Some(Error::new(
            status::kind(Code::from_i32(*code)),
            Detail::Remote { origin: format!("{job} failed"), message: sanitize(message) },
        )),
        Event::Cancelled(_) => Some(Error::cancelled(job)),
        _ => None,
    }
}
