//! The embedded broker beside an Apache Kafka, in one run.
//!
//! The embedded broker runs as a process of its own, so that its memory can be read. Both are driven by the same rdkafka
//! code in this process, in rounds that take turns in who goes first, so that what else the machine does weighs on both.
//! A round fills a new topic with 300-byte records, reads it, and then measures the time from produce to consume at a
//! fixed rate: an open loop, each latency counted from the moment at which its record was due, whether it was sent in
//! time or not. What is compared is the median of the rounds; the spread is printed beside it.

mod embedded;
mod load;
mod report;

use std::io::Write as _;

use anyhow::Context as _;

use crate::Outcome;
use embedded::Embedded;
use load::{Load, Round};

/// What to run.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Bootstrap address of an Apache Kafka to compare with, as host:port; without it the figures stand alone.
    #[arg(long, value_name = "HOST:PORT")]
    against: Option<String>,
    /// Rounds that count.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Rounds before them that do not: a Java machine compiles what it runs often.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(0..=10))]
    warm_up: u32,
    /// Records that a round produces and consumes as fast as it can.
    #[arg(long, default_value_t = 500_000, value_parser = clap::value_parser!(u32).range(1_000..=10_000_000))]
    records: u32,
    /// Records a second while latency is measured.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(10..=50_000))]
    rate: u32,
    /// How long latency is measured in a round, in seconds.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
}

/// Runs it; progress goes to the error stream.
///
/// # Errors
/// A broker cannot be reached, or does not give back what it acknowledged.
pub fn run(options: &Options) -> anyhow::Result<Outcome> {
    let dir = tempfile::tempdir().context("make a folder for the embedded broker")?;
    let embedded = Embedded::start(dir.path())?;
    let mut brokers = vec![("embedded", embedded.bootstrap.clone())];
    brokers.extend(options.against.clone().map(|bootstrap| ("apache", bootstrap)));
    let load = Load { records: options.records, rate: options.rate, seconds: options.seconds };
    let mut rounds: Vec<Vec<Round>> = vec![Vec::new(); brokers.len()];
    for number in 0..options.warm_up + options.rounds {
        for turn in 0..brokers.len() {
            let which = (turn + number as usize) % brokers.len();
            let (name, bootstrap) = &brokers[which];
            let round = load.round(bootstrap).with_context(|| format!("measure the {name} broker at {bootstrap}"))?;
            let counts = number >= options.warm_up;
            tell(name, &round, counts);
            if counts {
                rounds[which].push(round);
            }
        }
    }
    let peak_bytes = embedded.peak_memory_bytes()?;
    let mut rounds = rounds.into_iter();
    let own = rounds.next().context("rounds of the embedded broker")?;
    Ok(report::report(options, &own, rounds.next().as_deref(), peak_bytes))
}

fn tell(name: &str, round: &Round, counts: bool) {
    let Round { produced_per_s, consumed_per_s, p50_ms, p99_ms, .. } = round;
    let unit = if counts { "" } else { " (warm-up)" };
    // Nobody may be reading the error stream.
    let _ = writeln!(
        std::io::stderr(),
        "{name}: produced {produced_per_s:.0}/s, consumed {consumed_per_s:.0}/s, latency p50 {p50_ms:.2} ms, p99 \
         {p99_ms:.2} ms{unit}"
    );
}
