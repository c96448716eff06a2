//! Contexts on a CQL server.
//!
//! - `epochs`: who owns a partition of a chain, by light-weight transactions, one for each assignment. An epoch is a time
//!   in microseconds, larger than all before it by [`WRITES_AN_EPOCH`] at least.
//! - `slices` and `marks`: written with a write time that is the epoch and the number of the write within it. So an older
//!   owner's write, whenever it arrives, has no effect where a newer one has written, and a write that timed out and
//!   arrives late loses against its repetition; no write needs a light-weight transaction.
//!
//! What SQLite does in one transaction is done in order here: the slices, each acknowledged, then the watermarks. A batch
//! that ends in between leaves slices whose version before it is still there, which is what a crash leaves as well.
//! An older owner is told so before it writes; should it lose the partition between the question and the write, the
//! write times decide.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use schemas::Stamp;
use scylla::statement::Consistency;
use scylla::statement::prepared::PreparedStatement;
use uuid::Uuid;

use super::{
    Assigned, Attempt, Batch, CONVERSATIONS_MAX, ContextError, Epoch, Record, Saved, Start, Version, Watermark,
    newest_below,
};
use crate::DatabaseError;
use crate::cql::migrate::Tables;
use crate::cql::{Keyspace, REQUESTS_MAX, all, micros, misread};

/// Writes that one epoch has write times for; its owner is then told to take the partition over anew. At a hundred a
/// second that is once a day.
const WRITES_AN_EPOCH: i64 = 10_000_000;
/// Tries to issue an epoch while others issue theirs.
const ASSIGN_TRIES_MAX: usize = 16;
/// Conversations that are looked through at a time where all are.
const SCAN_MAX: usize = 256;
/// How long the clock is waited for before partitions are added: epochs that were issued in a row run ahead of it.
const CLOCK_WAIT_MAX: Duration = Duration::from_secs(300);

static TABLES: Tables = Tables {
    name: "contexts",
    migrations: &[
        &[
            "CREATE TABLE IF NOT EXISTS {}.epochs (
            chain text, partition int, epoch bigint, owner uuid, PRIMARY KEY ((chain, partition))
        )",
            "CREATE TABLE IF NOT EXISTS {}.marks (
            chain text, partition int, watermark bigint, attempt_offset bigint, attempt_count int,
            PRIMARY KEY ((chain, partition))
        )",
            "CREATE TABLE IF NOT EXISTS {}.slices (
            conversation text, stage text, partition int, current blob, previous blob,
            PRIMARY KEY (conversation, stage)
        ) WITH compaction = {'class': 'LeveledCompactionStrategy'}",
        ],
        &["CREATE TABLE IF NOT EXISTS {}.drained (partition int PRIMARY KEY, below bigint)"],
    ],
};

/// Handle on the contexts; clones share its connections.
#[derive(Debug, Clone)]
pub(super) struct Scylla(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    keyspace: Keyspace,
    statements: Statements,
    /// By chain and partition, the writes of the epochs that were issued here.
    writes: Mutex<HashMap<(String, i32), (Epoch, i64)>>,
}

#[derive(Debug)]
struct Statements {
    first_epoch: PreparedStatement,
    next_epoch: PreparedStatement,
    epoch: PreparedStatement,
    epochs: PreparedStatement,
    mark: PreparedStatement,
    marks: PreparedStatement,
    put_watermark: PreparedStatement,
    put_attempt: PreparedStatement,
    clear_mark: PreparedStatement,
    slices: PreparedStatement,
    put_slice: PreparedStatement,
    erase_slice: PreparedStatement,
    first_names: PreparedStatement,
    names: PreparedStatement,
    stages: PreparedStatement,
    drained: PreparedStatement,
    put_drained: PreparedStatement,
}

