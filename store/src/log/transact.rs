//! The consume-transform-produce loop with Kafka transactions: one member of a consumer group that reads one topic, and
//! one transactional producer that writes what came of it together with the offsets that it read.
//!
//! Promises:
//! - Partitions flow only from the offsets that the caller names after [`Event::Assigned`]; nothing falls back to the
//!   earliest or the latest by itself.
//! - [`Transactor::commit`] writes records and offsets together or not at all. It uses the group metadata that was
//!   captured when the partitions were assigned, so a member that lost a partition and rejoined cannot commit for it.
//! - [`Transactor::confirm`] asks the group by the same metadata, without committing anything.
//! - An outcome in doubt is asked for again, [`Settings::commit_attempts_max`] times; then it is fatal.
//!
//! Blocking: it lives on a thread of its own; a transaction that has begun may be ended on another one meanwhile.

mod calls;
mod deliveries;
mod marking;
mod rebalances;
mod writer;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerGroupMetadata};
use rdkafka::error::KafkaError;
use rdkafka::producer::{Producer as _, ThreadedProducer};
use rdkafka::{Offset, TopicPartitionList};

pub use self::calls::Calls;
use self::deliveries::{Deliveries, Outstanding};
use self::marking::{Marking, RETRY_BACKOFF};
use self::rebalances::{Change, Rebalances};
use self::writer::Writer;
pub use self::writer::{Begun, Outgoing, Prepared};
use super::client::{base, consumer, owned, with_properties};
use super::error::classify;
use super::{Kafka, LogError, Message, Record};

/// Longest wait for one call of the broker that is no commit.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// What a transactor reads, and under which names.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The consumer group.
    pub group: String,
    /// The topic.
    pub topic: String,
    /// Stable name of this process among those of the group; a second process with the same name fences the first.
    pub transactional_id: String,
    /// The broker aborts a transaction that is open for longer.
    pub transaction_timeout: Duration,
    /// How often a commit whose outcome is in doubt is asked for; each time takes [`Settings::transaction_timeout`] while the
    /// brokers are away.
    pub commit_attempts_max: u32,
    /// The group gives a silent member's partitions away after this time.
    pub session_timeout: Duration,
    /// The group gives away the partitions of a member that works on a batch for longer.
    pub work_time_max: Duration,
    /// Bytes that are fetched ahead of the work.
    pub fetch_ahead_bytes_max: usize,
}

/// What [`Transactor::commit`] promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Delivery {
    /// Records and offsets take effect together or not at all.
    #[default]
    ExactlyOnce,
    /// The offsets follow once every record is acknowledged: after a crash in between, records are written again.
    AtLeastOnce,
}

/// What [`Transactor::poll`] saw.
#[derive(Debug)]
pub enum Event {
    /// Partitions were given to this member: find out where they begin, then call [`Transactor::assign`].
    Assigned(Vec<i32>),
    /// All partitions were taken away: drop whatever is in work.
    Revoked,
    /// The next message of one of the partitions.
    Message(Message),
}

/// Where a partition stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// The offset that the group committed, if it ever did.
    pub committed: Option<i64>,
    /// The oldest offset in the log.
    pub low: i64,
    /// The offset that the next record gets.
    pub high: i64,
}

/// Why a transaction did not commit.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// It was aborted: nothing of it is visible. Drop the batch and read it again.
    #[error("transaction aborted: {0}")]
    Aborted(String),
    /// The process must end.
    #[error(transparent)]
    Fatal(#[from] LogError),
}

/// One member of a group with its transactional producer.
pub struct Transactor {
    consumer: Arc<BaseConsumer<Rebalances>>,
    writer: Arc<Writer>,
    topic: Arc<str>,
    metadata: Option<Arc<ConsumerGroupMetadata>>,
    given: Vec<i32>,
}

impl std::fmt::Debug for Transactor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transactor").field("topic", &self.topic).finish_non_exhaustive()
    }
}

impl Transactor {
    /// Joins the group and takes over the transactional id, which ends whatever an earlier owner left open.
    ///
    /// # Errors
    /// The settings are refused, or the broker does not answer in time.
    pub fn connect(kafka: &Kafka, settings: &Settings) -> Result<Transactor, LogError> {
        Transactor::connect_for(kafka, settings, Delivery::ExactlyOnce, Arc::default())
    }

