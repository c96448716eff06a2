//! The Telegram parser on payloads of every kind: a case is two files in `data/telegram`.

use std::collections::BTreeSet;
use std::path::Path;

use ingest::telegram::{KINDS, Outcome, parse};
use serde_json::{Value, json};

const RECEIVED_AT: i64 = 1_700_000_000_000;
const TEXT_BYTES_MAX: usize = 4096;

struct Case {
    name: String,
    body: Vec<u8>,
    expected: Value,
}

fn cases() -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/telegram");
    let mut names: Vec<String> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter_map(|file| file.strip_suffix(".json").map(str::to_owned))
        .filter(|name| !name.ends_with(".expected"))
        .collect();
    names.sort();
    let read = |file: String| std::fs::read(folder.join(&file)).unwrap_or_else(|e| panic!("{file}: {e}"));
    names
        .into_iter()
        .map(|name| Case {
            body: read(format!("{name}.json")),
            expected: serde_json::from_slice(&read(format!("{name}.expected.json"))).unwrap(),
            name,
        })
        .collect()
}

fn outcome(outcome: &Outcome) -> (&'static str, Value) {
    match outcome {
        Outcome::Turn(turn) => ("turn", serde_json::to_value(turn).unwrap()),
        Outcome::Feedback(feedback) => ("feedback", serde_json::to_value(feedback).unwrap()),
        // Bytes are an Avro matter; as JSON they are lists of numbers.
        Outcome::Reject(reject) => (
            "reject",
            json!({"reason": reject.reason, "key": reject.key, "bot": reject.bot, "source": reject.source,
                   "stage": reject.stage}),
        ),
        Outcome::Counted => ("counted", Value::Bool(true)),
    }
}

#[test]
fn every_update_comes_to_what_stands_beside_it() {
    let cases = cases();
    assert!(cases.len() >= KINDS.len());
    for case in cases {
        let parsed = parse("helper", &case.body, RECEIVED_AT, TEXT_BYTES_MAX);
        assert_eq!(parsed.kind, case.expected["kind"], "{}", case.name);
        let (word, value) = outcome(&parsed.outcome);
        let expected = case.expected.get(word);
        let expected = expected.unwrap_or_else(|| panic!("{} came to {word}: {:?}", case.name, parsed.outcome));
        match expected {
            Value::Object(fields) => {
                for (field, expected) in fields {
                    assert_eq!(value.get(field), Some(expected), "{}: {field}", case.name);
                }
            }
            whole => assert_eq!(&value, whole, "{}", case.name),
        }
    }
}

#[test]
fn every_kind_of_the_bot_api_has_a_case() {
    let seen: BTreeSet<String> =
        cases().iter().map(|case| case.expected["kind"].as_str().unwrap().to_owned()).collect();
    for kind in KINDS.into_iter().chain(["unknown", "malformed"]) {
        assert!(seen.contains(kind), "no case of {kind}");
    }
}

#[test]
fn an_update_sent_twice_has_one_id_and_no_two_updates_share_one() {
    let mut ids = BTreeSet::new();
    for case in cases() {
        let id = |received_at| match parse("helper", &case.body, received_at, TEXT_BYTES_MAX).outcome {
            Outcome::Turn(turn) => Some(turn.id),
            Outcome::Feedback(feedback) => Some(feedback.id),
            Outcome::Reject(reject) => Some(reject.id),
            Outcome::Counted => None,
        };
        let (first, again) = (id(RECEIVED_AT), id(RECEIVED_AT + 60_000));
        assert_eq!(first, again, "{}", case.name);
        assert!(first.is_none_or(|id| ids.insert(id)), "{} has the id of another", case.name);
    }
}

#[test]
fn two_bots_in_one_chat_are_two_conversations() {
    let body = &cases().into_iter().find(|case| case.name == "message_private").unwrap().body;
    let turn = |bot| match parse(bot, body, RECEIVED_AT, TEXT_BYTES_MAX).outcome {
        Outcome::Turn(turn) => turn,
        other => panic!("{other:?}"),
    };
    assert_ne!(turn("helper").id, turn("other").id);
    assert_ne!(turn("helper").conversation, turn("other").conversation);
}

#[test]
fn rejects_keep_the_body_byte_for_byte() {
    let mut rejects = 0;
    for case in cases() {
        if let Outcome::Reject(reject) = parse("helper", &case.body, RECEIVED_AT, TEXT_BYTES_MAX).outcome {
            assert_eq!(reject.raw, case.body, "{}", case.name);
            assert!(reject.detail.contains(": "), "{}: the detail says the mend: {}", case.name, reject.detail);
            rejects += 1;
        }
    }
    assert!(rejects > 5);
}

#[test]
fn no_cut_of_a_payload_panics_or_becomes_a_turn() {
    for case in cases() {
        let whole = std::str::from_utf8(&case.body).map(str::trim_end).unwrap_or_default();
        for end in (0..whole.len()).step_by(7) {
            let parsed = parse("helper", &whole.as_bytes()[..end], RECEIVED_AT, TEXT_BYTES_MAX);
            assert_eq!(parsed.kind, "malformed", "{} cut at {end}", case.name);
        }
    }
}
