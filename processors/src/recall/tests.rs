//! What recall promises, on a few made-up memories.

use super::*;

fn memory(position: i64, at: i64, name: &str, terms: &str, vector: [f32; 2]) -> Remembered {
    Remembered {
        position,
        at,
        sender: name.to_lowercase(),
        name: name.to_owned(),
        terms: terms.split_whitespace().map(str::to_owned).collect(),
        model: "m@1".to_owned(),
        vector: Embedding::quantise(&vector),
        salience: 0.5,
    }
}

fn question(text: &str, terms: &str, vector: [f32; 2]) -> Question {
    Question {
        text: text.to_owned(),
        terms: terms.split_whitespace().map(str::to_owned).collect(),
        model: "m@1".to_owned(),
        vector: Embedding::quantise(&vector),
        asker: None,
    }
}

const WEIGHTS: Weights = Weights {
    words: 2.0,
    vector: 1.0,
    before: 0.5,
    after: 0.2,
    session_words: 0.5,
    session_vector: 0.2,
    speaker: 0.3,
    length: 0.1,
    time: 0.5,
};

fn palace() -> Palace {
    Palace::new(vec![
        memory(1, 0, "Ann", "paint sunris", [1.0, 0.0]),
        memory(2, 1000, "Bob", "lake year", [0.9, 0.1]),
        memory(3, 2 * SESSION_GAP_MS, "Ann", "job bank", [0.0, 1.0]),
        memory(4, 2 * SESSION_GAP_MS + 1, "Bob", "danc studio", [0.1, 0.9]),
    ])
}

#[test]
fn words_of_the_turn_before_find_the_answer() {
    let found = palace().recall(&question("sunrise?", "sunris", [0.0, 0.0]), &WEIGHTS, 2);
    let places: Vec<usize> = found.iter().map(|(place, _)| *place).collect();
    assert_eq!(places, [0, 1], "who answers does not repeat what was asked");
    assert!(found[1].1.words > 0.0 && found[0].1.words > found[1].1.words);
}

#[test]
fn a_named_speaker_is_preferred_and_their_name_is_no_subject() {
    let palace = palace();
    let found = palace.recall(&question("What does Bob do?", "bob", [0.0, 0.0]), &WEIGHTS, 4);
    assert!(found.iter().all(|(place, why)| (why.speaker > 0.0) == (palace.memories()[*place].name == "Bob")));
    assert!(found.iter().all(|(_, why)| why.words == 0.0));
    let both = palace.recall(&question("Do Ann and Bob agree?", "", [0.0, 0.0]), &WEIGHTS, 4);
    assert!(both.iter().all(|(_, why)| why.speaker == 0.0), "two names mean nobody");
}

#[test]
fn vectors_of_another_model_are_never_compared() {
    let mut memories = palace().memories().to_vec();
    memories[0].model = "other@1".to_owned();
    let palace = Palace::new(memories);
    let found = palace.recall(&question("", "", [1.0, 0.0]), &WEIGHTS, 4);
    let first = found.iter().find(|(place, _)| *place == 0).unwrap();
    assert_eq!(first.1.vector, 0.0);
    assert_eq!(found[0].0, 1);
}

#[test]
fn silence_begins_a_session_and_an_empty_palace_recalls_nothing() {
    let palace = palace();
    assert_eq!((0..4).map(|place| palace.session(place)).collect::<Vec<_>>(), [0, 0, 1, 1]);
    assert!(Palace::new(Vec::new()).recall(&question("what?", "what", [1.0, 0.0]), &WEIGHTS, 10).is_empty());
}

#[test]
fn conversations_that_are_searched_together_have_no_session_in_common() {
    let mut memories = palace().memories().to_vec();
    memories[2].position = 1 << POSITION_BITS;
    memories[3].position = (1 << POSITION_BITS) + 1;
    memories.iter_mut().for_each(|memory| memory.at = 0);
    let palace = Palace::new(memories);
    assert_eq!((0..4).map(|place| palace.session(place)).collect::<Vec<_>>(), [0, 0, 1, 1]);
}

#[test]
fn the_order_of_arrival_changes_nothing() {
    let mut memories = palace().memories().to_vec();
    memories.reverse();
    let asked = question("the bank job", "bank job", [0.2, 0.8]);
    assert_eq!(Palace::new(memories).recall(&asked, &WEIGHTS, 4), palace().recall(&asked, &WEIGHTS, 4));
}
