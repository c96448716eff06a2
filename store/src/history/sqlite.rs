//! History in SQLite: a file, or memory for what need not outlive the process.
//!
//! Conversations are named once and numbered, so that the index of turns stays small.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use rusqlite::{OptionalExtension, Transaction, params};

use super::{Conversation, Cursor, HistoryError, Kept, Mark, Memory, PAGE_MAX, Page, Row};
use crate::Durability;
use crate::sqlite::{Database, Layout};

static LAYOUT: Layout = Layout {
    name: "history",
    application_id: 0x756e_6468,
    migrations: &[
        "
        CREATE TABLE conversations (
            number INTEGER PRIMARY KEY,
            conversation TEXT NOT NULL UNIQUE,
            last_at INTEGER NOT NULL,
            last_position INTEGER NOT NULL
        ) STRICT;
        CREATE INDEX conversations_by_activity ON conversations (last_at, conversation);
        CREATE TABLE turns (
            conversation INTEGER NOT NULL REFERENCES conversations (number),
            position INTEGER NOT NULL,
            id BLOB NOT NULL,
            at INTEGER NOT NULL,
            value BLOB NOT NULL,
            PRIMARY KEY (conversation, position)
        ) STRICT;",
        "
        CREATE TABLE reached (
            topic TEXT NOT NULL,
            partition INTEGER NOT NULL,
            next INTEGER NOT NULL,
            PRIMARY KEY (topic, partition)
        ) STRICT, WITHOUT ROWID;",
        "
        ALTER TABLE turns ADD COLUMN person TEXT;
        CREATE TABLE people (
            person TEXT NOT NULL,
            conversation INTEGER NOT NULL,
            PRIMARY KEY (person, conversation)
        ) STRICT, WITHOUT ROWID;",
        "
        CREATE TABLE memories (
            conversation INTEGER NOT NULL,
            position INTEGER NOT NULL,
            person TEXT,
            room INTEGER NOT NULL,
            salience REAL NOT NULL,
            value BLOB NOT NULL,
            PRIMARY KEY (conversation, position)
        ) STRICT;
        CREATE INDEX memories_that_fade ON memories (conversation, salience, position);
        ALTER TABLE conversations ADD COLUMN erasures INTEGER NOT NULL DEFAULT 0;",
    ],
};

/// Threads that read beside the writer, so that a page does not wait for a batch.
const READERS: usize = 2;

/// Handle on the history; clones share its threads.
#[derive(Debug, Clone)]
pub(super) struct Sqlite {
    database: Database,
}

impl Sqlite {
    /// Opens or creates the file with a chosen durability.
    ///
    /// # Errors
    /// The file cannot be opened, is something else, or a newer release wrote it.
    pub(super) async fn open_with(path: &Path, durability: Durability) -> Result<Sqlite, HistoryError> {
        Ok(Sqlite { database: Database::open(path, &LAYOUT, durability, READERS).await? })
    }

    /// A history that ends with the process.
    ///
    /// # Errors
    /// SQLite has no memory.
    #[expect(clippy::unused_async, reason = "opened like a file, so that callers can choose either")]
    pub(super) async fn in_memory() -> Result<Sqlite, HistoryError> {
        Ok(Sqlite { database: Database::in_memory(&LAYOUT)? })
    }

    /// See [`super::History::upsert`].
    pub(super) async fn keep(&self, kept: Kept, memories_max: usize) -> Result<(), HistoryError> {
        let Kept { rows, memories, topic, reached } = kept;
        self.database
            .write(move |transaction| {
                for row in &*rows {
                    upsert(transaction, row)?;
                }
                for memory in &*memories {
                    remember(transaction, memory)?;
                }
                let grown: BTreeSet<&str> = memories.iter().map(|memory| memory.conversation.as_str()).collect();
                for conversation in grown {
                    fade(transaction, conversation, memories_max)?;
                }
                let mut statement = transaction.prepare_cached("INSERT OR REPLACE INTO reached VALUES (?1, ?2, ?3)")?;
                for (partition, next) in &*reached {
                    statement.execute(params![topic, partition, next])?;
                }
                Ok(())
            })
            .await
    }

