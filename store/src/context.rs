//! Contexts: what is known of each conversation so far, one slice a stage, each in two versions.
//!
//! Promises: the watermark of a batch takes effect after its slices, on a file together with them; a writer with an
//! older epoch has no effect; a slice is read as it was before a given offset, or the caller is told that this is no
//! longer possible; it never starts empty by accident. What survives a crash is [`crate::Durability`]; contexts must
//! not promise less than the log does, or the watermark falls behind the committed offset and the processors stop.
//!
//! Left out: what is in a slice (the stages know), when a conversation ends.

mod cache;
mod scylla;
mod sqlite;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use opentelemetry::metrics::Meter;
use schemas::Stamp;

use crate::cql::Keyspace;
use crate::redis::Redis;
use crate::{DatabaseError, Durability, Pauses};

/// Most conversations that one call of [`Contexts::conversations`] returns.
pub const CONVERSATIONS_MAX: usize = 1000;

/// How long a call is tried again: for room on a full disk, another process that holds the file, a server that is away. A
/// batch's transaction is open meanwhile, and the brokers abort it after ten seconds; the last try may take five.
const TRY_FOR: Duration = Duration::from_secs(4);
/// First and longest pause between two tries; the doubling has jitter.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));

/// Number of an assignment of a partition to a process. Larger is later; a writer with a smaller one has no effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

/// A slice after a turn was folded into it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// The last turn that was folded in.
    pub stamp: Stamp,
    /// The slice in versioned Avro.
    pub bytes: Vec<u8>,
}

/// What a new owner of a partition learns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assigned {
    /// Goes with every write of this assignment.
    pub epoch: Epoch,
    /// The offset that the last saved batch meant to commit; `None` before the first.
    pub watermark: Option<i64>,
    /// Names the save that left the watermark; no two saves of a store have the same.
    pub saved: Option<Saved>,
    /// The turn that was alone in work when its process ended, if there is one.
    pub attempt: Option<Attempt>,
}

/// Name of a save: what a cache holds is known by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Saved(pub i64);

/// A turn that is tried alone, because the process died before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempt {
    /// Its offset.
    pub offset: i64,
    /// How often it has been tried, this time included.
    pub count: u32,
}

/// A slice to save.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// Whose slice.
    pub conversation: String,
    /// The stage that it belongs to.
    pub stage: String,
    /// The slice after the batch.
    pub current: Version,
    /// The slice that the batch started from; `None` says that the conversation was new.
    pub previous: Option<Version>,
}

/// The conversations from which a batch of one partition starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// The partition that the batch was read from.
    pub partition: i32,
    /// From [`Contexts::assign`].
    pub epoch: Epoch,
    /// The offset at which it starts: the one that was committed last.
    pub offset: i64,
    /// The stamp of its first turn; behind a cut of the chain it counts another topic than `offset`.
    pub below: i64,
    /// Its conversations.
    pub conversations: Vec<String>,
}

/// What one batch of a partition leaves behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Name of the chain that ran.
    pub chain: String,
    /// The partition that the batch was read from.
    pub partition: i32,
    /// From [`Contexts::assign`].
    pub epoch: Epoch,
    /// The offset that the batch is about to commit. May be lower than the one before, after an abort.
    pub watermark: i64,
    /// At most one for each conversation and stage.
    pub writes: Vec<Write>,
}

/// A slice as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The stage that it belongs to.
    pub stage: String,
    /// After the last saved batch.
    pub current: Version,
    /// Before it; `None` says that the conversation was new.
    pub previous: Option<Version>,
}

/// How far a chain has come on a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watermark {
    /// Name of the chain.
    pub chain: String,
    /// The partition.
    pub partition: i32,
    /// The newest epoch.
    pub epoch: Epoch,
    /// The offset that the last saved batch meant to commit.
    pub watermark: Option<i64>,
    /// The turn that is tried alone.
    pub attempt: Option<Attempt>,
}

/// Handle on contexts; clones share what is behind it.
#[derive(Debug, Clone)]
pub struct Contexts {
    backend: Backend,
    cache: Option<Arc<cache::Cache>>,
}

#[derive(Debug, Clone)]
enum Backend {
    Sqlite(sqlite::Sqlite),
    Scylla(scylla::Scylla),
}

impl Contexts {
    /// Opens or creates the file, safe against kill -9 ([`Durability::Kill`]).
    ///
    /// # Errors
    /// The file cannot be opened, is something else, or a newer release wrote it.
    pub async fn open(path: &Path) -> Result<Contexts, ContextError> {
        Contexts::open_with(path, Durability::Kill).await
    }

