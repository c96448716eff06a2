//! What the runner costs by itself: records go from topic to topic exactly once, not parsed and without contexts, beside
//! a plain loop that does the same.

use processors::{Delivery, Way, Work};
use schemas::Tier;

use super::Given;
use super::bare::{Loop, Terms};
use super::filled::records;
use super::load::texts;
use super::site::Site;
use crate::figures::{Aim, Report, progress};

const RECORDS: usize = 300_000;

/// Records a second through the runner, beside a plain loop.
pub(super) fn pass_through(given: &Given<'_>, report: &mut Report) -> anyhow::Result<()> {
    let texts = texts(&given.undertone.models, RECORDS)?;
    let mut site = Site::open(None)?;
    site.fill(records(&site, &texts)?)?;
    drop(texts);
    let (mut ratios, mut ours, mut plain) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..given.runs {
        site.next_output()?;
        let way = Way { plan: site.plan(0), delivery: Delivery::ExactlyOnce, work: Work::Forward };
        let role = site.role(given, Tier::Full, way)?;
        role.ready()?;
        let passed = site.rate(RECORDS);
        role.stop(&site)?;
        site.next_output()?;
        let looped = Loop::start(&site, Terms { transactional: true, batch_max: 10_000 });
        let alone = site.rate(RECORDS);
        looped.stop()?;
        let (passed, alone) = (passed?, alone?);
        progress(&format!("pass-through {passed:.0}, plain loop {alone:.0} records a second"));
        ratios.push(passed / alone);
        ours.push(passed);
        plain.push(alone);
    }
    report.add("pass_through_per_s", Aim::None, &ours, "no stages, values unparsed, no contexts, exactly once");
    report.add("plain_loop_per_s", Aim::None, &plain, "plain rdkafka transactional loop, up to 10,000 records each");
    report.add("pass_through_ratio", Aim::AtLeast(0.8), &ratios, "the two above");
    site.close()
}
