//! A chain: a contiguous run of stages fused in one process. Pure: it is given turns and slices and returns turns and
//! slices, so that the exactly-once shell, the rebuild and a single-threaded reference all fold in the same way.

use std::any::Any;
use std::collections::HashMap;
use std::sync::Arc;

use schemas::slice::Sequence;
use schemas::{Codec, Stamp, Turn};
use store::context::{Version, Write};

use crate::sequence;
use crate::stage::{AnyStage, Failure};

/// A contiguous run of stages. The one that begins the order also numbers turns and drops repeated ones.
pub struct Chain {
    name: String,
    stages: Vec<Box<dyn AnyStage>>,
    first: bool,
    codec: Arc<Codec>,
}

impl std::fmt::Debug for Chain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Chain").field("name", &self.name).field("first", &self.first).finish_non_exhaustive()
    }
}

/// The slices of one conversation, open in memory while a batch folds into them.
pub struct Conversation {
    name: String,
    sequence: Sequence,
    slices: Vec<Box<dyn Any + Send>>,
    /// The versions that the batch started from; they become `previous`.
    base: HashMap<&'static str, Version>,
    folded: Option<Stamp>,
}

/// What became of a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Folded {
    /// It has its position, and the parts of this chain.
    Enriched,
    /// It was folded before; drop it.
    Repeated,
}

impl Chain {
    /// A chain of these stages, in order; `first` if it begins the whole order. Its name is that of its first stage,
    /// so that a new cut takes over the committed offsets of the chain that ran that stage.
    pub fn new(stages: Vec<Box<dyn AnyStage>>, first: bool, codec: Arc<Codec>) -> Chain {
        let name = stages.first().map_or(sequence::SLICE, |stage| stage.name()).to_owned();
        Chain { name, stages, first, codec }
    }

    /// Its name: of its epochs and watermarks, and part of its group's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it begins the order.
    pub fn is_first(&self) -> bool {
        self.first
    }

    /// The names of its stages, in order.
    pub fn stages(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.stages.iter().map(|stage| stage.name())
    }

