//! A broker for a test, and the few things every test does with rdkafka.
//!
//! The broker runs in process on a free port, unless `UNDERTONE_TEST_KAFKA` names the bootstrap address of a running
//! Apache Kafka: then the contract is checked against that one.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use broker::{Broker, Config};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::producer::{
    BaseProducer, BaseRecord, DefaultProducerContext, DeliveryResult, Producer, ProducerContext, ThreadedProducer,
};
use rdkafka::{ClientContext, Offset, TopicPartitionList};

/// Longest wait for anything that must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A broker, in process or outside.
pub(crate) struct Server {
    runtime: tokio::runtime::Runtime,
    broker: Option<Broker>,
    config: Option<Config>,
    _dir: Option<tempfile::TempDir>,
    bootstrap: String,
}

impl Server {
    /// One with default settings, or the outside one.
    pub(crate) fn start() -> Server {
        match std::env::var("UNDERTONE_TEST_KAFKA") {
            Ok(bootstrap) if !bootstrap.is_empty() => {
                Server { runtime: runtime(), broker: None, config: None, _dir: None, bootstrap }
            }
            _ => Server::with(|_| ()),
        }
    }

    /// One in process, with changed settings.
    pub(crate) fn with(change: impl FnOnce(&mut Config)) -> Server {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::new(dir.path());
        config.maintenance_every = Duration::from_millis(100);
        change(&mut config);
        let runtime = runtime();
        let broker = runtime.block_on(Broker::start(config.clone())).unwrap();
        let bootstrap = broker.bootstrap();
        // The next start takes the same port, as a restarted server would.
        config.listen = broker.address();
        Server { runtime, broker: Some(broker), config: Some(config), _dir: Some(dir), bootstrap }
    }

    pub(crate) fn bootstrap(&self) -> &str {
        &self.bootstrap
    }

    /// Whether it is the broker of this crate, and not an Apache Kafka.
    pub(crate) fn is_embedded(&self) -> bool {
        self.config.is_some()
    }

    pub(crate) fn dir(&self) -> &std::path::Path {
        &self.config.as_ref().expect("only asked of brokers in process").dir
    }

    /// Ends the broker without warning.
    pub(crate) fn crash(&mut self) {
        drop(self.broker.take());
    }

    pub(crate) fn shut_down(&mut self) {
        if let Some(broker) = self.broker.take() {
            self.runtime.block_on(broker.shutdown()).unwrap();
        }
    }

    pub(crate) fn start_again(&mut self) {
        let config = self.config.clone().expect("only asked of brokers in process");
        self.broker = Some(self.runtime.block_on(Broker::start(config)).unwrap());
    }
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// A name that no other test has, also on a shared server.
pub(crate) fn unique(prefix: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    format!(
        "{prefix}-{}-{}-{}",
        std::process::id(),
        since.as_millis() % 10_000_000,
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}

/// A time in the past that no retention has reached.
pub(crate) fn an_hour_ago_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    since.as_millis() as i64 - 3_600_000
}

pub(crate) fn client(bootstrap: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", bootstrap)
        .set("broker.address.family", "v4")
        .set("reconnect.backoff.ms", "20")
        .set("reconnect.backoff.max.ms", "200")
        .set("retry.backoff.ms", "20")
        .set("retry.backoff.max.ms", "200");
    config
}

pub(crate) fn consumer(bootstrap: &str, group: &str) -> ClientConfig {
    let mut config = client(bootstrap);
    config
        .set("group.id", group)
        .set("auto.offset.reset", "earliest")
        .set("enable.auto.commit", "false")
        .set("session.timeout.ms", "6000")
        .set("heartbeat.interval.ms", "200")
        .set("max.poll.interval.ms", "45000")
        .set("enable.partition.eof", "true")
        .set("fetch.wait.max.ms", "50");
    config
}

pub(crate) fn admin(bootstrap: &str) -> AdminClient<DefaultClientContext> {
    client(bootstrap).create().unwrap()
}

pub(crate) fn admin_options() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(PATIENCE)).request_timeout(Some(PATIENCE))
}

pub(crate) fn create_topic(bootstrap: &str, topic: &str, partitions: i32, settings: &[(&str, &str)]) -> Result<()> {
    let mut new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
    for (name, value) in settings {
        new = new.set(name, value);
    }
    let created = block_on(admin(bootstrap).create_topics(&[new], &admin_options()))?;
    for result in created {
        result.map_err(|(topic, error)| anyhow::anyhow!("create {topic}: {error}"))?;
    }
    let client: BaseConsumer = client(bootstrap).create()?;
    wait_for("the topic in the metadata", || {
        let metadata = client.fetch_metadata(Some(topic), PATIENCE)?;
        Ok(metadata.topics().first().map(|t| t.partitions().len()) == Some(partitions as usize))
    })
}

pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    runtime().block_on(future)
}

/// Asks until it is so. What is asked takes time itself, so there is no pause between.
pub(crate) fn wait_for(what: &str, mut so: impl FnMut() -> Result<bool>) -> Result<()> {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        if so()? {
            return Ok(());
        }
    }
    bail!("waited {PATIENCE:?} for {what}")
}

/// Counts delivery reports.
#[derive(Default)]
pub(crate) struct Deliveries {
    delivered: AtomicU64,
    failed: AtomicU64,
    last: Mutex<Option<KafkaError>>,
}

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        match result {
            Ok(_) => self.delivered.fetch_add(1, Ordering::SeqCst),
            Err((error, _)) => {
                *self.last.lock().unwrap() = Some(error.clone());
                self.failed.fetch_add(1, Ordering::SeqCst)
            }
        };
    }
}

