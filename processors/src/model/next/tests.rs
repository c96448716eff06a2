//! Next actions against the training code, and what an operator's tasks give.

use std::sync::Arc;

use schemas::slice::DialogueSlice;
use schemas::{Sender, Turn};

use super::*;
use crate::stage::Stage;
use crate::stages::tests::{models, root};
use crate::stages::{Dialogues, Encode};

/// A line of `models/golden/actions.jsonl`; `models/train/actions.py` says what the fields are.
#[derive(Deserialize)]
struct Golden {
    tasks: Vec<String>,
    history: Vec<String>,
    said: Vec<String>,
    message: Option<String>,
    event: usize,
    age: usize,
    called: bool,
    known: BTreeMap<String, f32>,
    transfer: BTreeMap<String, f32>,
}

const EVENT: [Event; EVENTS] = [Event::Start, Event::Action, Event::User, Event::Query, Event::Returned, Event::Words];

#[test]
fn both_networks_follow_the_golden_file() {
    let text = std::fs::read_to_string(root().join("models/golden/actions.jsonl")).unwrap();
    let golden: Vec<Golden> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(golden.len() >= 50 && golden.iter().any(|line| line.history.len() > 3 && line.message.is_some()));
    let next = models().dialogue().next();
    let actions = Actions::of(models(), &next.about().tasks()).unwrap();
    let embed = |text: &String| models().words().embed(text);
    for line in &golden {
        let (said, told) = (line.said.iter().map(embed).collect::<Vec<_>>(), line.message.as_ref().map(embed));
        let state = State {
            history: &line.history,
            said: [said.first(), said.get(1)],
            message: line.message.as_deref(),
            told: told.as_ref(),
            event: EVENT[line.event],
            age: line.age,
            called: line.called,
        };
        let tasks: Vec<&str> = line.tasks.iter().map(String::as_str).collect();
        for (kind, expected) in [(Kind::Known, &line.known), (Kind::Transfer, &line.transfer)] {
            let found = actions.score_by(next, Tier::Fast, kind, &tasks, &state);
            assert_eq!(found.len(), expected.len());
            for (label, p) in found {
                assert!((p - expected[label]).abs() < 2e-3, "{kind:?} {label}: {p}, not {}", expected[label]);
            }
        }
    }
}

fn refund() -> Tasks {
    let actions = [
        ("hello", "Hello, how can I help?"),
        ("refund_ask_order_number", "Which order is it about?"),
        ("refund_inform_success", "Your refund of {amount} is on its way."),
        ("goodbye_1", "Thank you and goodbye."),
    ];
    let actions = actions.map(|(label, template)| (label.to_owned(), template.to_owned()));
    Tasks::from([("refund".to_owned(), BTreeMap::from(actions))])
}

#[test]
fn tasks_of_an_operator_get_probabilities_that_follow_what_happened() {
    let next = models().dialogue().next();
    let actions = Actions::of(models(), &refund()).unwrap();
    for tier in [Tier::Full, Tier::Fast] {
        let words = "I want my money back";
        let said = match tier {
            Tier::Fast => models().words().embed(words),
            Tier::Full => models().encoder().encode(&[words], models().cores()).unwrap().remove(0).embedding,
        };
        let user = State { said: [Some(&said), None], event: Event::User, age: OLD, ..State::default() };
        let first = actions.score(next, tier, &["refund"], &user);
        assert_eq!(first.len(), 4);
        assert!((first.iter().map(|(_, p)| p).sum::<f32>() - 1.0).abs() < 1e-5);
        assert!(first.is_sorted_by(|a, b| a.1 >= b.1));
        let of = |scored: &[(&str, f32)], label| scored.iter().find(|(l, _)| *l == label).unwrap().1;
        let history = ["refund_ask_order_number".to_owned()];
        let done = State {
            history: &history,
            message: Some("Refund successful"),
            event: Event::Returned,
            age: 0,
            called: true,
            ..user
        };
        let after = actions.score(next, tier, &["refund"], &done);
        assert!(
            of(&after, "refund_inform_success") > of(&first, "refund_inform_success"),
            "{tier:?}: {first:?}, {after:?}"
        );
        assert!(of(&after, "refund_ask_order_number") < of(&first, "refund_ask_order_number"), "{tier:?}");
        assert!(actions.score(next, tier, &["nonsense"], &user).is_empty());
    }
}

#[test]
fn the_bots_own_words_tell_which_action_it_took() {
    let actions = Actions::of(models(), &refund()).unwrap();
    let said = |text: &str| models().words().embed(text);
    assert_eq!(
        actions.recognise(Tier::Fast, &said("Your refund of $20 is on its way."), 0.6),
        Some("refund_inform_success")
    );
    assert_eq!(actions.recognise(Tier::Fast, &said("Penguins live in the south."), 0.6), None);
}

#[test]
fn a_persons_turn_has_the_next_actions_and_the_bots_turns_are_kept() {
    let said = |bot: bool, text: &str| {
        let sender = Some(Sender { id: bot.to_string(), name: None, bot });
        Turn { sender, tier: Some(Tier::Fast), ..Turn::message("websocket", "room", "ann", "1", text, 1000) }
    };
    let mut turns = vec![said(false, "hi"), said(true, "Which order is it about?"), said(false, "number 4453")];
    turns.extend((0..40).map(|_| said(true, "Thank you and goodbye.")));
    let actions = Actions::of(models(), &refund()).unwrap();
    let stage = Dialogues::with_sets(Arc::clone(models()), Vec::new()).with_actions(actions);
    Encode::new(Arc::clone(models())).infer(&mut turns).unwrap();
    stage.infer(&mut turns).unwrap();
    let mut slice = DialogueSlice::default();
    turns.iter_mut().for_each(|turn| stage.fold(&mut slice, turn).unwrap());
    let next = |at: usize| &turns[at].dialogue.as_ref().unwrap().next_actions;
    assert_eq!((next(0).len(), next(1).len(), next(2).len()), (3, 0, 3));
    assert!(next(2).iter().all(|next| next.task == "refund"));
    assert_eq!(slice.actions, vec!["goodbye_1"; HISTORY_MAX], "the oldest are forgotten");
}
