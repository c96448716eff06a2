//! `undertone replay`: plans a replay, writes the plan down so that the same command goes on after a kill, runs it, and
//! tells how far it has come. The work itself is the processors'.

mod plan;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use processors::replay::{self, Range};
use processors::{Limits, Replay, Surroundings, TierPolicy};
use schemas::Tier;
use schemas::topic::{TURN_BYTES_MAX, TURNS_RECEIVED};
use serde_json::json;
use store::context::Contexts;
use store::log::{Admin, Kafka, LogError, TopicSpec};
use tokio_util::sync::CancellationToken;

use self::plan::{Plan, Request, group};
use super::serve::on_signal;
use super::{TierChoice, runtime, say};
use crate::config::Config;
use crate::health::Health;
use crate::up::{self, Databases, Role, Running};
use crate::{locate, telemetry};

/// Exit code of a replay that was told to stop before it was done: as a shell reports an interrupt.
const STOPPED: u8 = 130;
/// Time between two looks at how far it has come.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Looks between two lines about it.
const LOOKS_A_LINE: u32 = 4;
/// How long a running log is tried to be reached.
const REACH_WITHIN: Duration = Duration::from_secs(3);

/// What to run once more, and through which models.
#[derive(Debug, Args)]
#[command(
    after_help = "The turns go to the topic undertone.turns.replayed.NAME.v1, which is kept until somebody deletes \
                        it; contexts and plan to replays/NAME in the data folder. Live topics and contexts are not \
                        touched. Positions, and which turns were dropped, are as in undertone.turns.enriched.v1. After \
                        a stop or a kill, the same command goes on where it stood."
)]
pub(super) struct Options {
    /// Name of the replay: lower-case letters, digits, hyphens.
    #[arg(long, value_name = "NAME")]
    name: String,
    /// No turn that intake took before this time (RFC 3339, as 2026-01-31T12:00:00Z).
    #[arg(long, value_name = "TIME", value_parser = time)]
    from: Option<i64>,
    /// No turn that intake took at or after this time.
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<i64>,
    /// No turn before these offsets of undertone.turns.received.v1.
    #[arg(long, value_name = "PARTITION:OFFSET,…", value_delimiter = ',', value_parser = place)]
    from_offsets: Vec<(i32, i64)>,
    /// No turn at or behind these offsets of undertone.turns.received.v1.
    #[arg(long, value_name = "PARTITION:OFFSET,…", value_delimiter = ',', value_parser = place)]
    until_offsets: Vec<(i32, i64)>,
    /// Only these partitions.
    #[arg(long, value_name = "PARTITION,…", value_delimiter = ',')]
    partitions: Vec<i32>,
    /// Which models; without it, those of the tier that each turn had.
    #[arg(long, value_enum)]
    tier: Option<TierChoice>,
    /// Folder of the models; without it, that of [models] dir.
    #[arg(long, value_name = "DIR")]
    models: Option<PathBuf>,
    /// A contiguous run of the stages; without it, all of them. What the others added stays in the turns.
    #[arg(long, value_name = "STAGE,…", value_delimiter = ',')]
    stages: Vec<String>,
    /// Only say what would be done.
    #[arg(long)]
    dry_run: bool,
    /// One JSON object, rather than text.
    #[arg(long)]
    json: bool,
}

fn time(text: &str) -> Result<i64, String> {
    schemas::time::milliseconds(text).ok_or_else(|| "give a time as 2026-01-31T12:00:00Z".to_owned())
}

fn place(text: &str) -> Result<(i32, i64), String> {
    let place = text.split_once(':').and_then(|(p, o)| Some((p.parse().ok()?, o.parse().ok()?)));
    place.filter(|(p, o)| *p >= 0 && *o >= 0).ok_or_else(|| "give partition and offset, as 0:1200".to_owned())
}

