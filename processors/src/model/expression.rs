//! What words express: the emotion model of `models/emotion`, an n-gram model and a linear head on the embedding, fused.
//!
//! Promises: exactly `models/emotion/FORMAT.md`; sums run in a fixed order, so that results are equal bit for bit. Leaves
//! out: training, and what to do with a text that says nothing.

use schemas::{Ekman, Embedding, GoEmotions, Provenance, Tier};

use super::card::Family;
use super::ngram::{BUCKETS, Normalised};
use super::tensors::Tensors;
use super::{embed, encoder};
use crate::stage::Failure;

/// Emotions that the model knows.
pub const LABELS: usize = GoEmotions::LABELS.len();
/// Classes of the Ekman view.
pub const EKMAN: usize = Ekman::LABELS.len();

const NGRAM: &str = "ngram.safetensors";
const HEAD: &str = "head.safetensors";

/// The emotion model.
#[derive(Debug)]
pub struct Expression {
    idf: Vec<f32>,
    /// [`LABELS`] steps a bucket.
    weight: Vec<i8>,
    weight_scale: [f32; LABELS],
    bias: [f32; LABELS],
    full: Head,
    fast: Head,
    model: String,
    version: String,
}

/// What a tier adds to the n-gram model, and where its labels begin.
#[derive(Debug)]
pub struct Head {
    dimension: usize,
    /// `dimension` weights a label.
    weight: Vec<f32>,
    bias: [f32; LABELS],
    /// Weight of the n-gram logit, of the head's logit, and a bias, a label.
    fusion: Vec<f32>,
    /// Probability from which a label is present.
    pub threshold: [f32; LABELS],
    /// As `threshold`, of the Ekman view.
    pub ekman_threshold: [f32; EKMAN],
}

impl Expression {
    /// Loads the family's files.
    ///
    /// # Errors
    /// [`Failure::Model`].
    pub fn open(family: &Family) -> Result<Expression, Failure> {
        let bytes = family.read(NGRAM)?;
        let ngram = Tensors::open(family, NGRAM, &bytes)?;
        let heads = family.read(HEAD)?;
        let heads = Tensors::open(family, HEAD, &heads)?;
        Ok(Expression {
            idf: ngram.floats("idf", &[BUCKETS])?,
            weight: ngram.bytes("weight", &[BUCKETS, LABELS])?,
            weight_scale: ngram.labels("weight_scale")?,
            bias: ngram.labels("bias")?,
            full: Head::open(&heads, Tier::Full, encoder::DIMENSION)?,
            fast: Head::open(&heads, Tier::Fast, embed::DIMENSION)?,
            model: family.card().model.clone(),
            version: family.card().version.clone(),
        })
    }

    /// What stands in the provenance of its parts.
    pub fn provenance(&self, tier: Tier) -> Provenance {
        Provenance { model: self.model.clone(), version: self.version.clone(), tier }
    }

    /// The head of a tier.
    pub fn head(&self, tier: Tier) -> &Head {
        match tier {
            Tier::Full => &self.full,
            Tier::Fast => &self.fast,
        }
    }

    /// What the n-grams alone say, in log-odds a label.
    pub fn ngram_logits(&self, text: &Normalised) -> [f32; LABELS] {
        let mut sum = [0f32; LABELS];
        let mut square = 0f32;
        for (bucket, count) in text.buckets() {
            let idf = self.idf[bucket as usize];
            if idf == 0.0 {
                continue;
            }
            let x = (1.0 + (count as f32).ln()) * idf;
            square += x * x;
            let start = bucket as usize * LABELS;
            for (sum, step) in sum.iter_mut().zip(&self.weight[start..start + LABELS]) {
                *sum += x * f32::from(*step);
            }
        }
        let scale = if square > 0.0 { 1.0 / square.sqrt() } else { 0.0 };
        std::array::from_fn(|label| self.bias[label] + sum[label] * scale * self.weight_scale[label])
    }

    /// Probabilities from the n-gram logits and the embedding of the same text in the same tier; `None` if the embedding
    /// does not have the tier's dimension.
    pub fn probabilities(&self, tier: Tier, ngram: &[f32; LABELS], embedding: &Embedding) -> Option<GoEmotions> {
        let head = self.head(tier);
        (embedding.values.len() == head.dimension).then(|| {
            let logits = head.logits(embedding);
            GoEmotions::from_array(std::array::from_fn(|label| {
                let fusion = &head.fusion[label * 3..label * 3 + 3];
                sigmoid(fusion[0] * ngram[label] + fusion[1] * logits[label] + fusion[2])
            }))
        })
    }
}

impl Head {
    fn open(tensors: &Tensors<'_>, tier: Tier, dimension: usize) -> Result<Head, Failure> {
        let name = |tensor: &str| format!("{}.{tensor}", tier.name());
        Ok(Head {
            dimension,
            weight: tensors.floats(&name("weight"), &[LABELS, dimension])?,
            bias: tensors.labels(&name("bias"))?,
            fusion: tensors.floats(&name("fusion"), &[LABELS, 3])?,
            threshold: tensors.labels(&name("threshold"))?,
            ekman_threshold: tensors.labels(&name("ekman_threshold"))?,
        })
    }

    fn logits(&self, embedding: &Embedding) -> [f32; LABELS] {
        let x: Vec<f32> = embedding.components().collect();
        let dot = |weights: &[f32]| -> f32 { weights.iter().zip(&x).map(|(w, x)| w * x).sum() };
        std::array::from_fn(|label| {
            self.bias[label] + dot(&self.weight[label * self.dimension..(label + 1) * self.dimension])
        })
    }
}

pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}
