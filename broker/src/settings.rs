//! Settings of a topic: their names, types and defaults as in Apache Kafka, and what this broker makes of them.
//!
//! Every setting of Apache Kafka's topics that this broker knows is accepted with a legal value; those marked as without
//! effect concern replication or details of Apache Kafka's own storage. Unknown names and illegal values are refused.

use std::collections::BTreeMap;

/// Settings by name, as clients gave them.
pub(crate) type Given = BTreeMap<String, String>;

/// What a setting may hold.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    /// At least the given number.
    Long(i64),
    /// At least the given number, at most `i32::MAX`.
    Int(i64),
    /// Between 0 and 1.
    Ratio,
    Boolean,
    /// One of these words.
    Word(&'static [&'static str]),
    /// Some of these words, separated by commas.
    Words(&'static [&'static str]),
}

/// A setting of a topic.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) name: &'static str,
    pub(crate) default: &'static str,
    kind: Kind,
}

const fn known(name: &'static str, default: &'static str, kind: Kind) -> Known {
    Known { name, default, kind }
}

/// All settings that a topic can have, by name.
pub(crate) const KNOWN: &[Known] = &[
    known("cleanup.policy", "delete", Kind::Words(&["delete", "compact"])),
    // Batches are kept as producers compressed them.
    known("compression.type", "producer", Kind::Word(&["producer"])),
    known("delete.retention.ms", "86400000", Kind::Long(0)),
    // Without effect: removed files go at once.
    known("file.delete.delay.ms", "0", Kind::Long(0)),
    // Without effect: when files are synced is a setting of the broker.
    known("flush.messages", "9223372036854775807", Kind::Long(1)),
    known("flush.ms", "9223372036854775807", Kind::Long(0)),
    // Without effect: the index has its own spacing.
    known("index.interval.bytes", "32768", Kind::Int(0)),
    // Without effect: closed segments are compacted at the next round.
    known("max.compaction.lag.ms", "9223372036854775807", Kind::Long(1)),
    known("max.message.bytes", "1048588", Kind::Int(0)),
    known("message.timestamp.type", "CreateTime", Kind::Word(&["CreateTime"])),
    known("min.cleanable.dirty.ratio", "0.5", Kind::Ratio),
    // Without effect: closed segments are compacted at the next round.
    known("min.compaction.lag.ms", "0", Kind::Long(0)),
    // Without effect: there is one node.
    known("min.insync.replicas", "1", Kind::Int(1)),
    known("preallocate", "false", Kind::Boolean),
    known("retention.bytes", "-1", Kind::Long(-1)),
    known("retention.ms", "604800000", Kind::Long(-1)),
    known("segment.bytes", "67108864", Kind::Int(14)),
    // Without effect: an index has the size that it needs.
    known("segment.index.bytes", "10485760", Kind::Int(4)),
    // Without effect: segments close on time.
    known("segment.jitter.ms", "0", Kind::Long(0)),
    known("segment.ms", "604800000", Kind::Long(1)),
    known("unclean.leader.election.enable", "false", Kind::Boolean),
];

impl Known {
    /// Type number as DescribeConfigs gives it.
    pub(crate) fn type_number(&self) -> i8 {
        match self.kind {
            Kind::Boolean => 1,
            Kind::Word(_) => 2,
            Kind::Int(_) => 3,
            Kind::Long(_) => 5,
            Kind::Ratio => 6,
            Kind::Words(_) => 7,
        }
    }

    /// Whether values can be appended to it.
    pub(crate) fn is_list(&self) -> bool {
        matches!(self.kind, Kind::Words(_))
    }

    fn accepts(&self, value: &str) -> bool {
        match self.kind {
            Kind::Long(least) => value.parse::<i64>().is_ok_and(|n| n >= least),
            Kind::Int(least) => value.parse::<i32>().is_ok_and(|n| i64::from(n) >= least),
            Kind::Ratio => value.parse::<f64>().is_ok_and(|n| (0.0..=1.0).contains(&n)),
            Kind::Boolean => matches!(value, "true" | "false"),
            Kind::Word(words) => words.contains(&value),
            Kind::Words(words) => value.split(',').all(|word| words.contains(&word.trim())),
        }
    }
}

/// Why settings were refused, for the client to read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum SettingsError {
    #[error("unknown topic setting {name}; known are: {}", names())]
    Unknown { name: String },
    #[error("topic setting {name} cannot be {value:?}; its default is {default:?}")]
    Illegal { name: String, value: String, default: &'static str },
}

fn names() -> String {
    KNOWN.iter().map(|known| known.name).collect::<Vec<_>>().join(", ")
}

/// Settings in the form the log uses.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TopicSettings {
    pub(crate) segment_bytes: u64,
    pub(crate) segment_ms: i64,
    /// -1 for no limit.
    pub(crate) retention_ms: i64,
    /// -1 for no limit.
    pub(crate) retention_bytes: i64,
    pub(crate) compact: bool,
    pub(crate) delete: bool,
    pub(crate) message_bytes_max: usize,
    pub(crate) delete_retention_ms: i64,
    pub(crate) dirty_ratio_min: f64,
}

impl TopicSettings {
    /// Reads the settings of a topic.
    pub(crate) fn new(given: &Given) -> Result<TopicSettings, SettingsError> {
        for (name, value) in given {
            let Some(known) = KNOWN.iter().find(|known| known.name == name) else {
                return Err(SettingsError::Unknown { name: name.clone() });
            };
            if !known.accepts(value) {
                let (name, value) = (name.clone(), value.clone());
                return Err(SettingsError::Illegal { name, value, default: known.default });
            }
        }
        let text = |name: &str| {
            let default = KNOWN.iter().find(|known| known.name == name).map_or("", |known| known.default);
            given.get(name).map_or(default, String::as_str)
        };
        let number = |name: &str| text(name).parse::<i64>().expect("it was accepted as a number");
        let policy = |word: &str| text("cleanup.policy").split(',').any(|given| given.trim() == word);
        Ok(TopicSettings {
            segment_bytes: number("segment.bytes") as u64,
            segment_ms: number("segment.ms"),
            retention_ms: number("retention.ms"),
            retention_bytes: number("retention.bytes"),
            compact: policy("compact"),
            delete: policy("delete"),
            message_bytes_max: number("max.message.bytes") as usize,
            delete_retention_ms: number("delete.retention.ms"),
            dirty_ratio_min: text("min.cleanable.dirty.ratio").parse().expect("it was accepted as a ratio"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_legal() {
        for known in KNOWN {
            assert!(known.accepts(known.default), "{known:?}");
        }
        let settings = TopicSettings::new(&Given::new()).unwrap();
        assert!(settings.delete && !settings.compact);
        assert_eq!((settings.segment_bytes, settings.retention_ms), (64 << 20, 7 * 86_400_000));
    }

    #[test]
    fn unknown_names_and_illegal_values_are_refused() {
        let new = |name: &str, value: &str| TopicSettings::new(&Given::from([(name.to_owned(), value.to_owned())]));
        assert!(new("cleanup.policy", "compact,delete").is_ok_and(|s| s.compact && s.delete));
        for (name, value) in [("cleanup.policy", "shred"), ("retention.ms", "-2"), ("segment.bytes", "many")] {
            assert!(matches!(new(name, value), Err(SettingsError::Illegal { .. })), "{name}={value}");
        }
        let error = new("retention.hours", "1").unwrap_err().to_string();
        assert!(error.contains("retention.hours") && error.contains("retention.ms"), "{error}");
    }
}
