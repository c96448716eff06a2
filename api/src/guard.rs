//! Who may ask: browsers on this machine, and only from our own pages.
//!
//! Until there are accounts the listener is on loopback, and a web page elsewhere must not reach it through the
//! visitor's browser. Two checks see to that: the `Host` must be a loopback name or one that the configuration lists
//! (against DNS rebinding), and the `Origin`, where there is one, must be that same host (against WebSockets and forms
//! of other sites, which no same-origin policy stops). Programs send no `Origin` and pass.

use axum::http::{HeaderMap, StatusCode, Uri, header};

use crate::problem::Problem;

/// Whether a request may pass.
pub(crate) fn check(headers: &HeaderMap, uri: &Uri, hosts_allowed: &[String]) -> Result<(), Problem> {
    // HTTP/2 and absolute-form requests carry the host in the URI.
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let host = host.or_else(|| uri.authority().map(|authority| authority.as_str())).unwrap_or_default();
    let name = host_name(host);
    if !is_loopback(name) && !hosts_allowed.iter().any(|allowed| allowed.eq_ignore_ascii_case(name)) {
        return Err(Problem::new(
            StatusCode::FORBIDDEN,
            "foreign_host",
            "This host name is not ours",
            format!("the Host header names {name:?}"),
            "call 127.0.0.1 or localhost, or list the name in the configuration's allowed hosts",
        ));
    }
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    let origin = origin.to_str().unwrap_or_default();
    let same = origin
        .split_once("://")
        .is_some_and(|(scheme, rest)| matches!(scheme, "http" | "https") && rest.eq_ignore_ascii_case(host));
    if same {
        return Ok(());
    }
    Err(Problem::new(
        StatusCode::FORBIDDEN,
        "foreign_origin",
        "Pages of other sites may not call this",
        format!("the Origin header names {origin:?}, the Host header {host:?}"),
        "open the page from the same address, or call from a program, which sends no Origin",
    ))
}

/// The host without its port; brackets of IPv6 are kept off.
fn host_name(host: &str) -> &str {
    match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    }
}

fn is_loopback(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(host: &str, origin: Option<&str>) -> Result<(), &'static str> {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().unwrap());
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, origin.parse().unwrap());
        }
        check(&headers, &Uri::from_static("/"), &["undertone".to_owned()]).map_err(|problem| problem.code)
    }

    #[test]
    fn only_our_own_names_and_pages_pass() {
        for (host, origin, expected) in [
            ("127.0.0.1:8080", None, Ok(())),
            ("localhost", None, Ok(())),
            ("[::1]:8080", None, Ok(())),
            ("undertone:8080", None, Ok(())),
            ("localhost:8080", Some("http://localhost:8080"), Ok(())),
            ("127.0.0.1:8080", Some("http://127.0.0.1:8080"), Ok(())),
            ("evil.example", None, Err("foreign_host")),
            ("localhost.evil.example:8080", None, Err("foreign_host")),
            ("10.0.0.1:8080", None, Err("foreign_host")),
            ("", None, Err("foreign_host")),
            ("localhost:8080", Some("http://evil.example"), Err("foreign_origin")),
            ("localhost:8080", Some("http://localhost:9090"), Err("foreign_origin")),
            ("localhost:8080", Some("null"), Err("foreign_origin")),
            ("localhost:8080", Some("file://localhost:8080"), Err("foreign_origin")),
        ] {
            assert_eq!(verdict(host, origin), expected, "{host} {origin:?}");
        }
    }
}
