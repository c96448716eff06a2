//! `undertone history verify`: the history beside the enriched turns in the log.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Subcommand;
use store::history::verify::{Comparison, verify};

use super::replay::reach;
use super::{Settings, runtime, say};
use crate::health::Health;
use crate::telemetry;
use crate::up::{self, Databases};

#[derive(Debug, Subcommand)]
pub(super) enum HistoryCommand {
    /// Compare the history with the enriched turns that the log holds; status 1 if it lacks some.
    Verify {
        /// Write what is missing or differs.
        #[arg(long)]
        mend: bool,
        /// One JSON object, rather than lines.
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn history(settings: &Settings, command: &HistoryCommand) -> anyhow::Result<ExitCode> {
    let HistoryCommand::Verify { mend, json } = command;
    let config = settings.load()?;
    telemetry::start_log(&config.log, None)?;
    runtime()?.block_on(async {
        let (kafka, broker) = reach(&config).await?;
        let found = async {
            let history = Databases::new(Health::default()).history(&config).await?;
            let told = |found: &Comparison| {
                let _ = writeln!(std::io::stderr(), "{} turns compared", found.compared);
            };
            let registry = up::open_registry(&config, &Health::default(), &telemetry::Metrics::new().meter()).await?;
            verify(&kafka, &history, registry.codec(), *mend, told).await.context("compare the history with the log")
        };
        let found = found.await;
        if let Some(broker) = broker {
            broker.stop().await;
        }
        let found = found?;
        if *json {
            say(&serde_json::to_string(&found).context("write the comparison")?)?;
        } else {
            say(&lines(&found, *mend))?;
        }
        Ok(if found.is_whole() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    })
}

fn lines(found: &Comparison, mend: bool) -> String {
    let Comparison { compared, missing, differing, mended, to_come, unreadable } = found;
    let mut lines = format!("compared    {compared} enriched turns\nmissing     {missing}\ndiffering   {differing}\n");
    if mend {
        lines.push_str(&format!("mended      {mended}\n"));
    } else if missing + differing > 0 {
        lines.push_str("run it again with --mend to write them\n");
    }
    if *to_come > 0 {
        lines.push_str(&format!("to come     {to_come} that the history role has not come to yet\n"));
    }
    if *unreadable > 0 {
        lines.push_str(&format!("unreadable  {unreadable}: see `undertone rejects list --stage history`\n"));
    }
    lines
}
