//! What came out, beside what must have: pure, on what was read at the end.
//!
//! The reference is one single-threaded fold of `turns.received`, turn by turn, through the same chain, with the tiers
//! that the enriched turns record. Places count as well: what the intake acknowledged must stand where it said.

use std::collections::{BTreeMap, HashMap, HashSet};

use anyhow::Context as _;
use processors::Chain;
use processors::chain::Folded;
use schemas::{Codec, Stamp, Tier, Turn};
use store::context::Record;
use store::history::Row;

use super::load::{Acknowledged, Frame, Said};

/// Differences that are told one by one; the rest is counted.
const TOLD_MAX: usize = 20;
/// Turns that the reference infers at once; the result does not depend on it.
const INFERRED_MAX: usize = 256;

/// A turn where it stands in a topic.
#[derive(Debug, Clone)]
pub struct Placed {
    /// Where.
    pub place: Acknowledged,
    /// What.
    pub turn: Turn,
    /// Its bytes.
    pub value: Vec<u8>,
}

/// Everything that was said and read.
#[derive(Debug, Default)]
pub struct Evidence {
    /// What clients said and were told.
    pub said: Said,
    /// All of `turns.received`, in order within a partition.
    pub received: Vec<Placed>,
    /// The committed records of `turns.enriched`, in order within a partition.
    pub enriched: Vec<Placed>,
    /// Number of records in `rejects`.
    pub rejects: usize,
    /// The history, by conversation, in order of position.
    pub history: BTreeMap<String, Vec<Row>>,
    /// The contexts, by conversation.
    pub contexts: BTreeMap<String, Vec<Record>>,
}

/// What is wrong.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// Turns that were acknowledged and are not where they were said to be; received turns that were not enriched;
    /// enriched turns that are not in the history; rejects, because every turn was good.
    pub lost: u64,
    /// Turns that were enriched twice or that the history has twice, or that nobody said.
    pub doubled: u64,
    /// Turns whose place in the conversation is not that of the log, or whose position is not the next.
    pub out_of_order: u64,
    /// Slices of contexts that are not the reference's, bit for bit.
    pub contexts_differing: u64,
    /// Enriched turns that are not the reference's, bit for bit.
    pub turns_differing: u64,
    /// The first differences, in words.
    pub told: Vec<String>,
}

impl Findings {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        let Findings { lost, doubled, out_of_order, contexts_differing, turns_differing, told: _ } = self;
        [lost, doubled, out_of_order, contexts_differing, turns_differing].into_iter().all(|count| *count == 0)
    }

    fn tell(&mut self, what: impl FnOnce() -> String) {
        if self.told.len() < TOLD_MAX {
            self.told.push(what());
        }
    }
}

/// Compares.
///
/// # Errors
/// The reference could not be folded.
pub fn compare(evidence: &Evidence, chain: &Chain, codec: &Codec) -> anyhow::Result<Findings> {
    let mut findings = Findings::default();
    acknowledged(evidence, &mut findings);
    order_of_speakers(evidence, &mut findings);
    let reference = reference(evidence, chain)?;
    enriched(evidence, &reference, codec, &mut findings)?;
    history(evidence, &mut findings);
    contexts(evidence, reference.contexts, &mut findings);
    if evidence.rejects > 0 {
        findings.lost += evidence.rejects as u64;
        findings.tell(|| format!("{} good turns were rejected", evidence.rejects));
    }
    Ok(findings)
}

/// What the intake acknowledged stands where it said.
fn acknowledged(evidence: &Evidence, findings: &mut Findings) {
    let stands: HashMap<(i32, i64), &Turn> =
        evidence.received.iter().map(|placed| ((placed.place.partition, placed.place.offset), &placed.turn)).collect();
    for (frame, places) in &evidence.said.acknowledged {
        for place in places {
            let turn = stands.get(&(place.partition, place.offset));
            if turn.is_none_or(|turn| turn.external_id != frame.id()) {
                findings.lost += 1;
                findings.tell(|| format!("{frame:?} was acknowledged at {place:?}, and does not stand there"));
            }
        }
    }
}

/// The first occurrences of turns in the log are in the order in which they were said.
fn order_of_speakers(evidence: &Evidence, findings: &mut Findings) {
    let mut seen = HashSet::new();
    let mut next: BTreeMap<usize, u64> = BTreeMap::new();
    for placed in &evidence.received {
        let Some(frame) = Frame::of_id(&placed.turn.external_id) else {
            findings.doubled += 1;
            findings.tell(|| format!("nobody said {}", placed.turn.external_id));
            continue;
        };
        if !seen.insert(frame) {
            continue;
        }
        let next = next.entry(frame.conversation).or_default();
        let strict = frame.is_patient() || !evidence.said.refused.contains(&frame.conversation);
        if strict && frame.number != *next {
            findings.out_of_order += 1;
            findings.tell(|| format!("received: {frame:?} where number {next} was next"));
        }
        *next = (*next).max(frame.number + 1);
    }
}

/// What a single thread makes of the log.
struct Reference {
    /// By stamp.
    turns: BTreeMap<(i32, i64), Turn>,
    contexts: BTreeMap<(String, String), Vec<u8>>,
}

