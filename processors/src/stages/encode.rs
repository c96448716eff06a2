//! Stage `encode`: the text's place in an embedding space, its language, and whether words of self-harm were said lately.
//!
//! Promises: full tier by the transformer, fast tier by static embeddings, each a pure function of the text; a text with
//! nothing in it is skipped as `empty_text`. The slice holds the last embeddings by model, [`RECENT_MAX`] of each of the
//! [`SPACES_MAX`] models that spoke last, so that vectors of different models are never mixed. A text of the fast tier
//! without a known token has the zero vector, which says nothing and is not folded. A turn with words of self-harm
//! ([`self_harm`]) and the turns after it carry [`SELF_HARM_WORDS`], [`self_harm::FLAGGED_TURNS`] in all, whoever speaks;
//! later stages and readers act on that. Leaves out: what vectors mean.

use std::num::NonZeroUsize;
use std::sync::Arc;

use schemas::slice::{EncodeSlice, Space};
use schemas::turn::SELF_HARM_WORDS;
use schemas::{Embedding, Encoding, Tier, Turn};

use super::memo::Memo;
use super::{note, reason, self_harm};
use crate::language::{self, Detected};
use crate::model::Models;
use crate::model::ngram::{self, Normalised};
use crate::stage::{Failure, Stage};

/// Embeddings kept of each model.
pub const RECENT_MAX: usize = 16;
/// Models whose embeddings are kept: one a tier.
pub const SPACES_MAX: usize = 2;

const NAME: &str = "encode";
/// Texts that a core of the fast tier embeds at a time, so that starting a thread is worth it.
const FAST_GRAIN: NonZeroUsize = NonZeroUsize::new(16).expect("it is not zero");
/// Size of a remembered value, in bytes: the vector, its owner, and the language; in the full tier a second vector.
const VALUE_BYTES: [usize; 2] = [2048, 512];

/// The stage.
#[derive(Debug)]
pub struct Encode {
    models: Arc<Models>,
    full: Memo<Value>,
    fast: Memo<Value>,
}

type Value = (Embedding, Option<Arc<[f32]>>, Option<Detected>);

impl Encode {
    /// The stage on loaded models.
    pub fn new(models: Arc<Models>) -> Encode {
        let [full, fast] = VALUE_BYTES.map(Memo::new);
        Encode { models, full, fast }
    }

    fn values(&self, tier: Tier, texts: &[&str]) -> Result<Vec<Value>, Failure> {
        match tier {
            Tier::Full => self.full.values(texts, |text| text, |missing| self.full_values(missing)),
            Tier::Fast => self.fast.values(texts, |text| text, |missing| self.fast_values(missing)),
        }
    }

    fn full_values(&self, texts: &[&str]) -> Result<Vec<Value>, Failure> {
        let encoded = self.models.encoder().encode(texts, self.models.cores())?;
        let languages = self.models.cores().map(texts, FAST_GRAIN, |text| language::detect(text));
        Ok(encoded.into_iter().zip(languages).map(|(said, l)| (said.embedding, Some(said.feeling), l)).collect())
    }

    fn fast_values(&self, texts: &[&str]) -> Result<Vec<Value>, Failure> {
        let value = |text: &&str| (self.models.words().embed(text), None, language::detect(text));
        Ok(self.models.cores().map(texts, FAST_GRAIN, value))
    }
}

