//! What is well and what is not, as the roles and the lag reporter tell it, for readiness, `/status` and `watch`.
//!
//! Plain data behind one lock; nothing here waits or does I/O.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use store::Wait;

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
    /// A dependency that intake and streams do without is away, and why, with the mend.
    Away(String),
}

/// Why the process is not ready, or does not do all it should.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// The role, or the dependency: `kafka`, `scylla` …
    pub part: String,
    /// What is wrong, and how to mend it.
    pub reason: String,
    /// Since when, in milliseconds since the Unix epoch.
    pub since: i64,
}

/// How the process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Readiness {
    /// All is well.
    Ready,
    /// Intake and streams are served, and something is away: traffic is welcome.
    Degraded,
    /// It can serve nobody.
    Unready,
}

/// The health of one pipeline, shared by its roles.
#[derive(Debug, Clone, Default)]
pub struct Health(Arc<Mutex<Inner>>);

/// What a part waits for, if it is asked; `None`: it is ready.
type Question = Box<dyn Fn() -> Option<Wait> + Send>;

struct Inner {
    /// How each part is, and since when.
    parts: BTreeMap<&'static str, (State, SystemTime)>,
    begun: SystemTime,
    started: bool,
    stopping: Option<SystemTime>,
    /// Whether it serves clients, who are better served in part than not at all.
    serves: bool,
    lag: Vec<Lag>,
    warnings: BTreeMap<&'static str, (String, SystemTime)>,
    questions: Vec<(&'static str, Question)>,
}

impl Default for Inner {
    fn default() -> Inner {
        Inner {
            parts: BTreeMap::new(),
            begun: SystemTime::now(),
            started: false,
            stopping: None,
            serves: false,
            lag: Vec::new(),
            warnings: BTreeMap::new(),
            questions: Vec::new(),
        }
    }
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("parts", &self.parts).field("started", &self.started).finish_non_exhaustive()
    }
}

impl Health {
    /// Notes how a part is.
    pub fn set(&self, part: &'static str, state: State) {
        let mut inner = self.inner();
        let now = SystemTime::now();
        let (known, since) = inner.parts.entry(part).or_insert((state.clone(), now));
        // Told in other words, it is the same trouble since it began.
        if std::mem::discriminant(known) != std::mem::discriminant(&state) {
            *since = now;
        }
        *known = state;
    }

    /// Notes that the process serves clients: a dependency that is away then leaves it degraded, not unready.
    pub fn set_serves(&self) {
        self.inner().serves = true;
    }

    /// Notes whom to ask how a part is. The question must be quick, and must not ask for health itself.
    pub fn ask(&self, part: &'static str, question: impl Fn() -> Option<Wait> + Send + 'static) {
        self.inner().questions.push((part, Box::new(question)));
    }

    /// Notes that every part has started once.
    pub fn set_started(&self) {
        self.inner().started = true;
    }

    /// Notes that the process is on its way out: it takes no more, and is not ready for ever after.
    pub fn set_stopping(&self) {
        self.inner().stopping = Some(SystemTime::now());
    }

    /// Notes how far each reader is behind.
    pub fn set_lag(&self, lag: Vec<Lag>) {
        self.inner().lag = lag;
    }

    /// Notes what a person should look at though the process is ready, or that it has passed.
    pub fn warn(&self, part: &'static str, warning: Option<String>) {
        let mut inner = self.inner();
        match warning {
            Some(warning) => {
                let since = inner.warnings.get(part).map_or_else(SystemTime::now, |(_, since)| *since);
                inner.warnings.insert(part, (warning, since));
            }
            None => drop(inner.warnings.remove(part)),
        }
    }

    /// What a person should look at though the process may be ready.
    pub fn warnings(&self) -> Vec<Reason> {
        self.inner().warnings.iter().map(|(part, (warning, since))| Reason::new(part, warning, *since)).collect()
    }

    /// How far each reader is behind, as last measured.
    pub fn lag(&self) -> Vec<Lag> {
        self.inner().lag.clone()
    }

    /// Whether every part has started once.
    pub fn is_started(&self) -> bool {
        self.inner().started
    }

    /// Whether it is ready.
    pub fn readiness(&self) -> Readiness {
        self.told().0
    }

    /// Why it is not ready, or degraded; none: all is well.
    pub fn reasons(&self) -> Vec<Reason> {
        self.told().1
    }

    /// Both, as of one moment.
    pub fn told(&self) -> (Readiness, Vec<Reason>) {
        let inner = self.inner();
        let mut reasons = Vec::new();
        let mut readiness = Readiness::Ready;
        let mut tell = |part: &str, reason: &str, since: SystemTime, is_away: bool| {
            let how = if is_away && inner.serves { Readiness::Degraded } else { Readiness::Unready };
            readiness = readiness.worst(how);
            reasons.push(Reason::new(part, reason, since));
        };
        match inner.stopping {
            Some(since) => tell("process", "it is stopping", since, false),
            None if !inner.started => tell("process", "it is starting", inner.begun, false),
            None => {}
        }
        for (part, (state, since)) in &inner.parts {
            match state {
                State::Ready => {}
                State::Starting => tell(part, "it is starting", *since, false),
                State::Unwell(reason) => tell(part, reason, *since, false),
                State::Away(reason) => tell(part, reason, *since, true),
            }
        }
        for (part, question) in &inner.questions {
            if let Some(Wait { what, since, is_away }) = question() {
                tell(part, &format!("it is waiting: {what}"), since, is_away);
            }
        }
        (readiness, reasons)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // No code panics while it holds the lock, and half-written health is still health.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reason {
    fn new(part: &str, reason: &str, since: SystemTime) -> Reason {
        let since = since.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        Reason { part: part.to_owned(), reason: reason.to_owned(), since: i64::try_from(since).unwrap_or(i64::MAX) }
    }
}

impl Readiness {
    fn worst(self, other: Readiness) -> Readiness {
        if self as u8 > other as u8 { self } else { other }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(health: &Health) -> Vec<(String, String)> {
        health.reasons().into_iter().map(|reason| (reason.part, reason.reason)).collect()
    }

    #[test]
    fn readiness_names_every_part_that_is_not_ready() {
        let health = Health::default();
        assert_eq!(health.reasons()[0].reason, "it is starting");
        health.set("ingest", State::Ready);
        health.set("kafka", State::Unwell("no broker answers".into()));
        health.set_started();
        assert_eq!(named(&health), [("kafka".to_owned(), "no broker answers".to_owned())]);
        let since = health.reasons()[0].since;
        health.set("kafka", State::Unwell("still no broker answers".into()));
        assert_eq!(health.reasons()[0].since, since);
        assert_eq!(health.readiness(), Readiness::Unready);
        health.set("kafka", State::Ready);
        assert_eq!(health.reasons(), []);
    }

    #[test]
    fn dependency_that_is_away_leaves_a_process_with_clients_degraded_and_another_unready() {
        for (serves, readiness) in [(true, Readiness::Degraded), (false, Readiness::Unready)] {
            let health = Health::default();
            health.set_started();
            if serves {
                health.set_serves();
            }
            let since = SystemTime::now();
            health.ask("history", move || Some(Wait { what: "its store is away", since, is_away: true }));
            health.set("scylla", State::Away("no answer".into()));
            assert_eq!((health.readiness(), health.reasons().len()), (readiness, 2));
            health.set("kafka", State::Unwell("no broker answers".into()));
            assert_eq!(health.readiness(), Readiness::Unready);
        }
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
