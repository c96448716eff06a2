//! A replay: turns that were enriched before run once more through other models or settings, into contexts, a group and
//! a topic of their own. The live processors, their contexts and topics are not touched.
//!
//! It reads `turns.received`, and beside it the enriched turns, in the same order: the position of a turn, and whether it
//! was dropped, are those of the enriched turn of the same received offset. What was received and not enriched when the
//! replay was planned is none of it.
//!
//! The work is that of every chain, exactly once; so a replay that was killed goes on where it stood. Leaves out: when it
//! is done, which who started it sees from the group's offsets.

mod reader;

use std::collections::BTreeMap;

use schemas::topic::TURNS_RECEIVED;
use schemas::{Stamp, Tier};
use serde::{Deserialize, Serialize};

use crate::plan::{Plan, PlanError, plan};
pub(crate) use reader::Reader;

/// Longest name of a replay, in bytes.
pub const NAME_BYTES_MAX: usize = 64;

/// Which received turns a replay runs. Offsets are those of `turns.received`, by partition; times are when intake took
/// the turn, in milliseconds since the Unix epoch. All bounds hold together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// No turn before this time.
    pub from_ms: Option<i64>,
    /// No turn at or after this time.
    pub until_ms: Option<i64>,
    /// No turn before these offsets; a partition that is not named has no such bound.
    pub from: BTreeMap<i32, i64>,
    /// No turn at or behind these offsets.
    pub until: BTreeMap<i32, i64>,
    /// Only these partitions; none means all.
    pub partitions: Vec<i32>,
}

impl Range {
    /// Whether it holds a turn, by its place.
    pub fn has_place(&self, stamp: Stamp) -> bool {
        let Stamp { partition, offset } = stamp;
        (self.partitions.is_empty() || self.partitions.contains(&partition))
            && self.from.get(&partition).is_none_or(|from| *from <= offset)
            && self.until.get(&partition).is_none_or(|until| offset < *until)
    }

    /// Whether it holds a turn, by when intake took it.
    pub fn has_time(&self, received_at: i64) -> bool {
        self.from_ms.is_none_or(|from| from <= received_at) && self.until_ms.is_none_or(|until| received_at < until)
    }
}

/// The part of a topic that a replay reads, by partition: from these offsets up to, and without, those.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// The first offsets.
    pub starts: BTreeMap<i32, i64>,
    /// The offsets behind the last.
    pub ends: BTreeMap<i32, i64>,
}

impl Extent {
    /// How many offsets there are, those of marks that transactions leave included.
    pub fn len(&self) -> i64 {
        self.before(&self.ends)
    }

    /// Whether there is nothing to read.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many of them lie before these offsets; none in a partition that is not named.
    pub fn before(&self, offsets: &BTreeMap<i32, i64>) -> i64 {
        let read = |(partition, end): (&i32, &i64)| {
            let start = self.starts.get(partition).unwrap_or(&0);
            (offsets.get(partition).unwrap_or(start).min(end) - start).max(0)
        };
        self.ends.iter().map(read).sum()
    }
}

/// What a replay does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replay {
    /// Its name; see [`check_name`].
    pub name: String,
    /// Which turns.
    pub range: Range,
    /// The models that run; `None`: those of the tier that each turn had.
    pub tier: Option<Tier>,
    /// What it reads of `turns.received`.
    pub received: Extent,
    /// Where the enriched turns of those stand.
    pub enriched: Extent,
}

/// Why a text is no name of a replay.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{0}\" is no name of a replay: give 1 to {NAME_BYTES_MAX} lower-case letters, digits and hyphens, because it \
     becomes part of a topic's name"
)]
pub struct NameError(String);

/// Whether a text can be the name of a replay. With the topic's fixed beginning and end no name leads to a live topic.
///
/// # Errors
/// It cannot.
pub fn check_name(name: &str) -> Result<(), NameError> {
    let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    match !name.is_empty() && name.len() <= NAME_BYTES_MAX && name.bytes().all(good) {
        true => Ok(()),
        false => Err(NameError(name.to_owned())),
    }
}

/// The topic of a replay's turns.
pub fn topic(name: &str) -> String {
    format!("undertone.turns.replayed.{name}.v1")
}

/// Begins the name of a replay's consumer group, as `[processors] group` does for the live ones.
pub fn group(name: &str) -> String {
    format!("undertone.replay.{name}")
}

impl Replay {
    /// The plan of a replay that runs `stages` (none: all of `order`). It numbers nothing and drops nothing, so it is
    /// never the first chain.
    ///
    /// # Errors
    /// As [`plan`].
    pub fn plan<S: AsRef<str>>(&self, order: &[&str], stages: &[S]) -> Result<Plan, PlanError> {
        let Plan { run, .. } = plan(order, stages)?;
        Ok(Plan { run, first: false, input: TURNS_RECEIVED.to_owned(), output: topic(&self.name) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_of_a_range_hold_together() {
        let range = Range {
            from_ms: Some(100),
            until_ms: Some(200),
            from: [(0, 5)].into(),
            until: [(0, 9)].into(),
            partitions: vec![0, 1],
        };
        let holds = |partition, offset, ms| range.has_place(Stamp { partition, offset }) && range.has_time(ms);
        assert!(holds(0, 5, 100) && holds(0, 8, 199) && holds(1, 0, 150));
        assert!(!holds(0, 4, 150) && !holds(0, 9, 150), "offsets: the first is in, the last is not");
        assert!(!holds(0, 5, 99) && !holds(0, 5, 200), "times: the first is in, the last is not");
        assert!(!holds(2, 5, 150), "another partition");
        assert!(Range::default().has_place(Stamp { partition: 7, offset: 0 }) && Range::default().has_time(0));
    }

    #[test]
    fn progress_counts_from_the_starts_to_the_ends() {
        let extent = Extent { starts: [(0, 10), (1, 0)].into(), ends: [(0, 30), (1, 5)].into() };
        assert_eq!(extent.len(), 25);
        assert_eq!(extent.before(&BTreeMap::new()), 0);
        assert_eq!(extent.before(&[(0, 15), (1, 9)].into()), 10, "what came after the end does not count");
        assert_eq!(extent.before(&[(0, 3)].into()), 0, "nor what stands before the start");
    }

    #[test]
    fn no_name_leads_to_a_live_topic() {
        for bad in ["", "a.b", "../x", "Live", "a_b", &"x".repeat(NAME_BYTES_MAX + 1)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
        let replay = Replay {
            name: "try-2".to_owned(),
            range: Range::default(),
            tier: None,
            received: Extent::default(),
            enriched: Extent::default(),
        };
        check_name(&replay.name).unwrap();
        let plan = replay.plan::<&str>(&["encode", "emotion"], &[]).unwrap();
        assert_eq!(plan.output, "undertone.turns.replayed.try-2.v1");
        assert!(!plan.first && plan.input == TURNS_RECEIVED);
        let live: Vec<String> = schemas::topic::wanted(&["encode"]).into_iter().map(|topic| topic.name).collect();
        assert!(!live.contains(&plan.output));
    }
}