impl Stage for Encode {
    type Slice = EncodeSlice;

    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, turns: &mut [Turn]) -> Result<(), Failure> {
        for turn in &mut *turns {
            turn.encoding = None;
            note(turn, NAME, ngram::is_blank(&turn.text).then_some(reason::EMPTY_TEXT));
        }
        for tier in [Tier::Full, Tier::Fast] {
            let mine = |turn: &Turn| turn.tier.unwrap_or(Tier::Full) == tier && !ngram::is_blank(&turn.text);
            let places: Vec<usize> = (0..turns.len()).filter(|i| mine(&turns[*i])).collect();
            let texts: Vec<&str> = places.iter().map(|i| turns[*i].text.as_str()).collect();
            let values = self.values(tier, &texts)?;
            let grams = self.models.cores().map(&texts, FAST_GRAIN, |text| Arc::from(Normalised::of(text).buckets()));
            let provenance = self.models.embedder(tier);
            for ((place, grams), (embedding, feeling, detected)) in places.into_iter().zip(grams).zip(values) {
                turns[place].encoding = Some(Encoding {
                    provenance: provenance.clone(),
                    embedding,
                    language: detected.map(|d| d.code.to_owned()),
                    language_confidence: detected.map(|d| d.confidence),
                    feeling,
                    grams: Some(grams),
                });
            }
        }
        Ok(())
    }

    fn fold(&self, slice: &mut EncodeSlice, turn: &mut Turn) -> Result<(), Failure> {
        if let Some(encoding) = turn.encoding.as_ref().filter(|encoding| encoding.embedding.scale > 0.0) {
            let model = format!("{}@{}", encoding.provenance.model, encoding.provenance.version);
            remember(slice, model, encoding.embedding.clone());
        }
        flag(slice, turn);
        Ok(())
    }
}

/// Marks a turn in which, or lately before which, words of self-harm were said. The text alone says so, so that a context
/// that is rebuilt from enriched turns is the same.
fn flag(slice: &mut EncodeSlice, turn: &mut Turn) {
    if self_harm::stands_in(&turn.text) {
        slice.flagged = self_harm::FLAGGED_TURNS;
    }
    turn.flags.retain(|flag| flag != SELF_HARM_WORDS);
    if slice.flagged > 0 {
        turn.flags.push(SELF_HARM_WORDS.to_owned());
        slice.flagged -= 1;
    }
}

/// Appends an embedding to its model's space, which becomes the last; what is beyond the bounds is forgotten, the oldest
/// first.
fn remember(slice: &mut EncodeSlice, model: String, embedding: Embedding) {
    let known = slice.spaces.iter().position(|space| space.model == model);
    let mut space = known.map_or(Space { model, recent: Vec::new() }, |place| slice.spaces.remove(place));
    space.recent.push(embedding);
    forget(&mut space.recent, RECENT_MAX);
    slice.spaces.push(space);
    forget(&mut slice.spaces, SPACES_MAX);
}

/// Keeps the last `kept` items.
fn forget<T>(items: &mut Vec<T>, kept: usize) {
    items.drain(..items.len().saturating_sub(kept));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flag_stands_for_so_many_turns_and_is_folded_again_alike() {
        let mut slice = EncodeSlice::default();
        let mut said = |text: &str| {
            let mut turn = Turn::message("s", "c", "p", "1", text, 0);
            flag(&mut slice, &mut turn);
            let mut again = (slice.clone(), turn.clone());
            again.0.flagged += i32::from(!turn.flags.is_empty());
            flag(&mut again.0, &mut again.1);
            assert_eq!((&again.0, &again.1), (&slice, &turn), "an enriched turn is folded as it was");
            !turn.flags.is_empty()
        };
        assert!(!said("hello"));
        assert!(said("I want to die"));
        let after = (1..self_harm::FLAGGED_TURNS).filter(|_| said("and how are you?")).count();
        assert_eq!(after as i32, self_harm::FLAGGED_TURNS - 1);
        assert!(!said("and now?"));
    }

    #[test]
    fn slice_keeps_the_last_embeddings_of_the_last_two_models() {
        let mut slice = EncodeSlice::default();
        let vector = |i: usize| Embedding::quantise(&[i as f32, 1.0]);
        for i in 0..40 {
            remember(&mut slice, format!("model{}@1", i % 2), vector(i));
        }
        let kept: Vec<_> = slice.spaces.iter().map(|s| (s.model.as_str(), s.recent.len())).collect();
        assert_eq!(kept, [("model0@1", RECENT_MAX), ("model1@1", RECENT_MAX)]);
        assert_eq!(slice.spaces[1].recent[RECENT_MAX - 1], vector(39));
        remember(&mut slice, "model2@1".to_owned(), vector(40));
        let kept: Vec<_> = slice.spaces.iter().map(|s| (s.model.as_str(), s.recent.len())).collect();
        assert_eq!(kept, [("model1@1", RECENT_MAX), ("model2@1", 1)]);
    }
}