fn reference(evidence: &Evidence, chain: &Chain) -> anyhow::Result<Reference> {
    let mut tiers: HashMap<(i32, i64), Tier> = HashMap::new();
    for placed in &evidence.enriched {
        if let (Some(stamp), Some(tier)) = (placed.turn.stamp, placed.turn.tier) {
            tiers.insert((stamp.partition, stamp.offset), tier);
        }
    }
    let mut turns = BTreeMap::new();
    let mut open = HashMap::new();
    for some in evidence.received.chunks(INFERRED_MAX) {
        let tier = |placed: &Placed| tiers.get(&(placed.place.partition, placed.place.offset)).copied();
        let with_tier = |placed: &Placed| Turn { tier: tier(placed).or(Some(Tier::Fast)), ..placed.turn.clone() };
        let mut inferred: Vec<Turn> = some.iter().map(with_tier).collect();
        chain.infer(&mut inferred).context("infer the reference")?;
        for (mut turn, placed) in inferred.into_iter().zip(some) {
            let conversation = match open.entry(turn.conversation.clone()) {
                std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
                std::collections::hash_map::Entry::Vacant(entry) => {
                    entry.insert(chain.open(&turn.conversation, HashMap::new()).context("open the reference")?)
                }
            };
            let stamp = Stamp { partition: placed.place.partition, offset: placed.place.offset };
            if chain.fold(conversation, &mut turn, stamp).context("fold the reference")? == Folded::Enriched {
                turns.insert((stamp.partition, stamp.offset), turn);
            }
        }
    }
    let mut contexts = BTreeMap::new();
    for conversation in open.into_values() {
        for write in chain.close(conversation).context("close the reference")? {
            contexts.insert((write.conversation, write.stage), write.current.bytes);
        }
    }
    Ok(Reference { turns, contexts })
}

/// The enriched turns are the reference's: each once, in order, bit for bit.
fn enriched(evidence: &Evidence, reference: &Reference, codec: &Codec, findings: &mut Findings) -> anyhow::Result<()> {
    let mut seen = HashSet::new();
    let mut last: HashMap<&str, (i64, i64)> = HashMap::new();
    for placed in &evidence.enriched {
        let turn = &placed.turn;
        let stamp = turn.stamp.map(|stamp| (stamp.partition, stamp.offset));
        let wanted = stamp.and_then(|stamp| reference.turns.get(&stamp));
        if !seen.insert(turn.id) || wanted.is_none() {
            findings.doubled += 1;
            findings.tell(|| format!("enriched: {} at {:?} is there twice, or is a repeat", turn.external_id, stamp));
            continue;
        }
        let position = turn.position.unwrap_or_default();
        let offset = stamp.map_or(-1, |(_, offset)| offset);
        let (before, behind) = last.insert(&turn.conversation, (position, offset)).unwrap_or((0, -1));
        if position != before + 1 || offset <= behind {
            findings.out_of_order += 1;
            findings.tell(|| format!("enriched: {} has position {position} after {before}", turn.external_id));
        }
        if let Some(wanted) = wanted
            && codec.encode(wanted)? != placed.value
        {
            findings.turns_differing += 1;
            findings.tell(|| format!("enriched: {} differs from the reference", turn.external_id));
        }
    }
    for (stamp, turn) in &reference.turns {
        if !seen.contains(&turn.id) {
            findings.lost += 1;
            findings.tell(|| format!("{} at {stamp:?} was not enriched", turn.external_id));
        }
    }
    Ok(())
}

/// The history has every enriched turn, byte for byte, and nothing else.
fn history(evidence: &Evidence, findings: &mut Findings) {
    let mut kept: HashMap<(&str, i64), &Row> = HashMap::new();
    for row in evidence.history.values().flatten() {
        kept.insert((&row.conversation, row.position), row);
    }
    for placed in &evidence.enriched {
        let position = placed.turn.position.unwrap_or_default();
        let row = kept.remove(&(placed.turn.conversation.as_str(), position));
        if row.is_none_or(|row| row.value != placed.value) {
            findings.lost += 1;
            findings.tell(|| format!("history: {} is missing or differs", placed.turn.external_id));
        }
    }
    if !kept.is_empty() {
        findings.doubled += kept.len() as u64;
        findings.tell(|| format!("history: {} turns that are not enriched", kept.len()));
    }
}

/// The contexts are the reference's, stamps left out.
fn contexts(evidence: &Evidence, mut wanted: BTreeMap<(String, String), Vec<u8>>, findings: &mut Findings) {
    for (conversation, records) in &evidence.contexts {
        for record in records {
            let slice = (conversation.clone(), record.stage.clone());
            if wanted.remove(&slice).as_ref() != Some(&record.current.bytes) {
                findings.contexts_differing += 1;
                findings.tell(|| format!("context: {} of {conversation} differs", record.stage));
            }
        }
    }
    for (conversation, stage) in wanted.into_keys() {
        findings.contexts_differing += 1;
        findings.tell(|| format!("context: {stage} of {conversation} is missing"));
    }
}

#[cfg(test)]
mod tests;