    /// Opens or creates the file with a chosen durability. Where the log syncs before it acknowledges, this must be
    /// [`Durability::Power`].
    ///
    /// # Errors
    /// As [`Contexts::open`].
    pub async fn open_with(path: &Path, durability: Durability) -> Result<Contexts, ContextError> {
        Ok(Contexts { backend: Backend::Sqlite(sqlite::Sqlite::open_with(path, durability).await?), cache: None })
    }

    /// Contexts that end with the process.
    ///
    /// # Errors
    /// SQLite has no memory.
    pub async fn in_memory() -> Result<Contexts, ContextError> {
        Ok(Contexts { backend: Backend::Sqlite(sqlite::Sqlite::in_memory().await?), cache: None })
    }

    /// Opens the tables of a keyspace, and makes them where they are missing.
    ///
    /// # Errors
    /// A newer release changed the tables, or the server could not serve.
    pub async fn on_scylla(keyspace: Keyspace) -> Result<Contexts, ContextError> {
        Ok(Contexts { backend: Backend::Scylla(scylla::Scylla::open(keyspace).await?), cache: None })
    }

    /// The same contexts behind a cache: they stay the authority, and what the cache holds is read only where it is known
    /// to be what they hold. Keys of the cache begin with `redis`'s prefix.
    pub fn cached(self, redis: Redis, meter: &Meter) -> Contexts {
        Contexts { cache: Some(Arc::new(cache::Cache::new(redis, meter))), ..self }
    }

    /// Makes the caller the owner of a partition: issues an epoch larger than all before it, durably. To be called
    /// before any context of the partition is read.
    ///
    /// # Errors
    /// The database could not serve.
    pub async fn assign(&self, chain: &str, partition: i32) -> Result<Assigned, ContextError> {
        let assigned = match &self.backend {
            Backend::Sqlite(contexts) => contexts.assign(chain, partition).await,
            Backend::Scylla(contexts) => contexts.assign(chain, partition).await,
        }?;
        if let Some(cache) = &self.cache {
            cache.assigned(chain, partition, &assigned);
        }
        Ok(assigned)
    }

    /// The slices from which a batch whose first stamp is `below` continues, by conversation and stage: the newest
    /// version whose stamp is below it. A conversation that is new there is absent.
    ///
    /// # Errors
    /// A slice exists without such a version, or was folded on another partition; the database could not serve.
    pub async fn load(
        &self,
        chain: &str,
        start: Start,
        stages: &[&str],
    ) -> Result<HashMap<(String, String), Version>, ContextError> {
        self.load_all(chain, vec![start], stages).await
    }

    /// As [`Contexts::load`], for several partitions at once. A conversation belongs to one of them.
    ///
    /// # Errors
    /// As [`Contexts::load`].
    pub async fn load_all(
        &self,
        chain: &str,
        starts: Vec<Start>,
        stages: &[&str],
    ) -> Result<HashMap<(String, String), Version>, ContextError> {
        let (mut found, starts) = match &self.cache {
            Some(cache) => cache.load_all(chain, starts, stages).await,
            None => (HashMap::new(), starts),
        };
        if starts.is_empty() {
            return Ok(found);
        }
        let mut again = Again::new();
        loop {
            let loaded = match &self.backend {
                Backend::Sqlite(contexts) => contexts.load_all(starts.clone(), stages).await,
                Backend::Scylla(contexts) => contexts.load_all(starts.clone(), stages).await,
            };
            match loaded {
                Err(error) if again.pause(&error).await => {}
                Err(error) => return Err(error),
                Ok(loaded) => {
                    found.extend(loaded);
                    return Ok(found);
                }
            }
        }
    }

    /// Saves the slices of a batch, then its watermark. A noted attempt stays until the owner clears it.
    ///
    /// # Errors
    /// [`ContextError::Fenced`] if the epoch is not the newest, and nothing is written; the database could not serve.
    pub async fn save(&self, batch: Batch) -> Result<(), ContextError> {
        self.save_all(vec![batch]).await
    }

    /// As [`Contexts::save`], for several partitions. On a file it is all of them or none; on a server that fails in between
    /// some slices are written, whose versions before are still there. Waits some seconds for room on a full disk, or for the
    /// server.
    ///
    /// # Errors
    /// As [`Contexts::save`].
    pub async fn save_all(&self, batches: Vec<Batch>) -> Result<(), ContextError> {
        let batches = Arc::<[Batch]>::from(batches);
        let Some(cache) = &self.cache else { return self.keep(&batches).await.map(|_| ()) };
        let folded_from = cache.before(&batches);
        let saved = self.keep(&batches).await?;
        cache.save_all(&batches, folded_from, &saved).await;
        Ok(())
    }

