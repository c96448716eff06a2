//! The idempotent producer: an append returns when every in-sync replica has the record.
//!
//! Promises: records of one key stay in the order in which they were given; none is written twice by a retry; the
//! queue is bounded in records and bytes, and a full one is refused at once, so that intake can say so. What was not
//! acknowledged in time may still be in the log: whoever sends it again relies on the turn's id.

use std::collections::VecDeque;
use std::time::Duration;

use rdkafka::message::{Header, OwnedHeaders, ToBytes};
use rdkafka::producer::future_producer::Delivery;
use rdkafka::producer::{DeliveryFuture, FutureProducer, FutureRecord, Producer as _};

use super::client::{Logged, base, with_properties};
use super::error::{classify, classify_append};
use super::{AppendError, Kafka, LogError, Place, Record};

/// Bounds of a producer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProducerLimits {
    /// Records that are queued or on their way.
    pub queue_records_max: usize,
    /// Bytes of them; rounded down to whole KiB, at least one.
    pub queue_bytes_max: usize,
    /// How long a record may wait for its acknowledgement, retries included.
    pub delivery_timeout: Duration,
    /// How long a record waits for company. 0 sends at once; records that come while a request is on its way share
    /// the next one anyway.
    pub linger: Duration,
}

impl Default for ProducerLimits {
    fn default() -> ProducerLimits {
        ProducerLimits {
            queue_records_max: 20_000,
            queue_bytes_max: 64 * 1024 * 1024,
            delivery_timeout: Duration::from_secs(10),
            linger: Duration::ZERO,
        }
    }
}

/// The largest record that leaves this process, in bytes: the largest that any topic takes, and its envelope. The
/// topics' own limits are lower and are the brokers' to check.
const RECORD_BYTES_MAX: usize = schemas::topic::REJECT_BYTES_MAX + 64 * 1024;
/// How long a topic may be unknown before its records are refused: the time that brokers take to tell each other.
const UNKNOWN_TOPIC_FOR: Duration = Duration::from_secs(3);

/// Handle on an idempotent producer; clones share its queue. Call [`Producer::flush`] before the last one is dropped,
/// which drops what is queued.
#[derive(Clone)]
pub struct Producer {
    inner: FutureProducer<Logged>,
}

impl std::fmt::Debug for Producer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Producer").field("queued", &self.queued()).finish()
    }
}

/// How often, and after how long, a queue that should have room by now is looked at again.
const FULL_LOOKS_MAX: u32 = 100;
const FULL_LOOK_AGAIN: Duration = Duration::from_millis(1);

impl Producer {
    /// A producer that connects in the background; brokers that are away show in the appends.
    ///
    /// # Errors
    /// A setting is wrong.
    pub fn connect(kafka: &Kafka, limits: &ProducerLimits) -> Result<Producer, LogError> {
        let mut config = base(kafka);
        config
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("partitioner", "murmur2_random")
            .set("compression.type", "lz4")
            .set("message.max.bytes", RECORD_BYTES_MAX.to_string())
            .set("queue.buffering.max.messages", limits.queue_records_max.max(1).to_string())
            .set("queue.buffering.max.kbytes", (limits.queue_bytes_max / 1024).max(1).to_string())
            .set("message.timeout.ms", limits.delivery_timeout.as_millis().max(1).to_string())
            .set("topic.metadata.propagation.max.ms", UNKNOWN_TOPIC_FOR.as_millis().to_string())
            .set("queue.buffering.max.ms", limits.linger.as_millis().to_string());
        let inner = with_properties(config, kafka).create_with_context(Logged).map_err(|error| classify(&error))?;
        Ok(Producer { inner })
    }

    /// Appends a record and waits for the acknowledgement. A caller that stops waiting does not take the record back.
    ///
    /// # Errors
    /// One variant for each thing that a caller can do.
    pub async fn append(&self, record: Record) -> Result<Place, AppendError> {
        self.send(&record)?.acknowledged(self).await
    }

