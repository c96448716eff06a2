//! Task `emotion-transfer`: one emotion a text, of another data set, by a model that was not trained on it.
//!
//! The answer is the label with the greatest sum of its members' probabilities. A label is a class of the Ekman view, or one
//! of GoEmotions' 28 by itself, whose members then leave their Ekman class; `love` takes love, caring and desire along.
//! `accuracy` and `macro_f1` over the labels. The baseline is the n-gram model alone, asked in the same way.

use std::collections::BTreeSet;
use std::time::Instant;

use schemas::part::EKMAN_OF;
use schemas::{Ekman, GoEmotions};
use serde::Deserialize;

use super::figures::mean_f1;
use super::{Baseline, Case, EvalError, Figure, Report, Task, bootstrap, emotion, lines};
use crate::model::expression::{LABELS, sigmoid};
use crate::model::ngram::Normalised;

const FORMAT: &str = "a line is a JSON object with `text` and `label`";
/// What goes with `love` where it is a label.
const WITH_LOVE: [&str; 3] = ["love", "caring", "desire"];

/// The task.
pub(super) struct TransferTask;

#[derive(Deserialize)]
struct Line {
    text: String,
    label: String,
}

impl Task for TransferTask {
    fn name(&self) -> &'static str {
        "emotion-transfer"
    }

    fn rows(&self) -> &'static [(&'static str, &'static str)] {
        &[("accuracy", "accuracy              ↑"), ("macro_f1", "macro F1              ↑")]
    }

    fn run(&self, case: &Case<'_>) -> Result<Report, EvalError> {
        let read = |labels: &[String]| {
            lines(case.data, FORMAT, |line: Line| match labels.iter().position(|label| *label == line.label) {
                None if labels.is_empty() => Ok((line.text, line.label, 0)),
                None => Err(format!("`{}` is none of the labels {}", line.label, labels.join(", "))),
                Some(place) => Ok((line.text, line.label, place)),
            })
        };
        let mut labels = case.choices.labels.clone();
        if labels.is_empty() {
            let found: BTreeSet<String> = read(&[])?.into_iter().map(|(_, label, _)| label).collect();
            labels = found.into_iter().collect();
        }
        let members = members(&labels)?;
        let rows = read(&labels)?;
        let truth: Vec<usize> = rows.iter().map(|(_, _, label)| *label).collect();
        let texts: Vec<&str> = rows.iter().map(|(text, _, _)| text.as_str()).collect();

        let start = Instant::now();
        let emotions = emotion::infer(case.models, case.tier, &texts)?;
        let time = start.elapsed();
        let p = emotions.iter().map(|e| e.as_ref().map_or([0.0; LABELS], |e| e.probabilities.to_array()));
        let answers: Vec<usize> = p.map(|p| answer(&p, &members)).collect();
        let expression = case.models.expression();
        let simple = texts.iter().map(|text| expression.ngram_logits(&Normalised::of(text).buckets()).map(sigmoid));
        let simple: Vec<usize> = simple.map(|p| answer(&p, &members)).collect();

        let metrics = |answers: &[usize]| figures(answers, &truth, labels.len());
        let baseline = Baseline { name: "n-grams alone".to_owned(), metrics: metrics(&simple) };
        Ok(case.report(self, rows.len(), &expression.provenance(case.tier), metrics(&answers), baseline, time))
    }
}

/// Which of the 28 belong to each label.
fn members(labels: &[String]) -> Result<Vec<[bool; LABELS]>, EvalError> {
    let mut members = vec![[false; LABELS]; labels.len()];
    let mut taken = [false; LABELS];
    let classes = |label: &String| Ekman::LABELS.iter().position(|class| class == label);
    for (label, members) in labels.iter().zip(&mut members).filter(|(label, _)| classes(label).is_none()) {
        let names: &[&str] = if label == "love" { &WITH_LOVE } else { &[label] };
        for name in names {
            let place = GoEmotions::LABELS.iter().position(|known| known == name).ok_or_else(|| {
                let known = Ekman::LABELS.join(", ");
                EvalError::Choice(format!("`{label}` is no emotion; give --labels of {known} or of GoEmotions' names"))
            })?;
            (members[place], taken[place]) = (true, true);
        }
    }
    for (label, members) in labels.iter().zip(&mut members) {
        let Some(class) = classes(label) else { continue };
        for place in 0..LABELS {
            members[place] = EKMAN_OF[place] == class && !taken[place];
        }
    }
    Ok(members)
}

/// The label with the greatest sum, the first of equal ones.
fn answer(p: &[f32; LABELS], members: &[[bool; LABELS]]) -> usize {
    let sum = |members: &[bool; LABELS]| p.iter().zip(members).filter(|(_, m)| **m).map(|(p, _)| p).sum::<f32>();
    let sums = members.iter().map(sum).enumerate();
    sums.fold((0, f32::MIN), |best, (place, sum)| if sum > best.1 { (place, sum) } else { best }).0
}

fn figures(answers: &[usize], truth: &[usize], labels: usize) -> std::collections::BTreeMap<String, Figure> {
    bootstrap::figures(&["accuracy", "macro_f1"], truth.len(), |times| {
        let mut counts = vec![[0.0; 3]; labels];
        for ((answer, truth), times) in answers.iter().zip(truth).zip(times) {
            let times = f64::from(*times);
            counts[*answer][0] += if answer == truth { times } else { 0.0 };
            counts[*answer][1] += times;
            counts[*truth][2] += times;
        }
        let sum = |place: usize| counts.iter().map(|count| count[place]).sum::<f64>();
        [sum(0) / sum(2), mean_f1(&counts)]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn love_takes_its_members_out_of_joy() {
        let p = GoEmotions { joy: 0.3, caring: 0.4, ..Default::default() }.to_array();
        let with = members(&labels(&["joy", "love"])).unwrap();
        assert_eq!(answer(&p, &with), 1);
        let without = members(&labels(&["anger", "joy"])).unwrap();
        assert_eq!(answer(&p, &without), 1);
        assert_eq!(without[1].iter().filter(|m| **m).count(), 12);
        assert_eq!(with[0].iter().filter(|m| **m).count(), 9);
        assert!(members(&labels(&["joy", "glee"])).unwrap_err().to_string().contains("`glee`"));
    }

    #[test]
    fn figures_are_what_a_hand_computes() {
        let figures = figures(&[0, 0, 1, 1], &[0, 1, 1, 1], 3);
        assert!((figures["accuracy"].value - 0.75).abs() < 1e-12);
        assert!((figures["macro_f1"].value - (2.0 / 3.0 + 0.8 + 0.0) / 3.0).abs() < 1e-12);
    }
}
