//! Stage `dialogue`: what the words are meant to do, and where the conversation stands.
//!
//! Promises: intents of the sets in force, the dialogue act and how probably an answer is expected, from the turn's
//! embedding *as it travels* and its n-grams. The fold keeps who spoke, and which questions wait: what somebody else says
//! answers them, unless it is a question itself. Values are looked for in the fold, because what was given before says
//! what comes next; a bot's own words give none. They tell which action of the configured tasks it took, by the template
//! that they are nearest to, and a person's turn has the actions that may come next. A turn that has no encoding, one of another encoder, or one that is surely
//! in another language than English is skipped. Leaves out: what the answers mean.

use std::num::NonZeroUsize;
use std::sync::Arc;

use schemas::slice::DialogueSlice;
use schemas::{Dialogue, DialogueState, Encoding, Intent, NextAction, Question, Slot, Turn};

use super::{grams, is_foreign, note, reason};
use crate::model::Models;
use crate::model::intents::best;
use crate::model::next::{Actions, Event, HISTORY_MAX, OLD, State};
use crate::model::sets::{ACTS, QUESTION, Set};
use crate::model::slots::Found;
use crate::stage::{Failure, Stage};

/// Questions that are kept open of a conversation; the oldest is forgotten first.
pub const OPEN_QUESTIONS_MAX: usize = 8;
/// Slots that are kept of a conversation; the oldest is forgotten first.
pub const SLOTS_MAX: usize = 16;

/// Actions that are told of each task.
const NEXT_ACTIONS: usize = 3;
/// Cosine of a bot's words and a template from which the bot took that action.
const RECOGNISED: f32 = 0.6;

const NAME: &str = "dialogue";
/// Probability from which an answer is expected.
const ANSWER_EXPECTED: f32 = 0.5;
/// Texts that a core looks at together, so that starting a thread is worth it.
const GRAIN: NonZeroUsize = NonZeroUsize::new(16).expect("it is not zero");

/// The stage.
#[derive(Debug)]
pub struct Dialogues {
    models: Arc<Models>,
    /// Sets that stay, whatever is in force.
    fixed: Option<Arc<Vec<Set>>>,
    /// Domains that stay, whatever is in force.
    domains: Option<Arc<Vec<String>>>,
    /// Actions that stay, whatever is in force.
    actions: Option<Arc<Actions>>,
}

impl Dialogues {
    /// The stage on loaded models.
    pub fn new(models: Arc<Models>) -> Dialogues {
        Dialogues { models, fixed: None, domains: None, actions: None }
    }

    /// The stage with sets of its own, rather than those in force.
    pub fn with_sets(models: Arc<Models>, sets: Vec<Set>) -> Dialogues {
        Dialogues { models, fixed: Some(Arc::new(sets)), domains: None, actions: None }
    }

    /// The stage with domains of its own whose values are looked for.
    #[must_use]
    pub fn with_domains(self, domains: Vec<String>) -> Dialogues {
        Dialogues { domains: Some(Arc::new(domains)), ..self }
    }

    /// The stage with actions of its own.
    #[must_use]
    pub fn with_actions(self, actions: Actions) -> Dialogues {
        Dialogues { actions: Some(Arc::new(actions)), ..self }
    }

    /// The most probable actions of each task after what a person said.
    fn next_actions(&self, actions: &Actions, history: &[String], encoding: &Encoding) -> Vec<NextAction> {
        let said = [Some(&encoding.embedding), None];
        let state = State { history, said, event: Event::User, age: OLD, ..State::default() };
        let (next, tier) = (self.models.dialogue().next(), encoding.provenance.tier);
        let of = |task| {
            let told = move |(action, probability): (&str, f32)| NextAction {
                task: String::from(task),
                action: action.to_owned(),
                probability,
            };
            actions.score(next, tier, &[task], &state).into_iter().take(NEXT_ACTIONS).map(told)
        };
        actions.tasks().flat_map(of).collect()
    }

