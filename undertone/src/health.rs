//! What is well and what is not, as the roles and the lag reporter tell it, for readiness, `/status` and `watch`.
//!
//! Plain data behind one lock; nothing here waits or does I/O.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use crate::lag::Lag;

/// How a part of the process is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Not yet there.
    Starting,
    /// Does its work.
    Ready,
    /// Does not, and why, with the mend.
    Unwell(String),
}

/// Why the process is not ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// The role, or `kafka`.
    pub part: String,
    /// What is wrong, and how to mend it.
    pub reason: String,
}

/// The health of one pipeline, shared by its roles.
#[derive(Debug, Clone, Default)]
pub struct Health(Arc<Mutex<Inner>>);

/// What a part waits for, if it is asked; `None`: it is ready.
type Question = Box<dyn Fn() -> Option<&'static str> + Send>;

#[derive(Default)]
struct Inner {
    parts: BTreeMap<&'static str, State>,
    started: bool,
    stopping: bool,
    lag: Vec<Lag>,
    warnings: BTreeMap<&'static str, String>,
    questions: Vec<(&'static str, Question)>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("parts", &self.parts).field("started", &self.started).finish_non_exhaustive()
    }
}

impl Health {
    /// Notes how a part is.
    pub fn set(&self, part: &'static str, state: State) {
        self.inner().parts.insert(part, state);
    }

    /// Notes whom to ask how a part is. The question must be quick, and must not ask for health itself.
    pub fn ask(&self, part: &'static str, question: impl Fn() -> Option<&'static str> + Send + 'static) {
        self.inner().questions.push((part, Box::new(question)));
    }

    /// Notes that every part has started once.
    pub fn set_started(&self) {
        self.inner().started = true;
    }

    /// Notes that the process is on its way out: it takes no more, and is not ready for ever after.
    pub fn set_stopping(&self) {
        self.inner().stopping = true;
    }

    /// Notes how far each reader is behind.
    pub fn set_lag(&self, lag: Vec<Lag>) {
        self.inner().lag = lag;
    }

    /// Notes what a person should look at though the process is ready, or that it has passed.
    pub fn warn(&self, part: &'static str, warning: Option<String>) {
        let mut inner = self.inner();
        match warning {
            Some(warning) => inner.warnings.insert(part, warning),
            None => inner.warnings.remove(part),
        };
    }

    /// What a person should look at though the process may be ready.
    pub fn warnings(&self) -> Vec<Reason> {
        let reason = |(part, reason): (&&str, &String)| Reason { part: (*part).to_owned(), reason: reason.clone() };
        self.inner().warnings.iter().map(reason).collect()
    }

    /// How far each reader is behind, as last measured.
    pub fn lag(&self) -> Vec<Lag> {
        self.inner().lag.clone()
    }

    /// Whether every part has started once.
    pub fn is_started(&self) -> bool {
        self.inner().started
    }

    /// Why it is not ready; none: it is.
    pub fn reasons(&self) -> Vec<Reason> {
        let inner = self.inner();
        let stopping = inner.stopping.then(|| Reason { part: "process".into(), reason: "it is stopping".into() });
        let unstarted = !inner.started && !inner.stopping;
        let starting = unstarted.then(|| Reason { part: "process".into(), reason: "it is starting".into() });
        let parts = inner.parts.iter().filter_map(|(part, state)| {
            let reason = match state {
                State::Ready => return None,
                State::Starting => "it is starting".to_owned(),
                State::Unwell(reason) => reason.clone(),
            };
            Some(Reason { part: (*part).to_owned(), reason })
        });
        let asked = inner.questions.iter().filter_map(|(part, question)| {
            Some(Reason { part: (*part).to_owned(), reason: format!("it is waiting: {}", question()?) })
        });
        stopping.into_iter().chain(starting).chain(parts).chain(asked).collect()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // No code panics while it holds the lock, and half-written health is still health.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_names_every_part_that_is_not_ready() {
        let health = Health::default();
        assert_eq!(health.reasons()[0].reason, "it is starting");
        health.set("ingest", State::Ready);
        health.set("kafka", State::Unwell("no broker answers".into()));
        health.set_started();
        assert_eq!(health.reasons(), [Reason { part: "kafka".into(), reason: "no broker answers".into() }]);
        health.set("kafka", State::Ready);
        assert_eq!(health.reasons(), []);
    }

    #[test]
    fn a_warning_leaves_the_process_ready() {
        let health = Health::default();
        health.set_started();
        health.warn("history", Some("its lag is near the retention".into()));
        assert_eq!((health.reasons(), health.warnings().len()), (vec![], 1));
        health.warn("history", None);
        assert_eq!(health.warnings(), []);
    }

    #[test]
    fn stopping_process_is_not_ready() {
        let health = Health::default();
        health.set_started();
        health.set_stopping();
        assert_eq!(health.reasons()[0].reason, "it is stopping");
    }
}
