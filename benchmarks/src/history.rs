//! The history: turns written a second, and pages read of conversations from short to very long.
//!
//! On the file of SQLite, and with `--cassandra` beside it on a CQL server, in a keyspace that is made for it and removed.
//! Rows have the size of real enriched turns. Writes are batches as the history role makes them, one after the other;
//! pages are read one after the other, half of them the newest turns and half from anywhere.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use rand::{Rng as _, SeedableRng as _};
use store::cql::Keyspace;
use store::history::{History, Page, Row};
use uuid::Uuid;

use crate::Outcome;
use crate::figures::{Aim, Report, progress};
use crate::latency::Latencies;

/// Bytes of a turn: what 600 texts of GoEmotions dev came to when both stages had enriched them, 878 on average.
const TURN_BYTES: usize = 900;
/// Turns in a batch, as the history role writes them.
const BATCH_TURNS: usize = 500;
/// Conversations whose turns come mixed while writing is measured.
const CONVERSATIONS: usize = 1000;
/// Turns of a page.
const PAGE_TURNS: usize = 50;
/// Pages read of each conversation and run.
const PAGES: usize = 2000;
/// Conversations of other lengths; the longest is an option.
const LENGTHS: [i64; 2] = [1, 1000];
/// Turns of the longest conversation unless another number is asked for.
const LONGEST: i64 = 1_000_000;

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Also measure this CQL server, as HOST:PORT.
    #[arg(long, value_name = "HOST:PORT")]
    cassandra: Option<String>,
    /// Turns of the longest conversation; the figures keep their names.
    #[arg(long, default_value_t = LONGEST, value_parser = clap::value_parser!(i64).range(1000..=100_000_000))]
    longest: i64,
    /// How long writing is measured in each run, in seconds.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// How often each measurement is made.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
}

/// Names of the figures of one backend.
struct Names {
    turns_per_s: &'static str,
    batch_p99_ms: &'static str,
    page_p99_ms: [&'static str; 3],
}

const SQLITE: Names = Names {
    turns_per_s: "sqlite_turns_per_s",
    batch_p99_ms: "sqlite_batch_p99_ms",
    page_p99_ms: ["sqlite_page_p99_ms_1", "sqlite_page_p99_ms_1000", "sqlite_page_p99_ms_1000000"],
};
const CQL: Names = Names {
    turns_per_s: "turns_per_s",
    batch_p99_ms: "batch_p99_ms",
    page_p99_ms: ["page_p99_ms_1", "page_p99_ms_1000", "page_p99_ms_1000000"],
};

/// Runs it; progress goes to the error stream.
///
/// # Errors
/// It could not be run. A figure that misses its aim is no error: the report says so.
pub fn run(options: &Options) -> anyhow::Result<Outcome> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start a runtime")?;
    runtime.block_on(async {
        let mut report = Report::new();
        let folder = tempfile::tempdir().context("make a temporary folder")?;
        let file = History::open(&folder.path().join("history.sqlite")).await.context("open a file")?;
        measure(options, &file, &SQLITE, &mut report).await?;
        let Some(address) = &options.cassandra else { return Ok(report.outcome()) };
        let keyspace = Keyspace::connect(&crate::keyspace_on(address)).await.context("connect to the CQL server")?;
        let history = History::on_scylla(keyspace.clone(), None).await.context("make the tables")?;
        let measured = measure(options, &history, &CQL, &mut report).await;
        keyspace.remove().await.context("remove the keyspace")?;
        measured.map(|()| report.outcome())
    })
}

async fn measure(options: &Options, history: &History, names: &Names, report: &mut Report) -> anyhow::Result<()> {
    let value: Vec<u8> = {
        let mut random = rand::rngs::StdRng::seed_from_u64(7);
        (0..TURN_BYTES).map(|_| random.random()).collect()
    };
    let [mut turns_per_s, mut batch_p99_ms] = [const { Vec::new() }; 2];
    for number in 0..options.runs {
        let (rate, latencies) = write(history, number, &value, Duration::from_secs(options.seconds)).await?;
        turns_per_s.push(rate);
        batch_p99_ms.push(latencies.quantile_ms(0.99));
    }
    report.add(
        names.turns_per_s,
        Aim::None,
        &turns_per_s,
        "one writer, batches of 500 turns of 900 bytes, one after the other",
    );
    report.add(names.batch_p99_ms, Aim::None, &batch_p99_ms, "of such a batch");
    let lengths = [LENGTHS[0], LENGTHS[1], options.longest];
    for (length, name) in lengths.into_iter().zip(names.page_p99_ms) {
        let conversation = format!("of {length}");
        fill(history, &conversation, length, &value).await?;
        let mut p99 = Vec::new();
        for number in 0..options.runs {
            p99.push(read(history, &conversation, length, u64::from(number)).await?.quantile_ms(0.99));
        }
        report.add(name, Aim::AtMost(10.0), &p99, format!("pages of 50 turns, conversation of {length}"));
    }
    Ok(())
}

/// Turns a second, and how long each batch took.
async fn write(history: &History, run: u32, value: &[u8], time: Duration) -> anyhow::Result<(f64, Latencies)> {
    let (mut latencies, mut turns) = (Latencies::new(), 0);
    let begun = Instant::now();
    while begun.elapsed() < time {
        let rows = (turns..turns + BATCH_TURNS)
            .map(|n| row(&format!("{run} of {}", n % CONVERSATIONS), (n / CONVERSATIONS) as i64 + 1, value));
        let (rows, started) = (rows.collect(), Instant::now());
        history.upsert(rows).await.context("write a batch")?;
        latencies.note(started.elapsed());
        turns += BATCH_TURNS;
    }
    Ok((turns as f64 / begun.elapsed().as_secs_f64(), latencies))
}

/// A conversation of so many turns.
async fn fill(history: &History, conversation: &str, length: i64, value: &[u8]) -> anyhow::Result<()> {
    let positions: Vec<i64> = (1..=length).collect();
    for (number, part) in positions.chunks(BATCH_TURNS).enumerate() {
        let rows = part.iter().map(|position| row(conversation, *position, value)).collect();
        history.upsert(rows).await.context("fill a conversation")?;
        if number % 200 == 199 {
            progress(&format!("{conversation}: {} of {length} turns", part[part.len() - 1]));
        }
    }
    Ok(())
}

/// How long pages take; each is checked for what must stand in it.
async fn read(history: &History, conversation: &str, length: i64, seed: u64) -> anyhow::Result<Latencies> {
    let (mut latencies, mut random) = (Latencies::new(), rand::rngs::StdRng::seed_from_u64(seed));
    for number in 0..PAGES {
        let below = (number % 2 == 1).then(|| random.random_range(1..=length) + 1);
        let started = Instant::now();
        let page = history.turns(conversation, Page::Before(below), PAGE_TURNS).await.context("read a page")?;
        latencies.note(started.elapsed());
        let newest = below.map_or(length, |below| below - 1);
        anyhow::ensure!(
            page.len() as i64 == newest.min(PAGE_TURNS as i64)
                && page.first().is_some_and(|row| row.position == newest),
            "a page of {} turns below {below:?}, not what was written",
            page.len()
        );
    }
    Ok(latencies)
}

fn row(conversation: &str, position: i64, value: &[u8]) -> Row {
    Row {
        conversation: conversation.to_owned(),
        position,
        id: Uuid::new_v5(&Uuid::nil(), &position.to_be_bytes()),
        // A turn a second.
        at: 1_700_000_000_000 + position * 1000,
        person: Some(format!("bench:{}", position % 7)),
        value: value.to_vec(),
    }
}
