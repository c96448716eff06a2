//! Contexts in SQLite: a file, or memory for what need not outlive the process.
//!
//! Slices are found by conversation and stage; epochs, watermarks and attempts by chain and partition.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use rusqlite::{OptionalExtension, Row, Transaction, params};
use schemas::Stamp;
use uuid::Uuid;

use super::{
    Assigned, Attempt, Batch, CONVERSATIONS_MAX, ContextError, Epoch, Record, Saved, Start, Version, Watermark, Write,
    newest_below,
};
use crate::sqlite::{Database, Layout};
use crate::{DatabaseError, Durability};

static LAYOUT: Layout = Layout {
    name: "contexts",
    application_id: 0x756e_6463,
    migrations: &[
        "CREATE TABLE slices (
            conversation TEXT NOT NULL,
            stage TEXT NOT NULL,
            current_partition INTEGER NOT NULL,
            current_offset INTEGER NOT NULL,
            current_bytes BLOB NOT NULL,
            previous_partition INTEGER,
            previous_offset INTEGER,
            previous_bytes BLOB,
            PRIMARY KEY (conversation, stage)
        ) STRICT;
        CREATE INDEX slices_by_partition ON slices (current_partition);
        CREATE TABLE partitions (
            chain TEXT NOT NULL,
            partition INTEGER NOT NULL,
            epoch INTEGER NOT NULL,
            watermark INTEGER,
            attempt_offset INTEGER,
            attempt_count INTEGER,
            PRIMARY KEY (chain, partition)
        ) STRICT, WITHOUT ROWID;",
        "ALTER TABLE partitions ADD COLUMN saved INTEGER;",
        "CREATE TABLE drained (partition INTEGER PRIMARY KEY, below INTEGER NOT NULL) STRICT;",
    ],
};

/// Handle on the contexts; clones share its thread.
#[derive(Debug, Clone)]
pub(super) struct Sqlite {
    database: Database,
}

impl Sqlite {
    /// See [`super::Contexts::open_with`].
    pub(super) async fn open_with(path: &Path, durability: Durability) -> Result<Sqlite, ContextError> {
        Ok(Sqlite { database: Database::open(path, &LAYOUT, durability, 0).await? })
    }

    /// See [`super::Contexts::in_memory`].
    #[expect(clippy::unused_async, reason = "opened like a file, so that callers can choose either")]
    pub(super) async fn in_memory() -> Result<Sqlite, ContextError> {
        Ok(Sqlite { database: Database::in_memory(&LAYOUT)? })
    }

    /// See [`super::Contexts::assign`].
    pub(super) async fn assign(&self, chain: &str, partition: i32) -> Result<Assigned, ContextError> {
        let chain = chain.to_owned();
        self.database
            .write(move |transaction| {
                let mut statement = transaction.prepare_cached(
                    "INSERT INTO partitions (chain, partition, epoch) VALUES (?1, ?2, 1)
                     ON CONFLICT DO UPDATE SET epoch = epoch + 1
                     RETURNING chain, partition, epoch, watermark, attempt_offset, attempt_count, saved",
                )?;
                let (now, saved) = statement.query_row(params![chain, partition], |row| {
                    Ok((watermark(row)?, row.get::<_, Option<i64>>(6)?.map(Saved)))
                })?;
                Ok(Assigned { epoch: now.epoch, watermark: now.watermark, saved, attempt: now.attempt })
            })
            .await
    }

    /// See [`super::Contexts::load_all`].
    pub(super) async fn load_all(
        &self,
        starts: Vec<Start>,
        stages: &[&str],
    ) -> Result<HashMap<(String, String), Version>, ContextError> {
        let stages: Vec<String> = stages.iter().map(|&stage| stage.to_owned()).collect();
        self.database
            .read(move |transaction| {
                let drained = drained(transaction)?;
                let mut found = HashMap::new();
                for Start { partition, below, conversations, .. } in starts {
                    for conversation in conversations {
                        for record in records(transaction, &conversation, Some(&stages))? {
                            let stage = record.stage.clone();
                            if let Some(version) = newest_below(&conversation, partition, below, record, &drained)? {
                                found.insert((conversation.clone(), stage), version);
                            }
                        }
                    }
                }
                Ok(found)
            })
            .await
    }

