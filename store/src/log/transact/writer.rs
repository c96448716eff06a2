//! The writing half: records and offsets in one transaction.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerGroupMetadata};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseRecord, Producer as _, ThreadedProducer};

use super::calls::Calls;
use super::deliveries::{Deliveries, Outstanding};
use super::marking::Marking;
use super::rebalances::Rebalances;
use super::{CALL_TIMEOUT, CommitError, Delivery, lock, of, offsets};
use crate::log::producer::headers;
use crate::log::{LogError, Record};

/// A record that is written without being owned.
#[derive(Debug, Clone, Copy)]
pub struct Outgoing<'a> {
    /// The topic; it must exist.
    pub topic: &'a str,
    /// The partition; `None` leaves it to the key.
    pub partition: Option<i32>,
    /// The key.
    pub key: Option<&'a [u8]>,
    /// The value.
    pub value: Option<&'a [u8]>,
    /// Headers in order.
    pub headers: &'a [(String, Vec<u8>)],
    /// Milliseconds since the Unix epoch.
    pub timestamp: i64,
}

impl<'a> From<&'a Record> for Outgoing<'a> {
    fn from(record: &'a Record) -> Outgoing<'a> {
        Outgoing {
            topic: &record.topic,
            partition: record.partition,
            key: record.key.as_deref(),
            value: record.value.as_deref(),
            headers: &record.headers,
            timestamp: record.timestamp,
        }
    }
}

/// Time between two looks whether the producer's thread has come to its end, which takes it some microseconds unless
/// others have the processor.
const LOOK_EVERY: Duration = Duration::from_micros(50);
/// Looks until `flush` is left to wait.
const LOOKS_MAX: usize = 400;

/// Writes what came of batches.
pub(super) struct Writer {
    /// Commits the offsets where there are no transactions.
    pub(super) consumer: Arc<BaseConsumer<Rebalances>>,
    pub(super) producer: ThreadedProducer<Deliveries>,
    pub(super) deliveries: Arc<Outstanding>,
    pub(super) topic: Arc<str>,
    pub(super) transaction_timeout: Duration,
    pub(super) commit_attempts_max: u32,
    pub(super) delivery: Delivery,
    pub(super) marking: Mutex<Marking>,
    pub(super) calls: Arc<Calls>,
}

/// A transaction that has begun. Dropped, it stays open until the producer ends or the broker's time-out aborts it.
#[must_use = "commit it or abandon it"]
pub struct Begun {
    writer: Arc<Writer>,
    /// Of the assignment under which the batch was polled.
    metadata: Arc<ConsumerGroupMetadata>,
}

impl std::fmt::Debug for Begun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Begun").field("topic", &self.writer.topic).finish_non_exhaustive()
    }
}

impl Begun {
    /// Sends `next` as the group's offsets to the transaction, while its records are on their way, and waits until the
    /// broker has acknowledged all of them. The wait is not left to the commit: `flush` there would take up to 100 ms,
    /// because the producer's own thread has already taken the event that it polls for.
    ///
    /// # Errors
    /// [`CommitError::Aborted`]: nothing happened. [`CommitError::Fatal`]: fenced.
    pub fn prepare(self, next: &BTreeMap<i32, i64>) -> Result<Prepared, CommitError> {
        let Begun { writer, metadata } = self;
        let offsets = offsets(&writer.topic, next)?;
        let begun = Instant::now();
        let sent = match writer.delivery {
            Delivery::ExactlyOnce => writer
                .calls
                .watch(|| writer.producer.send_offsets_to_transaction(&offsets, &metadata, CALL_TIMEOUT))
                .inspect(|()| lock(&writer.marking).offsets_sent(begun.elapsed())),
            // They follow the records.
            Delivery::AtLeastOnce => Ok(()),
        };
        match sent.and_then(|()| writer.deliveries.wait(writer.transaction_timeout)) {
            Ok(()) => Ok(Prepared { writer, offsets }),
            Err(error) => Err(writer.abort(&error)),
        }
    }

    /// [`Begun::prepare`] and [`Prepared::commit`].
    ///
    /// # Errors
    /// Of both.
    pub fn commit(self, next: &BTreeMap<i32, i64>) -> Result<(), CommitError> {
        self.prepare(next)?.commit()
    }
}

/// A transaction whose records and offsets are with the broker, and not visible yet. Dropped, it stays open, as [`Begun`]
/// does.
#[must_use = "commit it or abandon it"]
pub struct Prepared {
    writer: Arc<Writer>,
    offsets: TopicPartitionList,
}

