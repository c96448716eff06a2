//! Task `rooms`: whether the rooms that a conversation grows are its subjects, on chats that were spliced together.
//!
//! `v_measure` (Rosenberg and Hirschberg 2007) of the rooms against the chats that the turns come from, `homogeneity` and
//! `completeness` that it is made of, because it favours many rooms; `rooms`: how many there are; `moved`: the
//! share of places that another tenth of the turns changes (the whole is folded again from the start, and compared). The
//! baseline is a room for every six turns. The unit of the intervals is the conversation.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use schemas::slice::{CoherenceSlice, MemorySlice};
use schemas::{Locus, Turn};
use serde::Deserialize;

use super::{Baseline, Case, EvalError, Figure, Report, Task, bootstrap, lines, turn};
use crate::stage::{Failure, Stage};
use crate::stages::{Coherences, Encode, Memories};

const FORMAT: &str = "a line is a JSON object with `turns`, a list of {\"text\", \"chat\"}, a chat being a number";
/// Turns of a room of the baseline.
const BLOCK: usize = 6;
const NAMES: [&str; 4] = ["v_measure", "homogeneity", "completeness", "rooms"];

/// The task.
pub(super) struct RoomsTask;

#[derive(Deserialize)]
struct Line {
    turns: Vec<Spliced>,
}

#[derive(Deserialize)]
struct Spliced {
    text: String,
    chat: i32,
}

impl Task for RoomsTask {
    fn name(&self) -> &'static str {
        "rooms"
    }

    fn rows(&self) -> &'static [(&'static str, &'static str)] {
        &[
            ("v_measure", "V-measure ↑"),
            ("homogeneity", "homogeneity ↑"),
            ("completeness", "completeness ↑"),
            ("rooms", "rooms of a chat"),
            ("moved", "places moved ↓"),
        ]
    }

    fn run(&self, case: &Case<'_>) -> Result<Report, EvalError> {
        let rows = lines(case.data, FORMAT, |line: Line| Ok::<_, String>(line.turns))?;
        let start = Instant::now();
        let (encode, stage) = (Encode::new(Arc::clone(case.models)), Memories::new(Arc::clone(case.models)));
        let coherence = Coherences::new(Arc::clone(case.models));
        let (mut ours, mut simple, mut moved, mut texts) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for row in &rows {
            let mut turns: Vec<Turn> = row.iter().map(|spliced| turn(&spliced.text, case.tier)).collect();
            encode.infer(&mut turns)?;
            coherence.infer(&mut turns)?;
            stage.infer(&mut turns)?;
            let mut slice = CoherenceSlice::default();
            for (place, turn) in turns.iter_mut().enumerate() {
                turn.position = Some(place as i64 + 1);
                coherence.fold(&mut slice, turn)?;
            }
            texts += turns.len();
            let loci = folded(&stage, &turns)?;
            let before = folded(&stage, &turns[..turns.len() * 10 / 11])?;
            let changed = before.iter().zip(&loci).filter(|(one, other)| one != other).count();
            moved.push(changed as f64 / before.len().max(1) as f64);
            let given = loci.iter().enumerate().filter_map(|(place, locus)| Some((place, locus.as_ref()?)));
            ours.push(measures(given.map(|(place, locus)| (row[place].chat, locus.room))));
            simple
                .push(measures(row.iter().enumerate().map(|(place, spliced)| (spliced.chat, (place / BLOCK) as i32))));
        }
        let time = start.elapsed();
        let mut metrics = figures(&ours);
        metrics.extend(bootstrap::figures(&["moved"], moved.len(), |times| [mean(times, |i| moved[i])]));
        let baseline = Baseline { name: "a room every six turns".to_owned(), metrics: figures(&simple) };
        let model = case.models.memory().provenance(case.tier);
        Ok(case.report(self, texts, &model, metrics, baseline, time))
    }
}

/// Where the turns are put, from the start.
fn folded(stage: &Memories, turns: &[Turn]) -> Result<Vec<Option<Locus>>, Failure> {
    let mut slice = MemorySlice::default();
    let fold = |turn: &Turn| {
        let mut turn = turn.clone();
        stage.fold(&mut slice, &mut turn)?;
        Ok(turn.memory.and_then(|part| part.locus))
    };
    turns.iter().map(fold).collect()
}

/// V-measure, homogeneity, completeness and the number of rooms.
fn measures(pairs: impl Iterator<Item = (i32, i32)>) -> [f64; NAMES.len()] {
    let (mut both, mut chats, mut rooms, mut all) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new(), 0.0);
    for (chat, room) in pairs {
        *both.entry((chat, room)).or_insert(0.0) += 1.0;
        *chats.entry(chat).or_insert(0.0) += 1.0;
        *rooms.entry(room).or_insert(0.0) += 1.0;
        all += 1.0;
    }
    let entropy = |counts: &BTreeMap<i32, f64>| -> f64 { counts.values().map(|n| -n / all * f64::ln(n / all)).sum() };
    let (of_chats, of_rooms) = (entropy(&chats), entropy(&rooms));
    let shared: f64 = both.iter().map(|((c, r), n)| n / all * f64::ln(n * all / (chats[c] * rooms[r]))).sum();
    let share = |whole: f64| if whole > 0.0 { shared / whole } else { 1.0 };
    let (homogeneity, completeness) = (share(of_chats), share(of_rooms));
    let sum = homogeneity + completeness;
    let v = if sum > 0.0 { 2.0 * homogeneity * completeness / sum } else { 0.0 };
    [v, homogeneity, completeness, rooms.keys().collect::<BTreeSet<_>>().len() as f64]
}

fn mean(times: &[u32], value: impl Fn(usize) -> f64) -> f64 {
    let weight: f64 = times.iter().map(|t| f64::from(*t)).sum();
    times.iter().enumerate().map(|(i, t)| f64::from(*t) * value(i)).sum::<f64>() / weight.max(1.0)
}

fn figures(conversations: &[[f64; NAMES.len()]]) -> BTreeMap<String, Figure> {
    bootstrap::figures(&NAMES, conversations.len(), |times| {
        std::array::from_fn(|name| mean(times, |i| conversations[i][name]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measures_are_what_a_hand_computes() {
        assert_eq!(measures([(1, 7), (1, 7), (2, 8), (2, 8)].into_iter()), [1.0, 1.0, 1.0, 2.0]);
        let [v, homogeneity, completeness, rooms] = measures([(1, 1), (1, 2), (2, 3), (2, 4)].into_iter());
        assert!(
            (homogeneity - 1.0).abs() < 1e-12 && (completeness - 0.5).abs() < 1e-12 && (v - 2.0 / 3.0).abs() < 1e-12
        );
        assert_eq!(rooms, 4.0);
        assert_eq!(measures([(1, 1), (2, 1)].into_iter())[0], 0.0);
    }
}
