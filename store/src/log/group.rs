//! A reader of a consumer group that commits what was dealt with: at least once.
//!
//! It polls on a thread of its own, because joining, leaving and looking up offsets wait for brokers. Promises: what
//! was not committed is read again after a crash or a rebalance; a group without a committed offset starts with the
//! oldest record; a committed offset outside of the log is an error and no jump.
//!
//! Left out: exactly once, which is `transact`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, RebalanceProtocol};
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::{mpsc, oneshot};

use super::client::{self, ANSWER_WITHIN, Logged, blocking, owned, with_properties};
use super::error::classify;
use super::{Kafka, LogError, Message};

/// Messages that wait between the polling thread and the reader.
const MESSAGES_WAITING_MAX: usize = 256;
/// How long the group may take to answer a commit before it is asked again.
const COMMIT_WITHIN: Duration = Duration::from_secs(15);
/// How often the thread looks whether it shall stop.
const POLL_FOR: Duration = Duration::from_millis(50);

/// How a reader joins its group.
#[derive(Debug, Clone)]
pub struct Joining {
    /// After this long without a heartbeat the brokers give its partitions to another member.
    pub session_timeout: Duration,
    /// What the reader's own store says that it has, as the offset behind it, by partition; `None` if nobody keeps
    /// account. A partition is then read from there, or from its beginning if the store has nothing of it, should the
    /// group have committed more: the store lost what it had acknowledged.
    pub kept: Option<BTreeMap<i32, i64>>,
}

impl Default for Joining {
    fn default() -> Joining {
        Joining { session_timeout: Duration::from_secs(10), kept: None }
    }
}

/// What the thread has to tell.
enum Polled {
    Message(Message),
    Failed(LogError),
    /// No message is left below these offsets, by partition: marks of transactions take up offsets as well.
    Reached(BTreeMap<i32, i64>),
}

/// A member of a consumer group. Dropping it leaves the group in the background, [`GroupReader::close`] waits for it.
pub struct GroupReader {
    topic: Arc<str>,
    group: String,
    consumer: Weak<BaseConsumer<Placed>>,
    polled: mpsc::Receiver<Polled>,
    /// Came behind messages that were returned before it.
    pending: Option<LogError>,
    /// The offset behind the last message returned, by partition, as long as it is not committed.
    returned: BTreeMap<i32, i64>,
    stop: Arc<AtomicBool>,
    ended: oneshot::Receiver<()>,
}

impl std::fmt::Debug for GroupReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let GroupReader { topic, group, returned, .. } = self;
        f.debug_struct("GroupReader").field("group", group).field("topic", topic).field("returned", returned).finish()
    }
}

impl GroupReader {
    /// Joins a group in the background; errors of joining come with [`GroupReader::batch`].
    ///
    /// # Errors
    /// A setting is wrong.
    pub fn join(kafka: &Kafka, group: &str, topic: &str) -> Result<GroupReader, LogError> {
        GroupReader::join_with(kafka, group, topic, &Joining::default())
    }

    /// As [`GroupReader::join`], otherwise than by default.
    ///
    /// # Errors
    /// A setting is wrong.
    pub fn join_with(kafka: &Kafka, group: &str, topic: &str, joining: &Joining) -> Result<GroupReader, LogError> {
        let mut config = client::consumer(kafka, group);
        config
            .set("session.timeout.ms", joining.session_timeout.as_millis().to_string())
            .set("heartbeat.interval.ms", (joining.session_timeout / 3).as_millis().to_string());
        let placed = Placed { kept: joining.kept.clone().map(Mutex::new) };
        let consumer: BaseConsumer<Placed> =
            with_properties(config, kafka).create_with_context(placed).map_err(|error| classify(&error))?;
        consumer.subscribe(&[topic]).map_err(|error| classify(&error))?;
        let consumer = Arc::new(consumer);
        let topic: Arc<str> = Arc::from(topic);
        let (sender, polled) = mpsc::channel(MESSAGES_WAITING_MAX);
        let (end, ended) = oneshot::channel();
        let stop = Arc::new(AtomicBool::new(false));
        let reader = GroupReader {
            topic: Arc::clone(&topic),
            group: group.to_owned(),
            consumer: Arc::downgrade(&consumer),
            polled,
            pending: None,
            returned: BTreeMap::new(),
            stop: Arc::clone(&stop),
            ended,
        };
        std::thread::Builder::new()
            .name("log-group".to_owned())
            .spawn(move || {
                poll(&consumer, &topic, &sender, &stop);
                drop(consumer);
                drop(end);
            })
            .map_err(|error| LogError::Fatal(format!("start a thread: {error}")))?;
        Ok(reader)
    }

