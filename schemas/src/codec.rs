//! Values as bytes: the Confluent wire format (0x00, schema id in four bytes, Avro body).
//!
//! Values are written and read by serde along the schema, without a tree of values in between; reading is apache-avro's
//! part, writing is `codec/write.rs`. A record that an older
//! or newer release wrote is read along *its* schema: fields that we do not know are skipped, fields that it lacks take
//! their default. That is enough because every change of a schema is FULL_TRANSITIVE (`tests/compatibility.rs`).

mod head;
mod write;

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use crate::registry::{Ids, Kind, REGISTERED, is_same, latest};
use crate::seal::{self, Key, Opened, Ring};
use crate::slice::{
    CoherenceSlice, DialogueSlice, EmotionSlice, EncodeSlice, MemorySlice, PersonalitySlice, Sequence, SynesthesiaSlice,
};
use crate::topic::REJECT_BYTES_MAX;
use crate::{Delivery, Erasure, Feedback, Redrive, Reject, Reply, Turn, TurnHead};
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
payloads!(
    Turn,
    Reject,
    Reply,
    Delivery,
    Feedback,
    Redrive,
    Sequence,
    EncodeSlice,
    EmotionSlice,
    DialogueSlice,
    PersonalitySlice,
    CoherenceSlice,
    SynesthesiaSlice,
    MemorySlice,
    Erasure
);

/// Why a value could not be written: a fault of ours, the value does not fit its schema.
#[derive(Debug, thiserror::Error)]
#[error("encode {kind}: {problem}", kind = kind.name())]
pub struct EncodeError {
    kind: Kind,
    problem: String,
}

/// Why a schema of a registry is of no use.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// It is no Avro schema.
    #[error("the schema with id {id} cannot be read: {problem}")]
    Unreadable {
        /// Its id.
        id: u32,
        /// What is wrong with it.
        problem: String,
    },
    /// More were learnt than a codec holds.
    #[error(
        "more than {LEARNT_MAX} schemas were asked for since the start: look for a producer that registers one after another"
    )]
    TooMany,
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
    /// It is sealed by a key that is not at hand.
    #[error(
        "the turn is sealed by key {0}, which the store of keys does not have: set [privacy] crypto_shred = true, see that \
         it is the store that sealed it, or restore that; then redrive the turn, or let `undertone history verify --mend` \
         write it"
    )]
    Locked(Uuid),
}

/// Reads values that were written along one schema.
struct Reader {
    schema: &'static Schema,
    datum: GenericDatumReader<'static>,
}

/// Schemas that a codec learns while it is in use, at most. Each stays for the life of the process.
pub const LEARNT_MAX: usize = 1000;