    /// Saves in the store itself. Returns the name of each batch's save.
    async fn keep(&self, batches: &Arc<[Batch]>) -> Result<Vec<Saved>, ContextError> {
        let mut again = Again::new();
        loop {
            let saved = match &self.backend {
                Backend::Sqlite(contexts) => contexts.try_save(Arc::clone(batches)).await,
                Backend::Scylla(contexts) => contexts.try_save(batches).await,
            };
            match saved {
                Err(error) if again.pause(&error).await => {}
                done => return done,
            }
        }
    }

    /// Asks whether the epoch of a partition is still the newest.
    ///
    /// # Errors
    /// [`ContextError::Fenced`] if it is not; the database could not serve.
    pub async fn confirm(&self, chain: &str, partition: i32, epoch: Epoch) -> Result<(), ContextError> {
        match &self.backend {
            Backend::Sqlite(contexts) => contexts.confirm(chain, partition, epoch).await,
            Backend::Scylla(contexts) => contexts.confirm(chain, partition, epoch).await,
        }
    }

    /// Notes beside the watermark that a turn is tried alone, or that it no longer is.
    ///
    /// # Errors
    /// As [`Contexts::save`].
    pub async fn note_attempt(
        &self,
        chain: &str,
        partition: i32,
        epoch: Epoch,
        attempt: Option<Attempt>,
    ) -> Result<(), ContextError> {
        match &self.backend {
            Backend::Sqlite(contexts) => contexts.note_attempt(chain, partition, epoch, attempt).await,
            Backend::Scylla(contexts) => contexts.note_attempt(chain, partition, epoch, attempt).await,
        }
    }

    /// As [`crate::history::History::settle`].
    ///
    /// # Errors
    /// The database could not serve.
    pub async fn settle(&self) -> Result<Option<bool>, ContextError> {
        match &self.backend {
            Backend::Sqlite(contexts) => Ok(Some(contexts.settle().await?)),
            Backend::Scylla(_) => Ok(None),
        }
    }

    /// All slices of a conversation, by stage.
    ///
    /// # Errors
    /// The database could not serve.
    pub async fn show(&self, conversation: &str) -> Result<Vec<Record>, ContextError> {
        match &self.backend {
            Backend::Sqlite(contexts) => contexts.show(conversation).await,
            Backend::Scylla(contexts) => contexts.show(conversation).await,
        }
    }

    /// Names of the conversations that have a context, each once, in an order of the store's own, after a given one; at
    /// most [`CONVERSATIONS_MAX`].
    ///
    /// # Errors
    /// The database could not serve.
    pub async fn conversations(&self, after: Option<&str>, limit: usize) -> Result<Vec<String>, ContextError> {
        match &self.backend {
            Backend::Sqlite(contexts) => contexts.conversations(after, limit).await,
            Backend::Scylla(contexts) => contexts.conversations(after, limit).await,
        }
    }

    /// How far each chain has come on each partition.
    ///
    /// # Errors
    /// The database could not serve.
    pub async fn watermarks(&self) -> Result<Vec<Watermark>, ContextError> {
        match &self.backend {
            Backend::Sqlite(contexts) => contexts.watermarks().await,
            Backend::Scylla(contexts) => contexts.watermarks().await,
        }
    }

    /// Notes, before the topics get more partitions, that every turn below these offsets of `turns.received` was folded: a
    /// conversation that moves to another partition continues from a slice that was folded below them.
    ///
    /// # Errors
    /// The database could not serve.
    pub async fn note_drained(&self, below: &BTreeMap<i32, i64>) -> Result<(), ContextError> {
        match &self.backend {
            Backend::Sqlite(contexts) => contexts.note_drained(below).await?,
            Backend::Scylla(contexts) => contexts.note_drained(below).await?,
        }
        // A conversation that moves away and comes back must not meet in a cache what it left there: what is cached is
        // known by the name of the last save.
        for Watermark { chain, partition, watermark, .. } in self.watermarks().await? {
            let Some(watermark) = watermark else { continue };
            let epoch = self.assign(&chain, partition).await?.epoch;
            self.save(Batch { chain, partition, epoch, watermark, writes: Vec::new() }).await?;
        }
        Ok(())
    }

    /// Forgets a chain's slices of a partition, its watermark and its attempt, before they are folded anew. The epoch
    /// stays, so that an older owner cannot come back.
    ///
    /// # Errors
    /// As [`Contexts::save`].
    pub async fn clear_partition(
        &self,
        chain: &str,
        partition: i32,
        epoch: Epoch,
        stages: &[&str],
    ) -> Result<(), ContextError> {
        if let Some(cache) = &self.cache {
            cache.forget(chain, partition);
        }
        match &self.backend {
            Backend::Sqlite(contexts) => contexts.clear_partition(chain, partition, epoch, stages).await,
            Backend::Scylla(contexts) => contexts.clear_partition(chain, partition, epoch, stages).await,
        }
    }

