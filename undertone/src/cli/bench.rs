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
    /// Kill, stop and add processes under load; then count what was lost, doubled or out of order.
    Faults(benchmarks::faults::Options),
}

pub(super) fn bench(settings: &Settings, command: &BenchCommand, json: bool) -> anyhow::Result<ExitCode> {
    let outcome = match command {
        BenchCommand::Broker(options) => benchmarks::broker::run(options),
        BenchCommand::Faults(options) => {
            let models = settings.load()?.models;
            let undertone = benchmarks::faults::Undertone {
                path: std::env::current_exe().context("find the program")?,
                models: locate::models(&models.dir)?,
                onnxruntime: locate::onnxruntime(&models.onnxruntime)?,
            };
            benchmarks::faults::run(options, &undertone, &mut |line| {
                let _ = writeln!(std::io::stderr(), "{line}");
            })
        }
    }?;
    if json {
        say(&serde_json::to_string(&outcome.json).context("write the report")?)?;
    } else {
        say(&outcome.text)?;
    }
    Ok(if outcome.passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
