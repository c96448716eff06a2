//! Outages, measured and counted: under load each server that the program depends on stands still, dies, and is reached
//! through a network that is silent, slow, narrow or resets; what a client sees meanwhile, and how soon all is well again.
//!
//! The program is one process of all roles but the broker, its log on an Apache Kafka, history and contexts on an Apache
//! Cassandra, both behind proxies. At the end everything is read back and compared, as after [`super::run`].

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::store::context::Contexts;
use ::store::cql::{Keyspace, Scylla};
use ::store::history::History;
use ::store::log::Kafka;
use anyhow::Context as _;
use processors::{Chain, Models};
use rustix::process::{Pid, Signal, kill_process};
use schemas::Codec;
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::director::{Counts, Director};
use super::fleet::Fleet;
use super::gate::{Gate, Passing};
use super::plan::{Random, Target};
use super::process::{Program, Slot};
use super::sight::{self, Seen};
use super::{ACKNOWLEDGED_MAX, clients, compare, read, variables};
use crate::{Outcome, Undertone};

/// Time between two looks at the program.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long all may take to be well again before the run is given up.
const WELL_WITHIN: Duration = Duration::from_secs(120);
/// The most that the requirement allows.
const WELL_MAX: Duration = Duration::from_secs(30);
/// Between two outages.
const PAUSE: Duration = Duration::from_secs(3);
/// What a network that is bad does.
const DELAY: Duration = Duration::from_millis(300);
const BYTES_PER_S: u32 = 8 * 1024;
const RESET_AT: Duration = Duration::from_millis(700);

/// What to run.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Where an Apache Kafka listens that holds nothing of Undertone's yet.
    #[arg(long, value_name = "HOST:PORT")]
    kafka: String,
    /// What its `advertised.listeners` says, where nobody listens yet: the proxy will.
    #[arg(long, value_name = "HOST:PORT")]
    kafka_advertised: String,
    /// Shell command about it: `{}` stands for `kill`, for `start`, which ends when it is ready, and for `pid`.
    #[arg(long, value_name = "COMMAND")]
    kafka_server: String,
    /// Where an Apache Cassandra listens that has what it acknowledged on the disk (`commitlog_sync: batch`).
    #[arg(long, value_name = "HOST:PORT")]
    cassandra: String,
    /// Shell command about it, likewise.
    #[arg(long, value_name = "COMMAND")]
    cassandra_server: String,
    /// How long a server is away; a bad network lasts a third of it.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(3..=3600))]
    seconds: u64,
    /// Only the outages whose name has this in it, such as "kafka", or "kafka killed".
    #[arg(long, value_name = "NAME", default_value = "")]
    only: String,
    /// New turns a second.
    #[arg(long, default_value_t = 60.0)]
    rate: f64,
    /// Keep the folder of the run, with the log of the program, also if all is well.
    #[arg(long)]
    keep: bool,
}

/// A server that the program depends on.
struct Server {
    name: &'static str,
    command: String,
    gate: Gate,
}

/// What happens to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outage {
    /// SIGSTOP, then SIGCONT.
    Stops,
    /// SIGKILL, then started again.
    Dies,
    Network(&'static str, Passing),
}

/// All of them, in the order in which they happen.
const OUTAGES: [Outage; 6] = [
    Outage::Stops,
    Outage::Dies,
    Outage::Network("silent", Passing::Silent),
    Outage::Network("delayed 300 ms", Passing::Delayed(DELAY)),
    Outage::Network("8 KiB a second", Passing::Throttled(BYTES_PER_S)),
    Outage::Network("resets", Passing::Reset(RESET_AT)),
];

impl Outage {
    fn name(self) -> &'static str {
        match self {
            Outage::Stops => "stands still",
            Outage::Dies => "killed",
            Outage::Network(name, _) => name,
        }
    }
}

/// One outage, and what was seen of it.
struct Row {
    server: &'static str,
    outage: Outage,
    seen: Seen,
    /// From its end until the program calls itself ready, and until another turn has come out.
    well: Well,
}

/// How the program came back.
struct Well {
    ready: Duration,
    progress: Duration,
    /// What it last said that it waits for.
    waited: Option<String>,
}

