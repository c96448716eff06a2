//! Contexts: how long a batch takes to load and to save those of its conversations, without and with a Redis in front.
//!
//! In a SQLite file, and with `--cassandra` beside it on a CQL server, in a keyspace that is made for it and removed. Batches
//! come one after the other, as the processors' do; each is of other conversations than the one before, and each
//! conversation comes back after some batches, so that all are in the cache when they are loaded.

use std::time::Instant;

use anyhow::Context as _;
use opentelemetry::metrics::Meter;
use schemas::Stamp;
use store::context::{Batch, Contexts, Epoch, Start, Version, Write};
use store::cql::Keyspace;
use store::redis::{Redis, Settings};
use uuid::Uuid;

use crate::Outcome;
use crate::figures::{Aim, Report, progress};
use crate::latency::Latencies;

/// Slices of a conversation, as the whole chain has them today.
const STAGES: [&str; 4] = ["sequence", "encode", "emotion", "dialogue"];
/// Batches after which a conversation comes back.
const ROUND: i64 = 10;

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Also measure this CQL server, as HOST:PORT.
    #[arg(long, value_name = "HOST:PORT")]
    cassandra: Option<String>,
    /// Also measure each behind this Redis.
    #[arg(long, value_name = "HOST:PORT")]
    redis: Option<String>,
    /// Conversations in a batch.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1000))]
    conversations: u16,
    /// Bytes of each of a conversation's three slices.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    slice_bytes: u32,
    /// Batches in each run.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(20..=1_000_000))]
    batches: u32,
    /// How often each measurement is made.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
}

/// Names of the figures of one backend: loads, and saves, at the middle and at the 99th percentile.
type Names = [&'static str; 4];

const FILE: Names = ["sqlite_load_p50_ms", "sqlite_load_p99_ms", "sqlite_save_p50_ms", "sqlite_save_p99_ms"];
const FILE_CACHED: Names =
    ["sqlite_redis_load_p50_ms", "sqlite_redis_load_p99_ms", "sqlite_redis_save_p50_ms", "sqlite_redis_save_p99_ms"];
const CQL: Names = ["cql_load_p50_ms", "cql_load_p99_ms", "cql_save_p50_ms", "cql_save_p99_ms"];
const CQL_CACHED: Names =
    ["cql_redis_load_p50_ms", "cql_redis_load_p99_ms", "cql_redis_save_p50_ms", "cql_redis_save_p99_ms"];

/// Runs it; progress goes to the error stream.
///
/// # Errors
/// It could not be run, or a batch was not loaded as it was saved.
pub fn run(options: &Options) -> anyhow::Result<Outcome> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start a runtime")?;
    runtime.block_on(async {
        let mut report = Report::new();
        let folder = tempfile::tempdir().context("make a temporary folder")?;
        let file = Contexts::open(&folder.path().join("contexts.sqlite")).await.context("open a file")?;
        both(options, &file, [&FILE, &FILE_CACHED], &mut report).await?;
        let Some(address) = &options.cassandra else { return Ok(report.outcome()) };
        let keyspace = Keyspace::connect(&crate::keyspace_on(address)).await.context("connect to the CQL server")?;
        let contexts = Contexts::on_scylla(keyspace.clone()).await.context("make the tables")?;
        let measured = both(options, &contexts, [&CQL, &CQL_CACHED], &mut report).await;
        keyspace.remove().await.context("remove the keyspace")?;
        measured.map(|()| report.outcome())
    })
}

/// Without a cache, and behind one where it is there.
async fn both(options: &Options, contexts: &Contexts, names: [&Names; 2], report: &mut Report) -> anyhow::Result<()> {
    measure(options, contexts, names[0], report).await?;
    let Some(address) = &options.redis else { return Ok(()) };
    let settings =
        Settings { nodes: vec![address.clone()], prefix: format!("bench-{}", Uuid::new_v4()), ..Settings::default() };
    let meter: Meter = opentelemetry::global::meter("bench");
    let redis = Redis::connect(settings, &meter).await.context("connect to Redis")?;
    measure(options, &contexts.clone().cached(redis, &meter), names[1], report).await
}

async fn measure(options: &Options, contexts: &Contexts, names: &Names, report: &mut Report) -> anyhow::Result<()> {
    let mut runs = [const { Vec::new() }; 4];
    let assigned = contexts.assign("bench", 0).await.context("take the partition")?;
    let mut offset = assigned.watermark.unwrap_or(0);
    for _ in 0..options.runs {
        let [mut loads, mut saves] = [Latencies::new(), Latencies::new()];
        for number in 0..i64::from(options.batches) + ROUND {
            let [load, save] = batch(options, contexts, assigned.epoch, &mut offset).await?;
            // In the first round they are new.
            if number >= ROUND {
                loads.note(load);
                saves.note(save);
            }
        }
        let figures =
            [loads.quantile_ms(0.5), loads.quantile_ms(0.99), saves.quantile_ms(0.5), saves.quantile_ms(0.99)];
        runs.iter_mut().zip(figures).for_each(|(run, figure)| run.push(figure));
    }
    progress(&format!("{}: done", names[0]));
    let Options { conversations, slice_bytes, .. } = options;
    for (name, runs) in names.iter().zip(&runs) {
        report.add(
            name,
            Aim::None,
            runs,
            format!("batches of {conversations} conversations, three slices of {slice_bytes} bytes"),
        );
    }
    Ok(())
}

/// Loads and saves a batch; how long each took.
async fn batch(
    options: &Options,
    contexts: &Contexts,
    epoch: Epoch,
    offset: &mut i64,
) -> anyhow::Result<[std::time::Duration; 2]> {
    let (below, count) = (*offset, i64::from(options.conversations));
    let round = below / count % ROUND;
    let conversations: Vec<String> = (0..count).map(|number| format!("conversation {round} {number}")).collect();
    let start = Start { partition: 0, epoch, offset: below, below, conversations: conversations.clone() };
    let begun = Instant::now();
    let mut found = contexts.load("bench", start, &STAGES).await.context("load a batch")?;
    let load = begun.elapsed();
    let is_known = below >= count * ROUND;
    let whole = found.len() == if is_known { conversations.len() * STAGES.len() } else { 0 };
    anyhow::ensure!(whole, "{} slices were loaded at {below}", found.len());
    let mut writes = Vec::with_capacity(conversations.len() * STAGES.len());
    for (number, conversation) in (below..).zip(conversations) {
        for stage in STAGES {
            let previous = found.remove(&(conversation.clone(), stage.to_owned()));
            let age = previous.as_ref().map(|version| version.stamp.offset - number);
            anyhow::ensure!(!is_known || age == Some(-count * ROUND), "{conversation:?} was loaded from {age:?}");
            let stamp = Stamp { partition: 0, offset: number };
            let bytes = vec![number as u8; options.slice_bytes as usize];
            let (conversation, stage) = (conversation.clone(), stage.to_owned());
            writes.push(Write { conversation, stage, current: Version { stamp, bytes }, previous });
        }
    }
    *offset += count;
    let begun = Instant::now();
    let batch = Batch { chain: "bench".to_owned(), partition: 0, epoch, watermark: *offset, writes };
    contexts.save(batch).await.context("save a batch")?;
    Ok([load, begun.elapsed()])
}
