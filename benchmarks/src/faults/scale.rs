//! Scale in small: one, two, four and again two processes of each role share the work of one log while clients speak all
//! the time; how it was shared, what a turn cost, and the count at the end.
//!
//! Intake is shared by clients, which are spread over its processes; processors and history writers share the partitions
//! of their groups; each `api` reads all turns and has its share of the sockets. Nothing fails here: the changes
//! themselves are put to the test. Left out: what a network does between machines, and speed that needs more processors
//! than this machine has, so what must stay the same is the work of a turn, counted by the kernel.

mod crew;
mod hearing;
mod report;
mod shares;
mod sizes;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::store::context::Contexts;
use ::store::cql::{Keyspace, Scylla};
use ::store::history::History;
use ::store::log::{Admin, Kafka};
use anyhow::Context as _;
use clap::ValueEnum;
use processors::{Chain, Models};
use schemas::{Codec, topic};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::crew::{Crew, Kind};
use self::hearing::Hearing;
use self::report::{Phase, Report, Shared};
use super::load::{Said, Speaking, speak};
use super::plan::Random;
use super::{ACKNOWLEDGED_MAX, compare, free_port, read};
use crate::{Outcome, Undertone};

/// Processes of each role, one phase after the other.
const COUNTS: [usize; 4] = [1, 2, 4, 2];
/// Processes of each role at most.
const COUNT_MAX: usize = 4;
/// Clients that speak to each process of the intake.
const CLIENTS: usize = 4;
/// Streams that follow everything; the `api` processes have equally many.
const STREAMS: usize = 8;
/// Conversations that are read back at once, so no more are spoken in.
const CONVERSATIONS_MAX: i64 = 500;
/// Time between a change and the measurement, once all partitions have their readers.
const QUIET: Duration = Duration::from_secs(2);
/// How long a change may take.
const CHANGED_MAX: Duration = Duration::from_secs(60);
/// How long the readers may take to come to the end, when nobody speaks any more.
const CAUGHT_UP_MAX: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// What to run.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// How long each number of processes is measured, in seconds.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(2..=3600))]
    seconds: u64,
    /// New turns a second for each process of a role: the load grows with the processes.
    #[arg(long, default_value_t = 60.0)]
    rate: f64,
    /// Conversations.
    #[arg(long, default_value_t = 400, value_parser = clap::value_parser!(i64).range(16..=CONVERSATIONS_MAX))]
    conversations: i64,
    /// Partitions of the topics.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(4..=256))]
    partitions: u16,
    /// The models that serve.
    #[arg(long, value_enum, default_value_t = Tier::Fast)]
    tier: Tier,
    /// Brokers of a Kafka that holds nothing of Undertone's yet, rather than the embedded one.
    #[arg(long, value_name = "HOST:PORT")]
    kafka: Option<String>,
    /// Contexts and history on this CQL server, in a keyspace of the run's own, rather than in files.
    #[arg(long, value_name = "HOST:PORT")]
    cassandra: Option<String>,
    /// A Redis in front of the contexts.
    #[arg(long, value_name = "HOST:PORT", requires = "cassandra")]
    redis: Option<String>,
    /// Keep the folder of the run, with the logs of all processes, and the keyspace, also if all is well.
    #[arg(long)]
    keep: bool,
}

/// A tier of the models.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Tier {
    Fast,
    Full,
}

impl Tier {
    fn name(self) -> &'static str {
        match self {
            Tier::Fast => "fast",
            Tier::Full => "full",
        }
    }
}

/// Runs it; progress goes to `tell`.
///
/// # Errors
/// It could not be run, a process ended by itself, or the pipeline did not come to rest.
pub fn run(options: &Options, undertone: &Undertone, tell: &mut dyn FnMut(&str)) -> anyhow::Result<Outcome> {
    super::in_folder("scale", options.keep, tell, async |folder, tell| {
        Box::pin(scale(options, undertone, folder, tell)).await
    })
}