/// Runs it; progress goes to `tell`.
///
/// # Errors
/// It could not be run, or the program did not come to rest.
pub fn run(options: &Options, undertone: &Undertone, tell: &mut dyn FnMut(&str)) -> anyhow::Result<Outcome> {
    super::in_folder("outages", options.keep, tell, async |folder, tell| {
        Box::pin(outages(options, undertone, folder, tell)).await
    })
}

async fn outages(
    options: &Options,
    undertone: &Undertone,
    folder: &Path,
    tell: &mut dyn FnMut(&str),
) -> anyhow::Result<Outcome> {
    std::fs::create_dir_all(folder.join("logs")).context("make a folder for logs")?;
    let servers = [
        Server {
            name: "kafka",
            command: options.kafka_server.clone(),
            gate: Gate::start(&options.kafka_advertised, &options.kafka).await?,
        },
        Server {
            name: "cassandra",
            command: options.cassandra_server.clone(),
            gate: Gate::start("127.0.0.1:0", &options.cassandra).await?,
        },
    ];
    let kafka = Kafka { bootstrap: servers[0].gate.address(), client_id: "outages".to_owned(), ..Kafka::default() };
    anyhow::ensure!(read::is_fresh(&kafka).await?, "give a Kafka without Undertone's topics");
    let scylla = crate::keyspace_on(&options.cassandra);
    let mut director = director(options, undertone, folder, &kafka, &servers[1].gate.address(), &scylla)?;
    director.fleet.start(Target::Ingest)?;
    let enough = CancellationToken::new();
    let faults = options.load();
    let mut speaking = clients(&faults, &director.fleet, &enough, &mut Random::new(1));
    let up = director.fleet.until(WELL_WITHIN, |fleet| fleet.address.borrow().is_some()).await?;
    anyhow::ensure!(up, "the program does not start; its log is in {}", director.fleet.logs().display());
    well(&mut director.fleet).await?;

    let mut rows = Vec::new();
    for server in &servers {
        for outage in OUTAGES {
            let name = format!("{} {}", server.name, outage.name());
            if !name.contains(&options.only) {
                continue;
            }
            director.fleet.pass(PAUSE).await?;
            let row = happen(&mut director.fleet, server, outage, options.seconds).await.context(name)?;
            tell(&row.line());
            rows.push(row);
        }
    }
    anyhow::ensure!(
        !rows.is_empty(),
        "no outage is called \"{}\": leave --only out, and see their names",
        options.only
    );
    tell("no more outages; waiting until everything has been read");
    enough.cancel();
    let mut said = super::Said::default();
    let begun = Instant::now();
    while !speaking.is_empty() {
        anyhow::ensure!(begun.elapsed() < ACKNOWLEDGED_MAX, "the intake does not acknowledge what clients send again");
        director.fleet.pass(Duration::from_millis(20)).await?;
        while let Some(ended) = speaking.try_join_next() {
            said.join(ended.context("a client ended abnormally")??);
        }
    }
    director.catch_up().await?;
    director.stop().await?;

    let keyspace = Keyspace::connect(&scylla).await.context("connect to the CQL server")?;
    let history = History::on_scylla(keyspace.clone(), None).await.context("open the history")?;
    let contexts = Contexts::on_scylla(keyspace.clone()).await.context("open the contexts")?;
    let codec = Arc::new(Codec::embedded());
    let evidence = read::evidence(&kafka, &history, &contexts, &codec, said).await.context("read what came out")?;
    let findings = tokio::task::block_in_place(|| {
        let models = Models::open(
            &undertone.models,
            &undertone.onnxruntime,
            &processors::Options { cores: 1, ..processors::Options::default() },
        )?;
        compare::compare(&evidence, &Chain::new(processors::stages::all(&models), true, Arc::clone(&codec)), &codec)
    })?;
    keyspace.remove().await.context("remove the keyspace")?;
    Ok(outcome(&rows, &evidence, &findings, &director.fleet))
}

impl Options {
    /// The load, as for faults.
    fn load(&self) -> super::Options {
        super::Options {
            kills: 0,
            seed: Some(1),
            rate: self.rate,
            conversations: 12,
            kafka: Some(self.kafka_advertised.clone()),
            kafka_server: None,
            redis: None,
            redis_server: None,
            session_seconds: 6,
            cut: false,
            keep: self.keep,
        }
    }
}

