//! The embeddings of the fast tier: the mean of one stored vector a token.
//!
//! Promises: tokens of the family's tokenizer without special ones, the first [`TOKENS_MAX`], the unknown token left out;
//! the mean of their rows, with length one. A text without a known token gets the zero vector (`models/static`).

use schemas::{Embedding, Provenance, Tier};

use super::card::Family;
use super::tensors::Tensors;
use super::wordpiece::WordPiece;
use crate::stage::Failure;
use crate::wide::{fetch, wide};

/// Components of an embedding.
pub const DIMENSION: usize = 256;
/// Steps that a processor brings near at once, and sums that it holds at once.
const LINE: usize = 64;
/// Squares that are summed up beside each other.
const LANES: usize = 8;
/// Tokens that are read of a text.
pub const TOKENS_MAX: usize = 512;

const TABLE: &str = "static.safetensors";
const TOKENIZER: &str = "tokenizer.json";

/// One vector a token.
#[derive(Debug)]
pub struct WordVectors {
    tokenizer: WordPiece,
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
        let tokenizer = WordPiece::open(family, TOKENIZER)?;
        let bytes = family.read(TABLE)?;
        let tensors = Tensors::open(family, TABLE, &bytes)?;
        let rows = tensors.rows("embeddings")?;
        let words = tokenizer.ids();
        if words > rows {
            return Err(family.failure(TABLE, format!("has {rows} rows, its tokenizer knows {words} tokens")));
        }
        Ok(WordVectors {
            tokenizer,
            steps: tensors.bytes("embeddings", &[rows, DIMENSION])?,
            scales: tensors.floats("scale", &[rows])?,
            model: family.card().model.clone(),
            version: family.card().version.clone(),
        })
    }

    fn row(&self, token: u32) -> &[i8] {
        &self.steps[token as usize * DIMENSION..][..DIMENSION]
    }

    /// What stands in the provenance of its parts.
    pub fn provenance(&self) -> Provenance {
        Provenance { model: self.model.clone(), version: self.version.clone(), tier: Tier::Fast }
    }

    /// The embedding of a text before it is quantised: length one, or zero.
    pub fn vector(&self, text: &str) -> [f32; DIMENSION] {
        let tokens = self.tokenizer.tokens(text, TOKENS_MAX);
        // Rows are far apart: all of them come near before the first is read.
        for token in &tokens {
            self.row(*token).chunks(LINE).for_each(|line| fetch(&line[0]));
        }
        mean(&self.steps, &self.scales, &tokens, self.tokenizer.unknown())
    }

    /// How much a word tells: the length of the mean of its tokens' rows, which are the longer the seldomer the token.
    pub fn weight(&self, word: &str) -> f32 {
        let tokens = self.tokenizer.tokens(word, TOKENS_MAX);
        let known: Vec<u32> = tokens.into_iter().filter(|token| *token != self.tokenizer.unknown()).collect();
        let component = |d: usize| -> f32 {
            let steps = known.iter().map(|token| f32::from(self.row(*token)[d]) * self.scales[*token as usize]);
            steps.sum::<f32>() / known.len().max(1) as f32
        };
        (0..DIMENSION).map(|d| component(d).powi(2)).sum::<f32>().sqrt()
    }

    /// The embedding of a text, as it travels.
    pub fn embed(&self, text: &str) -> Embedding {
        Embedding::quantise(&self.vector(text))
    }
}

wide! {
    /// The mean of the tokens' rows, the unknown one left out, with length one.
    fn mean(steps: &[i8], scales: &[f32], tokens: &[u32], unknown: u32) -> [f32; DIMENSION] {
        let (mut mean, mut count) = ([0f32; DIMENSION], 0u16);
        let mut begin = 0;
        while begin < DIMENSION {
            // So many sums stay in registers.
            let mut sum = [0f32; LINE];
            count = 0;
            for token in tokens {
                if *token == unknown {
                    continue;
                }
                let row = *token as usize;
                let scale = scales[row];
                let steps = &steps[row * DIMENSION + begin..][..LINE];
                let mut d = 0;
                while d < LINE {
                    sum[d] += f32::from(steps[d]) * scale;
                    d += 1;
                }
                count += 1;
            }
            mean[begin..begin + LINE].copy_from_slice(&sum);
            begin += LINE;
        }
        let count = f32::from(count.max(1));
        let mut squares = [0f64; LANES];
        let mut d = 0;
        while d < DIMENSION {
            mean[d] /= count;
            squares[d % LANES] += f64::from(mean[d]) * f64::from(mean[d]);
            d += 1;
        }
        let length = squares.iter().sum::<f64>().sqrt() as f32;
        if length > 0.0 {
            for x in &mut mean {
                *x /= length;
            }
        }
        mean
    }
}
