//! The page at `/`, and the descriptions of the interfaces: static texts, compiled in.

use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get};

/// Nothing but our own files runs or is shown, and no other page frames ours.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What OpenAPI says of the paths.
pub(crate) const OPENAPI: &str = include_str!("openapi.json");
/// What AsyncAPI says of the streams.
pub(crate) const ASYNCAPI: &str = include_str!("asyncapi.json");

/// The paths, each with what answers.
pub(crate) fn routes<S: Clone + Send + Sync + 'static>() -> Vec<(&'static str, MethodRouter<S>)> {
    vec![
        ("/", get(async || file("text/html; charset=utf-8", include_str!("../../web/index.html")))),
        ("/app.js", get(async || file("text/javascript; charset=utf-8", include_str!("../../web/app.js")))),
        ("/style.css", get(async || file("text/css; charset=utf-8", include_str!("../../web/style.css")))),
        ("/icon.svg", get(async || file("image/svg+xml", include_str!("../../web/icon.svg")))),
        ("/v1/openapi.json", get(async || file("application/json", OPENAPI))),
        ("/v1/asyncapi.json", get(async || file("application/json", ASYNCAPI))),
    ]
}

fn file(kind: &'static str, text: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(kind)),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        (HeaderName::from_static("cross-origin-opener-policy"), HeaderValue::from_static("same-origin")),
    ];
    (headers, text).into_response()
}
