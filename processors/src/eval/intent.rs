//! Task `intent`: what is wanted, among the intents of a shipped set (`--set`) or of a file of examples (`--examples`).
//!
//! `accuracy` over the texts in scope, without rejecting; and where there are texts whose intent is `oos`:
//! `in_scope_accuracy_at_threshold`, which counts a rejected text in scope as wrong, `oos_recall`, and `oos_auroc` by the
//! probability of the best intent. A text that the stages skip counts as rejected, and wrong. The baseline is the nearest
//! TF-IDF centroid of n-grams: a shipped one, or that of the examples.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use schemas::Turn;
use serde::Deserialize;

use super::figures::Ranking;
use super::{Baseline, Case, EvalError, Figure, Report, Task, bootstrap, lines, turn};
use crate::model::examples::{Seen, idf, weigh};
use crate::model::ngram::Normalised;
use crate::model::sets::{self, ExamplesError, Set};
use crate::stage::Stage;
use crate::stages::{Dialogues, Encode};

/// Turns that are inferred together, so that memory is bounded.
const BATCH_TURNS: usize = 256;
const FORMAT: &str = "a line is a JSON object with `text` and `intent`, one of the set's or `oos`";
/// What is none of a set's intents.
const OUT_OF_SCOPE: &str = "oos";

/// The task.
pub(super) struct IntentTask;

#[derive(Deserialize)]
struct Line {
    text: String,
    intent: String,
}

/// What was said of a text: the label, how sure, and whether it was taken.
#[derive(Debug, Clone, Copy)]
struct Answer {
    label: Option<usize>,
    score: f32,
    accepted: bool,
}

impl Task for IntentTask {
    fn name(&self) -> &'static str {
        "intent"
    }

    fn rows(&self) -> &'static [(&'static str, &'static str)] {
        &[
            ("accuracy", "accuracy in scope     ↑"),
            ("in_scope_accuracy_at_threshold", "… at the threshold    ↑"),
            ("oos_recall", "out of scope, recall  ↑"),
            ("oos_auroc", "out of scope, AUROC   ↑"),
        ]
    }

    fn run(&self, case: &Case<'_>) -> Result<Report, EvalError> {
        let name = match (&case.choices.set, &case.choices.examples) {
            (Some(_), Some(_)) => return Err(EvalError::Choice("give --set or --examples, not both".to_owned())),
            (Some(set), None) => set.clone(),
            (None, Some(file)) => file.display().to_string(),
            (None, None) => {
                return Err(EvalError::Choice("say which intents: --set NAME or --examples FILE".to_owned()));
            }
        };
        let set = sets::open(case.models, &name).map_err(|error| match error {
            ExamplesError::Model(failure) => EvalError::Model(failure),
            error => EvalError::Choice(error.to_string()),
        })?;
        let place: HashMap<String, usize> = set.labels.iter().cloned().zip(0..).collect();
        let rows: Vec<(String, Option<usize>)> =
            lines(case.data, FORMAT, |line: Line| match place.get(&line.intent) {
                None if line.intent != OUT_OF_SCOPE => Err(format!("`{}` is no intent of {}", line.intent, name)),
                label => Ok((line.text, label.copied())),
            })?;
        let truth: Vec<Option<usize>> = rows.iter().map(|(_, label)| *label).collect();
        let centroids = centroids(case, &set)?;
        let simple: Vec<Answer> = rows.iter().map(|(text, _)| centroids(text)).collect();

        let encode = Encode::new(Arc::clone(case.models));
        let dialogues = Dialogues::with_sets(Arc::clone(case.models), vec![set]);
        let start = Instant::now();
        let mut answers = Vec::with_capacity(rows.len());
        for batch in rows.chunks(BATCH_TURNS) {
            let mut turns: Vec<Turn> = batch.iter().map(|(text, _)| turn(text, case.tier)).collect();
            encode.infer(&mut turns)?;
            dialogues.infer(&mut turns)?;
            answers.extend(turns.iter().map(|turn| answer(turn, &place)));
        }
        let time = start.elapsed();
        let mut metrics = figures(&simple, &truth);
        // A centroid has no threshold.
        metrics.retain(|name, _| !["in_scope_accuracy_at_threshold", "oos_recall"].contains(&name.as_str()));
        let baseline = Baseline { name: "TF-IDF centroids".to_owned(), metrics };
        let model = case.models.dialogue().provenance(case.tier);
        Ok(case.report(self, rows.len(), &model, figures(&answers, &truth), baseline, time))
    }
}

