//! What a turn costs in conversations of 10 turns and of 10,000: as many are under way at a time in both, so that only
//! their length differs.

use processors::{Delivery, Way, Work, stages};
use schemas::Tier;

use super::Given;
use super::filled::load;
use super::load::{record, texts, turn};
use super::site::Site;
use crate::figures::{Aim, Report, progress};

/// Conversations under way at a time.
const AT_A_TIME: usize = 8;
const SHORT: usize = 10;
const LONG: usize = 10_000;

/// The cost of a turn in long conversations, by that in short ones.
pub(super) fn conversations(given: &Given<'_>, report: &mut Report) -> anyhow::Result<()> {
    let texts = texts(&given.undertone.models, AT_A_TIME * LONG)?;
    let (mut ratios, mut short, mut long) = (Vec::new(), Vec::new(), Vec::new());
    let mut sites = Vec::new();
    for length in [SHORT, LONG] {
        let site = Site::open(None)?;
        let said = texts.iter().enumerate().map(|(n, text)| {
            // A conversation that has had its turns is followed by a new one in the same place.
            let room = format!("room-{}-{}", n % AT_A_TIME, n / AT_A_TIME / length);
            record(&site.codec, &site.input, &turn(&room, n, text))
        });
        site.fill(said.collect::<anyhow::Result<_>>()?)?;
        sites.push(site);
    }
    for _ in 0..given.runs {
        let mut rates = Vec::new();
        for site in &mut sites {
            site.next_output()?;
            let work = Work::Stages(load(given));
            let way = Way { plan: site.plan(stages::ORDER.len()), delivery: Delivery::ExactlyOnce, work };
            let role = site.role(given, Tier::Fast, way)?;
            role.ready()?;
            let rate = site.rate(texts.len());
            role.stop(site)?;
            rates.push(rate?);
        }
        progress(&format!("{SHORT} turns: {:.0} a second; {LONG} turns: {:.0} a second", rates[0], rates[1]));
        ratios.push(rates[0] / rates[1]);
        short.push(1e6 / rates[0]);
        long.push(1e6 / rates[1]);
    }
    report.add("turn_cost_10_us", Aim::None, &short, "conversations of 10 turns, fast tier, filled topic");
    report.add("turn_cost_10000_us", Aim::None, &long, "conversations of 10,000 turns, as many at a time");
    report.add("long_conversation_ratio", Aim::AtMost(1.2), &ratios, "the two above");
    Ok(())
}
