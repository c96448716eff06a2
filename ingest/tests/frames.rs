//! The frame parser: a case is one line of `data/websocket/frames.jsonl`, a frame and what each turn in it comes to.

use ingest::websocket::frame::{Bounds, parse};
use schemas::{TraceParent, turn_id};
use serde_json::Value;

const RECEIVED_AT: i64 = 1_700_000_000_000;
const BOUNDS: Bounds = Bounds { text_bytes_max: 64, batch_frames_max: 3 };

#[test]
fn every_frame_comes_to_what_stands_beside_it() {
    let mut count = 0;
    for line in include_str!("data/websocket/frames.jsonl").lines() {
        let case: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        let sent = match &case["sent"] {
            Value::String(text) => text.clone(),
            frame => frame.to_string(),
        };
        let expected = case["expected"].as_array().unwrap();
        let results = parse(&sent, RECEIVED_AT, BOUNDS);
        assert_eq!(results.len(), expected.len(), "{line}");
        for (result, expected) in results.iter().zip(expected) {
            let value = match result {
                Ok(said) => serde_json::to_value(&said.turn).unwrap(),
                Err(error) => serde_json::to_value(error).unwrap(),
            };
            for (field, expected) in expected.as_object().unwrap() {
                assert_eq!(value.get(field), Some(expected), "{field} of {value} in {line}");
            }
            if let Err(error) = result {
                assert!(!error.message.is_empty());
            }
        }
        count += 1;
    }
    assert!(count > 30);
}

#[test]
fn the_same_frame_sent_twice_has_one_id_and_another_sender_has_another() {
    let id = |sender: &str, received_at| {
        let frame = format!(r#"{{"id":"c1","conversation":"room-7","sender":{{"id":"{sender}"}},"text":"hello"}}"#);
        parse(&frame, received_at, BOUNDS).remove(0).unwrap().turn.id
    };
    assert_eq!(id("ann", RECEIVED_AT), id("ann", RECEIVED_AT + 5));
    assert_ne!(id("ann", RECEIVED_AT), id("bob", RECEIVED_AT));
    assert_eq!(id("ann", RECEIVED_AT), turn_id("websocket", "room-7", "ann", "c1"));
}

#[test]
fn a_broken_trace_costs_no_words_and_a_good_one_is_taken_over() {
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    for (given, expected) in [(trace, TraceParent::parse(trace)), ("00-nonsense", None)] {
        let frame = format!(
            r#"{{"id":"c1","conversation":"r","sender":{{"id":"ann"}},"text":"hi","traceparent":"{given}","correlation_id":"k-1"}}"#
        );
        let said = parse(&frame, RECEIVED_AT, BOUNDS).remove(0).unwrap();
        assert_eq!(said.trace, expected);
        assert_eq!(said.correlation_id.as_deref(), Some("k-1"));
    }
}