impl Scylla {
    /// Opens the tables, and makes them where they are missing.
    pub(super) async fn open(keyspace: Keyspace) -> Result<Scylla, ContextError> {
        keyspace.migrate(&TABLES).await?;
        let prepare = async |statement| keyspace.prepare(statement).await;
        let mut statements = Statements {
            first_epoch: prepare(
                "INSERT INTO {}.epochs (chain, partition, epoch, owner) VALUES (?, ?, ?, ?) IF NOT EXISTS",
            )
            .await?,
            next_epoch: prepare(
                "UPDATE {}.epochs SET epoch = ?, owner = ? WHERE chain = ? AND partition = ? IF epoch = ?",
            )
            .await?,
            epoch: prepare("SELECT epoch, owner FROM {}.epochs WHERE chain = ? AND partition = ?").await?,
            epochs: prepare("SELECT chain, partition, epoch FROM {}.epochs").await?,
            mark: prepare(
                "SELECT watermark, WRITETIME(watermark), attempt_offset, attempt_count FROM {}.marks
                 WHERE chain = ? AND partition = ?",
            )
            .await?,
            marks: prepare("SELECT chain, partition, watermark, attempt_offset, attempt_count FROM {}.marks").await?,
            put_watermark: prepare(
                "UPDATE {}.marks USING TIMESTAMP ? SET watermark = ? WHERE chain = ? AND partition = ?",
            )
            .await?,
            put_attempt: prepare(
                "UPDATE {}.marks USING TIMESTAMP ? SET attempt_offset = ?, attempt_count = ?
                 WHERE chain = ? AND partition = ?",
            )
            .await?,
            clear_mark: prepare("DELETE FROM {}.marks USING TIMESTAMP ? WHERE chain = ? AND partition = ?").await?,
            slices: prepare("SELECT stage, current, previous FROM {}.slices WHERE conversation = ?").await?,
            put_slice: prepare(
                "UPDATE {}.slices USING TIMESTAMP ? SET partition = ?, current = ?, previous = ?
                 WHERE conversation = ? AND stage = ?",
            )
            .await?,
            erase_slice: prepare("DELETE FROM {}.slices USING TIMESTAMP ? WHERE conversation = ? AND stage = ?")
                .await?,
            first_names: prepare("SELECT DISTINCT conversation FROM {}.slices LIMIT ?").await?,
            names: prepare("SELECT DISTINCT conversation FROM {}.slices WHERE token(conversation) > token(?) LIMIT ?")
                .await?,
            stages: prepare("SELECT stage, partition FROM {}.slices WHERE conversation = ?").await?,
            drained: prepare("SELECT partition, below FROM {}.drained").await?,
            put_drained: prepare("INSERT INTO {}.drained (partition, below) VALUES (?, ?)").await?,
        };
        // What was decided, not what is still being decided.
        statements.epoch.set_consistency(Consistency::LocalSerial);
        Ok(Scylla(Arc::new(Inner { keyspace, statements, writes: Mutex::default() })))
    }

    /// See [`super::Contexts::assign`].
    pub(super) async fn assign(&self, chain: &str, partition: i32) -> Result<Assigned, ContextError> {
        let epoch = self.issue(chain, partition).await?;
        let rows = self.0.keyspace.read(&self.0.statements.mark, (chain, partition)).await?;
        let (watermark, time, offset, count) = rows.into_iter().next().unwrap_or_default();
        let saved: Option<i64> = time;
        self.lock().insert((chain.to_owned(), partition), (epoch, 0));
        Ok(Assigned { epoch, watermark, saved: saved.map(Saved), attempt: attempt(offset, count) })
    }

    /// Issues an epoch. Whether it was is asked afterwards, by the owner's name: the answer to the issuing may be lost.
    async fn issue(&self, chain: &str, partition: i32) -> Result<Epoch, ContextError> {
        let (keyspace, statements, owner) = (&self.0.keyspace, &self.0.statements, Uuid::new_v4());
        let mut lost = None;
        for _ in 0..ASSIGN_TRIES_MAX {
            let known = self.epoch(chain, partition).await?;
            let epoch = micros().max(known.map_or(0, |(epoch, _)| epoch.saturating_add(WRITES_AN_EPOCH)));
            let issued = match known {
                None => keyspace.write(&statements.first_epoch, (chain, partition, epoch, owner)).await,
                Some((known, _)) => {
                    keyspace.write(&statements.next_epoch, (epoch, owner, chain, partition, known)).await
                }
            };
            match issued {
                Err(error) if !error.is_transient() => return Err(error.into()),
                issued => lost = issued.err(),
            }
            if self.epoch(chain, partition).await? == Some((epoch, owner)) {
                return Ok(Epoch(epoch as u64));
            }
        }
        let crowd = || DatabaseError::Away(format!("{ASSIGN_TRIES_MAX} others took partition {partition} meanwhile"));
        Err(lost.unwrap_or_else(crowd).into())
    }

