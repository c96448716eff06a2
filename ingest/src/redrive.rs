//! What an input that intake rejected comes to when it is read again by the parser of today. Pure.
//!
//! Promises: a turn that comes of it keeps the id and the times that it would have had; its record carries the number of
//! the try, and stays in the correlation and the trace of the reject. What is rejected again keeps its bytes, and counts
//! one attempt more.

use schemas::reject::ATTEMPT_HEADER;
use schemas::{Codec, EncodeError, Header, Reason, Reject, Spans, TraceParent};
use store::log::Record;
use uuid::Uuid;

use crate::intake::{Beside, Input, envelope, record};
use crate::telegram::{self, TELEGRAM};
use crate::websocket::frame::{self, Bounds, WEBSOCKET};

/// Keeps in a reject when its input was first received, over any number of tries.
const RECEIVED_HEADER: &str = "undertone-received-at";

/// What came of an input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redriven {
    /// `turn`, `feedback`, `nothing` (known by now, and nothing of it is kept) or `rejected` (still).
    pub outcome: &'static str,
    /// The records to append.
    pub records: Vec<Record>,
    /// Why it is rejected still.
    pub detail: Option<String>,
}

/// Why an input cannot be read again.
#[derive(Debug, thiserror::Error)]
pub enum RedriveError {
    /// It came from a source that this release does not know.
    #[error("its source {0:?} has no parser here: upgrade")]
    UnknownSource(Option<String>),
    /// What came of it does not fit its schema: a fault of ours.
    #[error(transparent)]
    Encode(#[from] EncodeError),
}

/// Reads the input of a reject of intake again. `headers` are those of the reject's record, `now` is in milliseconds
/// since the Unix epoch.
///
/// # Errors
/// The input cannot be read again at all.
pub fn redrive(
    codec: &Codec,
    reject: &Reject,
    headers: &[(String, Vec<u8>)],
    bounds: Bounds,
    now: i64,
) -> Result<Redriven, RedriveError> {
    let received_at = received_at(reject);
    let text = |name: &str| {
        let value = headers.iter().find(|(header, _)| header == name).map(|(_, value)| value);
        value.and_then(|value| String::from_utf8(value.clone()).ok())
    };
    let beside = || Beside {
        correlation_id: text("correlationid"),
        trace: text("traceparent").as_deref().and_then(TraceParent::parse),
        begun: None,
    };
    let (source, inputs) = match reject.source.as_deref() {
        Some(TELEGRAM) => (TELEGRAM, update(reject, received_at, bounds)),
        Some(WEBSOCKET) => (WEBSOCKET, frames(reject, received_at, bounds)),
        other => return Err(RedriveError::UnknownSource(other.map(str::to_owned))),
    };
    let (mut outcome, mut detail) = ("nothing", None);
    let mut records = Vec::with_capacity(inputs.len());
    for mut input in inputs {
        outcome = match &mut input {
            Input::Turn(_) => "turn",
            Input::Feedback(_) => "feedback",
            Input::Reject(again) => {
                again.at = now;
                again.attempt = reject.attempt.saturating_add(1);
                again.headers = vec![received_header(received_at)];
                detail = Some(again.detail.clone());
                "rejected"
            }
        };
        // The same span however often the same try is run.
        let random = Uuid::new_v5(&reject.id, &reject.attempt.to_be_bytes());
        let envelope = envelope(source, &input, beside(), random, &Spans::off());
        let mut record = record(codec, &input, &envelope, None)?;
        let attempt = reject.attempt.saturating_add(1).to_string();
        record.headers.push((ATTEMPT_HEADER.to_owned(), attempt.into_bytes()));
        // It joins the log now; how far readers are behind, and what retention takes, is told by this time.
        record.timestamp = now;
        records.push(record);
    }
    Ok(Redriven { outcome, records, detail })
}

fn update(reject: &Reject, received_at: i64, bounds: Bounds) -> Vec<Input> {
    let bot = reject.bot.as_deref().unwrap_or_default();
    match telegram::parse(bot, &reject.raw, received_at, bounds.text_bytes_max).outcome {
        telegram::Outcome::Turn(turn) => vec![Input::Turn(turn)],
        telegram::Outcome::Feedback(feedback) => vec![Input::Feedback(feedback)],
        telegram::Outcome::Reject(again) => vec![Input::Reject(again)],
        telegram::Outcome::Counted => Vec::new(),
    }
}

/// All turns of a frame; if one of them is at fault still, the frame as a whole is.
fn frames(reject: &Reject, received_at: i64, bounds: Bounds) -> Vec<Input> {
    let again = |reason: Reason, detail: String| {
        vec![Input::Reject(Box::new(Reject { reason: reason.name().to_owned(), detail, ..reject.clone() }))]
    };
    let Ok(text) = std::str::from_utf8(&reject.raw) else {
        return again(Reason::Malformed, "frame is not UTF-8: send JSON in text frames".to_owned());
    };
    let said: Result<Vec<_>, _> = frame::parse(text, received_at, bounds).into_iter().collect();
    match said {
        Ok(said) => said.into_iter().map(|said| Input::Turn(Box::new(said.turn))).collect(),
        Err(error) if error.code == frame::Code::TooLarge => again(Reason::Oversized, error.message),
        Err(error) => again(Reason::Invalid, error.message),
    }
}

fn received_at(reject: &Reject) -> i64 {
    let kept = reject.headers.iter().find(|header| header.name == RECEIVED_HEADER);
    let kept = kept.and_then(|header| std::str::from_utf8(&header.value).ok()).and_then(|text| text.parse().ok());
    kept.unwrap_or(reject.at)
}

fn received_header(at: i64) -> Header {
    Header { name: RECEIVED_HEADER.to_owned(), value: at.to_string().into_bytes() }
}

#[cfg(test)]
mod tests {
    use schemas::{Turn, topic};