async fn scale(
    options: &Options,
    undertone: &Undertone,
    folder: &Path,
    tell: &mut dyn FnMut(&str),
) -> anyhow::Result<Outcome> {
    std::fs::create_dir_all(folder.join("logs")).context("make a folder for logs")?;
    let bootstrap = match &options.kafka {
        Some(bootstrap) => bootstrap.clone(),
        None => format!("127.0.0.1:{}", free_port()?),
    };
    let kafka = Kafka { bootstrap, client_id: "scale".to_owned(), ..Kafka::default() };
    if options.kafka.is_some() {
        anyhow::ensure!(read::is_fresh(&kafka).await?, "give a Kafka without Undertone's topics");
    }
    let scylla = options.cassandra.as_deref().map(crate::keyspace_on);
    let variables = variables(options, undertone, &kafka.bootstrap, scylla.as_ref());
    let mut stage = Stage {
        crew: Crew::new(&undertone.path, folder, variables, options.kafka.is_none()),
        admin: Admin::connect(&kafka)?,
        kafka: kafka.clone(),
        partitions: usize::from(options.partitions),
        speakers: speakers(options),
        speaking: JoinSet::new(),
        hearing: Hearing::new(),
    };
    let mut phases = Vec::new();
    for count in COUNTS {
        let phase = stage.phase(count, Duration::from_secs(options.seconds)).await;
        let phase = phase.with_context(|| format!("{count} processes of each role"))?;
        tell(&phase.line());
        phases.push(phase);
    }
    tell("waiting until everything has been read");
    stage.speakers.iter().for_each(|speaker| speaker.enough.cancel());
    let said = stage.said().await?;
    stage.caught_up().await?;
    stage.crew.stop().await?;
    let evidence = evidence(folder, &kafka, scylla.as_ref(), said).await?;
    tell("comparing with a fold of the log by a single thread");
    let codec = Arc::new(Codec::embedded());
    let findings = tokio::task::block_in_place(|| {
        let models = Models::open(
            &undertone.models,
            &undertone.onnxruntime,
            &processors::Options { cores: 1, ..processors::Options::default() },
        )?;
        compare::compare(&evidence, &Chain::new(processors::stages::all(&models), true, Arc::clone(&codec)), &codec)
    })?;
    stage.crew.kill_broker();
    let mut sizes = sizes::of_files(&folder.join("data"))?;
    if let Some(redis) = &options.redis {
        sizes.insert("redis".to_owned(), sizes::of_redis(redis, &prefix(scylla.as_ref())).await?);
    }
    if let Some(scylla) = &scylla {
        if options.keep {
            tell(&format!("kept the keyspace {}", scylla.keyspace));
        } else {
            Keyspace::connect(scylla).await?.remove().await.context("remove the keyspace")?;
        }
    }
    let shape = format!(
        "{} partitions, {} conversations, {} tier, {} turns a second for each process, log: {}, contexts and history: {}",
        options.partitions,
        options.conversations,
        options.tier.name(),
        options.rate,
        options.kafka.as_deref().unwrap_or("the embedded broker"),
        options.cassandra.as_deref().unwrap_or("files"),
    );
    Ok(Report { shape, phases: &phases, evidence: &evidence, findings: &findings, sizes: &sizes }.outcome())
}

