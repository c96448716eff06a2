//! Values as bytes: the Confluent wire format (0x00, schema id in four bytes, Avro body).
//!
//! Values are written and read by serde along the schema, without a tree of values in between; reading is apache-avro's
//! part, writing is `codec/write.rs`. A record that an older
//! or newer release wrote is read along *its* schema: fields that we do not know are skipped, fields that it lacks take
//! their default. That is enough because every change of a schema is FULL_TRANSITIVE (`tests/compatibility.rs`).

mod write;

use std::collections::HashMap;

use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::registry::{Kind, REGISTERED, latest};
use crate::slice::{EmotionSlice, EncodeSlice, Sequence};
use crate::topic::REJECT_BYTES_MAX;
use crate::{Delivery, Feedback, Redrive, Reject, Reply, Turn};
use write::Plan;

const MAGIC: u8 = 0;
const HEADER_BYTES: usize = 5;

/// A type that travels.
pub trait Payload: Serialize + DeserializeOwned {
    /// What it is.
    const KIND: Kind;
}

macro_rules! payloads {
    ($($kind:ident),*) => { $(impl Payload for $kind { const KIND: Kind = Kind::$kind; })* };
}
payloads!(Turn, Reject, Reply, Delivery, Feedback, Redrive, Sequence, EncodeSlice, EmotionSlice);

/// Why a value could not be written: a fault of ours, the value does not fit its schema.
#[derive(Debug, thiserror::Error)]
#[error("encode {kind}: {problem}", kind = kind.name())]
pub struct EncodeError {
    kind: Kind,
    problem: String,
}

/// Why bytes could not be read: the fault of whoever wrote them.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// No value at all (a tombstone), or shorter than the five bytes of the wire format.
    #[error("value of {0} bytes is too short for the Confluent wire format (0x00, schema id in 4 bytes, Avro body)")]
    Short(usize),
    /// The first byte is not 0x00.
    #[error("value begins with {0:#04x} instead of 0x00: write it with a Confluent Avro serialiser")]
    Magic(u8),
    /// The schema id stands for nothing.
    #[error("schema id {0} is not registered: write with a schema that the registry lists")]
    UnknownSchema(u32),
    /// The schema is known, but is not one of what was expected here.
    #[error("schema id {id} describes a {found}, expected a {expected}", found = found.name(), expected = expected.name())]
    WrongKind {
        /// The id that was read.
        id: u32,
        /// What it describes.
        found: Kind,
        /// What belongs here.
        expected: Kind,
    },
    /// The body is not what the schema says.
    #[error("body does not follow schema id {id}: {problem}")]
    Malformed {
        /// The id that was read.
        id: u32,
        /// Where it went wrong.
        problem: String,
    },
    /// The body ends before the value does.
    #[error("{0} bytes follow the Avro body")]
    Trailing(usize),
}

/// Writes and reads values by the schema ids of one registry.
pub struct Codec {
    writers: HashMap<Kind, (u32, Plan)>,
    readers: HashMap<u32, (Kind, GenericDatumReader<'static>)>,
}

impl std::fmt::Debug for Codec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Codec").field("ids", &self.readers.keys()).finish_non_exhaustive()
    }
}

impl Codec {
    /// A codec with the ids of the embedded registry.
    pub fn embedded() -> Codec {
        // A broken length must not make the reader allocate: nothing that travels is larger. The bound is the
        // process's; the first caller sets it and every caller asks for the same.
        apache_avro::util::max_allocation_bytes(REJECT_BYTES_MAX);
        let mut codec = Codec { writers: HashMap::new(), readers: HashMap::new() };
        for registered in REGISTERED {
            let schema = parsed(registered.text);
            let reader = GenericDatumReader::builder(schema).human_readable(true).build();
            let reader = reader.expect("committed schemas have no open references: a test reads them all");
            codec.readers.insert(registered.id, (registered.kind, reader));
        }
        for kind in Kind::ALL {
            let newest = latest(kind);
            let plan = Plan::of(parsed(newest.text)).expect("committed schemas have a plan: a test writes them all");
            codec.writers.insert(kind, (newest.id, plan));
        }
        codec
    }

    /// Appends the value to `out`.
    ///
    /// # Errors
    /// The value does not fit its schema: a fault of the program. `out` may then hold a part of it.
    pub fn encode_into<T: Payload>(&self, value: &T, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let (id, plan) = &self.writers[&T::KIND];
        out.push(MAGIC);
        out.extend_from_slice(&id.to_be_bytes());
        plan.write(value, out).map_err(|e| EncodeError { kind: T::KIND, problem: e.to_string() })
    }

    /// The value as bytes.
    ///
    /// # Errors
    /// As [`Codec::encode_into`].
    pub fn encode<T: Payload>(&self, value: &T) -> Result<Vec<u8>, EncodeError> {
        let mut out = Vec::with_capacity(1024);
        self.encode_into(value, &mut out)?;
        Ok(out)
    }

    /// Reads a value.
    ///
    /// # Errors
    /// One variant for each way in which the bytes can be at fault.
    pub fn decode<T: Payload>(&self, bytes: &[u8]) -> Result<T, DecodeError> {
        let Some((header, mut body)) = bytes.split_at_checked(HEADER_BYTES) else {
            return Err(DecodeError::Short(bytes.len()));
        };
        if header[0] != MAGIC {
            return Err(DecodeError::Magic(header[0]));
        }
        let id = u32::from_be_bytes([header[1], header[2], header[3], header[4]]);
        let (kind, reader) = self.readers.get(&id).ok_or(DecodeError::UnknownSchema(id))?;
        if *kind != T::KIND {
            return Err(DecodeError::WrongKind { id, found: *kind, expected: T::KIND });
        }
        let value = reader.read_deser(&mut body);
        let value = value.map_err(|e| DecodeError::Malformed { id, problem: brief(&e) })?;
        if body.is_empty() { Ok(value) } else { Err(DecodeError::Trailing(body.len())) }
    }
}

/// The end of an error's text: apache-avro puts the whole schema before what is wrong.
fn brief(error: &apache_avro::Error) -> String {
    const CHARS_MAX: usize = 160;
    let text = error.to_string();
    match text.char_indices().rev().nth(CHARS_MAX) {
        None => text,
        Some((start, _)) => format!("…{}", &text[start..]),
    }
}

/// A committed schema, parsed once for the life of the process: the set is small and fixed.
fn parsed(text: &'static str) -> &'static Schema {
    use std::sync::Mutex;
    static PARSED: Mutex<Vec<(&'static str, &'static Schema)>> = Mutex::new(Vec::new());
    let mut known = PARSED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some((_, schema)) = known.iter().find(|(t, _)| *t == text) {
        return schema;
    }
    let schema = Schema::parse_str(text).expect("committed schemas parse: a test reads them all");
    let schema = Box::leak(Box::new(schema));
    known.push((text, schema));
    schema
}
