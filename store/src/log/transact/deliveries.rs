//! Which records of the open transaction the broker has acknowledged.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{DeliveryResult, ProducerContext};

use super::lock;
use crate::log::client::Logged;

/// Records of the open transaction that the broker has not acknowledged yet.
#[derive(Default)]
pub(super) struct Outstanding {
    state: Mutex<Count>,
    changed: Condvar,
}

#[derive(Default)]
struct Count {
    /// Reports of an earlier transaction that was aborted may still come: they do not count for this one.
    generation: usize,
    expected: usize,
    seen: usize,
    failed: Option<KafkaError>,
}

impl Outstanding {
    /// Begins to count up to `expected` reports; returns the mark that their records carry.
    pub(super) fn start(&self, expected: usize) -> usize {
        let mut count = lock(&self.state);
        let generation = count.generation.wrapping_add(1);
        *count = Count { generation, expected, ..Count::default() };
        generation
    }

    fn note(&self, generation: usize, result: Option<KafkaError>) {
        let mut count = lock(&self.state);
        if count.generation != generation {
            return;
        }
        count.seen += 1;
        count.failed = count.failed.take().or(result);
        if count.seen >= count.expected || count.failed.is_some() {
            self.changed.notify_all();
        }
    }

    /// Waits until all have come, or one of them failed.
    pub(super) fn wait(&self, within: Duration) -> Result<(), KafkaError> {
        let open = |count: &mut Count| count.seen < count.expected && count.failed.is_none();
        let waited = self.changed.wait_timeout_while(lock(&self.state), within, open);
        let (mut count, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        match count.failed.take() {
            Some(error) => Err(error),
            None if waited.timed_out() => Err(KafkaError::MessageProduction(RDKafkaErrorCode::MessageTimedOut)),
            None => Ok(()),
        }
    }
}

/// Counts delivery reports, on the producer's own thread.
pub(super) struct Deliveries(pub(super) Arc<Outstanding>);

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        Logged.log(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        Logged.error(error, reason);
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, generation: usize) {
        self.0.note(generation, result.as_ref().err().map(|(error, _)| error.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_report_of_an_aborted_transaction_does_not_count_for_the_next() {
        let outstanding = Outstanding::default();
        let aborted = outstanding.start(1);
        let open = outstanding.start(1);
        outstanding.note(aborted, None);
        assert!(outstanding.wait(Duration::ZERO).is_err(), "its own record is not acknowledged yet");
        outstanding.note(open, None);
        assert!(outstanding.wait(Duration::ZERO).is_ok());
    }
}
