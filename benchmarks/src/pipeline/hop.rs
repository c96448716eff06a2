//! Latency of one hop: from the moment at which a turn is due to be appended, to the moment at which a committed reader
//! has what came of it. The whole runner works, contexts included, but no model does; beside it a plain loop that only
//! sends records on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use processors::{Delivery, Way, Work};
use rdkafka::consumer::Consumer as _;
use rdkafka::message::{Header, Headers as _, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, ThreadedProducer};
use rdkafka::{Offset, TopicPartitionList};
use schemas::{Codec, Tier};

use super::Given;
use super::bare::{self, Loop, Terms};
use super::load::turn;
use super::site::{PARTITIONS, Site};
use crate::figures::{Aim, Report, progress};
use crate::latency::{Latencies, Schedule, clock, sleep_until};

const PER_SECOND: u64 = 1000;
/// Conversations that the turns belong to in turn.
const ROOMS: u64 = 64;
/// Latencies of this first time are not counted.
const WARM_UP: Duration = Duration::from_secs(2);
/// Pairs of runs on an Apache Kafka before those that count. On one that had just started, hops took 4,764, 408 and 454 ms
/// in the first three runs, and 65 to 36 ms from the fifth on.
const COMPILING: usize = 3;
/// How long a hop may take to start, and the last turns to come.
const PATIENCE: Duration = Duration::from_secs(30);
/// The header in which the moment travels: the one that every hop passes on.
const MOMENT: &str = "correlationid";

/// What runs between the topics.
#[derive(Debug, Clone, Copy)]
enum Between {
    Runner(Delivery),
    Plain { transactional: bool },
}

/// Latencies of one hop, in milliseconds, by run.
#[derive(Default)]
struct Runs {
    p50: Vec<f64>,
    p99: Vec<f64>,
}

impl Runs {
    fn note(&mut self, name: &str, latencies: &Latencies) {
        let (p50, p99) = (latencies.quantile_ms(0.5), latencies.quantile_ms(0.99));
        let (tail, max) = (latencies.quantile_ms(0.999), latencies.max_ms());
        progress(&format!("{name}: p50 {p50:.2} p99 {p99:.2} p99.9 {tail:.2} max {max:.2} ms"));
        self.p50.push(p50);
        self.p99.push(p99);
    }
}

/// One hop at 1,000 turns a second.
pub(super) fn hop(given: &Given<'_>, report: &mut Report) -> anyhow::Result<()> {
    let [mut exactly, mut plain, mut least, mut plain_least] = [const { Runs { p50: Vec::new(), p99: Vec::new() } }; 4];
    for _ in 0..given.runs {
        exactly.note("hop", &measure(given, None, Between::Runner(Delivery::ExactlyOnce))?);
        plain.note("plain hop", &measure(given, None, Between::Plain { transactional: true })?);
        least.note("hop at least once", &measure(given, None, Between::Runner(Delivery::AtLeastOnce))?);
        plain_least.note("plain hop at least once", &measure(given, None, Between::Plain { transactional: false })?);
    }
    let ratios = |ours: &Runs, theirs: &Runs| -> Vec<f64> {
        ours.p50.iter().zip(&theirs.p50).map(|(ours, theirs)| ours / theirs).collect()
    };
    let beside = "plain rdkafka transactional loop, same run";
    report.add("hop_p50_ms", Aim::AtMost(2.5), &exactly.p50, "1,000 turns a second, exactly once, contexts written");
    report.add("hop_p99_ms", Aim::AtMost(6.0), &exactly.p99, "the same");
    report.add("hop_plain_p50_ms", Aim::None, &plain.p50, beside);
    report.add("hop_plain_p99_ms", Aim::None, &plain.p99, beside);
    report.add("hop_ratio", Aim::AtMost(1.2), &ratios(&exactly, &plain), format!("{beside}; medians"));
    report.add("hop_alo_p50_ms", Aim::AtMost(1.0), &least.p50, "at least once");
    report.add("hop_alo_p99_ms", Aim::AtMost(3.0), &least.p99, "at least once");
    report.add("hop_alo_plain_p50_ms", Aim::None, &plain_least.p50, "plain rdkafka loop, at least once");
    report.add("hop_alo_plain_p99_ms", Aim::None, &plain_least.p99, "plain rdkafka loop, at least once");
    if let Some(kafka) = given.kafka {
        let (mut exactly, mut plain) = (Runs::default(), Runs::default());
        // A virtual machine that has just started compiles while it serves: whoever comes first would pay for the other.
        let ours = || measure(given, Some(kafka), Between::Runner(Delivery::ExactlyOnce));
        let theirs = || measure(given, Some(kafka), Between::Plain { transactional: true });
        for _ in 0..COMPILING {
            for latencies in [theirs()?, ours()?] {
                progress(&format!("not counted, on Kafka: p50 {:.2} ms", latencies.quantile_ms(0.5)));
            }
        }
        for run in 0..given.runs {
            // It still gains from run to run: each is first in turn.
            let first = (run % 2 == 1).then(&theirs).transpose()?;
            exactly.note("hop on Kafka", &ours()?);
            plain.note("plain hop on Kafka", &first.map_or_else(&theirs, Ok)?);
        }
        report.add("hop_kafka_p50_ms", Aim::None, &exactly.p50, "Apache Kafka, exactly once");
        report.add("hop_kafka_p99_ms", Aim::None, &exactly.p99, "Apache Kafka, exactly once");
        report.add("hop_kafka_plain_p50_ms", Aim::None, &plain.p50, "plain loop on Apache Kafka");
        report.add(
            "hop_kafka_ratio",
            Aim::AtMost(1.2),
            &ratios(&exactly, &plain),
            "plain loop on Apache Kafka; medians",
        );
    }
    Ok(())
}

