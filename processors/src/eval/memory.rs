//! Task `memory`: whether recall finds the turns that hold the answer to a question (LoCoMo).
//!
//! Stored of a turn: who said it, the date of its session, its text (with `captions`, what its picture shows). One palace a
//! conversation, through the shipped stages, gate included: a turn that it does not keep counts as missed. Of each question
//! with evidence, the share of it that is found: `turn_recall_at_5` and `_10` among the first turns, `session_recall_at_5` and
//! `_10` among the first sessions, in the order of their best turn; `session_of_turns_at_10`: among the sessions of the
//! first ten turns. By category beside. `p95_ms`: a question from its words to the ten turns, in a palace of 10,000 memories
//! (those of the file, over and over), one at a time. The baseline is BM25 of stems over the turns. The unit of the intervals
//! is the question.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Instant;

use schemas::{Sender, Tier, Turn};
use serde::Deserialize;

use super::{Baseline, Case, EvalError, Figure, Report, Task, bootstrap, turn};
use crate::model::memory::Weights;
use crate::recall::{Palace, Question, Remembered};
use crate::stage::Stage;
use crate::stages::{Encode, Memories};

const FORMAT: &str = "the data is a JSON array of LoCoMo's conversations, each with `conversation` and `qa`";
/// Memories of the palace that `p95_ms` is measured in.
const CROWD: usize = 10_000;
/// Milliseconds between two conversations that follow each other in that palace.
const APART_MS: i64 = 365 * 24 * 60 * 60 * 1000;
/// Only words count, and only the turn's own session does not.
const WORDS_ALONE: Weights = Weights {
    words: 1.0,
    vector: 0.0,
    before: 0.0,
    after: 0.0,
    session_words: 0.0,
    session_vector: 0.0,
    speaker: 0.0,
    length: 0.0,
    time: 0.0,
};
const NAMES: [&str; 5] =
    ["turn_recall_at_5", "turn_recall_at_10", "session_recall_at_5", "session_recall_at_10", "session_of_turns_at_10"];

/// The task.
pub(super) struct MemoryTask;

#[derive(Deserialize)]
struct Line {
    conversation: serde_json::Map<String, serde_json::Value>,
    qa: Vec<Asked>,
}

#[derive(Deserialize)]
struct Said {
    speaker: String,
    dia_id: String,
    text: String,
    #[serde(default)]
    blip_caption: Option<String>,
}

#[derive(Deserialize)]
struct Asked {
    question: String,
    #[serde(default)]
    evidence: Vec<String>,
    category: i64,
}

/// A conversation: its turns, the session of each, and its questions with the places of their evidence.
struct Talk {
    turns: Vec<Turn>,
    sessions: Vec<usize>,
    questions: Vec<(String, Vec<usize>, i64)>,
}

impl Task for MemoryTask {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn rows(&self) -> &'static [(&'static str, &'static str)] {
        &[
            ("turn_recall_at_5", "turns, top 5       ↑"),
            ("turn_recall_at_10", "turns, top 10      ↑"),
            ("session_recall_at_5", "sessions, top 5    ↑"),
            ("session_recall_at_10", "sessions, top 10   ↑"),
            ("session_of_turns_at_10", "sessions of 10 turns ↑"),
            ("turn_recall_at_10_category_1", "  turns 10, several hops ↑"),
            ("turn_recall_at_10_category_2", "  turns 10, times  ↑"),
            ("turn_recall_at_10_category_3", "  turns 10, inferred ↑"),
            ("turn_recall_at_10_category_4", "  turns 10, one hop ↑"),
            ("turn_recall_at_10_category_5", "  turns 10, adversarial ↑"),
            ("kept", "share kept"),
            ("p95_ms", "p95 of 10,000, ms  ↓"),
        ]
    }

    fn run(&self, case: &Case<'_>) -> Result<Report, EvalError> {
        let talks = read(case)?;
        let start = Instant::now();
        let (mut ours, mut simple) = (Vec::new(), Vec::new());
        let (mut kept, mut all, mut crowd) = (0usize, 0usize, Vec::new());
        let (encode, memories) = (Encode::new(Arc::clone(case.models)), Memories::new(Arc::clone(case.models)));
        for Talk { mut turns, sessions, questions } in talks {
            encode.infer(&mut turns)?;
            memories.infer(&mut turns)?;
            let remembered: Vec<Remembered> = turns.iter().filter_map(Remembered::of).collect();
            kept += remembered.len();
            all += turns.len();
            crowd.extend(remembered.iter().cloned());
            let palace = Palace::new(remembered);
            let alone = Palace::new(turns.iter().filter_map(alone).collect());
            for (text, evidence, category) in &questions {
                let Some(question) = Question::of(case.models, case.tier, text)? else { continue };
                let found = palace.recall(&question, case.models.memory().weights(case.tier), usize::MAX);
                ours.push((score(&palace, &found, &sessions, evidence), *category));
                let found = alone.recall(&question, &WORDS_ALONE, usize::MAX);
                simple.push((score(&alone, &found, &sessions, evidence), *category));
            }
        }
        let time = start.elapsed();
        if ours.is_empty() {
            return Err(EvalError::Empty { format: FORMAT });
        }
        let mut metrics = figures(&ours);
        let sure = |value: f64| Figure { value, low: value, high: value };
        metrics.insert("kept".to_owned(), sure(kept as f64 / all.max(1) as f64));
        metrics.insert("p95_ms".to_owned(), sure(p95(case, crowd)?));
        let baseline = Baseline { name: "BM25 of stems".to_owned(), metrics: figures(&simple) };
        let model = case.models.memory().provenance(case.tier);
        Ok(case.report(self, ours.len(), &model, metrics, baseline, time))
    }
}

