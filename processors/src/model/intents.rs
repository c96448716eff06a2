//! Heads over a text's embedding and n-grams: one label of many, with its probability (`models/dialogue/FORMAT.md`).
//!
//! Promises: a pure function of the embedding as it travels and the n-grams; sums run in a fixed order. Leaves out: which
//! sets are in force (`sets.rs`), and sets that an operator names by examples (`examples.rs`).

use schemas::{Embedding, Tier};
use serde::Deserialize;

use super::card::Family;
use super::ngram::BUCKETS;
use super::tensors::Tensors;
use super::weigher::{Places, frequency};
use super::{embed, encoder};
use crate::stage::Failure;
use crate::wide::{fetch, wide};

/// Most labels of a head: a damaged file must not ask for more.
pub const LABELS_MAX: usize = 1000;

/// What a head says of a text.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scored {
    /// Index of the most probable label.
    pub label: usize,
    /// Its probability, 0 to 1.
    pub probability: f32,
    /// Whether the probability reaches the threshold.
    pub in_scope: bool,
}

/// A file of labels.
#[derive(Debug, Deserialize)]
struct Labels {
    labels: Vec<String>,
}

/// Reads the labels of a head, in the order of its columns.
///
/// # Errors
/// [`Failure::Model`].
pub(super) fn labels(family: &Family, file: &str) -> Result<Vec<String>, Failure> {
    let Labels { labels } = serde_json::from_slice(&family.read(file)?).map_err(|e| family.failure(file, e))?;
    if labels.is_empty() || labels.len() > LABELS_MAX {
        return Err(family.failure(file, format!("has {} labels, expected 1 to {LABELS_MAX}", labels.len())));
    }
    Ok(labels)
}

/// A linear head on the embedding of a tier and the n-grams.
#[derive(Debug)]
pub struct Head {
    /// Of the columns; there is one more if the head knows texts that are none of them.
    labels: usize,
    dimension: usize,
    /// For each component of the embedding the weights of all columns.
    weight: Rows<f32>,
    bias: Vec<f32>,
    grams: Grams,
    prototypes: Option<Prototypes>,
    threshold: f32,
}

impl Head {
    /// Reads the head of a tier with so many labels.
    ///
    /// # Errors
    /// [`Failure::Model`].
    pub(super) fn open(family: &Family, file: &str, tier: Tier, labels: usize) -> Result<Head, Failure> {
        let bytes = family.read(file)?;
        let tensors = Tensors::open(family, file, &bytes)?;
        let dimension = match tier {
            Tier::Full => encoder::DIMENSION,
            Tier::Fast => embed::DIMENSION,
        };
        let columns = tensors.rows("bias")?;
        if columns != labels && columns != labels + 1 {
            return Err(family.failure(file, format!("has {columns} columns for {labels} labels")));
        }
        let threshold = tensors.floats("threshold", &[1])?;
        Ok(Head {
            labels,
            dimension,
            weight: Rows::of(&tensors.floats("weight", &[dimension, columns])?, columns),
            bias: tensors.floats("bias", &[columns])?,
            grams: Grams::open(&tensors, columns)?,
            prototypes: tensors.has("prototype").then(|| Prototypes::open(&tensors, dimension, labels)).transpose()?,
            threshold: threshold[0],
        })
    }

    /// The most probable label; `None` if the embedding has another dimension than the head's tier.
    pub fn score(&self, embedding: &Embedding, buckets: &[(u32, u32)]) -> Option<Scored> {
        let p = self.probabilities(embedding, buckets)?;
        Some(best(&p[..self.labels], self.threshold))
    }

    /// Probabilities of all columns.
    pub fn probabilities(&self, embedding: &Embedding, buckets: &[(u32, u32)]) -> Option<Vec<f32>> {
        (embedding.values.len() == self.dimension).then(|| {
            let mut sum = self.bias.clone();
            let vector: Vec<(u32, f32)> = (0..).zip(embedding.components()).collect();
            self.weight.add(&vector, &mut sum);
            self.grams.add(buckets, &mut sum);
            softmax(&mut sum);
            if let Some(prototypes) = &self.prototypes {
                prototypes.blend(embedding, &mut sum[..self.labels]);
            }
            sum
        })
    }
}

/// Examples' means that stand for a label: what lies near them is given that label.
#[derive(Debug)]
struct Prototypes {
    /// Components in steps of 1/127, a row each.
    rows: Vec<i8>,
    labels: Vec<u32>,
}

impl Prototypes {
    /// How many of the nearest count.
    const NEAREST: usize = 5;
    /// How fast they weigh less with the cosine.
    const SHARPNESS: f32 = 30.0;
    /// Their share of the probability that a text has any of the labels.
    const SHARE: f32 = 0.5;

