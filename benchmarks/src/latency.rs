//! An open loop and its histogram: what is due is sent when it is due, and a latency counts from then.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

/// Longest latency that is told apart from longer ones, in microseconds: a minute.
const LONGEST_US: u64 = 60_000_000;

/// Time since the first call in this process, so that a moment can travel in a record.
pub(crate) fn clock() -> Duration {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed()
}

/// The moments at which things are due.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Schedule {
    pub(crate) start: Duration,
    pub(crate) per_second: u64,
}

impl Schedule {
    /// When number `n` is due.
    pub(crate) fn due(self, n: u64) -> Duration {
        self.start + Duration::from_nanos(n * 1_000_000_000 / self.per_second)
    }
}

/// Blocks until a moment. The last stretch is waited for in short sleeps, because a long one oversleeps.
pub(crate) fn sleep_until(moment: Duration) {
    loop {
        let left = moment.saturating_sub(clock());
        if left.is_zero() {
            return;
        }
        std::thread::sleep(left.min(Duration::from_micros(200)).max(left / 2));
    }
}

/// Latencies of one run.
#[derive(Debug)]
pub(crate) struct Latencies(Histogram<u64>);

impl Latencies {
    pub(crate) fn new() -> Latencies {
        Latencies(Histogram::new_with_bounds(1, LONGEST_US, 3).expect("the bounds are in order"))
    }

    pub(crate) fn note(&mut self, latency: Duration) {
        self.0.saturating_record((latency.as_micros() as u64).max(1));
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.len()
    }

    /// A share of the latencies is at most this, in milliseconds.
    pub(crate) fn quantile_ms(&self, share: f64) -> f64 {
        self.0.value_at_quantile(share) as f64 / 1000.0
    }

    /// The longest, in milliseconds.
    pub(crate) fn max_ms(&self) -> f64 {
        self.0.max() as f64 / 1000.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_due_is_spread_evenly_over_the_second() {
        let schedule = Schedule { start: Duration::from_secs(2), per_second: 1000 };
        assert_eq!(schedule.due(0), Duration::from_secs(2));
        assert_eq!(schedule.due(1500), Duration::from_millis(3500));
    }

    #[test]
    fn quantiles_are_in_milliseconds() {
        let mut latencies = Latencies::new();
        (1..=100).for_each(|ms| latencies.note(Duration::from_millis(ms)));
        assert!((latencies.quantile_ms(0.5) - 50.0).abs() < 0.1);
        assert!((latencies.max_ms() - 100.0).abs() < 0.1);
    }
}