fn read(case: &Case<'_>) -> Result<Vec<Talk>, EvalError> {
    let wrong = |problem: String| EvalError::Data { line: 1, problem, format: FORMAT };
    let lines: Vec<Line> = serde_json::from_slice(case.data).map_err(|e| wrong(e.to_string()))?;
    lines.into_iter().map(|line| talk(&line, case.tier, case.choices.captions).map_err(wrong)).collect()
}

fn talk(line: &Line, tier: Tier, captions: bool) -> Result<Talk, String> {
    let number = |key: &String| key.strip_prefix("session_").and_then(|rest| rest.parse::<usize>().ok());
    let numbers: BTreeSet<usize> = line.conversation.keys().filter_map(number).collect();
    let (mut turns, mut sessions, mut places) = (Vec::new(), Vec::new(), HashMap::new());
    for number in numbers {
        let date = line.conversation.get(&format!("session_{number}_date_time")).and_then(|date| date.as_str());
        let at = date.and_then(milliseconds).ok_or_else(|| format!("session {number} has no date"))?;
        let session = line.conversation[&format!("session_{number}")].clone();
        let said: Vec<Said> = serde_json::from_value(session).map_err(|e| format!("session {number}: {e}"))?;
        for said in said {
            places.insert(said.dia_id, turns.len());
            let sender = Sender { id: said.speaker.clone(), name: Some(said.speaker), bot: false };
            let position = Some(turns.len() as i64 + 1);
            let caption = said.blip_caption.filter(|_| captions).map(|caption| format!(" {caption}"));
            let text = said.text + &caption.unwrap_or_default();
            turns.push(Turn { at, position, sender: Some(sender), ..turn(&text, tier) });
            sessions.push(number);
        }
    }
    let questions = line.qa.iter().filter_map(|asked| {
        let ids = asked.evidence.iter().flat_map(|ids| ids.split([';', ' ']));
        let evidence: BTreeSet<usize> = ids.filter_map(|id| places.get(id).copied()).collect();
        (!evidence.is_empty()).then(|| (asked.question.clone(), evidence.into_iter().collect(), asked.category))
    });
    let questions = questions.collect();
    Ok(Talk { turns, sessions, questions })
}

