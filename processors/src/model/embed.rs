//! The embeddings of the fast tier: the mean of one stored vector a token.
//!
//! Promises: tokens of the family's tokenizer without special ones, the first [`TOKENS_MAX`], the unknown token left out;
//! the mean of their rows, with length one. A text without a known token gets the zero vector (`models/static`).

use schemas::{Embedding, Provenance, Tier};
use tokenizers::Tokenizer;

use super::card::Family;
use super::encoder::read_tokenizer;
use super::tensors::Tensors;
use crate::stage::Failure;

/// Components of an embedding.
pub const DIMENSION: usize = 256;
/// Tokens that are read of a text.
pub const TOKENS_MAX: usize = 512;

const TABLE: &str = "static.safetensors";
const TOKENIZER: &str = "tokenizer.json";
const UNKNOWN: &str = "[UNK]";

/// One vector a token.
#[derive(Debug)]
pub struct WordVectors {
    tokenizer: Tokenizer,
    unknown: Option<u32>,
    /// [`DIMENSION`] steps a token.
    steps: Vec<i8>,
    /// Value of one step, a token.
    scales: Vec<f32>,
    model: String,
    version: String,
}

impl WordVectors {
    /// Loads the family's table and tokenizer.
    ///
    /// # Errors
    /// [`Failure::Model`].
    pub fn open(family: &Family) -> Result<WordVectors, Failure> {
        let tokenizer = read_tokenizer(family, TOKENIZER, None)?;
        let bytes = family.read(TABLE)?;
        let tensors = Tensors::open(family, TABLE, &bytes)?;
        let rows = tensors.rows("embeddings")?;
        let words = tokenizer.get_vocab_size(true);
        if words > rows {
            return Err(family.failure(TABLE, format!("has {rows} rows, its tokenizer knows {words} tokens")));
        }
        Ok(WordVectors {
            unknown: tokenizer.token_to_id(UNKNOWN),
            tokenizer,
            steps: tensors.bytes("embeddings", &[rows, DIMENSION])?,
            scales: tensors.floats("scale", &[rows])?,
            model: family.card().model.clone(),
            version: family.card().version.clone(),
        })
    }

    /// What stands in the provenance of its parts.
    pub fn provenance(&self) -> Provenance {
        Provenance { model: self.model.clone(), version: self.version.clone(), tier: Tier::Fast }
    }

    /// The embedding of a text before it is quantised: length one, or zero.
    ///
    /// # Errors
    /// [`Failure::Run`]: the tokenizer gave up, which its files rule out for any text.
    pub fn vector(&self, text: &str) -> Result<[f32; DIMENSION], Failure> {
        let encoding = self.tokenizer.encode_fast(text, false);
        let failure = |problem: String| Failure::Run { stage: "encode", problem };
        let encoding = encoding.map_err(|e| failure(e.to_string()))?;
        let known = encoding.get_ids().iter().take(TOKENS_MAX).filter(|id| Some(**id) != self.unknown);
        let (mut mean, mut count) = ([0f32; DIMENSION], 0u16);
        for token in known {
            let row = *token as usize;
            let scale = *self.scales.get(row).ok_or_else(|| failure(format!("token {row} has no vector")))?;
            let start = row * DIMENSION;
            for (sum, step) in mean.iter_mut().zip(&self.steps[start..start + DIMENSION]) {
                *sum += f32::from(*step) * scale;
            }
            count += 1;
        }
        // In the order of the training code, so that roundings, and with them the quantised steps, agree with it.
        mean.iter_mut().for_each(|x| *x /= f32::from(count.max(1)));
        let length = mean.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt() as f32;
        if length > 0.0 {
            mean.iter_mut().for_each(|x| *x /= length);
        }
        Ok(mean)
    }

    /// The embedding of a text, as it travels.
    ///
    /// # Errors
    /// As [`WordVectors::vector`].
    pub fn embed(&self, text: &str) -> Result<Embedding, Failure> {
        Ok(Embedding::quantise(&self.vector(text)?))
    }
}
