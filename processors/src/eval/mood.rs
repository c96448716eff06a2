//! Task `mood`: what the mood says of the turn to come, and whether it notices where a conversation turns.
//!
//! Two people take turns; each turn has an emotion: 0 none, 1 anger, 2 disgust, 3 fear, 4 happiness, 5 sadness, 6 surprise
//! (DailyDialog's numbers). Anger, disgust, fear and sadness are negative, happiness is positive. `auc`: of telling that a
//! speaker's next turn is negative, when all turns before it were read, from the mood then; the baseline tells it from that
//! speaker's last turn alone. `precision` and `recall`: of turning points. By the labels, a turn escalates when it is negative,
//! is not the first, and the last turn before it that was negative or positive was not negative; it relieves when it is positive and
//! that turn was negative. The baseline calls them by the sign of each turn's valence. The unit of the intervals is the dialogue.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use schemas::slice::EmotionSlice;
use schemas::{Emotion, Turn};
use serde::Deserialize;

use super::figures::Ranking;
use super::{Baseline, Case, EvalError, Figure, Report, Task, bootstrap, emotion, lines, turn};
use crate::stage::Stage;
use crate::stages::{Emotions, Turning, tension};

const FORMAT: &str =
    "a line is a JSON object with `turns`, a list of texts, and `emotions`, as many numbers from 0 to 6";
/// By DailyDialog's number: negative, neither, positive.
const SIDES: [i8; 7] = [0, -1, -1, -1, 1, -1, 0];
/// Milliseconds from turn to turn: the data has no times.
const PACE_MS: i64 = 10_000;

/// The task.
pub(super) struct MoodTask;

#[derive(Deserialize)]
struct Line {
    turns: Vec<String>,
    emotions: Vec<usize>,
}

impl Task for MoodTask {
    fn name(&self) -> &'static str {
        "mood"
    }

    fn rows(&self) -> &'static [(&'static str, &'static str)] {
        &[
            ("auc", "AUC, next is negative ↑"),
            ("precision", "turning: precision    ↑"),
            ("recall", "turning: recall       ↑"),
        ]
    }

    fn run(&self, case: &Case<'_>) -> Result<Report, EvalError> {
        let rows = lines(case.data, FORMAT, |line: Line| match line {
            Line { turns, emotions } if turns.len() != emotions.len() => {
                Err(format!("{} turns and {} emotions", turns.len(), emotions.len()))
            }
            Line { emotions, .. } if emotions.iter().any(|e| *e >= SIDES.len()) => {
                Err(format!("an emotion is a number from 0 to {}", SIDES.len() - 1))
            }
            line => Ok(line),
        })?;
        let texts: Vec<&str> = rows.iter().flat_map(|row| &row.turns).map(String::as_str).collect();
        let start = Instant::now();
        let mut parts = emotion::infer(case.models, case.tier, &texts)?.into_iter();
        let stage = Emotions::new(Arc::clone(case.models));
        let (mut ours, mut simple) = (Vec::with_capacity(rows.len()), Vec::with_capacity(rows.len()));
        for row in &rows {
            let sides: Vec<i8> = row.emotions.iter().map(|e| SIDES[*e]).collect();
            let mut slice = EmotionSlice::default();
            let mut turns: Vec<Turn> = row.turns.iter().map(|text| turn(text, case.tier)).collect();
            for (place, (turn, part)) in turns.iter_mut().zip(&mut parts).enumerate() {
                turn.at = place as i64 * PACE_MS;
                turn.emotion = part;
                stage.fold(&mut slice, turn)?;
            }
            let parts: Vec<Option<&Emotion>> = turns.iter().map(|turn| turn.emotion.as_ref()).collect();
            let mood = |e: &Emotion| e.mood.as_ref().map_or(0.0, |mood| mood.tension);
            let noticed = |e: &Emotion| e.mood.as_ref().and_then(|mood| Turning::from_name(mood.turning.as_deref()?));
            ours.push(Dialogue {
                next: next(&sides, |t| parts[t - 1].map_or(0.0, mood)),
                turning: hits(&parts.iter().map(|p| p.and_then(noticed)).collect::<Vec<_>>(), &turning(&sides)),
            });
            let signs: Vec<i8> = parts.iter().map(|p| p.map_or(0, |p| p.valence.signum() as i8)).collect();
            simple.push(Dialogue {
                next: next(&sides, |t| parts[t - 2].map_or(0.0, |e| tension(&e.probabilities))),
                turning: hits(&turning(&signs), &turning(&sides)),
            });
        }
        let time = start.elapsed();
        let model = case.models.expression().provenance(case.tier);
        let baseline = Baseline { name: "the last turn alone".to_owned(), metrics: figures(&simple) };
        Ok(case.report(self, texts.len(), &model, figures(&ours), baseline, time))
    }
}

