//! What the broker knows beside the logs: topics, committed offsets, transactions, producer ids. Durable.
//!
//! A log of entries, one JSON object a line with its checksum, and the state that they add up to, in memory. The state
//! changes only by an entry that was written before, so that opening the log gives the same state again. The log is
//! written anew from the state when it has grown enough, while others go on appending: see [`Rewrite`]. A torn last line was acknowledged to
//! nobody and is cut off; damage in front of a whole line is refused at the start, since going on would lose topics.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, MutexGuard};

use serde::{Deserialize, Serialize};

use crate::clock::not_after;
use crate::settings::Given;
use crate::sync::{self, Syncer};

/// The log is not rewritten before it has this size.
const COMPACT_BYTES_MIN: u64 = 4 << 20;
/// It is rewritten when it has grown by this factor since the last time.
const COMPACT_GROWTH: u64 = 4;
/// Beyond this multiple of the size at which it should be rewritten, appends wait for that.
const OVERDUE: u64 = 4;
/// Entries that came while the log was being rewritten are synced without holding others up, unless they are fewer.
const TAIL_BYTES_MAX: usize = 64 << 10;
/// How often that is tried; then others wait for the rest.
const TAIL_ROUNDS_MAX: usize = 4;
/// Producer ids below are never given.
const FIRST_PRODUCER_ID: i64 = 1000;

/// One change of the state.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Entry {
    Cluster {
        id: String,
    },
    /// A topic as it is from now on.
    Topic {
        name: String,
        topic: Topic,
    },
    TopicDeleted {
        name: String,
    },
    LogStart {
        topic: String,
        partition: i32,
        offset: i64,
    },
    Offsets(Vec<GroupOffset>),
    GroupDeleted {
        group: String,
    },
    /// Offsets of single partitions of a group are forgotten.
    OffsetsDeleted {
        group: String,
        partitions: Vec<(String, i32)>,
    },
    Transaction {
        id: String,
        transaction: Transaction,
    },
    /// A transaction is decided and complete; its offsets count from now on.
    TransactionEnded {
        id: String,
        transaction: Transaction,
        offsets: Vec<GroupOffset>,
    },
    TransactionForgotten {
        id: String,
    },
    NextProducerId(i64),
}

/// A topic.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Topic {
    /// Names the folders of its partitions; never used again, so that a deleted topic of the same name is another.
    pub(crate) number: u64,
    pub(crate) partitions: i32,
    pub(crate) settings: Given,
    /// Starts of partitions whose records were deleted.
    pub(crate) starts: BTreeMap<i32, i64>,
}

/// An offset that a group committed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GroupOffset {
    pub(crate) group: String,
    pub(crate) topic: String,
    pub(crate) partition: i32,
    pub(crate) committed: Committed,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Committed {
    pub(crate) offset: i64,
    pub(crate) leader_epoch: i32,
    pub(crate) metadata: Option<String>,
}

/// A transactional id and its present transaction.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Transaction {
    pub(crate) producer_id: i64,
    pub(crate) producer_epoch: i16,
    /// The epoch of the client that asked for the present one, if it went on with its own.
    #[serde(default)]
    pub(crate) bumped_from: Option<i16>,
    pub(crate) timeout_ms: i64,
    pub(crate) phase: Phase,
    pub(crate) partitions: BTreeSet<(String, i32)>,
    pub(crate) offsets: Vec<GroupOffset>,
    pub(crate) started_ms: i64,
    /// When something was last heard of this id.
    pub(crate) used_ms: i64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Phase {
    #[default]
    Empty,
    Ongoing,
    /// Decided; the markers may not all be written yet.
    Committing,
    Aborting,
    /// The last transaction was committed, and no other has begun.
    Committed,
    Aborted,
}

/// What the entries add up to.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) cluster_id: String,
    pub(crate) topics: BTreeMap<String, Topic>,
    pub(crate) offsets: BTreeMap<String, BTreeMap<(String, i32), Committed>>,
    pub(crate) transactions: BTreeMap<String, Transaction>,
    pub(crate) next_producer_id: i64,
    pub(crate) next_topic_number: u64,
    /// Groups that committed since [`Metadata::take_committed`].
    committed: BTreeSet<String>,
}

