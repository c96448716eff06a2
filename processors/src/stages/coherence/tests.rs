//! What the stage decides of conversations, and what it keeps of them.

use schemas::{Codec, Sender, Tier};

use super::super::Encode;
use super::super::tests::models;
use super::*;

fn said(sender: &str, text: &str, tier: Tier, position: i64) -> Turn {
    let sender = Some(Sender { id: sender.to_owned(), name: None, bot: false });
    let message = Turn::message("websocket", "room", sender.as_ref().map_or("", |s| &s.id), "1", text, 1000);
    Turn { sender, tier: Some(tier), position: Some(position), ..message }
}

/// A conversation of two, from its beginning, through the stages that this one builds on.
fn run(texts: &[&str], tier: Tier) -> (Vec<Turn>, CoherenceSlice) {
    let speak = |(place, text): (usize, &&str)| said(["ann", "ben"][place % 2], text, tier, place as i64 + 1);
    let mut turns: Vec<Turn> = texts.iter().enumerate().map(speak).collect();
    let mut slice = CoherenceSlice::default();
    follow(&mut slice, &mut turns);
    (turns, slice)
}

fn follow(slice: &mut CoherenceSlice, turns: &mut [Turn]) {
    let stage = Coherences::new(Arc::clone(models()));
    Encode::new(Arc::clone(models())).infer(turns).unwrap();
    stage.infer(turns).unwrap();
    for turn in turns {
        stage.fold(slice, turn).unwrap();
    }
}

fn part(turn: &Turn) -> &Coherence {
    turn.coherence.as_ref().unwrap()
}

fn why(turn: &Turn) -> Option<&str> {
    turn.skipped.iter().find(|skipped| skipped.stage == NAME).map(|skipped| skipped.reason.as_str())
}

const DINNER: [&str; 4] = [
    "Hello, I need a table for two in an Italian restaurant tonight.",
    "Sure, at what time would you like to eat?",
    "At seven, please.",
    "Your table at Luigi's is booked for seven. Enjoy your dinner!",
];
const TRAIN: [&str; 3] = [
    "I also need a train from London to Cambridge on Monday.",
    "When would you like to leave London?",
    "After nine in the morning.",
];

#[test]
fn a_turn_that_follows_scores_higher_than_one_of_elsewhere() {
    for tier in [Tier::Full, Tier::Fast] {
        let ends = |last: &str| {
            let (turns, _) = run(&[DINNER[0], DINNER[1], last], tier);
            part(&turns[2]).score
        };
        assert!(ends("At seven, please.") > ends("My cat has learnt to open the fridge."), "{tier:?}");
        let (turns, _) = run(&["Hi there!"], tier);
        let (late, _) = run(&[DINNER[0], DINNER[1], "Bye bye!"], tier);
        assert!(part(&turns[0]).score > 0.5, "{tier:?}: {:?}", part(&turns[0]));
        assert!((0.0..=1.0).contains(&part(&late[2]).score));
    }
}

#[test]
fn segments_are_numbered_and_what_was_decided_stays() {
    for tier in [Tier::Full, Tier::Fast] {
        let all: Vec<&str> = DINNER.iter().chain(&TRAIN).copied().collect();
        let (turns, slice) = run(&all, tier);
        let first = part(&turns[0]);
        assert_eq!((first.shift, first.segment), (false, Some(Segment { number: 1, first: 1, turns: 1 })));
        let mut before = first.segment.unwrap();
        for turn in &turns[1..] {
            let (part, segment) = (part(turn), part(turn).segment.unwrap());
            let expected = match part.shift {
                true => Segment { number: before.number + 1, first: turn.position.unwrap(), turns: 1 },
                false => Segment { turns: before.turns + 1, ..before },
            };
            assert_eq!(segment, expected);
            before = segment;
        }
        assert_eq!((slice.segment, slice.first, slice.turns), (before.number, before.first, before.turns));
        // With fewer turns to come, each says what it said.
        for count in 1..all.len() {
            let (fewer, _) = run(&all[..count], tier);
            assert!(fewer.iter().zip(&turns).all(|(a, b)| a.coherence == b.coherence), "{tier:?}");
        }
    }
}

#[test]
fn a_turn_that_cannot_be_served_leaves_everything_as_it_was() {
    let (_, before) = run(&DINNER, Tier::Fast);
    let mut slice = before.clone();
    let mut turns = vec![
        said("ann", " \u{200B}", Tier::Fast, 5),
        said("ann", "Je voudrais réserver une table pour deux personnes ce soir, s'il vous plaît.", Tier::Fast, 6),
    ];
    follow(&mut slice, &mut turns);
    assert_eq!(slice, before);
    assert_eq!([why(&turns[0]), why(&turns[1])], [Some(reason::EMPTY_TEXT), Some(reason::UNSUPPORTED_LANGUAGE)]);
}

