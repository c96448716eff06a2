//! The consume-transform-produce loop with Kafka transactions: one member of a consumer group that reads one topic, and
//! one transactional producer that writes what came of it together with the offsets that it read.
//!
//! Promises:
//! - Partitions flow only from the offsets that the caller names after [`Event::Assigned`]; nothing falls back to the
//!   earliest or the latest by itself.
//! - [`Transactor::commit`] writes records and offsets together or not at all. It uses the group metadata that was
//!   captured when the partitions were assigned, so a member that lost a partition and rejoined cannot commit for it.
//! - [`Transactor::confirm`] asks the group by the same metadata, without committing anything.
//! - An outcome in doubt is asked for again, [`COMMIT_ATTEMPTS_MAX`] times; then it is fatal.
//!
//! Blocking: it lives on a thread of its own.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, ConsumerGroupMetadata};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer as _, ProducerContext, ThreadedProducer};
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientContext, Offset, TopicPartitionList};

use super::client::{Logged, base, consumer, owned, with_properties};
use super::error::classify;
use super::producer::headers;
use super::{Kafka, LogError, Message, Record};

/// How often a commit whose outcome is in doubt is asked for before the process gives up.
pub const COMMIT_ATTEMPTS_MAX: u32 = 5;
/// Longest wait for one call of the broker that is no commit.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

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
    /// The group gives a silent member's partitions away after this time.
    pub session_timeout: Duration,
    /// The group gives away the partitions of a member that works on a batch for longer.
    pub work_time_max: Duration,
    /// Bytes that are fetched ahead of the work.
    pub fetch_ahead_bytes_max: usize,
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
    consumer: BaseConsumer<Rebalances>,
    producer: ThreadedProducer<Deliveries>,
    deliveries: Arc<Outstanding>,
    topic: Arc<str>,
    metadata: Option<ConsumerGroupMetadata>,
    given: Vec<i32>,
    transaction_timeout: Duration,
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
            .set("transactional.id", &settings.transactional_id)
            .set("transaction.timeout.ms", millis(settings.transaction_timeout))
            .set("enable.idempotence", "true")
            .set("partitioner", "murmur2_random")
            .set("compression.codec", "lz4")
            .set("linger.ms", "0")
            .set("message.max.bytes", schemas::topic::REJECT_BYTES_MAX.to_string());
        let producer: ThreadedProducer<Deliveries> =
            with_properties(writing, kafka).create_with_context(Deliveries(Arc::clone(&deliveries))).map_err(of)?;
        producer.init_transactions(CALL_TIMEOUT).map_err(of)?;
        consumer.subscribe(&[&settings.topic]).map_err(of)?;
        let (topic, metadata, given) = (Arc::from(settings.topic.as_str()), None, Vec::new());
        let transaction_timeout = settings.transaction_timeout;
        Ok(Transactor { consumer, producer, deliveries, topic, metadata, given, transaction_timeout })
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
        let change = lock(&self.consumer.context().0).pop_front();
        match change {
            None => Ok(None),
            Some(Change::Revoked) => {
                self.metadata = None;
                self.given.clear();
                Ok(Some(Event::Revoked))
            }
            Some(Change::Assigned(partitions)) => {
                self.metadata = self.consumer.group_metadata();
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
        let list = self.offsets(starts)?;
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
        let offsets = self.offsets(next)?;
        let Some(metadata) = &self.metadata else { return Err(taken_away()) };
        self.producer.begin_transaction().map_err(of)?;
        let written = self
            .produce(records)
            .and_then(|()| self.producer.send_offsets_to_transaction(&offsets, metadata, CALL_TIMEOUT));
        match written {
            Ok(()) => self.finish(),
            Err(error) => Err(self.abort(&error)),
        }
    }

    /// Whether the group still counts this member as the one that was given these partitions. The group says so when
    /// offsets are sent to it; they are taken back, so that nothing is committed whatever the answer is, and a group
    /// that has committed nothing can be asked too.
    ///
    /// # Errors
    /// [`CommitError::Aborted`]: it does not, or it cannot be asked at the moment. [`CommitError::Fatal`]: as for
    /// [`Transactor::commit`].
    pub fn confirm(&mut self, partitions: &[i32]) -> Result<(), CommitError> {
        // Which offsets does not matter.
        let offsets = self.offsets(&partitions.iter().map(|partition| (*partition, 0)).collect())?;
        let Some(metadata) = &self.metadata else { return Err(taken_away()) };
        self.producer.begin_transaction().map_err(of)?;
        match self.producer.send_offsets_to_transaction(&offsets, metadata, CALL_TIMEOUT) {
            Ok(()) => Ok(self.take_back()?),
            Err(error) => Err(self.abort(&error)),
        }
    }

    /// Sends the records and waits until the broker has acknowledged each one. The wait comes before the offsets and
    /// the commit: `flush` within them would take up to 100 ms, because the producer's own thread has already taken
    /// the event that it polls for.
    fn produce(&self, records: &[Record]) -> Result<(), KafkaError> {
        self.deliveries.start(records.len());
        for record in records {
            let mut base = BaseRecord::<[u8], [u8]>::to(&record.topic).timestamp(record.timestamp);
            base.headers = headers(&record.headers);
            base.partition = record.partition;
            base.key = record.key.as_deref();
            base.payload = record.value.as_deref();
            self.producer.send(base).map_err(|(error, _)| error)?;
        }
        self.deliveries.wait(self.transaction_timeout)
    }

    fn finish(&self) -> Result<(), CommitError> {
        for _ in 0..COMMIT_ATTEMPTS_MAX {
            match self.producer.commit_transaction(self.transaction_timeout) {
                Ok(()) => return Ok(()),
                Err(KafkaError::Transaction(error)) if error.txn_requires_abort() => {
                    return Err(self.abort(&KafkaError::Transaction(error)));
                }
                Err(KafkaError::Transaction(error)) if error.is_retriable() => {
                    tracing::warn!(error = %error, "commit in doubt, asking again");
                }
                Err(error) => return Err(of(error).into()),
            }
        }
        let doubt = "the outcome of a transaction stays in doubt: see to the broker, then start again";
        Err(LogError::Fatal(doubt.to_owned()).into())
    }

    /// Aborts the transaction because of `cause`; what to tell the caller.
    fn abort(&self, cause: &KafkaError) -> CommitError {
        if let KafkaError::Transaction(error) = cause
            && error.is_fatal()
        {
            return of(cause.clone()).into();
        }
        match self.take_back() {
            Ok(()) => CommitError::Aborted(cause.to_string()),
            Err(error) => error.into(),
        }
    }

    /// Ends the open transaction so that nothing of it is visible.
    fn take_back(&self) -> Result<(), LogError> {
        for _ in 0..COMMIT_ATTEMPTS_MAX {
            match self.producer.abort_transaction(self.transaction_timeout) {
                Ok(()) => return Ok(()),
                Err(KafkaError::Transaction(error)) if error.is_retriable() => {
                    tracing::warn!(error = %error, "abort in doubt, asking again");
                }
                Err(error) => return Err(of(error)),
            }
        }
        Err(LogError::Transient("the transaction could not be aborted: see to the broker".to_owned()))
    }

    fn offsets(&self, offsets: &BTreeMap<i32, i64>) -> Result<TopicPartitionList, LogError> {
        let mut list = TopicPartitionList::new();
        for (partition, offset) in offsets {
            list.add_partition_offset(&self.topic, *partition, Offset::Offset(*offset)).map_err(of)?;
        }
        Ok(list)
    }
}

