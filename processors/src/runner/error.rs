//! Why a batch, or the whole role, did not get through.

use schemas::EncodeError;
use store::DatabaseError;
use store::context::ContextError;
use store::log::LogError;
use store::log::transact::CommitError;
use store::registry::RegistryError;

use crate::plan::PlanError;
use crate::stage::Failure;
use crate::standing::StandingError;

/// Why the role ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The contexts.
    #[error(transparent)]
    Context(#[from] ContextError),
    /// A stage.
    #[error(transparent)]
    Stage(#[from] Failure),
    /// The log and the contexts do not belong together.
    #[error(transparent)]
    Standing(#[from] StandingError),
    /// What a schema id stands for could not be found out in time.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A record does not fit its schema.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The same batch was aborted again and again.
    #[error("{0} transactions in a row were aborted, the last with: {1}; see to the brokers, then start again")]
    Aborts(u32, String),
    /// The client of the log does not come back from a call.
    #[error(
        "the client of the log has not come back from a call for {0} s, far beyond the call's time-out, while the \
         brokers answered: start again; what was not committed is read again"
    )]
    Stuck(u64),
    /// The stages do not make a chain.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The operating system gave no thread.
    #[error("start the processors' thread: {0}")]
    Thread(std::io::Error),
    /// A bug.
    #[error("the processors' thread panicked: report it with the lines above")]
    Panicked,
    /// So many turns are at fault that the release or a producer must be.
    #[error(
        "{at_fault} of the last {window} turns are at fault, more than [processors] rejects_share_max = {share_max} \
         allows, the last one because of: {detail}. What was not committed stays in {topic}; look at `undertone rejects \
         list`, then mend the producer, go back to the release before, or raise rejects_share_max, and start again"
    )]
    Rejecting {
        /// How many.
        at_fault: usize,
        /// Of how many.
        window: usize,
        /// The bound.
        share_max: f64,
        /// What is wrong with the last one.
        detail: String,
        /// The topic that is not drained.
        topic: String,
    },
    /// A message between two chains is at fault.
    #[error("{topic} partition {partition} offset {offset}: {detail}")]
    Between {
        /// The topic.
        topic: String,
        /// The partition.
        partition: i32,
        /// The offset.
        offset: i64,
        /// What is wrong.
        detail: String,
    },
}

impl RunError {
    /// Whether another client of the log may do better: what was begun under this one is ended by the next, and what was
    /// not committed is read again.
    pub(super) fn is_of_the_client(&self) -> bool {
        matches!(self, RunError::Log(LogError::Fenced(_) | LogError::Fatal(_) | LogError::Transient(_)))
    }
}

/// Why a batch did not get through.
pub(super) enum Interrupted {
    /// Nothing of it is visible: read it again.
    Dropped(String),
    /// Nothing of it is visible: read it again when the contexts' store answers.
    Away(DatabaseError),
    /// The role ends.
    Failed(RunError),
}

impl From<RunError> for Interrupted {
    fn from(error: RunError) -> Interrupted {
        match error {
            // Another process owns the partition; the group will say so.
            RunError::Context(fenced @ ContextError::Fenced { .. }) => Interrupted::Dropped(fenced.to_string()),
            RunError::Context(ContextError::Database(error)) if error.is_transient() => Interrupted::Away(error),
            error => Interrupted::Failed(error),
        }
    }
}

impl From<CommitError> for Interrupted {
    fn from(error: CommitError) -> Interrupted {
        match error {
            CommitError::Aborted(cause) => Interrupted::Dropped(cause),
            CommitError::Fatal(error) => Interrupted::Failed(error.into()),
        }
    }
}
