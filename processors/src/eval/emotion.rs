//! Task `emotion`: GoEmotions' 28 labels and the Ekman view.
//!
//! `macro_f1` over 28 labels (0 for one that is never predicted), `micro_f1`, `ekman_macro_f1`, `ece` (mean over labels with
//! at least 30 positives, 15 bins of equal mass), `brier`. The baseline is the n-gram model alone, at the tier's thresholds.
//! A text that the stages skip counts as having no emotion, with probability 0 of each.

use std::sync::Arc;
use std::time::Instant;

use schemas::part::EKMAN_OF;
use schemas::{Ekman, Emotion, GoEmotions, Tier, Turn};
use serde::Deserialize;

use super::figures::Judged;
use super::{Baseline, Case, EvalError, Report, Task, lines, turn};
use crate::model::Models;
use crate::model::expression::{EKMAN, LABELS, sigmoid};
use crate::model::ngram::Normalised;
use crate::stage::{Failure, Stage};
use crate::stages::{Emotions, Encode};

/// Turns that are inferred together, so that progress is even and memory bounded.
const BATCH_TURNS: usize = 256;
const FORMAT: &str = "a line is a JSON object with `text` and `labels`, a list of GoEmotions' names";

/// The task.
pub(super) struct EmotionTask;

#[derive(Deserialize)]
struct Line {
    text: String,
    labels: Vec<String>,
}

struct Row {
    text: String,
    truth: [bool; LABELS],
}

impl Task for EmotionTask {
    fn name(&self) -> &'static str {
        "emotion"
    }

    fn rows(&self) -> &'static [(&'static str, &'static str)] {
        &[
            ("macro_f1", "macro F1, 28 labels   ↑"),
            ("micro_f1", "micro F1, 28 labels   ↑"),
            ("ekman_macro_f1", "macro F1, Ekman       ↑"),
            ("ece", "calibration error     ↓"),
            ("brier", "Brier score           ↓"),
        ]
    }

    fn run(&self, case: &Case<'_>) -> Result<Report, EvalError> {
        let rows = read(case.data)?;
        let expression = case.models.expression();
        let truth: Vec<[bool; LABELS]> = rows.iter().map(|row| row.truth).collect();
        let head = expression.head(case.tier);
        let thresholds = (&head.threshold, &head.ekman_threshold);
        let texts: Vec<&str> = rows.iter().map(|row| row.text.as_str()).collect();
        let start = Instant::now();
        let emotions = infer(case.models, case.tier, &texts)?;
        let time = start.elapsed();
        let p: Vec<[f32; LABELS]> =
            emotions.iter().map(|e| e.as_ref().map_or([0.0; LABELS], |e| e.probabilities.to_array())).collect();
        let ngram: Vec<[f32; LABELS]> =
            texts.iter().map(|text| expression.ngram_logits(&Normalised::of(text).buckets()).map(sigmoid)).collect();
        let baseline =
            Baseline { name: "n-grams alone".to_owned(), metrics: judged(&ngram, &truth, thresholds).figures() };
        let metrics = judged(&p, &truth, thresholds).figures();
        Ok(case.report(self, rows.len(), &expression.provenance(case.tier), metrics, baseline, time))
    }
}

fn read(data: &[u8]) -> Result<Vec<Row>, EvalError> {
    lines(data, FORMAT, |line: Line| {
        let mut truth = [false; LABELS];
        for name in &line.labels {
            let label = GoEmotions::LABELS.iter().position(|label| label == name);
            truth[label.ok_or_else(|| format!("`{name}` is no label"))?] = true;
        }
        Ok(Row { text: line.text, truth })
    })
}

/// What the stages say of every text, as a first turn.
pub(super) fn infer(models: &Arc<Models>, tier: Tier, texts: &[&str]) -> Result<Vec<Option<Emotion>>, Failure> {
    let (encode, emotions) = (Encode::new(Arc::clone(models)), Emotions::new(Arc::clone(models)));
    let mut found = Vec::with_capacity(texts.len());
    for batch in texts.chunks(BATCH_TURNS) {
        let mut turns: Vec<Turn> = batch.iter().map(|text| turn(text, tier)).collect();
        encode.infer(&mut turns)?;
        emotions.infer(&mut turns)?;
        found.extend(turns.into_iter().map(|turn| turn.emotion));
    }
    Ok(found)
}

fn judged(
    probabilities: &[[f32; LABELS]],
    truth: &[[bool; LABELS]],
    (threshold, ekman_threshold): (&[f32; LABELS], &[f32; EKMAN]),
) -> Judged {
    let ekman: Vec<[f32; EKMAN]> =
        probabilities.iter().map(|p| GoEmotions::from_array(*p).ekman().to_array()).collect();
    let ekman_truth = truth.iter().map(|row| {
        let mut classes = [false; Ekman::LABELS.len()];
        row.iter().zip(EKMAN_OF).for_each(|(present, class)| classes[class] |= present);
        classes
    });
    let reach = |p: &[f32], threshold: &[f32]| p.iter().zip(threshold).map(|(p, t)| p >= t).collect::<Vec<bool>>();
    Judged {
        probabilities: probabilities.iter().map(|p| p.to_vec()).collect(),
        truth: truth.iter().map(|row| row.to_vec()).collect(),
        predicted: probabilities.iter().map(|p| reach(p, threshold)).collect(),
        ekman_predicted: ekman.iter().map(|p| reach(p, ekman_threshold)).collect(),
        ekman_truth: ekman_truth.map(|classes| classes.to_vec()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_at_fault_is_named() {
        let problem = |data: &str| read(data.as_bytes()).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(problem("{\"text\":\"a\",\"labels\":[]}\n\n{\"text\":1}").starts_with("line 3: "));
        assert!(problem("{\"text\":\"a\",\"labels\":[\"glee\"]}").contains("`glee` is no label"));
        assert!(problem("\n").contains("no line"));
        assert_eq!(read(b"{\"text\":\"a\",\"labels\":[\"joy\",\"love\"]}\r\n").unwrap().len(), 1);
    }
}
