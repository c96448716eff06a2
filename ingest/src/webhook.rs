//! The Telegram webhook over HTTP: who may call, how much is read, and what is answered.
//!
//! 2xx means that what the update came to is durable (or that nothing of it is kept), 503 that Telegram shall keep the
//! update and send it again. An update at fault is answered with 200 once its reject is durable: Telegram would send
//! it for ever otherwise, and hold back all that follow.

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use axum::body::{Body, to_bytes};
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::header::CONTENT_LENGTH;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use schemas::{Reject, TraceParent, topic};
use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq;

use crate::Shared;
use crate::intake::{Beside, Input, Refusal};
use crate::meters::Outcome;
use crate::problem::Problem;
use crate::telegram::{self, TELEGRAM};

/// Header in which Telegram repeats the secret that `setWebhook` was given.
const SECRET_HEADER: &str = "x-telegram-bot-api-secret-token";
/// Longest secret that `setWebhook` takes, in bytes.
const SECRET_BYTES_MAX: usize = 256;
/// Header in which a proxy or a load tool may name a correlation id of its own.
const CORRELATION_HEADER: &str = "x-correlation-id";
/// Longest correlation id that is taken over, in bytes.
const CORRELATION_BYTES_MAX: usize = 128;

/// `POST /telegram/{bot}/webhook`.
pub(crate) async fn webhook(
    State(shared): State<Arc<Shared>>,
    bot: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    // A name that is no UTF-8 is the name of no bot, as is the empty one.
    let bot = bot.map(|Path(bot)| bot).unwrap_or_default();
    match take(&shared, &bot, &headers, body).await {
        Ok(()) => StatusCode::OK.into_response(),
        Err(problem) => problem.into_response(),
    }
}

async fn take(shared: &Shared, name: &str, headers: &HeaderMap, body: Body) -> Result<(), Problem> {
    let begun = SystemTime::now();
    let count = |kind, outcome| shared.intake.meters.input(TELEGRAM, kind, outcome);
    let refused = |refusal: Refusal| Problem::unavailable(refusal, shared.config.retry_after);

    let Some(bot) = shared.config.bots.get(name) else {
        count(UNREAD, Outcome::UnknownBot);
        // The name is a stranger's word and stays out of the log.
        if let Some(unsaid) = shared.intake.seldom.due("unknown bot", "", Instant::now()) {
            tracing::warn!(unsaid, "webhook call refused: no such bot; compare [telegram.bots] with setWebhook's URL");
        }
        return Err(Problem::unknown_bot());
    };
    if !secret_fits(&bot.webhook_secret, headers.get(SECRET_HEADER).map(|value| value.as_bytes())) {
        count(UNREAD, Outcome::Unauthorized);
        if let Some(unsaid) = shared.intake.seldom.due("wrong secret", name, Instant::now()) {
            tracing::warn!(
                bot = name,
                unsaid,
                "webhook call refused: secret absent or wrong; give setWebhook the bot's"
            );
        }
        let (title, detail) = ("Wrong secret", "X-Telegram-Bot-Api-Secret-Token is absent or wrong");
        let mend = "give setWebhook the bot's webhook_secret";
        return Err(Problem::new(StatusCode::UNAUTHORIZED, "wrong_secret", title, detail, mend));
    }
    if let Some(refusal) = shared.intake.closed().await {
        count(UNREAD, Outcome::Unavailable);
        return Err(refused(refusal));
    }
    // Before it is read: a body that finds no room costs none.
    let declared = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    let bytes_max = shared.config.body_bytes_max;
    let Some(held) = shared.intake.room.try_take(declared.unwrap_or(bytes_max).min(bytes_max)) else {
        count(UNREAD, Outcome::Unavailable);
        return Err(refused(shared.intake.full()));
    };
    let body = read(shared, body).await.inspect_err(|_| count(UNREAD, Outcome::TooLarge))?;

    let parsed = telegram::parse(name, &body, now_ms(), shared.config.text_bytes_max);
    let (input, outcome) = match parsed.outcome {
        telegram::Outcome::Turn(turn) => (Input::Turn(turn), Outcome::Turn),
        telegram::Outcome::Feedback(feedback) => (Input::Feedback(feedback), Outcome::Feedback),
        telegram::Outcome::Reject(reject) => (Input::Reject(reject), Outcome::Reject),
        telegram::Outcome::Counted => {
            count(parsed.kind, Outcome::Counted);
            return Ok(());
        }
    };
    let appended = async {
        let key = match &input {
            Input::Turn(turn) => shared.intake.key(turn).await?,
            Input::Feedback(_) | Input::Reject(_) => None,
        };
        let beside = Beside { begun: Some(begun), ..beside(headers) };
        shared.intake.append(TELEGRAM, &input, key.as_ref(), beside, held).await
    };
    match appended.await {
        Ok(_) => {
            count(parsed.kind, outcome);
            if let Input::Reject(reject) = &input {
                rejected(shared, name, reject);
            }
            Ok(())
        }
        Err(refusal) => {
            count(parsed.kind, Outcome::Unavailable);
            Err(refused(refusal))
        }
    }
}