fn director(
    options: &Options,
    undertone: &Undertone,
    folder: &Path,
    kafka: &Kafka,
    cassandra: &str,
    scylla: &Scylla,
) -> anyhow::Result<Director> {
    let mut variables = variables(&options.load(), undertone, &kafka.bootstrap);
    variables.retain(|(name, _)| *name != "UNDERTONE__PROCESSORS__TRANSACTION_SECONDS_MAX");
    variables.extend([
        ("UNDERTONE__CONTEXT__KIND", "scylla".to_owned()),
        ("UNDERTONE__HISTORY__KIND", "scylla".to_owned()),
        ("UNDERTONE__SCYLLA__NODES", cassandra.to_owned()),
        ("UNDERTONE__SCYLLA__KEYSPACE", scylla.keyspace.clone()),
        ("UNDERTONE__SCYLLA__REPLICATION", scylla.replication.clone()),
    ]);
    // What this command was given as variables is tried rather than the run's own settings.
    variables.retain(|(name, _)| std::env::var_os(name).is_none());
    let program = Program { path: undertone.path.clone(), folder: folder.to_owned(), variables };
    let roles = ["ingest", "processors", "history", "api"];
    let slots = BTreeMap::from([(Target::Ingest, Slot::new("undertone", &roles, Vec::new()))]);
    let (_, enriched) = watch::channel(0);
    Ok(Director {
        fleet: Fleet::new(program, slots, None),
        kafka: kafka.clone(),
        session: Duration::from_secs(6),
        chains: super::chains(false)?,
        enriched,
        counts: Counts::default(),
        kills: 0,
        cache: None,
    })
}

/// One outage, from its beginning until all is well again.
async fn happen(fleet: &mut Fleet, server: &Server, outage: Outage, seconds: u64) -> anyhow::Result<Row> {
    let address = fleet.address.borrow().clone().context("the program runs")?;
    let lasts = Duration::from_secs(seconds);
    let (lasts, pid) = match outage {
        Outage::Stops => {
            let pid = server.pid().await?;
            kill_process(pid, Signal::STOP).context("stop the server")?;
            (lasts, Some(pid))
        }
        Outage::Dies => {
            server.ask("kill").await?;
            (lasts, None)
        }
        Outage::Network(_, passing) => {
            server.gate.set(passing);
            (lasts / 3, None)
        }
    };
    let mut seen = Seen::default();
    let begun = Instant::now();
    while begun.elapsed() < lasts {
        seen.look(&address, begun.elapsed()).await;
        fleet.pass(LOOK_EVERY).await?;
    }
    match outage {
        Outage::Stops => kill_process(pid.context("it was stopped")?, Signal::CONT).context("let the server go on")?,
        Outage::Dies => drop(server.ask("start").await?),
        Outage::Network(..) => server.gate.set(Passing::Freely),
    }
    Ok(Row { server: server.name, outage, seen, well: well(fleet).await? })
}

/// Waits until the program calls itself ready and another turn has come out of it.
async fn well(fleet: &mut Fleet) -> anyhow::Result<Well> {
    let (begun, mut ready, mut progress, mut first) = (Instant::now(), None, None, None);
    let mut waited = None;
    loop {
        // It may have ended and been started again, at another address.
        if let Some(address) = fleet.address.borrow().clone() {
            let reasons = sight::reasons(&address).await;
            let is_ready = reasons.as_ref().is_some_and(Vec::is_empty);
            ready = is_ready.then(|| ready.unwrap_or_else(|| begun.elapsed()));
            waited = reasons.filter(|reasons| !reasons.is_empty()).map(|reasons| reasons.join("; ")).or(waited);
            let turns = sight::turns(&address).await;
            let came = turns.is_some_and(|turns| turns > *first.get_or_insert(turns));
            progress = progress.or(came.then(|| begun.elapsed()));
        }
        if let (Some(ready), Some(progress)) = (ready, progress) {
            return Ok(Well { ready, progress, waited });
        }
        anyhow::ensure!(
            begun.elapsed() < WELL_WITHIN,
            "not well again after {} s: it {}ready, turns {}, and it last waited for: {}; its log is in {}",
            WELL_WITHIN.as_secs(),
            if ready.is_some() { "is " } else { "is not " },
            if progress.is_some() { "came out" } else { "did not come out" },
            waited.as_deref().unwrap_or("nothing"),
            fleet.logs().display()
        );
        fleet.pass(LOOK_EVERY).await?;
    }
}

