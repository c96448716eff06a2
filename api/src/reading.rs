//! History as requests read it: within a time, and through a circuit breaker, so that a store that is away costs a request
//! an answer at once, and itself no request more than it takes to see that it is back.

use std::time::Duration;

use failsafe::backoff::{EqualJittered, equal_jittered};
use failsafe::failure_policy::{ConsecutiveFailures, consecutive_failures};
use failsafe::{Instrument, StateMachine};
use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Gauge, Meter};
use store::DatabaseError;
use store::history::{Conversation, Cursor, History, HistoryError, Page, Row};

/// Failures in a row that open the breaker.
const FAILURES_MAX: u32 = 3;
/// How long it stays open; up to half of it is left to chance.
const OPEN_FOR: Duration = Duration::from_secs(2);

/// The history behind its breaker.
#[derive(Debug)]
pub(crate) struct Reading {
    history: History,
    within: Duration,
    breaker: StateMachine<ConsecutiveFailures<EqualJittered>, Watch>,
}

impl Reading {
    pub(crate) fn new(history: History, within: Duration, meter: &Meter) -> Reading {
        let policy = consecutive_failures(FAILURES_MAX, equal_jittered(OPEN_FOR, OPEN_FOR));
        Reading { history, within, breaker: StateMachine::new(policy, Watch::new(meter)) }
    }

    /// As [`History::conversations`].
    pub(crate) async fn conversations(
        &self,
        after: Option<Cursor>,
        limit: usize,
    ) -> Result<Vec<Conversation>, HistoryError> {
        self.ask(self.history.conversations(after, limit)).await
    }

    /// As [`History::turns`].
    pub(crate) async fn turns(&self, conversation: &str, page: Page, limit: usize) -> Result<Vec<Row>, HistoryError> {
        self.ask(self.history.turns(conversation, page, limit)).await
    }

    /// As [`History::last_position`].
    pub(crate) async fn last_position(&self, conversation: &str) -> Result<Option<i64>, HistoryError> {
        self.ask(self.history.last_position(conversation)).await
    }

    /// Opens the breaker, as a store does that is away.
    #[cfg(test)]
    pub(crate) fn lose(&self) {
        for _ in 0..FAILURES_MAX {
            self.breaker.on_error();
        }
    }

    async fn ask<T>(&self, question: impl Future<Output = Result<T, HistoryError>>) -> Result<T, HistoryError> {
        if !self.breaker.is_call_permitted() {
            return Err(away("it was away a moment ago, and is not asked again yet".to_owned()));
        }
        let late = || Err(away(format!("no answer within {} ms", self.within.as_millis())));
        let answer = tokio::time::timeout(self.within, question).await.unwrap_or_else(|_| late());
        match &answer {
            Err(HistoryError::Database(DatabaseError::Away(_))) => self.breaker.on_error(),
            // It answers; what is wrong with the question, or that too many ask, says nothing of the server.
            Ok(_) | Err(_) => self.breaker.on_success(),
        }
        answer
    }
}

fn away(what: String) -> HistoryError {
    HistoryError::Database(DatabaseError::Away(what))
}

/// Tells the metrics how the breaker is.
#[derive(Debug)]
struct Watch {
    state: Gauge<u64>,
    refused: Counter<u64>,
}

impl Watch {
    fn new(meter: &Meter) -> Watch {
        let state = meter
            .u64_gauge("undertone.circuit.breaker.state")
            .with_description("0 closed, 1 half open, 2 open: the dependency is not asked")
            .build();
        let refused = meter
            .u64_counter("undertone.circuit.breaker.refused")
            .with_description("Questions that an open breaker answered itself")
            .build();
        Watch { state, refused }
    }

    fn note(&self, state: u64) {
        self.state.record(state, &[KeyValue::new("dependency", "history")]);
    }
}

impl Instrument for Watch {
    fn on_call_rejected(&self) {
        self.refused.add(1, &[KeyValue::new("dependency", "history")]);
    }

    fn on_open(&self) {
        tracing::warn!("history is away: requests are answered without it");
        self.note(2);
    }

    fn on_half_open(&self) {
        self.note(1);
    }

    fn on_closed(&self) {
        self.note(0);
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::metrics::MeterProvider as _;

    use super::*;

    async fn reading() -> Reading {
        let meter = opentelemetry::metrics::noop::NoopMeterProvider::new().meter("test");
        let history = History::in_memory().await.expect("a history in memory opens");
        Reading::new(history, Duration::from_millis(50), &meter)
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_does_not_answer_is_soon_not_asked_and_asked_again_later() {
        let reading = reading().await;
        for _ in 0..FAILURES_MAX {
            reading.ask(std::future::pending::<Result<(), _>>()).await.expect_err("it does not answer");
        }
        let asked = std::cell::Cell::new(false);
        let question = async {
            asked.set(true);
            Ok(())
        };
        let error = reading.ask(question).await.expect_err("the breaker is open");
        assert!(error.is_transient() && !asked.get(), "{error}");
    }

    #[tokio::test]
    async fn refusals_that_are_no_absence_leave_it_closed() {
        let reading = reading().await;
        for _ in 0..10 {
            let crowded = DatabaseError::Crowded { waiting_max: 1 };
            reading.ask(async { Err::<(), _>(crowded.into()) }).await.expect_err("it is crowded");
        }
        assert_eq!(reading.last_position("room").await.expect("it is asked"), None);
    }
}
