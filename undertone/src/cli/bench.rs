//! `undertone bench`: what the crate `benchmarks` runs. The report goes to standard output, and what happens meanwhile to
//! the error stream.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Subcommand;

use super::{Settings, say};
use crate::locate;

#[derive(Debug, Subcommand)]
pub(super) enum BenchCommand {
    /// The embedded broker beside an Apache Kafka.
    Broker(benchmarks::broker::Options),
    /// Contexts of a batch loaded and saved: in a file and on a CQL server, without and with a Redis in front.
    Contexts(benchmarks::contexts::Options),
    /// How turns come to several processes that serve streams: each tails the topic, or a Redis hands them out.
    Fanout(benchmarks::fanout::Options),
    /// Kill, stop and add processes under load; then count what was lost, doubled or out of order.
    Faults(benchmarks::faults::Options),
    /// Stop, kill and cut off the servers that the program depends on, under load; measure what is seen, and count.
    Outages(benchmarks::faults::outages::Options),
    /// The history: turns written and pages read, in a file and beside it on a CQL server.
    History(benchmarks::history::Options),
    /// Pages of history: without anything kept, from memory, and with a Redis behind it.
    Pages(benchmarks::pages::Options),
    /// Throughput and latency of the pipeline beside its peers.
    Pipeline(benchmarks::pipeline::Options),
    /// One, two, four and two processes of each role under load: how they share the work, what a turn costs; and count.
    Scale(benchmarks::faults::scale::Options),
    /// Thousands of open WebSockets to an `api` process: memory of each, processor time of each frame.
    Sockets(benchmarks::pipeline::sockets::Options),
}

pub(super) fn bench(settings: &Settings, command: &BenchCommand, json: bool) -> anyhow::Result<ExitCode> {
    let outcome = match command {
        BenchCommand::Broker(options) => benchmarks::broker::run(options),
        BenchCommand::Contexts(options) => benchmarks::contexts::run(options),
        BenchCommand::Fanout(options) => benchmarks::fanout::run(options),
        BenchCommand::Faults(options) => benchmarks::faults::run(options, &undertone(settings)?, &mut |line| {
            let _ = writeln!(std::io::stderr(), "{line}");
        }),
        BenchCommand::Outages(options) => {
            benchmarks::faults::outages::run(options, &undertone(settings)?, &mut |line| {
                let _ = writeln!(std::io::stderr(), "{line}");
            })
        }
        BenchCommand::History(options) => benchmarks::history::run(options),
        BenchCommand::Pages(options) => benchmarks::pages::run(options),
        BenchCommand::Pipeline(options) => benchmarks::pipeline::run(options, &undertone(settings)?),
        BenchCommand::Scale(options) => benchmarks::faults::scale::run(options, &undertone(settings)?, &mut |line| {
            let _ = writeln!(std::io::stderr(), "{line}");
        }),
        BenchCommand::Sockets(options) => benchmarks::pipeline::sockets::run(options, &undertone(settings)?),
    }?;
    if json {
        say(&serde_json::to_string(&outcome.json).context("write the report")?)?;
    } else {
        say(&outcome.text)?;
    }
    Ok(if outcome.passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The program itself, to start it as a process of its own, and what it needs.
fn undertone(settings: &Settings) -> anyhow::Result<benchmarks::Undertone> {
    let models = settings.load()?.models;
    Ok(benchmarks::Undertone {
        path: std::env::current_exe().context("find the program")?,
        models: locate::models(&models.dir)?,
        onnxruntime: locate::onnxruntime(&models.onnxruntime)?,
    })
}
