//! What intake answers over HTTP when it does not take an input: RFC 9457 problem details. The detail says the mend;
//! it never repeats what was sent, and never says more of a secret than that it is wrong.

use std::time::Duration;

use axum::Json;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};

/// A problem, ready to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) status: StatusCode,
    pub(crate) title: &'static str,
    pub(crate) detail: String,
    /// How long to wait before the same request may succeed.
    pub(crate) retry_after: Option<Duration>,
}

impl Problem {
    pub(crate) fn new(status: StatusCode, title: &'static str, detail: impl Into<String>) -> Problem {
        Problem { status, title, detail: detail.into(), retry_after: None }
    }

    /// Not taken for a reason of ours; the same request may succeed later.
    pub(crate) fn unavailable(detail: impl Into<String>, retry_after: Duration) -> Problem {
        let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not taken now", detail);
        Problem { retry_after: Some(retry_after), ..problem }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        // "about:blank": the status says all that a program needs (RFC 9457, section 4.2.1).
        let body = serde_json::json!({
            "type": "about:blank",
            "title": self.title,
            "status": self.status.as_u16(),
            "detail": self.detail,
        });
        let mut response = (self.status, Json(body)).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        // Whole seconds, and never 0, which would invite an immediate retry.
        headers.extend(self.retry_after.map(|wait| (RETRY_AFTER, HeaderValue::from(wait.as_secs().max(1)))));
        response
    }
}
