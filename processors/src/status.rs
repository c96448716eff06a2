//! Whether the role is ready, and what it waits for if it is not.

use std::sync::{Mutex, PoisonError};

/// What the role waits for.
#[derive(Debug)]
pub struct Status(Mutex<Option<&'static str>>);

impl Default for Status {
    fn default() -> Status {
        Status(Mutex::new(Some("starting")))
    }
}

impl Status {
    /// `None` when ready, else what the role waits for.
    pub fn waiting_for(&self) -> Option<&'static str> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set(&self, waiting_for: &'static str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(waiting_for);
    }

    pub(crate) fn clear(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
