//! Checks of the framing of gRPC requests, before tonic buffers a message.
//!
//! A message is a flag, its length as four bytes in big-endian order, and its bytes.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use axum::body::{Bytes, HttpBody as _};
use tokio_stream::Stream;
use tonic::{
    Status,
    body::Body,
    codegen::{Service, http},
    server::NamedService,
};

use crate::{
    api::descriptors,
    error::{Error, Expected, Result},
    service::{MAX_REQUEST, convert},
};

/// Length of the flag and the length of a message.
const HEADER: usize = 5;

/// A service whose requests are checked.
#[derive(Clone, Debug)]
pub(super) struct CheckFrames<S>(pub(super) S);

impl<S: NamedService> NamedService for CheckFrames<S> {
    const NAME: &'static str = S::NAME;
}

impl<S: Service<http::Request<Body>>> Service<http::Request<Body>> for CheckFrames<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> S::Future {
        // A method that takes a stream of messages may have its own answer to an empty one.
        let may_be_empty = descriptors::takes_stream(request.uri().path());
        let checked = |body| {
            let frames = Frames { begun: may_be_empty, ..Frames::default() };
            Body::new(axum::body::Body::from_stream(Checked { body, frames }))
        };
        self.0.call(request.map(checked))
    }
}

/// The data of a body; ends with an error at the first invalid frame.
struct Checked {
    body: Body,
    frames: Frames,
}

impl Stream for Checked {
    type Item = Result<Bytes, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let frame = match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => {
                    let end = self.frames.end().map_err(|error| convert::status(&error));
                    return Poll::Ready(end.err().map(Err));
                }
                Poll::Ready(Some(Err(status))) => return Poll::Ready(Some(Err(status))),
                Poll::Ready(Some(Ok(frame))) => frame,
            };
            // Requests have no trailers.
            let Ok(data) = frame.into_data() else { continue };
            let checked = self.frames.check(&data).map_err(|error| convert::status(&error));
            return Poll::Ready(Some(checked.map(|()| data)));
        }
    }
}

/// Position in a sequence of messages.
#[derive(Debug, Default)]
struct Frames {
    /// Bytes of the header of the current message.
    header: Vec<u8>,
    /// Bytes of the current message that have not come yet.
    left: usize,
    /// True after the first header, or if there need not be one.
    begun: bool,
}

impl Frames {
    /// Checks the next bytes.
    fn check(&mut self, mut data: &[u8]) -> Result<()> {
        while !data.is_empty() {
            if self.left > 0 {
                let skipped = self.left.min(data.len());
                (self.left, data) = (self.left - skipped, &data[skipped..]);
                continue;
            }
            let taken = (HEADER - self.header.len()).min(data.len());
            self.header.extend_from_slice(&data[..taken]);
            data = &data[taken..];
            if let &[flag, a, b, c, d] = self.header.as_slice() {
                let length = u32::from_be_bytes([a, b, c, d]) as usize;
                if flag > 1 {
                    return Err(Error::invalid("compressed flag", flag, Expected::within(0..=1)));
                }
                if length > MAX_REQUEST {
                    return Err(Error::exhausted(
                        "request_bytes",
                        length as u64,
                        MAX_REQUEST as u64,
                    ));
                }
                (self.left, self.begun) = (length, true);
                self.header.clear();
            }
        }
        Ok(())
    }

    /// Checks that the data ends with a message.
    fn end(&mut self) -> Result<()> {
        let Self { header, left, begun } = std::mem::take(self);
        if header.is_empty() && left == 0 {
            return match begun {
                true => Ok(()),
                false => Err(Error::missing("request", "a message")),
            };
        }
        let missing = if left > 0 { left } else { HEADER - header.len() };
        Err(Error::invalid("request", format!("{missing} bytes short"), "a complete message"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn message(length: usize) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend((length as u32).to_be_bytes());
        bytes.resize(HEADER + length, 7);
        bytes
    }

    #[test]
    fn frames_are_checked_wherever_the_data_is_cut() {
        let good = [message(0), message(3), message(MAX_REQUEST), message(1)].concat();
        for pieces in [1, 2, 5, 7, 1000, good.len()] {
            let mut frames = Frames::default();
            assert!(good.chunks(pieces).all(|data| frames.check(data).is_ok()), "{pieces}");
            assert!(frames.end().is_ok(), "{pieces}");
            let long = [message(2), message(MAX_REQUEST + 1)].concat();
            let mut results = long.chunks(pieces).map(|data| frames.check(data));
            let error = results.find_map(|result| result.err()).unwrap();
            assert_eq!((error.kind(), error.retry_after()), (Kind::Exhausted, None), "{pieces}");
        }
        for cut in [1, 4, 5, 7] {
            let mut frames = Frames::default();
            assert!(frames.check(&message(3)[..cut]).is_ok());
            assert_eq!(frames.end().unwrap_err().kind(), Kind::InvalidArgument, "{cut}");
        }
        assert_eq!(Frames::default().end().unwrap_err().kind(), Kind::InvalidArgument);
        let error = Frames::default().check(&[2, 0, 0, 0, 0]).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument);
    }
}
