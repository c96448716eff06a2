//! A reject: an input that is at fault, with its raw bytes, where it came from and why. The dead letter.

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
