//! Downloads in chunks: memory does not grow with the file or with slow clients.
//!
//! Guarantee: an interrupted download can be resumed by `Range` and has the same bytes.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    ops::RangeInclusive,
    path::Path,
};

use axum::{
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use tokio::{sync::mpsc, task::spawn_blocking};
use tokio_stream::wrappers::ReceiverStream;

use super::reply::{self, Body};
use crate::error::{Error, Result};

/// Bytes of a chunk.
const PIECE: u64 = 64 * 1024;

/// Opens a file and returns its length.
///
/// # Errors
/// [`crate::error::Kind::Io`].
pub(super) fn open(path: &Path) -> Result<(File, u64)> {
    let failed = |e| Error::io("read", path, e);
    let file = File::open(path).map_err(failed)?;
    let len = file.metadata().map_err(failed)?.len();
    Ok((file, len))
}

/// Responds with the file or the requested range.
pub(super) fn send(
    (file, len): (File, u64),
    headers: &HeaderMap,
    kind: &str,
    tag: &str,
    name: &str,
) -> Response {
    if reply::etag_matches(headers, tag) {
        return reply::not_modified(tag);
    }
    let current = headers.get(header::IF_RANGE).is_none_or(|known| known == tag);
    let asked = headers.get(header::RANGE).filter(|_| current).and_then(|v| v.to_str().ok());
    let part = match asked.and_then(|text| range(text, len)) {
        Some(Range::Part(part)) => Some(part),
        Some(Range::Outside) => {
            let header = [(header::CONTENT_RANGE, format!("bytes */{len}"))];
            return (StatusCode::RANGE_NOT_SATISFIABLE, header).into_response();
        }
        None => None,
    };
    let (start, size) = match &part {
        Some(part) => (*part.start(), part.end() - part.start() + 1),
        None => (0, len),
    };
    let mut response = reply::immutable(kind, tag, pieces(file, start, size));
    let mut extra = vec![
        (header::ACCEPT_RANGES, "bytes".to_owned()),
        (header::CONTENT_LENGTH, size.to_string()),
        (header::CONTENT_DISPOSITION, format!("attachment; filename=\"{name}\"")),
    ];
    if let Some(part) = part {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        let (first, last) = (part.start(), part.end());
        extra.push((header::CONTENT_RANGE, format!("bytes {first}-{last}/{len}")));
    }
    for (name, value) in extra {
        if let Ok(value) = value.parse() {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

/// A requested range.
#[derive(Debug, PartialEq)]
enum Range {
    /// Existing bytes.
    Part(RangeInclusive<u64>),
    /// Bytes beyond the end.
    Outside,
}

/// Parses one range of bytes; multiple ranges, other units and malformed ones are ignored (RFC 9110, 14.2).
fn range(text: &str, len: u64) -> Option<Range> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let number = |text: &str| {
        text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u64>().ok()).flatten()
    };
    let (start, end) = match (first.is_empty(), last.is_empty()) {
        (true, true) => return None,
        // A suffix range.
        (true, false) => match number(last)? {
            0 => return Some(Range::Outside),
            count => (len.saturating_sub(count), len.saturating_sub(1)),
        },
        (false, true) => (number(first)?, len.saturating_sub(1)),
        (false, false) => (number(first)?, number(last)?),
    };
    if first.is_empty() || last.is_empty() || start <= end {
        let inside = start < len;
        return Some(if inside { Range::Part(start..=end.min(len - 1)) } else { Range::Outside });
    }
    None
}

/// A body of `size` bytes of the file from `start`, read as fast as the client.
fn pieces(file: File, start: u64, size: u64) -> Body {
    let (to_client, from_file) = mpsc::channel(1);
    tokio::spawn(async move {
        let (mut file, mut at, end) = (file, start, start + size);
        while at < end {
            let wanted = PIECE.min(end - at);
            let read = spawn_blocking(move || {
                let mut piece = vec![0; wanted as usize];
                file.seek(SeekFrom::Start(at))?;
                file.read_exact(&mut piece)?;
                std::io::Result::Ok((file, piece))
            });
            let piece = match read.await {
                Ok(Ok((back, piece))) => {
                    file = back;
                    Ok(piece)
                }
                Ok(Err(error)) => {
                    tracing::error!("http: a download failed: {error}");
                    let _ = to_client.send(Err(error)).await;
                    return;
                }
                Err(_) => return,
            };
            at += wanted;
            // Fails if the client has disconnected.
            if to_client.send(piece).await.is_err() {
                return;
            }
        }
    });
    Body::from_stream(ReceiverStream::new(from_file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn range_headers_are_parsed_as_in_rfc_9110() {
        let part = |a, b| Some(Range::Part(a..=b));
        for (text, expected) in [
            ("bytes=0-0", part(0, 0)),
            ("bytes=10-", part(10, 99)),
            ("bytes=-10", part(90, 99)),
            ("bytes=-1000", part(0, 99)),
            ("bytes=90-1000", part(90, 99)),
            ("bytes=100-", Some(Range::Outside)),
            ("bytes=-0", Some(Range::Outside)),
            ("bytes=5-4", None),
            ("bytes=-", None),
            ("bytes=0-1,3-4", None),
            ("bytes=+1-2", None),
            ("lines=0-1", None),
            ("bytes=99999999999999999999-", None),
        ] {
            assert_eq!(range(text, 100), expected, "{text}");
        }
        assert_eq!(range("bytes=0-", 0), Some(Range::Outside));
    }
}
