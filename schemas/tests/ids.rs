//! Ids of a registry other than the embedded one.

use std::collections::HashMap;

use schemas::slice::EmotionSlice;
use schemas::{Codec, DecodeError, Entry, Feedback, Ids, Kind, Reject, SchemaError, Turn, latest};

fn turn() -> Turn {
    serde_json::from_str(include_str!("../avro/examples/turn.json")).unwrap()
}

/// A registry that counted otherwise: it gives a turn the id that is a reject's in the embedded one.
fn ids() -> Ids {
    let entry = |id, kind: Kind| Entry { id, kind, text: latest(kind).text.to_owned() };
    Ids {
        written: HashMap::from([(Kind::Turn, 2), (Kind::Reject, 70_000)]),
        read: vec![entry(2, Kind::Turn), entry(70_000, Kind::Reject)],
    }
}

/// A release to come: one field more, with a default.
fn newer() -> String {
    let mut schema: serde_json::Value = serde_json::from_str(latest(Kind::Turn).text).unwrap();
    let field = serde_json::json!({ "name": "weather", "type": ["null", "string"], "default": null });
    schema["fields"].as_array_mut().unwrap().insert(0, field);
    schema.to_string()
}

#[test]
fn values_are_written_under_the_ids_of_the_registry() {
    let codec = Codec::with_ids(&ids()).unwrap();
    let bytes = codec.encode(&turn()).unwrap();
    assert_eq!(bytes[..5], [0, 0, 0, 0, 2]);
    assert_eq!(codec.decode::<Turn>(&bytes).unwrap(), turn());
    // What no registry outside knows keeps its id.
    let slice = codec.encode(&EmotionSlice::default()).unwrap();
    assert_eq!(slice, Codec::embedded().encode(&EmotionSlice::default()).unwrap());
}

#[test]
fn values_from_before_there_was_another_registry_can_be_read() {
    let (codec, before) = (Codec::with_ids(&ids()).unwrap(), Codec::embedded());
    assert_eq!(codec.decode::<Turn>(&before.encode(&turn()).unwrap()).unwrap(), turn());
    let reject: Reject = serde_json::from_str(include_str!("../avro/examples/reject.json")).unwrap();
    let bytes = before.encode(&reject).unwrap();
    // The number is a turn's in this registry, and a reject's where a reject is expected.
    assert_eq!(bytes[4], 2);
    assert_eq!(codec.decode::<Reject>(&bytes).unwrap(), reject);
    // Of what another number meant before, nothing is said where it is no turn's.
    assert!(matches!(codec.decode::<Turn>(&[0, 0, 0, 0, 3, 0]), Err(DecodeError::UnknownSchema(3))));
}

#[test]
fn an_id_is_learnt_and_the_record_of_a_newer_release_read() {
    let codec = Codec::with_ids(&ids()).unwrap();
    let mut bytes = codec.encode(&turn()).unwrap();
    bytes[4] = 99;
    // The newer release's field comes first: it is not there.
    bytes.insert(5, 0);
    assert_eq!(codec.unknown::<Turn>(&bytes), Some(99));
    assert!(matches!(codec.decode::<Turn>(&bytes), Err(DecodeError::UnknownSchema(99))));
    codec.learn(Kind::Turn, 99, &newer()).unwrap();
    assert_eq!(codec.unknown::<Turn>(&bytes), None);
    assert_eq!(codec.decode::<Turn>(&bytes).unwrap(), turn());
    assert_eq!(codec.unknown::<Feedback>(&bytes), Some(99), "an id counts within its kind");
    assert!(matches!(codec.decode::<Feedback>(&bytes), Err(DecodeError::WrongKind { found: Kind::Turn, .. })));
    assert_eq!(codec.unknown::<Turn>(b"{}"), None, "what names no id is no question for a registry");
}

#[test]
fn what_is_no_schema_is_not_learnt() {
    let codec = Codec::embedded();
    assert!(matches!(codec.learn(Kind::Turn, 99, "{"), Err(SchemaError::Unreadable { id: 99, .. })));
    let open = r#"{"type": "record", "name": "A", "fields": [{"name": "b", "type": "Elsewhere"}]}"#;
    assert!(matches!(codec.learn(Kind::Turn, 99, open), Err(SchemaError::Unreadable { id: 99, .. })));
    assert_eq!(codec.unknown::<Turn>(&[0, 0, 0, 0, 99]), Some(99));
}