    /// The newest epoch, and who asked for it.
    async fn epoch(&self, chain: &str, partition: i32) -> Result<Option<(i64, Uuid)>, ContextError> {
        let rows = self.0.keyspace.read(&self.0.statements.epoch, (chain, partition)).await?;
        Ok(rows.into_iter().next())
    }

    /// See [`super::Contexts::confirm`].
    pub(super) async fn confirm(&self, chain: &str, partition: i32, epoch: Epoch) -> Result<(), ContextError> {
        let newest = self.epoch(chain, partition).await?.map_or(0, |(epoch, _)| epoch as u64);
        if newest == epoch.0 {
            return Ok(());
        }
        Err(ContextError::Fenced { chain: chain.to_owned(), partition, ours: epoch.0, newest })
    }

    /// The write time of the next write of an epoch, if it is the newest.
    async fn write_time(&self, chain: &str, partition: i32, epoch: Epoch) -> Result<i64, ContextError> {
        self.confirm(chain, partition, epoch).await?;
        let mut writes = self.lock();
        match writes.get_mut(&(chain.to_owned(), partition)) {
            Some((known, count)) if *known == epoch && *count < WRITES_AN_EPOCH - 1 => {
                *count += 1;
                Ok(epoch.0 as i64 + *count)
            }
            // It was issued elsewhere, or has no write times left.
            _ => Err(ContextError::Fenced { chain: chain.to_owned(), partition, ours: epoch.0, newest: epoch.0 }),
        }
    }

    /// See [`super::Contexts::load_all`].
    pub(super) async fn load_all(
        &self,
        starts: Vec<Start>,
        stages: &[&str],
    ) -> Result<HashMap<(String, String), Version>, ContextError> {
        let mut reads = Vec::new();
        for Start { partition, below, conversations, .. } in starts {
            for conversation in conversations {
                reads.push(async move {
                    let records = self.show(&conversation).await?;
                    Ok::<_, ContextError>((partition, below, conversation, records))
                });
            }
        }
        let all: Vec<_> = stream::iter(reads).buffer_unordered(REQUESTS_MAX).try_collect().await?;
        let mut found = HashMap::new();
        // Asked for once a slice of another partition is met: that is after a growth alone.
        let (mut drained, mut is_asked) = (BTreeMap::new(), false);
        for (partition, below, conversation, records) in all {
            for record in records.into_iter().filter(|record| stages.contains(&record.stage.as_str())) {
                let stage = record.stage.clone();
                let versions = || [Some(&record.current), record.previous.as_ref()].into_iter().flatten();
                if !is_asked && versions().any(|version| version.stamp.partition != partition) {
                    let rows: Vec<(i32, i64)> = self.0.keyspace.read(&self.0.statements.drained, ()).await?;
                    (drained, is_asked) = (rows.into_iter().collect(), true);
                }
                if let Some(version) = newest_below(&conversation, partition, below, record, &drained)? {
                    found.insert((conversation.clone(), stage), version);
                }
            }
        }
        Ok(found)
    }

    /// See [`super::Contexts::save_all`].
    pub(super) async fn try_save(&self, batches: &[Batch]) -> Result<Vec<Saved>, ContextError> {
        let mut times = Vec::with_capacity(batches.len());
        for batch in batches {
            times.push(self.write_time(&batch.chain, batch.partition, batch.epoch).await?);
        }
        let (keyspace, statements) = (&self.0.keyspace, &self.0.statements);
        let mut slices = Vec::new();
        for (batch, time) in batches.iter().zip(&times) {
            for write in &batch.writes {
                let (current, previous) = (bytes_of(Some(&write.current)), bytes_of(write.previous.as_ref()));
                let of = write.current.stamp.partition;
                let values = (*time, of, current, previous, write.conversation.clone(), write.stage.clone());
                slices.push(keyspace.write(&statements.put_slice, values));
            }
        }
        all(slices).await?;
        let mut marks = Vec::new();
        for (batch, time) in batches.iter().zip(&times) {
            let values = (*time, batch.watermark, batch.chain.clone(), batch.partition);
            marks.push(keyspace.write(&statements.put_watermark, values));
        }
        all(marks).await?;
        // The write time of the watermark names the save: no other has it.
        Ok(times.into_iter().map(Saved).collect())
    }

