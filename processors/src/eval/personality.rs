//! Task `personality`: the Big Five of who wrote a text, zero-shot: no weight saw the labels' like.
//!
//! Every text is a person who consented and said its sentences one after the other; the shipped stages infer and fold them.
//! `mean_auc` and `auc_o` … `auc_n`: how well the estimate ranks people. `mean_accuracy`: above or below 0, the mean of the
//! chats that the model was scaled on. `coverage`: share of people and traits whose interval after the first half of the
//! words holds the estimate from the second half alone, and `interval_width` beside it. People with too few words for the
//! product count all the same. The unit of the intervals is the person. The baseline takes every trait but openness from the
//! mean valence, and openness from the number of words.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use schemas::slice::{PersonalitySlice, Statistics};
use schemas::{Consent, Estimate, Sender, Turn};
use serde::Deserialize;

use super::figures::Ranking;
use super::{Baseline, Case, EvalError, Figure, Report, Task, bootstrap, lines, turn};
use crate::model::personality::TRAITS;
use crate::stage::Stage;
use crate::stages::{Emotions, Encode, Personalities};

const FORMAT: &str = "a line is a JSON object with `text` and `cOPN`, `cCON`, `cEXT`, `cAGR` and `cNEU`, each 0 or 1";
/// Words of a sentence at which it is cut: people do not say more at once, and the encoder reads no more.
const SENTENCE_WORDS_MAX: usize = 60;
/// Sentences that go through the stages at a time.
const BATCH: usize = 4096;
const NAMES: [&str; 9] =
    ["mean_auc", "auc_o", "auc_c", "auc_e", "auc_a", "auc_n", "mean_accuracy", "coverage", "interval_width"];

/// The task.
pub(super) struct PersonalityTask;

#[derive(Deserialize)]
struct Line {
    text: String,
    #[serde(rename = "cOPN")]
    openness: u8,
    #[serde(rename = "cCON")]
    conscientiousness: u8,
    #[serde(rename = "cEXT")]
    extraversion: u8,
    #[serde(rename = "cAGR")]
    agreeableness: u8,
    #[serde(rename = "cNEU")]
    neuroticism: u8,
}

/// What was said of a person, beside the truth.
#[derive(Debug, Clone)]
struct Judged {
    said: [f64; TRAITS],
    /// Of each trait: the interval after the first half of the words, and the estimate from the second.
    halves: Option<([Estimate; TRAITS], [Estimate; TRAITS])>,
    truth: [bool; TRAITS],
}

