//! Whether a browser's page may open a socket here.
//!
//! Browsers let any page open a WebSocket to any host, with the visitor's cookies and from within the visitor's
//! network, and only tell the server where the page came from. So a page of another origin is refused unless the
//! configuration names it. A client that sends no `Origin` is no browser and is not bound by this.

/// Whether `origin`, as in the request's header, may open a socket at `host`, as in the `Host` header. `allowed` holds
/// whole origins such as `https://app.example`.
pub(super) fn permitted(origin: Option<&str>, host: Option<&str>, allowed: &[String]) -> bool {
    let Some(origin) = origin else { return true };
    if allowed.iter().any(|a| a.trim_end_matches('/').eq_ignore_ascii_case(origin)) {
        return true;
    }
    let (Some((scheme, authority)), Some(host)) = (origin.split_once("://"), host) else { return false };
    let default_port = match scheme {
        "http" => ":80",
        "https" => ":443",
        _ => return false,
    };
    let without = |authority: &str| authority.strip_suffix(default_port).unwrap_or(authority).to_ascii_lowercase();
    !authority.is_empty() && without(authority) == without(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_other_origins_are_refused_unless_named() {
        let allowed = ["https://app.example".to_owned()];
        for (origin, host, expected) in [
            (None, Some("here:8080"), true),
            (Some("http://here:8080"), Some("here:8080"), true),
            (Some("http://HERE"), Some("here:80"), true),
            (Some("https://here"), Some("here"), true),
            (Some("https://app.example"), Some("here"), true),
            (Some("https://app.example.evil"), Some("here"), false),
            (Some("http://here:8081"), Some("here:8080"), false),
            (Some("http://evil"), Some("here"), false),
            (Some("null"), Some("here"), false),
            (Some("file://"), Some(""), false),
            (Some("http://"), Some(""), false),
            (Some("http://here"), None, false),
        ] {
            assert_eq!(permitted(origin, host, &allowed), expected, "{origin:?} at {host:?}");
        }
    }
}
