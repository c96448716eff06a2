//! Pauses between tries: each twice the one before, up to a longest, and longer by chance, so that processes that lost
//! something together do not come back to it in step.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};

/// The pauses that are to come.
#[derive(Debug)]
pub struct Pauses {
    growing: ExponentialBackoff,
    max: Duration,
}

impl Pauses {
    /// From the first to the longest; chance adds up to as much again.
    pub fn between((min, max): (Duration, Duration)) -> Pauses {
        let growing = ExponentialBuilder::new().with_min_delay(min).with_max_delay(max).with_jitter();
        Pauses { growing: growing.without_max_times().build(), max }
    }

    /// How long to wait before the next try.
    pub fn next_pause(&mut self) -> Duration {
        self.growing.next().unwrap_or(self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_bound_and_stay_there() {
        let bounds = (Duration::from_millis(100), Duration::from_secs(1));
        let mut pauses = Pauses::between(bounds);
        let pauses: Vec<Duration> = (0..20).map(|_| pauses.next_pause()).collect();
        assert!(pauses.iter().all(|pause| (bounds.0..=2 * bounds.1).contains(pause)), "{pauses:?}");
        assert!(pauses[0] <= 2 * bounds.0 && pauses[19] >= bounds.1, "{pauses:?}");
    }
}
