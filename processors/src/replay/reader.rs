//! What a replay takes of the messages that it reads. Beside `turns.received` it reads the enriched turns, a partition each
//! with a tail of its own, so that both go forward together; neither is read further ahead than the other needs.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use schemas::topic::TURNS_ENRICHED;
use schemas::{Stamp, Turn};
use store::erasures::Erasures;
use store::log::transact::Standing;
use store::log::{From, Kafka, LogError, Message, Tail};
use store::registry::Registry;

use super::Replay;
use crate::batch::{Admitted, admit};
use crate::runner::RunError;

/// Longest silence of the brokers before the replay ends; the same command goes on with it.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// Time between two looks at whether only the marks of transactions are left to read.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Time between two tries while the brokers are away.
const TRY_EVERY: Duration = Duration::from_millis(200);

/// Says of each received message what becomes of it.
pub(crate) struct Reader {
    replay: Replay,
    kafka: Kafka,
    cursors: BTreeMap<i32, Cursor>,
    /// What had been forgotten when the first turn was read.
    erasures: Option<Erasures>,
}

impl Reader {
    pub(crate) fn new(replay: Replay, kafka: Kafka) -> Reader {
        Reader { replay, kafka, cursors: BTreeMap::new(), erasures: None }
    }

    /// Lets a group that has committed nothing begin where the replay does.
    pub(crate) fn begin(&self, standing: &mut BTreeMap<i32, Standing>) {
        for (partition, start) in &self.replay.received.starts {
            if let Some(standing) = standing.get_mut(partition) {
                standing.low = (*start).clamp(standing.low, standing.high);
            }
        }
    }

    /// The turn that a message holds, in the place that the live processors gave it, with the parts of the stages that are
    /// not in `stages`; `None` if it is not of the replay, or was dropped.
    pub(crate) async fn admit(
        &mut self,
        registry: &Registry,
        stages: impl Iterator<Item = &'static str>,
        message: &Message,
    ) -> Result<Option<Admitted>, RunError> {
        let stamp = Stamp { partition: message.partition, offset: message.offset };
        let end = self.replay.received.ends.get(&stamp.partition);
        if !self.replay.range.has_place(stamp) || end.is_none_or(|end| *end <= stamp.offset) {
            return Ok(None);
        }
        let codec = registry.codec();
        let Some(enriched) = self.enriched(registry, stamp).await? else { return Ok(None) };
        let (turn, place) = match admit(codec, true, message) {
            Ok(admitted) => admitted,
            Err(refused) => return Ok(Some(Err(refused))),
        };
        if turn.id != enriched.id {
            let Stamp { partition, offset } = stamp;
            let detail = format!(
                "another turn was enriched at this place, {}: the topic was recreated; replay only what was received \
                 since (--from TIME)",
                enriched.id
            );
            return Err(RunError::Between { topic: message.topic.to_string(), partition, offset, detail });
        }
        if self.erasures.is_none() {
            self.erasures = Some(Erasures::read(&self.kafka, codec).await?);
        }
        let forgotten = self.erasures.as_ref().is_some_and(|erasures| erasures.covers(&turn));
        if forgotten || !self.replay.range.has_time(turn.received_at) {
            return Ok(None);
        }
        let mut turn = Turn {
            position: enriched.position,
            stamp: enriched.stamp,
            tier: self.replay.tier.or(enriched.tier),
            skipped: enriched.skipped,
            encoding: enriched.encoding,
            emotion: enriched.emotion,
            dialogue: enriched.dialogue,
            ..turn
        };
        stages.for_each(|stage| turn.clear(stage));
        Ok(Some(Ok((turn, place))))
    }

    /// The enriched turn of a received offset.
    async fn enriched(&mut self, registry: &Registry, stamp: Stamp) -> Result<Option<Turn>, RunError> {
        let partition = stamp.partition;
        // After an abort messages come again, and the turns before them were passed.
        if self.cursors.get(&partition).is_none_or(|cursor| cursor.asked >= stamp.offset) {
            let Some(cursor) = self.open(partition).await? else { return Ok(None) };
            self.cursors.insert(partition, cursor);
        }
        let cursor = self.cursors.get_mut(&partition).expect("opened above");
        cursor.asked = stamp.offset;
        loop {
            if cursor.next.is_none() {
                cursor.next = cursor.read(registry).await?;
            }
            let Some(offset) = cursor.next.as_ref().map(|(offset, _)| *offset) else { return Ok(None) };
            match offset.cmp(&stamp.offset) {
                Ordering::Less => cursor.next = None,
                Ordering::Equal => return Ok(cursor.next.take().map(|(_, turn)| turn)),
                Ordering::Greater => return Ok(None),
            }
        }
    }

    /// A cursor at the beginning of a partition; `None` if there are no enriched turns.
    async fn open(&self, partition: i32) -> Result<Option<Cursor>, RunError> {
        let extent = &self.replay.enriched;
        let (Some(start), Some(end)) = (extent.starts.get(&partition), extent.ends.get(&partition)) else {
            return Ok(None);
        };
        let tail = Tail::open(&self.kafka, TURNS_ENRICHED, From::Partition(partition, *start)).await?;
        Ok(Some(Cursor { tail, partition, end: *end, asked: i64::MIN, next: None }))
    }
}

/// A place in a partition of the enriched turns.
struct Cursor {
    tail: Tail,
    partition: i32,
    /// The first offset that is none of the replay.
    end: i64,
    /// The last received offset that was asked for.
    asked: i64,
    /// The turn that was read last and is not asked for yet, with its received offset.
    next: Option<(i64, Turn)>,
}

impl Cursor {
    /// The next enriched turn; `None` at the end.
    async fn read(&mut self, registry: &Registry) -> Result<Option<(i64, Turn)>, RunError> {
        let begun = Instant::now();
        while self.tail.positions().get(&self.partition).is_some_and(|next| *next < self.end) {
            // The marks that transactions leave are passed without a message: look at the positions again.
            let message = match tokio::time::timeout(LOOK_EVERY, self.tail.next()).await {
                Ok(Ok(message)) => message,
                Ok(Err(error)) if !error.is_transient() || begun.elapsed() > SILENCE_MAX => return Err(error.into()),
                Ok(Err(_)) => {
                    tokio::time::sleep(TRY_EVERY).await;
                    continue;
                }
                Err(_) if begun.elapsed() > SILENCE_MAX => {
                    let silent =
                        format!("no record of {TURNS_ENRICHED} came within {SILENCE_MAX:?}: see to the brokers");
                    return Err(LogError::Transient(silent).into());
                }
                Err(_) => continue,
            };
            if message.offset >= self.end {
                return Ok(None);
            }
            registry.know_now::<Turn>(message.value.as_deref()).await?;
            let turn = registry.codec().decode::<Turn>(message.value.as_deref().unwrap_or_default());
            let stamped = turn.map_err(|error| error.to_string()).and_then(|turn| match turn.stamp {
                Some(stamp) => Ok((stamp.offset, turn)),
                None => Err("a turn without a stamp".to_owned()),
            });
            return stamped.map(Some).map_err(|detail| RunError::Between {
                topic: message.topic.to_string(),
                partition: message.partition,
                offset: message.offset,
                detail,
            });
        }
        Ok(None)
    }
}
