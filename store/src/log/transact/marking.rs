//! How long to leave the brokers alone after a commit. Apache Kafka answers a commit before it has marked the transaction
//! in its partitions, and until then refuses the next one; librdkafka asks again for a refused partition only after 20 ms
//! (`rd_kafka_txn_handle_AddPartitionsToTxn` in its 2.12.1), although the marks take one or two. A pause of that length
//! is learnt: it grows with every refusal, and shrinks slowly while there is none. A broker that never refuses, as the
//! embedded one, is given no pause.

use std::time::{Duration, Instant};

/// How long librdkafka waits before it asks a refusing coordinator again (`retry.backoff.ms`). Offsets that take longer to
/// be sent to a transaction were refused, or the broker was slow, which makes the pause a little longer than it need be.
pub(super) const RETRY_BACKOFF: Duration = Duration::from_millis(10);
/// Longest pause: half of what it spares.
const PAUSE_MAX: Duration = Duration::from_millis(10);
/// By how much a refusal makes it longer.
const LONGER: Duration = Duration::from_millis(1);
/// Refusals one after the other from which on they are believed: without a pause Apache Kafka refuses nearly every
/// transaction of a busy producer, and a single slow answer is something else.
const REFUSALS_BELIEVED: u32 = 3;
/// By how much a transaction that was not refused makes it shorter: one in 32 may be refused.
const SHORTER: Duration = Duration::from_nanos(31_250);

/// What is known of the brokers' marking.
#[derive(Debug, Default)]
pub(super) struct Marking {
    pause: Duration,
    /// One after the other, up to the last transaction.
    refusals: u32,
    /// When the last commit was answered.
    committed: Option<Instant>,
}

impl Marking {
    /// Notes how long it took to send the offsets to a transaction.
    pub(super) fn offsets_sent(&mut self, took: Duration) {
        if took < RETRY_BACKOFF {
            self.refusals = 0;
            self.pause = self.pause.saturating_sub(SHORTER);
            return;
        }
        self.refusals = self.refusals.saturating_add(1);
        if !self.pause.is_zero() || self.refusals >= REFUSALS_BELIEVED {
            self.pause = (self.pause + LONGER).min(PAUSE_MAX);
        }
    }

    /// Notes that a commit was answered.
    pub(super) fn committed(&mut self, now: Instant) {
        self.committed = Some(now);
    }

    /// What is left of the pause.
    pub(super) fn rest(&self, now: Instant) -> Duration {
        self.committed.map_or(Duration::ZERO, |committed| self.pause.saturating_sub(now - committed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many transactions one after the other are refused by brokers that mark for so long.
    fn refused(transactions: u32, marks_for: Duration) -> u32 {
        let (mut marking, mut now, mut refused) = (Marking::default(), Instant::now(), 0);
        for _ in 0..transactions {
            marking.committed(now);
            let pause = marking.rest(now);
            now += pause;
            let is_refused = pause < marks_for;
            refused += u32::from(is_refused);
            let took = if is_refused { RETRY_BACKOFF } else { Duration::from_millis(1) };
            marking.offsets_sent(took);
            now += took;
        }
        refused
    }

    #[test]
    fn brokers_that_refuse_nothing_are_given_no_pause() {
        assert_eq!(refused(1000, Duration::ZERO), 0);
        assert_eq!(Marking::default().rest(Instant::now()), Duration::ZERO);
    }

    #[test]
    fn pause_is_learnt_and_few_transactions_are_refused_then() {
        let marks_for = Duration::from_micros(2_500);
        assert_eq!(refused(10, marks_for), 5, "two that are not believed, and three steps of a millisecond");
        let of_many = refused(1010, marks_for);
        assert!((20..=40).contains(&of_many), "{of_many} of 1,010: one in 32");
    }

    #[test]
    fn single_slow_answers_are_no_refusals() {
        let (mut marking, now) = (Marking::default(), Instant::now());
        for n in 0..100 {
            marking.offsets_sent(if n % 3 == 2 { Duration::from_millis(1) } else { RETRY_BACKOFF });
            marking.committed(now);
            assert_eq!(marking.rest(now), Duration::ZERO, "{n}");
        }
    }

    #[test]
    fn pause_is_bounded_and_over_when_it_is_over() {
        let mut marking = Marking::default();
        for _ in 0..100 {
            marking.offsets_sent(Duration::from_secs(1));
        }
        let now = Instant::now();
        marking.committed(now);
        assert_eq!(marking.rest(now), PAUSE_MAX);
        assert_eq!(marking.rest(now + PAUSE_MAX), Duration::ZERO);
    }
}
