//! `undertone bench`: what the crate `benchmarks` runs. The report goes to standard output, and what happens meanwhile to
//! the error stream.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Subcommand;

use super::say;

#[derive(Debug, Subcommand)]
pub(super) enum BenchCommand {
    /// The embedded broker beside an Apache Kafka.
    Broker(benchmarks::broker::Options),
    /// Kill, stop and add processes under load; then count what was lost, doubled or out of order.
    Faults(benchmarks::faults::Options),
    /// Throughput and latency from ingest to stream, beside bare peers.
    Pipeline(benchmarks::pipeline::Options),
}

pub(super) fn bench(command: &BenchCommand, json: bool) -> anyhow::Result<ExitCode> {
    let outcome = match command {
        BenchCommand::Broker(options) => benchmarks::broker::run(options),
        BenchCommand::Faults(options) => benchmarks::faults::run(options),
        BenchCommand::Pipeline(options) => benchmarks::pipeline::run(options),
    }?;
    if json {
        say(&serde_json::to_string(&outcome.json).context("write the report")?)?;
    } else {
        say(&outcome.text)?;
    }
    Ok(if outcome.passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
