//! Faults, counted: load with ids and sequence numbers while processes are killed, frozen and added, and stores fail.
//!
//! Every role runs as a process of its own, twice where it can be shared; clients speak through the intake all the
//! time. The faults and their moments come from a seed. At the end everything is read back (the topics as committed
//! readers see them, the history, the contexts) and compared with what was acknowledged and with a single-threaded fold
//! of the log. Left out: faults of the disk below the broker, and what a network does between machines.
//!
//! The moments are real time, so a seed repeats the plan and not every interleaving.

pub mod plan;
pub mod cache;
pub mod load;
pub mod compare;
pub mod timeline;
pub mod outages;
pub mod scale;
mod gate;
mod sight;
mod process;
mod fleet;
mod store;
mod director;
mod read;
mod report;

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ::store::context::Contexts;
use ::store::history::History;
use ::store::log::Kafka;
use anyhow::Context as _;
use processors::{Chain, Models};
use schemas::Codec;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::cache::Cache;
use self::director::{Chained, Counts, Director};
use self::fleet::{Fleet, Server};
use self::load::{Said, Speaking, speak};
use self::plan::{Random, Store, Target};
use self::process::{Program, Slot};
use self::report::Report;
use self::timeline::Lane;
use crate::{Outcome, Undertone};

/// Clients that speak at a time; each has its own conversations.
const CLIENTS: usize = 3;
/// Partitions of the topics: more than processors, so that a rebalance always moves some.
const PARTITIONS: usize = 4;
/// The broker aborts what a frozen process left open after this time.
const TRANSACTION_SECONDS: u64 = 3;
/// Turns in a batch. After a crash as many run one by one, and few of the kills should fall into that.
const BATCH_TURNS: usize = 64;
/// Ports for the broker are taken below those that the system gives to outgoing connections: one of those could sit on
/// the broker's port while it is down.
const PORTS: std::ops::Range<u16> = 12_000..32_000;
/// How long the clients may take to have everything acknowledged, once nothing is killed any more.
const ACKNOWLEDGED_MAX: Duration = Duration::from_secs(90);

/// What to run.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Processes to kill with SIGKILL; the other faults stand among the kills in fixed proportions.
    #[arg(long, default_value_t = 100)]
    kills: usize,
    /// Begins the plan of the faults; without it one is chosen, and told.
    #[arg(long)]
    seed: Option<u64>,
    /// New turns a second.
    #[arg(long, default_value_t = 120.0)]
    rate: f64,
    /// Conversations.
    #[arg(long, default_value_t = 24)]
    conversations: usize,
    /// Brokers of a Kafka that holds nothing of Undertone's yet, rather than the embedded one.
    #[arg(long, value_name = "HOST:PORT")]
    kafka: Option<String>,
    /// Shell command that kills and starts that Kafka: `{}` stands for `kill` and for `start`, which ends when it is
    /// ready. Without it the brokers are spared.
    #[arg(long, value_name = "COMMAND", requires = "kafka")]
    kafka_server: Option<String>,
    /// A Redis in front of the contexts, which is flushed, silent, killed, and brought back to what it was. All that is in
    /// it is lost.
    #[arg(long, value_name = "HOST:PORT")]
    redis: Option<String>,
    /// Shell command that kills and starts that Redis, as `--kafka-server`. Without it, it is flushed instead.
    #[arg(long, value_name = "COMMAND", requires = "redis")]
    redis_server: Option<String>,
    /// Seconds of silence after which a group takes a process for dead.
    #[arg(long, value_name = "SECONDS", default_value_t = 2)]
    session_seconds: u64,
    /// Cut the chain of stages in two, each half with two processes.
    #[arg(long)]
    cut: bool,
    /// Keep the folder of the run, with the logs of all processes, also if all is well.
    #[arg(long)]
    keep: bool,
}

/// Runs it; progress goes to `tell`.
///
/// # Errors
/// It could not be run, or the pipeline did not come to rest.
pub fn run(options: &Options, undertone: &Undertone, tell: &mut dyn FnMut(&str)) -> anyhow::Result<Outcome> {
    in_folder("faults", options.keep, tell, async |folder, tell| {
        Box::pin(faults(options, undertone, folder, tell)).await
    })
}

/// Runs what keeps its state in a folder, until it is done or interrupted. The folder stays, and is told, if that is asked
/// for or not all was well.
fn in_folder(
    name: &str,
    keep: bool,
    tell: &mut dyn FnMut(&str),
    work: impl AsyncFnOnce(&Path, &mut dyn FnMut(&str)) -> anyhow::Result<Outcome>,
) -> anyhow::Result<Outcome> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let folder = tempfile::Builder::new().prefix(&format!("undertone-{name}-")).tempdir().context("make a folder")?;
    let outcome = runtime.block_on(async {
        tokio::select! {
            outcome = work(folder.path(), tell) => outcome,
            _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
        }
    });
    if keep || !outcome.as_ref().is_ok_and(|outcome| outcome.passed) {
        tell(&format!("kept {}: state, and the logs of the processes", folder.keep().display()));
    }
    runtime.shutdown_background();
    outcome
}