    /// See [`super::History::reached`].
    pub(super) async fn reached(&self, topic: &str) -> Result<BTreeMap<i32, i64>, HistoryError> {
        let topic = topic.to_owned();
        self.database
            .read(move |transaction| {
                let mut statement =
                    transaction.prepare_cached("SELECT partition, next FROM reached WHERE topic = ?1")?;
                let reached = statement.query_map([topic], |row| Ok((row.get(0)?, row.get(1)?)))?;
                Ok(reached.collect::<Result<_, _>>()?)
            })
            .await
    }

    /// See [`super::History::turns`].
    pub(super) async fn turns(&self, conversation: &str, page: Page, limit: usize) -> Result<Vec<Row>, HistoryError> {
        let conversation = conversation.to_owned();
        let (sql, bound) = match page {
            Page::Before(below) => (
                "SELECT position, id, at, person, value FROM turns
                 WHERE conversation = (SELECT number FROM conversations WHERE conversation = ?1) AND position < ?2
                 ORDER BY position DESC LIMIT ?3",
                below.unwrap_or(i64::MAX),
            ),
            Page::After(above) => (
                "SELECT position, id, at, person, value FROM turns
                 WHERE conversation = (SELECT number FROM conversations WHERE conversation = ?1) AND position > ?2
                 ORDER BY position LIMIT ?3",
                above,
            ),
        };
        self.database
            .read(move |transaction| {
                let mut statement = transaction.prepare_cached(sql)?;
                let rows = statement.query_map(params![conversation, bound, limit.min(PAGE_MAX)], |row| {
                    let id: [u8; 16] = row.get(1)?;
                    Ok(Row {
                        conversation: conversation.clone(),
                        position: row.get(0)?,
                        id: uuid::Uuid::from_bytes(id),
                        at: row.get(2)?,
                        person: row.get(3)?,
                        value: row.get(4)?,
                    })
                })?;
                Ok(rows.collect::<Result<_, _>>()?)
            })
            .await
    }