fn answer(turn: &Turn, place: &HashMap<String, usize>) -> Answer {
    let intent = turn.dialogue.as_ref().and_then(|dialogue| dialogue.intents.first());
    let rejected = Answer { label: None, score: 0.0, accepted: false };
    intent.map_or(rejected, |intent| Answer {
        label: place.get(&intent.name).copied(),
        score: intent.probability,
        accepted: !intent.out_of_scope,
    })
}

/// Answers a text.
type Answers = Box<dyn Fn(&str) -> Answer>;

/// The baseline: the nearest centroid of n-grams.
fn centroids(case: &Case<'_>, set: &Set) -> Result<Answers, EvalError> {
    let buckets = |text: &str| Normalised::of(text).buckets();
    let Some(file) = &case.choices.examples else {
        let centroids = case.models.dialogue().centroids(&set.name)?;
        return Ok(Box::new(move |text| {
            let (label, score) = centroids.nearest(&buckets(text));
            Answer { label: Some(label), score, accepted: true }
        }));
    };
    let bytes = std::fs::read(file).map_err(|e| EvalError::Choice(format!("read {}: {e}", file.display())))?;
    let examples = sets::examples(&file.display().to_string(), &bytes);
    let examples = examples.map_err(|error| EvalError::Choice(error.to_string()))?;
    let seen: Vec<Vec<Seen>> = examples
        .values()
        .map(|texts| texts.iter().map(|text| Seen { vector: Vec::new(), buckets: buckets(text) }).collect())
        .collect();
    let idf = idf(&seen.concat());
    let centroid = |texts: &Vec<Seen>| {
        let mut sum: HashMap<u32, f32> = HashMap::new();
        texts.iter().flat_map(|t| weigh(&t.buckets, &idf)).for_each(|(b, x)| *sum.entry(b).or_default() += x);
        let mut squares: Vec<f32> = sum.values().map(|x| x * x).collect();
        // In an order that does not change from run to run.
        squares.sort_by(f32::total_cmp);
        let length = squares.iter().sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
        sum.values_mut().for_each(|x| *x /= length);
        sum
    };
    let centroids: Vec<HashMap<u32, f32>> = seen.iter().map(centroid).collect();
    Ok(Box::new(move |text| {
        let text = weigh(&buckets(text), &idf);
        let cosine = |c: &HashMap<u32, f32>| text.iter().filter_map(|(b, x)| Some(x * c.get(b)?)).sum::<f32>();
        let cosines = centroids.iter().map(cosine).enumerate();
        let (label, score) = cosines.fold((0, f32::MIN), |best, c| if c.1 > best.1 { c } else { best });
        Answer { label: Some(label), score, accepted: true }
    }))
}

fn figures(answers: &[Answer], truth: &[Option<usize>]) -> BTreeMap<String, Figure> {
    let scored = answers.iter().zip(truth).enumerate();
    let ranking = Ranking::new(scored.map(|(i, (answer, truth))| (f64::from(answer.score), truth.is_some(), i)));
    let right = |i: usize| truth[i].is_some() && answers[i].label == truth[i];
    let all = bootstrap::figures(
        &["accuracy", "in_scope_accuracy_at_threshold", "oos_recall", "oos_auroc"],
        answers.len(),
        |times| {
            let sum = |wanted: &dyn Fn(usize) -> bool| -> f64 {
                (0..answers.len()).filter(|i| wanted(*i)).map(|i| f64::from(times[i])).sum()
            };
            let within = sum(&|i| truth[i].is_some());
            let outside = sum(&|i| truth[i].is_none());
            [
                sum(&|i| right(i)) / within,
                sum(&|i| right(i) && answers[i].accepted) / within,
                sum(&|i| truth[i].is_none() && !answers[i].accepted) / outside,
                ranking.auc(times).unwrap_or(f64::NAN),
            ]
        },
    );
    // Without texts of one kind there is no such figure.
    all.into_iter().filter(|(_, figure)| figure.value.is_finite()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_what_a_hand_computes() {
        let answer = |label, score, accepted| Answer { label: Some(label), score, accepted };
        let answers = [
            answer(0, 0.9, true),
            answer(1, 0.4, false),
            answer(1, 0.8, true),
            answer(0, 0.4, false),
            answer(0, 0.7, true),
        ];
        let truth = [Some(0), Some(1), Some(0), None, None];
        let figures = figures(&answers, &truth);
        let value = |name: &str| (figures[name].value * 1e6).round() / 1e6;
        assert_eq!(value("accuracy"), 0.666667);
        assert_eq!(value("in_scope_accuracy_at_threshold"), 0.333333);
        assert_eq!(value("oos_recall"), 0.5);
        // Of six pairs the out-of-scope text is lower in 2 + 2, and ties once.
        assert_eq!(value("oos_auroc"), 0.75);
        assert!(!super::figures(&answers[..3], &truth[..3]).contains_key("oos_auroc"));
    }
}