impl Server {
    /// Has its command do something; what it prints.
    async fn ask(&self, verb: &'static str) -> anyhow::Result<String> {
        let line = self.command.replace("{}", verb);
        let output = tokio::task::spawn_blocking(move || Command::new("sh").args(["-c", &line]).output()).await?;
        let output = output.with_context(|| format!("{verb} the {}", self.name))?;
        let said = String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(output.status.success(), "{verb} the {}: {said}", self.name);
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    async fn pid(&self) -> anyhow::Result<Pid> {
        let pid = self.ask("pid").await?;
        pid.parse().ok().and_then(Pid::from_raw).with_context(|| format!("{pid} is a process id"))
    }
}

impl Row {
    fn line(&self) -> String {
        let named = self.seen.named_after.map_or("-".to_owned(), |after| format!("{:.1}", after.as_secs_f64()));
        format!(
            "{:<10} {:<15} {:>9} {:<9} {:>6} {:>8} {:>7.1} {:>10.1}  {}",
            self.server,
            self.outage.name(),
            named,
            self.seen.worst(),
            self.seen.pages_in_time(),
            self.seen.pages_marked(),
            self.well.ready.as_secs_f64(),
            self.well.progress.as_secs_f64(),
            self.well.waited.as_deref().unwrap_or("-"),
        )
    }
}

fn outcome(rows: &[Row], evidence: &compare::Evidence, findings: &compare::Findings, fleet: &Fleet) -> Outcome {
    let in_time = rows.iter().all(|row| row.well.ready.max(row.well.progress) <= WELL_MAX);
    let passed = findings.is_clean() && in_time && fleet.ended.is_empty();
    let mut text = format!(
        "{:<10} {:<15} {:>9} {:<9} {:>6} {:>8} {:>7} {:>10}  {}\n",
        "server", "outage", "named s", "readiness", "pages", "degraded", "ready s", "progress s", "last waited for"
    );
    for row in rows {
        text += &format!("{}\n", row.line());
    }
    text += "\nnamed s: from its beginning until /readyz named the server; readiness: the worst that it said; pages: share \
             of pages of turns that were answered 200, and of those the share that was marked as degraded; ready s and \
             progress s: from its end until /readyz said ready, and until another turn came out.\n\n";
    let mut line = |name: &str, value: u64| text += &format!("{name:<44} {value}\n");
    line("turns acknowledged", evidence.said.acknowledged.len() as u64);
    line("lost", findings.lost);
    line("doubled", findings.doubled);
    line("out of order", findings.out_of_order);
    line("contexts differing from one thread's fold", findings.contexts_differing);
    line("times that the program ended by itself", fleet.ended.len() as u64);
    for difference in &findings.told {
        text += &format!("  {difference}\n");
    }
    for ended in &fleet.ended {
        text += &format!("  ended at {:.1} s with {}: {}\n", ended.at.as_secs_f64(), ended.status, ended.reason);
    }
    let told: Vec<_> = rows
        .iter()
        .map(|row| {
            json!({
                "server": row.server, "outage": row.outage.name(),
                "named_s": row.seen.named_after.map(|after| after.as_secs_f64()),
                "readiness": row.seen.worst(), "pages_answered": row.seen.pages_in_time(),
                "pages_degraded": row.seen.pages_marked(), "slowest_answer_s": row.seen.slowest.as_secs_f64(),
                "ready_s": row.well.ready.as_secs_f64(), "progress_s": row.well.progress.as_secs_f64(),
                "last_waited_for": row.well.waited,
            })
        })
        .collect();
    let json = json!({
        "outages": told, "sent": evidence.said.acknowledged.len(), "lost": findings.lost, "doubled": findings.doubled,
        "out_of_order": findings.out_of_order, "contexts_differing": findings.contexts_differing,
        "turns_differing": findings.turns_differing, "ended_by_itself": fleet.ended.len(),
    });
    Outcome { text, json, passed }
}