    /// As [`Transactor::connect`], with a promise of choice; without transactions nobody is fenced. Calls that wait for the
    /// brokers are noted in `calls`.
    ///
    /// # Errors
    /// As [`Transactor::connect`].
    pub fn connect_for(
        kafka: &Kafka,
        settings: &Settings,
        delivery: Delivery,
        calls: Arc<Calls>,
    ) -> Result<Transactor, LogError> {
        let mut reading = consumer(kafka, &settings.group);
        reading
            .set("partition.assignment.strategy", "range")
            .set("session.timeout.ms", millis(settings.session_timeout))
            .set("heartbeat.interval.ms", millis(settings.session_timeout / 3))
            .set("max.poll.interval.ms", millis(settings.work_time_max.max(settings.session_timeout)))
            .set("queued.max.messages.kbytes", (settings.fetch_ahead_bytes_max / 1024).max(1).to_string());
        let consumer: BaseConsumer<Rebalances> =
            with_properties(reading, kafka).create_with_context(Rebalances::default()).map_err(of)?;
        let deliveries = Arc::new(Outstanding::default());
        let mut writing = base(kafka);
        writing
            .set("enable.idempotence", "true")
            .set("partitioner", "murmur2_random")
            .set("compression.codec", "lz4")
            .set("linger.ms", "0")
            .set("retry.backoff.ms", millis(RETRY_BACKOFF))
            .set("message.max.bytes", schemas::topic::REJECT_BYTES_MAX.to_string());
        if delivery == Delivery::ExactlyOnce {
            writing
                .set("transactional.id", &settings.transactional_id)
                .set("transaction.timeout.ms", millis(settings.transaction_timeout));
        }
        let producer: ThreadedProducer<Deliveries> =
            with_properties(writing, kafka).create_with_context(Deliveries(Arc::clone(&deliveries))).map_err(of)?;
        if delivery == Delivery::ExactlyOnce {
            calls.watch(|| producer.init_transactions(CALL_TIMEOUT)).map_err(of)?;
        }
        consumer.subscribe(&[&settings.topic]).map_err(of)?;
        let (consumer, topic) = (Arc::new(consumer), Arc::<str>::from(settings.topic.as_str()));
        let writer = Arc::new(Writer {
            consumer: Arc::clone(&consumer),
            producer,
            deliveries,
            topic: Arc::clone(&topic),
            transaction_timeout: settings.transaction_timeout,
            commit_attempts_max: settings.commit_attempts_max,
            delivery,
            marking: Mutex::new(Marking::default()),
            calls,
        });
        Ok(Transactor { consumer, writer, topic, metadata: None, given: Vec::new() })
    }

    /// The next event, or `None` if there is none within `wait`.
    ///
    /// # Errors
    /// [`LogError::Transient`] passes by itself: call again. Others end the role.
    pub fn poll(&mut self, wait: Duration) -> Result<Option<Event>, LogError> {
        // A change of the group that came during the last call goes first.
        if let Some(event) = self.rebalanced()? {
            return Ok(Some(event));
        }
        let polled = self.consumer.poll(wait).map(|polled| match polled {
            Ok(message) => Ok(owned(&message, &self.topic)),
            Err(error) => Err(of(error)),
        });
        match (self.rebalanced()?, polled) {
            // Messages that were fetched under the old assignment are read again under the new one.
            (Some(event), _) => Ok(Some(event)),
            (None, None) => Ok(None),
            (None, Some(message)) => message.map(|message| Some(Event::Message(message))),
        }
    }

    fn rebalanced(&mut self) -> Result<Option<Event>, LogError> {
        let change = self.consumer.context().next();
        match change {
            None => Ok(None),
            Some(Change::Revoked) => {
                self.metadata = None;
                self.given.clear();
                Ok(Some(Event::Revoked))
            }
            Some(Change::Assigned(partitions)) => {
                self.metadata = self.consumer.group_metadata().map(Arc::new);
                self.given.clone_from(&partitions);
                Ok(Some(Event::Assigned(partitions)))
            }
            Some(Change::Failed(code)) => Err(of(KafkaError::Rebalance(code))),
        }
    }

    /// The partitions that the last [`Event::Assigned`] named, until [`Event::Revoked`].
    pub fn given(&self) -> &[i32] {
        &self.given
    }