/// Why the metadata could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    /// The disk is at fault.
    #[error("open metadata log {path}: {source}; check that it can be written and that the disk is not full")]
    Storage {
        /// The metadata log.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// An entry in the middle cannot be read.
    #[error(
        "metadata log {path} is damaged at line {line}, with whole entries behind it; restore the data directory from a \
         backup, or delete it to begin with an empty broker"
    )]
    Damaged {
        /// The metadata log.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
    },
}

/// The state and its log.
pub(crate) struct Metadata {
    state: State,
    path: PathBuf,
    file: Arc<File>,
    size: u64,
    compact_at: u64,
    /// While the log is being rewritten: the entries that were appended since that began.
    tail: Option<Vec<u8>>,
    syncer: Arc<Syncer>,
}

impl Metadata {
    /// Opens the log at `path`, or begins one; `new_cluster_id` is for a new one.
    pub(crate) fn open(
        path: PathBuf,
        syncer: Arc<Syncer>,
        new_cluster_id: &str,
        now_ms: i64,
    ) -> Result<Metadata, MetadataError> {
        let storage = |source| MetadataError::Storage { path: path.clone(), source };
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(storage(error)),
        };
        let mut state = replay(&bytes).map_err(|line| MetadataError::Damaged { path: path.clone(), line })?;
        if state.cluster_id.is_empty() {
            state.cluster_id = new_cluster_id.to_owned();
        }
        state.next_producer_id = state.next_producer_id.max(FIRST_PRODUCER_ID);
        for transaction in state.transactions.values_mut() {
            // Begun in the future, it would stay open until then.
            transaction.started_ms = not_after(transaction.started_ms, now_ms);
            transaction.used_ms = not_after(transaction.used_ms, now_ms);
        }
        let (file, size) = write_anew(&path, &state).map_err(storage)?;
        let compact_at = COMPACT_BYTES_MIN.max(size * COMPACT_GROWTH);
        Ok(Metadata { state, path, file, size, compact_at, tail: None, syncer })
    }

    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// The groups that committed since the last call.
    pub(crate) fn take_committed(&mut self) -> BTreeSet<String> {
        std::mem::take(&mut self.state.committed)
    }

    /// Writes the entry, then changes the state. After an error nothing has changed.
    pub(crate) fn append(&mut self, entry: Entry) -> io::Result<()> {
        let line = encode(&entry)?;
        if let Err(error) = self.file.write_all_at(&line, self.size) {
            let _ = self.file.set_len(self.size);
            return Err(error);
        }
        self.size += line.len() as u64;
        self.syncer.mark(&self.file);
        self.state.apply(entry);
        match &mut self.tail {
            Some(tail) => tail.extend(line),
            None if self.size > self.compact_at * OVERDUE => self.compact(),
            None => {}
        }
        Ok(())
    }

    /// A failure only means that the log stays as long as it is.
    fn compact(&mut self) {
        match write_anew(&self.path, &self.state) {
            Ok((file, size)) => self.replace(file, size),
            Err(error) => self.not_compacted(&error),
        }
    }

    fn replace(&mut self, file: Arc<File>, size: u64) {
        tracing::debug!(before_bytes = self.size, after_bytes = size, "metadata log compacted");
        (self.file, self.size) = (file, size);
        self.compact_at = COMPACT_BYTES_MIN.max(self.size * COMPACT_GROWTH);
    }

    fn not_compacted(&mut self, error: &io::Error) {
        tracing::warn!(%error, "compact metadata log");
        self.compact_at = COMPACT_BYTES_MIN.max(self.size * COMPACT_GROWTH);
    }

    /// Begins to rewrite the log, if it has grown enough and nobody else does.
    pub(crate) fn begin_rewrite(&mut self) -> Option<Rewrite> {
        if self.tail.is_some() || self.size <= self.compact_at {
            return None;
        }
        match encode_all(&self.state) {
            Ok(bytes) => {
                self.tail = Some(Vec::new());
                Some(Rewrite { path: self.path.clone(), bytes, file: None, size: 0 })
            }
            Err(error) => {
                self.not_compacted(&error);
                None
            }
        }
    }

    /// Takes what was appended meanwhile, if that is still much.
    fn take_tail(&mut self) -> Option<Vec<u8>> {
        self.tail.as_mut().filter(|tail| tail.len() > TAIL_BYTES_MAX).map(std::mem::take)
    }

    /// Puts the rewritten log in place of the present one.
    fn end_rewrite(&mut self, rewrite: io::Result<Rewrite>) {
        let tail = self.tail.take().unwrap_or_default();
        let replaced = rewrite.and_then(|mut rewrite| {
            rewrite.bytes = tail;
            rewrite.write(self.syncer.acknowledges())?;
            std::fs::rename(rewrite.temporary(), &rewrite.path)?;
            if let Some(folder) = self.path.parent() {
                let folder = Arc::new(File::open(folder)?);
                if self.syncer.acknowledges() {
                    sync::to_disk(&folder)?;
                } else {
                    self.syncer.mark(&folder);
                }
            }
            rewrite.file.map(|file| (file, rewrite.size)).ok_or_else(|| io::Error::other("nothing was written"))
        });
        match replaced {
            Ok((file, size)) => {
                // The last of it may not be on the disk yet.
                self.syncer.mark(&file);
                self.replace(file, size);
            }
            Err(error) => self.not_compacted(&error),
        }
    }
}

