//! What the stage promises of rooms, on made-up vectors and on the shipped models; recall, held against the training code.

use std::collections::BTreeSet;

use schemas::{Sender, Tier};
use serde::Deserialize;

use super::super::tests::models;
use super::super::{Coherences, Encode};
use super::*;
use crate::recall::{Palace, Question, Remembered};

const RECIPE: Rooms = Rooms { decay: 0.5, words: 0.3, stay: 0.1, new: 0.9, thin: 1, room_decay: 0.9, free: 0 };

fn say(slice: &mut MemorySlice, vector: [f32; 4], words: &str) -> i32 {
    let terms: Vec<(&str, &str)> = words.split_whitespace().map(|w| (w, w)).collect();
    let room = enter(slice, &RECIPE, ROOMS_MAX, false, &Embedding::quantise(&vector), &terms);
    slice.rooms[room].number
}

#[test]
fn a_subject_that_comes_back_is_in_its_room_again() {
    let mut slice = MemorySlice::default();
    let (trains, food) = ([1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]);
    assert_eq!(say(&mut slice, trains, "train"), 1);
    assert_eq!(say(&mut slice, trains, "train ticket"), 1);
    assert_eq!(say(&mut slice, food, "soup"), 2);
    assert_eq!(say(&mut slice, food, "soup salt"), 2);
    assert_eq!(say(&mut slice, trains, "train"), 1);
    assert_eq!(say(&mut slice, trains, ""), 1, "a turn without content stays where the talk is");
    let names: Vec<&str> = named(&slice.rooms, 0).iter().take(NAME_WORDS).map(|word| word.word.as_str()).collect();
    assert_eq!(names, ["train", "ticket"]);
}

#[test]
fn rooms_and_words_are_bounded_and_no_two_rooms_stand_on_one_place() {
    let mut slice = MemorySlice::default();
    for i in 0..500u32 {
        let angle = i as f32 * 1.3;
        let axis = |n: u32| if i % 4 == n { 3.0 } else { (angle * (n + 1) as f32).sin() };
        say(&mut slice, [axis(0), axis(1), axis(2), axis(3)], &format!("word{i} other{}", i / 2));
    }
    assert!(slice.rooms.len() <= ROOMS_MAX && slice.lately.len() <= TERMS_MAX);
    assert!(slice.rooms.iter().all(|room| room.terms.len() <= TERMS_MAX));
    let places: BTreeSet<(i32, i32)> = slice.rooms.iter().map(|room| (room.x, room.y)).collect();
    assert_eq!(places.len(), slice.rooms.len());
}

#[test]
fn another_model_keeps_the_rooms_and_compares_no_vectors() {
    let mut slice = MemorySlice::default();
    say(&mut slice, [1.0, 0.0, 0.0, 0.0], "train");
    slice.rooms[0].centroid = None;
    slice.direction.clear();
    let terms = [("train", "trains")];
    let room =
        enter(&mut slice, &Rooms { new: 0.3, ..RECIPE }, ROOMS_MAX, false, &Embedding::quantise(&[1.0, 0.0]), &terms);
    assert_eq!(slice.rooms[room].number, 1, "words tell");
    assert_eq!(slice.rooms[room].centroid.as_ref().map(|c| c.values.len()), Some(2));
}

/// A conversation from its beginning, through the stages that this one builds on.
fn run(texts: &[&str], tier: Tier) -> (Vec<Turn>, MemorySlice) {
    let speak = |(place, text): (usize, &&str)| Turn {
        tier: Some(tier),
        position: Some(place as i64 + 1),
        ..Turn::message("test", "palace", "", "", text, place as i64)
    };
    let mut turns: Vec<Turn> = texts.iter().enumerate().map(speak).collect();
    let (coherence, stage) = (Coherences::new(Arc::clone(models())), Memories::new(Arc::clone(models())));
    Encode::new(Arc::clone(models())).infer(&mut turns).unwrap();
    coherence.infer(&mut turns).unwrap();
    stage.infer(&mut turns).unwrap();
    let (mut talk, mut slice) = (schemas::slice::CoherenceSlice::default(), MemorySlice::default());
    for turn in &mut turns {
        coherence.fold(&mut talk, turn).unwrap();
        stage.fold(&mut slice, turn).unwrap();
    }
    (turns, slice)
}

fn locus(turn: &Turn) -> Option<&Locus> {
    turn.memory.as_ref().and_then(|part| part.locus.as_ref())
}

