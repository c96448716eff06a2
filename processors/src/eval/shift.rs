//! Task `topic-shift`: whether a turn begins another topic, told when it comes.
//!
//! `precision`, `recall` and `f1` of the turns that are labelled 1 among those labelled 1 or 0; turns without a label are
//! left out. The baseline says so where the cosine with the turn before is under a number that was fitted on other chats of
//! the kind (TIAGE's train split). The unit of the intervals is the dialogue.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use schemas::Turn;
use serde::Deserialize;

use super::dialogues::{cosine, followed, inferred};
use super::figures::f1;
use super::{Baseline, Case, EvalError, Figure, Report, Task, bootstrap, lines};
use crate::stages::Coherences;

const FORMAT: &str =
    "a line is a JSON object with `turns`, a list of {\"text\", \"shift\"}, a shift being 1, 0 or null";

/// The task.
pub(super) struct ShiftTask;

#[derive(Deserialize)]
struct Line {
    turns: Vec<Labelled>,
}

#[derive(Deserialize)]
struct Labelled {
    text: String,
    shift: Option<u8>,
}

impl Task for ShiftTask {
    fn name(&self) -> &'static str {
        "topic-shift"
    }

    fn rows(&self) -> &'static [(&'static str, &'static str)] {
        &[("f1", "F1        ↑"), ("precision", "precision ↑"), ("recall", "recall    ↑")]
    }

    fn run(&self, case: &Case<'_>) -> Result<Report, EvalError> {
        let rows = lines(case.data, FORMAT, |line: Line| {
            let wrong = line.turns.iter().filter_map(|turn| turn.shift).find(|shift| *shift > 1);
            let texts: Vec<String> = line.turns.iter().map(|turn| turn.text.clone()).collect();
            let shifts: Vec<Option<bool>> = line.turns.iter().map(|turn| turn.shift.map(|shift| shift == 1)).collect();
            wrong.map_or(Ok((texts, shifts)), |shift| Err(format!("a shift is 1, 0 or null, not {shift}")))
        })?;
        let start = Instant::now();
        let dialogues = inferred(case.models, case.tier, rows.iter().map(|(texts, _)| texts.as_slice()))?;
        let stage = Coherences::new(Arc::clone(case.models));
        let [limit, _] = case.models.coherence().simple(case.tier);
        let (mut ours, mut simple) = (Vec::new(), Vec::new());
        for (turns, (_, shifts)) in dialogues.iter().zip(&rows) {
            let parts = followed(&stage, &turns.iter().collect::<Vec<_>>())?;
            let said = |part: &Turn| part.coherence.as_ref().is_some_and(|part| part.shift);
            ours.push(counts(shifts, |place| said(&parts[place].0)));
            simple.push(counts(shifts, |place| place > 0 && cosine(&turns[place - 1], &turns[place]) < limit));
        }
        let time = start.elapsed();
        let model = case.models.coherence().provenance(case.tier);
        let baseline = Baseline { name: "cosine with the turn before".to_owned(), metrics: figures(&simple) };
        let texts = dialogues.iter().map(Vec::len).sum();
        Ok(case.report(self, texts, &model, figures(&ours), baseline, time))
    }
}

/// Found, said, there.
fn counts(shifts: &[Option<bool>], said: impl Fn(usize) -> bool) -> [f64; 3] {
    let mut counts = [0.0; 3];
    for (place, there) in shifts.iter().enumerate().filter_map(|(place, shift)| Some((place, (*shift)?))) {
        let said = said(place);
        for (count, is) in counts.iter_mut().zip([said && there, said, there]) {
            *count += f64::from(u8::from(is));
        }
    }
    counts
}

fn figures(dialogues: &[[f64; 3]]) -> BTreeMap<String, Figure> {
    bootstrap::figures(&["f1", "precision", "recall"], dialogues.len(), |times| {
        let mut sum = [0.0; 3];
        for (counts, times) in dialogues.iter().zip(times) {
            sum.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count * f64::from(*times));
        }
        let share = |of: f64| if of > 0.0 { sum[0] / of } else { 0.0 };
        [f1(sum), share(sum[1]), share(sum[2])]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_what_a_hand_computes_and_turns_without_a_label_do_not_count() {
        let shifts = [None, Some(true), Some(false), Some(true), None, Some(true)];
        let found = counts(&shifts, |place| [true, true, true, false, true, true][place]);
        assert_eq!(found, [2.0, 3.0, 3.0]);
        let figures = figures(&[found, [0.0, 1.0, 1.0]]);
        assert_eq!((figures["precision"].value, figures["recall"].value, figures["f1"].value), (0.5, 0.5, 0.5));
    }
}
