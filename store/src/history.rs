//! History: enriched turns by conversation and position, to be paged both ways.
//!
//! Promises: writing a turn twice changes nothing; positions are read in order, from either end; conversations are
//! listed by their last activity; a conversation, what a person said, or single turns can be erased. Memories are kept
//! beside the turns that they are of, go with them, and are bounded: of more than [`History::remembering`] in a
//! conversation the least salient fade, of equal ones the older. Which stay does not depend on how they were batched, nor
//! on how often they were written. What survives a crash is [`crate::Durability`]; the history can always be written again
//! from `turns.enriched`, as far as that reaches back.
//!
//! Left out: what is in a turn or a memory. A turn is kept as it stood in the log, a memory as the writer made it.

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
/// Most memories of a conversation, where nothing else is asked for.
pub const MEMORIES_MAX: usize = 10_000;

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

/// What recall needs of a turn that is worth remembering.
#[derive(Debug, Clone, PartialEq)]
pub struct Memory {
    /// Its conversation.
    pub conversation: String,
    /// The position of its turn.
    pub position: i64,
    /// Who said it, as [`schemas::Turn::person`] names them.
    pub person: Option<String>,
    /// The room of the palace that it is in.
    pub room: i32,
    /// What is low fades first.
    pub salience: f32,
    /// The turn in the wire format, with the parts that recall reads.
    pub value: Vec<u8>,
}

impl Memory {
    /// The order in which memories fade.
    fn fades_before(&self, other: &Memory) -> std::cmp::Ordering {
        self.salience.total_cmp(&other.salience).then(self.position.cmp(&other.position))
    }
}

/// What tells whether what was read of a conversation's memories is still what is kept: a turn or an erasure makes it
/// another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mark {
    last_position: i64,
    erasures: i64,
}

/// Which turns of a conversation, and in which order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Page {
    /// The newest first, below a position or from the end.
    Before(Option<i64>),
    /// The oldest first, above a position; 0 is the start.
    After(i64),
}

