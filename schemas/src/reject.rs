//! A reject: an input that is at fault, with its raw bytes, where it came from and why (the dead letter); and the note
//! that it was driven in again.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// An input that is at fault. It keeps all that is needed to read it and to drive it in again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reject {
    /// Id of the reject: the turn's id where there is one, else UUIDv5 of where it came from.
    pub id: Uuid,
    /// When it was rejected, in milliseconds since the Unix epoch.
    pub at: i64,
    /// Who rejected it: `ingest` or the name of a stage's chain.
    pub stage: String,
    /// Why, as a stable word: see [`Reason`].
    pub reason: String,
    /// Why, for a person, with the way to mend it.
    pub detail: String,
    /// How often it has been tried.
    pub attempt: i32,
    /// `telegram`, `websocket`, or absent for a record of the log.
    pub source: Option<String>,
    /// The bot that it was sent to.
    pub bot: Option<String>,
    /// The topic that it came from, if it stood in the log.
    pub topic: Option<String>,
    /// The partition that it came from.
    pub partition: Option<i32>,
    /// The offset that it came from.
    pub offset: Option<i64>,
    /// The record's key.
    #[serde(with = "apache_avro::serde::bytes_opt")]
    pub key: Option<Vec<u8>>,
    /// The record's headers.
    pub headers: Vec<Header>,
    /// The input itself, byte for byte.
    #[serde(with = "apache_avro::serde::bytes")]
    pub raw: Vec<u8>,
}

/// The detail of a reject whose input was forgotten: of that nothing is left.
pub const FORGOTTEN: &str = "what was rejected was forgotten";

impl Reject {
    /// What is left of it when its input was forgotten: when it was rejected, and why as a word.
    pub fn forgotten(self) -> Reject {
        Reject { detail: FORGOTTEN.to_owned(), headers: Vec::new(), raw: Vec::new(), ..self }
    }

    /// Whether only that is left of it.
    pub fn is_forgotten(&self) -> bool {
        self.raw.is_empty() && self.detail == FORGOTTEN
    }
}

/// The header that numbers the tries of a record that was driven in again: 2 for the first time.
pub const ATTEMPT_HEADER: &str = "undertone-attempt";

/// The number of the try that a record with these headers is: 1 unless it was driven in again.
pub fn attempt<'a>(headers: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> i32 {
    let value = headers.into_iter().find(|(name, _)| *name == ATTEMPT_HEADER).map(|(_, value)| value);
    let number = value.and_then(|value| std::str::from_utf8(value).ok()).and_then(|text| text.parse().ok());
    number.filter(|number| *number > 0).unwrap_or(1)
}

/// A reject that was driven in again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Redrive {
    /// The reject's id.
    pub id: Uuid,
    /// When it was driven in again, in milliseconds since the Unix epoch.
    pub at: i64,
    /// When the reject was rejected, in milliseconds since the Unix epoch.
    pub rejected_at: i64,
    /// The reject's partition in the topic of rejects.
    pub partition: i32,
    /// The reject's offset there.
    pub offset: i64,
    /// The number of this try, the first having been the one that was rejected.
    pub attempt: i32,
    /// What came of it: `record` (the bytes as they were), `turn`, `feedback`, `nothing` (the parser knows it now, and
    /// keeps nothing of it) or `rejected` (the parser rejects it still).
    pub outcome: String,
    /// Where the record that came of it was written.
    pub topic: Option<String>,
}

/// A header of a rejected record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Its name.
    pub name: String,
    /// Its value.
    #[serde(with = "apache_avro::serde::bytes")]
    pub value: Vec<u8>,
}

/// Why an input was rejected. A string on the wire, because the set will grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The bytes are not what they claim to be (broken JSON or Avro).
    Malformed,
    /// The wire format names a schema that nobody registered.
    UnknownSchema,
    /// A kind of update that this release does not know.
    UnknownKind,
    /// A field has a value that it may not have.
    Invalid,
    /// Larger than the bound.
    Oversized,
    /// The process died three times with this turn alone in work.
    Killer,
}

impl Reason {
    /// All of them. A series is begun for each when a process starts, so that its first reject is seen as a rise.
    pub const ALL: [Reason; 6] = [
        Reason::Malformed,
        Reason::UnknownSchema,
        Reason::UnknownKind,
        Reason::Invalid,
        Reason::Oversized,
        Reason::Killer,
    ];

    /// The word on the wire and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Reason::Malformed => "malformed",
            Reason::UnknownSchema => "unknown_schema",
            Reason::UnknownKind => "unknown_kind",
            Reason::Invalid => "invalid",
            Reason::Oversized => "oversized",
            Reason::Killer => "killer",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_was_never_driven_in_again_is_the_first_attempt() {
        assert_eq!(attempt([]), 1);
        assert_eq!(attempt([("correlationid", &b"7"[..]), (ATTEMPT_HEADER, &b"3"[..])]), 3);
        for odd in ["", "x", "-1", "0", "99999999999"] {
            assert_eq!(attempt([(ATTEMPT_HEADER, odd.as_bytes())]), 1, "{odd}");
        }
    }
}
