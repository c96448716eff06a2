//! The client's calls that wait for the brokers, so that one that never comes back can be told from one that takes its time.
//! librdkafka 2.12.1 was seen not to come back from `rd_kafka_send_offsets_to_transaction`, whatever its time-out, while it did
//! not reach the group's coordinator, and when the brokers had aborted the transaction while they stood still.

use std::collections::BTreeSet;
use std::sync::Mutex;

use super::lock;

/// The calls that are under way; shared by the threads that make them and whoever looks after those.
#[derive(Debug, Default)]
pub struct Calls(Mutex<Begun>);

#[derive(Debug, Default)]
struct Begun {
    last: u64,
    under_way: BTreeSet<u64>,
}

impl Calls {
    /// Makes a call.
    pub(super) fn watch<T>(&self, call: impl FnOnce() -> T) -> T {
        let _under_way = self.begin();
        call()
    }

    /// A call that is under way until this is dropped.
    pub fn begin(&self) -> Call<'_> {
        let mut begun = lock(&self.0);
        begun.last += 1;
        let number = begun.last;
        begun.under_way.insert(number);
        Call { calls: self, number }
    }

    /// Number of the oldest of those that are under way; no number comes twice.
    pub fn oldest(&self) -> Option<u64> {
        lock(&self.0).under_way.first().copied()
    }
}

/// See [`Calls::begin`].
#[derive(Debug)]
pub struct Call<'a> {
    calls: &'a Calls,
    number: u64,
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        lock(&self.calls.0).under_way.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_call_that_is_under_way_counts() {
        let calls = Calls::default();
        assert_eq!(calls.oldest(), None);
        calls.watch(|| {
            let outer = calls.oldest();
            assert!(outer.is_some());
            assert_eq!(calls.watch(|| calls.oldest()), outer);
        });
        assert_eq!(calls.oldest(), None, "those that came back do not");
    }
}
