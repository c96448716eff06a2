//! How far readers are behind the log, in messages and in seconds.
//!
//! Seconds are the age of the oldest record that was not yet read. No record is fetched for it: each measurement
//! notes when the end of a partition was first seen where it is, and a reader that stands before that end is at least
//! so old. So it is exact to one interval of measuring. Of a backlog that is older than the first measurement the brokers
//! tell where the end was at moments in the past: there it is exact to a tenth.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde::Serialize;
use store::log::{Admin, LogError};

/// Ends remembered of each partition: an hour at one a second; older ones merge into the oldest.
const ENDS_MAX: usize = 3600;
/// The first of the [`moments`] lies so far back.
const MOMENT_FIRST: Duration = Duration::from_secs(2);
/// Each of the [`moments`] lies so many times as far back as the one before it.
const MOMENT_FACTOR: f64 = 1.1;
/// The last of the [`moments`] lies no further back: a year.
const MOMENT_LAST: Duration = Duration::from_secs(366 * 24 * 3600);

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

/// How far back to ask for ends, from the nearest to the furthest: each a tenth further than the one before it.
fn moments() -> impl Iterator<Item = Duration> {
    std::iter::successors(Some(MOMENT_FIRST), |age| Some(age.mul_f64(MOMENT_FACTOR)))
        .take_while(|age| *age <= MOMENT_LAST)
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

    /// Asks the brokers where the ends were before all that was observed, until that lies before everything that a reader
    /// with these committed offsets has not read. `now` is the time since the Unix epoch.
    ///
    /// # Errors
    /// The topic does not exist, or the brokers did not answer.
    pub async fn recall(
        &mut self,
        admin: &Admin,
        topic: &str,
        committed: &BTreeMap<i32, i64>,
        lows: &BTreeMap<i32, i64>,
        now: Duration,
    ) -> Result<(), LogError> {
        for age in moments() {
            if self.reach(committed, lows) {
                break;
            }
            let then = now.saturating_sub(age);
            let since = admin.offsets_since(topic, then.as_millis() as i64).await?;
            self.precede(&since, then);
        }
        Ok(())
    }

    /// Takes where the ends were at `then`, before all that is known; partitions that are left out had come to their end.
    fn precede(&mut self, ends: &BTreeMap<i32, i64>, then: Duration) {
        for (partition, seen) in &mut self.seen {
            let Some(oldest) = seen.front_mut() else { continue };
            match ends.get(partition) {
                Some(&end) if end < oldest.0 => seen.push_front((end, then)),
                // Nothing came in between.
                _ => oldest.1 = then,
            }
        }
    }

    /// Whether what is known reaches back to where a reader with these committed offsets stands.
    fn reach(&self, committed: &BTreeMap<i32, i64>, lows: &BTreeMap<i32, i64>) -> bool {
        self.seen.iter().all(|(partition, seen)| {
            let at = position(*partition, committed, lows);
            seen.front().is_none_or(|&(end, _)| end <= at) || seen.back().is_none_or(|&(end, _)| end <= at)
        })
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
            let at = position(partition, committed, lows);
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

/// The offset that a reader reads next.
fn position(partition: i32, committed: &BTreeMap<i32, i64>, lows: &BTreeMap<i32, i64>) -> i64 {
    let low = lows.get(&partition).copied().unwrap_or(0);
    committed.get(&partition).copied().unwrap_or(low).max(low)
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
    fn backlog_from_before_the_first_measurement_has_the_age_that_the_brokers_tell() {
        let mut ends = Ends::default();
        ends.observe(&[(0, 100), (1, 7)].into(), at(1000));
        let committed = BTreeMap::from([(0, 40), (1, 7)]);
        assert!(!ends.reach(&committed, &NOTHING));
        ends.precede(&[(0, 90)].into(), at(998));
        ends.precede(&[(0, 60)].into(), at(900));
        assert!(!ends.reach(&committed, &NOTHING));
        ends.precede(&[(0, 60)].into(), at(800));
        ends.precede(&[(0, 35)].into(), at(700));
        assert!(ends.reach(&committed, &NOTHING));
        assert_eq!(behind(&ends, &committed, &NOTHING, at(1000)), (60, 200.0), "60 was the end at 800 already");
        assert_eq!(behind(&ends, &[(0, 60), (1, 7)].into(), &NOTHING, at(1001)), (40, 3.0));
        assert_eq!(behind(&ends, &[(0, 95), (1, 7)].into(), &NOTHING, at(1001)), (5, 1.0));
        ends.observe(&[(0, 110), (1, 7)].into(), at(1002));
        assert_eq!(behind(&ends, &[(0, 100), (1, 7)].into(), &NOTHING, at(1004)), (10, 2.0));
    }

    #[test]
    fn moments_reach_a_year_back_in_few_steps() {
        let moments: Vec<Duration> = moments().collect();
        assert_eq!(moments.len(), 174);
        assert!(moments[173] > MOMENT_LAST.mul_f64(0.9));
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