    use super::*;

    const BOUNDS: Bounds = Bounds { text_bytes_max: 100, batch_frames_max: 10 };
    const NOW: i64 = 1_800_000_000_000;

    fn reject(source: &str, raw: &[u8]) -> Reject {
        Reject {
            id: Uuid::from_u128(7),
            at: 1_700_000_000_500,
            stage: "ingest".to_owned(),
            reason: "unknown_kind".to_owned(),
            detail: String::new(),
            attempt: 1,
            source: Some(source.to_owned()),
            bot: Some("helper".to_owned()),
            topic: None,
            partition: None,
            offset: None,
            key: None,
            headers: Vec::new(),
            raw: raw.to_vec(),
        }
    }

    fn header(record: &Record, name: &str) -> Option<String> {
        let found = record.headers.iter().find(|(header, _)| header == name);
        found.map(|(_, value)| String::from_utf8(value.clone()).unwrap())
    }

    #[test]
    fn an_update_that_is_understood_by_now_is_the_turn_that_it_would_have_been() {
        let codec = Codec::embedded();
        // Telegram does not tell when a button was pressed: the time is that of its arrival.
        let raw = include_bytes!("../tests/data/telegram/callback_query.json");
        let headers = [("correlationid".to_owned(), b"walk-7".to_vec())];
        let redriven = redrive(&codec, &reject("telegram", raw), &headers, BOUNDS, NOW).unwrap();
        assert_eq!((redriven.outcome, redriven.records.len()), ("turn", 1));
        let record = &redriven.records[0];
        let turn: Turn = codec.decode(record.value.as_deref().unwrap()).unwrap();
        let telegram::Outcome::Turn(first) = telegram::parse("helper", raw, 1_700_000_000_500, 100).outcome else {
            panic!("the case is a turn")
        };
        assert_eq!(turn, *first, "with its id and times");
        assert_eq!((record.topic.as_str(), record.timestamp), (topic::TURNS_RECEIVED, NOW));
        assert_eq!(header(record, ATTEMPT_HEADER).as_deref(), Some("2"));
        assert_eq!(header(record, "correlationid").as_deref(), Some("walk-7"));
    }

    #[test]
    fn what_is_rejected_again_counts_one_attempt_more_and_remembers_when_it_came() {
        let codec = Codec::embedded();
        let mut next = reject("telegram", b"{\"update_id\": 3, \"levitation\": {}}");
        for attempt in 2..5 {
            let redriven = redrive(&codec, &next, &[], BOUNDS, NOW + i64::from(attempt)).unwrap();
            assert_eq!((redriven.outcome, redriven.records[0].topic.as_str()), ("rejected", topic::REJECTS));
            let again: Reject = codec.decode(redriven.records[0].value.as_deref().unwrap()).unwrap();
            assert_eq!((again.attempt, again.at, &again.raw), (attempt, NOW + i64::from(attempt), &next.raw));
            assert_eq!(received_at(&again), 1_700_000_000_500);
            next = again;
        }
    }

    #[test]
    fn a_frame_is_read_again_as_a_whole() {
        let codec = Codec::embedded();
        let frame = |text: &str| format!(r#"{{"id":"1","conversation":"r","sender":{{"id":"ann"}},"text":"{text}"}}"#);
        let good = format!("[{},{}]", frame("one"), frame("two"));
        let redriven = redrive(&codec, &reject("websocket", good.as_bytes()), &[], BOUNDS, NOW).unwrap();
        assert_eq!((redriven.outcome, redriven.records.len()), ("turn", 2));
        let half = format!("[{},{}]", frame("one"), frame(" "));
        let redriven = redrive(&codec, &reject("websocket", half.as_bytes()), &[], BOUNDS, NOW).unwrap();
        assert_eq!((redriven.outcome, redriven.records.len()), ("rejected", 1));
        let unknown = redrive(&codec, &reject("smoke", b""), &[], BOUNDS, NOW);
        assert!(matches!(unknown, Err(RedriveError::UnknownSource(_))));
    }

    #[test]
    fn an_update_of_which_nothing_is_kept_leaves_nothing() {
        let raw = include_bytes!("../tests/data/telegram/poll.json");
        let redriven = redrive(&Codec::embedded(), &reject("telegram", raw), &[], BOUNDS, NOW).unwrap();
        assert_eq!((redriven.outcome, redriven.records.len()), ("nothing", 0));
    }
}
