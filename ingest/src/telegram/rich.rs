//! The words of a rich message, without its form: blocks become lines, markup falls away.
//!
//! It walks the JSON rather than the typed tree: a block that is newer than this release still gives its text, and a
//! few member names stand for two dozen kinds of block.

use serde::Serialize;
use serde_json::Value;

/// Members that hold words, in reading order.
const WORDS: [&str; 9] =
    ["summary", "text", "alternative_text", "expression", "blocks", "items", "cells", "caption", "credit"];
/// Members whose entries stand on lines of their own.
const LINES: [&str; 3] = ["blocks", "items", "cells"];

/// The words of a rich message; empty if it has none.
pub(super) fn words(rich: &impl Serialize) -> String {
    // A value that was read from JSON can be written as JSON; if it ever cannot, there are no words to find.
    serde_json::to_value(rich).map(|value| words_of(&value)).unwrap_or_default()
}

/// As [`words`], of a message that is still JSON.
pub(super) fn words_of(rich: &Value) -> String {
    let mut out = String::new();
    collect(rich, &mut out);
    out.trim().to_owned()
}

fn collect(value: &Value, out: &mut String) {
    match value {
        Value::String(text) => out.push_str(text),
        Value::Array(parts) => parts.iter().for_each(|part| collect(part, out)),
        Value::Object(members) => {
            for name in WORDS {
                match members.get(name) {
                    Some(Value::Array(entries)) if LINES.contains(&name) => entries.iter().for_each(|entry| {
                        collect(entry, out);
                        break_line(out);
                    }),
                    Some(Value::Object(inner)) if name == "caption" => {
                        break_line(out);
                        collect(&Value::Object(inner.clone()), out);
                    }
                    Some(inner) => collect(inner, out),
                    None => {}
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn break_line(out: &mut String) {
    if !out.is_empty() && !out.ends_with('\n') {
        out.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_become_lines_and_markup_falls_away() {
        let rich = serde_json::json!({"blocks": [
            {"type": "heading", "text": "Plan", "size": 1},
            {"type": "paragraph", "text": ["We meet ", {"type": "bold", "text": "at nine"}, "."]},
            {"type": "list", "items": [
                {"label": "1", "blocks": [{"type": "paragraph", "text": "bread"}]},
                {"label": "2", "blocks": [{"type": "paragraph", "text": "salt"}]}]},
            {"type": "divider"},
            {"type": "newer_than_us", "text": "still heard"}]});
        assert_eq!(words_of(&rich), "Plan\nWe meet at nine.\nbread\nsalt\nstill heard");
        assert_eq!(words_of(&serde_json::json!({"blocks": [{"type": "divider"}]})), "");
    }
}
