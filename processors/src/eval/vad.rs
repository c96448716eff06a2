//! Task `vad`: valence, arousal and dominance of a text, as people rate them on EmoBank's scales.
//!
//! Pearson's r of each. The baseline takes them from the 28 emotions of the same model; a constant has no correlation. A
//! text that the stages skip counts as the middle of the scale.

use std::time::Instant;

use serde::Deserialize;

use super::{Baseline, Case, EvalError, Report, Task, bootstrap, emotion, lines};
use crate::stages::from_emotions;

const FORMAT: &str = "a line is a JSON object with `text` and the numbers `valence`, `arousal` and `dominance`";
/// Valence, arousal, dominance.
const AXES: usize = 3;
const NAMES: [&str; AXES] = ["pearson_valence", "pearson_arousal", "pearson_dominance"];

/// The task.
pub(super) struct VadTask;

#[derive(Deserialize)]
struct Line {
    text: String,
    valence: f64,
    arousal: f64,
    dominance: f64,
}

impl Task for VadTask {
    fn name(&self) -> &'static str {
        "vad"
    }

    fn rows(&self) -> &'static [(&'static str, &'static str)] {
        &[
            (NAMES[0], "Pearson's r, valence  ↑"),
            (NAMES[1], "  arousal             ↑"),
            (NAMES[2], "  dominance           ↑"),
        ]
    }

    fn run(&self, case: &Case<'_>) -> Result<Report, EvalError> {
        let rows =
            lines(case.data, FORMAT, |line: Line| Ok((line.text, [line.valence, line.arousal, line.dominance])))?;
        let texts: Vec<&str> = rows.iter().map(|(text, _)| text.as_str()).collect();
        let truth: Vec<[f64; AXES]> = rows.iter().map(|(_, rated)| *rated).collect();
        let start = Instant::now();
        let emotions = emotion::infer(case.models, case.tier, &texts)?;
        let time = start.elapsed();
        let said = |e: &schemas::Emotion| [e.valence, e.arousal.unwrap_or(0.0), e.dominance.unwrap_or(0.0)];
        let own: Vec<_> = emotions.iter().map(|e| e.as_ref().map_or([0.0; AXES], said).map(f64::from)).collect();
        let simple = |e: &schemas::Emotion| from_emotions(&e.probabilities);
        let simple: Vec<_> = emotions.iter().map(|e| e.as_ref().map_or([0.0; AXES], simple).map(f64::from)).collect();
        let metrics = |said: &[[f64; AXES]]| {
            bootstrap::figures(&NAMES, truth.len(), |times| {
                std::array::from_fn(|axis| pearson(said, &truth, axis, times))
            })
        };
        let provenance = match case.models.vad() {
            Some(vad) => vad.provenance(case.tier),
            None => case.models.expression().provenance(case.tier),
        };
        let baseline = Baseline { name: "from the 28 emotions".to_owned(), metrics: metrics(&simple) };
        Ok(case.report(self, rows.len(), &provenance, metrics(&own), baseline, time))
    }
}

/// The correlation of one axis, each row counted `times`; 0 if either side does not vary.
fn pearson(said: &[[f64; AXES]], truth: &[[f64; AXES]], axis: usize, times: &[u32]) -> f64 {
    let pairs = || said.iter().zip(truth).zip(times).map(|((a, b), n)| (a[axis], b[axis], f64::from(*n)));
    let n: f64 = times.iter().map(|n| f64::from(*n)).sum();
    let [a, b] = pairs().fold([0.0; 2], |s, (a, b, n)| [s[0] + n * a, s[1] + n * b]).map(|sum| sum / n);
    let [ab, aa, bb] = pairs().fold([0.0; 3], |s, (x, y, n)| {
        let (x, y) = (x - a, y - b);
        [s[0] + n * x * y, s[1] + n * x * x, s[2] + n * y * y]
    });
    if aa > 0.0 && bb > 0.0 { ab / (aa * bb).sqrt() } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn correlation_is_what_a_hand_computes() {
        let truth = [[1.0, 1.0, 0.0], [2.0, 2.0, 0.0], [3.0, 3.0, 0.0]];
        let said = [[2.0, 3.0, 1.0], [4.0, 2.0, 2.0], [6.0, 1.0, 3.0]];
        let r = |axis, times: &[u32]| pearson(&said, &truth, axis, times);
        assert!((r(0, &[1; 3]) - 1.0).abs() < 1e-12 && (r(1, &[1; 3]) + 1.0).abs() < 1e-12);
        assert_eq!(r(2, &[1; 3]), 0.0, "a constant has none");
        assert_eq!(r(0, &[3, 0, 0]), 0.0);
    }
}