fn rejected(shared: &Shared, bot: &str, reject: &Reject) {
    shared.intake.meters.rejected(&reject.reason);
    if let Some(unsaid) = shared.intake.seldom.due(&reject.reason, bot, Instant::now()) {
        let (reason, id) = (&reject.reason, &reject.id);
        tracing::info!(bot, reason, %id, unsaid, topic = topic::REJECTS, "update rejected: its bytes are kept");
    }
}

/// Stands for the kind of an update that was not read.
const UNREAD: &str = "unread";

async fn read(shared: &Shared, body: Body) -> Result<axum::body::Bytes, Problem> {
    let bytes_max = shared.config.body_bytes_max;
    match tokio::time::timeout(shared.config.body_read_within, to_bytes(body, bytes_max)).await {
        Ok(Ok(body)) => Ok(body),
        // Beside the bound, only a caller that went away ends here, and it reads no answer.
        Ok(Err(_)) => {
            let detail = format!("body is over the bound of {bytes_max} bytes");
            let mend = "send one Update a call";
            Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", "The body is too large", detail, mend))
        }
        Err(_elapsed) => {
            let (title, detail) = ("The body is too slow", "body did not arrive in time");
            Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "body_too_slow", title, detail, "send it again"))
        }
    }
}

/// Compares in a time that depends neither on where the two differ nor on the length of the secret. An empty secret
/// fits nothing, so that a bot configured without one is closed and not open.
fn secret_fits(secret: &SecretString, presented: Option<&[u8]>) -> bool {
    let secret = secret.expose_secret().as_bytes();
    let presented = presented.unwrap_or_default();
    let padded = |bytes: &[u8]| {
        let mut padded = [0u8; SECRET_BYTES_MAX];
        let length = bytes.len().min(SECRET_BYTES_MAX);
        padded[..length].copy_from_slice(&bytes[..length]);
        padded
    };
    let same_bytes = padded(secret).ct_eq(&padded(presented));
    let same_length = secret.len().ct_eq(&presented.len());
    let usable = !secret.is_empty() && secret.len() <= SECRET_BYTES_MAX;
    bool::from(same_bytes & same_length) && usable
}

fn beside(headers: &HeaderMap) -> Beside {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    // `to_str` lets visible ASCII through only, so the id is fit for a header of the record.
    let fits = |id: &&str| !id.is_empty() && id.len() <= CORRELATION_BYTES_MAX;
    Beside {
        correlation_id: text(CORRELATION_HEADER).filter(fits).map(str::to_owned),
        trace: text("traceparent").and_then(TraceParent::parse),
        begun: None,
    }
}

/// Milliseconds since the Unix epoch, by this machine's clock.
pub(crate) fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_secret_fits() {
        let long = "x".repeat(SECRET_BYTES_MAX);
        for (secret, presented, expected) in [
            ("s3cret", Some("s3cret"), true),
            (long.as_str(), Some(long.as_str()), true),
            ("s3cret", Some("s3creT"), false),
            ("s3cret", Some("s3cre"), false),
            ("s3cret", Some("s3cret "), false),
            ("s3cret", Some("s3cret\0"), false),
            ("s3cret", Some(""), false),
            ("s3cret", None, false),
            ("", Some(""), false),
            ("", None, false),
            (long.as_str(), Some(&*format!("{long}x")), false),
            (&*format!("{long}y"), Some(&*format!("{long}x")), false),
        ] {
            let fits = secret_fits(&SecretString::from(secret), presented.map(str::as_bytes));
            assert_eq!(fits, expected, "{secret:?} against {presented:?}");
        }
    }
}
