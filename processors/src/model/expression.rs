//! What words express: the emotion model of `models/emotion`, an n-gram model and a linear head on the text's vector, fused.
//!
//! Promises: exactly `models/emotion/FORMAT.md`; sums run in a fixed order, so that results are equal bit for bit. Leaves
//! out: training, and what to do with a text that says nothing.

use schemas::{Ekman, GoEmotions, Provenance, Tier};

use super::card::Family;
use super::tensors::Tensors;
use super::weigher::Weigher;
use super::{embed, encoder};
use crate::stage::Failure;
use crate::wide::wide;

/// Emotions that the model knows.
pub const LABELS: usize = GoEmotions::LABELS.len();
/// Classes of the Ekman view.
pub const EKMAN: usize = Ekman::LABELS.len();

const NGRAM: &str = "ngram.safetensors";
const HEAD: &str = "head.safetensors";

/// The emotion model.
#[derive(Debug)]
pub struct Expression {
    ngram: Weigher<LABELS>,
    full: Head,
    fast: Head,
    model: String,
    version: String,
}

/// What a tier adds to the n-gram model, and where its labels begin.
#[derive(Debug)]
pub struct Head {
    /// For each component of the vector, the weights of all labels: a label is a lane.
    weight: Vec<[f32; LABELS]>,
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
            ngram: Weigher::open(&ngram, "")?,
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

    /// What the n-grams alone say, in log-odds a label; `buckets` as [`Normalised::buckets`] gives them.
    ///
    /// [`Normalised::buckets`]: super::ngram::Normalised::buckets
    pub fn ngram_logits(&self, buckets: &[(u32, u32)]) -> [f32; LABELS] {
        self.ngram.sums(buckets)
    }

    /// Probabilities from the n-gram logits and the vector of the same text in the same tier: what the encoder says that it
    /// feels like, or the static embedding as it travels. `None` if the vector does not have the tier's dimension.
    pub fn probabilities(&self, tier: Tier, ngram: &[f32; LABELS], vector: &[f32]) -> Option<GoEmotions> {
        let head = self.head(tier);
        (vector.len() == head.weight.len()).then(|| {
            let logits = head.logits(vector);
            GoEmotions::from_array(std::array::from_fn(|label| {
                let fusion = &head.fusion[label * 3..label * 3 + 3];
                sigmoid(fusion[0] * ngram[label] + fusion[1] * logits[label] + fusion[2])
            }))
        })
    }
}

wide! {
    /// For each label the sum of its weights times the components.
    fn dots(weight: &[[f32; LABELS]], vector: &[f32]) -> [f32; LABELS] {
        // A sum of floats begins with -0.0, which leaves every first summand as it is.
        let mut sum = [-0.0f32; LABELS];
        for (weight, x) in weight.iter().zip(vector) {
            let mut label = 0;
            while label < LABELS {
                sum[label] += weight[label] * *x;
                label += 1;
            }
        }
        sum
    }
}

impl Head {
    fn open(tensors: &Tensors<'_>, tier: Tier, dimension: usize) -> Result<Head, Failure> {
        let name = |tensor: &str| format!("{}.{tensor}", tier.name());
        let weight = tensors.floats(&name("weight"), &[LABELS, dimension])?;
        Ok(Head {
            weight: (0..dimension).map(|d| std::array::from_fn(|label| weight[label * dimension + d])).collect(),
            bias: tensors.labels(&name("bias"))?,
            fusion: tensors.floats(&name("fusion"), &[LABELS, 3])?,
            threshold: tensors.labels(&name("threshold"))?,
            ekman_threshold: tensors.labels(&name("ekman_threshold"))?,
        })
    }

    fn logits(&self, vector: &[f32]) -> [f32; LABELS] {
        let dots = dots(&self.weight, vector);
        std::array::from_fn(|label| self.bias[label] + dots[label])
    }
}

pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}
