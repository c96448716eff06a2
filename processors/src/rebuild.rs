//! Folds the contexts of a chain again from the turns that it wrote, after the durable store lost them.
//!
//! The turns carry their parts and positions, so no model runs; exactly what was committed is folded, because a
//! transaction wrote turns and offsets together. It needs the conversation's first turn: where retention has removed
//! turns, it refuses rather than fold a part of them. A conversation that has moved to another partition, because there are
//! more of them than there were, is folded in the order of its positions.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use schemas::{Stamp, Turn};
use store::context::{Batch, ContextError, Contexts};
use store::log::{Admin, From, Kafka, LogError, Tail};
use store::registry::Registry;

use crate::chain::{Chain, Conversation};
use crate::plan::Plan;
use crate::stage::Failure;

/// Slices that are written at once.
const CONVERSATIONS_MAX: usize = 500;

/// How often the end of the topic is looked for while no message comes.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Turns that wait at most until those before them, which stand on another partition, are read.
const WAITING_MAX: usize = 100_000;

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
    registry: &Registry,
) -> Result<Rebuilt, RebuildError> {
    let admin = Admin::connect(kafka)?;
    let output = plan.output.as_str();
    let committed = admin.committed(group, &plan.input).await?;
    if committed.is_empty() {
        return Err(RebuildError::Nothing(group.to_owned()));
    }
    let ends: BTreeMap<i32, i64> =
        admin.offsets(output).await?.into_iter().map(|(partition, (_, high))| (partition, high)).collect();
    let mut open: HashMap<String, Open> = HashMap::new();
    let (mut rebuilt, mut waiting) = (Rebuilt::default(), 0);
    let mut tail = Tail::open(kafka, output, From::Beginning).await?;
    while tail.positions().iter().any(|(partition, next)| ends.get(partition).is_some_and(|end| next < end)) {
        // The marks that transactions leave are passed without a message: look at the positions again.
        let Ok(message) = tokio::time::timeout(LOOK_AGAIN, tail.next()).await else { continue };
        let message = message?;
        let (partition, offset) = (message.partition, message.offset);
        let unreadable =
            |problem: String| RebuildError::Unreadable { topic: output.to_owned(), partition, offset, problem };
        let value = message.value.as_deref().unwrap_or_default();
        registry.know_now::<Turn>([value]).await.map_err(|e| unreadable(e.to_string()))?;
        let turn: Turn = registry.codec().decode(value).map_err(|e| unreadable(e.to_string()))?;
        let stamp = turn.stamp.ok_or_else(|| unreadable("a turn without a stamp".to_owned()))?;
        let name = turn.conversation.clone();
        let read = Read { partition, offset, stamp, turn };
        let conversation = match open.entry(name) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                let fresh = chain.open(entry.key(), HashMap::new()).map_err(|source| read.fault(output, source))?;
                entry.insert(Open { conversation: fresh, partition, next: 1, waiting: BTreeMap::new() })
            }
        };
        let position = read.turn.position.unwrap_or(conversation.next);
        if position > conversation.next && waiting < WAITING_MAX {
            waiting += 1;
            conversation.waiting.insert(position, read);
            continue;
        }
        rebuilt.turns += conversation.refold(chain, output, read)?;
        while let Some(read) = conversation.waiting.remove(&conversation.next) {
            waiting -= 1;
            rebuilt.turns += conversation.refold(chain, output, read)?;
        }
    }
    let mut by_partition: BTreeMap<i32, Vec<Conversation>> = BTreeMap::new();
    let partitions = admin.offsets(&plan.input).await?.len();
    for mut open in open.into_values() {
        // What was waited for has expired: the first that waits says so.
        if let Some((_, read)) = open.waiting.pop_first() {
            open.refold(chain, output, read)?;
        }
        by_partition.entry(open.partition).or_default().push(open.conversation);
    }
    for (&partition, &watermark) in &committed {
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
    // There are more partitions than there were: conversations that move to the new ones continue from what is here.
    if chain.is_first() && committed.len() < partitions {
        contexts.note_drained(&committed).await?;
    }
    Ok(rebuilt)
}

/// A conversation that is being folded.
struct Open {
    conversation: Conversation,
    /// That of the turn folded last.
    partition: i32,
    /// The position of the turn to fold next.
    next: i64,
    /// Turns behind it, by position.
    waiting: BTreeMap<i64, Read>,
}

/// An enriched turn as it was read.
struct Read {
    partition: i32,
    offset: i64,
    stamp: Stamp,
    turn: Turn,
}

impl Read {
    fn fault(&self, topic: &str, source: Failure) -> RebuildError {
        RebuildError::Fold { topic: topic.to_owned(), partition: self.partition, offset: self.offset, source }
    }
}

impl Open {
    /// Folds one turn.
    fn refold(&mut self, chain: &Chain, topic: &str, mut read: Read) -> Result<u64, RebuildError> {
        chain.refold(&mut self.conversation, &mut read.turn, read.stamp).map_err(|source| read.fault(topic, source))?;
        self.partition = read.partition;
        self.next += 1;
        Ok(1)
    }
}