#[test]
fn what_is_worth_keeping_has_the_next_place_of_its_room() {
    for tier in [Tier::Full, Tier::Fast] {
        let (turns, slice) =
            run(&["The train to Cambridge leaves at nine.", "Ok!", "And the train ticket is cheap?"], tier);
        let (first, last) = (locus(&turns[0]).unwrap(), locus(&turns[2]).unwrap());
        assert_eq!(locus(&turns[1]), None, "a turn without content is not kept");
        assert_eq!((first.room, first.place, last.room, last.place), (1, 1, 1, 2), "{tier:?}");
        assert!(last.name.contains("train"), "{last:?}");
        assert_eq!(slice.rooms[0].places, 2);
    }
}

#[test]
fn a_room_of_health_is_marked_and_one_of_trains_is_not() {
    let (turns, _) =
        run(&["My doctor says that the cancer is back.", "So the chemotherapy begins on Monday."], Tier::Fast);
    assert!(turns.iter().all(|turn| locus(turn).unwrap().sensitive), "{turns:?}");
    let (turns, _) =
        run(&["The train to Cambridge leaves at nine.", "The ticket for that train is cheap."], Tier::Fast);
    assert!(turns.iter().all(|turn| !locus(turn).unwrap().sensitive), "{turns:?}");
}

#[test]
fn turns_that_are_not_read_are_skipped_with_the_reason() {
    let french = "Je ne sais pas ce que tu veux dire, mais il faut que nous parlions de cela demain matin.";
    let (turns, slice) = run(&["", french], Tier::Fast);
    let why = |turn: &Turn| turn.skipped.iter().find(|s| s.stage == NAME).map(|s| s.reason.clone());
    assert_eq!(why(&turns[0]).as_deref(), Some(reason::EMPTY_TEXT));
    assert_eq!(why(&turns[1]).as_deref(), Some(reason::UNSUPPORTED_LANGUAGE));
    assert_eq!(slice.turns, 0);
}

/// A line of the golden file: a text, or a conversation with questions.
#[derive(Deserialize)]
#[serde(untagged)]
enum Golden {
    Text { text: String, terms: Vec<String>, salience: f32, sensitive: Vec<String> },
    Talk { asker: String, turns: Vec<Line>, questions: Vec<Asked> },
}

#[derive(Deserialize)]
struct Line {
    sender: String,
    at: i64,
    text: String,
}

#[derive(Deserialize)]
struct Asked {
    question: String,
    scores: Vec<f32>,
}

#[test]
fn what_is_said_and_recalled_is_that_of_the_training_code() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/golden/memory.jsonl");
    let model = models().memory();
    let (mut texts, mut asked) = (0, 0);
    for line in std::fs::read_to_string(file).unwrap().lines() {
        match serde_json::from_str(line).unwrap() {
            Golden::Text { text, terms, salience, sensitive } => {
                let said = model.said(&text);
                assert_eq!(said.terms, terms, "{text}");
                assert!((said.salience - salience).abs() < 1e-4, "{} not {salience}: {text}", said.salience);
                let found: Vec<&String> = said.terms.iter().filter(|term| model.is_sensitive(term)).collect();
                assert_eq!(found, sensitive.iter().collect::<Vec<_>>(), "{text}");
                texts += 1;
            }
            Golden::Talk { asker, turns, questions } => {
                let palace = palace(turns);
                for Asked { question, scores } in questions {
                    let mut question = Question::of(models(), Tier::Fast, &question).unwrap().unwrap();
                    question.asker = Some(asker.clone());
                    let found = palace.recall(&question, model.weights(Tier::Fast), usize::MAX);
                    assert_eq!(found.len(), scores.len(), "every turn is kept here");
                    for (place, why) in found {
                        let (score, expected) = (why.score(), scores[place]);
                        assert!(
                            (score - expected).abs() < 2e-2,
                            "{score} not {expected}: {place} for {}",
                            question.text
                        );
                    }
                    asked += 1;
                }
            }
        }
    }
    assert!(texts >= 300 && asked >= 7, "{texts}, {asked}");
}

/// A palace of all that was said, whether it is worth keeping or not.
fn palace(lines: Vec<Line>) -> Palace {
    let said = |(place, line): (usize, Line)| Turn {
        tier: Some(Tier::Fast),
        position: Some(place as i64 + 1),
        sender: Some(Sender { name: Some(line.sender.clone()), id: line.sender, bot: false }),
        ..Turn::message("test", "palace", "", "", &line.text, line.at)
    };
    let mut turns: Vec<Turn> = lines.into_iter().enumerate().map(said).collect();
    Encode::new(Arc::clone(models())).infer(&mut turns).unwrap();
    Memories::new(Arc::clone(models())).infer(&mut turns).unwrap();
    for turn in &mut turns {
        turn.memory.as_mut().unwrap().keep = true;
    }
    Palace::new(turns.iter().filter_map(Remembered::of).collect())
}
