//! The firehose's replay: the log itself, from a token's offsets until it meets the hub's ring.
//!
//! Bounded in records, and in the time that nothing comes while the hub has not been met.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use schemas::{Turn, topic};
use store::log::{From, LogError, Message, Tail};
use store::registry::Registry;

use crate::Shared;
use crate::feed::live_of;
use crate::hub::Live;

/// How long nothing may come before the reader is asked where it stands: it passes the marks of transactions silently.
const QUIET: Duration = Duration::from_millis(20);

/// A reader of the log behind the hub.
pub(crate) struct Replay {
    tail: Tail,
    registry: Registry,
    /// Read, and not shown yet.
    held: Option<Message>,
    wait: Duration,
    quiet: Duration,
}

/// What a replay brings.
#[derive(Debug)]
pub(crate) enum Step {
    /// The next turn.
    Turn(Arc<Live>),
    /// Nothing for a moment: by partition, the offset up to which everything has been brought.
    Quiet(BTreeMap<i32, i64>),
    /// The log cannot be read, or the hub stays out of sight.
    Failed(LogError),
}

impl Replay {
    /// Opens a replay; `None` if the log no longer reaches back to the offsets, is another one, or there is too much.
    ///
    /// # Errors
    /// The log does not answer.
    pub(crate) async fn open(shared: &Shared, offsets: &BTreeMap<i32, i64>) -> Result<Option<Replay>, LogError> {
        let opened = Tail::open(&shared.kafka, topic::TURNS_ENRICHED, From::Offsets(offsets.clone())).await;
        let tail = match opened {
            Ok(tail) => tail,
            Err(LogError::OutOfRange(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        let (starts, ends) = (tail.positions(), tail.ends().await?);
        let behind: i64 = ends.iter().map(|(partition, end)| end - starts.get(partition).unwrap_or(&0)).sum();
        let too_much = behind > shared.config.firehose_replay_records_max as i64;
        if too_much || offsets.keys().any(|partition| !starts.contains_key(partition)) {
            return Ok(None);
        }
        let wait = shared.config.history_wait;
        Ok(Some(Replay { tail, registry: shared.registry.clone(), held: None, wait, quiet: Duration::ZERO }))
    }

    /// The next step. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Step {
        loop {
            if let Some(message) = &self.held {
                if let Err(error) = self.registry.know_now::<Turn>(message.value.as_deref()).await {
                    return Step::Failed(LogError::Transient(error.to_string()));
                }
                // What is no turn was logged and counted when the hub read it.
                if let Some(Ok((live, _))) = self.held.take().map(|message| live_of(self.registry.codec(), message)) {
                    return Step::Turn(Arc::new(live));
                }
            }
            match tokio::time::timeout(QUIET, self.tail.next()).await {
                Ok(Ok(message)) => {
                    self.quiet = Duration::ZERO;
                    self.held = Some(message);
                }
                Ok(Err(error)) if !matches!(error, LogError::Transient(_)) => return Step::Failed(error),
                // A transient error comes at once; the next call waits for the connection.
                Ok(Err(error)) if self.quiet >= self.wait => return Step::Failed(error),
                Err(_) if self.quiet >= self.wait => {
                    return Step::Failed(LogError::Transient(
                        "the replay did not meet the live turns in time".to_owned(),
                    ));
                }
                Ok(Err(_)) => self.quiet += QUIET,
                Err(_) => {
                    self.quiet += QUIET;
                    return Step::Quiet(self.tail.positions());
                }
            }
        }
    }
}
