//! The peers: plain consume-produce loops on rdkafka, as good as its documentation and its pitfalls allow. A loop takes
//! what is there, sends it on as it is, waits until every delivery report has come (`flush` would wait up to 100 ms
//! longer while another thread serves the reports), and commits.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::message::{Message as _, OwnedMessage};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer as _, ProducerContext, ThreadedProducer};
use rdkafka::{ClientConfig, ClientContext, Offset, TopicPartitionList};

use super::site::Site;

/// Longest wait for a call of the broker.
const CALL_WITHIN: Duration = Duration::from_secs(10);
/// Longest wait for a message, and so for the end.
const POLL: Duration = Duration::from_millis(100);

/// What a loop promises, and how much it takes at a time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    pub(super) transactional: bool,
    pub(super) batch_max: usize,
}

/// Settings that all loops and ends share.
pub(super) fn base(bootstrap: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap).set("socket.nagle.disable", "true").set("enable.metrics.push", "false");
    config
}

/// A consumer that reads committed records from the beginning. Records that are gone are an error: nothing is skipped.
pub(super) fn consumer(bootstrap: &str, group: &str) -> anyhow::Result<BaseConsumer> {
    let mut config = base(bootstrap);
    config
        .set("group.id", group)
        .set("isolation.level", "read_committed")
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "earliest");
    config.create().context("make a consumer")
}

/// Delivery reports that are still to come.
#[derive(Default)]
struct Reports {
    missing: Mutex<usize>,
    none: Condvar,
}

#[derive(Clone, Default)]
struct Counted(Arc<Reports>);

impl ClientContext for Counted {}

impl ProducerContext for Counted {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {
        let mut missing = self.0.missing.lock().unwrap_or_else(PoisonError::into_inner);
        *missing -= 1;
        if *missing == 0 {
            self.0.none.notify_all();
        }
    }
}

/// A loop that runs on a thread of its own until it is dropped.
pub(super) struct Loop {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<anyhow::Result<()>>>,
}

impl Loop {
    /// Starts one from the site's input to its output.
    pub(super) fn start(site: &Site, terms: Terms) -> Loop {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, bootstrap) = (Arc::clone(&stop), site.kafka.bootstrap.clone());
        let (input, output) = (site.input.clone(), site.output.clone());
        let thread = std::thread::spawn(move || run(&bootstrap, &input, &output, terms, &stopped));
        Loop { stop, thread: Some(thread) }
    }

    /// Ends it.
    pub(super) fn stop(mut self) -> anyhow::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("it was stopped before")?;
        thread.join().map_err(|_| anyhow::anyhow!("the plain loop panicked"))?
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn run(bootstrap: &str, input: &str, output: &str, terms: Terms, stop: &AtomicBool) -> anyhow::Result<()> {
    let consumer = consumer(bootstrap, &format!("{output}-plain"))?;
    consumer.subscribe(&[input]).context("subscribe")?;
    let counted = Counted::default();
    let mut config = base(bootstrap);
    config.set("linger.ms", "0").set("enable.idempotence", "true").set("compression.codec", "lz4");
    if terms.transactional {
        config.set("transactional.id", format!("{output}-plain"));
    }
    let producer: ThreadedProducer<Counted> = config.create_with_context(counted.clone()).context("make a producer")?;
    if terms.transactional {
        producer.init_transactions(CALL_WITHIN).context("begin")?;
    }
    let mut batch: Vec<OwnedMessage> = Vec::with_capacity(terms.batch_max);
    while !stop.load(Ordering::Relaxed) {
        batch.clear();
        let mut wait = POLL;
        while batch.len() < terms.batch_max {
            let Some(polled) = consumer.poll(wait) else { break };
            // Errors of transport pass by themselves.
            let Ok(message) = polled else { break };
            batch.push(message.detach());
            wait = Duration::ZERO;
        }
        if batch.is_empty() {
            continue;
        }
        if terms.transactional {
            producer.begin_transaction().context("begin a transaction")?;
        }
        pass(&producer, &counted, output, &batch)?;
        let mut next = BTreeMap::new();
        for message in &batch {
            next.insert(message.partition(), message.offset() + 1);
        }
        let mut offsets = TopicPartitionList::new();
        for (partition, offset) in next {
            offsets.add_partition_offset(input, partition, Offset::Offset(offset))?;
        }
        if terms.transactional {
            let group = consumer.group_metadata().context("the group is known by now")?;
            producer.send_offsets_to_transaction(&offsets, &group, CALL_WITHIN).context("send the offsets")?;
            producer.commit_transaction(CALL_WITHIN).context("commit a transaction")?;
        } else {
            consumer.commit(&offsets, CommitMode::Sync).context("commit the offsets")?;
        }
    }
    Ok(())
}

/// Sends a batch on, and waits until every record is acknowledged.
fn pass(
    producer: &ThreadedProducer<Counted>,
    counted: &Counted,
    output: &str,
    batch: &[OwnedMessage],
) -> anyhow::Result<()> {
    *counted.0.missing.lock().unwrap_or_else(PoisonError::into_inner) = batch.len();
    for message in batch {
        let mut record = BaseRecord::<[u8], [u8]>::to(output).partition(message.partition());
        record.key = message.key();
        record.payload = message.payload();
        record.headers = message.headers().cloned();
        producer.send(record).map_err(|(error, _)| error).context("send a record")?;
    }
    let deadline = Instant::now() + CALL_WITHIN;
    let mut missing = counted.0.missing.lock().unwrap_or_else(PoisonError::into_inner);
    while *missing > 0 {
        let left = deadline.saturating_duration_since(Instant::now());
        anyhow::ensure!(!left.is_zero(), "{} records were not acknowledged in time", *missing);
        missing = counted.0.none.wait_timeout(missing, left).unwrap_or_else(PoisonError::into_inner).0;
    }
    Ok(())
}

/// Removes the topics of a measurement from an Apache Kafka.
pub(super) fn remove_topics(runtime: &tokio::runtime::Runtime, bootstrap: &str, topics: &[&str]) -> anyhow::Result<()> {
    let admin: AdminClient<_> = base(bootstrap).create().context("make a client")?;
    runtime.block_on(admin.delete_topics(topics, &AdminOptions::new())).context("remove topics")?;
    Ok(())
}