impl Task for PersonalityTask {
    fn name(&self) -> &'static str {
        "personality"
    }

    fn rows(&self) -> &'static [(&'static str, &'static str)] {
        &[
            (NAMES[0], "AUC, mean of five     ↑"),
            (NAMES[1], "  openness            ↑"),
            (NAMES[2], "  conscientiousness   ↑"),
            (NAMES[3], "  extraversion        ↑"),
            (NAMES[4], "  agreeableness       ↑"),
            (NAMES[5], "  neuroticism         ↑"),
            (NAMES[6], "accuracy, mean        ↑"),
            (NAMES[7], "coverage, 0.80 is right"),
            (NAMES[8], "interval width        ↓"),
        ]
    }

    fn run(&self, case: &Case<'_>) -> Result<Report, EvalError> {
        let rows = lines(case.data, FORMAT, |line: Line| {
            let labels =
                [line.openness, line.conscientiousness, line.extraversion, line.agreeableness, line.neuroticism];
            if labels.iter().any(|label| *label > 1) {
                Err("a label is 0 or 1".to_owned())
            } else {
                Ok((line.text, labels))
            }
        })?;
        let stages = Stages::new(case);
        let start = Instant::now();
        let (mut ours, mut simple, mut sentences) = (Vec::with_capacity(rows.len()), Vec::with_capacity(rows.len()), 0);
        // Whole people at a time, so that a batch is as full as it may be.
        let mut rest = rows.as_slice();
        while !rest.is_empty() {
            let mut turns = Vec::new();
            let mut halves = Vec::new();
            while let Some(((text, _), others)) = rest.split_first()
                && turns.len() < BATCH
            {
                let begun = turns.len();
                let (first, second) = half(text);
                turns.extend(said(first, case));
                let middle = turns.len();
                turns.extend(said(second, case));
                halves.push((begun, middle, turns.len()));
                rest = others;
            }
            sentences += turns.len();
            stages.infer(&mut turns)?;
            for (begun, middle, end) in halves {
                let truth = rows[ours.len()].1.map(|label| label == 1);
                let model = case.models.personality();
                let traits = |sums: &Statistics| model.traits(case.tier, sums).to_array();
                let first = stages.fold(&mut turns[begun..middle])?;
                let second = stages.fold(&mut turns[middle..end])?;
                let mut whole = first.clone();
                whole.add(&second);
                let halves = (first.words > 0 && second.words > 0).then(|| (traits(&first), traits(&second)));
                ours.push(Judged { said: traits(&whole).map(|estimate| f64::from(estimate.mean)), halves, truth });
                let valences =
                    turns[begun..end].iter().filter_map(|turn| Some(f64::from(turn.emotion.as_ref()?.valence)));
                let valence = valences.sum::<f64>() / (end - begun).max(1) as f64;
                let said = [whole.words as f64, valence, valence, valence, -valence];
                simple.push(Judged { said, halves: None, truth });
            }
        }
        let time = start.elapsed();
        let mut baseline = figures(&simple);
        baseline.retain(|name, _| name.contains("auc"));
        let baseline = Baseline { name: "valence and length".to_owned(), metrics: baseline };
        let model = case.models.personality().provenance(case.tier);
        let mut report = case.report(self, rows.len(), &model, figures(&ours), baseline, time);
        report.turns_per_second = sentences as f64 / time.as_secs_f64();
        Ok(report)
    }
}

/// The stages that a person's sentences pass.
struct Stages {
    encode: Encode,
    emotions: Emotions,
    personalities: Personalities,
    consents: Turn,
}

impl Stages {
    fn new(case: &Case<'_>) -> Stages {
        let consent = Some(Consent { granted: true, text_version: "eval".to_owned() });
        Stages {
            encode: Encode::new(Arc::clone(case.models)),
            emotions: Emotions::new(Arc::clone(case.models)),
            personalities: Personalities::new(Arc::clone(case.models)),
            consents: Turn { consent, ..person(turn("", case.tier)) },
        }
    }

    fn infer(&self, turns: &mut [Turn]) -> Result<(), EvalError> {
        self.encode.infer(turns)?;
        self.emotions.infer(turns)?;
        Ok(self.personalities.infer(turns)?)
    }

    /// What is known of somebody who consented and then said these; nothing if no stage read them.
    fn fold(&self, turns: &mut [Turn]) -> Result<Statistics, EvalError> {
        let mut slice = PersonalitySlice::default();
        self.personalities.fold(&mut slice, &mut self.consents.clone())?;
        for turn in turns {
            self.personalities.fold(&mut slice, turn)?;
        }
        Ok(slice.persons.pop().and_then(|mut person| person.statistics.pop()).unwrap_or_default())
    }
}

fn person(turn: Turn) -> Turn {
    Turn { sender: Some(Sender { id: "writer".to_owned(), name: None, bot: false }), ..turn }
}

fn said(text: &str, case: &Case<'_>) -> Vec<Turn> {
    sentences(text).iter().map(|sentence| person(turn(sentence, case.tier))).collect()
}

/// A text cut before the word in its middle.
fn half(text: &str) -> (&str, &str) {
    let starts: Vec<usize> =
        text.split_whitespace().map(|word| word.as_ptr() as usize - text.as_ptr() as usize).collect();
    starts.get(starts.len().div_ceil(2)).map_or((text, ""), |middle| text.split_at(*middle))
}

