//! Speed of the pipeline, from ingest to stream, beside its peers in the same run.
//!
//! Latencies are measured in an open loop: turns are sent when they are due, whatever became of those before, and a
//! latency counts from the time at which its turn was due. Throughputs are measured on a topic that was filled before.
//! Whatever is compared runs in turns, several times, and the report shows the median with the least and the most. The
//! figures of a busy machine are noise; its ratios are worth a little more.

mod bare;
mod conversations;
mod filled;
mod forward;
mod hop;
mod load;
mod processes;
mod program;
mod site;
mod socket;
pub mod sockets;
mod stages;

use clap::ValueEnum;

use crate::figures::Report;
use crate::{Outcome, Undertone};

/// What to run.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Also measure the hop on this Apache Kafka, as HOST:PORT; topics of its own are made there and removed again.
    #[arg(long, value_name = "HOST:PORT")]
    kafka: Option<String>,
    /// Only these parts, with commas between; all of them otherwise.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PART,…")]
    only: Vec<Part>,
    /// How long each latency is measured, in seconds, beside the warm-up.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// How often each measurement is made.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
}

/// A part of the measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// The full tier on a filled topic, beside the bare model on the same texts.
    Share,
    /// The stages of the fast tier on one core.
    Fast,
    /// Passing records through, beside a plain transactional loop.
    PassThrough,
    /// Latency of one hop without a model, beside a plain loop.
    Hop,
    /// From webhook to socket, all stages; start and memory of the program.
    Socket,
    /// Exactly once beside at least once.
    Delivery,
    /// Two processes on a core each, beside one.
    Processes,
    /// Long conversations beside short ones.
    Conversations,
}

/// Everything that a part is given.
struct Given<'a> {
    undertone: &'a Undertone,
    kafka: Option<&'a str>,
    seconds: u64,
    runs: u32,
}

/// Runs it; progress goes to the error stream.
///
/// # Errors
/// It could not be run. A figure that misses its aim is no error: the report says so.
pub fn run(options: &Options, undertone: &Undertone) -> anyhow::Result<Outcome> {
    let given = Given { undertone, kafka: options.kafka.as_deref(), seconds: options.seconds, runs: options.runs };
    let mut report = Report::new();
    for part in Part::value_variants() {
        if !options.only.is_empty() && !options.only.contains(part) {
            continue;
        }
        match part {
            Part::Share => filled::share(&given, &mut report)?,
            Part::Fast => stages::fast(&given, &mut report)?,
            Part::PassThrough => forward::pass_through(&given, &mut report)?,
            Part::Hop => hop::hop(&given, &mut report)?,
            Part::Socket => socket::socket(&given, &mut report)?,
            Part::Delivery => filled::delivery(&given, &mut report)?,
            Part::Processes => processes::processes(&given, &mut report)?,
            Part::Conversations => conversations::conversations(&given, &mut report)?,
        }
    }
    Ok(report.outcome())
}

/// Meters as the program has them; nobody reads them here, but they cost what they cost.
fn meter() -> opentelemetry::metrics::Meter {
    use opentelemetry::metrics::MeterProvider as _;
    opentelemetry_sdk::metrics::SdkMeterProvider::builder().build().meter("undertone")
}