    /// Where the partitions stand. Waits while an open transaction holds offsets of them.
    ///
    /// # Errors
    /// The broker does not answer in time.
    pub fn standing(&self, partitions: &[i32]) -> Result<BTreeMap<i32, Standing>, LogError> {
        let mut list = TopicPartitionList::new();
        for partition in partitions {
            list.add_partition(&self.topic, *partition);
        }
        let committed = self.consumer.committed_offsets(list, CALL_TIMEOUT).map_err(of)?;
        let mut standing = BTreeMap::new();
        for element in committed.elements() {
            element.error().map_err(of)?;
            let committed = match element.offset() {
                Offset::Offset(offset) => Some(offset),
                _ => None,
            };
            let watermarks = self.consumer.fetch_watermarks(&self.topic, element.partition(), CALL_TIMEOUT);
            let (low, high) = watermarks.map_err(of)?;
            standing.insert(element.partition(), Standing { committed, low, high });
        }
        Ok(standing)
    }

    /// Lets the assigned partitions flow from these offsets on.
    ///
    /// # Errors
    /// The group has moved on in the meantime: poll again.
    pub fn assign(&mut self, starts: &BTreeMap<i32, i64>) -> Result<(), LogError> {
        let list = offsets(&self.topic, starts)?;
        self.consumer.assign(&list).map_err(of)
    }

    /// The offsets of the next messages, where messages or the marks of transactions have been passed.
    ///
    /// # Errors
    /// The client failed.
    pub fn positions(&self) -> Result<BTreeMap<i32, i64>, LogError> {
        let list = self.consumer.position().map_err(of)?;
        let known = list.elements().into_iter().filter_map(|element| match element.offset() {
            Offset::Offset(offset) => Some((element.partition(), offset)),
            _ => None,
        });
        Ok(known.collect())
    }

    /// Writes the records, and `next` as the group's offsets, in one transaction.
    ///
    /// # Errors
    /// [`CommitError::Aborted`]: nothing happened. [`CommitError::Fatal`]: fenced, or the outcome stays in doubt.
    pub fn commit(&mut self, records: &[Record], next: &BTreeMap<i32, i64>) -> Result<(), CommitError> {
        self.begin(records.iter().map(Outgoing::from))?.commit(next)
    }

    /// How long a transaction that begins now would better wait, because the brokers are still busy with the last one and
    /// would refuse it; zero if they are not known to.
    pub fn rest(&self) -> Duration {
        lock(&self.writer.marking).rest(Instant::now())
    }

    /// Begins a transaction and sends its records, without waiting for their acknowledgement. One is open at a time.
    ///
    /// # Errors
    /// As [`Transactor::commit`].
    pub fn begin<'r>(&mut self, records: impl ExactSizeIterator<Item = Outgoing<'r>>) -> Result<Begun, CommitError> {
        let Some(metadata) = &self.metadata else { return Err(taken_away()) };
        Writer::begin(&self.writer, metadata, records)
    }

    /// Whether the group still counts this member as the one that was given these partitions. The group says so when
    /// offsets are sent to it; they are taken back, so that nothing is committed whatever the answer is, and a group
    /// that has committed nothing can be asked too. No transaction may be open.
    ///
    /// # Errors
    /// [`CommitError::Aborted`]: it does not, or it cannot be asked at the moment. [`CommitError::Fatal`]: as for
    /// [`Transactor::commit`].
    pub fn confirm(&mut self, partitions: &[i32]) -> Result<(), CommitError> {
        let Some(metadata) = &self.metadata else { return Err(taken_away()) };
        let (writer, metadata, partitions) = (Arc::clone(&self.writer), Arc::clone(metadata), partitions.to_vec());
        self.writer.calls.aside(move || writer.confirm(&metadata, &partitions))?
    }
}

fn taken_away() -> CommitError {
    CommitError::Aborted("the partitions were taken away".to_owned())
}

fn offsets(topic: &str, offsets: &BTreeMap<i32, i64>) -> Result<TopicPartitionList, LogError> {
    let mut list = TopicPartitionList::new();
    for (partition, offset) in offsets {
        list.add_partition_offset(topic, *partition, Offset::Offset(*offset)).map_err(of)?;
    }
    Ok(list)
}

fn millis(duration: Duration) -> String {
    duration.as_millis().to_string()
}

fn of(error: KafkaError) -> LogError {
    classify(&error)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
