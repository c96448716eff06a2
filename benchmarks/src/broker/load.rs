//! One round against one broker: produce, consume, then latency at a fixed rate.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use hdrhistogram::Histogram;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext, ThreadedProducer};
use rdkafka::{ClientContext, Message as _, Offset, TopicPartitionList};

const PARTITIONS: i32 = 4;
const RECORD_BYTES: usize = 300;
/// Longest wait for anything that a broker must do.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest wait for the next record of a topic that holds more.
const SILENCE_MAX: Duration = Duration::from_secs(20);
/// Latencies at the beginning of a round that do not count: connections are made, and the reader finds its place.
const SETTLE: Duration = Duration::from_secs(1);

/// What a round puts on a broker.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    pub(super) records: u32,
    pub(super) rate: u32,
    pub(super) seconds: u32,
}

/// What a round measured.
#[derive(Debug, Clone, Copy)]
pub(super) struct Round {
    pub(super) produced_per_s: f64,
    pub(super) consumed_per_s: f64,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
    pub(super) p999_ms: f64,
    pub(super) max_ms: f64,
}

impl Load {
    /// Runs one round on topics of its own, which are deleted again.
    pub(super) fn round(&self, bootstrap: &str) -> Result<Round> {
        let mut topic = Topic::create(bootstrap, "throughput")?;
        let produced_per_s = self.produce(bootstrap, &topic.name)?;
        let consumed_per_s = self.consume(bootstrap, &topic.name)?;
        topic.delete()?;
        let mut topic = Topic::create(bootstrap, "latency")?;
        let latencies_ns = self.latency(bootstrap, &topic.name)?;
        topic.delete()?;
        let at_ms = |share: f64| latencies_ns.value_at_quantile(share) as f64 / 1e6;
        Ok(Round {
            produced_per_s,
            consumed_per_s,
            p50_ms: at_ms(0.5),
            p99_ms: at_ms(0.99),
            p999_ms: at_ms(0.999),
            max_ms: latencies_ns.max() as f64 / 1e6,
        })
    }

    fn produce(&self, bootstrap: &str, topic: &str) -> Result<f64> {
        let mut config = client(bootstrap);
        config.set("acks", "all").set("linger.ms", "10").set("batch.size", "500000");
        let producer: BaseProducer = config.set("queue.buffering.max.messages", "200000").create()?;
        // Connected before the clock runs.
        producer.client().fetch_metadata(Some(topic), PATIENCE)?;
        let value = [b'x'; RECORD_BYTES];
        let begun = Instant::now();
        for i in 0..self.records {
            let key = i.to_string();
            while let Err((error, _)) = producer.send(BaseRecord::to(topic).key(&key).payload(&value)) {
                match error {
                    KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull) => {
                        ensure!(begun.elapsed() < PATIENCE, "the broker takes no more records");
                        producer.poll(Duration::from_millis(5));
                    }
                    error => return Err(error.into()),
                }
            }
            if i % 64 == 0 {
                producer.poll(Duration::ZERO);
            }
        }
        producer.flush(PATIENCE).context("wait for acknowledgements")?;
        Ok(f64::from(self.records) / begun.elapsed().as_secs_f64())
    }

    /// Reads the whole topic; the clock runs from the first record on.
    fn consume(&self, bootstrap: &str, topic: &str) -> Result<f64> {
        let reader = reader(bootstrap, topic)?;
        next(&reader)?;
        let begun = Instant::now();
        for _ in 1..self.records {
            next(&reader)?;
        }
        Ok(f64::from(self.records - 1) / begun.elapsed().as_secs_f64())
    }

    fn latency(&self, bootstrap: &str, topic: &str) -> Result<Histogram<u64>> {
        let reader = reader(bootstrap, topic)?;
        let settling = SETTLE.as_secs() * u64::from(self.rate);
        let count = settling + u64::from(self.seconds) * u64::from(self.rate);
        let interval_ns = 1_000_000_000 / u64::from(self.rate);
        // Bounds: 1 µs to 1 minute, three digits.
        let mut latencies_ns = Histogram::<u64>::new_with_bounds(1_000, 60_000_000_000, 3)?;
        let begun = Instant::now();
        let due = move |i: u64| begun + Duration::from_nanos(interval_ns * i);
        std::thread::scope(|scope| {
            let sending = scope.spawn(move || send_at(bootstrap, topic, count, due));
            for _ in 0..count {
                let record = next(&reader)?;
                let now = Instant::now();
                let number =
                    record.payload().and_then(|value| value.first_chunk()).context("a number in the record")?;
                let number = u64::from_le_bytes(*number);
                if number >= settling {
                    let latency = now.saturating_duration_since(due(number));
                    latencies_ns.saturating_record(latency.as_nanos() as u64);
                }
            }
            sending.join().map_err(|_| anyhow::anyhow!("the sending thread panicked"))?
        })?;
        Ok(latencies_ns)
    }
}

