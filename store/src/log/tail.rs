//! The tail reader: all partitions of one topic, without a group, from a chosen place on.
//!
//! Promises: committed records only, in order within a partition, each once. Partitions that are added later are not
//! seen: open the tail anew.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::{Consumer, StreamConsumer};
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};

use super::client::{self, ANSWER_WITHIN, LOOK_EVERY, Logged, blocking, owned, with_properties};
use super::error::classify;
use super::{Kafka, LogError, Message};

/// Transient errors that one call of [`Tail::next`] passes over at most.
const ERRORS_PASSED_MAX: usize = 256;

/// Where to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum From {
    /// With the oldest record that there is.
    Beginning,
    /// With the first record that is committed after the tail was opened.
    End,
    /// With records that are there, about this many at most, shared out evenly among the partitions.
    Last(u64),
    /// At an offset for each partition; one that is not named starts at its beginning.
    Offsets(BTreeMap<i32, i64>),
    /// One partition alone, at an offset, or at its oldest record if that offset is gone.
    Partition(i32, i64),
}

/// A reader of the committed records of one topic.
pub struct Tail {
    topic: Arc<str>,
    /// `Some` until it is dropped.
    consumer: Option<Arc<StreamConsumer<Logged>>>,
    partitions: Vec<i32>,
    ends_when_opened: BTreeMap<i32, i64>,
    positions: BTreeMap<i32, i64>,
}

impl std::fmt::Debug for Tail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tail").field("topic", &self.topic).field("positions", &self.positions()).finish()
    }
}

impl Tail {
    /// Opens a tail on all partitions that the topic has now, or on one.
    ///
    /// # Errors
    /// The topic does not exist, the brokers cannot be reached, an offset lies outside of the log.
    pub async fn open(kafka: &Kafka, topic: &str, from: From) -> Result<Tail, LogError> {
        // librdkafka wants a group's name for every consumer; this one never joins it.
        let config = with_properties(client::consumer(kafka, &format!("{}-tail", kafka.client_id)), kafka);
        let consumer: StreamConsumer<Logged> = config.create_with_context(Logged).map_err(|error| classify(&error))?;
        let consumer = Arc::new(consumer);
        let mut tail = Tail {
            topic: Arc::from(topic),
            consumer: Some(consumer),
            partitions: Vec::new(),
            ends_when_opened: BTreeMap::new(),
            positions: BTreeMap::new(),
        };
        let mut edges = tail.first_edges().await?;
        if let From::Partition(only, _) = from {
            edges.retain(|partition, _| *partition == only);
        }
        tail.partitions = edges.keys().copied().collect();
        tail.ends_when_opened = edges.iter().map(|(&partition, &(_, high))| (partition, high)).collect();
        let mut wanted = TopicPartitionList::with_capacity(edges.len());
        for (&partition, &(low, high)) in &edges {
            let offset = start(&from, topic, partition, edges.len(), (low, high))?;
            wanted.add_partition_offset(topic, partition, Offset::Offset(offset)).map_err(|error| classify(&error))?;
            tail.positions.insert(partition, offset);
        }
        tail.consumer().assign(&wanted).map_err(|error| classify(&error))?;
        Ok(tail)
    }

    /// The next record. May be cancelled: nothing is lost. After [`LogError::Transient`] call it again; librdkafka
    /// connects anew by itself, with growing pauses.
    ///
    /// # Errors
    /// As [`LogError`] says.
    pub async fn next(&mut self) -> Result<Message, LogError> {
        let Some(consumer) = &self.consumer else { unreachable!("only drop takes the consumer") };
        let mut received = consumer.recv().await;
        // Every failed try to connect leaves a transient error behind: all that wait are one piece of news, and none at
        // all once a record stands behind them. Otherwise a reader that pauses at each would come back the later the
        // longer the brokers were away.
        for _ in 0..ERRORS_PASSED_MAX {
            if !matches!(&received, Err(error) if classify(error).is_transient()) {
                break;
            }
            match tokio::time::timeout(Duration::ZERO, consumer.recv()).await {
                Ok(behind) => received = behind,
                Err(_) => break,
            }
        }
        let message = received.map_err(|error| classify(&error))?;
        let message = owned(&message, &self.topic);
        self.positions.insert(message.partition, message.offset + 1);
        Ok(message)
    }

