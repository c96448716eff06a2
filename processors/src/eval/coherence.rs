//! Task `coherence`: whether a dialogue scores higher than the same turns in another order.
//!
//! The score of a dialogue is the mean of its turns' scores, each given when the turn came. `accuracy`: of copies with the
//! turns in another order, the share that scores lower than the dialogue as it was, a tie counting half. `insert_accuracy`:
//! the same of copies with one turn replaced by one of another dialogue. [`COPIES`] of each kind are drawn of a dialogue with
//! a seeded generator; dialogues under [`TURNS_MIN`] turns are skipped. Nobody is named in the data: two people speak in
//! turn, in the copies too. The baseline's score is the mean cosine of each turn with the one before. The unit of the
//! intervals is the dialogue.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use schemas::Turn;
use serde::Deserialize;

use super::bootstrap::SplitMix64;
use super::dialogues::{cosine, followed, inferred};
use super::{Baseline, Case, EvalError, Figure, Report, Task, bootstrap, lines};
use crate::stage::Failure;
use crate::stages::Coherences;

const FORMAT: &str = "a line is a JSON object with `turns`, a list of texts or of objects with a `text`, or with `m`, a list of \
                      [sender, time, text]";
/// Copies of each kind, of a dialogue.
const COPIES: usize = 5;
/// Fewest turns of a dialogue.
const TURNS_MIN: usize = 4;
const SEED: u64 = 1;

/// The task.
pub(super) struct CoherenceTask;

#[derive(Deserialize)]
pub(super) struct Line {
    #[serde(default)]
    turns: Vec<Said>,
    #[serde(default)]
    m: Vec<(String, String, String)>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Said {
    Text(String),
    Turn { text: String },
}

impl Line {
    pub(super) fn texts(self) -> Vec<String> {
        let turns = self.turns.into_iter().map(|said| match said {
            Said::Text(text) | Said::Turn { text } => text,
        });
        turns.chain(self.m.into_iter().map(|(_, _, text)| text)).collect()
    }
}

impl Task for CoherenceTask {
    fn name(&self) -> &'static str {
        "coherence"
    }

    fn rows(&self) -> &'static [(&'static str, &'static str)] {
        &[("accuracy", "accuracy, other order ↑"), ("insert_accuracy", "accuracy, other turn  ↑")]
    }

    fn run(&self, case: &Case<'_>) -> Result<Report, EvalError> {
        let rows = lines(case.data, FORMAT, |line: Line| Ok(line.texts()))?;
        let rows: Vec<Vec<String>> = rows.into_iter().filter(|texts| texts.len() >= TURNS_MIN).collect();
        if rows.len() < 2 {
            return Err(EvalError::Choice(format!("two or more dialogues of {TURNS_MIN} turns are needed; {FORMAT}")));
        }
        let texts: usize = rows.iter().map(Vec::len).sum();
        let start = Instant::now();
        let dialogues = inferred(case.models, case.tier, rows.iter().map(Vec::as_slice))?;
        let stage = Coherences::new(Arc::clone(case.models));
        let ours = |turns: &[&Turn]| score(&stage, turns);
        let originals: Vec<Vec<&Turn>> = dialogues.iter().map(|turns| turns.iter().collect()).collect();
        let scores: Vec<f64> = originals.iter().map(|turns| ours(turns)).collect::<Result<_, _>>()?;
        let time = start.elapsed();
        let mut random = SplitMix64(SEED);
        let (mut won, mut simple) = (Vec::new(), Vec::new());
        for (place, turns) in originals.iter().enumerate() {
            let others =
                |copy: Vec<&Turn>| Ok::<_, Failure>((score_of(scores[place], ours(&copy)?), simply(turns, &copy)));
            let (mut mine, mut its) = ([0.0; 2], [0.0; 2]);
            for _ in 0..COPIES {
                for (kind, copy) in
                    [reordered(turns, &mut random), replaced(&originals, place, &mut random)].into_iter().enumerate()
                {
                    let (ours, baseline) = others(copy)?;
                    mine[kind] += ours / COPIES as f64;
                    its[kind] += baseline / COPIES as f64;
                }
            }
            won.push(mine);
            simple.push(its);
        }
        let model = case.models.coherence().provenance(case.tier);
        let baseline = Baseline { name: "mean cosine with the turn before".to_owned(), metrics: figures(&simple) };
        let mut report = case.report(self, texts, &model, figures(&won), baseline, time);
        report.n = rows.len();
        Ok(report)
    }
}

