//! The topics: names, keys, bounds, and which schema each one carries.
//!
//! Keys are the conversation id in plain UTF-8. Partitions and retention are explicit; nothing relies on
//! auto-creation.

use crate::Kind;

/// Partition count, retention and bounds that a topic is created with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic {
    /// Full name, with the version of its meaning.
    pub name: String,
    /// What its values are.
    pub kind: Kind,
    /// How long records are kept, in milliseconds.
    pub retention_ms: i64,
    /// Largest record batch, in bytes.
    pub max_message_bytes: usize,
}

/// Longest text of a turn in bytes of UTF-8; longer ones are rejected at intake. Telegram's limit is 4,096 UTF-16
/// units, at most 12 KiB; four times that leaves room for other sources.
pub const TEXT_BYTES_MAX: usize = 48 * 1024;
/// Largest record of `turns.*`: a turn with the longest text and all its parts fits many times over.
pub const TURN_BYTES_MAX: usize = 1024 * 1024;
/// Largest record of `rejects`: an input as large as intake reads, with what is known of it.
pub const REJECT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Turns as intake took them.
pub const TURNS_RECEIVED: &str = "undertone.turns.received.v1";
/// Turns with the parts of all stages.
pub const TURNS_ENRICHED: &str = "undertone.turns.enriched.v1";
/// Finished replies of bots.
pub const REPLIES: &str = "undertone.replies.v1";
/// Intents and outcomes of deliveries.
pub const DELIVERIES: &str = "undertone.deliveries.v1";
/// Reactions.
pub const FEEDBACK: &str = "undertone.feedback.v1";
/// Inputs at fault.
pub const REJECTS: &str = "undertone.rejects.v1";
/// Which of them were driven in again.
pub const REDRIVES: &str = "undertone.redrives.v1";

/// What was forgotten: consulted by whoever reads turns again.
pub const ERASURES: &str = "undertone.erasures.v1";

const DAY_MS: i64 = 24 * 60 * 60 * 1000;

/// The topic between two chains: turns that have passed `stage`. Exists only where the chain is cut.
pub fn turns_after(stage: &str) -> String {
    format!("undertone.turns.{stage}.v1")
}

/// The subject under which a registry knows the values of a topic (Confluent's TopicNameStrategy).
pub fn subject(topic: &str) -> String {
    format!("{topic}-value")
}

/// What stands in a topic, by its name; `None` for a topic that is not Undertone's.
pub fn kind(topic: &str) -> Option<Kind> {
    match topic {
        REPLIES => Some(Kind::Reply),
        DELIVERIES => Some(Kind::Delivery),
        FEEDBACK => Some(Kind::Feedback),
        REJECTS => Some(Kind::Reject),
        REDRIVES => Some(Kind::Redrive),
        ERASURES => Some(Kind::Erasure),
        _ if topic.starts_with("undertone.turns.") && topic.ends_with(".v1") => Some(Kind::Turn),
        _ => None,
    }
}

/// All topics that a chain cut behind `cuts` needs, in the order of a turn's journey.
pub fn wanted(cuts: &[&str]) -> Vec<Topic> {
    let turns =
        |name: String| Topic { name, kind: Kind::Turn, retention_ms: 7 * DAY_MS, max_message_bytes: TURN_BYTES_MAX };
    let other = |name: &str, kind: Kind, days: i64, max_message_bytes: usize| Topic {
        name: name.to_owned(),
        kind,
        retention_ms: days * DAY_MS,
        max_message_bytes,
    };
    let mut topics = vec![turns(TURNS_RECEIVED.to_owned())];
    topics.extend(cuts.iter().map(|stage| turns(turns_after(stage))));
    topics.push(turns(TURNS_ENRICHED.to_owned()));
    topics.push(other(REPLIES, Kind::Reply, 7, TURN_BYTES_MAX));
    topics.push(other(DELIVERIES, Kind::Delivery, 7, TURN_BYTES_MAX));
    topics.push(other(FEEDBACK, Kind::Feedback, 7, TURN_BYTES_MAX));
    topics.push(other(REJECTS, Kind::Reject, 30, REJECT_BYTES_MAX));
    // Kept for much longer than rejects: a segment goes as a whole, so a reject may outlive its time by as long as a
    // segment takes to fill, and must not be taken for an open one then.
    topics.push(other(REDRIVES, Kind::Redrive, 90, TURN_BYTES_MAX));
    // Kept for longer than anything that they cover, replayed and restored copies of it included.
    topics.push(other(ERASURES, Kind::Erasure, 3650, TURN_BYTES_MAX));
    topics
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wanted_topic_knows_its_kind() {
        for topic in wanted(&["encode"]) {
            assert_eq!(kind(&topic.name), Some(topic.kind), "{}", topic.name);
        }
        assert_eq!(kind("somebody.elses.v1"), None);
        assert_eq!(wanted(&["encode"])[1].name, "undertone.turns.encode.v1");
    }
}
