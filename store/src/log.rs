//! The log: the one place that speaks to Kafka, embedded or real.
//!
//! Promises: an append returns after the broker's acknowledgement (acks=all, idempotent, in order per key); readers
//! see committed records only; what goes by itself, what ends a transaction and what ends the role are different
//! errors. Every queue is bounded by a setting.
//!
//! Left out: what is in a record (the callers use `schemas`).

pub mod admin;
mod client;
mod error;
pub mod group;
pub mod producer;
mod security;
pub mod tail;
pub mod transact;
pub mod transactional;

use std::collections::BTreeMap;
use std::sync::Arc;

use schemas::TraceParent;

pub use admin::{Admin, TopicSpec, TopicState};
pub use error::{AppendError, LogError};
pub use group::{GroupReader, Joining};
pub use producer::{Producer, ProducerLimits};
pub use security::{Identity, Mechanism, Sasl, Security, Tls};
pub use tail::{From, Tail};
pub use transactional::TransactionalProducer;

/// How to reach the log.
#[derive(Clone, PartialEq, Eq)]
pub struct Kafka {
    /// `host:port` of one or more brokers, with commas between.
    pub bootstrap: String,
    /// What the brokers see as the client's name.
    pub client_id: String,
    /// TLS and login.
    pub security: Security,
    /// Further settings of librdkafka, passed through to every client; they win over Undertone's.
    pub properties: BTreeMap<String, String>,
}

impl Default for Kafka {
    fn default() -> Kafka {
        Kafka {
            bootstrap: "127.0.0.1:9092".to_owned(),
            client_id: "undertone".to_owned(),
            security: Security::default(),
            properties: BTreeMap::new(),
        }
    }
}

impl std::fmt::Debug for Kafka {
    /// Values of properties are not shown: some are secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kafka")
            .field("bootstrap", &self.bootstrap)
            .field("client_id", &self.client_id)
            .field("security", &self.security)
            .field("properties", &self.properties.keys())
            .finish()
    }
}

/// A record to append.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Record {
    /// The topic; it must exist.
    pub topic: String,
    /// The partition; `None` leaves it to the key (murmur2, as Java's clients do).
    pub partition: Option<i32>,
    /// The key; records of one key stay in order.
    pub key: Option<Vec<u8>>,
    /// The value.
    pub value: Option<Vec<u8>>,
    /// Headers in order.
    pub headers: Vec<(String, Vec<u8>)>,
    /// Milliseconds since the Unix epoch.
    pub timestamp: i64,
}

/// A record as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
    /// Milliseconds since the Unix epoch; 0 if the record has no time.
    pub timestamp: i64,
    /// The key.
    pub key: Option<Vec<u8>>,
    /// The value; `None` is a tombstone.
    pub value: Option<Vec<u8>>,
    /// Headers in order; one without a value reads as empty.
    pub headers: Vec<(String, Vec<u8>)>,
}

/// Longest correlation id that is shown in logs and traces, in bytes; a stranger's record may carry anything.
const CORRELATION_BYTES_MAX: usize = 128;

impl Message {
    /// The value of a header, if it is there and is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(header, _)| header == name)?;
        std::str::from_utf8(value).ok()
    }

    /// The trace that it belongs to.
    pub fn trace(&self) -> Option<TraceParent> {
        TraceParent::parse(self.header("traceparent")?)
    }

    /// The id of its trace, as logs show it.
    pub fn trace_id(&self) -> Option<String> {
        Some(self.trace()?.trace_hex())
    }

    /// Its correlation id, if it is one: visible ASCII of a bounded length.
    pub fn correlation_id(&self) -> Option<&str> {
        let fits = |id: &&str| id.len() <= CORRELATION_BYTES_MAX && id.bytes().all(|byte| byte.is_ascii_graphic());
        self.header("correlationid").filter(fits)
    }
}

/// Where a record stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Place {
    /// The partition.
    pub partition: i32,
    /// The offset in it.
    pub offset: i64,
}