fn taken_away() -> CommitError {
    CommitError::Aborted("the partitions were taken away".to_owned())
}

fn millis(duration: Duration) -> String {
    duration.as_millis().to_string()
}

fn of(error: KafkaError) -> LogError {
    classify(&error)
}

/// A change of the group, in the order in which it came.
enum Change {
    Assigned(Vec<i32>),
    Revoked,
    Failed(RDKafkaErrorCode),
}

/// Gives partitions back, and notes changes of the group; the rest is left to the thread that polls.
#[derive(Default)]
struct Rebalances(Mutex<std::collections::VecDeque<Change>>);

impl ClientContext for Rebalances {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        Logged.log(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        Logged.error(error, reason);
    }
}

impl ConsumerContext for Rebalances {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, err: RDKafkaRespErr, list: &mut TopicPartitionList) {
        if err != RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            // At once, because closing the consumer waits for it. The polling thread has no commit under way here.
            if let Err(error) = consumer.unassign() {
                tracing::warn!(error = %error, "cannot give partitions back");
            }
        }
        let change = match err {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => {
                Change::Assigned(list.elements().iter().map(|element| element.partition()).collect())
            }
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__REVOKE_PARTITIONS => Change::Revoked,
            other => Change::Failed(other.into()),
        };
        lock(&self.0).push_back(change);
    }
}

/// Records of the open transaction that the broker has not acknowledged yet.
#[derive(Default)]
struct Outstanding {
    state: Mutex<Count>,
    changed: Condvar,
}

#[derive(Default)]
struct Count {
    expected: usize,
    seen: usize,
    failed: Option<KafkaError>,
}

impl Outstanding {
    fn start(&self, expected: usize) {
        *lock(&self.state) = Count { expected, ..Count::default() };
    }

    fn note(&self, result: Option<KafkaError>) {
        let mut count = lock(&self.state);
        count.seen += 1;
        count.failed = count.failed.take().or(result);
        if count.seen >= count.expected || count.failed.is_some() {
            self.changed.notify_all();
        }
    }

    fn wait(&self, within: Duration) -> Result<(), KafkaError> {
        let deadline = Instant::now() + within;
        let mut count = lock(&self.state);
        loop {
            if let Some(error) = count.failed.take() {
                return Err(error);
            }
            if count.seen >= count.expected {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(KafkaError::MessageProduction(RDKafkaErrorCode::MessageTimedOut));
            }
            let woken = self.changed.wait_timeout(count, left).unwrap_or_else(PoisonError::into_inner);
            count = woken.0;
        }
    }
}

/// Counts delivery reports, on the producer's own thread.
struct Deliveries(Arc<Outstanding>);

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        Logged.log(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        Logged.error(error, reason);
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        self.0.note(result.as_ref().err().map(|(error, _)| error.clone()));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
