//! Bodies of gRPC responses whose large parts (tiles, previews) are not in memory while the client has no room for them.
//!
//! A message of tonic is encoded as a whole, and HTTP/2 holds it until the client reads: a few tiles of 6 MiB for every
//! stream that is not read. Here only the head of a message, up to the bytes of the picture, is encoded; these follow in
//! chunks of [`CHUNK`] bytes, each taken from the cache of [`Encoder`] when the chunk before has been handed over. A stream
//! that is not read holds at most [`STREAM_BYTES`].
//!
//! The methods of the service return responses without messages and attach the body, which [`with_frames`] puts in place
//! below the layer of gRPC-Web.

use std::{
    future::Future as _,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use axum::{body::Bytes, http};
use hyper::body::{Body, Frame};
use prost::{
    Message,
    encoding::{WireType, encode_key, encode_varint},
};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::{Code, Response, Status};

use super::{
    connections::SEND_BUFFER,
    convert,
    encode::{Content, Encoder},
};
use crate::{
    error::{Error, Result},
    jobs::Job,
};

/// Bytes of a picture that are sent at a time.
pub(super) const CHUNK: usize = 32 << 10;

/// Most bytes that a stream holds if its client does not read: a chunk in the channel, one that HTTP/2 has asked for, and
/// those that it has taken, which exceed its buffer by less than a chunk.
pub(super) const STREAM_BYTES: usize = 3 * CHUNK + SEND_BUFFER;

/// Number of the field `data` of `Tile` and `Preview`.
const DATA: u32 = 5;

/// Length of the prefix of a gRPC message: a flag and the message's length.
const PREFIX: usize = 5;

/// The beginning of a message up to the bytes of a picture, which are the last field of its innermost message.
#[derive(Debug)]
pub(super) struct Head {
    bytes: Vec<u8>,
    /// Bytes that follow.
    data: usize,
}

impl Head {
    /// The head of the field `data` of a `Tile` or `Preview`, with `data` bytes.
    pub(super) fn data(data: usize) -> Self {
        let mut bytes = Vec::new();
        encode_key(DATA, WireType::LengthDelimited, &mut bytes);
        encode_varint(data as u64, &mut bytes);
        Self { bytes, data }
    }

    /// The head of the field `number` that contains a message with the fields of `fields`, then this one.
    pub(super) fn within(self, number: u32, fields: &impl Message) -> Self {
        let mut bytes = Vec::new();
        let length = fields.encoded_len() + self.bytes.len() + self.data;
        encode_key(number, WireType::LengthDelimited, &mut bytes);
        encode_varint(length as u64, &mut bytes);
        bytes.extend(fields.encode_to_vec());
        bytes.extend(self.bytes);
        Self { bytes, data: self.data }
    }

    /// The message that consists of this field, with gRPC's prefix.
    fn framed(self) -> Vec<u8> {
        framed(self.bytes, self.data)
    }
}

/// `message` with gRPC's prefix; `rest` bytes of it follow later.
fn framed(message: Vec<u8>, rest: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(PREFIX + message.len());
    out.push(0); // not compressed
    out.extend(((message.len() + rest) as u32).to_be_bytes());
    out.extend(message);
    out
}

/// Reason why nothing more can be sent.
#[derive(Debug)]
pub(super) enum End {
    /// The client has left, or a message was cut off.
    Gone,
    /// The call ends with this error.
    Failed(Error),
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

type Item = Result<Frame<Bytes>, Status>;

/// Sends the frames of one response.
#[derive(Debug)]
pub(super) struct Sender(mpsc::Sender<Item>);

/// The body that a [`Sender`] fills.
#[derive(Debug)]
pub(super) struct Frames {
    frames: mpsc::Receiver<Item>,
    _place: OwnedSemaphorePermit,
}

/// A response's body and its sender; `place` is one of the streams of the server.
pub(super) fn channel(place: OwnedSemaphorePermit) -> (Sender, Frames) {
    let (sender, frames) = mpsc::channel(1);
    (Sender(sender), Frames { frames, _place: place })
}

impl Sender {
    /// Completes when the client has left.
    pub(super) async fn closed(&self) {
        self.0.closed().await;
    }

    /// Sends a whole message.
    pub(super) async fn message(&self, message: &impl Message) -> Result<(), End> {
        let frame = Frame::data(framed(message.encode_to_vec(), 0).into());
        self.0.send(Ok(frame)).await.map_err(|_| End::Gone)
    }

    /// Sends a message with `content` of `job`; `head` makes its head from the number of bytes and the CRC32C.
    pub(super) async fn content(
        &self,
        encoder: &Arc<Encoder>,
        job: &Arc<Job>,
        content: Content,
        head: impl FnOnce(&super::encode::Loaded) -> Result<Head>,
    ) -> Result<(), End> {
        let mut place = self.0.reserve().await.map_err(|_| End::Gone)?;
        let mut loaded = encoder.load(job, content).await?;
        let len = loaded.data.len();
        let mut chunk = head(&loaded)?.framed();
        let mut at = 0;
        loop {
            let end = len.min(at + CHUNK);
            chunk.extend_from_slice(&loaded.data[at..end]);
            at = end;
            // Nobody holds the whole while the client reads the part.
            drop(loaded);
            place.send(Ok(Frame::data(std::mem::take(&mut chunk).into())));
            if at == len {
                return Ok(());
            }
            place = self.0.reserve().await.map_err(|_| End::Gone)?;
            loaded = match encoder.load(job, content).await {
                Ok(again) if again.data.len() == len => again,
                other => {
                    // Part of the message has been sent, so the stream is reset.
                    let error =
                        other.err().unwrap_or_else(|| Error::internal("reading a tile again"));
                    place.send(Err(convert::status(&error)));
                    return Err(End::Gone);
                }
            };
        }
    }

    /// Ends the call.
    pub(super) async fn end(self, result: Result<()>) {
        let status = result.map_or_else(|e| convert::status(&e), |()| Status::new(Code::Ok, ""));
        // Sending fails if the client has left.
        let _ = self.0.send(Ok(trailers(&status))).await;
    }
}

/// The frame that ends a response with `status`.
fn trailers(status: &Status) -> Frame<Bytes> {
    let mut headers = http::HeaderMap::new();
    if status.add_header(&mut headers).is_err() {
        // Its details can't be a header.
        headers.insert("grpc-status", http::HeaderValue::from(status.code() as i32));
    }
    Frame::trailers(headers)
}

impl Body for Frames {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Item>> {
        self.frames.poll_recv(cx)
    }
}

/// A body on its way through tonic, which allows only values that can be cloned.
#[derive(Clone, Debug)]
struct Attached(Arc<Mutex<Option<Frames>>>);

/// A response with the body `frames` instead of the encoded `message`.
pub(super) fn respond<T>(message: T, frames: Frames) -> Response<T> {
    let mut response = Response::new(message);
    response.extensions_mut().insert(Attached(Arc::new(Mutex::new(Some(frames)))));
    response
}

/// Puts the body that [`respond`] has attached in place.
pub(super) fn with_frames(
    mut response: http::Response<tonic::body::Body>,
) -> http::Response<tonic::body::Body> {
    let attached = response.extensions_mut().remove::<Attached>();
    let frames = attached.and_then(|Attached(frames)| frames.lock().ok()?.take());
    match frames {
        Some(frames) => response.map(|_| tonic::body::Body::new(frames)),
        None => response,
    }
}

/// A function that lets responses end with UNAVAILABLE when `ending` is cancelled, or when they end after `stopping` is: those
/// of services that would go on for as long as their clients.
pub(super) fn ending(
    ending: CancellationToken,
    stopping: CancellationToken,
) -> impl Fn(http::Response<tonic::body::Body>) -> http::Response<tonic::body::Body> + Clone {
    move |response| {
        let (ended, stopping) = (Box::pin(ending.clone().cancelled_owned()), stopping.clone());
        response.map(|body| tonic::body::Body::new(Ending { body, ended, stopping, done: false }))
    }
}

/// The body of a response that ends with the server.
struct Ending {
    body: tonic::body::Body,
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
    stopping: CancellationToken,
    done: bool,
}

impl Body for Ending {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Item>> {
        if self.done {
            return Poll::Ready(None);
        }
        match Pin::new(&mut self.body).poll_frame(cx) {
            // A service may end its stream by itself when its request is ended.
            Poll::Ready(frame) => {
                let last = match &frame {
                    Some(Ok(frame)) => frame.is_trailers(),
                    Some(Err(_)) | None => true,
                };
                if !last || !self.stopping.is_cancelled() {
                    return Poll::Ready(frame);
                }
            }
            Poll::Pending => std::task::ready!(self.ended.as_mut().poll(cx)),
        }
        self.done = true;
        Poll::Ready(Some(Ok(trailers(&convert::status(&crate::jobs::shutting_down())))))
    }

    fn is_end_stream(&self) -> bool {
        self.done || self.body.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{self, job_event};

    /// `head` and `data` are one message with gRPC's prefix.
    fn decoded<M: Message + Default>(head: Head, data: &[u8]) -> M {
        let bytes = [head.framed(), data.to_vec()].concat();
        let (prefix, message) = bytes.split_at(PREFIX);
        assert_eq!((prefix[0], &prefix[1..]), (0, &(message.len() as u32).to_be_bytes()[..]));
        M::decode(message).unwrap()
    }

    #[test]
    fn message_heads_and_their_data_decode_as_the_message() {
        let time = Some(prost_types::Timestamp { seconds: 1_800_000_000, nanos: 5 });
        for len in [0, 1, 127, 128, 300_000] {
            let data: Vec<u8> = (0..len).map(|i| i as u8).collect();
            let rect = Some(api::Rect { x: 7, y: 0, width: 300, height: 2 });
            let tile =
                api::Tile { column: 3, rect, format: 1, crc32c: u32::MAX, ..Default::default() };
            let whole = api::Tile { data: data.clone(), ..tile.clone() };
            let found: api::GetTileResponse = decoded(Head::data(len).within(1, &tile), &data);
            assert_eq!(found.tile, Some(whole.clone()));

            let event = api::JobEvent { sequence: 1 << 40, time, event: None };
            let head = Head::data(len).within(7, &tile).within(1, &event);
            let found: api::WatchJobResponse = decoded(head, &data);
            let whole = Some(job_event::Event::Tile(whole));
            assert_eq!(found.event, Some(api::JobEvent { event: whole, ..event.clone() }));
        }
    }
}