    /// The next messages, at most `max`; none if `wait` is over, or if there is only something to commit. May be
    /// cancelled: what it would have returned comes next time.
    ///
    /// # Errors
    /// As [`LogError`] says; after [`LogError::Transient`] call it again. Messages that came before an error are
    /// returned before it.
    pub async fn batch(&mut self, max: usize, wait: Duration) -> Result<Vec<Message>, LogError> {
        if let Some(error) = self.pending.take() {
            return Err(error);
        }
        let mut batch = Vec::new();
        match tokio::time::timeout(wait, self.polled.recv()).await {
            Err(_) => return Ok(batch),
            Ok(None) => return Err(LogError::Fatal("the reader has ended".to_owned())),
            Ok(Some(first)) => self.take(first, &mut batch),
        }
        // Every failed try to connect leaves a transient error behind: all that wait are one piece of news, and none at
        // all once something else stands behind them. Otherwise a reader that pauses at each would come back the later
        // the longer the brokers were away.
        while batch.len() < max && self.pending.as_ref().is_none_or(LogError::is_transient) {
            match self.polled.try_recv() {
                Ok(next) => self.take(next, &mut batch),
                Err(_) => break,
            }
        }
        match self.pending.take() {
            Some(error) if batch.is_empty() => Err(error),
            pending => {
                self.pending = pending.filter(|error| !error.is_transient());
                Ok(batch)
            }
        }
    }

    fn take(&mut self, polled: Polled, batch: &mut Vec<Message>) {
        match polled {
            Polled::Message(message) => {
                self.returned.insert(message.partition, message.offset + 1);
                batch.push(message);
            }
            Polled::Reached(offsets) => self.returned.extend(offsets),
            Polled::Failed(error) => self.pending = Some(error),
        }
    }

    /// The offset behind what was returned and is not committed yet, by partition: what a store writes down beside it.
    pub fn reached(&self) -> &BTreeMap<i32, i64> {
        &self.returned
    }

    /// Commits everything that was returned so far, and waits for the answer. Does nothing if that is nothing new.
    ///
    /// # Errors
    /// [`LogError::Transient`] when the group is about to change or the brokers are away: what was not committed may
    /// be read again.
    pub async fn commit(&mut self) -> Result<(), LogError> {
        if self.returned.is_empty() {
            return Ok(());
        }
        let offsets = list(&self.topic, &self.returned)?;
        let consumer = self.consumer()?;
        let placed = Arc::clone(&consumer);
        // The call itself waits without a bound, and a reader that waits for it takes no messages meanwhile.
        let commit = blocking(move || consumer.commit(&offsets, CommitMode::Sync));
        let late = || Err(LogError::Transient(format!("no answer to a commit within {} s", COMMIT_WITHIN.as_secs())));
        tokio::time::timeout(COMMIT_WITHIN, commit).await.unwrap_or_else(|_| late())?;
        if let Some(kept) = &placed.context().kept {
            kept.lock().unwrap_or_else(PoisonError::into_inner).extend(&self.returned);
        }
        self.returned.clear();
        Ok(())
    }

    /// How many records are between the committed offset and the end, by partition of this member.
    ///
    /// # Errors
    /// The brokers did not answer.
    pub async fn lag(&self) -> Result<BTreeMap<i32, i64>, LogError> {
        let consumer = self.consumer()?;
        let topic = Arc::clone(&self.topic);
        blocking(move || {
            let mut lags = BTreeMap::new();
            for element in consumer.committed(ANSWER_WITHIN)?.elements_for_topic(&topic) {
                let (low, high) = consumer.fetch_watermarks(&topic, element.partition(), ANSWER_WITHIN)?;
                let committed = element.offset().to_raw().filter(|&offset| offset >= 0).unwrap_or(low);
                lags.insert(element.partition(), (high - committed).max(0));
            }
            Ok(lags)
        })
        .await
    }

    /// Leaves the group, so that the others get the partitions at once.
    pub async fn close(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.polled.close();
        // The sender is dropped at the end of the thread; that is the news.
        drop((&mut self.ended).await);
    }

    fn consumer(&self) -> Result<Arc<BaseConsumer<Placed>>, LogError> {
        self.consumer.upgrade().ok_or_else(|| LogError::Fatal("the reader has ended".to_owned()))
    }
}