/// The mean of the scores that turns get when they come in this order.
fn score(stage: &Coherences, turns: &[&Turn]) -> Result<f64, Failure> {
    let parts = followed(stage, turns)?;
    let scores: Vec<f64> =
        parts.iter().filter_map(|(turn, _)| turn.coherence.as_ref()).map(|part| f64::from(part.score)).collect();
    Ok(scores.iter().sum::<f64>() / scores.len().max(1) as f64)
}

/// 1 where the first is higher, half of a tie.
fn score_of(one: f64, other: f64) -> f64 {
    f64::from(u8::from(one > other)) + 0.5 * f64::from(u8::from(one == other))
}

fn simply(turns: &[&Turn], copy: &[&Turn]) -> f64 {
    let mean = |turns: &[&Turn]| turns.windows(2).map(|pair| f64::from(cosine(pair[0], pair[1]))).sum::<f64>();
    score_of(mean(turns), mean(copy))
}

/// The turns in another order: a permutation that is not the identity.
fn reordered<'t>(turns: &[&'t Turn], random: &mut SplitMix64) -> Vec<&'t Turn> {
    let mut order: Vec<usize> = (0..turns.len()).collect();
    while order.is_sorted() {
        // Fisher and Yates.
        (1..order.len()).rev().for_each(|i| order.swap(i, random.below(i + 1)));
    }
    order.into_iter().map(|place| turns[place]).collect()
}

/// The turns with one replaced by one of another dialogue.
fn replaced<'t>(all: &[Vec<&'t Turn>], place: usize, random: &mut SplitMix64) -> Vec<&'t Turn> {
    let mut other = random.below(all.len() - 1);
    other += usize::from(other >= place);
    let mut copy = all[place].clone();
    let at = random.below(copy.len());
    copy[at] = all[other][random.below(all[other].len())];
    copy
}

fn figures(won: &[[f64; 2]]) -> BTreeMap<String, Figure> {
    bootstrap::figures(&["accuracy", "insert_accuracy"], won.len(), |times| {
        let total: f64 = times.iter().map(|t| f64::from(*t)).sum();
        std::array::from_fn(|kind| won.iter().zip(times).map(|(won, t)| won[kind] * f64::from(*t)).sum::<f64>() / total)
    })
}

#[cfg(test)]
mod tests {
    use schemas::Tier;

    use super::super::turn;
    use super::*;

    #[test]
    fn copies_hold_the_same_turns_otherwise_or_one_of_another_dialogue() {
        let texts = ["a", "b", "c", "d", "e"];
        let turns: Vec<Turn> = texts.map(|text| turn(text, Tier::Fast)).into();
        let others: Vec<Turn> = ["x", "y"].map(|text| turn(text, Tier::Fast)).into();
        let all: Vec<Vec<&Turn>> = vec![turns.iter().collect(), others.iter().collect()];
        let mut random = SplitMix64(3);
        let text = |copy: &[&Turn]| copy.iter().map(|turn| turn.text.clone()).collect::<Vec<_>>();
        for _ in 0..200 {
            let mut copy = text(&reordered(&all[0], &mut random));
            assert_ne!(copy, texts);
            copy.sort();
            assert_eq!(copy, texts);
            let copy = text(&replaced(&all, 0, &mut random));
            let differ: Vec<_> = copy.iter().zip(texts).filter(|(a, b)| a != b).collect();
            assert!(differ.len() == 1 && ["x", "y"].contains(&differ[0].0.as_str()), "{copy:?}");
        }
    }

    #[test]
    fn figures_are_what_a_hand_computes() {
        assert_eq!((score_of(1.0, 0.5), score_of(0.5, 0.5), score_of(0.2, 0.5)), (1.0, 0.5, 0.0));
        let figures = figures(&[[1.0, 0.5], [0.5, 0.5]]);
        assert_eq!((figures["accuracy"].value, figures["insert_accuracy"].value), (0.75, 0.5));
    }
}
