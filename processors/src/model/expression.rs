//! What words express: the emotion model of `models/emotion`, an n-gram model and a linear head on the text's vector, fused.
//!
//! Promises: exactly `models/emotion/FORMAT.md`; sums run in a fixed order, so that results are equal bit for bit. Leaves
//! out: training, and what to do with a text that says nothing.

use schemas::{Ekman, GoEmotions, Provenance, Tier};

use super::card::Family;
use super::ngram::{BUCKETS, Normalised, sort};
use super::tensors::Tensors;
use super::{embed, encoder};
use crate::stage::Failure;
use crate::wide::{fetch, wide};

/// Emotions that the model knows.
pub const LABELS: usize = GoEmotions::LABELS.len();
/// Classes of the Ekman view.
pub const EKMAN: usize = Ekman::LABELS.len();

const NGRAM: &str = "ngram.safetensors";
const HEAD: &str = "head.safetensors";

/// Counts whose logarithm is at hand.
const COUNTED: usize = 64;

/// The emotion model.
#[derive(Debug)]
pub struct Expression {
    table: Table,
    /// 1 + ln(count), by count.
    frequencies: [f32; COUNTED],
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
            table: Table::new(&ngram.floats("idf", &[BUCKETS])?, &ngram.bytes("weight", &[BUCKETS, LABELS])?),
            frequencies: std::array::from_fn(frequency),
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
        let mut rows = text.buckets_where(|bucket| self.table.knows(bucket));
        for row in &mut rows {
            *row = self.table.row(*row);
            // Rows are far apart: they come near while they are sorted.
            fetch(&self.table.rows[*row as usize]);
        }
        let (sum, square) = weigh(&self.table.rows, &self.frequencies, &sort(rows));
        let scale = if square > 0.0 { 1.0 / square.sqrt() } else { 0.0 };
        std::array::from_fn(|label| self.bias[label] + sum[label] * scale * self.weight_scale[label])
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

/// What the n-grams weigh: only the buckets that training saw often enough, each in half a cache line.
#[derive(Debug)]
struct Table {
    /// A bit a bucket: whether it has a row.
    known: Vec<u64>,
    /// Rows before each word of `known`.
    before: Vec<u32>,
    rows: Vec<Row>,
}

#[derive(Debug, Clone, Copy)]
#[repr(C, align(32))]
struct Row {
    idf: f32,
    /// Steps of all labels.
    weight: [i8; LABELS],
}

impl Table {
    fn new(idf: &[f32], weight: &[i8]) -> Table {
        let count = idf.iter().filter(|idf| **idf != 0.0).count();
        let mut table = Table {
            known: Vec::with_capacity(BUCKETS / 64),
            before: Vec::with_capacity(BUCKETS / 64),
            rows: Vec::with_capacity(count),
        };
        for (idf, weight) in idf.chunks(64).zip(weight.chunks(64 * LABELS)) {
            table.before.push(table.rows.len() as u32);
            let mut known = 0;
            for (bit, (idf, weight)) in idf.iter().zip(weight.chunks_exact(LABELS)).enumerate() {
                if *idf != 0.0 {
                    known |= 1 << bit;
                    let weight = weight.try_into().expect("a chunk has a weight a label");
                    table.rows.push(Row { idf: *idf, weight });
                }
            }
            table.known.push(known);
        }
        table
    }

    fn knows(&self, bucket: u32) -> bool {
        self.known[bucket as usize / 64] >> (bucket % 64) & 1 == 1
    }

    /// The place of the row of a bucket that has one.
    fn row(&self, bucket: u32) -> u32 {
        let word = bucket as usize / 64;
        let lower = self.known[word] & ((1 << (bucket % 64)) - 1);
        self.before[word] + lower.count_ones()
    }
}

fn frequency(count: usize) -> f32 {
    1.0 + (count as f32).ln()
}

wide! {
    /// The sum of rows by their weight, a label, and the square of the weights' length. `met` is in order, a row as often
    /// as it was met.
    fn weigh(rows: &[Row], frequencies: &[f32; COUNTED], met: &[u32]) -> ([f32; LABELS], f32) {
        let (mut sum, mut square) = ([0f32; LABELS], 0f32);
        let mut place = 0;
        while place < met.len() {
            let (row, first) = (met[place], place);
            while place < met.len() && met[place] == row {
                place += 1;
            }
            let count = place - first;
            let row = &rows[row as usize];
            let x = row.idf * if count < COUNTED { frequencies[count] } else { frequency(count) };
            square += x * x;
            let mut label = 0;
            while label < LABELS {
                sum[label] += x * f32::from(row.weight[label]);
                label += 1;
            }
        }
        (sum, square)
    }

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
