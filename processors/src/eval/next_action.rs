//! Task `next-action`: what a bot that carries out a task does next.
//!
//! One item for each action of the wizard that has a label; the history holds all events before with their labels, answers
//! of the knowledge base included, and the action's own text is hidden. It is to be found among the actions of the
//! dialogue's tasks; a label that is not among them counts as missed. `accuracy_known` is over dialogues about shipped
//! tasks alone, `accuracy_unseen` over the others. The unit of the intervals is the dialogue. The baseline takes the action
//! that followed the last one most often in training.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::sync::Arc;
use std::time::Instant;

use schemas::{Embedding, Turn};
use serde::Deserialize;
use serde_json::Value;

use super::{Baseline, Case, EvalError, Figure, Report, Task, bootstrap, lines, turn};
use crate::model::next::{Actions, Event, HISTORY_MAX, OLD, State, Tasks};
use crate::stage::{Failure, Stage};
use crate::stages::Encode;

/// Texts that are encoded together, so that memory is bounded.
const BATCH_TEXTS: usize = 256;
const FORMAT: &str = "a line is a JSON object with `tasks` and `events`, each event with `Action`, `Agent`, and `Text`, \
                      `ActionLabel` or `PrimaryItem` where it has one";
const ACTIONS_FORMAT: &str =
    "it holds a JSON object of tasks, each a list of labels, or an object of labels and templates";
/// All, known, unseen, several tasks.
const NAMES: [&str; 4] = ["accuracy", "accuracy_known", "accuracy_unseen", "accuracy_multitask"];

/// The task.
pub(super) struct NextActionTask;

#[derive(Deserialize)]
struct Dialogue {
    tasks: Vec<String>,
    #[serde(default)]
    multitask: bool,
    events: Vec<Happening>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Happening {
    action: String,
    agent: String,
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    action_label: Option<String>,
    #[serde(default)]
    primary_item: Option<Value>,
}

/// What is to be told, by places in a dialogue's texts.
struct Item<'a> {
    label: &'a str,
    history: Vec<String>,
    said: [Option<&'a str>; 2],
    message: Option<String>,
    event: Event,
    age: usize,
    called: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Given {
    Labels(Vec<String>),
    Templates(BTreeMap<String, String>),
}

/// Items of a dialogue in each of [`NAMES`], and how many of them were told.
type Counts = [[f64; 2]; NAMES.len()];

impl Task for NextActionTask {
    fn name(&self) -> &'static str {
        "next-action"
    }

    fn rows(&self) -> &'static [(&'static str, &'static str)] {
        &[
            ("accuracy", "accuracy              ↑"),
            ("accuracy_known", "of known tasks        ↑"),
            ("accuracy_unseen", "of unseen tasks       ↑"),
            ("accuracy_multitask", "of several tasks      ↑"),
        ]
    }