    /// The offset behind the last committed record, by partition, as the brokers know it now.
    ///
    /// # Errors
    /// The brokers did not answer.
    pub async fn ends(&self) -> Result<BTreeMap<i32, i64>, LogError> {
        Ok(self.edges().await?.into_iter().map(|(partition, (_, high))| (partition, high)).collect())
    }

    /// As [`Tail::ends`] when the tail was opened. Asked for later, each partition's answer waits behind a fetch that
    /// waits for records, half a second where there are none.
    pub fn ends_when_opened(&self) -> &BTreeMap<i32, i64> {
        &self.ends_when_opened
    }

    /// The offset of the next record to read, by partition. At the end of a topic it equals [`Tail::ends`], the marks
    /// that transactions leave included, as soon as those have been fetched.
    pub fn positions(&self) -> BTreeMap<i32, i64> {
        let mut positions = self.positions.clone();
        if let Ok(known) = self.consumer().position() {
            for element in known.elements() {
                if let (Offset::Offset(offset), Some(position)) =
                    (element.offset(), positions.get_mut(&element.partition()))
                {
                    *position = (*position).max(offset);
                }
            }
        }
        positions
    }

    fn consumer(&self) -> &Arc<StreamConsumer<Logged>> {
        self.consumer.as_ref().expect("only drop takes the consumer")
    }

    /// First and last stable offset of every partition.
    /// As [`Tail::edges`]; asks again where a broker that was started, or a topic that was created, a moment ago still
    /// says that it does not lead.
    async fn first_edges(&self) -> Result<BTreeMap<i32, (i64, i64)>, LogError> {
        let until = tokio::time::Instant::now() + ANSWER_WITHIN;
        loop {
            match self.edges().await {
                Err(error) if error.is_transient() && tokio::time::Instant::now() < until => {
                    tracing::debug!(error = %error, "asking for the ends of the topic again");
                    tokio::time::sleep(LOOK_EVERY).await;
                }
                edges => return edges,
            }
        }
    }

    async fn edges(&self) -> Result<BTreeMap<i32, (i64, i64)>, LogError> {
        let (consumer, topic) = (Arc::clone(self.consumer()), Arc::clone(&self.topic));
        let mut partitions = self.partitions.clone();
        blocking(move || {
            if partitions.is_empty() {
                partitions = client::partitions(consumer.client(), &topic)?;
            }
            let edge = |partition| {
                let edges = consumer.fetch_watermarks(&topic, partition, ANSWER_WITHIN)?;
                Ok::<_, KafkaError>((partition, edges))
            };
            partitions.into_iter().map(edge).collect()
        })
        .await
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        client::drop_aside(self.consumer.take());
    }
}

/// The offset to start at, checked against what the partition holds.
fn start(
    from: &From,
    topic: &str,
    partition: i32,
    partitions: usize,
    (low, high): (i64, i64),
) -> Result<i64, LogError> {
    let offset = match from {
        From::Beginning => low,
        From::End => high,
        From::Last(records) => {
            let share = i64::try_from(records.div_ceil(partitions.max(1) as u64)).unwrap_or(i64::MAX);
            high.saturating_sub(share).max(low)
        }
        From::Offsets(offsets) => offsets.get(&partition).copied().unwrap_or(low),
        From::Partition(_, offset) => *offset.max(&low),
    };
    if (low..=high).contains(&offset) {
        return Ok(offset);
    }
    Err(LogError::OutOfRange(format!("{topic}, partition {partition}: {offset} is not within {low} to {high}")))
}
