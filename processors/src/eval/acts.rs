//! Task `acts`: what each turn of a dialogue does, among inform, question, directive and commissive.
//!
//! `macro_f1` over the four, `question_f1`; the unit of the intervals is the dialogue. Each turn is read for itself. A turn
//! that the stages skip counts as `inform`. The baseline calls what ends with a question mark a question and everything
//! else `inform`, the commonest act.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use schemas::Turn;
use serde::Deserialize;

use super::figures::{f1, mean_f1};
use super::{Baseline, Case, EvalError, Figure, Report, Task, bootstrap, lines, turn};
use crate::model::sets::{ACTS, QUESTION};
use crate::stage::Stage;
use crate::stages::{Dialogues, Encode};

const FORMAT: &str = "a line is a JSON object with `turns`, a list of texts, and `acts`, as many numbers from 1 to 4";

/// The task.
pub(super) struct ActsTask;

#[derive(Deserialize)]
struct Line {
    turns: Vec<String>,
    acts: Vec<usize>,
}

impl Task for ActsTask {
    fn name(&self) -> &'static str {
        "acts"
    }

    fn rows(&self) -> &'static [(&'static str, &'static str)] {
        &[("macro_f1", "macro F1, four acts   ↑"), ("question_f1", "F1 of questions       ↑")]
    }

    fn run(&self, case: &Case<'_>) -> Result<Report, EvalError> {
        let rows = lines(case.data, FORMAT, |line: Line| match line {
            Line { turns, acts } if turns.len() != acts.len() => {
                Err(format!("{} turns and {} acts", turns.len(), acts.len()))
            }
            Line { acts, .. } if acts.iter().any(|act| !(1..=ACTS.len()).contains(act)) => {
                Err(format!("an act is a number from 1 to {}", ACTS.len()))
            }
            line => Ok(line),
        })?;
        let encode = Encode::new(Arc::clone(case.models));
        let dialogues = Dialogues::with_sets(Arc::clone(case.models), Vec::new());
        let start = Instant::now();
        let (mut ours, mut simple) = (Vec::with_capacity(rows.len()), Vec::with_capacity(rows.len()));
        for row in &rows {
            let mut turns: Vec<Turn> = row.turns.iter().map(|text| turn(text, case.tier)).collect();
            encode.infer(&mut turns)?;
            dialogues.infer(&mut turns)?;
            let act = |turn: &Turn| {
                let act = turn.dialogue.as_ref().and_then(|d| ACTS.iter().position(|act| *act == d.act));
                act.unwrap_or_default()
            };
            ours.push(turns.iter().map(act).collect::<Vec<_>>());
            let marked = |text: &String| if text.trim_end().ends_with('?') { QUESTION } else { 0 };
            simple.push(row.turns.iter().map(marked).collect::<Vec<_>>());
        }
        let time = start.elapsed();
        let truth: Vec<Vec<usize>> = rows.iter().map(|row| row.acts.iter().map(|act| act - 1).collect()).collect();
        let baseline = Baseline { name: "question marks".to_owned(), metrics: figures(&simple, &truth) };
        let n = truth.iter().map(Vec::len).sum();
        let model = case.models.dialogue().provenance(case.tier);
        Ok(case.report(self, n, &model, figures(&ours, &truth), baseline, time))
    }
}

fn figures(answers: &[Vec<usize>], truth: &[Vec<usize>]) -> BTreeMap<String, Figure> {
    // Of each dialogue and act: right, said, present.
    let counts = |(answers, truth): (&Vec<usize>, &Vec<usize>)| {
        let mut counts = [[0.0; 3]; ACTS.len()];
        for (answer, truth) in answers.iter().zip(truth) {
            counts[*answer][0] += if answer == truth { 1.0 } else { 0.0 };
            counts[*answer][1] += 1.0;
            counts[*truth][2] += 1.0;
        }
        counts
    };
    let dialogues: Vec<_> = answers.iter().zip(truth).map(counts).collect();
    bootstrap::figures(&["macro_f1", "question_f1"], dialogues.len(), |times| {
        let mut sum = [[0.0; 3]; ACTS.len()];
        for (dialogue, times) in dialogues.iter().zip(times) {
            for (sum, counts) in sum.iter_mut().flatten().zip(dialogue.iter().flatten()) {
                *sum += counts * f64::from(*times);
            }
        }
        [mean_f1(&sum), f1(sum[QUESTION])]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_what_a_hand_computes() {
        let figures = figures(&[vec![0, 1], vec![1, 2]], &[vec![0, 1], vec![0, 2]]);
        assert!((figures["question_f1"].value - 2.0 / 3.0).abs() < 1e-9);
        assert!((figures["macro_f1"].value - (2.0 / 3.0 + 2.0 / 3.0 + 1.0 + 0.0) / 4.0).abs() < 1e-9);
    }
}
