//! Sealed turns: who has the key reads the turn, nobody else reads more than that there was one.

use std::collections::HashMap;
use std::sync::Arc;

use schemas::seal::{Held, Key, Ring, SEAL_BYTES};
use schemas::{Codec, DecodeError, Kind, Turn, latest};
use uuid::Uuid;

#[derive(Debug, Default)]
struct Keys(HashMap<Uuid, Held>);

impl Ring for Keys {
    fn find(&self, id: Uuid) -> Held {
        self.0.get(&id).cloned().unwrap_or(Held::Unknown)
    }
}

fn turn() -> Turn {
    serde_json::from_str(include_str!("../avro/examples/turn.json")).unwrap()
}

/// A codec of which this is known of the key.
fn knowing(key: &Key, held: Held) -> Codec {
    let codec = Codec::embedded();
    codec.hold(Arc::new(Keys([(key.id, held)].into())));
    codec
}

#[test]
fn the_key_gives_the_turn_back_and_without_it_it_reads_as_forgotten() {
    let (turn, key) = (turn(), Key::random());
    let plain = Codec::embedded().encode(&turn).unwrap();
    let sealed = Codec::embedded().seal(&turn, &key).unwrap();
    assert!(sealed.len() < plain.len() + Codec::embedded().encode(&turn.forgotten()).unwrap().len() + SEAL_BYTES + 8);
    let words: Vec<&str> = turn.text.split(' ').filter(|word| word.len() > 3).collect();
    assert!(!words.is_empty());
    for word in words {
        assert!(!sealed.windows(word.len()).any(|part| part == word.as_bytes()), "{word} stands there");
    }

    let opening = knowing(&key, Held::Key(key.clone()));
    assert_eq!(opening.decode::<Turn>(&sealed).unwrap(), turn);
    assert_eq!(*opening.open(&sealed).unwrap().0, plain);
    assert_eq!(opening.locked(&sealed), None);
    assert_eq!(opening.decode::<Turn>(&plain).unwrap(), turn, "what is not sealed is read as before");

    let left = knowing(&key, Held::Destroyed).decode::<Turn>(&sealed).unwrap();
    assert!(left.is_forgotten() && left.sealed.is_some());
    assert_eq!(Turn { sealed: None, ..left }, turn.forgotten());
    // So does whoever reads by the schema alone.
    assert!(Codec::embedded().read::<Turn>(&sealed).unwrap().is_forgotten());
    // Where it stands is told in any case.
    let head = Codec::embedded().decode_head(&sealed).unwrap();
    assert_eq!((head.conversation, head.position), (turn.conversation, turn.position));
}

#[test]
fn a_key_that_is_not_at_hand_is_no_fault_of_the_value() {
    let key = Key::random();
    let sealed = Codec::embedded().seal(&turn(), &key).unwrap();
    let locked = |codec: &Codec| matches!(codec.decode::<Turn>(&sealed), Err(DecodeError::Locked(id)) if id == key.id);
    let (none, unknown, absent) = (Codec::embedded(), knowing(&key, Held::Unknown), knowing(&key, Held::Absent));
    assert!(locked(&none) && locked(&unknown) && locked(&absent));
    // Only where it may help is the store asked.
    assert_eq!((none.locked(&sealed), unknown.locked(&sealed), absent.locked(&sealed)), (None, Some(key.id), None));
}

#[test]
fn another_key_and_a_changed_byte_open_nothing() {
    let (key, other) = (Key::random(), Key::random());
    let sealed = Codec::embedded().seal(&turn(), &key).unwrap();
    let posing = knowing(&key, Held::Key(Key { id: key.id, ..other }));
    assert!(matches!(posing.decode::<Turn>(&sealed), Err(DecodeError::Malformed { .. })));
    let opening = knowing(&key, Held::Key(key.clone()));
    let place = sealed.len() - 100;
    let changed: Vec<u8> = sealed.iter().enumerate().map(|(i, b)| if i == place { b ^ 1 } else { *b }).collect();
    assert!(matches!(opening.decode::<Turn>(&changed), Err(DecodeError::Malformed { .. })));
    // Two seals of one value have nothing in common.
    assert_ne!(sealed, Codec::embedded().seal(&turn(), &key).unwrap());
}

#[test]
fn the_field_is_the_last_one_so_that_it_is_found_from_the_end() {
    let schema: serde_json::Value = serde_json::from_str(latest(Kind::Turn).text).unwrap();
    assert_eq!(schema["fields"].as_array().unwrap().last().unwrap()["name"], "sealed");
}
