//! Stage `personality`: what a person is like, as a weak signal, and how a bot should write to them. Only of who consented.
//!
//! Promises: without the sender's consent the part is absent (`no_consent`) and nothing of them is kept. Consent comes with
//! a turn ([`schemas::Consent`]) and counts for its sender in its conversation from then on; withdrawn, the statistics go at
//! once. They are sums, so that those of several conversations add up where they are read. Under [`WORDS_MIN`] words there
//! are no traits. At most [`PERSONS_MAX`] people of a conversation are known: one more pushes out who has been silent
//! longest, consent and statistics alike, and they may consent again. Bots are never profiled. Under [`SELF_HARM_WORDS`] there
//! is no style: nobody is to be adapted to then. Leaves out: merging
//! conversations, which is for readers ([`Statistics::add`]).

use std::num::NonZeroUsize;
use std::sync::Arc;

use schemas::slice::{Person, PersonalitySlice, Statistics};
use schemas::turn::SELF_HARM_WORDS;
use schemas::{Evidence, Personality, Turn};

use super::{is_foreign, note, reason};
use crate::model::Models;
use crate::model::personality::SCORES;
use crate::stage::{Failure, Stage};

/// Words of a person under which there is not enough for traits. After some 320 words the interval is five standard
/// deviations wide (`models/personality`), and with fewer it grows as 1/√words: it would hold almost anybody.
pub const WORDS_MIN: i64 = 200;
/// People of a conversation who are known at a time; some 1 KB each.
pub const PERSONS_MAX: usize = 64;
/// Models whose sums are kept of a person: two versions in two tiers. The one that spoke longest ago goes first.
pub const MODELS_MAX: usize = 4;

const NAME: &str = "personality";
/// Texts that a core looks at together, so that starting a thread is worth it.
const GRAIN: NonZeroUsize = NonZeroUsize::new(64).expect("it is not zero");

/// The stage.
#[derive(Debug)]
pub struct Personalities {
    models: Arc<Models>,
}

impl Personalities {
    /// The stage on loaded models.
    pub fn new(models: Arc<Models>) -> Personalities {
        Personalities { models }
    }

    /// What a turn says of its sender, or why it says nothing. Whether they consented is for the fold to know.
    fn part(&self, turn: &Turn) -> Result<Personality, &'static str> {
        let Some(encoding) = &turn.encoding else {
            let empty = turn.skipped.iter().any(|skipped| skipped.reason == reason::EMPTY_TEXT);
            return Err(if empty { reason::EMPTY_TEXT } else { reason::NO_ENCODING });
        };
        if person(turn).is_none() {
            return Err(reason::NO_PERSON);
        }
        if is_foreign(encoding) {
            return Err(reason::UNSUPPORTED_LANGUAGE);
        }
        let tier = encoding.provenance.tier;
        if encoding.provenance != self.models.embedder(tier) {
            return Err(reason::OTHER_ENCODER);
        }
        let model = self.models.personality();
        let scored = model.score(tier, &turn.text, &encoding.embedding).ok_or(reason::OTHER_ENCODER)?;
        Ok(Personality {
            provenance: model.provenance(tier),
            evidence: Evidence { words: scored.words as i32, scores: scored.scores.to_vec() },
            words: 0,
            not_enough: true,
            traits: None,
            style: None,
        })
    }
}

/// Who may be profiled: a person that the source tells apart.
fn person(turn: &Turn) -> Option<&str> {
    turn.sender.as_ref().filter(|sender| !sender.bot).map(|sender| sender.id.as_str())
}

impl Stage for Personalities {
    type Slice = PersonalitySlice;

    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, turns: &mut [Turn]) -> Result<(), Failure> {
        let parts = self.models.cores().map(&*turns, GRAIN, |turn| self.part(turn));
        for (turn, part) in turns.iter_mut().zip(parts) {
            note(turn, NAME, part.as_ref().err().copied());
            turn.personality = part.ok();
        }
        Ok(())
    }

    fn fold(&self, slice: &mut PersonalitySlice, turn: &mut Turn) -> Result<(), Failure> {
        consent(slice, turn);
        let known = person(turn).and_then(|sender| spoke(slice, sender));
        let Some(part) = &mut turn.personality else { return Ok(()) };
        let Some(known) = known else {
            turn.personality = None;
            note(turn, NAME, Some(reason::NO_CONSENT));
            return Ok(());
        };
        let statistics = gathered(known, part).map_err(|problem| Failure::Slice {
            stage: NAME,
            conversation: turn.conversation.clone(),
            problem: format!("{problem}: run `undertone contexts rebuild`"),
        })?;
        let (model, tier) = (self.models.personality(), part.provenance.tier);
        part.words = statistics.words;
        part.not_enough = statistics.words < WORDS_MIN;
        part.traits = (!part.not_enough).then(|| model.traits(tier, statistics));
        let flagged = turn.flags.iter().any(|flag| flag == SELF_HARM_WORDS);
        part.style = (!flagged).then(|| model.style(statistics));
        Ok(())
    }
}

/// Notes what a turn says about consent. Who consents again keeps their statistics; who withdraws loses them.
fn consent(slice: &mut PersonalitySlice, turn: &Turn) {
    let (Some(consent), Some(sender)) = (&turn.consent, person(turn)) else { return };
    let before = slice.persons.iter().position(|known| known.sender == sender);
    let before = before.map(|place| slice.persons.remove(place));
    if consent.granted {
        let statistics = before.map(|known| known.statistics).unwrap_or_default();
        let (sender, text_version) = (sender.to_owned(), consent.text_version.clone());
        slice.persons.push(Person { sender, consented_at: turn.at, text_version, statistics });
        let surplus = slice.persons.len().saturating_sub(PERSONS_MAX);
        slice.persons.drain(..surplus);
    }
}

/// Moves who speaks to the end, if they consented.
fn spoke<'s>(slice: &'s mut PersonalitySlice, sender: &str) -> Option<&'s mut Person> {
    let place = slice.persons.iter().position(|known| known.sender == sender)?;
    slice.persons[place..].rotate_left(1);
    slice.persons.last_mut()
}

/// Adds a turn to the sums of its model.
fn gathered<'p>(person: &'p mut Person, part: &Personality) -> Result<&'p Statistics, &'static str> {
    let made = &part.provenance;
    let model = format!("{}@{}/{}", made.model, made.version, made.tier.name());
    let place = person.statistics.iter().position(|known| known.model == model);
    let mut sums = match place {
        Some(place) => person.statistics.remove(place),
        None => Statistics { model, ..Statistics::default() },
    };
    if part.evidence.words > 0 {
        if part.evidence.scores.len() != SCORES || (sums.turns > 0 && sums.sums.len() != SCORES) {
            return Err("another number of scores than the model has is damage");
        }
        sums.add(&Statistics::of(&part.evidence));
    }
    person.statistics.push(sums);
    let surplus = person.statistics.len().saturating_sub(MODELS_MAX);
    person.statistics.drain(..surplus);
    person.statistics.last().ok_or("no sums are damage")
}

#[cfg(test)]
mod tests;
