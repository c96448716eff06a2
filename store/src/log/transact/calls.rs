//! The client's calls that wait for the brokers, so that one that never comes back can be told from one that takes its time.
//! librdkafka 2.12.1 was seen not to come back from `rd_kafka_send_offsets_to_transaction`, whatever its time-out, while it did
//! not reach the group's coordinator, and when the brokers had aborted the transaction while they stood still.

use std::collections::BTreeSet;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::lock;
use crate::log::LogError;

/// Time between two looks whether what is waited for was given up.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The calls that are under way; shared by the threads that make them, those that wait for these, and whoever looks after
/// them and gives one up.
#[derive(Debug, Default)]
pub struct Calls(Mutex<Begun>);

#[derive(Debug, Default)]
struct Begun {
    last: u64,
    under_way: BTreeSet<u64>,
    /// One was given up, and nobody has taken notice yet.
    lost: Option<u64>,
}

impl Calls {
    /// Makes a call.
    pub(super) fn watch<T>(&self, call: impl FnOnce() -> T) -> T {
        let _under_way = self.begin();
        call()
    }

    /// A call that is under way until this is dropped.
    pub fn begin(&self) -> Call<'_> {
        let mut begun = lock(&self.0);
        begun.last += 1;
        let number = begun.last;
        begun.under_way.insert(number);
        Call { calls: self, number }
    }

    /// Makes a call on a thread of its own, which is left behind with all that it holds if the call is given up.
    ///
    /// # Errors
    /// It was, or there is no thread.
    pub(super) fn aside<T: Send + 'static>(
        self: &Arc<Calls>,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, LogError> {
        let (done, result) = sync_channel(1);
        let thread = std::thread::Builder::new().name("log-call".to_owned());
        // Nobody listens if it was given up.
        let spawned = thread.spawn(move || drop(done.send(call())));
        spawned.map_err(|error| LogError::Fatal(format!("start a thread: {error}")))?;
        self.outcome(&result)?.ok_or_else(|| LogError::Fatal("a call of the log's client panicked".to_owned()))
    }

    /// What comes from the thread that makes calls; `None` if it has ended.
    ///
    /// # Errors
    /// One of its calls was given up.
    pub fn outcome<T>(&self, results: &Receiver<T>) -> Result<Option<T>, LogError> {
        loop {
            if let Some(ended) = self.outcome_within(results, LOOK_EVERY)? {
                return Ok(ended);
            }
        }
    }

    /// As [`Calls::outcome`]; outermost `None` if nothing comes in time.
    ///
    /// # Errors
    /// One of its calls was given up.
    pub fn outcome_within<T>(&self, results: &Receiver<T>, wait: Duration) -> Result<Option<Option<T>>, LogError> {
        match results.recv_timeout(wait) {
            Ok(result) => Ok(Some(Some(result))),
            Err(RecvTimeoutError::Disconnected) => Ok(Some(None)),
            Err(RecvTimeoutError::Timeout) if lock(&self.0).lost.take().is_some() => Err(LogError::Fatal(
                "its client has not come back from a call, long after the call's time-out and while the brokers answered"
                    .to_owned(),
            )),
            Err(RecvTimeoutError::Timeout) => Ok(None),
        }
    }

    /// Gives up the oldest call: who waits for it goes on without it.
    pub fn give_up(&self) {
        let mut begun = lock(&self.0);
        begun.lost = begun.under_way.pop_first();
    }

    /// Whether a call was given up, has not come back since, and nobody who waits has taken notice.
    pub fn is_unnoticed(&self) -> bool {
        lock(&self.0).lost.is_some()
    }

    /// Number of the oldest of those that are under way; no number comes twice.
    pub fn oldest(&self) -> Option<u64> {
        lock(&self.0).under_way.first().copied()
    }
}

/// See [`Calls::begin`].
#[derive(Debug)]
pub struct Call<'a> {
    calls: &'a Calls,
    number: u64,
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        let mut begun = lock(&self.calls.0);
        begun.under_way.remove(&self.number);
        begun.lost = begun.lost.filter(|lost| *lost != self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_call_that_is_under_way_counts() {
        let calls = Calls::default();
        assert_eq!(calls.oldest(), None);
        calls.watch(|| {
            let outer = calls.oldest();
            assert!(outer.is_some());
            assert_eq!(calls.watch(|| calls.oldest()), outer);
        });
        assert_eq!(calls.oldest(), None, "those that came back do not");
    }

    #[test]
    fn who_waits_for_a_call_goes_on_when_it_is_given_up() {
        let (calls, (hold, held)) = (Arc::new(Calls::default()), sync_channel::<()>(0));
        let (inner, (begun, has_begun)) = (Arc::clone(&calls), sync_channel(1));
        let given_up = std::thread::scope(|scope| {
            let waits = scope.spawn(|| {
                calls.aside(move || {
                    inner.watch(|| {
                        begun.send(()).unwrap();
                        held.recv()
                    })
                })
            });
            has_begun.recv().unwrap();
            calls.give_up();
            waits.join().unwrap()
        });
        assert!(matches!(given_up, Err(LogError::Fatal(_))), "{given_up:?}");
        assert!(!calls.is_unnoticed() && calls.oldest().is_none());
        drop(hold);
        let late = calls.begin();
        calls.give_up();
        assert!(calls.is_unnoticed());
        drop(late);
        assert!(!calls.is_unnoticed(), "it came back after all");
        assert_eq!(calls.aside(|| 7), Ok(7), "the next is not harmed");
    }
}
