//! The client's calls that wait for the brokers, so that one that never comes back can be told from one that takes its time.
//! librdkafka 2.12.1 was seen not to come back from `rd_kafka_send_offsets_to_transaction`, whatever its time-out, when the
//! brokers had aborted the transaction while they stood still.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::lock;

/// The calls that are under way; shared by the threads that make them and whoever looks after those.
#[derive(Debug, Default)]
pub struct Calls(Mutex<Begun>);

#[derive(Debug, Default)]
struct Begun {
    last: u64,
    at: BTreeMap<u64, Instant>,
}

impl Calls {
    /// Makes a call.
    pub(super) fn watch<T>(&self, call: impl FnOnce() -> T) -> T {
        let number = {
            let mut begun = lock(&self.0);
            begun.last += 1;
            let number = begun.last;
            begun.at.insert(number, Instant::now());
            number
        };
        let result = call();
        lock(&self.0).at.remove(&number);
        result
    }

    /// How long the oldest of those that are under way has taken; zero if none is.
    pub fn oldest(&self) -> Duration {
        lock(&self.0).at.values().next().map_or(Duration::ZERO, Instant::elapsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_call_that_is_under_way_counts() {
        let calls = Calls::default();
        assert_eq!(calls.oldest(), Duration::ZERO);
        let outer = calls.watch(|| {
            let inner = calls.watch(|| calls.oldest());
            assert!(inner > Duration::ZERO);
            calls.oldest().max(inner)
        });
        assert!(outer > Duration::ZERO);
        assert_eq!(calls.oldest(), Duration::ZERO, "those that came back do not");
    }
}