/// Writes and reads values by the schema ids of one registry.
///
/// The same number stands for different schemas in two registries, so an id counts within its kind: slices of contexts,
/// which no registry outside knows, keep the ids of the embedded one, and so does what was written before there was
/// another one, where that other one does not use the number for the same kind.
pub struct Codec {
    writers: HashMap<Kind, (u32, Plan)>,
    readers: HashMap<(Kind, u32), Arc<Reader>>,
    /// Those of the embedded registry that stand in for another one's: of what was written before.
    before: HashSet<(Kind, u32)>,
    /// What came to be known in use; apart, so that reading what is known from the start takes no lock.
    learnt: RwLock<HashMap<(Kind, u32), Arc<Reader>>>,
    /// Opens sealed turns.
    ring: OnceLock<Arc<dyn Ring>>,
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
        let mut codec = Codec {
            writers: HashMap::new(),
            readers: HashMap::new(),
            before: HashSet::new(),
            learnt: RwLock::default(),
            ring: OnceLock::new(),
        };
        for registered in REGISTERED {
            let reader = reader(parsed(registered.text).expect("committed schemas parse: a test reads them all"));
            let reader = reader.expect("committed schemas have no open references: a test reads them all");
            codec.readers.insert((registered.kind, registered.id), reader);
        }
        for kind in Kind::ALL {
            let newest = latest(kind);
            let schema = parsed(newest.text).expect("committed schemas parse: a test reads them all");
            let plan = Plan::of(schema).expect("committed schemas have a plan: a test writes them all");
            codec.writers.insert(kind, (newest.id, plan));
        }
        codec
    }

    /// A codec with the ids of another registry. Kinds that it does not have keep those of the embedded one.
    ///
    /// # Errors
    /// One of its schemas cannot be read.
    pub fn with_ids(ids: &Ids) -> Result<Codec, SchemaError> {
        let mut codec = Codec::embedded();
        codec.before = codec.readers.keys().copied().collect();
        for entry in &ids.read {
            codec.readers.insert((entry.kind, entry.id), codec.reader_of(entry.kind, entry.id, &entry.text)?);
            codec.before.remove(&(entry.kind, entry.id));
        }
        for (kind, id) in &ids.written {
            if let Some(writer) = codec.writers.get_mut(kind) {
                writer.0 = *id;
            }
        }
        Ok(codec)
    }

    /// Notes what an id stands for, from now on.
    ///
    /// # Errors
    /// It is no schema, or one too many.
    pub fn learn(&self, kind: Kind, id: u32, text: &str) -> Result<(), SchemaError> {
        if self.knows(kind, id) {
            return Ok(());
        }
        let reader = self.reader_of(kind, id, text)?;
        let mut learnt = self.learnt.write().unwrap_or_else(PoisonError::into_inner);
        if learnt.len() >= LEARNT_MAX {
            return Err(SchemaError::TooMany);
        }
        learnt.insert((kind, id), reader);
        Ok(())
    }

    /// The id that a value of kind `T` names, if nothing is known of it; `None` also where it names none.
    pub fn unknown<T: Payload>(&self, bytes: &[u8]) -> Option<u32> {
        let (id, _) = split(bytes).ok()?;
        (!self.knows(T::KIND, id)).then_some(id)
    }

    fn knows(&self, kind: Kind, id: u32) -> bool {
        self.readers.contains_key(&(kind, id))
            || self.learnt.read().unwrap_or_else(PoisonError::into_inner).contains_key(&(kind, id))
    }

    /// A reader along this schema; the committed one's own where it is the same.
    fn reader_of(&self, kind: Kind, id: u32, text: &str) -> Result<Arc<Reader>, SchemaError> {
        let same = REGISTERED.iter().find(|registered| registered.kind == kind && is_same(registered.text, text));
        let text = same.map_or(text, |registered| registered.text);
        parsed(text).and_then(reader).map_err(|problem| SchemaError::Unreadable { id, problem: brief(&problem) })
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

    /// From now on sealed turns are opened by these keys; the first that are given stay.
    pub fn hold(&self, ring: Arc<dyn Ring>) {
        self.ring.get_or_init(|| ring);
    }

    /// The key that a value is sealed by, if its store has not been asked for it yet: before that it cannot be read.
    pub fn locked(&self, bytes: &[u8]) -> Option<Uuid> {
        let (id, ring) = (seal::key_of(bytes)?, self.ring.get()?);
        (ring.find(id) == seal::Held::Unknown).then_some(id)
    }

    /// The value itself where it is sealed and can be opened, with the key; else the bytes as they are.
    ///
    /// # Errors
    /// [`DecodeError::Locked`], or it is damaged.
    pub fn open<'b>(&self, bytes: &'b [u8]) -> Result<(Cow<'b, [u8]>, Option<Key>), DecodeError> {
        match seal::open(bytes, self.ring.get().map(AsRef::as_ref)) {
            Opened::Plain => Ok((Cow::Borrowed(bytes), None)),
            Opened::Value(value, key) => Ok((Cow::Owned(value), Some(key))),
            Opened::Locked(id) => Err(DecodeError::Locked(id)),
            Opened::Damaged(key) => {
                let (id, _) = split(bytes)?;
                Err(DecodeError::Malformed { id, problem: format!("key {key} does not open what it sealed") })
            }
        }
    }

    /// The turn as bytes, sealed.
    ///
    /// # Errors
    /// As [`Codec::encode_into`].
    pub fn seal(&self, turn: &Turn, key: &Key) -> Result<Vec<u8>, EncodeError> {
        self.encode(&turn.sealed(&self.encode(turn)?, key))
    }

    /// Reads a value; a sealed turn is opened.
    ///
    /// # Errors
    /// One variant for each way in which the bytes can be at fault.
    pub fn decode<T: Payload>(&self, bytes: &[u8]) -> Result<T, DecodeError> {
        if T::KIND == Kind::Turn
            && let (Cow::Owned(value), _) = self.open(bytes)?
        {
            return self.read(&value);
        }
        self.read(bytes)
    }

    /// Reads a value as it stands: of a sealed turn what is left without its key.
    ///
    /// # Errors
    /// As [`Codec::decode`].
    pub fn read<T: Payload>(&self, bytes: &[u8]) -> Result<T, DecodeError> {
        let (id, mut body) = split(bytes)?;
        let value = self.with_reader(T::KIND, id, |reader| reader.datum.read_deser(&mut body))?;
        let value = value.map_err(|e| DecodeError::Malformed { id, problem: brief(&e) })?;
        if body.is_empty() { Ok(value) } else { Err(DecodeError::Trailing(body.len())) }
    }

    /// Reads where a turn stands, and leaves the rest of it: a fraction of the time of reading it all.
    ///
    /// # Errors
    /// As [`Codec::decode`]; faults behind the position are not seen.
    pub fn decode_head(&self, bytes: &[u8]) -> Result<TurnHead, DecodeError> {
        let (id, body) = split(bytes)?;
        if let Some(head) = self.with_reader(Kind::Turn, id, |reader| head::read(reader.schema, body))? {
            return Ok(head);
        }
        let Turn { conversation, at, received_at, position, .. } = self.decode(bytes)?;
        Ok(TurnHead { conversation, at, received_at, position })
    }

    fn with_reader<T>(&self, kind: Kind, id: u32, read: impl FnOnce(&Reader) -> T) -> Result<T, DecodeError> {
        if let Some(reader) = self.readers.get(&(kind, id)) {
            return Ok(read(reader));
        }
        let learnt = self.learnt.read().unwrap_or_else(PoisonError::into_inner).get(&(kind, id)).cloned();
        learnt.map(|reader| read(&reader)).ok_or_else(|| self.not_of(kind, id))
    }

    /// Why an id is none of this kind.
    fn not_of(&self, expected: Kind, id: u32) -> DecodeError {
        let describes = |kind: &Kind| self.knows(*kind, id) && !self.before.contains(&(*kind, id));
        match Kind::ALL.into_iter().find(describes) {
            Some(found) => DecodeError::WrongKind { id, found, expected },
            None => DecodeError::UnknownSchema(id),
        }
    }
}