/// What was said of one dialogue.
struct Dialogue {
    /// Of each turn from the third: how probably it is negative, and whether it is.
    next: Vec<(f32, bool)>,
    /// Turning points: found, called, there.
    turning: [f64; 3],
}

/// `said` of the place of every turn whose speaker has spoken before, beside the truth.
fn next(sides: &[i8], said: impl Fn(usize) -> f32) -> Vec<(f32, bool)> {
    (2..sides.len()).map(|t| (said(t), sides[t] < 0)).collect()
}

/// Where a conversation turns, by the side of each turn.
fn turning(sides: &[i8]) -> Vec<Option<Turning>> {
    let mut last = 0;
    let step = |(place, side): (usize, &i8)| {
        let turned = Turning::between(last, *side).filter(|_| place > 0);
        last = if *side == 0 { last } else { *side };
        turned
    };
    sides.iter().enumerate().map(step).collect()
}

fn hits(called: &[Option<Turning>], there: &[Option<Turning>]) -> [f64; 3] {
    let found = called.iter().zip(there).filter(|(called, there)| called.is_some() && called == there).count();
    [found, called.iter().flatten().count(), there.iter().flatten().count()].map(|count| count as f64)
}

fn figures(dialogues: &[Dialogue]) -> BTreeMap<String, Figure> {
    let next = |(place, dialogue): (usize, &Dialogue)| {
        dialogue.next.iter().map(|(said, negative)| (f64::from(*said), *negative, place)).collect::<Vec<_>>()
    };
    let ranking = Ranking::new(dialogues.iter().enumerate().flat_map(next));
    bootstrap::figures(&["auc", "precision", "recall"], dialogues.len(), |times| {
        let mut sum = [0.0; 3];
        for (dialogue, times) in dialogues.iter().zip(times) {
            sum.iter_mut().zip(dialogue.turning).for_each(|(sum, count)| *sum += count * f64::from(*times));
        }
        let share = |of: f64| if of > 0.0 { sum[0] / of } else { 0.0 };
        [ranking.auc(times).unwrap_or(0.5), share(sum[1]), share(sum[2])]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turning_points_are_where_the_side_changes_for_the_worse_or_from_bad_to_good() {
        use Turning::{Escalating, Relieved};
        assert_eq!(turning(&[-1, 0, -1, 1, 0, -1]), [None, None, None, Some(Relieved), None, Some(Escalating)]);
        assert_eq!(turning(&[0, -1, -1, 0]), [None, Some(Escalating), None, None]);
        let called = [Some(Relieved), Some(Escalating), None, None];
        assert_eq!(hits(&called, &turning(&[0, -1, 1, 0])), [1.0, 2.0, 2.0]);
    }

    #[test]
    fn figures_are_what_a_hand_computes() {
        let one = Dialogue { next: vec![(0.9, true), (0.5, false)], turning: [1.0, 2.0, 4.0] };
        let two = Dialogue { next: vec![(0.5, true), (0.1, false)], turning: [0.0, 0.0, 0.0] };
        let figures = figures(&[one, two]);
        assert!((figures["auc"].value - 3.5 / 4.0).abs() < 1e-12);
        assert_eq!((figures["precision"].value, figures["recall"].value), (0.5, 0.25));
    }

    #[test]
    fn a_next_turn_is_judged_by_what_stood_before_it() {
        assert_eq!(next(&[-1, 0, -1, 1], |t| t as f32), [(2.0, true), (3.0, false)]);
    }
}
