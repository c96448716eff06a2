//! Task `segmentation`: where the segments of a dialogue begin.
//!
//! `pk` (Beeferman, Berger and Lafferty, "Statistical models for text segmentation", 1999): the share of pairs of turns k
//! apart of which it is wrongly told whether they stand in one segment; k is half the mean length of the dialogue's segments,
//! rounded. `window_diff` (Pevzner and Hearst, 2002): of the same pairs, the share between which another number of boundaries was
//! found than there is. Both with the whole dialogue in view; `online_pk` with each boundary decided when its turn comes.
//! Means over dialogues; lower is better. The baseline's segments begin where the cosine with the turn before is under a
//! number that was fitted on other dialogues, on line and off line alike. The unit of the intervals is the dialogue.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use schemas::{Embedding, Turn};
use serde::Deserialize;

use super::dialogues::{cosine, followed, inferred};
use super::{Baseline, Case, EvalError, Figure, Report, Task, bootstrap, lines};
use crate::stages::{Coherences, Followed, offline};

const FORMAT: &str =
    "a line is a JSON object with `utterances`, a list of texts, and `segments`, lengths that add up to as many";

/// The task.
pub(super) struct SegmentationTask;

#[derive(Deserialize)]
struct Line {
    utterances: Vec<String>,
    segments: Vec<usize>,
}

impl Task for SegmentationTask {
    fn name(&self) -> &'static str {
        "segmentation"
    }

    fn rows(&self) -> &'static [(&'static str, &'static str)] {
        &[("pk", "Pk, all in view  ↓"), ("window_diff", "WindowDiff       ↓"), ("online_pk", "Pk, turn by turn ↓")]
    }

    fn run(&self, case: &Case<'_>) -> Result<Report, EvalError> {
        let rows = lines(case.data, FORMAT, |line: Line| {
            let sum: usize = line.segments.iter().sum();
            if sum != line.utterances.len() || line.segments.contains(&0) {
                return Err(format!("{} utterances and segments of {sum}", line.utterances.len()));
            }
            Ok(line)
        })?;
        let start = Instant::now();
        let dialogues = inferred(case.models, case.tier, rows.iter().map(|row| row.utterances.as_slice()))?;
        let stage = Coherences::new(Arc::clone(case.models));
        let model = case.models.coherence();
        let [_, limit] = model.simple(case.tier);
        let (mut ours, mut simple) = (Vec::new(), Vec::new());
        for (turns, row) in dialogues.iter().zip(&rows) {
            let parts = followed(&stage, &turns.iter().collect::<Vec<_>>())?;
            let begins = |turn: &Turn| turn.coherence.as_ref().is_some_and(|part| part.shift);
            let online: Vec<usize> = (1..parts.len()).filter(|place| begins(&parts[*place].0)).collect();
            let served: Vec<(usize, (Followed, &Embedding))> = parts
                .iter()
                .enumerate()
                .filter_map(|(place, (turn, followed))| {
                    Some((place, (followed.clone()?, &turn.encoding.as_ref()?.embedding)))
                })
                .collect();
            let (places, known): (Vec<usize>, Vec<_>) = served.into_iter().unzip();
            let whole: Vec<usize> =
                offline::boundaries(model, case.tier, &known).into_iter().map(|place| places[place]).collect();
            ours.push(judged(&row.segments, &whole, &online));
            let under: Vec<usize> = (1..turns.len()).filter(|t| cosine(&turns[t - 1], &turns[*t]) < limit).collect();
            simple.push(judged(&row.segments, &under, &under));
        }
        let time = start.elapsed();
        let baseline = Baseline { name: "cosine with the turn before".to_owned(), metrics: figures(&simple) };
        let texts = dialogues.iter().map(Vec::len).sum();
        Ok(case.report(self, texts, &model.provenance(case.tier), figures(&ours), baseline, time))
    }
}

/// Pk and WindowDiff of the boundaries that were found with everything in view, and Pk of those found on line.
fn judged(segments: &[usize], whole: &[usize], online: &[usize]) -> [f64; 3] {
    let turns: usize = segments.iter().sum();
    let k = ((turns as f64 / segments.len() as f64 / 2.0).round() as usize).max(1);
    let ends = segments.iter().scan(0, |end, length| {
        *end += length;
        Some(*end)
    });
    // The last boundary, the end of the dialogue, is left out.
    let there: Vec<usize> = ends.take(segments.len() - 1).collect();
    let (there, whole, online) = (numbers(&there, turns), numbers(whole, turns), numbers(online, turns));
    let share = |wrong: &dyn Fn(usize) -> bool| {
        let pairs = turns.saturating_sub(k);
        (0..pairs).filter(|place| wrong(*place)).count() as f64 / pairs.max(1) as f64
    };
    let between = |numbers: &[usize], place: usize| numbers[place + k] - numbers[place];
    let apart = |numbers: &[usize], place: usize| between(numbers, place) > 0;
    [
        share(&|place| apart(&there, place) != apart(&whole, place)),
        share(&|place| between(&there, place) != between(&whole, place)),
        share(&|place| apart(&there, place) != apart(&online, place)),
    ]
}

/// The number of each turn's segment.
fn numbers(boundaries: &[usize], turns: usize) -> Vec<usize> {
    (0..turns).map(|turn| boundaries.iter().filter(|boundary| **boundary <= turn).count()).collect()
}

fn figures(dialogues: &[[f64; 3]]) -> BTreeMap<String, Figure> {
    bootstrap::figures(&["pk", "window_diff", "online_pk"], dialogues.len(), |times| {
        let total: f64 = times.iter().map(|t| f64::from(*t)).sum();
        let mean = |i: usize| dialogues.iter().zip(times).map(|(d, t)| d[i] * f64::from(*t)).sum::<f64>() / total;
        std::array::from_fn(mean)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_exactly_costs_nothing() {
        assert_eq!(judged(&[4, 4, 4], &[4, 8], &[4, 8]), [0.0; 3]);
        assert_eq!(judged(&[3], &[], &[]), [0.0; 3]);
    }

    #[test]
    fn figures_are_what_a_hand_computes() {
        // Eight turns, k = 2: six pairs. Nothing found: the two pairs over the boundary are wrong.
        assert_eq!(judged(&[4, 4], &[], &[3]), [2.0 / 6.0, 2.0 / 6.0, 2.0 / 6.0]);
        // One boundary beside the true one: in each measure the pair over each of them alone.
        assert_eq!(judged(&[4, 4], &[3, 4], &[4]), [1.0 / 6.0, 2.0 / 6.0, 0.0]);
        assert_eq!(figures(&[[0.5, 1.0, 0.0], [0.0, 0.0, 0.0]])["pk"].value, 0.25);
    }
}
