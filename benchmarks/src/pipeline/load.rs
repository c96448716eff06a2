//! What is said in the measurements: texts as long as people's and made of their words, none twice, so that nothing that
//! remembers texts helps; and the same in every run, by a fixed seed.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use schemas::{Codec, Turn};
use store::log::Record;

/// Texts made to be nasty stand first in the golden file; the real ones follow.
const NASTY: usize = 100;
/// Where real texts are kept, under the folder of the models.
const GOLDEN: &str = "golden/emotion.jsonl";

/// A small generator of numbers (xorshift64*, Vigna 2016): the same in every run.
#[derive(Debug)]
pub(super) struct Numbers(u64);

impl Numbers {
    /// `seed` may be anything but 0.
    pub(super) fn new(seed: u64) -> Numbers {
        Numbers(seed)
    }

    /// A number below `bound`.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound.max(1)
    }
}

/// `count` texts: each as long as a real one, its words drawn from all of them.
pub(super) fn texts(models: &Path, count: usize) -> anyhow::Result<Vec<String>> {
    let path = models.join(GOLDEN);
    let lines = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let text = |line: &str| -> Option<String> {
        let row: serde_json::Value = serde_json::from_str(line).ok()?;
        Some(row["text"].as_str()?.to_owned())
    };
    let real: Vec<String> = lines.lines().skip(NASTY).filter_map(text).collect();
    let words: Vec<&str> = real.iter().flat_map(|text| text.split_whitespace()).collect();
    anyhow::ensure!(!words.is_empty(), "{} holds no texts", path.display());
    let mut numbers = Numbers::new(0x5eed);
    let drawn = |at: usize| {
        let length = real[at % real.len()].split_whitespace().count().max(1);
        let words: Vec<&str> = (0..length).map(|_| words[numbers.below(words.len())]).collect();
        words.join(" ")
    };
    Ok((0..count).map(drawn).collect())
}

/// A turn of a web conversation, said now: what is older than a topic's retention is removed at once.
pub(super) fn turn(conversation: &str, number: usize, text: &str) -> Turn {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as i64;
    Turn {
        chat_kind: Some("room".to_owned()),
        ..Turn::message("websocket", conversation, "ann", &number.to_string(), text, now)
    }
}

/// The record of a turn as intake writes it, headers included.
pub(super) fn record(codec: &Codec, topic: &str, turn: &Turn) -> anyhow::Result<Record> {
    let envelope = schemas::Envelope {
        id: turn.id.to_string(),
        source: "/benchmarks".to_owned(),
        kind: "dev.undertone.turn.received.v1".to_owned(),
        time: turn.received_at,
        correlation_id: turn.id.to_string(),
        trace: Some(schemas::TraceParent::root(turn.id)),
    };
    Ok(Record {
        topic: topic.to_owned(),
        partition: None,
        key: Some(turn.conversation.clone().into_bytes()),
        value: Some(codec.encode(turn)?),
        headers: envelope.headers().into_iter().map(|(name, value)| (name.to_owned(), value.into_bytes())).collect(),
        timestamp: turn.received_at,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_the_same_in_every_run_and_hardly_repeat() {
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models");
        let drawn = texts(&models, 2000).unwrap();
        assert_eq!(drawn, texts(&models, 2000).unwrap());
        let distinct: std::collections::BTreeSet<&String> = drawn.iter().collect();
        assert!(distinct.len() > 1950, "{} of 2000", distinct.len());
    }
}
