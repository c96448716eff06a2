//! How far readers are behind the log, in messages and in seconds.
//!
//! Seconds are the age of the oldest record that was not yet read. No record is fetched for it: each measurement
//! notes when the end of a partition was first seen where it is, and a reader that stands before that end is at least
//! so old. So it is exact to one interval of measuring, and a backlog from before the first measurement counts from
//! that one.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde::Serialize;

/// Ends remembered of each partition: an hour at one a second; older ones merge into the oldest.
const ENDS_MAX: usize = 3600;

/// How far one reader is behind one topic.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Lag {
    /// The role that reads.
    pub role: &'static str,
    /// What it reads.
    pub topic: String,
    /// Records between its committed offsets and the ends.
    pub messages: i64,
    /// Age of the oldest record that it has not committed, in seconds.
    pub seconds: f64,
    /// The same by partition.
    pub partitions: Vec<PartitionLag>,
}

/// How far one reader is behind one partition.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct PartitionLag {
    /// The partition.
    pub partition: i32,
    /// Records between its committed offset and the end.
    pub messages: i64,
    /// Age of the oldest record that it has not committed, in seconds.
    pub seconds: f64,
}

impl Lag {
    /// The lag of a reader: of messages the sum of its partitions, of seconds the largest.
    pub fn of(role: &'static str, topic: String, partitions: Vec<PartitionLag>) -> Lag {
        let messages = partitions.iter().map(|lag| lag.messages).sum();
        let seconds = partitions.iter().map(|lag| lag.seconds).fold(0.0, f64::max);
        Lag { role, topic, messages, seconds, partitions }
    }
}

/// Remembers ends of the partitions of one topic.
#[derive(Debug, Default)]
pub struct Ends {
    seen: BTreeMap<i32, VecDeque<(i64, Duration)>>,
}

impl Ends {
    /// Takes a measurement: the end of each partition (the offset of the next record), and `now` on any clock that
    /// does not go back.
    pub fn observe(&mut self, ends: &BTreeMap<i32, i64>, now: Duration) {
        for (&partition, &end) in ends {
            let seen = self.seen.entry(partition).or_default();
            if seen.back().is_some_and(|&(last, _)| end < last) {
                seen.clear();
            }
            if seen.back().is_none_or(|&(last, _)| last < end) {
                seen.push_back((end, now));
            }
            if seen.len() > ENDS_MAX {
                // The second oldest goes: the oldest still dates what lies before it.
                seen.remove(1);
            }
        }
    }

    /// How far a reader with these committed offsets is behind, by partition; a partition without one is read from
    /// `lows`.
    pub fn behind(
        &self,
        committed: &BTreeMap<i32, i64>,
        lows: &BTreeMap<i32, i64>,
        now: Duration,
    ) -> Vec<PartitionLag> {
        let lag = |(&partition, seen): (&i32, &VecDeque<(i64, Duration)>)| {
            let low = lows.get(&partition).copied().unwrap_or(0);
            let at = committed.get(&partition).copied().unwrap_or(low).max(low);
            let end = seen.back().map_or(at, |&(end, _)| end);
            if at >= end {
                return PartitionLag { partition, messages: 0, seconds: 0.0 };
            }
            let first_beyond = seen.iter().find(|(end, _)| *end > at).map_or(now, |&(_, when)| when);
            let seconds = now.saturating_sub(first_beyond).as_secs_f64();
            PartitionLag { partition, messages: end - at, seconds }
        };
        self.seen.iter().map(lag).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: BTreeMap<i32, i64> = BTreeMap::new();

    /// All partitions together.
    fn behind(ends: &Ends, committed: &BTreeMap<i32, i64>, lows: &BTreeMap<i32, i64>, now: Duration) -> (i64, f64) {
        let lag = Lag::of("reader", "topic".to_owned(), ends.behind(committed, lows, now));
        (lag.messages, lag.seconds)
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn lag_in_seconds_is_the_age_of_the_oldest_unread_record() {
        let mut ends = Ends::default();
        ends.observe(&[(0, 10)].into(), at(100));
        ends.observe(&[(0, 10)].into(), at(101));
        ends.observe(&[(0, 14)].into(), at(102));
        ends.observe(&[(0, 20)].into(), at(105));
        assert_eq!(behind(&ends, &[(0, 20)].into(), &NOTHING, at(110)), (0, 0.0));
        assert_eq!(behind(&ends, &[(0, 14)].into(), &NOTHING, at(110)), (6, 5.0));
        assert_eq!(behind(&ends, &[(0, 13)].into(), &NOTHING, at(110)), (7, 8.0));
        assert_eq!(behind(&ends, &[(0, 0)].into(), &NOTHING, at(110)), (20, 10.0));
    }

    #[test]
    fn each_partition_has_its_own_lag() {
        let mut ends = Ends::default();
        ends.observe(&[(0, 10), (1, 5)].into(), at(1));
        ends.observe(&[(0, 10), (1, 9)].into(), at(4));
        let of = |partition, messages, seconds| PartitionLag { partition, messages, seconds };
        assert_eq!(ends.behind(&[(0, 10), (1, 5)].into(), &NOTHING, at(6)), [of(0, 0, 0.0), of(1, 4, 2.0)]);
        assert_eq!(ends.behind(&[(0, 9), (1, 9)].into(), &NOTHING, at(6)), [of(0, 1, 5.0), of(1, 0, 0.0)]);
    }

    #[test]
    fn partition_without_a_commit_counts_from_its_oldest_record() {
        let mut ends = Ends::default();
        ends.observe(&[(0, 10), (1, 5)].into(), at(0));
        assert_eq!(behind(&ends, &[(0, 10)].into(), &[(1, 3)].into(), at(1)).0, 2);
    }

    #[test]
    fn memory_is_bounded_and_keeps_the_oldest() {
        let mut ends = Ends::default();
        for second in 0..2 * ENDS_MAX as u64 {
            ends.observe(&[(0, 1 + second as i64)].into(), at(second));
        }
        assert_eq!(ends.seen[&0].len(), ENDS_MAX);
        assert_eq!(behind(&ends, &NOTHING, &NOTHING, at(10_000)).1, 10_000.0);
    }

    #[test]
    fn recreated_topic_starts_anew() {
        let mut ends = Ends::default();
        ends.observe(&[(0, 100)].into(), at(0));
        ends.observe(&[(0, 2)].into(), at(50));
        assert_eq!(behind(&ends, &NOTHING, &NOTHING, at(60)), (2, 10.0));
    }
}
