//! A job's events, each once and in order, over as many connections as it takes.

use tonic::{Code, Status, Streaming};

use super::{Client, is_last, plain, retry::Backoff, status};
use crate::{
    api::{
        JobEvent, StreamOptions, WatchJobRequest, WatchJobResponse,
        job_event::{Event, Failed},
    },
    error::{Detail, Error, Kind, Result},
};

/// Watches one job. Made by [`Client::watch`].
#[derive(Debug)]
pub struct Watch {
    client: Client,
    name: String,
    options: StreamOptions,
    /// Sequence of the last event that was passed on.
    last: u64,
    stream: Option<Streaming<WatchJobResponse>>,
    backoff: Backoff,
    /// The outage was told of.
    told: bool,
    /// The last event of the job was passed on.
    over: bool,
}

impl Watch {
    pub(super) fn new(client: Client, name: String, after: u64, options: StreamOptions) -> Self {
        let backoff = client.retry.backoff();
        Self { client, name, options, last: after, stream: None, backoff, told: false, over: false }
    }

    /// The next event; `None` after the last one. While the server is away this waits and asks again, until it is given up.
    ///
    /// May be dropped while it waits: the next call goes on where this one was.
    ///
    /// # Errors
    /// What the server says, unless that may pass; [`Kind::Unavailable`] when it stays away for as long as
    /// [`Retry::give_up`](super::Retry::give_up) says; [`Kind::Internal`] when it leaves out an event.
    pub async fn next(&mut self) -> Result<Option<JobEvent>> {
        while !self.over {
            let why = match self.receive().await {
                Ok(Some(event)) => match self.accept(event)? {
                    Some(event) => return Ok(Some(event)),
                    None => continue,
                },
                Ok(None) if self.over => break,
                Ok(None) => Status::unavailable("the stream ended before the job"),
                Err(status) if status::may_pass(&status) => status,
                Err(status) => return Err(self.client.error(&status)),
            };
            self.stream = None;
            if !self.told {
                self.told = true;
                let (name, last) = (plain(&self.name), self.last);
                tracing::warn!("{name}: {}; going on after event {last}", plain(why.message()));
            }
            if !self.backoff.pause().await {
                return Err(self.client.given_up(&why));
            }
        }
        Ok(None)
    }

    /// Sequence of the last event that [`Watch::next`] gave.
    pub fn last_sequence(&self) -> u64 {
        self.last
    }

    /// The next event of the stream, which is opened if there is none. `None`: it ended.
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
                // An ended job whose last event was seen before has none to send.
                self.stream = None;
                let job = self.client.try_get(&self.name).await?;
                self.over = is_last(job.state()) && job.sequence <= self.last;
                Ok(None)
            }
        }
    }

    /// Passes an event on if it is the next one. `None`: it was passed on before.
    fn accept(&mut self, event: JobEvent) -> Result<Option<JobEvent>> {
        if event.sequence <= self.last {
            return Ok(None);
        }
        if event.sequence != self.last + 1 {
            let field = format!("the server's event of {}", plain(&self.name));
            let expected = (self.last + 1).to_string();
            return Err(Error::wrong(Kind::Internal, field, event.sequence, expected));
        }
        self.last = event.sequence;
        self.backoff.reset();
        self.told = false;
        self.over = matches!(
            event.event,
            Some(Event::Finished(_) | Event::Failed(_) | Event::Cancelled(_))
        );
        Ok(Some(event))
    }
}

/// The error of a job that ended with `event` and without a picture.
pub fn ended_badly(job: &str, event: &Event) -> Option<Error> {
    let job = plain(job);
    match event {
        Event::Failed(Failed { code, message }) => Some(Error::new(
            status::kind(Code::from_i32(*code)),
            Detail::Remote { origin: format!("{job} failed"), message: plain(message) },
        )),
        Event::Cancelled(_) => Some(Error::cancelled(job)),
        _ => None,
    }
}