/// Who shares partitions, as which consumer group, of which topic.
fn groups() -> [(Kind, String, &'static str); 2] {
    let processors = processors::group("undertone.processors", processors::stages::ORDER[0]);
    [
        (Kind::Processors, processors, topic::TURNS_RECEIVED),
        (Kind::History, "undertone.history".to_owned(), topic::TURNS_ENRICHED),
    ]
}

/// The run as it goes.
struct Stage {
    crew: Crew,
    admin: Admin,
    kafka: Kafka,
    partitions: usize,
    /// Clients: so many of them speak as there are processes for.
    speakers: Vec<Speaker>,
    speaking: JoinSet<anyhow::Result<Said>>,
    hearing: Hearing,
}

impl Stage {
    /// Goes to another number of processes under load, and measures them.
    async fn phase(&mut self, count: usize, time: Duration) -> anyhow::Result<Phase> {
        let begun = Instant::now();
        self.change(count).await?;
        let changed_in = begun.elapsed();
        self.pass(QUIET).await?;
        let streams = self.crew.addresses(Kind::Api);
        self.hearing.open(&streams, STREAMS - 1).await?;
        let changing = self.hearing.measure();
        let (before, begun) = (self.crew.look().await?, Instant::now());
        self.pass(time).await?;
        let (after, took) = (self.crew.look().await?, begun.elapsed());
        let steady = self.hearing.settle();
        self.hearing.close().await?;
        let mut partitions = std::collections::BTreeMap::new();
        for (kind, group, _) in groups() {
            partitions.insert(kind, shares::of(&self.kafka, &group).await?);
        }
        let shared = Kind::ALL.into_iter().filter_map(|kind| Shared::of(kind, &before, &after, &partitions));
        Ok(Phase { count, took, changed_in, changing, steady, roles: shared.collect() })
    }

    /// Processes come, or hand their clients over and go, until there are `count` of each role and all partitions have
    /// their readers.
    async fn change(&mut self, count: usize) -> anyhow::Result<()> {
        let coming = self.crew.start(count)?;
        self.until("the processes do not start", async |stage: &mut Stage| Ok(stage.crew.are_ready(&coming))).await?;
        let intakes = self.crew.addresses(Kind::Ingest);
        for (client, speaker) in self.speakers.iter_mut().enumerate() {
            speaker.address.send_replace(intakes.get(client % count).cloned());
            let has_begun = speaker.waiting.is_none();
            if client >= count * CLIENTS && has_begun {
                speaker.enough.cancel();
            } else if client < count * CLIENTS
                && let Some(what) = speaker.waiting.take()
            {
                self.speaking.spawn(speak(what, Random::new(client as u64)));
            }
        }
        let leaving = self.crew.leave(count);
        self.until("a process does not end on SIGTERM", async |stage: &mut Stage| Ok(stage.crew.are_gone(&leaving)))
            .await?;
        for (_, group, _) in groups() {
            self.until("the partitions are not shared", async |stage: &mut Stage| {
                let shares = shares::of(&stage.kafka, &group).await?;
                Ok(shares.len() == count && shares.iter().sum::<usize>() == stage.partitions)
            })
            .await?;
        }
        if !self.hearing.is_open() {
            self.hearing.always(&self.crew.addresses(Kind::Api)[0]).await?;
        }
        Ok(())
    }

    async fn until(
        &mut self,
        otherwise: &'static str,
        holds: impl AsyncFn(&mut Stage) -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let begun = Instant::now();
        while !holds(self).await? {
            anyhow::ensure!(begun.elapsed() < CHANGED_MAX, "{otherwise} within {} s", CHANGED_MAX.as_secs());
            self.pass(LOOK_EVERY).await?;
        }
        Ok(())
    }

    /// Lets time pass; whoever ends by itself ends the run.
    async fn pass(&mut self, time: Duration) -> anyhow::Result<()> {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.crew.look_after()?;
            tokio::time::sleep(LOOK_EVERY.min(until.saturating_duration_since(Instant::now()))).await;
        }
        Ok(())
    }

    /// What the clients said, when all of it is acknowledged.
    async fn said(&mut self) -> anyhow::Result<Said> {
        let (mut said, begun) = (Said::default(), Instant::now());
        while !self.speaking.is_empty() {
            anyhow::ensure!(begun.elapsed() < ACKNOWLEDGED_MAX, "the intake does not acknowledge what clients say");
            self.pass(LOOK_EVERY).await?;
            while let Some(ended) = self.speaking.try_join_next() {
                said.join(ended.context("a client ended abnormally")??);
            }
        }
        Ok(said)
    }

    async fn caught_up(&mut self) -> anyhow::Result<()> {
        let begun = Instant::now();
        for (_, group, topic) in groups() {
            loop {
                let ends = self.admin.offsets(topic).await.context("ask for the ends")?;
                let committed = self.admin.committed(&group, topic).await.context("ask for committed offsets")?;
                if ends.iter().all(|(partition, (low, high))| committed.get(partition).unwrap_or(low) >= high) {
                    break;
                }
                anyhow::ensure!(begun.elapsed() < CAUGHT_UP_MAX, "{group} does not come to the end of {topic}");
                self.pass(LOOK_EVERY).await?;
            }
        }
        Ok(())
    }
}

