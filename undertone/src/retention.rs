//! Whether a reader of the log is about to lose what it has not read, because retention will take it first.
//!
//! The share of its time that the oldest unread record has used up is told in steps ([`SHARES`]), by asking the brokers
//! for the offsets of moments in the past: no record is fetched, and a process that has just started knows as much as one
//! that has run for weeks. Bounds by size are not looked at.

use std::collections::BTreeMap;

use store::log::{Admin, LogError};

/// The steps in which the share of the retention is told.
pub const SHARES: [f64; 4] = [0.25, 0.5, 0.75, 0.9];
/// From this share on a person must act.
pub const ALARMING: f64 = 0.75;

/// The largest of [`SHARES`] that an unread record of the group has used up of the topic's retention, or 0. `now` is in
/// milliseconds since the Unix epoch.
///
/// # Errors
/// The topic does not exist, or the brokers did not answer.
pub async fn used(admin: &Admin, group: &str, topic: &str, retention_ms: i64, now: i64) -> Result<f64, LogError> {
    let ends = admin.offsets(topic).await?;
    let committed = admin.committed(group, topic).await?;
    let mut largest = 0.0;
    if unread(&ends, &committed).next().is_none() {
        return Ok(largest);
    }
    for share in SHARES {
        let moment = now - (retention_ms as f64 * share) as i64;
        let since = admin.offsets_since(topic, moment).await?;
        if !older(&ends, &committed, &since) {
            break;
        }
        largest = share;
    }
    Ok(largest)
}

/// Whether a record that is not read yet is older than the moment since which `since` tells the first offsets.
fn older(ends: &BTreeMap<i32, (i64, i64)>, committed: &BTreeMap<i32, i64>, since: &BTreeMap<i32, i64>) -> bool {
    unread(ends, committed).any(|(partition, next, high)| next < since.get(&partition).copied().unwrap_or(high))
}

/// Partitions with something unread: the next offset to read, and the end.
fn unread<'a>(
    ends: &'a BTreeMap<i32, (i64, i64)>,
    committed: &'a BTreeMap<i32, i64>,
) -> impl Iterator<Item = (i32, i64, i64)> + 'a {
    let next = |(partition, (low, high)): (&i32, &(i64, i64))| {
        let next = committed.get(partition).copied().unwrap_or(*low).max(*low);
        (next < *high).then_some((*partition, next, *high))
    };
    ends.iter().filter_map(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_unread_counts() {
        let ends = BTreeMap::from([(0, (10, 50)), (1, (0, 5))]);
        let since = BTreeMap::from([(0, 30)]);
        let committed = |zero, one| BTreeMap::from([(0, zero), (1, one)]);
        assert!(older(&ends, &committed(20, 5), &since));
        assert!(!older(&ends, &committed(30, 5), &since), "what is unread is younger");
        assert!(!older(&ends, &committed(50, 5), &since), "all is read");
        assert!(older(&ends, &committed(50, 4), &since), "of partition 1 everything is older than the moment");
        assert!(older(&ends, &BTreeMap::from([(1, 5)]), &since), "a new group reads from the oldest on");
    }
}