    /// See [`super::History::conversations`].
    pub(super) async fn conversations(
        &self,
        after: Option<Cursor>,
        limit: usize,
    ) -> Result<Vec<Conversation>, HistoryError> {
        let limit = limit.min(PAGE_MAX);
        self.database
            .read(move |transaction| {
                let conversation = |row: &rusqlite::Row<'_>| {
                    Ok(Conversation { conversation: row.get(0)?, last_at: row.get(1)?, last_position: row.get(2)? })
                };
                // The first page has no bound: a time is whatever a turn says, the latest that there is included.
                let page = match after {
                    None => transaction
                        .prepare_cached(
                            "SELECT conversation, last_at, last_position FROM conversations
                             ORDER BY last_at DESC, conversation DESC LIMIT ?1",
                        )?
                        .query_map([limit], conversation)?
                        .collect::<Result<_, _>>()?,
                    Some(after) => transaction
                        .prepare_cached(
                            "SELECT conversation, last_at, last_position FROM conversations
                             WHERE (last_at, conversation) < (?1, ?2) ORDER BY last_at DESC, conversation DESC LIMIT ?3",
                        )?
                        .query_map(params![after.last_at, after.conversation, limit], conversation)?
                        .collect::<Result<_, _>>()?,
                };
                Ok(page)
            })
            .await
    }

    /// See [`super::History::memories`].
    pub(super) async fn memories(&self, conversation: &str, memories_max: usize) -> Result<Vec<Memory>, HistoryError> {
        let conversation = conversation.to_owned();
        self.database
            .read(move |transaction| {
                // The bound may have been lowered since they were written.
                let mut statement = transaction.prepare_cached(
                    "SELECT position, person, room, salience, value FROM memories
                     WHERE conversation = (SELECT number FROM conversations WHERE conversation = ?1)
                     ORDER BY salience DESC, position DESC LIMIT ?2",
                )?;
                let rows = statement.query_map(params![conversation, memories_max], |row| {
                    let salience: f64 = row.get(3)?;
                    Ok(Memory {
                        conversation: conversation.clone(),
                        position: row.get(0)?,
                        person: row.get(1)?,
                        room: row.get(2)?,
                        salience: salience as f32,
                        value: row.get(4)?,
                    })
                })?;
                let mut memories: Vec<Memory> = rows.collect::<Result<_, _>>()?;
                memories.sort_unstable_by_key(|memory| memory.position);
                Ok(memories)
            })
            .await
    }

    /// See [`super::History::mark`].
    pub(super) async fn mark(&self, conversation: &str) -> Result<Option<Mark>, HistoryError> {
        let conversation = conversation.to_owned();
        self.database
            .read(move |transaction| {
                let mut statement = transaction
                    .prepare_cached("SELECT last_position, erasures FROM conversations WHERE conversation = ?1")?;
                let mark = |row: &rusqlite::Row<'_>| Ok(Mark { last_position: row.get(0)?, erasures: row.get(1)? });
                Ok(statement.query_row([conversation], mark).optional()?)
            })
            .await
    }

    /// See [`super::History::conversations_of`].
    pub(super) async fn conversations_of(&self, person: &str, limit: usize) -> Result<Vec<String>, HistoryError> {
        let person = person.to_owned();
        self.database
            .read(move |transaction| {
                let mut statement = transaction.prepare_cached(
                    "SELECT conversations.conversation FROM people
                     JOIN conversations ON conversations.number = people.conversation
                     WHERE person = ?1 ORDER BY last_at DESC LIMIT ?2",
                )?;
                let names = statement.query_map(params![person, limit], |row| row.get(0))?;
                Ok(names.collect::<Result<_, _>>()?)
            })
            .await
    }

    /// See [`super::History::erase_turns`].
    pub(super) async fn erase_turns(&self, conversation: &str, positions: Vec<i64>) -> Result<u64, HistoryError> {
        let conversation = conversation.to_owned();
        self.database
            .write(move |transaction| {
                let Some(number) = number(transaction, &conversation)? else { return Ok(0) };
                let mut turns = 0;
                let mut turn =
                    transaction.prepare_cached("DELETE FROM turns WHERE conversation = ?1 AND position = ?2")?;
                let mut memory =
                    transaction.prepare_cached("DELETE FROM memories WHERE conversation = ?1 AND position = ?2")?;
                transaction.execute("UPDATE conversations SET erasures = erasures + 1 WHERE number = ?1", [number])?;
                for position in positions {
                    turns += turn.execute([number, position])? as u64;
                    memory.execute([number, position])?;
                }
                Ok(turns)
            })
            .await
    }

    /// See [`super::History::erase_conversation`].
    pub(super) async fn erase_conversation(&self, conversation: &str) -> Result<u64, HistoryError> {
        let conversation = conversation.to_owned();
        self.database
            .write(move |transaction| {
                let Some(number) = number(transaction, &conversation)? else { return Ok(0) };
                let turns = transaction.execute("DELETE FROM turns WHERE conversation = ?1", [number])?;
                transaction.execute("DELETE FROM memories WHERE conversation = ?1", [number])?;
                transaction.execute("DELETE FROM people WHERE conversation = ?1", [number])?;
                transaction.execute("DELETE FROM conversations WHERE number = ?1", [number])?;
                Ok(turns as u64)
            })
            .await
    }

    /// See [`super::History::erase_person`].
    pub(super) async fn erase_person(&self, person: &str) -> Result<u64, HistoryError> {
        let person = person.to_owned();
        self.database
            .write(move |transaction| {
                let turns = "DELETE FROM turns WHERE person = ?1
                             AND conversation IN (SELECT conversation FROM people WHERE person = ?1)";
                let turns = transaction.execute(turns, [&person])?;
                let memories = "DELETE FROM memories WHERE person = ?1
                                AND conversation IN (SELECT conversation FROM people WHERE person = ?1)";
                transaction.execute(memories, [&person])?;
                let noted = "UPDATE conversations SET erasures = erasures + 1
                             WHERE number IN (SELECT conversation FROM people WHERE person = ?1)";
                transaction.execute(noted, [&person])?;
                transaction.execute("DELETE FROM people WHERE person = ?1", [&person])?;
                Ok(turns as u64)
            })
            .await
    }

    /// See [`super::History::settle`].
    pub(super) async fn settle(&self) -> Result<bool, HistoryError> {
        Ok(self.database.settle().await?)
    }

    /// See [`super::History::last_position`].
    pub(super) async fn last_position(&self, conversation: &str) -> Result<Option<i64>, HistoryError> {
        let conversation = conversation.to_owned();
        self.database
            .read(move |transaction| {
                let mut statement =
                    transaction.prepare_cached("SELECT last_position FROM conversations WHERE conversation = ?1")?;
                Ok(statement.query_row([conversation], |row| row.get(0)).optional()?)
            })
            .await
    }
}

