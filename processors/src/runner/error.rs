//! Why a batch, or the whole role, did not get through.

use schemas::EncodeError;
use store::context::ContextError;
use store::log::LogError;
use store::log::transact::CommitError;

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
    /// A record does not fit its schema.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The same batch was aborted again and again.
    #[error("{0} transactions in a row were aborted, the last with: {1}; see to the brokers, then start again")]
    Aborts(u32, String),
    /// The stages do not make a chain.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The operating system gave no thread.
    #[error("start the processors' thread: {0}")]
    Thread(std::io::Error),
    /// A bug.
    #[error("the processors' thread panicked: report it with the lines above")]
    Panicked,
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

/// Why a batch did not get through.
pub(super) enum Interrupted {
    /// Nothing of it is visible: read it again.
    Dropped(String),
    /// The role ends.
    Failed(RunError),
}

impl From<RunError> for Interrupted {
    fn from(error: RunError) -> Interrupted {
        match error {
            // Another process owns the partition; the group will say so.
            RunError::Context(fenced @ ContextError::Fenced { .. }) => Interrupted::Dropped(fenced.to_string()),
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
