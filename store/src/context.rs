//! Contexts: what is known of each conversation so far, one slice a stage, each in two versions.
//!
//! Promises: a batch of slices and the watermark of its partition take effect together or not at all; a writer with an
//! older epoch has no effect; a slice is read as it was before a given offset, or the caller is told that this is no
//! longer possible; it never starts empty by accident. What survives a crash is [`crate::Durability`]; contexts must
//! not promise less than the log does, or the watermark falls behind the committed offset and the processors stop.
//!
//! Left out: what is in a slice (the stages know), when a conversation ends, any cache.

pub mod sqlite;

use schemas::Stamp;

use crate::DatabaseError;

pub use sqlite::Contexts;

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
    /// The turn that was alone in work when its process ended, if there is one.
    pub attempt: Option<Attempt>,
}

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
    /// The offset at which it starts.
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
         {expected}: grow partitions only when all are drained, then run `undertone contexts rebuild`"
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

/// The newest version whose stamp is below `below`; `Ok(None)` for a conversation that was new there.
///
/// # Errors
/// [`ContextError::NoVersionBelow`] and [`ContextError::ForeignPartition`].
pub(crate) fn newest_below(
    conversation: &str,
    partition: i32,
    below: i64,
    record: Record,
) -> Result<Option<Version>, ContextError> {
    let Record { stage, current, previous } = record;
    let versions = [Some(&current), previous.as_ref()];
    if let Some(foreign) = versions.into_iter().flatten().find(|version| version.stamp.partition != partition) {
        return Err(ContextError::ForeignPartition {
            conversation: conversation.to_owned(),
            stage,
            found: foreign.stamp.partition,
            expected: partition,
        });
    }
    if current.stamp.offset < below {
        return Ok(Some(current));
    }
    match previous {
        None => Ok(None),
        Some(previous) if previous.stamp.offset < below => Ok(Some(previous)),
        Some(previous) => Err(ContextError::NoVersionBelow {
            conversation: conversation.to_owned(),
            stage,
            below,
            current: current.stamp.offset,
            previous: Some(previous.stamp.offset),
        }),
    }
}