/// A client.
struct Speaker {
    /// Where it is to speak.
    address: watch::Sender<Option<String>>,
    /// No new turns from then on.
    enough: CancellationToken,
    /// What it will say, until it begins.
    waiting: Option<Speaking>,
}

fn speakers(options: &Options) -> Vec<Speaker> {
    let count = CLIENTS * COUNT_MAX;
    let speaker = |client: usize| {
        let (address, enough) = (watch::Sender::new(None), CancellationToken::new());
        let waiting = Some(Speaking {
            conversations: (client..options.conversations as usize).step_by(count).collect(),
            rate: options.rate / CLIENTS as f64,
            address: address.subscribe(),
            enough: enough.clone(),
        });
        Speaker { address, enough, waiting }
    };
    (0..count).map(speaker).collect()
}

/// What stands in front of the keys of a run's own in Redis.
fn prefix(scylla: Option<&Scylla>) -> String {
    scylla.map_or("bench".to_owned(), |scylla| scylla.keyspace.clone())
}

fn variables(
    options: &Options,
    undertone: &Undertone,
    bootstrap: &str,
    scylla: Option<&Scylla>,
) -> Vec<(&'static str, String)> {
    let path = |path: &Path| path.to_string_lossy().into_owned();
    let mut variables = vec![
        ("UNDERTONE__HTTP__LISTEN", "127.0.0.1:0".to_owned()),
        ("UNDERTONE__BROKER__LISTEN", bootstrap.to_owned()),
        ("UNDERTONE__KAFKA__BOOTSTRAP", bootstrap.to_owned()),
        ("UNDERTONE__KAFKA__PARTITIONS", options.partitions.to_string()),
        ("UNDERTONE__PROCESSORS__TIER", options.tier.name().to_owned()),
        ("UNDERTONE__CONTEXT__ONLY_MACHINE", "true".to_owned()),
        ("UNDERTONE__MODELS__DIR", path(&undertone.models)),
        ("UNDERTONE__MODELS__ONNXRUNTIME", path(&undertone.onnxruntime)),
        ("UNDERTONE__LOG__FORMAT", "json".to_owned()),
    ];
    if let (Some(scylla), Some(nodes)) = (scylla, &options.cassandra) {
        variables.extend([
            ("UNDERTONE__CONTEXT__KIND", "scylla".to_owned()),
            ("UNDERTONE__HISTORY__KIND", "scylla".to_owned()),
            ("UNDERTONE__SCYLLA__NODES", nodes.clone()),
            ("UNDERTONE__SCYLLA__KEYSPACE", scylla.keyspace.clone()),
            ("UNDERTONE__SCYLLA__REPLICATION", scylla.replication.clone()),
        ]);
    }
    if let Some(redis) = &options.redis {
        variables.extend([
            ("UNDERTONE__CONTEXT__CACHE", "redis".to_owned()),
            ("UNDERTONE__REDIS__NODES", redis.clone()),
            ("UNDERTONE__REDIS__PREFIX", prefix(scylla)),
        ]);
    }
    variables
}

async fn evidence(
    folder: &Path,
    kafka: &Kafka,
    scylla: Option<&Scylla>,
    said: Said,
) -> anyhow::Result<compare::Evidence> {
    let (history, contexts) = match scylla {
        Some(scylla) => {
            let keyspace = Keyspace::connect(scylla).await.context("connect to the CQL server")?;
            (History::on_scylla(keyspace.clone(), None).await?, Contexts::on_scylla(keyspace).await?)
        }
        None => {
            let data = folder.join("data");
            (History::open(&data.join("history.sqlite")).await?, Contexts::open(&data.join("contexts.sqlite")).await?)
        }
    };
    read::evidence(kafka, &history, &contexts, &Codec::embedded(), said).await.context("read what came out")
}
