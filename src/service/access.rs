//! Access control: bearer tokens (RFC 6750), stored as hashes and compared in constant time, owners of jobs, and host names.
//!
//! A token file has one client per line: name, SHA-256 of the token in hexadecimal, and optionally the most queued jobs of the
//! client, the most pixels of a picture, and the word `admin`. `#` begins a comment. Lines of the same name are tokens of the
//! same client.
//!
//! ```text
//! # printf %s "$TOKEN" | sha256sum
//! anna 2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae 20 33554432
//! root fcde2b2edba56bf408601fb721fe9b5c338d10ee429ea04fae5511b68fbf8fb9 admin
//! ```
//!
//! A job belongs to the client that created it. Other clients can't see or change it: for them it does not exist. An admin may
//! see and change all jobs, those without an owner too, which were created while the server had no tokens. Without tokens,
//! every caller may see and change all jobs.
//!
//! A server on loopback trusts local callers, so web pages of other hosts must not reach it through a local browser. Against
//! DNS rebinding (a name that resolves to 127.0.0.1 after the page was loaded), requests for unknown host names are rejected
//! ([`Hosts`]).

use std::{convert::Infallible, path::Path, sync::Arc};

use axum::{
    extract::{FromRequestParts, Request, State},
    http::{Extensions, StatusCode, header, request::Parts, uri::Authority},
    middleware::Next,
    response::{IntoResponse, Response},
};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq as _;
use tonic::Status;

use crate::{
    engine::plan::Spec,
    error::{Error, Resource, Result},
    jobs::{Job, Jobs, RETRY_AFTER},
    service::{convert, http::reply::Failure},
    store::hash::from_hex,
};

/// A client with a token. It is an extension of its requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Client {
    /// Name, the owner of its jobs.
    pub name: String,
    /// Most queued jobs.
    pub queue: Option<usize>,
    /// Most pixels of one picture.
    pub pixels: Option<u64>,
    /// True if it may see and change the jobs of all owners.
    pub admin: bool,
    sha256: [u8; 32],
}

/// The caller of a request: a client with a token, or `None` if the server has no tokens.
#[derive(Clone, Debug)]
pub(super) struct Caller(Option<Client>);

impl Caller {
    /// The caller of the request with these extensions.
    pub(super) fn of(extensions: &Extensions) -> Self {
        Self(extensions.get::<Client>().cloned())
    }

    /// Its name; `None` without tokens.
    pub(super) fn name(&self) -> Option<&str> {
        self.0.as_ref().map(|client| client.name.as_str())
    }

    /// Owner of the jobs that it creates; empty without tokens.
    pub(super) fn owner(&self) -> String {
        self.name().unwrap_or_default().to_owned()
    }

    /// Owner of the jobs that it may see and change; `None`: all jobs.
    pub(super) fn scope(&self) -> Option<&str> {
        self.0.as_ref().filter(|client| !client.admin).map(|client| client.name.as_str())
    }

    /// The job `id`, if the caller may see and change it.
    ///
    /// # Errors
    /// [`Kind::NotFound`](crate::error::Kind), for a job of another owner too.
    pub(super) fn job(&self, jobs: &Jobs, id: &str) -> Result<Arc<Job>> {
        let job = jobs.get(id)?;
        match self.scope().is_none_or(|owner| job.request.owner == owner) {
            true => Ok(job),
            false => Err(Error::not_found(Resource::Job, id)),
        }
    }

    /// Checks the caller's limits for a new job.
    ///
    /// # Errors
    /// [`Kind::Exhausted`](crate::error::Kind).
    pub(super) fn check_limits(&self, spec: &Spec, jobs: &Jobs) -> Result<()> {
        let Self(Some(client)) = self else { return Ok(()) };
        let pixels = spec.width as u64 * spec.height as u64;
        if let Some(limit) = client.pixels.filter(|&limit| pixels > limit) {
            return Err(Error::exhausted("pixels", pixels, limit));
        }
        let waiting = jobs.waiting(Some(&client.name));
        match client.queue.filter(|&limit| waiting >= limit) {
            Some(limit) => {
                let error = Error::exhausted("queued_jobs", waiting as u64 + 1, limit as u64);
                // A client that may queue no job has nothing to wait for.
                Err(if limit == 0 { error } else { error.with_retry_after(RETRY_AFTER) })
            }
            None => Ok(()),
        }
    }
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self::of(&parts.extensions))
    }
}