/// A log that is written anew from the state at one moment, while entries go on being appended to the present one.
///
/// Those are kept in memory as well, and follow behind it: most of them while nobody waits, the last ones while the
/// metadata is held, before the new log takes the name of the old.
pub(crate) struct Rewrite {
    path: PathBuf,
    /// What is to be written next.
    bytes: Vec<u8>,
    file: Option<Arc<File>>,
    size: u64,
}

impl Rewrite {
    /// Carries it out; `metadata` gives the lock of the metadata, which must not be held.
    pub(crate) fn run<'m>(self, metadata: impl Fn() -> MutexGuard<'m, Metadata>) {
        let written = self.write_most(&metadata);
        metadata().end_rewrite(written);
    }

    fn write_most<'m>(mut self, metadata: &impl Fn() -> MutexGuard<'m, Metadata>) -> io::Result<Rewrite> {
        self.write(true)?;
        for _ in 0..TAIL_ROUNDS_MAX {
            let Some(tail) = metadata().take_tail() else { break };
            self.bytes = tail;
            self.write(true)?;
        }
        Ok(self)
    }

    fn write(&mut self, to_disk: bool) -> io::Result<()> {
        let file = match self.file.take() {
            Some(file) => file,
            None => {
                let options = File::options().create(true).truncate(true).read(true).write(true).clone();
                Arc::new(options.open(self.temporary())?)
            }
        };
        file.write_all_at(&self.bytes, self.size)?;
        self.size += self.bytes.len() as u64;
        self.bytes = Vec::new();
        if to_disk {
            sync::to_disk(&file)?;
        }
        self.file = Some(file);
        Ok(())
    }

    fn temporary(&self) -> PathBuf {
        self.path.with_extension("new")
    }
}

impl State {
    fn apply(&mut self, entry: Entry) {
        match entry {
            Entry::Cluster { id } => self.cluster_id = id,
            Entry::Topic { name, topic } => {
                self.next_topic_number = self.next_topic_number.max(topic.number + 1);
                self.topics.insert(name, topic);
            }
            Entry::TopicDeleted { name } => {
                self.topics.remove(&name);
                for offsets in self.offsets.values_mut() {
                    offsets.retain(|(topic, _), _| *topic != name);
                }
                self.offsets.retain(|_, offsets| !offsets.is_empty());
            }
            Entry::LogStart { topic, partition, offset } => {
                if let Some(topic) = self.topics.get_mut(&topic) {
                    topic.starts.insert(partition, offset);
                }
            }
            Entry::Offsets(offsets) => self.commit(offsets),
            Entry::GroupDeleted { group } => {
                self.offsets.remove(&group);
            }
            Entry::OffsetsDeleted { group, partitions } => {
                if let Some(offsets) = self.offsets.get_mut(&group) {
                    offsets.retain(|at, _| !partitions.contains(at));
                    if offsets.is_empty() {
                        self.offsets.remove(&group);
                    }
                }
            }
            Entry::Transaction { id, transaction } => self.transaction(id, transaction),
            Entry::TransactionEnded { id, transaction, offsets } => {
                self.commit(offsets);
                self.transaction(id, transaction);
            }
            Entry::TransactionForgotten { id } => {
                self.transactions.remove(&id);
            }
            Entry::NextProducerId(next) => self.next_producer_id = self.next_producer_id.max(next),
        }
    }

