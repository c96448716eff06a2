//! Valence, arousal and dominance: linear models on the vectors, the probabilities and the n-grams of a text (`models/vad`).
//!
//! Promises: one file with everything that was trained on share-alike data; without it valence, arousal and dominance come
//! from the 28 emotions. Sums run in a fixed order. Leaves out: training.

use schemas::{Embedding, GoEmotions, Provenance, Tier};

use super::card::Family;
use super::expression::LABELS;
use super::tensors::Tensors;
use super::weigher::Weigher;
use super::{embed, encoder};
use crate::stage::Failure;

const FILE: &str = "vad.safetensors";
/// Valence, arousal, dominance.
pub const AXES: usize = 3;

/// The model.
#[derive(Debug)]
pub struct Vad {
    ngram: Weigher<AXES>,
    full: Head,
    fast: Head,
    model: String,
    version: String,
}

/// For each axis a weight for every input: the vector that the emotion model reads, the embedding where it is another one,
/// and the 28 probabilities.
#[derive(Debug)]
struct Head {
    weight: Vec<f32>,
    bias: [f32; AXES],
    /// What the n-grams' own answer counts.
    share: [f32; AXES],
}

impl Vad {
    /// Loads the family's file.
    ///
    /// # Errors
    /// [`Failure::Model`].
    pub fn open(family: &Family) -> Result<Vad, Failure> {
        let bytes = family.read(FILE)?;
        let tensors = Tensors::open(family, FILE, &bytes)?;
        let head = |tier: Tier, inputs: usize| {
            Ok::<_, Failure>(Head {
                weight: tensors.floats(&format!("{}.weight", tier.name()), &[AXES, inputs])?,
                bias: tensors.labels(&format!("{}.bias", tier.name()))?,
                share: tensors.labels(&format!("{}.share", tier.name()))?,
            })
        };
        Ok(Vad {
            ngram: Weigher::open(&tensors, "ngram.")?,
            full: head(Tier::Full, 2 * encoder::DIMENSION + LABELS)?,
            fast: head(Tier::Fast, embed::DIMENSION + LABELS)?,
            model: family.card().model.clone(),
            version: family.card().version.clone(),
        })
    }

    /// Which model it is.
    pub fn provenance(&self, tier: Tier) -> Provenance {
        Provenance { model: self.model.clone(), version: self.version.clone(), tier }
    }

    /// What the n-grams alone say; `buckets` in rising order, each with how often it was met.
    pub fn words(&self, buckets: &[(u32, u32)]) -> [f32; AXES] {
        self.ngram.sums(buckets)
    }

    /// Valence, arousal and dominance of a text, each −1 to 1. `words` is what its n-grams say, `vector` what the emotion model of the tier reads, of the
    /// tier's dimension.
    pub fn of(
        &self,
        tier: Tier,
        words: &[f32; AXES],
        embedding: &Embedding,
        vector: &[f32],
        probabilities: &GoEmotions,
    ) -> [f32; AXES] {
        let head = match tier {
            Tier::Full => &self.full,
            Tier::Fast => &self.fast,
        };
        let mut inputs = vector.to_vec();
        if tier == Tier::Full {
            inputs.extend(embedding.components());
        }
        inputs.extend(probabilities.to_array());
        debug_assert_eq!(inputs.len() * AXES, head.weight.len(), "the vector is the tier's");
        std::array::from_fn(|axis| {
            let weights = &head.weight[axis * inputs.len()..][..inputs.len()];
            let sum = weights.iter().zip(&inputs).fold(head.bias[axis], |sum, (weight, x)| sum + weight * x);
            (sum + head.share[axis] * words[axis]).clamp(-1.0, 1.0)
        })
    }
}
