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
use crate::wide::wide;

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
    weight: Vec<f32>,
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
            weight: tensors.floats("weight", &[dimension, columns])?,
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
            dots(&self.weight, &embedding.values, embedding.scale, &mut sum);
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
    weight: Vec<i8>,
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
            weight: tensors.bytes("gram_weight", &[known, columns])?,
            scale: tensors.floats("gram_scale", &[columns])?,
        })
    }

    /// Adds what the n-grams weigh: x(b) = (1 + ln count) · idf, of length one over the known ones.
    fn add(&self, buckets: &[(u32, u32)], sum: &mut [f32]) {
        let mut known: Vec<(usize, f32)> = Vec::with_capacity(buckets.len());
        let mut square = 0f32;
        for (bucket, count) in buckets {
            if self.places.knows(*bucket) {
                let row = self.places.row(*bucket) as usize;
                let x = self.idf[row] * if *count == 1 { 1.0 } else { frequency(*count as usize) };
                square += x * x;
                known.push((row, x));
            }
        }
        if square <= 0.0 {
            return;
        }
        let mut steps = vec![0f32; sum.len()];
        for (row, x) in known {
            gather(&self.weight[row * sum.len()..][..sum.len()], x, &mut steps);
        }
        let length = square.sqrt();
        for ((sum, steps), scale) in sum.iter_mut().zip(&steps).zip(&self.scale) {
            *sum += steps / length * scale;
        }
    }
}

wide! {
    /// Adds for each column the sum of its weights times the components.
    fn dots(weight: &[f32], steps: &[u8], scale: f32, sum: &mut [f32]) {
        let columns = sum.len();
        let mut d = 0;
        while d < steps.len() {
            let x = f32::from(steps[d] as i8) * scale;
            let row = &weight[d * columns..(d + 1) * columns];
            let mut c = 0;
            while c < columns {
                sum[c] += row[c] * x;
                c += 1;
            }
            d += 1;
        }
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

    /// Adds x times a row of steps.
    fn gather(row: &[i8], x: f32, sum: &mut [f32]) {
        let mut c = 0;
        while c < sum.len() {
            sum[c] += x * f32::from(row[c]);
            c += 1;
        }
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