    fn commit(&mut self, offsets: Vec<GroupOffset>) {
        for GroupOffset { group, topic, partition, committed } in offsets {
            self.committed.insert(group.clone());
            self.offsets.entry(group).or_default().insert((topic, partition), committed);
        }
    }

    fn transaction(&mut self, id: String, transaction: Transaction) {
        self.next_producer_id = self.next_producer_id.max(transaction.producer_id + 1);
        self.transactions.insert(id, transaction);
    }

    /// Committed offsets of all groups together.
    pub(crate) fn offsets_count(&self) -> usize {
        self.offsets.values().map(BTreeMap::len).sum()
    }

    fn entries(&self) -> impl Iterator<Item = Entry> {
        let first = [Entry::Cluster { id: self.cluster_id.clone() }, Entry::NextProducerId(self.next_producer_id)];
        let topics = self.topics.iter();
        let topics = topics.map(|(name, topic)| Entry::Topic { name: name.clone(), topic: topic.clone() });
        let offset = |group: &String, ((topic, partition), committed): (&(String, i32), &Committed)| GroupOffset {
            group: group.clone(),
            topic: topic.clone(),
            partition: *partition,
            committed: committed.clone(),
        };
        let groups = self.offsets.iter();
        let groups =
            groups.map(move |(group, offsets)| Entry::Offsets(offsets.iter().map(|o| offset(group, o)).collect()));
        let transactions = self.transactions.iter();
        let transactions = transactions.map(|(id, t)| Entry::Transaction { id: id.clone(), transaction: t.clone() });
        first.into_iter().chain(topics).chain(groups).chain(transactions)
    }
}

fn encode(entry: &Entry) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(entry)?;
    let checksum = crc32c::crc32c(&line);
    line.extend(format!(" {checksum:08x}\n").bytes());
    Ok(line)
}

fn decode(line: &[u8]) -> Option<Entry> {
    let (json, checksum) = line.split_at_checked(line.len().checked_sub(9)?)?;
    if checksum != format!(" {:08x}", crc32c::crc32c(json)).as_bytes() {
        return None;
    }
    serde_json::from_slice(json).ok()
}

/// The state after all whole entries; an error is the number of a damaged line with whole ones behind it.
fn replay(bytes: &[u8]) -> Result<State, usize> {
    let mut state = State::default();
    let mut damaged = None;
    for (i, line) in bytes.split(|byte| *byte == b'\n').enumerate().filter(|(_, line)| !line.is_empty()) {
        match (decode(line), damaged) {
            (Some(entry), None) => state.apply(entry),
            (Some(_), Some(line)) => return Err(line),
            (None, _) => damaged = damaged.or(Some(i + 1)),
        }
    }
    if let Some(line) = damaged {
        tracing::warn!(line, "cut off a torn end of the metadata log");
    }
    Ok(state)
}

fn encode_all(state: &State) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for entry in state.entries() {
        bytes.extend(encode(&entry)?);
    }
    Ok(bytes)
}

fn write_anew(path: &Path, state: &State) -> io::Result<(Arc<File>, u64)> {
    let bytes = encode_all(state)?;
    replace_file(path, &bytes)?;
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path)?;
    Ok((Arc::new(file), bytes.len() as u64))
}

