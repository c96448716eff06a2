//! How good the models are on labelled texts: what `undertone eval` computes.
//!
//! Promises: the shipped path runs, stage by stage; nothing is read of the data but texts and labels to compare with; the
//! baseline runs on the same texts in the same call. Leaves out: reading files and printing (the program), and every
//! task but emotion until its stage exists.

mod figures;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use schemas::part::EKMAN_OF;
use schemas::{Ekman, Emotion, GoEmotions, Tier, Turn};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::model::Models;
use crate::model::expression::{EKMAN, LABELS, sigmoid};
use crate::model::ngram::Normalised;
use crate::stage::{Failure, Stage};
use crate::stages::{Emotions, Encode};
use figures::Judged;

/// Turns that are inferred together, so that progress is even and memory bounded.
const BATCH_TURNS: usize = 256;

/// What an evaluation found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The task.
    pub task: String,
    /// SHA-256 of the data, in hexadecimal.
    pub data_sha256: String,
    /// Texts.
    pub n: usize,
    /// Name and version of the model.
    pub model: String,
    /// The tier that ran.
    pub tier: Tier,
    /// Figures by name.
    pub metrics: BTreeMap<String, Figure>,
    /// A simpler model on the same texts.
    pub baseline: Baseline,
    /// Texts a second through both stages, on the cores that the models may use.
    pub turns_per_second: f64,
}

/// A figure with its 95 % interval by 1,000 bootstrap resamples of texts, seed 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Figure {
    /// On the texts as they are.
    pub value: f64,
    /// 2.5th percentile.
    pub low: f64,
    /// 97.5th percentile.
    pub high: f64,
}

/// A simpler model's figures.
#[derive(Debug, Clone, Serialize)]
pub struct Baseline {
    /// What it is.
    pub name: String,
    /// Figures by name.
    pub metrics: BTreeMap<String, Figure>,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// A line is not a labelled text.
    #[error("line {line}: {problem}; a line is a JSON object with `text` and `labels`, a list of GoEmotions' names")]
    Data {
        /// Number of the line, from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// There is nothing to evaluate on.
    #[error("the data has no line; give a file of JSON lines with `text` and `labels`")]
    Empty,
    /// A fault of ours.
    #[error(transparent)]
    Model(#[from] Failure),
}

#[derive(Deserialize)]
struct Line {
    text: String,
    labels: Vec<String>,
}

struct Row {
    text: String,
    truth: [bool; LABELS],
}

/// Scores the emotion model on JSON lines of `text` and `labels`: `macro_f1` over 28 labels (0 for one that is never
/// predicted), `micro_f1`, `ekman_macro_f1`, `ece` (mean over labels with at least 30 positives, 15 bins of equal mass),
/// `brier`. The baseline is the n-gram model alone, at the tier's thresholds. A text that the stages skip counts as
/// having no emotion, with probability 0 of each.
///
/// # Errors
/// The data is not what it should be, or a fault of ours.
pub fn emotion(models: &Arc<Models>, tier: Tier, data: &[u8]) -> Result<Report, EvalError> {
    let rows = read(data)?;
    let truth: Vec<[bool; LABELS]> = rows.iter().map(|row| row.truth).collect();
    let head = models.expression().head(tier);
    let thresholds = (&head.threshold, &head.ekman_threshold);
    let start = Instant::now();
    let emotions = infer(models, tier, &rows)?;
    let turns_per_second = rows.len() as f64 / start.elapsed().as_secs_f64();
    let p: Vec<[f32; LABELS]> =
        emotions.iter().map(|e| e.as_ref().map_or([0.0; LABELS], |e| e.probabilities.to_array())).collect();
    let ngram: Vec<[f32; LABELS]> =
        rows.iter().map(|row| models.expression().ngram_logits(&Normalised::of(&row.text)).map(sigmoid)).collect();
    let provenance = models.expression().provenance(tier);
    Ok(Report {
        task: "emotion".to_owned(),
        data_sha256: Sha256::digest(data).iter().map(|b| format!("{b:02x}")).collect(),
        n: rows.len(),
        model: format!("{}@{}", provenance.model, provenance.version),
        tier,
        metrics: judged(&p, &truth, thresholds).figures(),
        baseline: Baseline { name: "n-grams alone".to_owned(), metrics: judged(&ngram, &truth, thresholds).figures() },
        turns_per_second,
    })
}

fn read(data: &[u8]) -> Result<Vec<Row>, EvalError> {
    let lines = data.split(|b| *b == b'\n').enumerate().filter(|(_, line)| !line.trim_ascii().is_empty());
    let rows: Result<Vec<Row>, EvalError> = lines
        .map(|(index, line)| {
            let wrong = |problem: String| EvalError::Data { line: index + 1, problem };
            let line: Line = serde_json::from_slice(line).map_err(|e| wrong(e.to_string()))?;
            let mut truth = [false; LABELS];
            for name in &line.labels {
                let label = GoEmotions::LABELS.iter().position(|label| label == name);
                truth[label.ok_or_else(|| wrong(format!("`{name}` is no label")))?] = true;
            }
            Ok(Row { text: line.text, truth })
        })
        .collect();
    rows.and_then(|rows| if rows.is_empty() { Err(EvalError::Empty) } else { Ok(rows) })
}

/// What the stages say of every text, as a first turn.
fn infer(models: &Arc<Models>, tier: Tier, rows: &[Row]) -> Result<Vec<Option<Emotion>>, Failure> {
    let (encode, emotions) = (Encode::new(Arc::clone(models)), Emotions::new(Arc::clone(models)));
    let mut found = Vec::with_capacity(rows.len());
    for batch in rows.chunks(BATCH_TURNS) {
        let mut turns: Vec<Turn> = batch.iter().map(|row| turn(&row.text, tier)).collect();
        encode.infer(&mut turns)?;
        emotions.infer(&mut turns)?;
        found.extend(turns.into_iter().map(|turn| turn.emotion));
    }
    Ok(found)
}

fn turn(text: &str, tier: Tier) -> Turn {
    Turn { tier: Some(tier), ..Turn::message("eval", "eval", "", "", text, 0) }
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