    /// Appends records in their order and waits for all acknowledgements; the results stand in the same order. While
    /// the queue is full it waits for its own records to leave. If others fill the queue, the rest is refused with
    /// [`AppendError::Full`], so that nothing overtakes what was refused.
    pub async fn append_all(&self, records: Vec<Record>) -> Vec<Result<Place, AppendError>> {
        let mut results = Vec::with_capacity(records.len());
        let mut waiting: VecDeque<Result<Sent, AppendError>> = VecDeque::with_capacity(records.len());
        let mut looks = 0;
        for record in &records {
            let sent = loop {
                match self.send(record) {
                    Err(AppendError::Full) if !waiting.is_empty() => {
                        results.push(self.settled(waiting.pop_front()).await);
                    }
                    // A record counts until librdkafka has put its report away, which is shortly after we saw it.
                    Err(AppendError::Full) if !results.is_empty() && looks < FULL_LOOKS_MAX => {
                        looks += 1;
                        tokio::time::sleep(FULL_LOOK_AGAIN).await;
                    }
                    other => break other,
                }
            };
            looks = 0;
            let full = matches!(sent, Err(AppendError::Full));
            waiting.push_back(sent);
            if full {
                break;
            }
        }
        while !waiting.is_empty() {
            results.push(self.settled(waiting.pop_front()).await);
        }
        results.resize(records.len(), Err(AppendError::Full));
        results
    }

    /// Records that are queued or on their way.
    pub fn queued(&self) -> usize {
        usize::try_from(self.inner.in_flight_count()).unwrap_or(0)
    }

    /// Waits until all that is queued is acknowledged or refused.
    ///
    /// # Errors
    /// [`LogError::Transient`] if it is not done `within` the time.
    pub async fn flush(&self, within: Duration) -> Result<(), LogError> {
        let inner = self.inner.clone();
        super::client::blocking(move || inner.flush(within)).await
    }

    fn send(&self, record: &Record) -> Result<Sent, AppendError> {
        let bytes = size(record);
        let topic = record.topic.clone();
        match self.inner.send_result(outgoing(record)) {
            Ok(delivery) => Ok(Sent { delivery, topic, bytes }),
            Err((error, _)) => Err(self.append_error(&error, &topic, bytes)),
        }
    }

    async fn settled(&self, sent: Option<Result<Sent, AppendError>>) -> Result<Place, AppendError> {
        match sent {
            Some(Ok(sent)) => sent.acknowledged(self).await,
            Some(Err(error)) => Err(error),
            None => Err(AppendError::Full),
        }
    }

    fn append_error(&self, error: &rdkafka::error::KafkaError, topic: &str, bytes: usize) -> AppendError {
        // After a fatal error every record fails with an error of its own; the first one is the reason.
        match self.inner.client().fatal_error() {
            Some((_, reason)) => AppendError::Fatal(reason),
            None => classify_append(error, topic, bytes),
        }
    }
}

/// A record on its way.
struct Sent {
    delivery: DeliveryFuture,
    topic: String,
    bytes: usize,
}

impl Sent {
    async fn acknowledged(self, producer: &Producer) -> Result<Place, AppendError> {
        match self.delivery.await {
            Ok(Ok(Delivery { partition, offset, .. })) => Ok(Place { partition, offset }),
            Ok(Err((error, _))) => Err(producer.append_error(&error, &self.topic, self.bytes)),
            Err(_) => Err(AppendError::Unavailable("the producer was closed".to_owned())),
        }
    }
}

/// The record as the client takes it.
pub(super) fn outgoing(record: &Record) -> FutureRecord<'_, [u8], [u8]> {
    FutureRecord {
        topic: &record.topic,
        partition: record.partition,
        payload: record.value.as_deref(),
        key: record.key.as_deref(),
        timestamp: Some(record.timestamp),
        headers: headers(&record.headers),
    }
}

pub(super) fn headers(headers: &[(String, Vec<u8>)]) -> Option<OwnedHeaders> {
    if headers.is_empty() {
        return None;
    }
    let empty = OwnedHeaders::new_with_capacity(headers.len());
    Some(headers.iter().fold(empty, |all, (key, value)| all.insert(Header { key, value: Some(value.to_bytes()) })))
}

fn size(record: &Record) -> usize {
    let headers: usize = record.headers.iter().map(|(key, value)| key.len() + value.len()).sum();
    record.key.as_ref().map_or(0, Vec::len) + record.value.as_ref().map_or(0, Vec::len) + headers
}