    fn run(&self, case: &Case<'_>) -> Result<Report, EvalError> {
        let dialogues = lines(case.data, FORMAT, |dialogue: Dialogue| match dialogue.tasks.as_slice() {
            [] => Err("`tasks` is empty".to_owned()),
            _ => Ok(dialogue),
        })?;
        let next = case.models.dialogue().next();
        let about = next.about();
        let shipped = about.tasks();
        let mut tasks = shipped.clone();
        tasks.extend(given(case, |label| about.template(label))?);
        let actions = Actions::of(case.models, &tasks)?;
        let items: Vec<Vec<Item<'_>>> = dialogues.iter().map(items).collect();
        if items.iter().all(Vec::is_empty) {
            return Err(EvalError::Choice("no event has an `ActionLabel`".to_owned()));
        }

        let start = Instant::now();
        let vectors = vectors(case, items.iter().flatten())?;
        let (mut counts, mut simple) = (Vec::new(), Vec::new());
        for (dialogue, items) in dialogues.iter().zip(&items) {
            let names: Vec<&str> = dialogue.tasks.iter().map(String::as_str).collect();
            let is_known = names.iter().all(|task| shipped.contains_key(*task));
            let counted = [true, is_known, !is_known, dialogue.multitask];
            let (mut told, mut told_simply) = (Counts::default(), Counts::default());
            for item in items {
                let embedding = |text: Option<&str>| text.and_then(|text| vectors.get(text));
                let state = State {
                    history: &item.history,
                    said: item.said.map(embedding),
                    message: item.message.as_deref(),
                    told: embedding(item.message.as_deref()),
                    event: item.event,
                    age: item.age,
                    called: item.called,
                };
                let best = actions.score(next, case.tier, &names, &state).first().map(|(label, _)| *label);
                add(&mut told, counted, best == Some(item.label));
                let last = item.history.last().map_or("", String::as_str);
                let after = |label: &&str| about.follows(last, label);
                let labels = actions.labels(&names);
                add(&mut told_simply, counted, labels.into_iter().rev().max_by_key(after) == Some(item.label));
            }
            counts.push(told);
            simple.push(told_simply);
        }
        let time = start.elapsed();
        let n = counts.iter().map(|c| c[0][0]).sum::<f64>() as usize;
        let baseline = Baseline { name: "what mostly follows".to_owned(), metrics: figures(&simple) };
        let model = case.models.dialogue().provenance(case.tier);
        Ok(case.report(self, n, &model, figures(&counts), baseline, time))
    }
}

fn add(counts: &mut Counts, counted: [bool; NAMES.len()], is_right: bool) {
    for (count, _) in counts.iter_mut().zip(counted).filter(|(_, counted)| *counted) {
        count[0] += 1.0;
        count[1] += f64::from(u8::from(is_right));
    }
}

/// The figures that have items.
fn figures(counts: &[Counts]) -> BTreeMap<String, Figure> {
    let mut figures = bootstrap::figures(&NAMES, counts.len(), |times| {
        std::array::from_fn(|figure| {
            let weighed = |which: usize| counts.iter().zip(times).map(|(c, t)| c[figure][which] * f64::from(*t)).sum();
            let (all, right): (f64, f64) = (weighed(0), weighed(1));
            right / all.max(1.0)
        })
    });
    figures.retain(|name, _| {
        let figure = NAMES.iter().position(|known| known == name);
        figure.is_some_and(|figure| counts.iter().any(|c| c[figure][0] > 0.0))
    });
    figures
}

/// The tasks of `--actions`.
fn given(case: &Case<'_>, template: impl Fn(&str) -> String) -> Result<Tasks, EvalError> {
    let Some(file) = &case.choices.actions else { return Ok(Tasks::new()) };
    let wrong = |problem: String| EvalError::Choice(format!("{}: {problem}; {ACTIONS_FORMAT}", file.display()));
    let bytes = fs::read(file).map_err(|e| wrong(e.to_string()))?;
    let tasks: BTreeMap<String, Given> = serde_json::from_slice(&bytes).map_err(|e| wrong(e.to_string()))?;
    let labels = |given| match given {
        Given::Labels(labels) => labels.into_iter().map(|label| (label.clone(), template(&label))).collect(),
        Given::Templates(templates) => templates,
    };
    Ok(tasks.into_iter().map(|(task, given)| (task, labels(given))).collect())
}

/// Embeddings of all that was said and answered, as they travel.
fn vectors<'a>(
    case: &Case<'_>,
    items: impl Iterator<Item = &'a Item<'a>>,
) -> Result<HashMap<String, Embedding>, Failure> {
    let texts: BTreeSet<&str> =
        items.flat_map(|item| item.said.into_iter().flatten().chain(item.message.as_deref())).collect();
    let texts: Vec<&str> = texts.into_iter().collect();
    let encode = Encode::new(Arc::clone(case.models));
    let mut vectors = HashMap::with_capacity(texts.len());
    for batch in texts.chunks(BATCH_TEXTS) {
        let mut turns: Vec<Turn> = batch.iter().map(|text| turn(text, case.tier)).collect();
        encode.infer(&mut turns)?;
        let encoded = turns.into_iter().filter_map(|turn| Some((turn.text, turn.encoding?.embedding)));
        vectors.extend(encoded);
    }
    Ok(vectors)
}

