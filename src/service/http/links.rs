//! Addresses in responses: where clients reach this server, which may be behind a reverse proxy.
//!
//! A proxy that offers the server under a path removes it from requests and names it in `X-Forwarded-Prefix`, as it names the
//! scheme in `X-Forwarded-Proto`. Addresses in responses begin with it. Requests are routed without it, so a wrong value
//! misleads only its sender. Values become part of responses; malformed ones are ignored.

use axum::http::{HeaderMap, Uri, header};

/// Longest path of a proxy, in bytes.
const MAX_PREFIX: usize = 256;

/// Header with the path under which a proxy offers the server.
const PREFIX: &str = "x-forwarded-prefix";

/// Scheme, host and path under which the client reached the server, without a slash at the end.
pub(super) fn base(uri: &Uri, headers: &HeaderMap) -> String {
    format!("{}{}", origin(uri, headers), prefix(headers))
}

/// The path of `X-Forwarded-Prefix`, such as `/pictures`; empty if there is none.
pub(super) fn prefix(headers: &HeaderMap) -> &str {
    let mut values = headers.get_all(PREFIX).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return "" };
    let path = value.to_str().unwrap_or_default();
    let path = path.strip_suffix('/').unwrap_or(path);
    let is_letter = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    // An empty segment at the beginning would make it another host.
    let is_segment =
        |segment: &str| !matches!(segment, "" | "." | "..") && segment.bytes().all(is_letter);
    let valid = path.len() <= MAX_PREFIX
        && path.strip_prefix('/').is_some_and(|rest| rest.split('/').all(is_segment));
    if valid { path } else { "" }
}

/// Scheme and host of the request's URL.
fn origin(uri: &Uri, headers: &HeaderMap) -> String {
    let named = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let host = uri.authority().map(|a| a.as_str()).or_else(|| named(header::HOST.as_str()));
    let plain = |host: &&str| {
        let letters = |b: u8| b.is_ascii_alphanumeric() || b".-:[]".contains(&b);
        (1..=255).contains(&host.len()) && host.bytes().all(letters)
    };
    let secure = uri.scheme_str() == Some("https") || named("x-forwarded-proto") == Some("https");
    let scheme = if secure { "https" } else { "http" };
    format!("{scheme}://{}", host.filter(plain).unwrap_or("localhost"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_ignore_malformed_hosts() {
        let mut headers = HeaderMap::new();
        let uri = Uri::from_static("/jobs/x/iiif/info.json");
        assert_eq!(base(&uri, &headers), "http://localhost");
        headers.insert(header::HOST, "127.0.0.1:8443".parse().unwrap());
        assert_eq!(base(&uri, &headers), "http://127.0.0.1:8443");
        headers.insert("x-forwarded-proto", "https".parse().unwrap());
        assert_eq!(base(&uri, &headers), "https://127.0.0.1:8443");
        headers.insert(header::HOST, "a\"b".parse().unwrap());
        assert_eq!(base(&uri, &headers), "https://localhost");
        headers.insert(PREFIX, "/pictures/".parse().unwrap());
        assert_eq!(base(&uri, &headers), "https://localhost/pictures");
    }

    #[test]
    fn links_ignore_malformed_prefixes() {
        let found = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(PREFIX, value.parse().unwrap());
            }
            prefix(&headers).to_owned()
        };
        let longest = format!("/{}", "a".repeat(MAX_PREFIX - 1));
        for (value, expected) in [
            ("/tessera", "/tessera"),
            ("/tessera/", "/tessera"),
            ("/a/b-c._~9", "/a/b-c._~9"),
            (longest.as_str(), longest.as_str()),
            ("/", ""),
            ("", ""),
            ("tessera", ""),
            ("//evil.example", ""),
            ("/a//b", ""),
            ("/a/../b", ""),
            ("/./a", ""),
            ("/a b", ""),
            ("/a\"b", ""),
            ("/a?b", ""),
            ("/a#b", ""),
            ("/a%2Fb", ""),
            ("/a,/b", ""),
            ("/a\\b", ""),
            ("https://evil.example", ""),
            (format!("{longest}a").as_str(), ""),
        ] {
            assert_eq!(found(&[value]), expected, "{value}");
        }
        assert_eq!(found(&[]), "");
        assert_eq!(found(&["/a", "/b"]), "");
    }
}
