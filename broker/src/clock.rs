//! The time of day that does not jump: read from the system once, and carried on by the clock that only runs forwards.
//!
//! Whoever sets the system's clock, forwards or back, while the broker runs, neither ends transactions early nor leaves
//! them open, forgets no producer, and deletes no records by their age. After a start the system's clock counts; what was
//! noted under another is brought back to now where it lies in the future (see [`not_after`]). What the clock leaves
//! out: the time that a machine sleeps, by which everything here happens later.

use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A moment that both clocks were read at.
#[derive(Debug, Clone, Copy)]
struct Anchor {
    epoch_ms: i64,
    at: Instant,
}

impl Anchor {
    fn new(day: SystemTime, at: Instant) -> Anchor {
        let epoch_ms = day.duration_since(UNIX_EPOCH).map_or(0, |since: Duration| since.as_millis() as i64);
        Anchor { epoch_ms, at }
    }

    fn ms(&self, now: Instant) -> i64 {
        self.epoch_ms.saturating_add(now.saturating_duration_since(self.at).as_millis() as i64)
    }
}

/// Milliseconds since the epoch.
pub(crate) fn now_ms() -> i64 {
    static START: OnceLock<Anchor> = OnceLock::new();
    START.get_or_init(|| Anchor::new(SystemTime::now(), Instant::now())).ms(Instant::now())
}

/// A time that was noted in the past, although the clock may have been set back since.
pub(crate) fn not_after(noted_ms: i64, now_ms: i64) -> i64 {
    noted_ms.min(now_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_goes_on_from_the_start_whatever_the_system_says_meanwhile() {
        let begun = Instant::now();
        let anchor = Anchor::new(UNIX_EPOCH + Duration::from_secs(1000), begun);
        assert_eq!(anchor.ms(begun + Duration::from_millis(1500)), 1_001_500);
        assert_eq!(anchor.ms(begun), 1_000_000, "never before the start");
        let before_the_epoch = Anchor::new(UNIX_EPOCH - Duration::from_secs(5), begun);
        assert_eq!(before_the_epoch.ms(begun), 0);
        let (first, second) = (now_ms(), now_ms());
        assert!(first <= second);
    }
}