    /// The values that a text gives where these were given before, in the order of the words. Where those of several
    /// domains overlap, the surest is kept.
    pub(crate) fn values(&self, given: &[Slot], text: &str) -> Vec<Found<'_>> {
        let dialogue = self.models.dialogue();
        let domains = self.domains.as_ref().map_or_else(|| dialogue.domains(), Arc::clone);
        let given: Vec<&str> = given.iter().map(|slot| slot.name.as_str()).collect();
        let found = domains.iter().filter_map(|domain| dialogue.tagger().find(domain, text, &given)).flatten();
        let mut found: Vec<Found<'_>> = found.collect();
        if domains.len() > 1 {
            found.sort_by(|a, b| b.probability.total_cmp(&a.probability));
            let mut kept: Vec<Found<'_>> = Vec::with_capacity(found.len());
            for one in found {
                if kept.iter().all(|other| one.end <= other.start || other.end <= one.start) {
                    kept.push(one);
                }
            }
            found = kept;
            found.sort_by_key(|found| found.start);
        }
        found
    }

    /// The part of a turn without its state, or why there is none.
    fn part(&self, sets: &[Set], turn: &Turn) -> Result<Dialogue, &'static str> {
        let encoding = match &turn.encoding {
            Some(encoding) => encoding,
            None if turn.skipped.iter().any(|s| s.reason == reason::EMPTY_TEXT) => return Err(reason::EMPTY_TEXT),
            None => return Err(reason::NO_ENCODING),
        };
        let tier = encoding.provenance.tier;
        if encoding.provenance != self.models.embedder(tier) {
            return Err(reason::OTHER_ENCODER);
        }
        if is_foreign(encoding) {
            return Err(reason::UNSUPPORTED_LANGUAGE);
        }
        let (embedding, buckets) = (&encoding.embedding, grams(turn));
        let intent = |set: &Set| {
            let scored = set.score(tier, embedding, &buckets)?;
            Some(Intent {
                name: set.labels[scored.label].clone(),
                probability: scored.probability,
                out_of_scope: !scored.in_scope,
                set: set.name.clone(),
                set_sha256: set.hash.clone(),
            })
        };
        let intents = sets.iter().map(intent).collect::<Option<Vec<_>>>().ok_or(reason::OTHER_ENCODER)?;
        let acts = self.models.dialogue().acts(tier, &turn.text, embedding, &buckets).ok_or(reason::OTHER_ENCODER)?;
        let act = best(&acts, 0.0);
        Ok(Dialogue {
            provenance: self.models.dialogue().provenance(tier),
            intents,
            act: ACTS[act.label].to_owned(),
            act_probability: act.probability,
            question: acts[QUESTION],
            slots: Vec::new(),
            next_actions: Vec::new(),
            state: None,
        })
    }
}

impl Stage for Dialogues {
    type Slice = DialogueSlice;

    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, turns: &mut [Turn]) -> Result<(), Failure> {
        let sets = self.fixed.as_ref().map_or_else(|| self.models.dialogue().sets(), Arc::clone);
        let parts = self.models.cores().map(&*turns, GRAIN, |turn| self.part(&sets, turn));
        for (turn, part) in turns.iter_mut().zip(parts) {
            note(turn, NAME, part.as_ref().err().copied());
            turn.dialogue = part.ok();
        }
        Ok(())
    }

    fn fold(&self, slice: &mut DialogueSlice, turn: &mut Turn) -> Result<(), Failure> {
        let Some(part) = &mut turn.dialogue else { return Ok(()) };
        if slice.turns < 0 || slice.turns == i64::MAX || slice.run < 0 || slice.exchanges < 0 {
            let problem = format!("{} turns are damage: run `undertone contexts rebuild`", slice.turns);
            return Err(Failure::Slice { stage: NAME, conversation: turn.conversation.clone(), problem });
        }
        let is_bot = turn.sender.as_ref().is_some_and(|sender| sender.bot);
        let is_new = part.state.is_none();
        let actions = self.actions.clone().or_else(|| self.models.dialogue().actions());
        if let (Some(actions), Some(encoding)) = (actions, &turn.encoding) {
            if is_bot {
                let taken = actions.recognise(encoding.provenance.tier, &encoding.embedding, RECOGNISED);
                slice.actions.extend(taken.map(str::to_owned));
                forget(&mut slice.actions, HISTORY_MAX);
            } else if is_new {
                part.next_actions = self.next_actions(&actions, &slice.actions, encoding);
            }
        }
        // A part that was folded before, such as in a rebuild, has its values.
        if is_new && !is_bot {
            let slot = |found: Found<'_>| Slot {
                name: found.name.to_owned(),
                value: turn.text[found.start..found.end].to_owned(),
                probability: found.probability,
            };
            part.slots = self.values(&slice.slots, &turn.text).into_iter().map(slot).collect();
        }
        let speaker = turn.sender.as_ref().map_or("", |sender| sender.id.as_str());
        part.state = Some(fold(slice, speaker, turn.position.unwrap_or_default(), turn.at, part));
        Ok(())
    }
}