impl std::fmt::Debug for Prepared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Prepared").field("topic", &self.writer.topic).finish_non_exhaustive()
    }
}

impl Prepared {
    /// Makes records and offsets visible together.
    ///
    /// # Errors
    /// [`CommitError::Aborted`]: nothing happened. [`CommitError::Fatal`]: fenced, or the outcome stays in doubt.
    pub fn commit(self) -> Result<(), CommitError> {
        match self.writer.delivery {
            Delivery::ExactlyOnce => {
                self.writer.see_off();
                self.writer.commit()
            }
            Delivery::AtLeastOnce => self.writer.acknowledge(&self.offsets),
        }
    }

    /// Ends it so that nothing of it is visible. Where there are no transactions, the records stay.
    ///
    /// # Errors
    /// The producer is fenced, or the outcome stays in doubt.
    pub fn abandon(self) -> Result<(), LogError> {
        self.writer.take_back()
    }
}

impl Writer {
    pub(super) fn begin<'r>(
        this: &Arc<Writer>,
        metadata: &Arc<ConsumerGroupMetadata>,
        records: impl ExactSizeIterator<Item = Outgoing<'r>>,
    ) -> Result<Begun, CommitError> {
        if this.delivery == Delivery::ExactlyOnce {
            this.producer.begin_transaction().map_err(of)?;
        }
        let generation = this.deliveries.start(records.len());
        for record in records {
            let mut base = BaseRecord::with_opaque_to(record.topic, generation).timestamp(record.timestamp);
            base.headers = headers(record.headers);
            base.partition = record.partition;
            base.key = record.key;
            base.payload = record.value;
            if let Err((error, _)) = this.producer.send::<[u8], [u8]>(base) {
                return Err(this.abort(&error));
            }
        }
        Ok(Begun { writer: Arc::clone(this), metadata: Arc::clone(metadata) })
    }

    /// As [`super::Transactor::confirm`]. Without transactions nobody is fenced, and nothing is asked.
    pub(super) fn confirm(&self, metadata: &ConsumerGroupMetadata, partitions: &[i32]) -> Result<(), CommitError> {
        if self.delivery == Delivery::AtLeastOnce {
            return Ok(());
        }
        // Which offsets does not matter.
        let offsets = offsets(&self.topic, &partitions.iter().map(|partition| (*partition, 0)).collect())?;
        self.producer.begin_transaction().map_err(of)?;
        let ask = || self.producer.send_offsets_to_transaction(&offsets, metadata, CALL_TIMEOUT);
        match self.calls.watch(ask) {
            Ok(()) => Ok(self.take_back()?),
            Err(error) => Err(self.abort(&error)),
        }
    }

    /// Waits until the producer's own thread has put away the reports that it told: as long as it holds one of them,
    /// `flush` within the commit waits for another, which does not come.
    fn see_off(&self) {
        for _ in 0..LOOKS_MAX {
            if self.producer.in_flight_count() == 0 {
                return;
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    fn commit(&self) -> Result<(), CommitError> {
        for _ in 0..self.commit_attempts_max {
            match self.calls.watch(|| self.producer.commit_transaction(self.transaction_timeout)) {
                Ok(()) => {
                    lock(&self.marking).committed(Instant::now());
                    return Ok(());
                }
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

    /// Commits the offsets alone, after the records.
    fn acknowledge(&self, offsets: &TopicPartitionList) -> Result<(), CommitError> {
        match self.consumer.commit(offsets, CommitMode::Sync) {
            Err(KafkaError::ConsumerCommit(RDKafkaErrorCode::NoOffset)) => Ok(()),
            // What the group refuses was given away; it is read again there.
            committed => committed.map_err(|error| CommitError::Aborted(error.to_string())),
        }
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
        if self.delivery == Delivery::AtLeastOnce {
            return Ok(());
        }
        for _ in 0..self.commit_attempts_max {
            match self.calls.watch(|| self.producer.abort_transaction(self.transaction_timeout)) {
                Ok(()) => return Ok(()),
                Err(KafkaError::Transaction(error)) if error.is_retriable() => {
                    tracing::warn!(error = %error, "abort in doubt, asking again");
                }
                Err(error) => return Err(of(error)),
            }
        }
        Err(LogError::Transient("the transaction could not be aborted: see to the broker".to_owned()))
    }
}