#[test]
fn vectors_of_two_tiers_never_meet_and_the_segment_goes_on() {
    let (_, mut slice) = run(&DINNER, Tier::Full);
    let (number, turns_before) = (slice.segment, slice.turns);
    let mut turns = vec![said("ann", TRAIN[0], Tier::Fast, 5), said("ben", TRAIN[1], Tier::Fast, 6)];
    follow(&mut slice, &mut turns);
    let segment = part(&turns[0]).segment.unwrap();
    assert_eq!((part(&turns[0]).shift, segment.number, segment.turns), (false, number, turns_before + 1));
    assert_eq!((slice.spoken, slice.recent.len()), (2, 2));
    assert!(slice.recent.iter().all(|said| said.vector.dimension == 256));
}

#[test]
fn what_is_kept_of_a_conversation_is_bounded() {
    let text = "word ".repeat(2000);
    let texts: Vec<String> = (0..40).map(|i| format!("{i} {text} {}", "another way to say it ".repeat(i))).collect();
    let (_, slice) = run(&texts.iter().map(String::as_str).collect::<Vec<_>>(), Tier::Full);
    assert_eq!((slice.spoken, slice.recent.len(), slice.before.len()), (40, RECENT_MAX, 2 * ROLE));
    let bytes = Codec::embedded().encode(&slice).unwrap();
    assert!(bytes.len() < 6_000, "{}", bytes.len());
}

#[test]
fn a_damaged_slice_is_our_fault() {
    let (_, mut slice) = run(&DINNER, Tier::Fast);
    slice.context.pop();
    let mut turns = vec![said("ann", TRAIN[0], Tier::Fast, 5)];
    Encode::new(Arc::clone(models())).infer(&mut turns).unwrap();
    let stage = Coherences::new(Arc::clone(models()));
    stage.infer(&mut turns).unwrap();
    let result = stage.fold(&mut slice, &mut turns[0]);
    assert!(matches!(result, Err(Failure::Slice { stage: NAME, .. })), "{result:?}");
}

#[test]
fn measures_of_the_density_matrix_are_of_the_kept_turns() {
    let (turns, slice) = run(&DINNER, Tier::Fast);
    assert!(turns.iter().all(|turn| part(turn).density.is_none()), "off by default");
    let density = measured(&slice).unwrap();
    assert_eq!(density.turns, 4);
    assert!((0.25..=1.0).contains(&density.purity) && (1.0..=4.0).contains(&density.effective_dimension));
    let (_, same) = run(&["Good morning!"; 5], Tier::Fast);
    let density = measured(&same).unwrap();
    assert!((density.purity - 1.0).abs() < 1e-5 && density.entropy < 1e-4, "{density:?}");
    assert_eq!(measured(&CoherenceSlice::default()), None);
}

#[derive(serde::Deserialize)]
struct Golden {
    turns: Vec<String>,
    next: Vec<f32>,
    shift: Vec<f32>,
    begins: Vec<f32>,
    boundary: Vec<f32>,
}

#[test]
fn log_odds_are_those_of_the_training_code() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/golden/coherence.jsonl");
    let stage = Coherences::new(Arc::clone(models()));
    let mut count = 0;
    for line in std::fs::read_to_string(file).unwrap().lines() {
        let golden: Golden = serde_json::from_str(line).unwrap();
        let texts: Vec<&str> = golden.turns.iter().map(String::as_str).collect();
        let (turns, _) = run(&texts, Tier::Fast);
        let mut slice = CoherenceSlice::default();
        let mut turns: Vec<Turn> = turns;
        let found: Vec<Followed> = turns.iter_mut().map(|t| stage.follow(&mut slice, t).unwrap().unwrap()).collect();
        let near = |a: f32, b: f32| (a - b).abs() < 2e-3 * (1.0 + b.abs());
        for (found, begins) in found.iter().zip(&golden.begins).skip(1) {
            assert!((found.begins - begins).abs() < 5e-3 * (1.0 + begins.abs()), "{found:?}, not {begins}: {texts:?}");
        }
        for ((found, next), shift) in found.iter().zip(&golden.next).zip(&golden.shift) {
            assert!(near(found.next, *next) && near(found.shift, *shift), "{found:?}, not {next}, {shift}: {texts:?}");
        }
        let vectors = turns.iter().map(|turn| &turn.encoding.as_ref().unwrap().embedding);
        let known: Vec<(Followed, &Embedding)> = found.into_iter().zip(vectors).collect();
        for (around, boundary) in offline::around(&known).iter().zip(&golden.boundary) {
            let found = models().coherence().boundary(Tier::Fast, around);
            assert!((found - boundary).abs() < 1e-2 * (1.0 + boundary.abs()), "{found}, not {boundary}");
        }
        count += 1;
    }
    assert!(count >= 20, "{count}");
}