async fn faults(
    options: &Options,
    undertone: &Undertone,
    folder: &Path,
    tell: &mut dyn FnMut(&str),
) -> anyhow::Result<Outcome> {
    let seed = options.seed.unwrap_or_else(clock);
    tell(&format!("seed {seed}"));
    let mut random = Random::new(seed);
    let stand = stand(options, undertone, folder)?;
    let kafka = Kafka { bootstrap: stand.bootstrap.clone(), client_id: "faults".to_owned(), ..Kafka::default() };
    let spared = options.kafka.is_some() && options.kafka_server.is_none();
    if options.kafka.is_some() {
        let fresh = read::is_fresh(&kafka).await?;
        anyhow::ensure!(fresh, "{} holds turns already: give a Kafka without Undertone's topics", stand.bootstrap);
    }
    let (count, enriched) = watch::channel(0);
    let mut director = Director {
        fleet: stand.fleet,
        kafka: kafka.clone(),
        cache: options.redis.as_deref().map(|address| Cache::new(address, options.redis_server.as_deref())),
        session: Duration::from_secs(options.session_seconds),
        chains: stand.chains,
        enriched,
        counts: Counts::default(),
        kills: options.kills,
    };
    let always: Vec<Target> = director.fleet.slots.keys().copied().filter(|target| *target != Target::Extra).collect();
    always.iter().try_for_each(|target| director.fleet.start(*target))?;
    let (enough, counted) = (CancellationToken::new(), CancellationToken::new());
    let clients = clients(options, &director.fleet, &enough, &mut random);
    let counting = tokio::spawn(read::count(kafka.clone(), count, counted.clone()));
    let processors = always.iter().filter(|target| matches!(target, Target::Processors(_))).count();
    let steps = plan::steps(options.kills, processors, !spared, options.redis.is_some(), &mut random);
    director.run(&steps, tell).await?;
    let faulted_for = director.fleet.elapsed();
    tell("no more faults; waiting until everything has been read");
    let said = rest(&mut director, clients, &enough).await?;
    counted.cancel();
    let _ = counting.await;
    let codec = Arc::new(Codec::embedded());
    let data = folder.join("data");
    let history = History::open(&data.join("history.sqlite")).await.context("open the history")?;
    let contexts = Contexts::open(&data.join("contexts.sqlite")).await.context("open the contexts")?;
    let evidence = read::evidence(&kafka, &history, &contexts, &codec, said).await.context("read what came out")?;
    tell("comparing with a fold of the log by a single thread");
    let findings = tokio::task::block_in_place(|| {
        let models = Models::open(
            &undertone.models,
            &undertone.onnxruntime,
            &processors::Options { cores: 1, ..processors::Options::default() },
        )?;
        compare::compare(&evidence, &Chain::new(processors::stages::all(&models), true, Arc::clone(&codec)), &codec)
    })?;
    director.fleet.kill_broker_of_ours()?;
    let report = Report {
        seed,
        log: options.kafka.as_ref().map_or("the embedded broker".to_owned(), |at| format!("the Kafka at {at}")),
        faulted_for,
        evidence: &evidence,
        findings: &findings,
        counts: &director.counts,
        ended: &director.fleet.ended,
        timeline: &director.fleet.timeline,
        names: names(&director.fleet, options.redis.is_some()),
    };
    Ok(report.outcome())
}

/// The clients finish, every reader of the log reads all of it, and the processes end in good order.
async fn rest(
    director: &mut Director,
    mut clients: tokio::task::JoinSet<anyhow::Result<Said>>,
    enough: &CancellationToken,
) -> anyhow::Result<Said> {
    director.fleet.leave(Target::Extra);
    director.fleet.settle()?;
    enough.cancel();
    let mut said = Said::default();
    let begun = std::time::Instant::now();
    while !clients.is_empty() {
        anyhow::ensure!(begun.elapsed() < ACKNOWLEDGED_MAX, "the intake does not acknowledge what clients send again");
        director.fleet.pass(Duration::from_millis(20)).await?;
        while let Some(ended) = clients.try_join_next() {
            said.join(ended.context("a client ended abnormally")??);
        }
    }
    director.catch_up().await?;
    director.stop().await?;
    Ok(said)
}

fn clients(
    options: &Options,
    fleet: &Fleet,
    enough: &CancellationToken,
    random: &mut Random,
) -> tokio::task::JoinSet<anyhow::Result<Said>> {
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..CLIENTS {
        let speaking = Speaking {
            conversations: (client..options.conversations.max(CLIENTS)).step_by(CLIENTS).collect(),
            rate: options.rate / CLIENTS as f64,
            address: fleet.address.subscribe(),
            enough: enough.clone(),
        };
        clients.spawn(speak(speaking, Random::new(random.number())));
    }
    clients
}

/// What is put to the test.
struct Stand {
    fleet: Fleet,
    chains: Vec<Chained>,
    bootstrap: String,
}