impl Drop for GroupReader {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Hands messages on until nobody wants them any more.
fn poll(consumer: &BaseConsumer<Placed>, topic: &Arc<str>, polled: &mpsc::Sender<Polled>, stop: &AtomicBool) {
    let mut told = BTreeMap::new();
    while !stop.load(Ordering::Relaxed) {
        let next = match consumer.poll(POLL_FOR) {
            Some(Ok(message)) => {
                let message = owned(&message, topic);
                told.insert(message.partition, message.offset + 1);
                Polled::Message(message)
            }
            Some(Err(error)) => Polled::Failed(classify(&error)),
            None => {
                let reached = beyond(consumer, &told);
                if reached.is_empty() {
                    continue;
                }
                told.extend(&reached);
                Polled::Reached(reached)
            }
        };
        if polled.blocking_send(next).is_err() {
            return;
        }
    }
}

/// Positions that are further than what was told.
fn beyond(consumer: &BaseConsumer<Placed>, told: &BTreeMap<i32, i64>) -> BTreeMap<i32, i64> {
    let Ok(positions) = consumer.position() else { return BTreeMap::new() };
    let elements = positions.elements();
    let offsets = elements.iter().filter_map(|element| match element.offset() {
        Offset::Offset(offset) => Some((element.partition(), offset)),
        _ => None,
    });
    offsets.filter(|(partition, offset)| told.get(partition).is_none_or(|told| offset > told)).collect()
}

fn list(topic: &str, offsets: &BTreeMap<i32, i64>) -> Result<TopicPartitionList, LogError> {
    let mut list = TopicPartitionList::with_capacity(offsets.len());
    for (&partition, &offset) in offsets {
        list.add_partition_offset(topic, partition, Offset::Offset(offset)).map_err(|error| classify(&error))?;
    }
    Ok(list)
}

/// Starts assigned partitions where the group is, or at their beginning if it has never been there. Left to
/// librdkafka (`auto.offset.reset`), a group that has never been there and one whose offset expired look the same.
#[derive(Debug)]
struct Placed {
    /// See [`Joining::kept`]; grows with what is committed.
    kept: Option<Mutex<BTreeMap<i32, i64>>>,
}

impl ClientContext for Placed {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        Logged.log(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        Logged.error(error, reason);
    }
}

impl ConsumerContext for Placed {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, change: RDKafkaRespErr, partitions: &mut TopicPartitionList) {
        let assigned = change == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        let cooperative = matches!(consumer.rebalance_protocol(), RebalanceProtocol::Cooperative);
        if assigned && let Err(error) = self.place(consumer, partitions) {
            // They start at the group's offset; without one, the next poll says so.
            tracing::warn!(%error, "look up committed offsets");
        }
        let done = match (assigned, cooperative) {
            (true, false) => consumer.assign(partitions),
            (true, true) => consumer.incremental_assign(partitions),
            (false, false) => consumer.unassign(),
            (false, true) => consumer.incremental_unassign(partitions),
        };
        if let Err(error) = done {
            tracing::error!(%error, "take over partitions");
        }
    }
}

impl Placed {
    fn place(&self, consumer: &BaseConsumer<Self>, assigned: &mut TopicPartitionList) -> Result<(), KafkaError> {
        // First without the group, so that what the store lost is read even if the group cannot be asked.
        for element in assigned.clone().elements() {
            if let Some(kept) = self.kept(element.partition()) {
                assigned.set_partition_offset(element.topic(), element.partition(), kept)?;
            }
        }
        let committed = consumer.committed_offsets(assigned.clone(), ANSWER_WITHIN)?;
        for element in committed.elements() {
            let (topic, partition) = (element.topic(), element.partition());
            let offset = match (element.offset(), self.kept(partition)) {
                (Offset::Invalid, _) => Offset::Beginning,
                (Offset::Offset(committed), Some(kept)) => {
                    let (low, _) = consumer.fetch_watermarks(topic, partition, ANSWER_WITHIN)?;
                    behind(partition, committed, kept, low)
                }
                (known, _) => known,
            };
            assigned.set_partition_offset(topic, partition, offset)?;
        }
        Ok(())
    }

    /// Where the store wants a partition read from, if it has a say.
    fn kept(&self, partition: i32) -> Option<Offset> {
        let kept = self.kept.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner);
        Some(kept.get(&partition).map_or(Offset::Beginning, |next| Offset::Offset(*next)))
    }
}

/// Where to start a partition whose group has committed `committed` and whose store has what is before `kept`.
fn behind(partition: i32, committed: i64, kept: Offset, low: i64) -> Offset {
    let kept = match kept {
        Offset::Offset(kept) => kept,
        _ => low,
    };
    if kept >= committed || committed < low {
        return Offset::Offset(committed);
    }
    if kept < low {
        tracing::error!(partition, kept, oldest = low, "what the store lost has expired from the log in part");
    }
    tracing::warn!(partition, committed, kept, "the store lost what it had, reading it again");
    Offset::Offset(kept.max(low))
}