    /// See [`super::Contexts::save_all`]: all of them, or none.
    pub(super) async fn try_save(&self, batches: Arc<[Batch]>) -> Result<Vec<Saved>, ContextError> {
        self.database
            .write(move |transaction| {
                let mut names = Vec::with_capacity(batches.len());
                for batch in batches.iter() {
                    own(transaction, &batch.chain, batch.partition, batch.epoch)?;
                    for slice in &batch.writes {
                        write(transaction, slice)?;
                    }
                    // Drawn, not counted: a file from a backup would count again.
                    let name = Uuid::new_v4().as_u64_pair().0 as i64;
                    let mut statement = transaction.prepare_cached(
                        "UPDATE partitions SET watermark = ?3, saved = ?4 WHERE chain = ?1 AND partition = ?2",
                    )?;
                    statement.execute(params![batch.chain, batch.partition, batch.watermark, name])?;
                    names.push(Saved(name));
                }
                Ok(names)
            })
            .await
    }

    /// See [`super::Contexts::confirm`].
    pub(super) async fn confirm(&self, chain: &str, partition: i32, epoch: Epoch) -> Result<(), ContextError> {
        let chain = chain.to_owned();
        self.database.read(move |transaction| own(transaction, &chain, partition, epoch)).await
    }

    /// See [`super::Contexts::note_attempt`].
    pub(super) async fn note_attempt(
        &self,
        chain: &str,
        partition: i32,
        epoch: Epoch,
        attempt: Option<Attempt>,
    ) -> Result<(), ContextError> {
        let chain = chain.to_owned();
        self.database
            .write(move |transaction| {
                own(transaction, &chain, partition, epoch)?;
                let mut statement = transaction.prepare_cached(
                    "UPDATE partitions SET attempt_offset = ?3, attempt_count = ?4 WHERE chain = ?1 AND partition = ?2",
                )?;
                let (offset, count) = (attempt.map(|a| a.offset), attempt.map(|a| a.count));
                statement.execute(params![chain, partition, offset, count])?;
                Ok(())
            })
            .await
    }

    /// See [`super::Contexts::settle`].
    pub(super) async fn settle(&self) -> Result<bool, ContextError> {
        Ok(self.database.settle().await?)
    }

    /// See [`super::Contexts::show`].
    pub(super) async fn show(&self, conversation: &str) -> Result<Vec<Record>, ContextError> {
        let conversation = conversation.to_owned();
        self.database.read(move |transaction| Ok(records(transaction, &conversation, None)?)).await
    }

    /// See [`super::Contexts::conversations`].
    pub(super) async fn conversations(&self, after: Option<&str>, limit: usize) -> Result<Vec<String>, ContextError> {
        let after = after.unwrap_or_default().to_owned();
        self.database
            .read(move |transaction| {
                let mut statement = transaction.prepare_cached(
                    "SELECT DISTINCT conversation FROM slices WHERE conversation > ?1 ORDER BY conversation LIMIT ?2",
                )?;
                let names = statement.query_map(params![after, limit.min(CONVERSATIONS_MAX)], |row| row.get(0))?;
                Ok(names.collect::<Result<_, _>>()?)
            })
            .await
    }

    /// See [`super::Contexts::watermarks`].
    pub(super) async fn watermarks(&self) -> Result<Vec<Watermark>, ContextError> {
        self.database
            .read(move |transaction| {
                let mut statement = transaction.prepare_cached(
                    "SELECT chain, partition, epoch, watermark, attempt_offset, attempt_count
                     FROM partitions ORDER BY chain, partition",
                )?;
                let rows = statement.query_map([], watermark)?;
                Ok(rows.collect::<Result<_, _>>()?)
            })
            .await
    }

    /// See [`super::Contexts::note_drained`].
    pub(super) async fn note_drained(&self, below: &BTreeMap<i32, i64>) -> Result<(), ContextError> {
        let below = below.clone();
        let write = move |transaction: &Transaction<'_>| {
            let mut statement = transaction.prepare_cached("INSERT OR REPLACE INTO drained VALUES (?1, ?2)")?;
            for (partition, below) in &below {
                statement.execute(params![partition, below])?;
            }
            Ok(())
        };
        self.database.write(write).await
    }

    /// See [`super::Contexts::clear_partition`].
    pub(super) async fn clear_partition(
        &self,
        chain: &str,
        partition: i32,
        epoch: Epoch,
        stages: &[&str],
    ) -> Result<(), ContextError> {
        let chain = chain.to_owned();
        let stages: Vec<String> = stages.iter().map(|&stage| stage.to_owned()).collect();
        self.database
            .write(move |transaction| {
                own(transaction, &chain, partition, epoch)?;
                for stage in stages {
                    transaction.execute(
                        "DELETE FROM slices WHERE current_partition = ?1 AND stage = ?2",
                        params![partition, stage],
                    )?;
                }
                transaction.execute(
                    "UPDATE partitions
                     SET watermark = NULL, saved = NULL, attempt_offset = NULL, attempt_count = NULL
                     WHERE chain = ?1 AND partition = ?2",
                    params![chain, partition],
                )?;
                Ok(())
            })
            .await
    }

    /// See [`super::Contexts::clear`].
    pub(super) async fn clear(&self) -> Result<(), ContextError> {
        self.database
            .write(move |transaction| {
                transaction.execute("DELETE FROM slices", [])?;
                transaction.execute(
                    "UPDATE partitions
                     SET epoch = epoch + 1, watermark = NULL, saved = NULL, attempt_offset = NULL,
                         attempt_count = NULL",
                    [],
                )?;
                Ok(())
            })
            .await
    }
}

