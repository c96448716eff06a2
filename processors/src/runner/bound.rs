//! When a release or a producer that is at fault must stop instead of draining the topic into the rejects. Pure.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

/// The bound of rejects among the last turns.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RejectsBound {
    /// How many last turns are looked at; none: there is no bound.
    pub window_turns: usize,
    /// Share of the window over which the role stops.
    pub share_max: f64,
}

impl Default for RejectsBound {
    fn default() -> RejectsBound {
        RejectsBound { window_turns: 1000, share_max: 0.5 }
    }
}

/// The last turns that were committed: whether each was at fault.
#[derive(Debug, Default)]
pub(crate) struct Recent(Mutex<VecDeque<bool>>);

impl Recent {
    /// How many of the last turns would be at fault with this batch, if that is over the bound. A window that is not
    /// full yet counts as filled with good turns, so that a few rejects at the start stop nothing.
    pub(crate) fn over(&self, bound: RejectsBound, batch: &[bool]) -> Option<usize> {
        if bound.window_turns == 0 || !batch.contains(&true) {
            return None;
        }
        let recent = self.lock();
        let mut at_fault = 0;
        let mut worst = 0;
        let mut window: VecDeque<bool> = VecDeque::with_capacity(bound.window_turns + 1);
        for &fault in recent.iter().chain(batch) {
            window.push_back(fault);
            at_fault += usize::from(fault);
            if window.len() > bound.window_turns {
                at_fault -= usize::from(window.pop_front() == Some(true));
            }
            worst = worst.max(at_fault);
        }
        (worst as f64 > bound.share_max * bound.window_turns as f64).then_some(worst)
    }

    /// Notes a batch that was committed.
    pub(crate) fn note(&self, bound: RejectsBound, batch: &[bool]) {
        let mut recent = self.lock();
        recent.extend(batch);
        let surplus = recent.len().saturating_sub(bound.window_turns);
        recent.drain(..surplus);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<bool>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: RejectsBound = RejectsBound { window_turns: 10, share_max: 0.5 };

    #[test]
    fn more_than_the_share_of_the_window_is_over_the_bound() {
        let recent = Recent::default();
        assert_eq!(recent.over(BOUND, &[true; 5]), None);
        assert_eq!(recent.over(BOUND, &[true; 6]), Some(6));
        recent.note(BOUND, &[true; 5]);
        assert_eq!(recent.over(BOUND, &[true]), Some(6));
        recent.note(BOUND, &[false; 6]);
        assert_eq!(recent.over(BOUND, &[true]), None, "old faults leave the window");
    }

    #[test]
    fn faults_in_the_middle_of_a_long_batch_count_as_well() {
        let batch: Vec<bool> = [[false; 20], [true; 20], [false; 20]].concat();
        assert_eq!(Recent::default().over(BOUND, &batch), Some(10));
    }

    #[test]
    fn without_a_window_or_with_the_whole_share_nothing_is_over() {
        let recent = Recent::default();
        assert_eq!(recent.over(RejectsBound { window_turns: 0, share_max: 0.0 }, &[true; 99]), None);
        assert_eq!(recent.over(RejectsBound { window_turns: 10, share_max: 1.0 }, &[true; 99]), None);
        assert_eq!(recent.over(RejectsBound { window_turns: 10, share_max: 0.0 }, &[true]), Some(1));
    }
}