fn upsert(transaction: &Transaction<'_>, row: &Row) -> Result<(), HistoryError> {
    let mut conversation = transaction.prepare_cached(
        "INSERT INTO conversations (conversation, last_at, last_position) VALUES (?1, ?2, ?3)
         ON CONFLICT (conversation) DO UPDATE
         SET last_at = max(last_at, excluded.last_at), last_position = max(last_position, excluded.last_position)
         RETURNING number",
    )?;
    let number: i64 = conversation.query_row(params![row.conversation, row.at, row.position], |r| r.get(0))?;
    let mut turn = transaction.prepare_cached(
        "INSERT INTO turns (conversation, position, id, at, person, value) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
         ON CONFLICT (conversation, position) DO UPDATE
         SET id = excluded.id, at = excluded.at, person = excluded.person, value = excluded.value",
    )?;
    turn.execute(params![number, row.position, row.id.as_bytes(), row.at, row.person, row.value])?;
    if let Some(person) = &row.person {
        transaction.prepare_cached("INSERT OR IGNORE INTO people VALUES (?1, ?2)")?.execute(params![person, number])?;
    }
    Ok(())
}

/// The number of a conversation; `None` if it is not known.
fn number(transaction: &Transaction<'_>, conversation: &str) -> Result<Option<i64>, HistoryError> {
    let mut statement = transaction.prepare_cached("SELECT number FROM conversations WHERE conversation = ?1")?;
    Ok(statement.query_row([conversation], |row| row.get(0)).optional()?)
}

/// Keeps a memory of a turn that is kept.
fn remember(transaction: &Transaction<'_>, memory: &Memory) -> Result<(), HistoryError> {
    let mut statement = transaction.prepare_cached(
        "INSERT OR REPLACE INTO memories (conversation, position, person, room, salience, value)
         SELECT number, ?2, ?3, ?4, ?5, ?6 FROM conversations WHERE conversation = ?1",
    )?;
    let Memory { conversation, position, person, room, salience, value } = memory;
    statement.execute(params![conversation, position, person, room, f64::from(*salience), value])?;
    Ok(())
}

/// Lets go of the memories of a conversation that are too many.
fn fade(transaction: &Transaction<'_>, conversation: &str, memories_max: usize) -> Result<(), HistoryError> {
    let Some(number) = number(transaction, conversation)? else { return Ok(()) };
    let mut count = transaction.prepare_cached("SELECT count(*) FROM memories WHERE conversation = ?1")?;
    let count: i64 = count.query_row([number], |row| row.get(0))?;
    let beyond = count.saturating_sub(i64::try_from(memories_max).unwrap_or(i64::MAX));
    if beyond > 0 {
        let mut statement = transaction.prepare_cached(
            "DELETE FROM memories WHERE rowid IN
             (SELECT rowid FROM memories WHERE conversation = ?1 ORDER BY salience, position LIMIT ?2)",
        )?;
        statement.execute([number, beyond])?;
    }
    Ok(())
}
