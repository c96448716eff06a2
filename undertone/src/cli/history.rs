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
    /// Compare the history with the enriched turns that the log holds; status 1 if it lacks some. The list of
    /// conversations is not compared.
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
            let registry =
                up::open_registry(&config, &Databases::new(Health::default()), &telemetry::Metrics::new().meter())
                    .await?;
            let found = verify(&kafka, &history, &registry, *mend, told).await;
            let found = found.context("compare the history with the log")?;
            if found.mended == 0 {
                return Ok((found, None));
            }
            // What was written is not therefore there: what was deleted by hand, with a later time, stays deleted.
            let again = verify(&kafka, &history, &registry, false, told).await;
            anyhow::Ok((found, Some(again.context("compare the mended history with the log")?)))
        };
        let found = found.await;
        if let Some(broker) = broker {
            broker.stop().await;
        }
        let (mut found, again) = found?;
        let left = again.map(|again| again.missing + again.differing);
        found.mended -= left.unwrap_or_default().min(found.mended);
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
        if !found.is_whole() {
            let left = missing + differing - mended;
            lines.push_str(&format!(
                "left        {left}: written, and still not there; was something deleted by hand? Then move the keyspace, or \
                 the file, aside, and let the history role read the log again\n"
            ));
        }
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
