//! A stage: one model step, pure logic in one file under `stages/`.
//!
//! A stage has two halves, so that models run in batches while conversations stay in order. It does no I/O (its model
//! is loaded before), reads no clock and draws no randomness; time and ids come in with the turn.

use std::any::Any;

use schemas::{Codec, Payload, Turn};

/// A fault of ours: a missing model, a broken session, a slice that cannot be read. It stops the role; it never
/// rejects a turn, so that a bad release cannot empty a topic into the dead letters.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A file of a model is missing, damaged, or not what its card says.
    #[error("model file {file}: {problem}; {mend}")]
    Model {
        /// The file.
        file: String,
        /// What is wrong with it.
        problem: String,
        /// How to get a good one.
        mend: String,
    },
    /// A model that loaded does not run.
    #[error("stage {stage}: run model: {problem}")]
    Run {
        /// The stage.
        stage: &'static str,
        /// What the runtime said.
        problem: String,
    },
    /// A slice of a context cannot be read or written.
    #[error("stage {stage}: slice of conversation {conversation}: {problem}")]
    Slice {
        /// The stage.
        stage: &'static str,
        /// Whose context it is.
        conversation: String,
        /// What is wrong with it.
        problem: String,
    },
}

/// One model step.
pub trait Stage: Send + Sync + 'static {
    /// What it knows of a conversation so far.
    type Slice: Payload + Default + Send;

    /// Its name: in the configuration, in topics, in contexts.
    fn name(&self) -> &'static str;

    /// Context-free: puts its part into each turn, by the turn's tier, or notes in `skipped` why not. Takes many turns
    /// at once and spreads them over the cores; a turn's result never depends on its neighbours, bit for bit. Reads
    /// only the turn as intake made it and what earlier stages' `infer` wrote.
    ///
    /// # Errors
    /// A fault of ours.
    fn infer(&self, turns: &mut [Turn]) -> Result<(), Failure>;

    /// In order within a conversation, and cheap: folds the inference into the slice, and what the slice says into
    /// the part. Reads its slice, the turn and the parts of earlier stages, nothing else.
    ///
    /// # Errors
    /// A fault of ours.
    fn fold(&self, slice: &mut Self::Slice, turn: &mut Turn) -> Result<(), Failure>;
}

/// A stage whose slice type is out of sight, so that a chain can hold several.
pub trait AnyStage: Send + Sync {
    /// As [`Stage::name`].
    fn name(&self) -> &'static str;
    /// As [`Stage::infer`].
    ///
    /// # Errors
    /// A fault of ours.
    fn infer(&self, turns: &mut [Turn]) -> Result<(), Failure>;
    /// Reads a slice; a conversation without one is new.
    ///
    /// # Errors
    /// The bytes are not a slice of this stage.
    fn open(&self, codec: &Codec, conversation: &str, bytes: Option<&[u8]>) -> Result<Box<dyn Any + Send>, Failure>;
    /// As [`Stage::fold`], on a slice that [`AnyStage::open`] returned.
    ///
    /// # Errors
    /// A fault of ours.
    fn fold(&self, slice: &mut (dyn Any + Send), turn: &mut Turn) -> Result<(), Failure>;
    /// Writes a slice that [`AnyStage::open`] returned.
    ///
    /// # Errors
    /// The slice does not fit its schema.
    fn close(&self, codec: &Codec, conversation: &str, slice: &(dyn Any + Send)) -> Result<Vec<u8>, Failure>;
}

impl<S: Stage> AnyStage for S {
    fn name(&self) -> &'static str {
        Stage::name(self)
    }

    fn infer(&self, turns: &mut [Turn]) -> Result<(), Failure> {
        Stage::infer(self, turns)
    }

    fn open(&self, codec: &Codec, conversation: &str, bytes: Option<&[u8]>) -> Result<Box<dyn Any + Send>, Failure> {
        let slice = match bytes {
            None => S::Slice::default(),
            Some(bytes) => codec.decode(bytes).map_err(|e| slice_failure(Stage::name(self), conversation, &e))?,
        };
        Ok(Box::new(slice))
    }

    fn fold(&self, slice: &mut (dyn Any + Send), turn: &mut Turn) -> Result<(), Failure> {
        let slice = slice.downcast_mut().expect("a slice goes back to the stage that opened it");
        Stage::fold(self, slice, turn)
    }

    fn close(&self, codec: &Codec, conversation: &str, slice: &(dyn Any + Send)) -> Result<Vec<u8>, Failure> {
        let slice: &S::Slice = slice.downcast_ref().expect("a slice goes back to the stage that opened it");
        codec.encode(slice).map_err(|e| slice_failure(Stage::name(self), conversation, &e))
    }
}

fn slice_failure(stage: &'static str, conversation: &str, error: &dyn std::fmt::Display) -> Failure {
    Failure::Slice { stage, conversation: conversation.to_owned(), problem: error.to_string() }
}
