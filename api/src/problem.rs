//! Errors as RFC 9457 problem details: every one has a stable `code` and a `mend` that says what to do.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

/// An answer that says what is wrong and how to mend it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// HTTP status.
    pub status: StatusCode,
    /// A stable word; `type` is `urn:undertone:problem:CODE`.
    pub code: &'static str,
    /// What is wrong, the same for every occurrence of the code.
    pub title: &'static str,
    /// What is wrong this time.
    pub detail: String,
    /// What to do about it.
    pub mend: String,
}

#[derive(Serialize)]
struct Body<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    detail: &'a str,
    code: &'a str,
    mend: &'a str,
}

impl Problem {
    pub(crate) fn new(
        status: StatusCode,
        code: &'static str,
        title: &'static str,
        detail: impl Into<String>,
        mend: impl Into<String>,
    ) -> Problem {
        Problem { status, code, title, detail: detail.into(), mend: mend.into() }
    }

    /// A parameter that cannot be used.
    pub(crate) fn parameter(name: &str, detail: impl std::fmt::Display, mend: impl Into<String>) -> Problem {
        let detail = format!("`{name}`: {detail}");
        Problem::new(StatusCode::BAD_REQUEST, "bad_parameter", "A parameter cannot be used", detail, mend)
    }

    /// The path's percent-encoding does not stand for UTF-8.
    pub(crate) fn illegible_path(path: &str) -> Problem {
        Problem::new(
            StatusCode::BAD_REQUEST,
            "illegible_path",
            "The path cannot be read",
            format!("{path} is not percent-encoded UTF-8"),
            "encode ids as UTF-8 first, then percent-encode them (encodeURIComponent)",
        )
    }

    /// No such path.
    pub(crate) fn unknown_path(path: &str) -> Problem {
        Problem::new(
            StatusCode::NOT_FOUND,
            "unknown_path",
            "There is nothing at this path",
            format!("nothing answers at {path}"),
            "GET /v1/openapi.json lists every path",
        )
    }

    /// The path exists, the method does not.
    pub(crate) fn wrong_method(method: &str, path: &str) -> Problem {
        Problem::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "wrong_method",
            "This path does not take this method",
            format!("{path} does not take {method}"),
            "see the Allow header, or GET /v1/openapi.json",
        )
    }

    /// Nothing is known of the conversation.
    pub(crate) fn unknown_conversation(conversation: &str) -> Problem {
        Problem::new(
            StatusCode::NOT_FOUND,
            "unknown_conversation",
            "Nothing is known of this conversation",
            format!("history has no turn of {conversation:?}"),
            "GET /v1/conversations lists the conversations; ids are percent-encoded in paths",
        )
    }

    /// History does not answer; the cause is in the log, not in the answer.
    pub(crate) fn history_unavailable() -> Problem {
        Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "history_unavailable",
            "History does not answer",
            "history could not be read",
            "try again; if it stays, `undertone doctor` and the log say why",
        )
    }

    /// There is nothing of what is to be forgotten.
    pub(crate) fn nothing_to_forget(what: &str) -> Problem {
        Problem::new(
            StatusCode::NOT_FOUND,
            "nothing_to_forget",
            "There is nothing of it",
            format!("history has nothing of {what:?}"),
            "look at the id; a person is SOURCE:SENDER, and ids are percent-encoded in paths",
        )
    }

    /// It was not forgotten wholly.
    pub(crate) fn not_forgotten() -> Problem {
        Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "not_forgotten",
            "It was not forgotten wholly",
            "the log or the history does not answer; what was erased until then is erased",
            "ask again until there is a receipt; the log of the program says why",
        )
    }

    /// Nothing can be recalled here.
    pub(crate) fn recall_unavailable(why: &str) -> Problem {
        Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "recall_unavailable",
            "Nothing can be recalled here",
            why,
            "ask a process that plays the roles processors and api together, or `undertone memory recall`",
        )
    }

    /// The schema of a turn is not known, and the registry that would know does not answer.
    pub(crate) fn registry_unavailable() -> Problem {
        Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "registry_unavailable",
            "The schema registry does not answer",
            "the page has a turn of a newer release, whose schema could not be asked for",
            "try again; if it stays, see to the registry of [registry] url",
        )
    }

    /// No stream can be opened any more, because nothing would come.
    pub(crate) fn going_down() -> Problem {
        Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "going_down",
            "This process is going down",
            "the reader of the enriched turns has ended",
            "connect again in a moment; another process may answer",
        )
    }

    /// As many streams as the configuration allows are open.
    pub(crate) fn too_many_streams(limit: usize) -> Problem {
        Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "too_many_streams",
            "No further stream can be opened",
            format!("{limit} streams are open"),
            "try again later, or follow several conversations on one WebSocket",
        )
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = Body {
            r#type: format!("urn:undertone:problem:{}", self.code),
            title: self.title,
            status: self.status.as_u16(),
            detail: &self.detail,
            code: self.code,
            mend: &self.mend,
        };
        let body = serde_json::to_string(&body).expect("strings and numbers serialise");
        let mut response = (self.status, body).into_response();
        let kind = HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
