//! Where a partition begins, and whether the log and the contexts still belong together. Pure.

use store::log::transact::Standing;

/// The log and the contexts contradict each other. The role stops, because going on would lose or double turns.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StandingError {
    /// Retention removed turns that were not processed, or the offset is of another log.
    #[error(
        "{topic} partition {partition}: the committed offset {committed} is outside of the log ({low} to {high}): \
         retention was shorter than the outage, or the topic was recreated; to go on with what is there, reset the \
         group's offsets and run `undertone contexts rebuild`"
    )]
    OutsideLog {
        /// The topic.
        topic: String,
        /// The partition.
        partition: i32,
        /// The offset that the group committed.
        committed: i64,
        /// The oldest offset in the log.
        low: i64,
        /// The offset that the next record gets.
        high: i64,
    },
    /// The durable store has no watermark, or one below the committed offset.
    #[error(
        "{topic} partition {partition}: the contexts stand at {watermark:?}, the group committed {committed}: the \
         store lost writes (restored from a backup?); run `undertone contexts rebuild`"
    )]
    LostWrites {
        /// The topic.
        topic: String,
        /// The partition.
        partition: i32,
        /// The offset that the last batch was to commit, if the store knows one.
        watermark: Option<i64>,
        /// The offset that the group committed.
        committed: i64,
    },
    /// The log ends before what the contexts have seen.
    #[error(
        "{topic} partition {partition}: the log ends at {high}, the contexts stand at {watermark}: the topic was \
         recreated or is on another cluster; point [kafka] bootstrap at the right one, or run `undertone contexts \
         rebuild`, with `--forget` where the group has committed nothing here"
    )]
    ShortLog {
        /// The topic.
        topic: String,
        /// The partition.
        partition: i32,
        /// The offset that the last batch was to commit.
        watermark: i64,
        /// The offset that the next record gets.
        high: i64,
    },
}

/// The offset at which a partition begins: the committed one, or the earliest for a new group.
///
/// # Errors
/// The log and the contexts contradict each other.
pub fn start(topic: &str, partition: i32, standing: Standing, watermark: Option<i64>) -> Result<i64, StandingError> {
    let Standing { committed, low, high } = standing;
    let topic = || topic.to_owned();
    if let Some(watermark) = watermark.filter(|watermark| *watermark > high) {
        return Err(StandingError::ShortLog { topic: topic(), partition, watermark, high });
    }
    let Some(committed) = committed else { return Ok(low) };
    if committed < low || committed > high {
        return Err(StandingError::OutsideLog { topic: topic(), partition, committed, low, high });
    }
    match watermark {
        Some(watermark) if watermark >= committed => Ok(committed),
        watermark => Err(StandingError::LostWrites { topic: topic(), partition, watermark, committed }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(committed: Option<i64>, watermark: Option<i64>) -> Result<i64, StandingError> {
        start("t", 0, Standing { committed, low: 10, high: 20 }, watermark)
    }

    #[test]
    fn a_new_group_starts_at_the_earliest_and_an_old_one_where_it_committed() {
        assert_eq!(at(None, None), Ok(10));
        assert_eq!(at(None, Some(12)), Ok(10), "the first batch wrote its contexts and died before the commit");
        assert_eq!(at(Some(15), Some(15)), Ok(15));
        assert_eq!(at(Some(15), Some(18)), Ok(15), "a batch wrote its contexts and died before the commit");
        assert_eq!(at(Some(20), Some(20)), Ok(20));
    }

    #[test]
    fn a_contradiction_stops_the_role() {
        assert!(matches!(at(Some(9), Some(9)), Err(StandingError::OutsideLog { .. })), "retention passed");
        assert!(matches!(at(Some(21), Some(20)), Err(StandingError::OutsideLog { .. })), "recreated topic");
        assert!(matches!(at(Some(15), None), Err(StandingError::LostWrites { .. })), "a new, empty store");
        assert!(matches!(at(Some(15), Some(14)), Err(StandingError::LostWrites { .. })), "a store from a backup");
        assert!(matches!(at(None, Some(21)), Err(StandingError::ShortLog { .. })), "another cluster");
    }
}