impl Options {
    fn request(&self) -> anyhow::Result<Request> {
        if let (Some(from), Some(until)) = (self.from, self.until) {
            anyhow::ensure!(from < until, "nothing is at or after --from and before --until: exchange them");
        }
        let absolute = |dir: &PathBuf| std::path::absolute(dir).with_context(|| format!("find {}", dir.display()));
        Ok(Request {
            range: Range {
                from_ms: self.from,
                until_ms: self.until,
                from: by_partition("--from-offsets", &self.from_offsets)?,
                until: by_partition("--until-offsets", &self.until_offsets)?,
                partitions: self.partitions.clone(),
            },
            tier: self.tier.map(Tier::from),
            models: self.models.as_ref().map(absolute).transpose()?,
            stages: self.stages.clone(),
        })
    }
}

fn by_partition(option: &str, places: &[(i32, i64)]) -> anyhow::Result<BTreeMap<i32, i64>> {
    let mut offsets = BTreeMap::new();
    for &(partition, offset) in places {
        let other = offsets.insert(partition, offset);
        anyhow::ensure!(other.is_none(), "{option} names partition {partition} twice: give one offset for it");
    }
    Ok(offsets)
}

/// Where a replay keeps its plan and contexts.
fn folder(config: &Config, name: &str) -> PathBuf {
    config.data.dir.join("replays").join(name)
}

pub(super) fn replay(config: &Config, options: &Options) -> anyhow::Result<ExitCode> {
    replay::check_name(&options.name)?;
    processors::plan(processors::stages::ORDER, &options.stages)?;
    let request = options.request()?;
    telemetry::start_log(&config.log, None)?;
    runtime()?.block_on(async {
        let stop = on_signal()?;
        let (kafka, broker) = reach(config).await?;
        let done = replay_on(config, &kafka, options, request, stop).await;
        if let Some(broker) = broker {
            broker.stop().await;
        }
        done
    })
}

/// The log: an outside one, or the embedded one, whether or not it runs.
pub(super) async fn reach(config: &Config) -> anyhow::Result<(Kafka, Option<Running>)> {
    let mut kafka = up::kafka_of(config);
    if !config.is_embedded() {
        // Readers would wait for brokers that refuse them as for brokers that are away.
        if let Err(error @ LogError::Unauthorized(_)) = Admin::connect(&kafka)?.reachable(REACH_WITHIN).await {
            anyhow::bail!("connect to the brokers at {}: {error}", kafka.bootstrap);
        }
        return Ok((kafka, None));
    }
    anyhow::ensure!(
        config.broker_dir().exists(),
        "there is no log at {}; is --data-dir right?",
        config.broker_dir().display()
    );
    let mut alone = config.clone();
    alone.http.listen.set_port(0);
    alone.broker.listen.set_port(0);
    match up::start(alone, &[Role::Broker]).await {
        Ok(broker) => {
            broker.kafka().clone_into(&mut kafka.bootstrap);
            Ok((kafka, Some(broker)))
        }
        // `undertone up` holds the folder: its log serves.
        Err(error) => match Admin::connect(&kafka)?.reachable(REACH_WITHIN).await {
            Ok(()) => Ok((kafka, None)),
            Err(_) => Err(error.context("open the log for the replay")),
        },
    }
}

