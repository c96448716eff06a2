//! Task `language`: which language a short text is in.
//!
//! Reads texts of 3 to 10 words and leaves out the others. `accuracy` over texts and `macro_accuracy`, its mean over
//! languages (a text that gets no name is wrong); `named`, the share of texts that get one; `refused`, the share that the
//! stages would wrongly turn away: English that is surely said to be another language.
//! The baseline is whichlang alone, which always answers. Tiers do not differ.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use schemas::Provenance;
use serde::Deserialize;

use super::{Baseline, Case, EvalError, Figure, Report, Task, bootstrap, lines};
use crate::language::{self, Detected, MODELS_READ, is_surely_foreign};

const FORMAT: &str = "a line is a JSON object with `text` and `language`, an ISO 639-3 code such as \"eng\"";
/// Words of a text that counts.
const WORDS: std::ops::RangeInclusive<usize> = 3..=10;

/// The task.
pub(super) struct LanguageTask;

#[derive(Deserialize)]
struct Line {
    text: String,
    language: Option<String>,
}

impl Task for LanguageTask {
    fn name(&self) -> &'static str {
        "language"
    }

    fn rows(&self) -> &'static [(&'static str, &'static str)] {
        &[
            ("macro_accuracy", "accuracy, languages   ↑"),
            ("accuracy", "accuracy, texts       ↑"),
            ("named", "share named            "),
            ("refused", "English refused       ↓"),
        ]
    }

    fn run(&self, case: &Case<'_>) -> Result<Report, EvalError> {
        let given = &case.choices.language;
        let rows = lines(case.data, FORMAT, |line: Line| {
            let language = line.language.as_ref().or(given.as_ref());
            let language =
                language.ok_or("no `language`: give it in the line, or that of the whole file by --language")?;
            match language.len() {
                3 => Ok((line.text, language.clone())),
                _ => Err(format!("`{language}` is not three letters long")),
            }
        })?;
        let rows: Vec<_> =
            rows.into_iter().filter(|(text, _)| WORDS.contains(&text.split_whitespace().count())).collect();
        if rows.is_empty() {
            return Err(EvalError::Choice(format!(
                "no text has {} to {} words, and only those count",
                WORDS.start(),
                WORDS.end()
            )));
        }
        let start = Instant::now();
        let ours: Vec<Option<Detected>> = rows.iter().map(|(text, _)| language::detect(text)).collect();
        let time = start.elapsed();
        let simple: Vec<Option<Detected>> = rows.iter().map(|(text, _)| language::first_guess(text)).collect();
        let truth: Vec<&str> = rows.iter().map(|(_, language)| language.as_str()).collect();
        let baseline = Baseline { name: "whichlang alone".to_owned(), metrics: figures(&simple, &truth) };
        let model = Provenance { model: "whichlang+whatlang".into(), version: "1".into(), tier: case.tier };
        Ok(case.report(self, rows.len(), &model, figures(&ours, &truth), baseline, time))
    }
}

fn figures(found: &[Option<Detected>], truth: &[&str]) -> BTreeMap<String, Figure> {
    let languages: Vec<&str> = truth.iter().copied().collect::<BTreeSet<_>>().into_iter().collect();
    // Of each text: its language, and whether it was right, was named, and was wrongly called surely foreign.
    let told = |(found, truth): (&Option<Detected>, &&str)| {
        let place = languages.binary_search(truth).expect("every language is among them");
        let right = found.is_some_and(|found| found.code == *truth);
        let refused =
            *truth == MODELS_READ && found.is_some_and(|found| is_surely_foreign(found.code, found.confidence));
        (place, right, found.is_some(), refused)
    };
    let told: Vec<_> = found.iter().zip(truth).map(told).collect();
    bootstrap::figures(&["accuracy", "macro_accuracy", "named", "refused"], told.len(), |times| {
        let mut right = vec![[0.0; 2]; languages.len()];
        let [mut named, mut refused, mut read] = [0.0; 3];
        for ((place, is_right, is_named, is_refused), times) in told.iter().zip(times) {
            let times = f64::from(*times);
            right[*place][0] += if *is_right { times } else { 0.0 };
            right[*place][1] += times;
            named += if *is_named { times } else { 0.0 };
            refused += if *is_refused { times } else { 0.0 };
            read += if languages[*place] == MODELS_READ { times } else { 0.0 };
        }
        let (hits, all) = right.iter().fold((0.0, 0.0), |(hits, all), [h, n]| (hits + h, all + n));
        let drawn: Vec<f64> = right.iter().filter(|[_, n]| *n > 0.0).map(|[h, n]| h / n).collect();
        let mean = drawn.iter().sum::<f64>() / drawn.len() as f64;
        [hits / all, mean, named / all, if read > 0.0 { refused / read } else { 0.0 }]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_what_a_hand_computes() {
        let said = |code, confidence| Some(Detected { code, confidence });
        let found = [said("eng", 0.9), said("fra", 0.99), None, said("fra", 0.6)];
        let figures = figures(&found, &["eng", "eng", "eng", "fra"]);
        let value = |name: &str| figures[name].value;
        assert!((value("accuracy") - 0.5).abs() < 1e-12 && (value("named") - 0.75).abs() < 1e-12);
        assert!((value("macro_accuracy") - (1.0 / 3.0 + 1.0) / 2.0).abs() < 1e-12);
        assert!((value("refused") - 1.0 / 3.0).abs() < 1e-12);
    }
}
