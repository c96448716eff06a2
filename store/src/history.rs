//! History: enriched turns by conversation and position, to be paged both ways.
//!
//! Promises: writing a turn twice changes nothing; positions are read in order, from either end; conversations are
//! listed by their last activity. What survives a crash is [`crate::Durability`]; the history can always be written
//! again from `turns.enriched`, as far as that reaches back.
//!
//! Left out: what is in a turn. A value is kept as it stood in the log and is decoded by who reads it.

pub mod sqlite;
pub mod writer;

use uuid::Uuid;

use crate::DatabaseError;

pub use sqlite::History;

/// An enriched turn as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Its conversation.
    pub conversation: String,
    /// Its dense number within the conversation, from 1.
    pub position: i64,
    /// Its id.
    pub id: Uuid,
    /// When it was said, in milliseconds since the Unix epoch.
    pub at: i64,
    /// The enriched turn in the wire format.
    pub value: Vec<u8>,
}

/// Which turns of a conversation, and in which order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Page {
    /// The newest first, below a position or from the end.
    Before(Option<i64>),
    /// The oldest first, above a position; 0 is the start.
    After(i64),
}

/// A conversation that has turns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conversation {
    /// Its id.
    pub conversation: String,
    /// The latest time of a turn, in milliseconds since the Unix epoch.
    pub last_at: i64,
    /// The highest position; as positions are dense, the number of turns that were ever kept.
    pub last_position: i64,
}

impl Conversation {
    /// Where the list goes on after this one.
    pub fn cursor(&self) -> Cursor {
        Cursor { last_at: self.last_at, conversation: self.conversation.clone() }
    }
}

/// A place in the list of conversations: the last one that was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// Its last activity then.
    pub last_at: i64,
    /// Its id.
    pub conversation: String,
}

/// Why history could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// The database could not serve.
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

impl From<rusqlite::Error> for HistoryError {
    fn from(error: rusqlite::Error) -> HistoryError {
        HistoryError::Database(error.into())
    }
}

impl HistoryError {
    /// Whether the same call may succeed later by itself.
    pub fn is_transient(&self) -> bool {
        let HistoryError::Database(error) = self;
        error.is_transient()
    }
}
