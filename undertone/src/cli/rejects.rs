//! `undertone rejects`: the inputs at fault as a table or as JSON lines, one of them whole, and driving them in again.

mod show;

use std::collections::VecDeque;
use std::io::Write as _;
use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use schemas::Codec;
use schemas::envelope::rfc3339;
use serde_json::{Value, json};
use store::log::Kafka;

use super::{runtime, say};
use crate::config::Config;
use crate::health::Health;
use crate::rejects::redrive::{Bounds, Outcome, Report, Run, Taken};
use crate::rejects::{Found, Reader, Selection, Which, moment};
use crate::telemetry::Metrics;
use crate::topics;
use crate::up::{self, Databases};

/// Rejects in one transaction of a redrive.
const BATCH_REJECTS_MAX: usize = 100;
/// Bytes of the rejects in it, by which it ends: several of the largest.
const BATCH_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Characters of a reason's detail in the table.
const DETAIL_CHARS_MAX: usize = 60;

#[derive(Debug, Subcommand)]
pub(super) enum RejectsCommand {
    /// List inputs at fault, the newest last.
    List {
        #[command(flatten)]
        filter: Filter,
        /// Also those that were driven in again.
        #[arg(long)]
        redriven: bool,
        /// The newest so many.
        #[arg(long, default_value = "50", value_name = "N")]
        limit: NonZeroUsize,
        /// One JSON object a reject, rather than a table.
        #[arg(long)]
        json: bool,
    },
    /// Show one input whole: why it was rejected, its headers, its bytes.
    Show {
        /// PARTITION:OFFSET as `list` shows it, or an id.
        which: Which,
        /// The bytes alone, as they came.
        #[arg(long, conflicts_with = "json")]
        raw: bool,
        /// One JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Drive inputs in again, each once: what intake rejected through the parser of this release, records of the log as
    /// they are. Oldest first. Killed anywhere and started again, it doubles nothing.
    Redrive {
        /// PARTITION:OFFSET as `list` shows it, or ids; none: all that fit the conditions.
        which: Vec<Which>,
        #[command(flatten)]
        filter: Filter,
        /// The oldest so many.
        #[arg(long, value_name = "N")]
        limit: Option<NonZeroUsize>,
        /// Refuse what has been tried this often; without it, [rejects] attempts_max.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..))]
        attempts_max: Option<i32>,
        /// Only say what would become of each.
        #[arg(long)]
        dry_run: bool,
        /// One JSON object, rather than lines.
        #[arg(long)]
        json: bool,
    },
}

/// Conditions; each may be given several times, and any of its values fits.
#[derive(Debug, Args)]
pub(super) struct Filter {
    /// Why: malformed, unknown_schema, unknown_kind, invalid, oversized, killer.
    #[arg(long, value_name = "REASON")]
    reason: Vec<String>,
    /// Who rejected it: ingest, processors, history.
    #[arg(long, value_name = "STAGE")]
    stage: Vec<String>,
    /// The topic that it came from.
    #[arg(long, value_name = "TOPIC")]
    topic: Vec<String>,
    /// The source that it came from: telegram.
    #[arg(long, value_name = "SOURCE")]
    source: Vec<String>,
    /// Rejected at or after: RFC 3339, or how long ago (30m, 2h, 7d).
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Rejected before: likewise.
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
}

impl Filter {
    fn selection(&self, which: Vec<Which>, now: i64) -> anyhow::Result<Selection> {
        let moment = |text: &Option<String>| {
            text.as_deref().map(|text| moment(text, now)).transpose().map_err(anyhow::Error::msg)
        };
        let (since, until) = (moment(&self.since)?, moment(&self.until)?);
        if let (Some(since), Some(until)) = (since, until) {
            anyhow::ensure!(
                since < until,
                "nothing is at or after {} (--since) and before {} (--until): exchange them",
                rfc3339(since),
                rfc3339(until)
            );
        }
        Ok(Selection {
            which,
            reasons: self.reason.clone(),
            stages: self.stage.clone(),
            topics: self.topic.clone(),
            sources: self.source.clone(),
            since,
            until,
        })
    }
}

pub(super) fn rejects(config: &Config, command: RejectsCommand) -> anyhow::Result<ExitCode> {
    let kafka = up::kafka_of(config);
    let now = now();
    // What is wrong in itself is said before anybody is asked.
    let selection = match &command {
        RejectsCommand::List { filter, .. } => filter.selection(Vec::new(), now)?,
        RejectsCommand::Show { .. } => Selection::default(),
        RejectsCommand::Redrive { which, filter, .. } => filter.selection(which.clone(), now)?,
    };
    let work = async {
        let registry = up::open_registry(config, &Databases::new(Health::default()), &Metrics::new().meter()).await?;
        let codec = registry.codec();
        match command {
            RejectsCommand::List { redriven, limit, json, .. } => {
                list(&kafka, codec, &selection, redriven, limit.get(), json).await
            }
            RejectsCommand::Show { which, raw, json } => show::show(&kafka, codec, which, raw, json).await,
            RejectsCommand::Redrive { limit, attempts_max, dry_run, json, .. } => {
                let bounds = bounds(config, limit.map(NonZeroUsize::get), attempts_max);
                if !dry_run {
                    create_topics(config, &kafka).await?;
                }
                let run =
                    Run { kafka: &kafka, registry: &registry, selection: &selection, bounds: &bounds, dry_run, now };
                redrive(run, json).await
            }
        }
    };
    runtime()?.block_on(work).with_context(|| {
        let mend = match config.is_embedded() {
            true => "the embedded broker runs only in `undertone up` or `undertone run broker`",
            false => "the brokers are those of [kafka] bootstrap",
        };
        format!("work on the rejects at {}; {mend}", kafka.bootstrap)
    })
}

fn bounds(config: &Config, limit: Option<usize>, attempts_max: Option<i32>) -> Bounds {
    let intake = ingest::Config::default();
    Bounds {
        limit: limit.unwrap_or(usize::MAX),
        attempts_max: attempts_max.unwrap_or(config.rejects.attempts_max),
        batch_max: BATCH_REJECTS_MAX,
        batch_bytes_max: BATCH_BYTES_MAX,
        parser: ingest::websocket::frame::Bounds {
            text_bytes_max: intake.text_bytes_max,
            batch_frames_max: intake.websocket.batch_frames_max,
        },
    }
}

/// A log that an earlier release set up has no topic for the notes yet.
async fn create_topics(config: &Config, kafka: &Kafka) -> anyhow::Result<()> {
    let admin = store::log::Admin::connect(kafka).context("connect to the log (settings: [kafka])")?;
    let existing = admin.topics().await.context("list the topics")?;
    let wanted = up::topics_wanted(config);
    let wanted: Vec<_> = wanted.into_iter().filter(|spec| spec.name == schemas::topic::REDRIVES).collect();
    topics::apply(&admin, &topics::compare(&wanted, &existing, &kafka.bootstrap))
        .await
        .context("create the topic of the notes")?;
    Ok(())
}

async fn list(
    kafka: &Kafka,
    codec: &Codec,
    selection: &Selection,
    redriven: bool,
    limit: usize,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let mut reader = Reader::open(kafka, codec).await?;
    let mut kept: VecDeque<Found> = VecDeque::new();
    let mut matched = 0_u64;
    while let Some(found) = reader.next().await? {
        if !selection.takes(&found) || (found.redriven.is_some() && !redriven) {
            continue;
        }
        matched += 1;
        // Partitions come one beside the other: in order of time, and the oldest goes when there are too many.
        let at = kept
            .partition_point(|other| (other.reject.at, other.place.offset) <= (found.reject.at, found.place.offset));
        kept.insert(at, found);
        if kept.len() > limit {
            kept.pop_front();
        }
    }
    for unknown in selection.unknown(&reader.seen) {
        let _ = writeln!(std::io::stderr(), "{unknown}");
    }
    if json {
        let lines: String = kept.iter().map(|found| format!("{}\n", summary(found))).collect();
        return if lines.is_empty() { Ok(ExitCode::SUCCESS) } else { say(&lines) };
    }
    let mut text = format!(
        "{:<10} {:<24} {:<11} {:<15} {:>3} {:>9}  {:<9} {}\n",
        "PLACE", "REJECTED", "STAGE", "REASON", "TRY", "BYTES", "STATE", "FROM, AND WHY"
    );
    for found in &kept {
        text += &row(found);
    }
    text += &format!("{matched} match");
    if matched > kept.len() as u64 {
        text += &format!(", the newest {} shown (--limit)", kept.len());
    }
    if reader.unreadable > 0 {
        text += &format!("; {} records there are no rejects that this release can read", reader.unreadable);
    }
    say(&text)
}

fn row(found: &Found) -> String {
    let reject = &found.reject;
    let detail: String = reject.detail.chars().take(DETAIL_CHARS_MAX).collect();
    let more = if detail.len() < reject.detail.len() { "…" } else { "" };
    format!(
        "{:<10} {:<24} {:<11} {:<15} {:>3} {:>9}  {:<9} {}: {detail}{more}\n",
        format!("{}:{}", found.place.partition, found.place.offset),
        rfc3339(reject.at),
        reject.stage,
        reject.reason,
        reject.attempt,
        reject.raw.len(),
        found.redriven.as_ref().map_or("open", |_| "redriven"),
        from(found),
    )
}

/// Where it came from, in few words.
fn from(found: &Found) -> String {
    let reject = &found.reject;
    match (&reject.topic, &reject.source) {
        (Some(topic), _) => {
            format!("{topic} {}:{}", reject.partition.unwrap_or_default(), reject.offset.unwrap_or_default())
        }
        (None, Some(source)) => reject.bot.as_ref().map_or_else(|| source.clone(), |bot| format!("{source} bot {bot}")),
        (None, None) => "unknown".to_owned(),
    }
}

fn summary(found: &Found) -> Value {
    let reject = &found.reject;
    json!({
        "partition": found.place.partition,
        "offset": found.place.offset,
        "id": reject.id,
        "at": rfc3339(reject.at),
        "stage": reject.stage,
        "reason": reject.reason,
        "detail": reject.detail,
        "attempt": reject.attempt,
        "source": reject.source,
        "bot": reject.bot,
        "from": reject.topic.as_ref().map(|topic| {
            json!({ "topic": topic, "partition": reject.partition, "offset": reject.offset })
        }),
        "key": reject.key.as_deref().map(String::from_utf8_lossy),
        "size_bytes": reject.raw.len(),
        "redriven": found.redriven.as_ref().map(|note| {
            json!({ "at": rfc3339(note.at), "outcome": note.outcome, "topic": note.topic })
        }),
    })
}

async fn redrive(run: Run<'_>, json: bool) -> anyhow::Result<ExitCode> {
    let dry_run = run.dry_run;
    let mut items = Vec::new();
    let told = |taken: &Taken| {
        if json && dry_run {
            items.push(item(taken));
        } else if dry_run {
            let _ = say(&line(taken));
        }
    };
    let report = run.go(told, async |_| {}).await?;
    if json {
        let mut value = serde_json::to_value(&report)?;
        if dry_run {
            value["items"] = items.into();
        }
        say(&value.to_string())?;
    } else {
        say(&told_of(&report))?;
    }
    let nothing_done = report.refused > 0 && report.redriven == 0;
    Ok(if report.not_found.is_empty() && !nothing_done { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn item(taken: &Taken) -> Value {
    let mut value = summary(&taken.found);
    value["outcome"] = json!(taken.outcome.name());
    value["why"] = json!(taken.outcome.detail());
    value
}

fn line(taken: &Taken) -> String {
    let place = format!("{}:{}", taken.found.place.partition, taken.found.place.offset);
    let why = taken.outcome.detail().map_or_else(String::new, |why| format!(": {why}"));
    let becomes = match taken.outcome {
        Outcome::Record(None) => "goes back to its topic".to_owned(),
        Outcome::Record(Some(_)) => "goes back to its topic, and is rejected there again".to_owned(),
        Outcome::Read("rejected", _) => "is rejected again".to_owned(),
        Outcome::Read("nothing", _) => "is understood, and nothing of it is kept".to_owned(),
        Outcome::Read(outcome, _) => format!("becomes a {outcome}"),
        Outcome::Refused(_) => "stays".to_owned(),
    };
    format!("{place:<10} {becomes}{why}\n")
}

fn told_of(report: &Report) -> String {
    let Report { selected, redriven, rejected_again, refused, redriven_before, .. } = report;
    let would = if report.dry_run { "would be " } else { "" };
    let mut text = format!("{selected} selected, {redriven} {would}driven in again, {refused} refused");
    if *rejected_again > 0 {
        text += &format!("; {rejected_again} of them {would}rejected again by the parser of this release");
    }
    if *redriven_before > 0 {
        text += &format!("; {redriven_before} had been driven in before");
    }
    text += "\n";
    for not_found in &report.not_found {
        text += &format!("{not_found}\n");
    }
    if !report.dry_run {
        for refusal in &report.refusals {
            text += &format!("{:<10} stays: {}\n", format!("{}:{}", refusal.partition, refusal.offset), refusal.why);
        }
    }
    text
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