    /// See [`super::Contexts::note_attempt`].
    pub(super) async fn note_attempt(
        &self,
        chain: &str,
        partition: i32,
        epoch: Epoch,
        attempt: Option<Attempt>,
    ) -> Result<(), ContextError> {
        let time = self.write_time(chain, partition, epoch).await?;
        let (offset, count) = (attempt.map(|attempt| attempt.offset), attempt.map(|attempt| attempt.count as i32));
        self.0.keyspace.write(&self.0.statements.put_attempt, (time, offset, count, chain, partition)).await?;
        Ok(())
    }

    /// See [`super::Contexts::show`].
    pub(super) async fn show(&self, conversation: &str) -> Result<Vec<Record>, ContextError> {
        let rows: Vec<(String, Vec<u8>, Vec<u8>)> =
            self.0.keyspace.read(&self.0.statements.slices, (conversation,)).await?;
        let record = |(stage, current, previous): (String, Vec<u8>, Vec<u8>)| {
            let current = version(&current)?.ok_or_else(|| misread("a slice without a version"))?;
            Ok(Record { stage, current, previous: version(&previous)? })
        };
        rows.into_iter().map(record).collect()
    }

    /// See [`super::Contexts::conversations`].
    pub(super) async fn conversations(&self, after: Option<&str>, limit: usize) -> Result<Vec<String>, ContextError> {
        let (keyspace, statements) = (&self.0.keyspace, &self.0.statements);
        let limit = limit.min(CONVERSATIONS_MAX) as i32;
        let names: Vec<(String,)> = match after {
            None => keyspace.read(&statements.first_names, (limit,)).await?,
            Some(after) => keyspace.read(&statements.names, (after, limit)).await?,
        };
        Ok(names.into_iter().map(|(name,)| name).collect())
    }

    /// See [`super::Contexts::watermarks`].
    pub(super) async fn watermarks(&self) -> Result<Vec<Watermark>, ContextError> {
        type Mark = (String, i32, Option<i64>, Option<i64>, Option<i32>);
        let (keyspace, statements) = (&self.0.keyspace, &self.0.statements);
        let marks: Vec<Mark> = keyspace.read(&statements.marks, ()).await?;
        let mut marks: HashMap<(String, i32), _> = marks
            .into_iter()
            .map(|(chain, partition, watermark, offset, count)| {
                ((chain, partition), (watermark, attempt(offset, count)))
            })
            .collect();
        let epochs: Vec<(String, i32, i64)> = keyspace.read(&statements.epochs, ()).await?;
        let mut all: Vec<Watermark> = epochs
            .into_iter()
            .map(|(chain, partition, epoch)| {
                let (watermark, attempt) = marks.remove(&(chain.clone(), partition)).unwrap_or_default();
                Watermark { chain, partition, epoch: Epoch(epoch as u64), watermark, attempt }
            })
            .collect();
        all.sort_by(|one, other| (&one.chain, one.partition).cmp(&(&other.chain, other.partition)));
        Ok(all)
    }

    /// See [`super::Contexts::note_drained`].
    pub(super) async fn note_drained(&self, below: &BTreeMap<i32, i64>) -> Result<(), ContextError> {
        let (keyspace, statements) = (&self.0.keyspace, &self.0.statements);
        // Write times of one partition are compared with those of another once a conversation has moved: all that are
        // issued from now on, which begin with the clock, must be beyond all that were.
        let newest = self.watermarks().await?.into_iter().map(|known| known.epoch.0 as i64).max();
        let settled = newest.map_or(0, |newest| newest.saturating_add(WRITES_AN_EPOCH));
        let ahead = Duration::from_micros(u64::try_from(settled - micros()).unwrap_or(0));
        if ahead > CLOCK_WAIT_MAX {
            let what = format!("epochs are {} s ahead of this machine's clock: set it", ahead.as_secs());
            return Err(DatabaseError::Other(what).into());
        }
        tokio::time::sleep(ahead).await;
        for (partition, below) in below {
            keyspace.write(&statements.put_drained, (partition, below)).await?;
        }
        Ok(())
    }