    /// The slices that it reads and writes, and nobody else does.
    pub fn slices(&self) -> Vec<&'static str> {
        let sequence = self.first.then_some(sequence::SLICE);
        sequence.into_iter().chain(self.stages()).collect()
    }

    /// Runs the models, context-free, on many turns at once.
    ///
    /// # Errors
    /// A fault of ours.
    pub fn infer(&self, turns: &mut [Turn]) -> Result<(), Failure> {
        self.infer_with(turns, |_| {})
    }

    /// As [`Chain::infer`], and says after each stage that it is done.
    pub(crate) fn infer_with(&self, turns: &mut [Turn], mut done: impl FnMut(&'static str)) -> Result<(), Failure> {
        for stage in &self.stages {
            stage.infer(turns)?;
            done(stage.name());
        }
        Ok(())
    }

    /// Opens the slices of a conversation from the versions that the batch starts from.
    ///
    /// # Errors
    /// A version cannot be read.
    pub fn open(&self, conversation: &str, base: HashMap<&'static str, Version>) -> Result<Conversation, Failure> {
        let bytes = |slice: &str| base.get(slice).map(|version| version.bytes.as_slice());
        let failure = |stage, problem: String| Failure::Slice { stage, conversation: conversation.to_owned(), problem };
        let sequence = match bytes(sequence::SLICE) {
            None => Sequence::default(),
            Some(bytes) => self.codec.decode(bytes).map_err(|e| failure(sequence::SLICE, e.to_string()))?,
        };
        if let Some(problem) = sequence::problem(&sequence) {
            return Err(failure(sequence::SLICE, problem));
        }
        let open = self.stages.iter().map(|stage| stage.open(&self.codec, conversation, bytes(stage.name())));
        let slices = open.collect::<Result<_, _>>()?;
        Ok(Conversation { name: conversation.to_owned(), sequence, slices, base, folded: None })
    }

    /// Folds a turn that has been inferred. `stamp` is its place in `turns.received`.
    ///
    /// # Errors
    /// A fault of ours.
    pub fn fold(&self, conversation: &mut Conversation, turn: &mut Turn, stamp: Stamp) -> Result<Folded, Failure> {
        self.fold_with(conversation, turn, stamp, |_| {})
    }

    /// As [`Chain::fold`], and says after each stage that it is done.
    pub(crate) fn fold_with(
        &self,
        conversation: &mut Conversation,
        turn: &mut Turn,
        stamp: Stamp,
        done: impl FnMut(&'static str),
    ) -> Result<Folded, Failure> {
        if self.first {
            match sequence::number(&mut conversation.sequence, turn.id) {
                None => return Ok(Folded::Repeated),
                position => turn.position = position,
            }
            if let Some(problem) = sequence::problem(&conversation.sequence) {
                return Err(Failure::Slice {
                    stage: sequence::SLICE,
                    conversation: conversation.name.clone(),
                    problem,
                });
            }
            turn.stamp = Some(stamp);
        }
        self.fold_parts(conversation, turn, stamp, done)?;
        Ok(Folded::Enriched)
    }

    /// Folds a turn that this chain has enriched before: its position and parts are there already. From such turns
    /// lost contexts are rebuilt without any model.
    ///
    /// # Errors
    /// A fault of ours.
    pub fn refold(&self, conversation: &mut Conversation, turn: &mut Turn, stamp: Stamp) -> Result<(), Failure> {
        if self.first {
            let expected = turn.position;
            if sequence::number(&mut conversation.sequence, turn.id) != expected || expected.is_none() {
                return Err(Failure::Slice {
                    stage: sequence::SLICE,
                    conversation: turn.conversation.clone(),
                    problem: format!(
                        "turn {} has position {expected:?}, which does not follow the one before",
                        turn.id
                    ),
                });
            }
        }
        self.fold_parts(conversation, turn, stamp, |_| {})
    }

    fn fold_parts(
        &self,
        conversation: &mut Conversation,
        turn: &mut Turn,
        stamp: Stamp,
        mut done: impl FnMut(&'static str),
    ) -> Result<(), Failure> {
        conversation.folded = Some(stamp);
        if turn.is_erasure() {
            return self.forget(conversation);
        }
        for (stage, slice) in self.stages.iter().zip(&mut conversation.slices) {
            stage.fold(slice.as_mut(), turn)?;
            done(stage.name());
        }
        Ok(())
    }

    /// Lets go of what is known of the conversation, in both versions: a batch that starts again starts without it too. Its
    /// numbers, and the ids by which repeated turns are told, say nothing of what was said.
    fn forget(&self, conversation: &mut Conversation) -> Result<(), Failure> {
        conversation.base.retain(|slice, _| *slice == sequence::SLICE);
        let open = self.stages.iter().map(|stage| stage.open(&self.codec, &conversation.name, None));
        conversation.slices = open.collect::<Result<_, _>>()?;
        Ok(())
    }

    /// The slices as they are to be written after the batch; none if nothing was folded.
    ///
    /// # Errors
    /// A slice does not fit its schema.
    pub fn close(&self, conversation: Conversation) -> Result<Vec<Write>, Failure> {
        let Conversation { name, sequence, slices, mut base, folded } = conversation;
        let Some(stamp) = folded else { return Ok(Vec::new()) };
        let mut writes = Vec::with_capacity(slices.len() + 1);
        let mut write = |stage: &'static str, bytes: Vec<u8>| {
            let (conversation, stage_name) = (name.clone(), stage.to_owned());
            let (current, previous) = (Version { stamp, bytes }, base.remove(stage));
            writes.push(Write { conversation, stage: stage_name, current, previous });
        };
        if self.first {
            let bytes = self.codec.encode(&sequence).map_err(|e| Failure::Slice {
                stage: sequence::SLICE,
                conversation: name.clone(),
                problem: e.to_string(),
            })?;
            write(sequence::SLICE, bytes);
        }
        for (stage, slice) in self.stages.iter().zip(&slices) {
            write(stage.name(), stage.close(&self.codec, &name, slice.as_ref())?);
        }
        Ok(writes)
    }
}