/// Sentences end at a word that ends with `.`, `!` or `?`, or at [`SENTENCE_WORDS_MAX`] words.
fn sentences(text: &str) -> Vec<String> {
    let (mut all, mut words) = (Vec::new(), Vec::new());
    for word in text.split_whitespace() {
        words.push(word);
        if word.ends_with(['.', '!', '?']) || words.len() == SENTENCE_WORDS_MAX {
            all.push(words.join(" "));
            words.clear();
        }
    }
    if !words.is_empty() {
        all.push(words.join(" "));
    }
    all
}

fn figures(people: &[Judged]) -> BTreeMap<String, Figure> {
    let rankings: [Ranking; TRAITS] = std::array::from_fn(|trait_| {
        let said = people.iter().enumerate();
        Ranking::new(said.map(|(place, person)| (person.said[trait_], person.truth[trait_], place)))
    });
    bootstrap::figures(&NAMES, people.len(), |times| {
        let aucs = rankings.each_ref().map(|ranking| ranking.auc(times).unwrap_or(0.5));
        let (mut right, mut all, mut held, mut width, mut judged) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for (person, times) in people.iter().zip(times) {
            let times = f64::from(*times);
            for trait_ in 0..TRAITS {
                right += if (person.said[trait_] > 0.0) == person.truth[trait_] { times } else { 0.0 };
                all += times;
                let Some((first, second)) = &person.halves else { continue };
                let (interval, mean) = (first[trait_], second[trait_].mean);
                held += if (interval.low..=interval.high).contains(&mean) { times } else { 0.0 };
                width += times * f64::from(interval.high - interval.low);
                judged += times;
            }
        }
        let [o, c, e, a, n] = aucs;
        let share = |sum: f64, of: f64| if of > 0.0 { sum / of } else { 0.0 };
        let mean = aucs.iter().sum::<f64>() / TRAITS as f64;
        [mean, o, c, e, a, n, share(right, all), share(held, judged), share(width, judged)]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(said: f64, truth: bool, second: f32) -> Judged {
        let estimate = |mean: f32| Estimate { mean, low: mean - 1.0, high: mean + 1.0 };
        let halves = Some(([estimate(0.0); TRAITS], [estimate(second); TRAITS]));
        Judged { said: [said; TRAITS], halves, truth: [truth; TRAITS] }
    }

    #[test]
    fn figures_are_what_a_hand_computes() {
        let people =
            [judged(-1.0, false, 0.5), judged(0.5, false, 2.0), judged(0.5, true, -1.0), judged(2.0, true, 1.5)];
        let figures = figures(&people);
        // Of four pairs three are in order and one is a tie.
        assert!((figures["mean_auc"].value - 3.5 / 4.0).abs() < 1e-12);
        assert!((figures["mean_accuracy"].value - 0.75).abs() < 1e-12);
        assert!((figures["coverage"].value - 0.5).abs() < 1e-12);
        assert!((figures["interval_width"].value - 2.0).abs() < 1e-6);
    }

    #[test]
    fn shuffled_labels_give_one_half() {
        // Labels that have nothing to do with what was said: the parity of a number that a shuffle draws.
        let people: Vec<Judged> =
            (0..4000u64).map(|i| judged(i as f64, i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 63 == 1, 0.0)).collect();
        let figures = figures(&people);
        assert!((figures["mean_auc"].value - 0.5).abs() < 0.02, "{:?}", figures["mean_auc"]);
    }

    #[test]
    fn a_text_is_cut_in_the_middle_and_at_its_sentences() {
        let (first, second) = half(" One two. Three four five.");
        assert_eq!(
            (sentences(first), sentences(second)),
            (vec!["One two.".into(), "Three".into()], vec!["four five.".to_owned()])
        );
        assert_eq!(sentences(&"word ".repeat(SENTENCE_WORDS_MAX + 1)).len(), 2);
        assert_eq!(half("one"), ("one", ""));
    }
}
