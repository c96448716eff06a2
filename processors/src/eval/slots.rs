//! Task `slots`: which values the words of a customer give, and what each is.
//!
//! `f1` over spans: a run of words with the same tag is one value, and it counts if its first word, its last word and its
//! name are all right. Dialogues pass stage by stage, turn after turn, as they do in a pipeline that is configured for the
//! line's domain; the unit of the intervals is the dialogue. The baseline is a dictionary of the values in the training
//! texts, in which a number stands for all numbers of its length.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use schemas::Turn;
use schemas::slice::DialogueSlice;
use serde::Deserialize;

use super::figures::f1;
use super::{Baseline, Case, EvalError, Figure, Report, Task, bootstrap, lines, turn};
use crate::stage::Stage;
use crate::stages::{Dialogues, Encode};

/// Turns that are inferred together, so that memory is bounded.
const BATCH_TURNS: usize = 256;
const FORMAT: &str =
    "a line is a JSON object with `dialogue`, `domain`, `text`, and `slots`: a tag for each word, O for none";
/// The tag of what is no value.
const OUTSIDE: &str = "O";

/// The task.
pub(super) struct SlotsTask;

#[derive(Deserialize)]
struct Line {
    dialogue: String,
    domain: String,
    text: String,
    slots: String,
}

/// A value by the numbers of its first word and of the word after it, and its name.
type Span = (usize, usize, String);

impl Task for SlotsTask {
    fn name(&self) -> &'static str {
        "slots"
    }

    fn rows(&self) -> &'static [(&'static str, &'static str)] {
        &[
            ("f1", "F1 of values          ↑"),
            ("precision", "precision             ↑"),
            ("recall", "recall                ↑"),
        ]
    }

    fn run(&self, case: &Case<'_>) -> Result<Report, EvalError> {
        let dialogue = case.models.dialogue();
        let known = dialogue.tagger().domains();
        let rows = lines(case.data, FORMAT, |line: Line| match line {
            Line { domain, .. } if !known.contains(&domain.as_str()) => {
                Err(format!("`{domain}` is none of {}", known.join(", ")))
            }
            line => Ok(line),
        })?;
        let simple = dialogue.dictionary()?;
        let mut simple_counts: HashMap<&str, [f64; 3]> = HashMap::new();
        for row in &rows {
            let found = simple.find(&row.domain, &row.text).into_iter();
            let found = found.map(|(name, start, end)| by_words(&row.text, name, start, end)).collect::<Vec<_>>();
            count(simple_counts.entry(&row.dialogue).or_default(), &found, &truth(&row.slots));
        }

        let encode = Encode::new(Arc::clone(case.models));
        let start = Instant::now();
        let mut counts: HashMap<&str, [f64; 3]> = HashMap::new();
        let mut slices: HashMap<&str, DialogueSlice> = HashMap::new();
        for same in rows.chunk_by(|a, b| a.domain == b.domain) {
            let stage = Dialogues::with_sets(Arc::clone(case.models), Vec::new());
            let stage = stage.with_domains(vec![same[0].domain.clone()]);
            for batch in same.chunks(BATCH_TURNS) {
                let mut turns: Vec<Turn> = batch.iter().map(|row| turn(&row.text, case.tier)).collect();
                encode.infer(&mut turns)?;
                stage.infer(&mut turns)?;
                for (row, turn) in batch.iter().zip(&mut turns) {
                    let slice = slices.entry(&row.dialogue).or_default();
                    let found =
                        if turn.dialogue.is_some() { stage.values(&slice.slots, &row.text) } else { Vec::new() };
                    let found: Vec<Span> =
                        found.iter().map(|found| by_words(&row.text, found.name, found.start, found.end)).collect();
                    stage.fold(slice, turn)?;
                    count(counts.entry(&row.dialogue).or_default(), &found, &truth(&row.slots));
                }
            }
        }
        let time = start.elapsed();
        let mut order: Vec<&str> = counts.keys().copied().collect();
        order.sort_unstable();
        let by_dialogue = |counts: &HashMap<&str, [f64; 3]>| order.iter().map(|name| counts[name]).collect::<Vec<_>>();
        let metrics = figures(&by_dialogue(&simple_counts));
        let baseline = Baseline { name: "dictionary of values".to_owned(), metrics };
        let model = dialogue.provenance(case.tier);
        Ok(case.report(self, rows.len(), &model, figures(&by_dialogue(&counts)), baseline, time))
    }
}

/// The span of the words that bytes of a text lie in.
fn by_words(text: &str, name: &str, start: usize, end: usize) -> Span {
    let words = text.split_whitespace().map(|word| word.as_ptr().addr() - text.as_ptr().addr());
    let (mut first, mut after) = (0, 0);
    for (number, begin) in words.enumerate() {
        if begin <= start {
            first = number;
        }
        if begin < end {
            after = number + 1;
        }
    }
    (first, after, name.to_owned())
}

/// The values that tags mark.
fn truth(tags: &str) -> Vec<Span> {
    let tags: Vec<&str> = tags.split_whitespace().collect();
    let mut start = 0;
    let runs = tags.chunk_by(|a, b| a == b).map(|run| {
        start += run.len();
        (start - run.len(), start, run[0].to_owned())
    });
    runs.filter(|(_, _, name)| name != OUTSIDE).collect()
}

/// Adds how many spans were right, said and present.
fn count(counts: &mut [f64; 3], said: &[Span], present: &[Span]) {
    counts[0] += said.iter().filter(|span| present.contains(span)).count() as f64;
    counts[1] += said.len() as f64;
    counts[2] += present.len() as f64;
}

fn figures(dialogues: &[[f64; 3]]) -> BTreeMap<String, Figure> {
    bootstrap::figures(&["f1", "precision", "recall"], dialogues.len(), |times| {
        let mut sum = [0.0; 3];
        for (counts, times) in dialogues.iter().zip(times) {
            sum.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count * f64::from(*times));
        }
        [f1(sum), sum[0] / f64::max(sum[1], 1.0), sum[0] / f64::max(sum[2], 1.0)]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_a_tag_are_values_and_bytes_lie_in_words() {
        let span = |start, end, name: &str| (start, end, name.to_owned());
        assert_eq!(truth("name name O city city ssn"), [span(0, 2, "name"), span(3, 5, "city"), span(5, 6, "ssn")]);
        assert_eq!(truth("O O"), []);
        assert_eq!(by_words("  ann lee, of york ", "name", 2, 9), span(0, 2, "name"));
        assert_eq!(by_words("  ann lee, of york ", "city", 14, 18), span(3, 4, "city"));
    }

    #[test]
    fn figures_are_what_a_hand_computes() {
        let span = |start, end| (start, end, "name".to_owned());
        let mut counts = [[0.0; 3]; 2];
        count(&mut counts[0], &[span(0, 1), span(3, 4)], &[span(0, 1), span(3, 5)]);
        count(&mut counts[1], &[span(2, 3)], &[span(2, 3), span(4, 5), span(6, 7)]);
        let figures = figures(&counts);
        assert!((figures["precision"].value - 2.0 / 3.0).abs() < 1e-9);
        assert!((figures["recall"].value - 2.0 / 5.0).abs() < 1e-9);
        assert!((figures["f1"].value - 4.0 / 8.0).abs() < 1e-9);
    }
}
