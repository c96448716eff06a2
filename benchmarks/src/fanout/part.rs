//! The parts, each a process of its own. It says one line when it is ready, answers `count` where it reads, and ends with
//! its input.

use std::io::{BufRead as _, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use api::measured::{self, Fed};
use broker::Broker;
use schemas::topic::TURNS_ENRICHED;
use serde::{Deserialize, Serialize};
use store::log::{From, Kafka, Tail};
use tokio_util::sync::CancellationToken;

use super::load::room;
use super::{ROOMS, Way, redis};
use crate::latency::Latencies;

/// Turns that may wait for a follower: all of a burst.
const QUEUE_TURNS_MAX: usize = 1 << 18;

/// Which part a process is.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "role", rename_all = "snake_case")]
pub(super) enum Part {
    /// The log.
    Broker { folder: PathBuf },
    /// Reads the topic and hands it to Redis.
    Publisher { kafka: String, redis: String, way: Way },
    /// A hub, and a follower of the rooms from the first number to the second, counted in a circle.
    Reader { kafka: String, redis: String, way: Way, rooms: (usize, usize) },
}

/// Is that part until the input ends.
pub(super) fn run(part: Part) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start threads")?;
    match part {
        Part::Broker { folder } => {
            let broker = runtime.block_on(Broker::start(broker::Config::new(folder)))?;
            say(&broker.bootstrap())?;
            until_the_end(|| Ok(()))
        }
        Part::Publisher { kafka, redis, way } => {
            let tail = runtime.block_on(tail(kafka))?;
            let publishing = runtime.spawn(async move { redis::publish(tail, &redis, way).await });
            say("ready")?;
            until_the_end(|| still(&publishing))
        }
        Part::Reader { kafka, redis, way, rooms: (first, last) } => {
            let rooms: Vec<String> = (first..last).map(|number| room(number % ROOMS)).collect();
            let (seen, latencies) = (Arc::new(AtomicU64::new(0)), Arc::new(Mutex::new(Latencies::new())));
            let tail = runtime.block_on(tail(kafka))?;
            let (fed, mut follower) = measured::hub(tail.positions(), &rooms, QUEUE_TURNS_MAX);
            let feeding = match way {
                Way::Tail => runtime
                    .spawn(async move { fed.tail(tail, CancellationToken::new()).await.context("read the topic") }),
                way => {
                    drop(tail);
                    let source = runtime.block_on(redis::Source::open(&redis, way, &rooms))?;
                    runtime.spawn(from_redis(source, fed))
                }
            };
            runtime.spawn({
                let (seen, latencies) = (Arc::clone(&seen), Arc::clone(&latencies));
                async move {
                    while let Some(said) = follower.next().await {
                        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                        if let Some((moment, "1")) = said.split_once('-') {
                            let moment = Duration::from_nanos(moment.parse().unwrap_or_default());
                            let mut latencies = latencies.lock().unwrap_or_else(PoisonError::into_inner);
                            latencies.note(now.saturating_sub(moment));
                        }
                        seen.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
            say("ready")?;
            until_the_end(|| {
                still(&feeding)?;
                say(&seen.load(Ordering::Relaxed).to_string())
            })?;
            let latencies = latencies.lock().unwrap_or_else(PoisonError::into_inner);
            say(&format!("[{},{}]", latencies.quantile_ms(0.5), latencies.quantile_ms(0.99)))
        }
    }
}

async fn tail(bootstrap: String) -> anyhow::Result<Tail> {
    let kafka = Kafka { bootstrap, client_id: "undertone-bench".to_owned(), ..Kafka::default() };
    Tail::open(&kafka, TURNS_ENRICHED, From::End).await.context("open the topic")
}

async fn from_redis(mut source: redis::Source, fed: Fed) -> anyhow::Result<()> {
    loop {
        for message in source.next().await? {
            fed.take(message);
        }
    }
}

/// Whether the work goes on.
fn still<T>(work: &tokio::task::JoinHandle<anyhow::Result<T>>) -> anyhow::Result<()> {
    anyhow::ensure!(!work.is_finished(), "the work ended");
    Ok(())
}

/// Answers each line of the input.
fn until_the_end(answer: impl Fn() -> anyhow::Result<()>) -> anyhow::Result<()> {
    for line in std::io::stdin().lock().lines() {
        line.context("read what is asked")?;
        answer()?;
    }
    Ok(())
}

fn say(line: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).context("answer")
}
