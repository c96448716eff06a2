//! Throughput on a topic that was filled before: the full tier beside the bare model on the same texts, and exactly once
//! beside at least once.

use std::time::Instant;

use processors::{Delivery, Models, Options, Way, Work, stages};
use schemas::Tier;
use store::log::Record;

use super::Given;
use super::load::{record, texts, turn};
use super::site::{Load, Site};
use crate::figures::{Aim, Report, progress};

/// Texts of the full tier: some seconds of work on two cores.
const FULL_TEXTS: usize = 4000;
/// Turns of the fast tier.
const FAST_TURNS: usize = 60_000;
/// Conversations that they belong to in turn.
pub(super) const ROOMS: usize = 512;

/// The records of turns, the conversations taking turns.
pub(super) fn records(site: &Site, texts: &[String]) -> anyhow::Result<Vec<Record>> {
    let numbered = texts.iter().enumerate();
    numbered.map(|(n, text)| record(&site.codec, &site.input, &turn(&format!("room-{}", n % ROOMS), n, text))).collect()
}

/// The stages of the program, made anew so that nothing is remembered.
pub(super) fn load(given: &Given<'_>) -> Load {
    let (models, library) = (given.undertone.models.clone(), given.undertone.onnxruntime.clone());
    Box::new(move || Ok(stages::all(&Models::open(&models, &library, &Options::default())?)))
}

/// Turns a second of a role with all stages on the filled topic.
fn rate(given: &Given<'_>, site: &mut Site, tier: Tier, delivery: Delivery, turns: usize) -> anyhow::Result<f64> {
    site.next_output()?;
    let way = Way { plan: site.plan(stages::ORDER.len()), delivery, work: Work::Stages(load(given)) };
    let role = site.role(given, tier, way)?;
    role.ready()?;
    let rate = site.rate(turns);
    role.stop(site)?;
    rate
}

/// The pipeline on the full tier, beside the bare encoder looped over the same texts on the same cores.
pub(super) fn share(given: &Given<'_>, report: &mut Report) -> anyhow::Result<()> {
    let texts = texts(&given.undertone.models, FULL_TEXTS)?;
    let mut site = Site::open(None)?;
    site.fill(records(&site, &texts)?)?;
    let (mut shares, mut bare, mut ours) = (Vec::new(), Vec::new(), Vec::new());
    let models = Models::open(&given.undertone.models, &given.undertone.onnxruntime, &Options::default())?;
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    for _ in 0..given.runs {
        let begun = Instant::now();
        models.encoder().encode(&texts, models.cores())?;
        let alone = texts.len() as f64 / begun.elapsed().as_secs_f64();
        let piped = rate(given, &mut site, Tier::Full, Delivery::ExactlyOnce, texts.len())?;
        progress(&format!("full tier: {piped:.0} turns a second, bare encoder {alone:.0}"));
        shares.push(piped / alone);
        bare.push(alone);
        ours.push(piped);
    }
    report.add("full_turns_per_s", Aim::None, &ours, "filled topic, all stages, exactly once, all cores");
    report.add("bare_texts_per_s", Aim::None, &bare, "the encoder alone on the same texts, all cores");
    report.add("share_of_bare", Aim::AtLeast(0.9), &shares, "the two above");
    site.close()
}

/// The fast tier, exactly once beside at least once.
pub(super) fn delivery(given: &Given<'_>, report: &mut Report) -> anyhow::Result<()> {
    let texts = texts(&given.undertone.models, FAST_TURNS)?;
    let mut site = Site::open(None)?;
    site.fill(records(&site, &texts)?)?;
    let (mut ratios, mut exactly, mut least) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..given.runs {
        let once = rate(given, &mut site, Tier::Fast, Delivery::ExactlyOnce, texts.len())?;
        let more = rate(given, &mut site, Tier::Fast, Delivery::AtLeastOnce, texts.len())?;
        progress(&format!("fast tier: exactly once {once:.0}, at least once {more:.0} turns a second"));
        ratios.push(once / more);
        exactly.push(once);
        least.push(more);
    }
    report.add("throughput_per_s", Aim::None, &exactly, "filled topic, fast tier, exactly once");
    report.add("at_least_once_per_s", Aim::None, &least, "the same, at least once");
    report.add("exactly_once_ratio", Aim::AtLeast(0.9), &ratios, "the two above");
    site.close()
}