/// Where the dialogue stands before each action with a label.
fn items(dialogue: &Dialogue) -> Vec<Item<'_>> {
    let mut items = Vec::new();
    let (mut history, mut said, mut message): (Vec<String>, [Option<&str>; 2], Option<String>) = Default::default();
    let (mut event, mut age, mut called, mut returned) = (Event::Start, OLD, false, false);
    for now in &dialogue.events {
        let item = now.primary_item.as_ref().filter(|item| item.as_object().is_some_and(|o| !o.is_empty()));
        if let Some(item) = item {
            message = answer(item);
            called = true;
            if returned {
                age = 0;
            }
        }
        match (now.action.as_str(), now.action_label.as_deref().filter(|label| !label.is_empty())) {
            ("pick_suggestion", Some(label)) => {
                let start = history.len().saturating_sub(HISTORY_MAX);
                let history_now = history[start..].to_vec();
                items.push(Item { label, history: history_now, said, message: message.clone(), event, age, called });
                history.push(label.to_owned());
                (event, age) = (Event::Action, age + 1);
            }
            ("utter", _) if now.agent == "User" => {
                said = [Some(now.text.as_deref().unwrap_or_default()), said[0]];
                event = Event::User;
            }
            ("utter", _) => event = Event::Words,
            ("query", _) => event = Event::Query,
            ("return_item", _) => (event, age, returned) = (Event::Returned, 0, true),
            _ => {}
        }
        if now.action == "pick_suggestion" || now.action == "utter" && now.agent == "Wizard" {
            returned = false;
        }
    }
    items
}

/// What an answer of the knowledge base says in words.
fn answer(item: &Value) -> Option<String> {
    match item.get("Message")? {
        Value::String(text) => Some(text.clone()).filter(|text| !text.is_empty()),
        Value::Null => None,
        other => Some(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_is_what_stood_before_the_action() {
        let dialogue: Dialogue = serde_json::from_str(
            r#"{"tasks":["t"],"events":[
                {"Action":"utter","Agent":"User","Text":"hi"},
                {"Action":"pick_suggestion","Agent":"Wizard","Text":"Name?","ActionLabel":"ask_name"},
                {"Action":"utter","Agent":"User","Text":"Ann"},
                {"Action":"query","Agent":"Wizard"},
                {"Action":"return_item","Agent":"KnowledgeBase"},
                {"Action":"pick_suggestion","Agent":"Wizard","Text":"Done.","ActionLabel":"inform_done",
                 "PrimaryItem":{"Message":"Success"}},
                {"Action":"pick_suggestion","Agent":"Wizard","Text":"Bye.","ActionLabel":"bye"}]}"#,
        )
        .unwrap();
        let items = items(&dialogue);
        let shown = |i: usize| {
            let item = &items[i];
            (item.history.len(), item.said, item.message.as_deref(), item.event, item.age, item.called)
        };
        assert_eq!(shown(0), (0, [Some("hi"), None], None, Event::User, OLD, false));
        assert_eq!(shown(1), (1, [Some("Ann"), Some("hi")], Some("Success"), Event::Returned, 0, true));
        assert_eq!(shown(2), (2, [Some("Ann"), Some("hi")], Some("Success"), Event::Action, 1, true));
    }

    #[test]
    fn figures_without_items_are_left_out() {
        let counts =
            [[[2.0, 1.0], [2.0, 1.0], [0.0, 0.0], [0.0, 0.0]], [[2.0, 2.0], [2.0, 2.0], [0.0, 0.0], [0.0, 0.0]]];
        let figures = figures(&counts);
        assert_eq!(figures.keys().collect::<Vec<_>>(), ["accuracy", "accuracy_known"]);
        assert_eq!(figures["accuracy"].value, 0.75);
    }
}