/// The clients of a token file.
#[derive(Clone, Debug)]
pub struct Tokens(Vec<Client>);

impl Tokens {
    /// Reads a token file.
    ///
    /// # Errors
    /// [`crate::error::Kind::InvalidArgument`]; its cause names the malformed line.
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
                let expected = "NAME HASH [JOBS] [PIXELS] [admin], HASH of 64 hexadecimal digits";
                Error::invalid(format!("line {number}"), "malformed", expected)
            })
        });
        let clients = clients.collect::<Result<Vec<_>>>()?;
        if clients.is_empty() {
            return Err(Error::missing("client", "at least one line"));
        }
        Ok(Self(clients))
    }

    /// The client with this token, in constant time.
    fn client(&self, token: &str) -> Option<&Client> {
        let hash: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        self.0.iter().fold(None, |found, client| {
            if bool::from(client.sha256.ct_eq(&hash)) { Some(client) } else { found }
        })
    }
}

/// Last word of an admin's line.
const ADMIN: &str = "admin";

fn client(line: &str) -> Option<Client> {
    let mut fields = line.split_whitespace().peekable();
    let name = fields.next()?.to_owned();
    let sha256 = from_hex(fields.next()?)?;
    let is_limit = |field: &&str| *field != ADMIN;
    let queue = fields.next_if(is_limit).map(str::parse).transpose().ok()?;
    let pixels = fields.next_if(is_limit).map(str::parse).transpose().ok()?;
    let admin = fields.next_if_eq(&ADMIN).is_some();
    fields.next().is_none().then_some(Client { name, queue, pixels, admin, sha256 })
}

/// Middleware that rejects requests without a known token and adds the [`Client`] to others.
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

/// Host names of this server, in addition to addresses and `localhost`.
#[derive(Debug)]
pub(super) struct Hosts(Vec<String>);

impl Hosts {
    /// The given names, compared case-insensitively.
    pub(super) fn new(names: &[String]) -> Self {
        Self(names.iter().map(|name| name.to_ascii_lowercase()).collect())
    }

    /// True if `host` names this server. All addresses do: they can't be rebound.
    fn know(&self, host: &str) -> bool {
        let host = host.to_ascii_lowercase();
        let address = host.trim_start_matches('[').trim_end_matches(']');
        address.parse::<std::net::IpAddr>().is_ok()
            || host == "localhost"
            || host.ends_with(".localhost")
            || self.0.contains(&host)
    }
}

/// Middleware that rejects requests for another host. Requests without a host pass: browsers always send one.
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

/// True for requests of gRPC and gRPC-Web.
pub(super) fn is_grpc(request: &Request) -> bool {
    let kind = request.headers().get(header::CONTENT_TYPE);
    kind.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// A gRPC response without messages.
pub(super) fn grpc(status: Status) -> Response {
    status.into_http::<tonic::body::Body>().map(axum::body::Body::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_recognised_by_their_hash_only() -> Result<()> {
        let hash = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"; // of foo
        let tokens = Tokens::parse(&format!("# all\n\nanna {hash} 20 100 # hers\n"))?;
        let anna = tokens.client("foo").map(|c| (c.name.as_str(), c.queue, c.pixels));
        assert_eq!(anna, Some(("anna", Some(20), Some(100))));
        for (line, admin) in [("", false), ("admin", true), ("1 admin", true), ("1 2 admin", true)]
        {
            let tokens = Tokens::parse(&format!("anna {hash} {line}"))?;
            assert_eq!(tokens.client("foo").map(|client| client.admin), Some(admin), "{line:?}");
        }
        for wrong in ["", "fo", "fooo", "Foo", hash] {
            assert_eq!(tokens.client(wrong), None, "{wrong}");
        }
        Ok(())
    }

    #[test]
    fn hosts_include_addresses_and_configured_names() {
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
    fn token_file_errors_name_the_line() {
        let hash = "0".repeat(64);
        let lines = [
            "",
            "anna",
            "anna 12",
            &format!("anna {hash}0"),
            &format!("a {hash} x"),
            &format!("a {hash} admin 1"),
            &format!("a {hash} Admin"),
            &format!("a {hash} 1 2 admin admin"),
        ];
        for line in lines {
            assert!(Tokens::parse(line).is_err(), "{line}");
        }
        let error = Tokens::parse(&format!("a {hash}\nb {hash} 1 2 3")).err();
        assert_eq!(error.as_ref().and_then(Error::field), Some("line 2"));
    }
}
