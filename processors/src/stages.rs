//! The stages, in the order in which turns pass them.
//!
//! To add one: a file under `stages/`, a line in [`all`] and [`ORDER`], an optional field in the schema.

mod coherence;
mod dialogue;
mod emotion;
mod encode;
mod memo;
mod memory;
mod personality;
pub mod self_harm;
mod synesthesia;

use std::sync::Arc;

use schemas::{Encoding, Skipped, Turn};

use crate::language::is_surely_foreign;
use crate::model::Models;
use crate::model::ngram::Normalised;
use crate::stage::AnyStage;

pub use coherence::{Coherences, DECAY, Followed, RECENT_MAX as COHERENCE_RECENT_MAX, density, offline};
pub use dialogue::{Dialogues, OPEN_QUESTIONS_MAX, SLOTS_MAX};
pub use emotion::{
    Emotions, HALF_LIFE_MS, HALF_LIFE_TURNS, PLEASANT_MIN, RECENT_HALF_LIFE_MS, RECENT_HALF_LIFE_TURNS, TENSE_MIN,
    Turning, from_emotions, intensity, tension, valence,
};
pub use encode::{Encode, RECENT_MAX, SPACES_MAX};
pub use memory::{Memories, ROOMS_MAX, TERMS_MAX as ROOM_TERMS_MAX};
pub use personality::{MODELS_MAX, PERSONS_MAX, Personalities, WORDS_MIN};
pub use synesthesia::{
    CONTRAST_MIN, DYNAMICS, Feeling, MODES, SHARE, STEP_MAX, STRETCH, SWATCHES, Synesthesias, TEMPO_BPM, TIMBRES, srgb,
};

/// Names of all stages, in order.
pub const ORDER: &[&str] = &["encode", "emotion", "personality", "dialogue", "coherence", "memory", "synesthesia"];

/// All stages, in the order of [`ORDER`].
pub fn all(models: &Arc<Models>) -> Vec<Box<dyn AnyStage>> {
    vec![
        Box::new(Encode::new(Arc::clone(models))),
        Box::new(Emotions::new(Arc::clone(models))),
        Box::new(Personalities::new(Arc::clone(models))),
        Box::new(Dialogues::new(Arc::clone(models))),
        Box::new(Coherences::new(Arc::clone(models))),
        Box::new(Memories::new(Arc::clone(models))),
        Box::new(Synesthesias::new(Arc::clone(models))),
    ]
}

/// Why a stage left its part absent: words that stay as they are.
pub mod reason {
    /// Nothing is left of the text without white space and invisible characters.
    pub const EMPTY_TEXT: &str = "empty_text";
    /// The stage builds on the part of `encode`, and there is none.
    pub const NO_ENCODING: &str = "no_encoding";
    /// The sender did not consent to being profiled, or withdrew it.
    pub const NO_CONSENT: &str = "no_consent";
    /// The source names no sender, or a bot speaks.
    pub const NO_PERSON: &str = "no_person";
    /// The stage's model was trained for another encoder than the one that made the turn's embedding.
    pub const OTHER_ENCODER: &str = "other_encoder";
    /// The text is surely in a language that the stage's model does not read.
    pub const UNSUPPORTED_LANGUAGE: &str = "unsupported_language";
}

/// Whether a text is surely in a language that the models do not read.
fn is_foreign(encoding: &Encoding) -> bool {
    let language = encoding.language.as_deref().zip(encoding.language_confidence);
    language.is_some_and(|(code, confidence)| is_surely_foreign(code, confidence))
}

/// The hashed n-grams of a turn's text: those that stage `encode` left in the same process, or counted here.
fn grams(turn: &Turn) -> Arc<[(u32, u32)]> {
    let left = turn.encoding.as_ref().and_then(|encoding| encoding.grams.clone());
    left.unwrap_or_else(|| Normalised::of(&turn.text).buckets().into())
}

/// Notes, once a stage, why its part is absent; `None` takes an older note away.
fn note(turn: &mut Turn, stage: &'static str, reason: Option<&'static str>) {
    turn.skipped.retain(|skipped| skipped.stage != stage);
    turn.skipped.extend(reason.map(|reason| Skipped { stage: stage.to_owned(), reason: reason.to_owned() }));
}

#[cfg(test)]
pub(crate) mod tests;
