//! Folds the contexts of a chain again from the turns that it wrote, after the durable store lost them.
//!
//! The turns carry their parts and positions, so no model runs; exactly what was committed is folded, because a
//! transaction wrote turns and offsets together. It needs the conversation's first turn: where retention has removed
//! turns, it refuses rather than fold a part of them.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use schemas::{Codec, Turn};
use store::context::{Batch, ContextError, Contexts};
use store::log::{Admin, From, Kafka, LogError, Tail};

use crate::chain::{Chain, Conversation};
use crate::plan::Plan;
use crate::stage::Failure;

/// Slices that are written at once.
const CONVERSATIONS_MAX: usize = 500;

/// How often the end of the topic is looked for while no message comes.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Why contexts could not be rebuilt.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// The log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The contexts.
    #[error(transparent)]
    Context(#[from] ContextError),
    /// A turn does not follow the one before it: the beginning of its conversation has expired from the topic.
    #[error(
        "{topic} partition {partition} offset {offset}: {source}; if retention has removed the conversation's first \
         turns, its context cannot be rebuilt from the log"
    )]
    Fold {
        /// The topic.
        topic: String,
        /// The partition.
        partition: i32,
        /// The offset.
        offset: i64,
        /// What did not fit.
        source: Failure,
    },
    /// A record of our own cannot be read.
    #[error("{topic} partition {partition} offset {offset}: {problem}")]
    Unreadable {
        /// The topic.
        topic: String,
        /// The partition.
        partition: i32,
        /// The offset.
        offset: i64,
        /// What is wrong.
        problem: String,
    },
    /// The group never committed.
    #[error(
        "group {0} has committed nothing: there is nothing to rebuild, start the processors; if they refuse because the \
         topic was recreated, forget what is of the old one with `undertone contexts rebuild --forget`"
    )]
    Nothing(String),
    /// The group has committed, so that what it knows can be rebuilt.
    #[error("group {0} has committed offsets here: its contexts are not forgotten, run `undertone contexts rebuild`")]
    Something(String),
}

/// What was rebuilt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rebuilt {
    /// Turns folded.
    pub turns: u64,
    /// Conversations written.
    pub conversations: u64,
    /// Partitions whose watermark was set.
    pub partitions: u64,
}

/// Forgets the contexts of `chain`, which are of another log: the group has committed nothing on this one, and begins with
/// its earliest turn. The processors of the chain must be stopped. Returns the number of partitions.
///
/// # Errors
/// See [`RebuildError`]; a group that has committed is refused.
pub async fn forget(
    chain: &Chain,
    group: &str,
    plan: &Plan,
    kafka: &Kafka,
    contexts: &Contexts,
) -> Result<u64, RebuildError> {
    let admin = Admin::connect(kafka)?;
    if !admin.committed(group, &plan.input).await?.is_empty() {
        return Err(RebuildError::Something(group.to_owned()));
    }
    let known = contexts.watermarks().await?;
    let mut forgotten = 0;
    for known in known.iter().filter(|known| known.chain == chain.name()) {
        let epoch = contexts.assign(chain.name(), known.partition).await?.epoch;
        contexts.clear_partition(chain.name(), known.partition, epoch, &chain.slices()).await?;
        forgotten += 1;
    }
    Ok(forgotten)
}

/// Folds the contexts of `chain` again from the topic that it writes, up to what its `group` committed. The processors of the chain must be
/// stopped; should one still run, its epoch is now too old to write.
///
/// # Errors
/// See [`RebuildError`]. If it ends in the middle, the processors refuse to start until it has run again.
pub async fn rebuild(
    chain: &Chain,
    group: &str,
    plan: &Plan,
    kafka: &Kafka,
    contexts: &Contexts,
    codec: &Codec,
) -> Result<Rebuilt, RebuildError> {
    let admin = Admin::connect(kafka)?;
    let output = plan.output.as_str();
    let committed = admin.committed(group, &plan.input).await?;
    if committed.is_empty() {
        return Err(RebuildError::Nothing(group.to_owned()));
    }
    let ends: BTreeMap<i32, i64> =
        admin.offsets(output).await?.into_iter().map(|(partition, (_, high))| (partition, high)).collect();
    let mut open: HashMap<(i32, String), Conversation> = HashMap::new();
    let mut rebuilt = Rebuilt::default();
    let mut tail = Tail::open(kafka, output, From::Beginning).await?;
    while tail.positions().iter().any(|(partition, next)| ends.get(partition).is_some_and(|end| next < end)) {
        // The marks that transactions leave are passed without a message: look at the positions again.
        let Ok(message) = tokio::time::timeout(LOOK_AGAIN, tail.next()).await else { continue };
        let message = message?;
        let (partition, offset) = (message.partition, message.offset);
        let unreadable =
            |problem: String| RebuildError::Unreadable { topic: output.to_owned(), partition, offset, problem };
        let value = message.value.as_deref().unwrap_or_default();
        let mut turn: Turn = codec.decode(value).map_err(|e| unreadable(e.to_string()))?;
        let stamp = turn.stamp.ok_or_else(|| unreadable("a turn without a stamp".to_owned()))?;
        let fold = |source| RebuildError::Fold { topic: output.to_owned(), partition, offset, source };
        let conversation = match open.entry((partition, turn.conversation.clone())) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                let fresh = chain.open(&turn.conversation, HashMap::new()).map_err(fold)?;
                entry.insert(fresh)
            }
        };
        chain.refold(conversation, &mut turn, stamp).map_err(fold)?;
        rebuilt.turns += 1;
    }
    let mut by_partition: BTreeMap<i32, Vec<Conversation>> = BTreeMap::new();
    for ((partition, _), conversation) in open {
        by_partition.entry(partition).or_default().push(conversation);
    }
    for (partition, watermark) in committed {
        let epoch = contexts.assign(chain.name(), partition).await?.epoch;
        contexts.clear_partition(chain.name(), partition, epoch, &chain.slices()).await?;
        let mut conversations = by_partition.remove(&partition).unwrap_or_default();
        rebuilt.conversations += conversations.len() as u64;
        rebuilt.partitions += 1;
        let batch = |watermark, writes| Batch { chain: chain.name().to_owned(), partition, epoch, watermark, writes };
        while !conversations.is_empty() {
            let some = conversations.split_off(conversations.len().saturating_sub(CONVERSATIONS_MAX));
            let mut writes = Vec::new();
            for conversation in some {
                writes.extend(chain.close(conversation).map_err(|source| RebuildError::Fold {
                    topic: output.to_owned(),
                    partition,
                    offset: watermark,
                    source,
                })?);
            }
            contexts.save(batch(0, writes)).await?;
        }
        // The watermark goes last: without it the processors refuse to start.
        contexts.save(batch(watermark, Vec::new())).await?;
    }
    Ok(rebuilt)
}