fn measure(given: &Given<'_>, kafka: Option<&str>, between: Between) -> anyhow::Result<Latencies> {
    let site = Site::open(kafka)?;
    let counted = Duration::from_secs(given.seconds);
    let latencies = match between {
        Between::Runner(delivery) => {
            let work = Work::Stages(Box::new(|| Ok(Vec::new())));
            let role = site.role(given, Tier::Full, Way { plan: site.plan(0), delivery, work })?;
            let latencies = run(&site, counted);
            role.stop(&site)?;
            latencies?
        }
        Between::Plain { transactional } => {
            let plain = Loop::start(&site, Terms { transactional, batch_max: 500 });
            let latencies = run(&site, counted);
            plain.stop()?;
            latencies?
        }
    };
    site.close()?;
    Ok(latencies)
}

/// Sends turns when they are due, and reads what comes of them.
fn run(site: &Site, counted: Duration) -> anyhow::Result<Latencies> {
    let (seen, ended) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let read = read(site, &seen, &ended);
            ended.store(true, Ordering::Relaxed);
            read
        });
        let sent = send(site, counted, &seen, &ended);
        if sent.is_err() {
            ended.store(true, Ordering::Relaxed);
        }
        let latencies = reading.join().map_err(|_| anyhow::anyhow!("the reader panicked"))?;
        // Where the reader failed, what was sent never comes.
        let latencies = latencies?;
        sent.map(|()| latencies)
    })
}

/// Sends until the time is over, first a few turns until the hop works at all.
fn send(site: &Site, counted: Duration, seen: &AtomicU64, ended: &AtomicBool) -> anyhow::Result<()> {
    let mut config = bare::base(&site.kafka.bootstrap);
    let producer: ThreadedProducer<DefaultProducerContext> =
        config.set("linger.ms", "0").set("partitioner", "murmur2_random").create().context("make a producer")?;
    let mut sent = 0;
    let mut append = |moment: Duration, counts: bool| -> anyhow::Result<()> {
        let (key, value) = said(&site.codec, sent)?;
        let moment = format!("{}-{}", moment.as_nanos(), u8::from(counts));
        let headers = OwnedHeaders::new().insert(Header { key: MOMENT, value: Some(&moment) });
        let record = BaseRecord::to(&site.input).key(&key).payload(&value).headers(headers);
        producer.send(record).map_err(|(error, _)| error).context("append a turn")?;
        sent += 1;
        Ok(())
    };
    let begun = clock();
    while seen.load(Ordering::Relaxed) == 0 {
        anyhow::ensure!(clock() - begun < PATIENCE, "the hop does not start");
        append(clock(), false)?;
        std::thread::sleep(Duration::from_millis(50));
    }
    let schedule = Schedule { start: clock(), per_second: PER_SECOND };
    for n in 0.. {
        let due = schedule.due(n);
        if due > schedule.start + WARM_UP + counted {
            break;
        }
        sleep_until(due);
        append(due, due > schedule.start + WARM_UP)?;
    }
    let all = clock();
    while seen.load(Ordering::Relaxed) < sent {
        anyhow::ensure!(clock() - all < PATIENCE, "{} of {sent} turns came", seen.load(Ordering::Relaxed));
        std::thread::sleep(Duration::from_millis(5));
    }
    ended.store(true, Ordering::Relaxed);
    Ok(())
}

/// Key and value of a turn of about 300 bytes with its headers.
fn said(codec: &Arc<Codec>, number: u64) -> anyhow::Result<(String, Vec<u8>)> {
    let room = format!("room-{}", number % ROOMS);
    let text = "it is what people say to each other when they have a little time, and then they say it again";
    let value = codec.encode(&turn(&room, number as usize, text))?;
    Ok((room, value))
}

/// Reads the output and notes the latencies of what counts, until it is told to end.
fn read(site: &Site, seen: &AtomicU64, ended: &AtomicBool) -> anyhow::Result<Latencies> {
    let consumer = bare::consumer(&site.kafka.bootstrap, "undertone-bench-reader")?;
    let mut all = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        all.add_partition_offset(&site.output, partition, Offset::Beginning)?;
    }
    consumer.assign(&all).context("read the output")?;
    let mut latencies = Latencies::new();
    while !ended.load(Ordering::Relaxed) {
        let Some(message) = consumer.poll(Duration::from_millis(100)) else { continue };
        let message = message.context("read the output")?;
        let now = clock();
        seen.fetch_add(1, Ordering::Relaxed);
        let headers = message.headers().context("the headers travel with the record")?;
        let moment = headers.iter().find(|header| header.key == MOMENT).and_then(|header| header.value);
        let moment = moment.and_then(|moment| std::str::from_utf8(moment).ok()).context("the moment travels too")?;
        let (nanos, counts) = moment.split_once('-').context("a moment is two numbers")?;
        if counts == "1" {
            latencies.note(now.saturating_sub(Duration::from_nanos(nanos.parse()?)));
        }
    }
    anyhow::ensure!(latencies.count() > 0, "nothing came");
    Ok(latencies)
}
