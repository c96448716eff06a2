//! What travels through Undertone: turns and their parts, rejects, redrives, replies, deliveries and feedback as Avro in the
//! Confluent wire format, the topics they travel on, and the headers beside them.
//!
//! This crate does no I/O and reads no clock, and draws nothing at random but keys and nonces ([`seal`]); it is the one place
//! that names `apache-avro`.

#![warn(clippy::unwrap_used)]

pub mod codec;
pub mod envelope;
pub mod erasure;
pub mod feedback;
pub mod part;
mod registry;
pub mod reject;
pub mod reply;
pub mod seal;
pub mod slice;
pub mod span;
pub mod time;
pub mod topic;
pub mod turn;

pub use codec::{Codec, DecodeError, EncodeError, LEARNT_MAX, Payload, SchemaError};
pub use envelope::{Envelope, TraceParent};
pub use erasure::Erasure;
pub use feedback::Feedback;
pub use part::{
    Coherence, Density, Dialogue, DialogueState, Ekman, Embedding, Emotion, Encoding, Estimate, Evidence, GoEmotions,
    Intent, Locus, Memory, Mood, NextAction, Personality, Provenance, Question, Segment, Slot, Sound, Style, Swatch,
    Synesthesia, Texture, Tier, Traits,
};
pub use registry::{Entry, Ids, Kind, REGISTERED, Registered, is_same, latest, versions};
pub use reject::{Header, Reason, Redrive, Reject};
pub use reply::{Delivery, Reply};
pub use span::{Attribute, Span, SpanKind, Spans};
pub use turn::{Consent, Sender, Skipped, Stamp, Turn, TurnHead, turn_id};