/// Sends each record when it is due, or as soon as possible after that.
fn send_at(bootstrap: &str, topic: &str, count: u64, due: impl Fn(u64) -> Instant) -> Result<()> {
    let mut config = client(bootstrap);
    config.set("acks", "all").set("linger.ms", "0");
    let producer: ThreadedProducer<Deliveries> = config.create_with_context(Deliveries)?;
    for i in 0..count {
        std::thread::sleep(due(i).saturating_duration_since(Instant::now()));
        let mut value = [b'x'; RECORD_BYTES];
        value[..8].copy_from_slice(&i.to_le_bytes());
        producer.send(BaseRecord::to(topic).key(&i.to_le_bytes()).payload(&value)).map_err(|(error, _)| error)?;
    }
    producer.flush(PATIENCE).context("wait for acknowledgements")
}

/// Deliveries are not looked at: a record that did not arrive is missed by the reader.
struct Deliveries;

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}

fn client(bootstrap: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap).set("broker.address.family", "v4");
    config
}

/// A reader of all partitions from the beginning, with the client's own settings for fetching.
fn reader(bootstrap: &str, topic: &str) -> Result<BaseConsumer> {
    let reader: BaseConsumer =
        client(bootstrap).set("group.id", "undertone-bench").set("enable.auto.commit", "false").create()?;
    let mut assignment = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        assignment.add_partition_offset(topic, partition, Offset::Beginning)?;
    }
    reader.assign(&assignment)?;
    Ok(reader)
}

fn next(reader: &BaseConsumer) -> Result<rdkafka::message::BorrowedMessage<'_>> {
    let record = reader.poll(SILENCE_MAX);
    Ok(record.context("records that were acknowledged did not come back in time")??)
}

/// A topic that goes with this value.
struct Topic {
    admin: AdminClient<DefaultClientContext>,
    name: String,
    runtime: tokio::runtime::Runtime,
    deleted: bool,
}

impl Topic {
    fn create(bootstrap: &str, what: &str) -> Result<Topic> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH)?;
        let name = format!("undertone-bench-{what}-{}-{}", std::process::id(), since.as_micros());
        let admin = client(bootstrap).create()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let topic = Topic { admin, name, runtime, deleted: false };
        let new = [NewTopic::new(&topic.name, PARTITIONS, TopicReplication::Fixed(1))];
        let options = AdminOptions::new().operation_timeout(Some(PATIENCE)).request_timeout(Some(PATIENCE));
        let created = topic.runtime.block_on(topic.admin.create_topics(&new, &options)).context("create a topic")?;
        for result in created {
            result.map_err(|(topic, error)| anyhow::anyhow!("create topic {topic}: {error}"))?;
        }
        Ok(topic)
    }

    fn delete(&mut self) -> Result<()> {
        self.deleted = true;
        let options = AdminOptions::new().operation_timeout(Some(PATIENCE)).request_timeout(Some(PATIENCE));
        let deleted = self.runtime.block_on(self.admin.delete_topics(&[self.name.as_str()], &options));
        for result in deleted.context("delete a topic")? {
            result.map_err(|(topic, error)| anyhow::anyhow!("delete topic {topic}: {error}"))?;
        }
        Ok(())
    }
}

impl Drop for Topic {
    fn drop(&mut self) {
        if !self.deleted {
            // The round failed already; a topic that stays is the smaller harm.
            let _ = self.delete();
        }
    }
}
