//! Toy stages for tests of the runner: cheap, and so sensitive that a turn folded twice, lost, out of order, or inferred
//! after an earlier stage's fold shows in every later turn of its conversation. A test holds them by a [`Hand`].

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use processors::{AnyStage, Failure, Stage};
use schemas::slice::EmotionSlice;
use schemas::{Skipped, Turn};
use uuid::Uuid;

use crate::PATIENCE;

/// Names of the toy stages, in order.
pub const ORDER: [&str; 3] = ["one", "two", "three"];

/// All toy stages, in the order of [`ORDER`].
pub fn stages(hand: &Hand) -> Vec<Box<dyn AnyStage>> {
    ORDER.map(|name| Box::new(Toy { name, hand: hand.clone() }) as Box<dyn AnyStage>).into()
}

/// What a test does to the stages of one role while it works.
#[derive(Debug, Clone, Default)]
pub struct Hand(Arc<(Mutex<State>, Condvar)>);

#[derive(Debug, Default)]
struct State {
    fails: bool,
    /// Only the first stage fails, so that a batch that has passed it is finished.
    fails_first: bool,
    /// Whether who comes to work is held, and whether somebody is.
    holds: bool,
    /// The same for who comes to fold.
    holds_fold: bool,
    held: bool,
}

impl Hand {
    /// From now on every piece of work fails, or none does.
    pub fn fail(&self, fails: bool) {
        let mut state = self.state();
        (state.fails, state.fails_first) = (fails, false);
    }

    /// The batch that is held goes on, and every later one fails.
    pub fn fail_from_now(&self) {
        let mut state = self.state();
        state.fails_first = true;
        state.holds = false;
        self.0.1.notify_all();
    }

    /// The next piece of work does not end before [`Hand::release`].
    pub fn hold(&self) {
        self.state().holds = true;
    }

    /// The next turn is not folded, on contexts that are loaded by then, before [`Hand::release`].
    pub fn hold_fold(&self) {
        self.state().holds_fold = true;
    }

    /// Lets the work that is held go on.
    pub fn release(&self) {
        let mut state = self.state();
        (state.holds, state.holds_fold) = (false, false);
        self.0.1.notify_all();
    }

    /// Waits until a piece of work is held.
    pub async fn holding(&self) {
        let hand = self.clone();
        let wait = move || {
            let waited = hand.0.1.wait_timeout_while(hand.state(), PATIENCE, |state| !state.held);
            let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
            assert!(state.held, "no work came in time");
        };
        tokio::task::spawn_blocking(wait).await.expect("work came in time");
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fold(&self) {
        let mut state = self.state();
        if state.holds_fold {
            state.held = true;
            self.0.1.notify_all();
            state = self.0.1.wait_while(state, |state| state.holds_fold).unwrap_or_else(PoisonError::into_inner);
            state.held = false;
        }
    }

    fn work(&self, stage: &'static str) -> Result<(), Failure> {
        let mut state = self.state();
        if state.fails || (state.fails_first && stage == ORDER[0]) {
            return Err(Failure::Run { stage, problem: "told to fail".to_owned() });
        }
        if state.holds {
            state.held = true;
            self.0.1.notify_all();
            state = self.0.1.wait_while(state, |state| state.holds).unwrap_or_else(PoisonError::into_inner);
            state.held = false;
        }
        Ok(())
    }
}

/// Leaves a note in each turn: how many turns it has folded in this conversation, and a hash over all of them.
struct Toy {
    name: &'static str,
    hand: Hand,
}

impl Stage for Toy {
    type Slice = EmotionSlice;

    fn name(&self) -> &'static str {
        self.name
    }

    fn infer(&self, turns: &mut [Turn]) -> Result<(), Failure> {
        if !turns.is_empty() {
            self.hand.work(self.name)?;
        }
        for turn in turns {
            turn.skipped.retain(|skipped| skipped.stage != self.name);
            // A text that kills whoever works on it, as a fault in a native library does.
            if turn.text == KILLER && std::env::var_os(MORTAL).is_some() {
                std::process::abort();
            }
            let reason = format!("{} in {} bytes", turn.tier.map_or("no tier", schemas::Tier::name), turn.text.len());
            let earlier =
                |skipped: &Skipped| ORDER.iter().take_while(|name| **name != self.name).any(|n| *n == skipped.stage);
            let place = turn.skipped.iter().filter(|skipped| earlier(skipped)).count();
            turn.skipped.insert(place, Skipped { stage: self.name.to_owned(), reason });
        }
        Ok(())
    }

    fn fold(&self, slice: &mut EmotionSlice, turn: &mut Turn) -> Result<(), Failure> {
        self.hand.fold();
        let place = turn.skipped.iter().position(|skipped| skipped.stage == self.name);
        let place = place.expect("infer left a note");
        let note = std::mem::take(&mut turn.skipped[place].reason);
        let inferred = note.split(FOLDED).next().unwrap_or_default();
        // What earlier stages found is part of it; what later ones will find is not there yet where the chain is cut.
        let known: Vec<&str> = turn.skipped[..place].iter().map(|skipped| skipped.reason.as_str()).collect();
        slice.turns += 1;
        let seen = format!("{}/{}/{}/{inferred}", slice.at, turn.id, known.join("/"));
        let hash = Uuid::new_v5(&Uuid::NAMESPACE_OID, seen.as_bytes()).as_u64_pair().0;
        slice.at = i64::from_be_bytes(hash.to_be_bytes());
        turn.skipped[place].reason = format!("{inferred}{FOLDED}{}, {hash:016x}", slice.turns);
        Ok(())
    }
}

/// Stands in a note between what `infer` and what `fold` found.
const FOLDED: &str = ", turn ";

/// The text that ends a process in which [`MORTAL`] is set.
pub const KILLER: &str = "the killer";
/// The variable that makes a process die of [`KILLER`].
pub const MORTAL: &str = "UNDERTONE_TEST_MORTAL";

/// How many turns a stage had folded when this turn came, this one included.
pub fn folded(turn: &Turn, stage: &str) -> i64 {
    let note = turn.skipped.iter().find(|skipped| skipped.stage == stage).expect("the stage left its note");
    let count = note.reason.split(FOLDED).nth(1).and_then(|rest| rest.split(',').next());
    count.and_then(|count| count.parse().ok()).expect("the note has a number")
}
