//! Everything that holds data outside the process: the log (Kafka), contexts, history, keys, the ids of schemas.
//!
//! The one place that names rdkafka, redis, rusqlite and scylla. Time, ids and randomness come in as arguments, except in
//! [`history::writer`], which is a role, and on a CQL server, where write times and owners' names are made. What a backend promises about durability stands with [`Durability`].

#![warn(clippy::unwrap_used)]

pub mod context;
pub mod cql;
pub mod erasures;
pub mod history;
pub mod keys;
pub mod log;
pub mod redis;
pub mod registry;
mod pauses;
mod sqlite;
mod waiting;

pub use pauses::Pauses;
pub use sqlite::{DatabaseError, Durability};
pub use waiting::{Wait, Waiting};