    fn open(tensors: &Tensors<'_>, dimension: usize, labels: usize) -> Result<Prototypes, Failure> {
        let count = tensors.rows("prototype")?;
        if count < Prototypes::NEAREST {
            return Err(tensors.failure("has fewer prototypes than are looked for"));
        }
        Ok(Prototypes {
            rows: tensors.bytes("prototype", &[count, dimension])?,
            labels: tensors.numbers("prototype_label", &[count], labels)?,
        })
    }

    /// Gives a share of all the labels' probability to those of the nearest prototypes.
    fn blend(&self, embedding: &Embedding, p: &mut [f32]) {
        let cosine =
            |(row, label): (&[i8], &u32)| (steps(row, &embedding.values) as f32 * (embedding.scale / 127.0), *label);
        let mut near: Vec<(f32, u32)> =
            self.rows.chunks_exact(embedding.values.len()).zip(&self.labels).map(cosine).collect();
        near.sort_by(|a, b| b.0.total_cmp(&a.0));
        near.truncate(Prototypes::NEAREST);
        near.iter_mut().for_each(|(weight, _)| *weight = (Prototypes::SHARPNESS * (*weight - 1.0)).exp());
        let inside: f32 = p.iter().sum();
        let whole: f32 = near.iter().map(|(weight, _)| weight).sum();
        p.iter_mut().for_each(|p| *p *= 1.0 - Prototypes::SHARE);
        for (weight, label) in near {
            p[label as usize] += Prototypes::SHARE * inside * weight / whole;
        }
    }
}

/// What the n-grams alone say: centroids, the simple model that a head is compared with.
#[derive(Debug)]
pub struct Centroids {
    grams: Grams,
}

impl Centroids {
    /// Reads centroids of so many labels.
    ///
    /// # Errors
    /// [`Failure::Model`].
    pub(super) fn open(family: &Family, file: &str, labels: usize) -> Result<Centroids, Failure> {
        let bytes = family.read(file)?;
        let grams = Grams::open(&Tensors::open(family, file, &bytes)?, labels)?;
        Ok(Centroids { grams })
    }

    /// The label with the nearest centroid, and the cosine.
    pub fn nearest(&self, buckets: &[(u32, u32)]) -> (usize, f32) {
        let mut sum = vec![0f32; self.grams.scale.len()];
        self.grams.add(buckets, &mut sum);
        let Scored { label, probability, .. } = best(&sum, 0.0);
        (label, probability)
    }
}

/// The largest of these; of equal ones the first.
pub(crate) fn best(p: &[f32], threshold: f32) -> Scored {
    let (mut label, mut probability) = (0, f32::NEG_INFINITY);
    for (index, p) in p.iter().enumerate() {
        if *p > probability {
            (label, probability) = (index, *p);
        }
    }
    Scored { label, probability, in_scope: probability >= threshold }
}

/// Logits become probabilities.
pub(super) fn softmax(logits: &mut [f32]) {
    let largest = logits.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
    let mut sum = 0f32;
    for x in &mut *logits {
        *x = (*x - largest).exp();
        sum += *x;
    }
    for x in logits {
        *x /= sum;
    }
}

/// Weights of the n-grams that a head knows.
#[derive(Debug)]
struct Grams {
    places: Places,
    idf: Vec<f32>,
    /// Steps of all columns, a row each.
    weight: Rows<i8>,
    scale: Vec<f32>,
}

impl Grams {
    fn open(tensors: &Tensors<'_>, columns: usize) -> Result<Grams, Failure> {
        let known = tensors.rows("idf")?;
        let buckets = tensors.numbers("bucket", &[known], BUCKETS)?;
        if !buckets.is_sorted_by(|a, b| a < b) {
            return Err(tensors.failure("the buckets do not rise"));
        }
        Ok(Grams {
            places: Places::of(buckets.into_iter()),
            idf: tensors.floats("idf", &[known])?,
            weight: Rows::of(&tensors.bytes("gram_weight", &[known, columns])?, columns),
            scale: tensors.floats("gram_scale", &[columns])?,
        })
    }

    /// Adds what the n-grams weigh: x(b) = (1 + ln count) · idf, of length one over the known ones.
    fn add(&self, buckets: &[(u32, u32)], sum: &mut [f32]) {
        let mut known: Vec<(u32, f32)> = Vec::with_capacity(buckets.len());
        let mut square = 0f32;
        for (bucket, count) in buckets {
            if self.places.knows(*bucket) {
                let row = self.places.row(*bucket);
                let x = self.idf[row as usize] * if *count == 1 { 1.0 } else { frequency(*count as usize) };
                square += x * x;
                self.weight.fetch(row);
                known.push((row, x));
            }
        }
        if square <= 0.0 {
            return;
        }
        let mut steps = vec![0f32; sum.len()];
        self.weight.add(&known, &mut steps);
        let length = square.sqrt();
        for ((sum, steps), scale) in sum.iter_mut().zip(&steps).zip(&self.scale) {
            *sum += steps / length * scale;
        }
    }
}

/// Columns that are summed up side by side: so many sums stay in registers.
const LANES: usize = 32;
/// As [`LANES`], of heads with few columns.
const FEW: usize = 8;
/// Bytes that a processor brings near at once.
const LINE_BYTES: usize = 64;