/// Puts a file with these bytes in place of another, at once and synced.
pub(crate) fn replace_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::io::Write as _;
    let temporary = path.with_extension("new");
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    sync::to_disk(&file)?;
    std::fs::rename(&temporary, path)?;
    match path.parent() {
        Some(folder) => sync::to_disk(&File::open(folder)?),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use super::*;
    use crate::Fsync;

    fn syncer() -> Arc<Syncer> {
        let policy = Fsync::Interval { every: std::time::Duration::from_millis(10) };
        let (syncer, thread) = Syncer::start(policy, |_| ()).unwrap();
        syncer.close();
        thread.join().unwrap();
        syncer
    }

    fn offset(group: &str, offset: i64) -> GroupOffset {
        let committed = Committed { offset, leader_epoch: 0, metadata: None };
        GroupOffset { group: group.to_owned(), topic: "t".to_owned(), partition: 0, committed }
    }

    #[test]
    fn state_survives_reopening_torn_ends_and_compaction() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metadata.log");
        let mut metadata = Metadata::open(path.clone(), syncer(), "cluster", 0).unwrap();
        metadata.compact_at = 2_000;
        let topic = Topic { partitions: 2, ..Topic::default() };
        metadata.append(Entry::Topic { name: "t".to_owned(), topic }).unwrap();
        for i in 0..200 {
            metadata.append(Entry::Offsets(vec![offset("g", i)])).unwrap();
            metadata.compact_at = 2_000;
        }
        assert!(metadata.size <= 2_000 * OVERDUE + 200, "it was compacted while running: {}", metadata.size);
        drop(metadata);

        let mut torn = std::fs::read(&path).unwrap();
        torn.extend(b"{\"Offsets\":[{\"gro");
        std::fs::write(&path, &torn).unwrap();
        let metadata = Metadata::open(path.clone(), syncer(), "another", 0).unwrap();
        let state = metadata.state();
        assert_eq!(state.cluster_id, "cluster");
        assert_eq!(state.offsets["g"][&("t".to_owned(), 0)].offset, 199);
        assert_eq!((state.topics["t"].partitions, state.next_topic_number), (2, 1));
    }

    #[test]
    fn what_is_appended_while_the_log_is_rewritten_is_in_it() {
        for (policy, after) in [(Fsync::Acknowledge, 3), (Fsync::Interval { every: Duration::from_secs(60) }, 3_000)] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("metadata.log");
            let (syncer, thread) = Syncer::start(policy, |_| ()).unwrap();
            let metadata = Mutex::new(Metadata::open(path.clone(), syncer.clone(), "cluster", 0).unwrap());
            let append = |range: std::ops::Range<i64>| {
                for i in range {
                    metadata.lock().unwrap().append(Entry::Offsets(vec![offset("g", i)])).unwrap();
                }
            };
            append(0..100);
            metadata.lock().unwrap().compact_at = 1_000;
            let before = metadata.lock().unwrap().size;
            let rewrite = metadata.lock().unwrap().begin_rewrite().unwrap();
            assert!(metadata.lock().unwrap().begin_rewrite().is_none(), "one at a time");
            append(100..100 + after);
            rewrite.run(|| metadata.lock().unwrap());
            let size = metadata.lock().unwrap().size;
            assert!(size < before + after as u64 * 200, "the old entries are gone");
            append(100 + after..101 + after);
            drop(metadata);
            let opened = Metadata::open(path.clone(), syncer.clone(), "another", 0).unwrap();
            assert_eq!(opened.state().offsets["g"][&("t".to_owned(), 0)].offset, 100 + after);
            assert_eq!(opened.state().cluster_id, "cluster");
            syncer.close();
            thread.join().unwrap();
        }
    }

    #[test]
    fn damage_in_front_of_whole_entries_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metadata.log");
        let mut metadata = Metadata::open(path.clone(), syncer(), "cluster", 0).unwrap();
        for i in 0..3 {
            metadata.append(Entry::Offsets(vec![offset("g", i)])).unwrap();
        }
        drop(metadata);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[5] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let error = Metadata::open(path, syncer(), "cluster", 0).err().unwrap();
        assert!(matches!(error, MetadataError::Damaged { line: 1, .. }), "{error}");
    }

    #[test]
    fn a_transaction_from_the_future_began_now() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metadata.log");
        let mut metadata = Metadata::open(path.clone(), syncer(), "cluster", 0).unwrap();
        for (id, started_ms) in [("past", 40), ("future", 9_000)] {
            let transaction = Transaction { started_ms, used_ms: started_ms, ..Transaction::default() };
            metadata.append(Entry::Transaction { id: id.to_owned(), transaction }).unwrap();
        }
        drop(metadata);
        let metadata = Metadata::open(path, syncer(), "cluster", 50).unwrap();
        let started = |id: &str| metadata.state().transactions[id].started_ms;
        assert_eq!((started("past"), started("future")), (40, 50));
    }

    #[test]
    fn deleting_a_topic_takes_its_offsets_along() {
        let mut state = State::default();
        state.apply(Entry::Topic { name: "t".to_owned(), topic: Topic::default() });
        state.apply(Entry::Offsets(vec![offset("g", 3)]));
        state.apply(Entry::TopicDeleted { name: "t".to_owned() });
        assert!(state.offsets.is_empty() && state.topics.is_empty());
    }
}
