//! Who may call: bearer tokens (RFC 6750), kept as hashes, compared in constant time; and by which names.
//!
//! A token file has one client a line: name, SHA-256 of the token in hexadecimal, and optionally the most jobs that the
//! client may have waiting and the most pixels of one picture; `#` begins a comment.
//!
//! ```text
//! # printf %s "$TOKEN" | sha256sum
//! anna 2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae 20 33554432
//! ```
//!
//! A server on loopback trusts whoever reaches it from this machine, so it must not be reached by way of a browser that
//! shows somebody's page: a page whose name turns into 127.0.0.1 after it was loaded (DNS rebinding) would count as the
//! server's own. Its requests still bear the page's name, so names that nobody has vouched for are refused ([`Hosts`]).

use std::{path::Path, sync::Arc};

use axum::{
    extract::{Request, State},
    http::{StatusCode, header, uri::Authority},
    middleware::Next,
    response::{IntoResponse, Response},
};
use sha2::{Digest, Sha256};
use tonic::Status;

use crate::{
    engine::plan::Spec,
    error::{Error, Result},
    jobs::{Jobs, RETRY_AFTER},
    service::{convert, http::reply::Failure},
    store::hash::from_hex,
};

/// A client that may call. Travels with its requests as an extension.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Client {
    /// Its name, which its jobs bear.
    pub name: String,
    /// Most jobs that it may have waiting.
    pub queue: Option<usize>,
    /// Most pixels of one picture.
    pub pixels: Option<u64>,
    sha256: [u8; 32],
}

/// All clients that may call.
#[derive(Clone, Debug)]
pub struct Tokens(Vec<Client>);

impl Tokens {
    /// Reads a token file.
    ///
    /// # Errors
    /// [`crate::error::Kind::InvalidArgument`] naming the line and what is wrong with it.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| {
            Error::invalid("tokens", path.display(), "a readable file").with_source(e)
        })?;
        Self::parse(&text).map_err(|e| {
            Error::invalid("tokens", path.display(), "a file of tokens").with_source(e)
        })
    }

    fn parse(text: &str) -> Result<Self> {
        let lines = text.lines().enumerate();
        let lines =
            lines.map(|(i, line)| (i + 1, line.split('#').next().unwrap_or_default().trim()));
        let clients = lines.filter(|(_, line)| !line.is_empty()).map(|(number, line)| {
            client(line).ok_or_else(|| {
                let expected = "NAME HASH [JOBS] [PIXELS], HASH of 64 hexadecimal digits";
                Error::invalid(format!("line {number}"), "malformed", expected)
            })
        });
        let clients = clients.collect::<Result<Vec<_>>>()?;
        if clients.is_empty() {
            return Err(Error::missing("client", "at least one line"));
        }
        Ok(Self(clients))
    }

    /// The client whose token this is. Takes the same time for every token.
    fn client(&self, token: &str) -> Option<&Client> {
        let hash: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        self.0.iter().fold(None, |found, client| {
            let differing = client.sha256.iter().zip(&hash).fold(0, |all, (a, b)| all | (a ^ b));
            if differing == 0 { Some(client) } else { found }
        })
    }
}

fn client(line: &str) -> Option<Client> {
    let mut fields = line.split_whitespace();
    let name = fields.next()?.to_owned();
    let sha256 = from_hex(fields.next()?)?;
    let queue = fields.next().map(str::parse).transpose().ok()?;
    let pixels = fields.next().map(str::parse).transpose().ok()?;
    fields.next().is_none().then_some(Client { name, queue, pixels, sha256 })
}

/// Lets a request with a known token pass, with its [`Client`] as an extension.
pub(super) async fn check(
    State(tokens): State<Arc<Tokens>>,
    mut request: Request,
    next: Next,
) -> Response {
    let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = given.and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    match token.and_then(|token| tokens.client(token)) {
        Some(client) => {
            let client = client.clone();
            request.extensions_mut().insert(client);
            next.run(request).await
        }
        None => {
            let error = Error::unauthenticated(match token {
                None => "a bearer token is required",
                Some(_) => "the bearer token is unknown",
            });
            if is_grpc(&request) {
                return grpc(convert::status(&error));
            }
            let header = [(header::WWW_AUTHENTICATE, "Bearer")];
            (header, Failure::from(error)).into_response()
        }
    }
}

