//! History: enriched turns by conversation and position, to be paged both ways.
//!
//! Promises: writing a turn twice changes nothing; positions are read in order, from either end; conversations are
//! listed by their last activity; a conversation, or what a person said, can be erased. What survives a crash is [`crate::Durability`]; the history can always be written
//! again from `turns.enriched`, as far as that reaches back.
//!
//! Left out: what is in a turn. A value is kept as it stood in the log and is decoded by who reads it.

mod scylla;
mod sqlite;
pub mod verify;
pub mod writer;

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::Path;
use std::sync::Arc;

use uuid::Uuid;

use crate::cql::Keyspace;
use crate::{DatabaseError, Durability};

/// Most turns or conversations that one call returns.
pub const PAGE_MAX: usize = 1000;

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
    /// Who said it, as [`schemas::Turn::person`] names them.
    pub person: Option<String>,
    /// The enriched turn in the wire format.
    pub value: Vec<u8>,
}

/// Which turns of a conversation, and in which order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
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

/// Handle on a history; clones share what is behind it.
#[derive(Debug, Clone)]
pub struct History(Backend);

#[derive(Debug, Clone)]
enum Backend {
    Sqlite(sqlite::Sqlite),
    Scylla(scylla::Scylla),
}

impl History {
    /// Opens or creates a file, safe against kill -9 ([`Durability::Kill`]).
    ///
    /// # Errors
    /// The file cannot be opened, is something else, or a newer release wrote it.
    pub async fn open(path: &Path) -> Result<History, HistoryError> {
        History::open_with(path, Durability::Kill).await
    }

    /// Opens or creates a file with a chosen durability.
    ///
    /// # Errors
    /// As [`History::open`].
    pub async fn open_with(path: &Path, durability: Durability) -> Result<History, HistoryError> {
        Ok(History(Backend::Sqlite(sqlite::Sqlite::open_with(path, durability).await?)))
    }

    /// A history that ends with the process.
    ///
    /// # Errors
    /// SQLite has no memory.
    pub async fn in_memory() -> Result<History, HistoryError> {
        Ok(History(Backend::Sqlite(sqlite::Sqlite::in_memory().await?)))
    }

    /// Opens the tables of a keyspace, and makes them where they are missing. Turns are kept for `retention_days`; for
    /// ever without.
    ///
    /// # Errors
    /// A newer release changed the tables, or the server could not serve.
    pub async fn on_scylla(keyspace: Keyspace, retention_days: Option<NonZeroU32>) -> Result<History, HistoryError> {
        Ok(History(Backend::Scylla(scylla::Scylla::open(keyspace, retention_days).await?)))
    }

    /// Keeps the turns. A turn that is kept already is written over by the same. After an error some may be kept (on a
    /// file none are), and the same call may be made again.
    ///
    /// # Errors
    /// The database could not serve.
    pub async fn upsert(&self, rows: Vec<Row>) -> Result<(), HistoryError> {
        self.keep(Arc::from(rows), "", Arc::default()).await
    }

    /// As [`History::upsert`], together with the offset up to which each partition of `topic` is kept now.
    async fn keep(
        &self,
        rows: Arc<[Row]>,
        topic: &'static str,
        reached: Arc<BTreeMap<i32, i64>>,
    ) -> Result<(), HistoryError> {
        match &self.0 {
            Backend::Sqlite(history) => history.keep(rows, topic, reached).await,
            Backend::Scylla(history) => history.keep(&rows, topic, &reached).await,
        }
    }

    /// The offset behind what is kept, by partition of a topic; a partition of which nothing is kept is absent.
    ///
    /// # Errors
    /// The database could not serve.
    pub async fn reached(&self, topic: &str) -> Result<BTreeMap<i32, i64>, HistoryError> {
        match &self.0 {
            Backend::Sqlite(history) => history.reached(topic).await,
            Backend::Scylla(history) => history.reached(topic).await,
        }
    }

    /// A page of a conversation's turns; empty for one that is not known. At most [`PAGE_MAX`].
    ///
    /// # Errors
    /// The database could not serve.
    pub async fn turns(&self, conversation: &str, page: Page, limit: usize) -> Result<Vec<Row>, HistoryError> {
        match &self.0 {
            Backend::Sqlite(history) => history.turns(conversation, page, limit).await,
            Backend::Scylla(history) => history.turns(conversation, page, limit).await,
        }
    }

    /// Conversations by last activity, the latest first, after a place in that list. At most [`PAGE_MAX`]. One that
    /// becomes active while the list is paged moves to its front and may be seen twice, never missed.
    ///
    /// # Errors
    /// The database could not serve.
    pub async fn conversations(&self, after: Option<Cursor>, limit: usize) -> Result<Vec<Conversation>, HistoryError> {
        match &self.0 {
            Backend::Sqlite(history) => history.conversations(after, limit).await,
            Backend::Scylla(history) => history.conversations(after, limit).await,
        }
    }

    /// Removes what is kept of a conversation, and says how many turns that were. Positions go on: turns that come later
    /// are kept behind those that went. What the log still holds comes back when it is read again.
    ///
    /// # Errors
    /// The database could not serve; a part may be removed, and the same call may be made again.
    pub async fn erase_conversation(&self, conversation: &str) -> Result<u64, HistoryError> {
        match &self.0 {
            Backend::Sqlite(history) => history.erase_conversation(conversation).await,
            Backend::Scylla(history) => history.erase_conversation(conversation).await,
        }
    }

    /// Removes what a person said, in all conversations, and says how many turns that were; those of others stay, with
    /// their positions. What the log still holds comes back when it is read again.
    ///
    /// # Errors
    /// As [`History::erase_conversation`].
    pub async fn erase_person(&self, person: &str) -> Result<u64, HistoryError> {
        match &self.0 {
            Backend::Sqlite(history) => history.erase_person(person).await,
            Backend::Scylla(history) => history.erase_person(person).await,
        }
    }

    /// The highest position of a conversation; `None` if it is not known.
    ///
    /// # Errors
    /// The database could not serve.
    pub async fn last_position(&self, conversation: &str) -> Result<Option<i64>, HistoryError> {
        match &self.0 {
            Backend::Sqlite(history) => history.last_position(conversation).await,
            Backend::Scylla(history) => history.last_position(conversation).await,
        }
    }
}

/// Why history could not be read or written.
#[derive(Debug, Clone, thiserror::Error)]
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