/// Refuses a writer that does not own the partition.
fn own(transaction: &Transaction<'_>, chain: &str, partition: i32, epoch: Epoch) -> Result<(), ContextError> {
    let mut statement =
        transaction.prepare_cached("SELECT epoch FROM partitions WHERE chain = ?1 AND partition = ?2")?;
    let newest: Option<u64> = statement.query_row(params![chain, partition], |row| row.get(0)).optional()?;
    // A larger epoch than was ever issued comes from another store, and is refused like a smaller one.
    if newest == Some(epoch.0) {
        return Ok(());
    }
    let newest = newest.unwrap_or(0);
    Err(ContextError::Fenced { chain: chain.to_owned(), partition, ours: epoch.0, newest })
}

/// How far each partition had been worked off before partitions were added.
fn drained(transaction: &Transaction<'_>) -> Result<BTreeMap<i32, i64>, DatabaseError> {
    let mut statement = transaction.prepare_cached("SELECT partition, below FROM drained")?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn write(transaction: &Transaction<'_>, slice: &Write) -> Result<(), ContextError> {
    let mut statement =
        transaction.prepare_cached("INSERT OR REPLACE INTO slices VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)")?;
    let previous = slice.previous.as_ref();
    debug_assert!(
        previous.is_none_or(
            |p| p.stamp.partition != slice.current.stamp.partition || p.stamp.offset < slice.current.stamp.offset
        ),
        "a batch folds forward"
    );
    statement.execute(params![
        slice.conversation,
        slice.stage,
        slice.current.stamp.partition,
        slice.current.stamp.offset,
        slice.current.bytes,
        previous.map(|version| version.stamp.partition),
        previous.map(|version| version.stamp.offset),
        previous.map(|version| &version.bytes),
    ])?;
    Ok(())
}

/// The slices of a conversation, of all stages or of some.
fn records(
    transaction: &Transaction<'_>,
    conversation: &str,
    stages: Option<&[String]>,
) -> Result<Vec<Record>, DatabaseError> {
    let mut statement = transaction.prepare_cached(
        "SELECT stage, current_partition, current_offset, current_bytes, previous_partition, previous_offset,
                previous_bytes
         FROM slices WHERE conversation = ?1 ORDER BY stage",
    )?;
    let mut rows = statement.query([conversation])?;
    let mut records = Vec::new();
    while let Some(row) = rows.next()? {
        let stage: String = row.get(0)?;
        // Other chains keep their slices here too; theirs are not read off the disk.
        if stages.is_none_or(|wanted| wanted.contains(&stage)) {
            records.push(record(row, stage)?);
        }
    }
    Ok(records)
}

fn record(row: &Row<'_>, stage: String) -> Result<Record, rusqlite::Error> {
    let current = Version { stamp: Stamp { partition: row.get(1)?, offset: row.get(2)? }, bytes: row.get(3)? };
    let previous: Option<i64> = row.get(5)?;
    let previous = match previous {
        None => None,
        Some(offset) => Some(Version { stamp: Stamp { partition: row.get(4)?, offset }, bytes: row.get(6)? }),
    };
    Ok(Record { stage, current, previous })
}

fn watermark(row: &Row<'_>) -> Result<Watermark, rusqlite::Error> {
    let offset: Option<i64> = row.get(4)?;
    let count: Option<u32> = row.get(5)?;
    Ok(Watermark {
        chain: row.get(0)?,
        partition: row.get(1)?,
        epoch: Epoch(row.get(2)?),
        watermark: row.get(3)?,
        attempt: offset.zip(count).map(|(offset, count)| Attempt { offset, count }),
    })
}
