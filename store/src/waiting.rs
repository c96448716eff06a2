//! What a role waits for, told by the role and asked by whoever reports readiness.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

/// What a role waits for, and since when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wait {
    /// In words, with the mend.
    pub what: &'static str,
    /// Since when.
    pub since: SystemTime,
    /// Whether it is a dependency that is away, and not something that comes by itself in a moment.
    pub is_away: bool,
}

/// Whether a role is ready, shared with it.
#[derive(Debug)]
pub struct Waiting(Mutex<Option<Wait>>);

impl Default for Waiting {
    fn default() -> Waiting {
        Waiting(Mutex::new(Some(Wait { what: "starting", since: SystemTime::now(), is_away: false })))
    }
}

impl Waiting {
    /// `None` when ready, else what the role waits for.
    pub fn wait(&self) -> Option<Wait> {
        self.inner().clone()
    }

    /// The role waits for something that comes by itself.
    pub fn set(&self, what: &'static str) {
        self.note(what, false);
    }

    /// The role waits for a dependency that is away.
    pub fn set_away(&self, what: &'static str) {
        self.note(what, true);
    }

    /// The role is ready.
    pub fn clear(&self) {
        *self.inner() = None;
    }

    fn note(&self, what: &'static str, is_away: bool) {
        let mut inner = self.inner();
        // Told again, it has lasted since it was told first.
        if inner.as_ref().is_none_or(|wait| wait.what != what) {
            *inner = Some(Wait { what, since: SystemTime::now(), is_away });
        }
    }

    fn inner(&self) -> MutexGuard<'_, Option<Wait>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_again_has_lasted_since_it_was_told_first() {
        let waiting = Waiting::default();
        assert_eq!(waiting.wait().map(|wait| wait.what), Some("starting"));
        waiting.set_away("the store");
        let first = waiting.wait().unwrap();
        assert!(first.is_away);
        waiting.set_away("the store");
        assert_eq!(waiting.wait(), Some(first));
        waiting.clear();
        assert_eq!(waiting.wait(), None);
    }
}