async fn replay_on(
    config: &Config,
    kafka: &Kafka,
    options: &Options,
    request: Request,
    stop: CancellationToken,
) -> anyhow::Result<ExitCode> {
    let admin = Admin::connect(kafka).context("connect to the log (settings: [kafka])")?;
    let (folder, topic) = (folder(config, &options.name), replay::topic(&options.name));
    let live = processors::group(&config.processors.group, processors::stages::ORDER[0]);
    let (plan, begun) = Plan::find(&admin, &folder, &options.name, &live, request).await?;
    anyhow::ensure!(
        !plan.received.is_empty(),
        "there is nothing in this range: {TURNS_RECEIVED} has no record there; `undertone topics` shows what it holds"
    );
    if !begun {
        // A plan that cannot run would hold the name.
        let (models, onnxruntime) = weights(config, &plan.request)?;
        processors::Models::open(&models, &onnxruntime, &config.options())
            .with_context(|| format!("load the models of the replay from {}", models.display()))?;
    }
    if options.dry_run {
        return say(&told(options, &plan, &folder, begun)?);
    }
    if !begun {
        plan.write(&folder)?;
    }
    let spec = TopicSpec {
        name: topic.clone(),
        partitions: plan.partitions,
        replication: config.kafka.replication,
        config: [
            // Turns keep their times, so that any retention would begin with what was just written.
            ("retention.ms".to_owned(), "-1".to_owned()),
            ("max.message.bytes".to_owned(), TURN_BYTES_MAX.to_string()),
            ("cleanup.policy".to_owned(), "delete".to_owned()),
        ]
        .into(),
    };
    admin.create(&[spec]).await.context("create the topic of the replay")?;
    let metrics = telemetry::Metrics::new();
    let finished = run(config, kafka, &admin, options, &plan, &folder, &metrics, stop).await?;
    let turns = turns_of(&metrics)?;
    if options.json {
        let contexts = folder.join("contexts.sqlite");
        let done = json!({
            "name": options.name, "topic": topic, "group": replay::group(&options.name), "contexts": contexts,
            "turns": turns, "finished": finished, "not_yet_enriched": plan.not_yet_enriched,
        });
        say(&done.to_string())?;
    } else {
        let state = if finished { "done" } else { "stopped; the same command goes on from here" };
        say(&format!("{}: {state}, {turns} turns written to {topic} by this run\n", options.name))?;
        if plan.not_yet_enriched > 0 {
            let left_out = plan.not_yet_enriched;
            say(&format!("left out: {left_out} records that were not enriched yet when the replay was planned\n"))?;
        }
    }
    Ok(if finished { ExitCode::SUCCESS } else { ExitCode::from(STOPPED) })
}

/// What would be done.
fn told(options: &Options, plan: &Plan, folder: &Path, begun: bool) -> anyhow::Result<String> {
    let records = plan.received.len();
    let (topic, group) = (replay::topic(&options.name), replay::group(&options.name));
    if options.json {
        return Ok(json!({
            "name": options.name, "topic": topic, "group": group, "folder": folder, "begun": begun,
            "records_max": records, "plan": plan,
        })
        .to_string());
    }
    let all = |names: &[String]| if names.is_empty() { "all".to_owned() } else { names.join(", ") };
    let partitions: Vec<String> = plan.request.range.partitions.iter().map(ToString::to_string).collect();
    Ok(format!(
        "{}\n  reads       at most {records} records of {TURNS_RECEIVED}\n  leaves out  \
         {} records that are not enriched yet\n  partitions  {}\n  stages      {}\n  \
         tier        {}\n  writes      {topic}\n  group       {group}\n  contexts    {}\n",
        if begun { "would go on with what was begun" } else { "would begin" },
        plan.not_yet_enriched,
        all(&partitions),
        all(&plan.request.stages),
        plan.request.tier.map_or("as each turn had", Tier::name),
        folder.join("contexts.sqlite").display(),
    ))
}

