//! Task `style`: among three replies to a prompt, the one of the persona that was asked for.
//!
//! A line is a prompt with a reply of each persona ([`PERSONAS`]); `models/style.py` makes the file of the scenarios that
//! nothing was fitted on. Each reply goes through the shipped stages, and its style (formality, warmth, verbosity, pace) is
//! held against what each persona writes like: chosen is the reply that is most probably the asked persona's. `accuracy`
//! over prompts and personas; the unit of the intervals is the scenario, because its prompts share their replies. The
//! baseline takes the longest reply for the friendly persona's and the shortest for the professional's.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use schemas::{Sender, Turn};
use serde::Deserialize;

use super::{Baseline, Case, EvalError, Figure, Report, Task, bootstrap, lines, turn};
use crate::model::personality::{PERSONAS, SCORES, style_of};
use crate::stage::Stage;
use crate::stages::{Encode, Personalities};

const FORMAT: &str = "a line is a JSON object with `prompt`, `scenario` and `replies`, which holds `friendly`, `humorous` and `professional`";

/// The task.
pub(super) struct StyleTask;

#[derive(Deserialize)]
struct Line {
    scenario: String,
    replies: BTreeMap<String, String>,
}

impl Task for StyleTask {
    fn name(&self) -> &'static str {
        "style"
    }

    fn rows(&self) -> &'static [(&'static str, &'static str)] {
        &[("accuracy", "accuracy, of three    ↑")]
    }

    fn run(&self, case: &Case<'_>) -> Result<Report, EvalError> {
        let rows = lines(case.data, FORMAT, |mut line: Line| {
            let mut reply = |persona: &str| line.replies.remove(persona).ok_or(format!("there is no {persona} reply"));
            let [a, b, c] = PERSONAS;
            Ok((line.scenario.clone(), [reply(a)?, reply(b)?, reply(c)?]))
        })?;
        let start = Instant::now();
        let sender = || Some(Sender { id: "persona".to_owned(), name: None, bot: false });
        let replies = rows.iter().flat_map(|(_, replies)| replies);
        let mut turns: Vec<Turn> = replies.map(|text| Turn { sender: sender(), ..turn(text, case.tier) }).collect();
        Encode::new(Arc::clone(case.models)).infer(&mut turns)?;
        Personalities::new(Arc::clone(case.models)).infer(&mut turns)?;
        let model = case.models.personality();
        let said: Vec<[f32; PERSONAS.len()]> = turns
            .iter()
            .map(|turn| {
                let scores = turn
                    .personality
                    .as_ref()
                    .and_then(|part| <[f32; SCORES]>::try_from(&part.evidence.scores[..]).ok());
                scores.map_or([0.0; PERSONAS.len()], |scores| model.personas(case.tier, &style_of(&scores)))
            })
            .collect();
        let time = start.elapsed();
        let (ours, _) = said.as_chunks::<{ PERSONAS.len() }>();
        let length = |replies: &[String; PERSONAS.len()]| {
            replies.each_ref().map(|reply| {
                let words = reply.split_whitespace().count() as f32;
                [words, 0.0, -words]
            })
        };
        let simple: Vec<_> = rows.iter().map(|(_, replies)| length(replies)).collect();
        let scenarios: Vec<&str> = rows.iter().map(|(scenario, _)| scenario.as_str()).collect();
        let baseline = Baseline { name: "length".to_owned(), metrics: figures(&simple, &scenarios) };
        Ok(case.report(self, turns.len(), &model.provenance(case.tier), figures(ours, &scenarios), baseline, time))
    }
}

/// `fits` says of each prompt's replies, in the order of the personas, how well they fit each persona; those that fit alike
/// share the point.
fn figures(fits: &[[[f32; PERSONAS.len()]; PERSONAS.len()]], scenarios: &[&str]) -> BTreeMap<String, Figure> {
    let mut units: BTreeMap<&str, [f64; 2]> = BTreeMap::new();
    for (replies, scenario) in fits.iter().zip(scenarios) {
        let unit = units.entry(scenario).or_default();
        for asked in 0..PERSONAS.len() {
            let best = replies.iter().map(|fits| fits[asked]).fold(f32::NEG_INFINITY, f32::max);
            let chosen = replies.iter().filter(|fits| fits[asked] == best).count();
            unit[0] += if replies[asked][asked] == best { 1.0 / chosen as f64 } else { 0.0 };
            unit[1] += 1.0;
        }
    }
    let units: Vec<[f64; 2]> = units.into_values().collect();
    bootstrap::figures(&["accuracy"], units.len(), |times| {
        let sums = units.iter().zip(times).fold([0.0; 2], |sum, (unit, times)| {
            [sum[0] + unit[0] * f64::from(*times), sum[1] + unit[1] * f64::from(*times)]
        });
        [sums[0] / sums[1]]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accuracy_is_what_a_hand_computes() {
        // The first prompt's replies are told apart but for the second persona, where two tie; the second's are not.
        let told = [[0.9, 0.5, 0.0], [0.1, 0.5, 0.0], [0.0, 0.0, 1.0]];
        let wrong = [[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 0.0, 0.0]];
        let figure = figures(&[told, wrong], &["a", "b"])["accuracy"];
        assert!((figure.value - 2.5 / 6.0).abs() < 1e-12);
        assert!((figure.low, figure.high) == (0.0, 2.5 / 3.0), "{figure:?}");
    }
}
