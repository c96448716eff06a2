//! What intake answers over HTTP when it does not take an input: RFC 9457 problem details, with the members and the
//! `urn:undertone:problem:` types that the read side has too. They never repeat what was sent, and never say more of a
//! secret than that it is wrong.

use std::time::Duration;

use axum::Json;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};

use crate::intake::Refusal;

/// A problem, ready to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) status: StatusCode,
    /// A stable word; `type` is `urn:undertone:problem:CODE`.
    pub(crate) code: &'static str,
    /// What is wrong, the same for every occurrence of the code.
    pub(crate) title: &'static str,
    /// What is wrong this time.
    pub(crate) detail: String,
    /// What to do about it.
    pub(crate) mend: &'static str,
    /// How long to wait before the same request may succeed.
    pub(crate) retry_after: Option<Duration>,
}

impl Problem {
    pub(crate) fn new(
        status: StatusCode,
        code: &'static str,
        title: &'static str,
        detail: impl Into<String>,
        mend: &'static str,
    ) -> Problem {
        Problem { status, code, title, detail: detail.into(), mend, retry_after: None }
    }

    /// No bot is configured under the name in the path.
    pub(crate) fn unknown_bot() -> Problem {
        Problem::new(
            StatusCode::NOT_FOUND,
            "unknown_bot",
            "There is no bot of this name",
            "no bot is configured under the name in the path",
            "add it under [telegram.bots], or mend the URL given to setWebhook",
        )
    }

    /// The path exists, the method does not.
    pub(crate) fn wrong_method(method: &str, path: &str) -> Problem {
        Problem::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "wrong_method",
            "This path does not take this method",
            format!("{path} does not take {method}"),
            "see the Allow header: webhooks are POST, sockets are opened with GET",
        )
    }

    /// Not taken for a reason of ours; the same request may succeed later.
    pub(crate) fn unavailable(refusal: Refusal, retry_after: Duration) -> Problem {
        let (code, detail, mend) = refusal.told();
        let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, code, "Nothing is taken now", detail, mend);
        Problem { retry_after: Some(retry_after), ..problem }
    }

    /// As many sockets are open as the configuration allows.
    pub(crate) fn too_many_sockets(retry_after: Duration) -> Problem {
        let problem = Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "too_many_sockets",
            "No further socket can be opened",
            "as many sockets are open as are taken",
            "close some, or come again later",
        );
        Problem { retry_after: Some(retry_after), ..problem }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = serde_json::json!({
            "type": format!("urn:undertone:problem:{}", self.code),
            "title": self.title,
            "status": self.status.as_u16(),
            "detail": self.detail,
            "code": self.code,
            "mend": self.mend,
        });
        let mut response = (self.status, Json(body)).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        // Whole seconds, and never 0, which would invite an immediate retry.
        headers.extend(self.retry_after.map(|wait| (RETRY_AFTER, HeaderValue::from(wait.as_secs().max(1)))));
        response
    }
}