/// Refuses what is beyond a client's own limits.
pub(super) fn check_limits(client: &Client, spec: &Spec, jobs: &Jobs) -> Result<()> {
    let pixels = spec.width as u64 * spec.height as u64;
    if let Some(limit) = client.pixels.filter(|&limit| pixels > limit) {
        return Err(Error::exhausted("pixels", pixels, limit));
    }
    let waiting = jobs.waiting(Some(&client.name));
    match client.queue.filter(|&limit| waiting >= limit) {
        Some(limit) => {
            let error = Error::exhausted("queued_jobs", waiting as u64 + 1, limit as u64);
            Err(error.with_retry_after(RETRY_AFTER))
        }
        None => Ok(()),
    }
}

/// Names that the server is reached by, besides addresses and `localhost`.
#[derive(Debug)]
pub(super) struct Hosts(Vec<String>);

impl Hosts {
    /// `names` in any case of letters.
    pub(super) fn new(names: &[String]) -> Self {
        Self(names.iter().map(|name| name.to_ascii_lowercase()).collect())
    }

    /// Whether a request to `host` is meant for this server. An address can't be turned into another one, a name can.
    fn know(&self, host: &str) -> bool {
        let host = host.to_ascii_lowercase();
        let address = host.trim_start_matches('[').trim_end_matches(']');
        address.parse::<std::net::IpAddr>().is_ok()
            || host == "localhost"
            || host.ends_with(".localhost")
            || self.0.contains(&host)
    }
}

/// Lets a request pass that bears a name of this server, or none: browsers always send one.
pub(super) async fn check_host(
    State(hosts): State<Arc<Hosts>>,
    request: Request,
    next: Next,
) -> Response {
    let header = request.headers().get(header::HOST).map(|value| value.to_str().unwrap_or("?"));
    let header = header.map(|value| value.parse::<Authority>().ok());
    let authority = request.uri().authority().cloned().map(Some).or(header);
    match authority {
        None => next.run(request).await,
        Some(Some(authority)) if hosts.know(authority.host()) => next.run(request).await,
        Some(authority) => {
            let name = authority.map_or_else(|| "malformed".to_owned(), |name| name.to_string());
            let error = Error::invalid("host", name, "a name of this server (see --host)");
            if is_grpc(&request) {
                return grpc(Status::permission_denied(error.to_string()));
            }
            Failure::from(error).with_status(StatusCode::MISDIRECTED_REQUEST)
        }
    }
}

fn is_grpc(request: &Request) -> bool {
    let kind = request.headers().get(header::CONTENT_TYPE);
    kind.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

fn grpc(status: Status) -> Response {
    status.into_http::<tonic::body::Body>().map(axum::body::Body::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_known_by_its_hash_and_no_other_is() -> Result<()> {
        let hash = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"; // of foo
        let tokens = Tokens::parse(&format!("# all\n\nanna {hash} 20 100 # hers\n"))?;
        let anna = tokens.client("foo").map(|c| (c.name.as_str(), c.queue, c.pixels));
        assert_eq!(anna, Some(("anna", Some(20), Some(100))));
        for wrong in ["", "fo", "fooo", "Foo", hash] {
            assert_eq!(tokens.client(wrong), None, "{wrong}");
        }
        Ok(())
    }

    #[test]
    fn addresses_and_names_that_were_vouched_for_are_known() {
        let hosts = Hosts::new(&["Pictures.example".to_owned()]);
        for host in ["127.0.0.1", "[::1]", "localhost", "LOCALHOST", "a.localhost", "10.0.0.1"] {
            assert!(hosts.know(host), "{host}");
        }
        assert!(hosts.know("pictures.EXAMPLE"));
        for host in ["", "example", "127.0.0.1.example", "localhost.example", "xlocalhost"] {
            assert!(!hosts.know(host), "{host}");
        }
    }

    #[test]
    fn a_damaged_line_is_named() {
        let hash = "0".repeat(64);
        let lines = ["anna", "anna 12", &format!("anna {hash}0"), &format!("a {hash} x"), ""];
        for line in lines {
            assert!(Tokens::parse(line).is_err(), "{line}");
        }
        let error = Tokens::parse(&format!("a {hash}\nb {hash} 1 2 3")).err();
        assert_eq!(error.as_ref().and_then(Error::field), Some("line 2"));
    }
}