fn stand(options: &Options, undertone: &Undertone, folder: &Path) -> anyhow::Result<Stand> {
    std::fs::create_dir_all(folder.join("logs")).context("make a folder for logs")?;
    let bootstrap = match &options.kafka {
        Some(bootstrap) => bootstrap.clone(),
        None => format!("127.0.0.1:{}", free_port()?),
    };
    let program = Program {
        path: undertone.path.clone(),
        folder: folder.to_owned(),
        variables: variables(options, undertone, &bootstrap),
    };
    let chains = chains(options.cut)?;
    let mut slots = BTreeMap::new();
    let mut add = |target, name: &str, roles: &[&'static str], variables| {
        slots.insert(target, Slot::new(name, roles, variables));
    };
    if options.kafka.is_none() {
        add(Target::Broker, "broker", &["broker"], vec![("UNDERTONE__KAFKA__BOOTSTRAP", String::new())]);
    }
    add(Target::Ingest, "ingest", &["ingest"], Vec::new());
    add(Target::History, "history", &["history", "api"], Vec::new());
    let instance = |name: &str, chain: &Chained| {
        let mut variables = chain.variables.clone();
        variables.push(("UNDERTONE__KAFKA__INSTANCE", name.to_owned()));
        variables
    };
    // Twice each chain, and one more of the first.
    for (number, chain) in chains.iter().chain(&chains).enumerate() {
        let name = format!("processors-{}", number + 1);
        add(Target::Processors(number), &name, &["processors"], instance(&name, chain));
    }
    add(Target::Extra, "processors-x", &["processors"], instance("processors-x", &chains[0]));
    let server = options.kafka_server.as_deref().map(Server::new);
    Ok(Stand { fleet: Fleet::new(program, slots, server), chains, bootstrap })
}

fn variables(options: &Options, undertone: &Undertone, bootstrap: &str) -> Vec<(&'static str, String)> {
    let path = |path: &Path| path.to_string_lossy().into_owned();
    let mut variables = vec![
        ("UNDERTONE__HTTP__LISTEN", "127.0.0.1:0".to_owned()),
        ("UNDERTONE__BROKER__LISTEN", bootstrap.to_owned()),
        ("UNDERTONE__BROKER__SESSION_SECONDS_MIN", "1".to_owned()),
        ("UNDERTONE__KAFKA__BOOTSTRAP", bootstrap.to_owned()),
        ("UNDERTONE__KAFKA__PARTITIONS", PARTITIONS.to_string()),
        ("UNDERTONE__KAFKA__SESSION_SECONDS_MAX", options.session_seconds.to_string()),
        ("UNDERTONE__PROCESSORS__TRANSACTION_SECONDS_MAX", TRANSACTION_SECONDS.to_string()),
        ("UNDERTONE__PROCESSORS__TIER", "fast".to_owned()),
        ("UNDERTONE__PROCESSORS__BATCH_TURNS_MAX", BATCH_TURNS.to_string()),
        ("UNDERTONE__CONTEXT__ONLY_MACHINE", "true".to_owned()),
        ("UNDERTONE__MODELS__DIR", path(&undertone.models)),
        ("UNDERTONE__MODELS__ONNXRUNTIME", path(&undertone.onnxruntime)),
        ("UNDERTONE__LOG__FORMAT", "json".to_owned()),
        ("UNDERTONE__LOG__LEVEL", "info".to_owned()),
    ];
    if let Some(redis) = &options.redis {
        variables.push(("UNDERTONE__CONTEXT__CACHE", "redis".to_owned()));
        variables.push(("UNDERTONE__REDIS__NODES", redis.clone()));
    }
    variables
}

/// The chains that the processors run: one, or two halves.
fn chains(cut: bool) -> anyhow::Result<Vec<Chained>> {
    let order = processors::stages::ORDER;
    let halves = if cut { vec![&order[..order.len() / 2], &order[order.len() / 2..]] } else { vec![order] };
    let chained = |stages: &[&str]| {
        let plan = processors::plan(order, stages)?;
        Ok(Chained {
            group: processors::group("undertone.processors", stages[0]),
            topic: plan.input,
            name: stages[0].to_owned(),
            variables: vec![("UNDERTONE__PROCESSORS__STAGES", stages.join(","))],
        })
    };
    halves.into_iter().map(chained).collect()
}

fn names(fleet: &Fleet, cache: bool) -> BTreeMap<Lane, String> {
    let mut names: BTreeMap<Lane, String> =
        fleet.slots.iter().map(|(target, slot)| (Lane::Process(*target), slot.name.clone())).collect();
    names.insert(Lane::Store(Store::Contexts), "contexts (store)".to_owned());
    names.insert(Lane::Store(Store::History), "history (store)".to_owned());
    if cache {
        names.insert(Lane::Cache, "Redis".to_owned());
    }
    if fleet.server.is_some() {
        names.insert(Lane::Process(Target::Broker), "Kafka".to_owned());
    }
    names
}

fn free_port() -> anyhow::Result<u16> {
    let mut random = Random::new(clock() ^ u64::from(std::process::id()));
    for _ in 0..PORTS.len() {
        let port = PORTS.start + random.below(u64::from(PORTS.end - PORTS.start)) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    anyhow::bail!("no port is free from {} to {}", PORTS.start, PORTS.end)
}

fn clock() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::from(since.subsec_nanos())
}