    /// Forgets all slices, watermarks and attempts, and takes every partition from its owner.
    ///
    /// # Errors
    /// The database could not serve.
    pub async fn clear(&self) -> Result<(), ContextError> {
        if let Some(cache) = &self.cache {
            cache.forget_all();
        }
        match &self.backend {
            Backend::Sqlite(contexts) => contexts.clear().await,
            Backend::Scylla(contexts) => contexts.clear().await,
        }
    }
}

/// Tries that are left, for [`TRY_FOR`].
struct Again {
    begun: Instant,
    pauses: Pauses,
}

impl Again {
    fn new() -> Again {
        Again { begun: Instant::now(), pauses: Pauses::between(PAUSES) }
    }

    /// Waits before the next try; `false` if there is none.
    async fn pause(&mut self, error: &ContextError) -> bool {
        let ContextError::Database(error) = error else { return false };
        if !error.is_transient() || self.begun.elapsed() >= TRY_FOR {
            return false;
        }
        tracing::warn!(%error, "the contexts' store does not serve, trying again");
        tokio::time::sleep(self.pauses.next_pause()).await;
        true
    }
}

/// Why contexts could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// Another process owns the partition now: drop what was in work and leave it.
    #[error("chain {chain} lost partition {partition}: its epoch {ours} is not the newest, {newest}")]
    Fenced {
        /// The chain.
        chain: String,
        /// The partition.
        partition: i32,
        /// The epoch of the writer.
        ours: u64,
        /// The newest that was issued; 0 if none was.
        newest: u64,
    },
    /// There is a slice, but none of its versions is from before the offset: the store and the log disagree.
    #[error(
        "no version of slice {stage} of conversation {conversation:?} is from before offset {below} (newest {current}, \
         previous {previous:?}): the contexts are ahead of the log; run `undertone contexts rebuild`"
    )]
    NoVersionBelow {
        /// The conversation.
        conversation: String,
        /// The stage.
        stage: String,
        /// The offset at which the batch starts.
        below: i64,
        /// Offset of the current version.
        current: i64,
        /// Offset of the previous version.
        previous: Option<i64>,
    },
    /// The slice was folded on another partition: the number of partitions changed, or it is another topic.
    #[error(
        "slice {stage} of conversation {conversation:?} was folded on partition {found}, the conversation is now on \
         {expected}: partitions were added while turns were under way, or an intake went on with the old number; stop \
         all roles, and run `undertone contexts rebuild` (next time add them with `undertone topics grow`)"
    )]
    ForeignPartition {
        /// The conversation.
        conversation: String,
        /// The stage.
        stage: String,
        /// Partition of the stamp.
        found: i32,
        /// Partition that asked.
        expected: i32,
    },
    /// The database could not serve.
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

impl From<rusqlite::Error> for ContextError {
    fn from(error: rusqlite::Error) -> ContextError {
        ContextError::Database(error.into())
    }
}

/// The newest version whose stamp is below `below`; `Ok(None)` for a conversation that was new there. A stamp of another
/// partition counts as below if that one had been drained beyond it before partitions were added; `drained` has the
/// offsets.
///
/// # Errors
/// [`ContextError::NoVersionBelow`] and [`ContextError::ForeignPartition`].
pub(crate) fn newest_below(
    conversation: &str,
    partition: i32,
    below: i64,
    record: Record,
    drained: &BTreeMap<i32, i64>,
) -> Result<Option<Version>, ContextError> {
    let Record { stage, current, previous } = record;
    let before = |version: &Version| match version.stamp.partition {
        own if own == partition => Some(version.stamp.offset < below),
        other => drained.get(&other).filter(|drained| version.stamp.offset < **drained).map(|_| true),
    };
    let versions = [Some(&current), previous.as_ref()];
    if let Some(foreign) = versions.into_iter().flatten().find(|version| before(version).is_none()) {
        return Err(ContextError::ForeignPartition {
            conversation: conversation.to_owned(),
            stage,
            found: foreign.stamp.partition,
            expected: partition,
        });
    }
    let is_before = |version: &Version| before(version) == Some(true);
    if is_before(&current) {
        return Ok(Some(current));
    }
    match previous {
        None => Ok(None),
        Some(previous) if is_before(&previous) => Ok(Some(previous)),
        Some(previous) => Err(ContextError::NoVersionBelow {
            conversation: conversation.to_owned(),
            stage,
            below,
            current: current.stamp.offset,
            previous: Some(previous.stamp.offset),
        }),
    }
}