    /// See [`super::Contexts::clear_partition`].
    pub(super) async fn clear_partition(
        &self,
        chain: &str,
        partition: i32,
        epoch: Epoch,
        stages: &[&str],
    ) -> Result<(), ContextError> {
        let time = self.write_time(chain, partition, epoch).await?;
        self.erase(time, |stage, of| of == partition && stages.contains(&stage)).await?;
        self.0.keyspace.write(&self.0.statements.clear_mark, (time, chain, partition)).await?;
        Ok(())
    }

    /// See [`super::Contexts::clear`].
    pub(super) async fn clear(&self) -> Result<(), ContextError> {
        let mut newest = 0;
        for known in self.watermarks().await? {
            let epoch = self.assign(&known.chain, known.partition).await?.epoch;
            let time = self.write_time(&known.chain, known.partition, epoch).await?;
            self.0.keyspace.write(&self.0.statements.clear_mark, (time, known.chain, known.partition)).await?;
            newest = newest.max(time);
        }
        self.erase(newest, |_, _| true).await
    }

    /// Removes the slices of a stage and partition for which `goes` says so. Looks at all that there are.
    async fn erase(&self, time: i64, goes: impl Fn(&str, i32) -> bool) -> Result<(), ContextError> {
        let (keyspace, statements) = (&self.0.keyspace, &self.0.statements);
        let mut after: Option<String> = None;
        loop {
            let names = self.conversations(after.as_deref(), SCAN_MAX).await?;
            let Some(last) = names.last().cloned() else { return Ok(()) };
            let mut looks = Vec::new();
            for name in names {
                looks.push(async move {
                    let stages: Vec<(String, i32)> = keyspace.read(&statements.stages, (name.clone(),)).await?;
                    Ok::<_, DatabaseError>((name, stages))
                });
            }
            let found: Vec<_> = stream::iter(looks).buffer_unordered(REQUESTS_MAX).try_collect().await?;
            let mut erasures = Vec::new();
            for (name, stages) in found {
                for (stage, _) in stages.into_iter().filter(|(stage, partition)| goes(stage, *partition)) {
                    erasures.push(keyspace.write(&statements.erase_slice, (time, name.clone(), stage)));
                }
            }
            all(erasures).await?;
            after = Some(last);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<(String, i32), (Epoch, i64)>> {
        self.0.writes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn attempt(offset: Option<i64>, count: Option<i32>) -> Option<Attempt> {
    offset.zip(count).map(|(offset, count)| Attempt { offset, count: count as u32 })
}

/// A version as a cell holds it: its partition and offset, big-endian, then its bytes; empty where there is none, so that
/// a conversation that was new leaves no tombstone.
fn bytes_of(version: Option<&Version>) -> Vec<u8> {
    let Some(Version { stamp, bytes }) = version else { return Vec::new() };
    [&stamp.partition.to_be_bytes()[..], &stamp.offset.to_be_bytes(), bytes].concat()
}

/// A version back from its cell.
fn version(cell: &[u8]) -> Result<Option<Version>, DatabaseError> {
    if cell.is_empty() {
        return Ok(None);
    }
    let Some((partition, rest)) = cell.split_first_chunk() else { return Err(misread("a slice of few bytes")) };
    let Some((offset, bytes)) = rest.split_first_chunk() else { return Err(misread("a slice of few bytes")) };
    let stamp = Stamp { partition: i32::from_be_bytes(*partition), offset: i64::from_be_bytes(*offset) };
    Ok(Some(Version { stamp, bytes: bytes.to_vec() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_comes_back_from_its_cell() {
        for bytes in [Vec::new(), vec![0, 1, 255]] {
            let kept = Version { stamp: Stamp { partition: 7, offset: 1 << 40 }, bytes };
            assert_eq!(version(&bytes_of(Some(&kept))).unwrap(), Some(kept));
        }
        assert_eq!(version(&bytes_of(None)).unwrap(), None);
        version(&[1, 2, 3]).unwrap_err();
    }
}
