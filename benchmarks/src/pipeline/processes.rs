//! Two processes that share the work, a core each, beside one process on one core: the full tier on a filled topic. The
//! broker is a third process and may use every core, as it would beside them on one machine.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use schemas::Codec;
use schemas::topic::{TURNS_ENRICHED, TURNS_RECEIVED};
use store::log::{Admin, Kafka, Producer, ProducerLimits};

use super::Given;
use super::load::{record, texts, turn};
use super::program::{Launch, Program, cores};
use crate::figures::{Aim, Report, progress};

/// Turns in the topic: some seconds of work for two cores.
const TURNS: usize = 4000;
/// Conversations: enough that partitions are about equally full.
const ROOMS: usize = 1000;
const LOOK_EVERY: Duration = Duration::from_millis(50);
const PATIENCE: Duration = Duration::from_secs(120);

/// The speed of two processes, by that of one.
pub(super) fn processes(given: &Given<'_>, report: &mut Report) -> anyhow::Result<()> {
    let cores = cores()?;
    anyhow::ensure!(cores.len() >= 2, "two processes on a core each need two cores; leave this part out with --only");
    let texts = texts(&given.undertone.models, TURNS)?;
    let (mut ratios, mut one, mut two) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..given.runs {
        let alone = rate(given, &texts, &cores[..1])?;
        let both = rate(given, &texts, &cores[..2])?;
        progress(&format!("one process {alone:.0}, two {both:.0} turns a second"));
        ratios.push(both / alone);
        one.push(alone);
        two.push(both);
    }
    report.add("one_process_per_s", Aim::None, &one, "full tier, filled topic, one core");
    report.add("two_processes_per_s", Aim::None, &two, "the same, two processes, a core each");
    report.add("two_process_ratio", Aim::AtLeast(1.8), &ratios, "the two above");
    Ok(())
}

/// Turns a second in the middle of the work, with a process on each of these cores.
fn rate(given: &Given<'_>, texts: &[String], cores: &[usize]) -> anyhow::Result<f64> {
    let folder = tempfile::tempdir().context("make a temporary folder")?;
    let launch = Launch { arguments: &["run", "broker"], ..Launch::default() };
    let broker = Program::start(&given.undertone.path, folder.path(), &launch)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")?;
    let kafka =
        Kafka { bootstrap: broker.kafka().to_owned(), client_id: "undertone-bench".to_owned(), ..Kafka::default() };
    // The first process makes the topics; what is there before it is ready would be worked on too early.
    let mut workers = vec![worker(given, folder.path(), broker.kafka(), cores[0])?];
    for core in &cores[1..] {
        workers.push(worker(given, folder.path(), broker.kafka(), *core)?);
    }
    let admin = Admin::connect(&kafka)?;
    runtime.block_on(fill(&kafka, texts))?;
    let begun = Instant::now();
    let mut seen: Vec<(f64, i64)> = Vec::new();
    while seen.last().is_none_or(|(_, turns)| *turns < texts.len() as i64) {
        anyhow::ensure!(begun.elapsed() < PATIENCE, "the topic was not worked off in time");
        let offsets = runtime.block_on(admin.offsets(TURNS_ENRICHED)).context("ask how far they have come")?;
        seen.push((begun.elapsed().as_secs_f64(), offsets.values().map(|(_, high)| *high).sum()));
        std::thread::sleep(LOOK_EVERY);
    }
    let at = |share: f64| seen.iter().find(|(_, turns)| *turns as f64 >= share * texts.len() as f64).copied();
    let (Some((t0, n0)), Some((t1, n1))) = (at(0.15), at(0.8)) else { anyhow::bail!("nothing was written") };
    Ok((n1 - n0) as f64 / (t1 - t0))
}

fn worker(given: &Given<'_>, data: &Path, kafka: &str, core: usize) -> anyhow::Result<Program> {
    let name = format!("core-{core}");
    let variables = [
        ("UNDERTONE__KAFKA__BOOTSTRAP", kafka),
        ("UNDERTONE__KAFKA__INSTANCE", name.as_str()),
        ("UNDERTONE__CONTEXT__ONLY_MACHINE", "true"),
        ("UNDERTONE__PROCESSORS__TIER", "full"),
    ];
    let launch = Launch { arguments: &["run", "processors"], variables: &variables, core: Some(core) };
    Program::start(&given.undertone.path, data, &launch)
}

async fn fill(kafka: &Kafka, texts: &[String]) -> anyhow::Result<()> {
    let codec = Codec::embedded();
    let producer = Producer::connect(kafka, &ProducerLimits::default())?;
    let said = texts.iter().enumerate();
    let records: anyhow::Result<_> =
        said.map(|(n, text)| record(&codec, TURNS_RECEIVED, &turn(&format!("room-{}", n % ROOMS), n, text))).collect();
    for result in producer.append_all(records?).await {
        result.context("fill the topic")?;
    }
    Ok(())
}