/// Runs until it is done (true) or told to stop (false).
#[expect(clippy::too_many_arguments, reason = "each is another thing that the run is given")]
async fn run(
    config: &Config,
    kafka: &Kafka,
    admin: &Admin,
    options: &Options,
    plan: &Plan,
    folder: &Path,
    metrics: &telemetry::Metrics,
    stop: CancellationToken,
) -> anyhow::Result<bool> {
    let (models, onnxruntime) = weights(config, &plan.request)?;
    let Request { range, tier, stages, .. } = plan.request.clone();
    let group = group(&options.name, &stages)?;
    let how_far = async || {
        let committed = admin.committed(&group, TURNS_RECEIVED).await.context("ask how far the replay has come")?;
        anyhow::Ok(plan.received.before(&committed))
    };
    let total = plan.received.len();
    if how_far().await? >= total {
        return Ok(true);
    }
    let settings = processors::Config {
        group: replay::group(&options.name),
        instance: config.kafka.instance.clone(),
        stages,
        // Unused: the tier comes from the turn or the replay.
        tier: TierPolicy::Fixed(tier.unwrap_or(Tier::Full)),
        models,
        onnxruntime,
        options: config.options(),
        dialogue: config.dialogue.wanted(),
        limits: Limits { batch_turns_max: config.processors.batch_turns_max, ..Limits::default() },
        loaded: Default::default(),
    };
    let contexts = Contexts::open_with(&folder.join("contexts.sqlite"), up::durability(config)).await;
    let enough = CancellationToken::new();
    let around = Surroundings {
        kafka: kafka.clone(),
        contexts: contexts.context("open the contexts of the replay")?,
        registry: up::open_registry(config, &Databases::new(Health::default()), &metrics.meter()).await?,
        meter: metrics.meter(),
        spans: Default::default(),
        waiting: Arc::default(),
        shutdown: enough.clone(),
    };
    let (received, enriched) = (plan.received.clone(), plan.enriched.clone());
    let replay = Replay { name: options.name.clone(), range, tier, received, enriched };
    let mut work = std::pin::pin!(processors::run_replay(settings, replay, around));
    let (begun, before) = (Instant::now(), how_far().await?);
    let (mut looks, mut finished) = (0, false);
    loop {
        tokio::select! {
            ended = &mut work => {
                ended.context("replay")?;
                return Ok(finished);
            }
            () = stop.cancelled(), if !enough.is_cancelled() => enough.cancel(),
            () = tokio::time::sleep(LOOK_EVERY), if !enough.is_cancelled() => {
                let done = match how_far().await {
                    Ok(done) => done,
                    Err(error) => {
                        // The work ends in order, on a runtime that is still there.
                        enough.cancel();
                        let _ = (&mut work).await;
                        return Err(error);
                    }
                };
                looks += 1;
                finished = done >= total;
                if finished || looks % LOOKS_A_LINE == 0 {
                    let rate = (done - before) as f64 / begun.elapsed().as_secs_f64();
                    let percent = done * 100 / total.max(1);
                    let _ = writeln!(std::io::stderr(), "{done} of {total} records, {percent} %, {rate:.0} a second");
                }
                if finished {
                    enough.cancel();
                }
            }
        }
    }
}

/// The folder of the models, and the library that runs them.
fn weights(config: &Config, request: &Request) -> anyhow::Result<(PathBuf, PathBuf)> {
    let models = request.models.clone().map_or_else(|| locate::models(&config.models.dir), Ok)?;
    Ok((models, locate::onnxruntime(&config.models.onnxruntime)?))
}

/// How many turns the run has written, by its own count.
fn turns_of(metrics: &telemetry::Metrics) -> anyhow::Result<u64> {
    let text = metrics.text().context("read the count of turns")?;
    let lines = text.lines().filter(|l| l.starts_with("undertone_processors_turns_total") && l.contains("enriched"));
    Ok(lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_has_one_bound() {
        assert_eq!(by_partition("--from-offsets", &[(0, 5), (1, 7)]).unwrap(), [(0, 5), (1, 7)].into());
        let error = by_partition("--from-offsets", &[(0, 5), (0, 7)]).unwrap_err().to_string();
        assert_eq!(error, "--from-offsets names partition 0 twice: give one offset for it");
    }

    #[test]
    fn places_and_times_are_read_and_nonsense_is_refused() {
        assert_eq!(place("3:120"), Ok((3, 120)));
        for bad in ["3", "3:", ":1", "-1:5", "1:-5", "a:b"] {
            assert!(place(bad).is_err(), "{bad}");
        }
        assert_eq!(time("1970-01-01T00:00:01Z"), Ok(1000));
        assert!(time("yesterday").is_err());
    }
}