/// What is kept together, with the offset up to which each partition of a topic is kept then.
#[derive(Debug, Clone, Default)]
struct Kept {
    rows: Arc<[Row]>,
    memories: Arc<[Memory]>,
    topic: &'static str,
    reached: Arc<BTreeMap<i32, i64>>,
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
pub struct History {
    backend: Backend,
    memories_max: usize,
}

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
        Ok(History::on(Backend::Sqlite(sqlite::Sqlite::open_with(path, durability).await?)))
    }

    /// A history that ends with the process.
    ///
    /// # Errors
    /// SQLite has no memory.
    pub async fn in_memory() -> Result<History, HistoryError> {
        Ok(History::on(Backend::Sqlite(sqlite::Sqlite::in_memory().await?)))
    }

    /// Opens the tables of a keyspace, and makes them where they are missing. Turns are kept for `retention_days`; for
    /// ever without.
    ///
    /// # Errors
    /// A newer release changed the tables, or the server could not serve.
    pub async fn on_scylla(keyspace: Keyspace, retention_days: Option<NonZeroU32>) -> Result<History, HistoryError> {
        Ok(History::on(Backend::Scylla(scylla::Scylla::open(keyspace, retention_days).await?)))
    }

    fn on(backend: Backend) -> History {
        History { backend, memories_max: MEMORIES_MAX }
    }

    /// The same history, with so many memories of a conversation at most.
    pub fn remembering(self, memories_max: usize) -> History {
        History { memories_max, ..self }
    }

    /// Keeps the turns. A turn that is kept already is written over by the same. After an error some may be kept (on a
    /// file none are), and the same call may be made again.
    ///
    /// # Errors
    /// The database could not serve.
    pub async fn upsert(&self, rows: Vec<Row>) -> Result<(), HistoryError> {
        self.keep(Kept { rows: Arc::from(rows), ..Kept::default() }).await
    }

    /// As [`History::upsert`], with memories of these turns.
    ///
    /// # Errors
    /// As [`History::upsert`].
    pub async fn remember(&self, rows: Vec<Row>, memories: Vec<Memory>) -> Result<(), HistoryError> {
        self.keep(Kept { rows: Arc::from(rows), memories: Arc::from(memories), ..Kept::default() }).await
    }

    async fn keep(&self, kept: Kept) -> Result<(), HistoryError> {
        match &self.backend {
            Backend::Sqlite(history) => history.keep(kept, self.memories_max).await,
            Backend::Scylla(history) => history.keep(&kept, self.memories_max).await,
        }
    }

    /// The memories of a conversation, by position.
    ///
    /// # Errors
    /// The database could not serve.
    pub async fn memories(&self, conversation: &str) -> Result<Vec<Memory>, HistoryError> {
        match &self.backend {
            Backend::Sqlite(history) => history.memories(conversation, self.memories_max).await,
            Backend::Scylla(history) => history.memories(conversation, self.memories_max).await,
        }
    }

    /// How the memories of a conversation stand; `None` if it is not known.
    ///
    /// # Errors
    /// The database could not serve.
    pub async fn mark(&self, conversation: &str) -> Result<Option<Mark>, HistoryError> {
        match &self.backend {
            Backend::Sqlite(history) => history.mark(conversation).await,
            Backend::Scylla(history) => history.mark(conversation).await,
        }
    }

    /// Conversations that a person spoke in, in an order of the store's own; at most `limit`.
    ///
    /// # Errors
    /// The database could not serve.
    pub async fn conversations_of(&self, person: &str, limit: usize) -> Result<Vec<String>, HistoryError> {
        match &self.backend {
            Backend::Sqlite(history) => history.conversations_of(person, limit).await,
            Backend::Scylla(history) => history.conversations_of(person, limit).await,
        }
    }

    /// Removes some turns of a conversation and the memories of them, and says how many turns that were. Positions stay as
    /// they are.
    ///
    /// # Errors
    /// As [`History::erase_conversation`].
    pub async fn erase_turns(&self, conversation: &str, positions: Vec<i64>) -> Result<u64, HistoryError> {
        match &self.backend {
            Backend::Sqlite(history) => history.erase_turns(conversation, positions).await,
            Backend::Scylla(history) => history.erase_turns(conversation, positions).await,
        }
    }

    /// The offset behind what is kept, by partition of a topic; a partition of which nothing is kept is absent.
    ///
    /// # Errors
    /// The database could not serve.
    pub async fn reached(&self, topic: &str) -> Result<BTreeMap<i32, i64>, HistoryError> {
        match &self.backend {
            Backend::Sqlite(history) => history.reached(topic).await,
            Backend::Scylla(history) => history.reached(topic).await,
        }
    }

    /// A page of a conversation's turns; empty for one that is not known. At most [`PAGE_MAX`].
    ///
    /// # Errors
    /// The database could not serve.
    pub async fn turns(&self, conversation: &str, page: Page, limit: usize) -> Result<Vec<Row>, HistoryError> {
        match &self.backend {
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
        match &self.backend {
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
        match &self.backend {
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
        match &self.backend {
            Backend::Sqlite(history) => history.erase_person(person).await,
            Backend::Scylla(history) => history.erase_person(person).await,
        }
    }

    /// Sees to it that what was erased is nowhere in the files, and says whether it is so by now; `None` where the files are
    /// a server's.
    ///
    /// # Errors
    /// The database could not serve.
    pub async fn settle(&self) -> Result<Option<bool>, HistoryError> {
        match &self.backend {
            Backend::Sqlite(history) => Ok(Some(history.settle().await?)),
            Backend::Scylla(_) => Ok(None),
        }
    }

    /// The highest position of a conversation; `None` if it is not known.
    ///
    /// # Errors
    /// The database could not serve.
    pub async fn last_position(&self, conversation: &str) -> Result<Option<i64>, HistoryError> {
        match &self.backend {
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
