//! How often, and how soon, a client of the log that is beyond repair is replaced. Pure.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use store::Pauses;

/// Clients that are replaced within [`RESTARTS_WITHIN`]; the next failure ends the role. Two processes of one name fence
/// each other with every restart, and must not do so for ever.
pub(super) const RESTARTS_MAX: usize = 5;
/// How long a restart counts.
pub(super) const RESTARTS_WITHIN: Duration = Duration::from_secs(300);
/// First and longest pause before a restart; the doubling has jitter, so that many processes do not come back in step.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// The restarts that still count.
#[derive(Debug)]
pub(super) struct Restarts {
    counting: VecDeque<Instant>,
    pauses: Pauses,
}

impl Default for Restarts {
    fn default() -> Restarts {
        Restarts { counting: VecDeque::new(), pauses: Pauses::between(PAUSES) }
    }
}

impl Restarts {
    /// One more: how long to wait before it; `None` where there were too many. What passes by itself is not counted.
    pub(super) fn next(&mut self, now: Instant, passes_by_itself: bool) -> Option<Duration> {
        self.counting.retain(|restart| now - *restart < RESTARTS_WITHIN);
        if self.counting.is_empty() {
            self.pauses = Pauses::between(PAUSES);
        }
        if self.counting.len() >= RESTARTS_MAX {
            return None;
        }
        if !passes_by_itself {
            self.counting.push_back(now);
        }
        Some(self.pauses.next_pause())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restarts_are_spaced_and_end_unless_time_passes_between_them() {
        let (mut restarts, now) = (Restarts::default(), Instant::now());
        let pauses: Vec<Duration> = std::iter::from_fn(|| restarts.next(now, false)).collect();
        assert_eq!(pauses.len(), RESTARTS_MAX);
        assert!(pauses.iter().all(|pause| (PAUSES.0..=2 * PAUSES.1).contains(pause)), "{pauses:?}");
        assert!(pauses[4] > pauses[0], "{pauses:?}");
        assert_eq!(restarts.next(now + RESTARTS_WITHIN / 2, false), None);
        assert!(restarts.next(now + RESTARTS_WITHIN, false).is_some());
    }

    #[test]
    fn what_passes_by_itself_is_tried_for_ever() {
        let (mut restarts, now) = (Restarts::default(), Instant::now());
        assert!((0..100).all(|_| restarts.next(now, true).is_some()));
    }
}