impl Deliveries {
    pub(crate) fn last_error(&self) -> Option<RDKafkaErrorCode> {
        self.last.lock().unwrap().as_ref().and_then(KafkaError::rdkafka_error_code)
    }
}

/// Produces `k<i>` = `v<i>` for each number and waits until all are acknowledged.
pub(crate) fn produce(
    bootstrap: &str,
    topic: &str,
    partition: Option<i32>,
    numbers: std::ops::Range<usize>,
    settings: &[(&str, &str)],
) -> Result<()> {
    let mut config = client(bootstrap);
    config.set("acks", "all").set("linger.ms", "5").set("message.timeout.ms", "30000");
    for (name, value) in settings {
        config.set(*name, *value);
    }
    let producer: BaseProducer<Deliveries> = config.create_with_context(Deliveries::default())?;
    let count = numbers.len() as u64;
    for number in numbers {
        let (key, value) = (format!("k{number}"), format!("v{number}"));
        let mut record = BaseRecord::to(topic).key(&key).payload(&value);
        record.partition = partition;
        let mut unsent = Some(record);
        while let Some(record) = unsent.take() {
            match producer.send(record) {
                Ok(()) => {}
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), record)) => {
                    producer.poll(Duration::from_millis(10));
                    unsent = Some(record);
                }
                Err((error, _)) => return Err(error.into()),
            }
        }
        producer.poll(Duration::ZERO);
    }
    producer.flush(PATIENCE).context("flush")?;
    let delivered = producer.context().delivered.load(Ordering::SeqCst);
    ensure!(delivered == count, "delivered {delivered} of {count}: {:?}", producer.context().last_error());
    Ok(())
}

/// A record as a reader sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) key: String,
    pub(crate) value: Vec<u8>,
}

pub(crate) const COMMITTED: &[(&str, &str)] = &[("isolation.level", "read_committed")];
pub(crate) const UNCOMMITTED: &[(&str, &str)] = &[("isolation.level", "read_uncommitted")];

/// Reads all partitions from the beginning to the end.
pub(crate) fn read_all(bootstrap: &str, topic: &str, partitions: i32, settings: &[(&str, &str)]) -> Result<Vec<Seen>> {
    let mut config = consumer(bootstrap, &unique("reader"));
    for (name, value) in settings {
        config.set(*name, *value);
    }
    let consumer: BaseConsumer = config.create()?;
    let mut assignment = TopicPartitionList::new();
    for partition in 0..partitions {
        assignment.add_partition_offset(topic, partition, Offset::Beginning)?;
    }
    consumer.assign(&assignment)?;
    let (mut seen, mut ended) = (Vec::new(), HashSet::new());
    let begun = Instant::now();
    while ended.len() < partitions as usize {
        ensure!(begun.elapsed() < PATIENCE, "read {} records, then nothing; ends of {ended:?}", seen.len());
        match consumer.poll(Duration::from_millis(100)) {
            None => {}
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                ended.insert(partition);
            }
            Some(Err(error)) if error.rdkafka_error_code().is_some_and(is_transient) => {}
            Some(Err(error)) => return Err(error.into()),
            Some(Ok(message)) => {
                ended.remove(&message.partition());
                seen.push(Seen {
                    partition: message.partition(),
                    offset: message.offset(),
                    key: String::from_utf8_lossy(message.key().unwrap_or_default()).into_owned(),
                    value: message.payload().unwrap_or_default().to_vec(),
                });
            }
        }
    }
    Ok(seen)
}

pub(crate) fn is_transient(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode::{AllBrokersDown, BrokerTransportFailure, OperationTimedOut, Resolve};
    matches!(code, AllBrokersDown | BrokerTransportFailure | OperationTimedOut | Resolve)
}

pub(crate) fn keys(seen: &[Seen]) -> Vec<&str> {
    seen.iter().map(|record| record.key.as_str()).collect()
}

pub(crate) type Transactional = ThreadedProducer<DefaultProducerContext>;

pub(crate) fn transactional(bootstrap: &str, id: &str, timeout_ms: u32) -> Result<Transactional> {
    let mut config = client(bootstrap);
    config.set("transactional.id", id).set("transaction.timeout.ms", timeout_ms.to_string()).set("linger.ms", "0");
    Ok(config.create()?)
}

pub(crate) fn send(producer: &Transactional, topic: &str, partition: i32, text: &str) -> Result<()> {
    let record = BaseRecord::<str, str>::to(topic).partition(partition).key(text).payload(text);
    producer.send(record).map_err(|(error, _)| error.into())
}

/// Commits, once the group has a coordinator: an Apache Kafka first makes the topic that holds the offsets.
pub(crate) fn commit(consumer: &BaseConsumer, offsets: &TopicPartitionList) -> Result<()> {
    use RDKafkaErrorCode::{CoordinatorLoadInProgress, CoordinatorNotAvailable, NotCoordinator};
    wait_for("the coordinator of the group", || match consumer.commit(offsets, CommitMode::Sync) {
        Ok(()) => Ok(true),
        Err(error) => match error.rdkafka_error_code() {
            Some(CoordinatorLoadInProgress | CoordinatorNotAvailable | NotCoordinator) => Ok(false),
            _ => Err(error.into()),
        },
    })
}

/// The offset that a group has committed for a partition.
pub(crate) fn committed(consumer: &BaseConsumer, topic: &str, partition: i32) -> Result<Offset> {
    let mut asked = TopicPartitionList::new();
    asked.add_partition(topic, partition);
    let committed = consumer.committed_offsets(asked, PATIENCE)?;
    Ok(committed.elements()[0].offset())
}

pub(crate) fn at(topic: &str, partition: i32, offset: i64) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, partition, Offset::Offset(offset)).unwrap();
    list
}