/// A date as LoCoMo writes it: `1:56 pm on 8 May, 2023`.
fn milliseconds(text: &str) -> Option<i64> {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    let (clock, date) = text.split_once(" on ")?;
    let (time, half) = clock.trim().split_once(' ')?;
    let (hour, minute) = time.split_once(':')?;
    let hour = hour.parse::<u32>().ok()? % 12 + if half.eq_ignore_ascii_case("pm") { 12 } else { 0 };
    let minute: u32 = minute.parse().ok()?;
    let (day, rest) = date.split_once(' ')?;
    let (month, year) = rest.split_once(", ")?;
    let month = MONTHS.iter().position(|name| *name == month)? + 1;
    let (day, year): (u32, u32) = (day.parse().ok()?, year.trim().parse().ok()?);
    schemas::time::milliseconds(&format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:00Z"))
}

/// A turn for the baseline: a session of its own, so that nothing stands around it; every turn is kept.
fn alone(turn: &Turn) -> Option<Remembered> {
    let part = turn.memory.as_ref()?;
    let vector = schemas::Embedding::quantise(&[]);
    let (position, terms) = (turn.position?, part.terms.clone());
    let (sender, name, model) = (String::new(), String::new(), String::new());
    Some(Remembered {
        position,
        at: position * crate::recall::SESSION_GAP_MS,
        sender,
        name,
        terms,
        model,
        vector,
        salience: 0.0,
    })
}

/// Shares of the evidence, in the order of [`NAMES`].
fn score<T>(palace: &Palace, found: &[(usize, T)], sessions: &[usize], evidence: &[usize]) -> [f64; NAMES.len()] {
    let turns: Vec<usize> = found.iter().map(|(place, _)| palace.memories()[*place].position as usize - 1).collect();
    let first = |limit: usize| &turns[..limit.min(turns.len())];
    let share = |wanted: &BTreeSet<usize>, got: &[usize]| {
        wanted.iter().filter(|x| got.contains(x)).count() as f64 / wanted.len().max(1) as f64
    };
    let wanted: BTreeSet<usize> = evidence.iter().copied().collect();
    let wanted_sessions: BTreeSet<usize> = evidence.iter().map(|turn| sessions[*turn]).collect();
    let mut order: Vec<usize> = Vec::new();
    for turn in &turns {
        if !order.contains(&sessions[*turn]) {
            order.push(sessions[*turn]);
        }
    }
    let of_turns: Vec<usize> = first(10).iter().map(|turn| sessions[*turn]).collect();
    [
        share(&wanted, first(5)),
        share(&wanted, first(10)),
        share(&wanted_sessions, &order[..5.min(order.len())]),
        share(&wanted_sessions, &order[..10.min(order.len())]),
        share(&wanted_sessions, &of_turns),
    ]
}

fn figures(questions: &[([f64; NAMES.len()], i64)]) -> BTreeMap<String, Figure> {
    let mean = |times: &[u32], value: &dyn Fn(usize) -> f64| {
        let weight: f64 = times.iter().map(|t| f64::from(*t)).sum();
        times.iter().enumerate().map(|(i, t)| f64::from(*t) * value(i)).sum::<f64>() / weight.max(1.0)
    };
    let mut all = bootstrap::figures(&NAMES, questions.len(), |times| {
        std::array::from_fn(|name| mean(times, &|i| questions[i].0[name]))
    });
    for category in questions.iter().map(|(_, category)| *category).collect::<BTreeSet<i64>>() {
        let chosen: Vec<_> = questions.iter().filter(|(_, c)| *c == category).map(|(shares, _)| shares).collect();
        let names = NAMES.map(|name| format!("{name}_category_{category}"));
        all.extend(bootstrap::figures(&names.each_ref().map(String::as_str), chosen.len(), |times| {
            std::array::from_fn(|name| mean(times, &|i| chosen[i][name]))
        }));
    }
    all
}

/// Milliseconds under which 95 of 100 questions are answered, encoding included.
fn p95(case: &Case<'_>, memories: Vec<Remembered>) -> Result<f64, EvalError> {
    if memories.is_empty() {
        return Ok(0.0);
    }
    let crowd = (0..CROWD).map(|i| {
        let round = (i / memories.len()) as i64;
        let memory = memories[i % memories.len()].clone();
        Remembered { position: i as i64 + 1, at: memory.at + round * APART_MS, ..memory }
    });
    let palace = Palace::new(crowd.collect());
    let mut times = Vec::new();
    for (text, ..) in read(case)?.into_iter().flat_map(|talk| talk.questions) {
        let start = Instant::now();
        let question = Question::of(case.models, case.tier, &text)?;
        let weights = case.models.memory().weights(case.tier);
        std::hint::black_box(question.map(|question| palace.recall(&question, weights, 10)));
        times.push(start.elapsed().as_secs_f64() * 1000.0);
    }
    times.sort_by(f64::total_cmp);
    Ok(times.get(times.len() * 95 / 100).copied().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_read_as_they_are_written_there() {
        let at = |text: &str| schemas::time::milliseconds(text);
        assert_eq!(milliseconds("1:56 pm on 8 May, 2023"), at("2023-05-08T13:56:00Z"));
        assert_eq!(milliseconds("12:09 am on 13 September, 2023"), at("2023-09-13T00:09:00Z"));
        assert_eq!(milliseconds("soon"), None);
    }

    #[test]
    fn evidence_is_split_unknown_ids_are_dropped_and_questions_without_any_are_left_out() {
        let data = br#"[{"conversation": {"session_1_date_time": "1:56 pm on 8 May, 2023", "session_1":
            [{"speaker": "A", "dia_id": "D1:1", "text": "x"}, {"speaker": "B", "dia_id": "D1:2", "text": "y", "blip_caption": "a lake"}]},
            "qa": [{"question": "q", "evidence": ["D1:2; D9:9 D1:1"], "category": 1}, {"question": "r", "evidence": ["D"], "category": 1},
                   {"question": "s", "category": 2}]}]"#;
        let lines: Vec<Line> = serde_json::from_slice(data).unwrap();
        let without = talk(&lines[0], Tier::Fast, false).unwrap();
        assert_eq!(without.questions, [("q".to_owned(), vec![0, 1], 1)]);
        assert_eq!(without.turns[1].text, "y");
        assert_eq!(talk(&lines[0], Tier::Fast, true).unwrap().turns[1].text, "y a lake", "what its picture shows");
    }
}