/// The schema id of a value in the wire format, and its body.
fn split(bytes: &[u8]) -> Result<(u32, &[u8]), DecodeError> {
    let Some((header, body)) = bytes.split_at_checked(HEADER_BYTES) else {
        return Err(DecodeError::Short(bytes.len()));
    };
    if header[0] != MAGIC {
        return Err(DecodeError::Magic(header[0]));
    }
    Ok((u32::from_be_bytes([header[1], header[2], header[3], header[4]]), body))
}

fn reader(schema: &'static Schema) -> Result<Arc<Reader>, apache_avro::Error> {
    Ok(Arc::new(Reader { schema, datum: GenericDatumReader::builder(schema).human_readable(true).build()? }))
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

/// A schema, parsed once for the life of the process: the committed ones are few, and so are those that a registry has
/// for the same kinds.
fn parsed(text: &str) -> Result<&'static Schema, apache_avro::Error> {
    use std::sync::Mutex;
    static PARSED: Mutex<Vec<(String, &'static Schema)>> = Mutex::new(Vec::new());
    let mut known = PARSED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, schema)) = known.iter().find(|(t, _)| t == text) {
        return Ok(schema);
    }
    let schema: &'static Schema = Box::leak(Box::new(Schema::parse_str(text)?));
    known.push((text.to_owned(), schema));
    Ok(schema)
}