/// Folds a part and returns where the conversation stands.
fn fold(slice: &mut DialogueSlice, speaker: &str, position: i64, at: i64, part: &Dialogue) -> DialogueState {
    if slice.turns > 0 && slice.speaker == speaker {
        slice.run = slice.run.saturating_add(1);
    } else {
        slice.exchanges += i64::from(slice.turns > 0);
        slice.run = 1;
        speaker.clone_into(&mut slice.speaker);
    }
    slice.turns += 1;
    let asks = part.question >= ANSWER_EXPECTED;
    let before = slice.questions.len();
    if !asks {
        slice.questions.retain(|question| question.asked_by == speaker);
    }
    let answered = before - slice.questions.len();
    if asks {
        slice.questions.push(Question { position, asked_by: speaker.to_owned(), at });
        forget(&mut slice.questions, OPEN_QUESTIONS_MAX);
    }
    for slot in &part.slots {
        slice.slots.retain(|known| known.name != slot.name);
        slice.slots.push(Slot::clone(slot));
    }
    forget(&mut slice.slots, SLOTS_MAX);
    DialogueState {
        waiting: slice.questions.first().cloned(),
        open_questions: slice.questions.len() as i32,
        answered: answered as i32,
        run: slice.run,
        exchanges: slice.exchanges,
        slots: slice.slots.clone(),
    }
}

/// Keeps the last `kept` items.
fn forget<T>(items: &mut Vec<T>, kept: usize) {
    items.drain(..items.len().saturating_sub(kept));
}

#[cfg(test)]
mod tests {
    use schemas::{Provenance, Tier};

    use super::*;

    fn part(question: f32, slots: &[(&str, &str)]) -> Dialogue {
        let slot = |(name, value): &(&str, &str)| Slot {
            name: (*name).to_owned(),
            value: (*value).to_owned(),
            probability: 1.0,
        };
        Dialogue {
            provenance: Provenance { model: "m".into(), version: "1".into(), tier: Tier::Full },
            intents: Vec::new(),
            act: ACTS[0].to_owned(),
            act_probability: 1.0,
            question,
            slots: slots.iter().map(slot).collect(),
            next_actions: Vec::new(),
            state: None,
        }
    }

    #[test]
    fn a_question_waits_until_somebody_else_says_what_is_no_question() {
        let mut slice = DialogueSlice::default();
        let mut say = |speaker: &str, position: i64, question: f32| {
            fold(&mut slice, speaker, position, position * 1000, &part(question, &[]))
        };
        assert_eq!(say("ann", 1, 0.9).waiting.map(|q| q.position), Some(1));
        let own = say("ann", 2, 0.1);
        assert_eq!((own.open_questions, own.answered, own.run, own.exchanges), (1, 0, 2, 0));
        let back = say("ben", 3, 0.9);
        assert_eq!((back.open_questions, back.answered, back.run, back.exchanges), (2, 0, 1, 1));
        let answer = say("ann", 4, 0.1);
        assert_eq!((answer.answered, answer.waiting.map(|q| q.asked_by)), (1, Some("ann".to_owned())));
        let last = say("ben", 5, 0.0);
        assert_eq!((last.answered, last.open_questions, last.exchanges), (1, 0, 3));
    }

    #[test]
    fn the_slice_is_bounded_and_the_last_value_of_a_slot_counts() {
        let mut slice = DialogueSlice::default();
        for i in 0..100i64 {
            fold(&mut slice, "ann", i, i, &part(1.0, &[(&format!("s{}", i % 40), &i.to_string())]));
        }
        assert_eq!((slice.questions.len(), slice.slots.len()), (OPEN_QUESTIONS_MAX, SLOTS_MAX));
        let state = fold(&mut slice, "ann", 100, 100, &part(0.0, &[("s19", "new")]));
        assert_eq!(state.slots.last().map(|s| s.value.as_str()), Some("new"));
        assert_eq!(state.slots.iter().filter(|s| s.name == "s19").count(), 1);
    }
}
