//! The shipped family of the decoder, opened, with the list of what it must not say.
//!
//! Promises: the same seed, wishes and list give the same dreams, on processors whose arithmetic is the same; dreams of
//! one seed differ by number alone, so that more of them do not change the first. Leaves out: whose mood it is.

use std::path::Path;

use schemas::{Provenance, Tier};
use serde::Deserialize;

use super::blocked::{Admitted, BlockList};
use super::decoder::{Cached, Sizes};
use super::pieces::{LINE, Pieces, START};
use super::sampler::{self, Bounds, Decoder as _, Wishes};
use crate::model::card::Family;
use crate::model::runtime::{Runtime, Sessions};
use crate::stage::Failure;

const FAMILY: &str = "dreams";
const GRAPH: &str = "decoder.onnx";
const TOKENIZER: &str = "tokenizer.json";
const ABOUT_IT: &str = "decoder.json";

/// What the graph is like, and what is simpler than it.
#[derive(Debug, Deserialize)]
struct AboutIt {
    sizes: Sizes,
    /// Of 65,536 pieces of training, how many are this one; at least a little.
    frequencies: Vec<f32>,
}

/// Makes dreams.
#[derive(Debug)]
pub struct Dreamer {
    sessions: Sessions,
    pieces: Pieces,
    about: AboutIt,
    list: BlockList,
    bounds: Bounds,
    model: String,
    version: String,
}

impl Dreamer {
    /// Opens the family under `models`, with as many sessions as dreams are made at once.
    ///
    /// # Errors
    /// [`Failure::Model`].
    pub fn open(models: &Path, onnxruntime: &Path, sessions: usize, list: BlockList) -> Result<Dreamer, Failure> {
        let family = Family::open(models, FAMILY)?;
        let pieces = Pieces::parse(&family.read(TOKENIZER)?).map_err(|problem| family.failure(TOKENIZER, problem))?;
        let about: AboutIt =
            serde_json::from_slice(&family.read(ABOUT_IT)?).map_err(|problem| family.failure(ABOUT_IT, problem))?;
        if about.frequencies.len() != pieces.count() {
            return Err(family.failure(ABOUT_IT, "has another number of frequencies than there are pieces"));
        }
        let sessions = Sessions::open(Runtime::load(onnxruntime)?, &family, GRAPH, sessions)?;
        let (model, version) = (family.card().model.clone(), family.card().version.clone());
        Ok(Dreamer { sessions, pieces, about, list, bounds: Bounds::default(), model, version })
    }

    /// What made a dream.
    pub fn provenance(&self) -> Provenance {
        Provenance { model: self.model.clone(), version: self.version.clone(), tier: Tier::Full }
    }

    /// The list, which texts of others have to pass too.
    pub fn list(&self) -> &BlockList {
        &self.list
    }

    /// Whether this name steers.
    pub fn steers(&self, name: &str) -> bool {
        self.pieces.steering(name).is_some()
    }

    /// The `number`-th dream of a seed; none if nothing could be said that the list admits.
    ///
    /// # Errors
    /// [`Failure::Run`].
    pub fn dream(&self, wishes: &Wishes, seed: u64, number: u64) -> Result<Option<Admitted>, Failure> {
        self.sessions.with(|session| {
            let mut decoder = Cached { session, sizes: self.about.sizes };
            sampler::dream(&mut decoder, &self.pieces, &self.list, wishes, &self.bounds, stream(seed, number))
        })
    }

    /// Bits of a line and of its end, from the start alone, as the decoder and as the frequencies of single pieces have it.
    ///
    /// # Errors
    /// [`Failure::Run`].
    pub fn bits(&self, line: &str) -> Result<[f64; 2], Failure> {
        let whole: f64 = self.about.frequencies.iter().map(|f| f64::from(*f)).sum();
        self.sessions.with(|session| {
            let mut decoder = Cached { session, sizes: self.about.sizes };
            let (mut state, mut bits, mut last) = (decoder.begin(), [0.0; 2], START);
            for piece in self.pieces.encode(line).into_iter().chain([LINE]) {
                let logits = decoder.read(&mut state, last)?;
                bits[0] += surprise(&logits, piece);
                bits[1] -= (f64::from(self.about.frequencies[piece as usize]) / whole).log2();
                last = piece;
            }
            Ok(bits)
        })
    }

    /// The pieces of a line, without start and end.
    pub fn pieces(&self, line: &str) -> Vec<u32> {
        self.pieces.encode(line)
    }
}

/// −log2 of a piece's probability.
fn surprise(logits: &[f32], piece: u32) -> f64 {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let whole: f64 = logits.iter().map(|z| f64::from(z - top).exp()).sum();
    (whole.ln() - f64::from(logits[piece as usize] - top)) / std::f64::consts::LN_2
}

/// Where the draws of a dream begin: a step of SplitMix64 of each number, so that neighbours have nothing in common.
fn stream(seed: u64, number: u64) -> u64 {
    let mixed = |x: u64| {
        let z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    mixed(mixed(seed).wrapping_add(number))
}

#[cfg(test)]
#[path = "dreamer_tests.rs"]
mod tests;