/// Rows of weights, each filled up with zeros to a whole number of lanes.
#[derive(Debug)]
struct Rows<T> {
    columns: usize,
    stride: usize,
    cells: Vec<T>,
}

impl<T: Copy + Default + Into<f32>> Rows<T> {
    fn of(cells: &[T], columns: usize) -> Rows<T> {
        let stride = columns.next_multiple_of(if columns <= FEW { FEW } else { LANES });
        let mut filled = vec![T::default(); cells.len() / columns * stride];
        for (filled, row) in filled.chunks_exact_mut(stride).zip(cells.chunks_exact(columns)) {
            filled[..columns].copy_from_slice(row);
        }
        Rows { columns, stride, cells: filled }
    }

    /// Does something to sums that are filled up as the rows are.
    fn filled(&self, sum: &mut [f32], add: impl FnOnce(&mut [f32])) {
        let mut filled = vec![0f32; self.stride];
        filled[..self.columns].copy_from_slice(sum);
        add(&mut filled);
        sum.copy_from_slice(&filled[..self.columns]);
    }

    /// Asks for a row before it is needed.
    fn fetch(&self, row: u32) {
        let row = &self.cells[row as usize * self.stride..][..self.stride];
        row.chunks(LINE_BYTES / size_of::<T>()).for_each(|line| fetch(&line[0]));
    }
}

impl Rows<f32> {
    /// Adds for each column the sum of these rows, each times its number.
    fn add(&self, rows: &[(u32, f32)], sum: &mut [f32]) {
        self.filled(sum, |sum| match self.stride {
            FEW => add_floats::<FEW>(&self.cells, rows, sum),
            _ => add_floats::<LANES>(&self.cells, rows, sum),
        });
    }
}

impl Rows<i8> {
    /// Adds for each column the sum of these rows, each times its number.
    fn add(&self, rows: &[(u32, f32)], sum: &mut [f32]) {
        self.filled(sum, |sum| match self.stride {
            FEW => add_steps::<FEW>(&self.cells, rows, sum),
            _ => add_steps::<LANES>(&self.cells, rows, sum),
        });
    }
}

/// Adds rows of weights as long as `sum`, each times its number: for each column in the order of the rows.
#[inline(always)]
fn summed<T: Copy + Into<f32>, const LANES: usize>(cells: &[T], rows: &[(u32, f32)], sum: &mut [f32]) {
    let mut begin = 0;
    while begin < sum.len() {
        let mut sums = [0f32; LANES];
        sums.copy_from_slice(&sum[begin..begin + LANES]);
        let mut place = 0;
        while place < rows.len() {
            let (row, x) = rows[place];
            let row = &cells[row as usize * sum.len() + begin..][..LANES];
            let mut c = 0;
            while c < LANES {
                let weight: f32 = row[c].into();
                sums[c] += weight * x;
                c += 1;
            }
            place += 1;
        }
        sum[begin..begin + LANES].copy_from_slice(&sums);
        begin += LANES;
    }
}

wide! {
    /// [`summed`] of floats.
    fn add_floats<const LANES: usize>(cells: &[f32], rows: &[(u32, f32)], sum: &mut [f32]) {
        summed::<f32, LANES>(cells, rows, sum);
    }

    /// [`summed`] of steps.
    fn add_steps<const LANES: usize>(cells: &[i8], rows: &[(u32, f32)], sum: &mut [f32]) {
        summed::<i8, LANES>(cells, rows, sum);
    }

    /// The sum of products of steps.
    fn steps(one: &[i8], other: &[u8]) -> i32 {
        let mut sum = 0;
        let mut d = 0;
        while d < one.len() {
            sum += i32::from(one[d]) * i32::from(other[d] as i8);
            d += 1;
        }
        sum
    }

}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_add_up_and_the_first_of_equals_is_taken() {
        let mut p = [1000.0, 1000.0, -1000.0];
        softmax(&mut p);
        assert_eq!(p, [0.5, 0.5, 0.0]);
        assert_eq!(best(&p, 0.5), Scored { label: 0, probability: 0.5, in_scope: true });
        assert!(!best(&p, 0.6).in_scope);
    }

    #[test]
    fn half_goes_to_the_labels_of_the_nearest_prototypes() {
        let rows = [[127, 0], [127, 0], [0, 127], [0, 127], [0, 127], [-127, 0]].concat();
        let near = Prototypes { rows, labels: vec![1, 1, 0, 0, 0, 2] };
        let embedding = Embedding { values: vec![0, 127], scale: 1.0 / 127.0, dimension: 2 };
        let mut p = [0.2, 0.4, 0.2];
        near.blend(&embedding, &mut p);
        assert!((p[0] - 0.5).abs() < 1e-6 && (p[1] - 0.2).abs() < 1e-6, "{p:?}");
        assert_eq!(p[2], 0.1, "the farthest is not among the five nearest");
    }
}
