//! Intents that an operator names by example sentences: a kernel ridge regression, closed form, nothing to train.
//!
//! Promises: deterministic; a text's kernel with an example is exp(γ(cos − 1)) of their embeddings plus a share of the
//! cosine of their n-grams; what each example would have been called without itself comes out of the same inverse, so that
//! temperature, threshold and the cross-validated accuracy cost nothing more. Leaves out: reading the file (`sets.rs`).

use std::collections::HashMap;

use schemas::Embedding;

use super::intents::{Scored, best, softmax};

/// Examples of all intents together: the inverse takes their third power.
pub const EXAMPLES_MAX: usize = 2000;
/// How fast the kernel falls with the angle. Chosen on intents of the training sets.
const GAMMA: f32 = 2.0;
/// Weight of the n-grams' cosine in the kernel.
const NGRAMS: f32 = 0.1;
/// What is added to the diagonal.
const RIDGE: f64 = 0.1;
/// Share of the examples that the threshold accepts.
const ACCEPTED: f64 = 0.97;
/// Inverse temperatures that are tried.
const SHARPNESS: [f32; 9] = [2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0];

/// A text as the kernel sees it.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Components of the embedding.
    pub vector: Vec<f32>,
    /// Buckets of the n-grams, in rising order, with how often they were met.
    pub buckets: Vec<(u32, u32)>,
}

/// What was learnt from examples, for one tier.
#[derive(Debug)]
pub struct Learnt {
    /// Examples times dimension.
    vectors: Vec<f32>,
    dimension: usize,
    /// Examples that hold a bucket, with its weight in them.
    places: HashMap<u32, Vec<(u32, f32)>>,
    idf: HashMap<u32, f32>,
    /// Examples times labels.
    coefficients: Vec<f32>,
    prior: Vec<f32>,
    sharpness: f32,
    threshold: f32,
    /// What each example would have been called without itself.
    left_out: Vec<usize>,
}

/// Why nothing can be learnt.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the examples contradict each other beyond what can be computed; take repeated sentences out")]
pub struct Singular;

impl Learnt {
    /// Learns from examples, each with the index of its label.
    ///
    /// # Errors
    /// The system of equations has no solution in floating point.
    pub fn from(examples: &[Seen], truth: &[usize], labels: usize) -> Result<Learnt, Singular> {
        let n = examples.len();
        let dimension = examples.first().map_or(0, |e| e.vector.len());
        let idf = idf(examples);
        let weighed: Vec<Vec<(u32, f32)>> = examples.iter().map(|e| weigh(&e.buckets, &idf)).collect();
        let mut places: HashMap<u32, Vec<(u32, f32)>> = HashMap::new();
        for (example, weights) in weighed.iter().enumerate() {
            for (bucket, x) in weights {
                places.entry(*bucket).or_default().push((example as u32, *x));
            }
        }
        let mut learnt = Learnt {
            vectors: examples.iter().flat_map(|e| unit(&e.vector)).collect(),
            dimension,
            places,
            idf,
            coefficients: vec![0.0; n * labels],
            prior: (0..labels).map(|l| truth.iter().filter(|t| **t == l).count() as f32 / n as f32).collect(),
            sharpness: SHARPNESS[0],
            threshold: 0.0,
            left_out: Vec::with_capacity(n),
        };
        let mut kernel = Vec::with_capacity(n * n);
        for example in examples {
            kernel.extend(learnt.kernel(&example.vector, &example.buckets).into_iter().map(f64::from));
        }
        for i in 0..n {
            kernel[i * n + i] += RIDGE;
        }
        let inverse = invert(kernel, n).ok_or(Singular)?;
        learnt.solve(&inverse, truth, labels);
        Ok(learnt)
    }

    /// Coefficients from the inverse, and what comes with leaving each example out.
    fn solve(&mut self, inverse: &[f64], truth: &[usize], labels: usize) {
        let n = truth.len();
        let mut without: Vec<Vec<f32>> = Vec::with_capacity(n);
        for i in 0..n {
            let row = &inverse[i * n..(i + 1) * n];
            let sum: f64 = row.iter().sum();
            let mut a: Vec<f64> = self.prior.iter().map(|p| -f64::from(*p) * sum).collect();
            for (x, label) in row.iter().zip(truth) {
                a[*label] += x;
            }
            let target = |label: usize| f64::from(u8::from(truth[i] == label));
            // f without i at i: the target less a / B⁻¹[i, i].
            without.push((0..labels).map(|l| (target(l) - a[l] / row[i]) as f32).collect());
            for (label, a) in a.iter().enumerate() {
                self.coefficients[i * labels + label] = *a as f32;
            }
        }
        let probabilities = |sharpness: f32| {
            without.iter().map(move |f| {
                let mut p: Vec<f32> = f.iter().map(|f| f * sharpness).collect();
                softmax(&mut p);
                p
            })
        };
        let likelihood = |sharpness: f32| -> f64 {
            probabilities(sharpness).zip(truth).map(|(p, t)| f64::from(p[*t].max(1e-9)).ln()).sum()
        };
        for sharpness in SHARPNESS {
            if likelihood(sharpness) > likelihood(self.sharpness) {
                self.sharpness = sharpness;
            }
        }
        let scored: Vec<Scored> = probabilities(self.sharpness).map(|p| best(&p, 0.0)).collect();
        self.left_out = scored.iter().map(|s| s.label).collect();
        let mut highest: Vec<f32> = scored.iter().map(|s| s.probability).collect();
        highest.sort_by(f32::total_cmp);
        let refused = (highest.len() as f64 * (1.0 - ACCEPTED)) as usize;
        self.threshold = highest.get(refused).copied().unwrap_or(0.0);
    }

    /// The kernel of a text with every example.
    fn kernel(&self, vector: &[f32], buckets: &[(u32, u32)]) -> Vec<f32> {
        let vector = unit(vector);
        let cosine = |example: &[f32]| example.iter().zip(&vector).map(|(a, b)| a * b).sum::<f32>();
        let mut kernel: Vec<f32> = match self.dimension {
            0 => Vec::new(),
            d => self.vectors.chunks_exact(d).map(|e| (GAMMA * (cosine(e) - 1.0)).exp()).collect(),
        };
        for (bucket, x) in weigh(buckets, &self.idf) {
            for (example, y) in self.places.get(&bucket).into_iter().flatten() {
                kernel[*example as usize] += NGRAMS * x * y;
            }
        }
        kernel
    }

    /// The most probable label; `None` if the embedding has another dimension.
    pub fn score(&self, embedding: &Embedding, buckets: &[(u32, u32)]) -> Option<Scored> {
        if embedding.values.len() != self.dimension {
            return None;
        }
        let vector: Vec<f32> = embedding.components().collect();
        let labels = self.prior.len();
        let mut f = self.prior.clone();
        for (k, row) in self.kernel(&vector, buckets).iter().zip(self.coefficients.chunks_exact(labels)) {
            for (f, a) in f.iter_mut().zip(row) {
                *f += k * a;
            }
        }
        f.iter_mut().for_each(|f| *f *= self.sharpness);
        softmax(&mut f);
        Some(best(&f, self.threshold))
    }

    /// What each example would have been called had it not been there.
    pub fn left_out(&self) -> &[usize] {
        &self.left_out
    }
}

fn unit(vector: &[f32]) -> Vec<f32> {
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    vector.iter().map(|x| if length > 0.0 { x / length } else { 0.0 }).collect()
}

/// How telling each bucket is: the rarer the more.
pub(crate) fn idf(examples: &[Seen]) -> HashMap<u32, f32> {
    let mut met: HashMap<u32, usize> = HashMap::new();
    for (bucket, _) in examples.iter().flat_map(|e| &e.buckets) {
        *met.entry(*bucket).or_default() += 1;
    }
    let n = examples.len();
    met.into_iter().map(|(bucket, met)| (bucket, ((1 + n) as f32 / (1 + met) as f32).ln() + 1.0)).collect()
}

/// Known buckets with their weight, of length one together.
pub(crate) fn weigh(buckets: &[(u32, u32)], idf: &HashMap<u32, f32>) -> Vec<(u32, f32)> {
    let known = buckets.iter().filter_map(|(b, count)| Some((*b, idf.get(b)? * (1.0 + (*count as f32).ln()))));
    let mut known: Vec<(u32, f32)> = known.collect();
    let length = known.iter().map(|(_, x)| x * x).sum::<f32>().sqrt();
    known.iter_mut().for_each(|(_, x)| *x /= length);
    known
}

/// The inverse of a symmetric positive definite matrix, by Cholesky; `None` if it is none.
fn invert(mut a: Vec<f64>, n: usize) -> Option<Vec<f64>> {
    for j in 0..n {
        let (above, rest) = a.split_at_mut(j * n);
        let row = &mut rest[..n];
        for (i, upper) in above.chunks_exact(n).enumerate().take(j) {
            let dot: f64 = row[..i].iter().zip(&upper[..i]).map(|(x, y)| x * y).sum();
            row[i] = (row[i] - dot) / upper[i];
        }
        let pivot = row[j] - row[..j].iter().map(|x| x * x).sum::<f64>();
        if pivot <= 1e-12 || !pivot.is_finite() {
            return None;
        }
        row[j] = pivot.sqrt();
    }
    // Rows of the inverse of the lower triangle, then its product with itself turned.
    let mut lower = vec![0f64; n * n];
    for i in 0..n {
        let (done, rest) = lower.split_at_mut(i * n);
        let row = &mut rest[..n];
        row[i] = 1.0;
        for (k, other) in done.chunks_exact(n).enumerate() {
            let factor = a[i * n + k];
            row[..=k].iter_mut().zip(&other[..=k]).for_each(|(x, y)| *x -= factor * y);
        }
        let pivot = a[i * n + i];
        row[..=i].iter_mut().for_each(|x| *x /= pivot);
    }
    let mut inverse = vec![0f64; n * n];
    for (k, row) in lower.chunks_exact(n).enumerate() {
        for i in 0..=k {
            let x = row[i];
            inverse[i * n..i * n + k + 1].iter_mut().zip(&row[..=k]).for_each(|(sum, y)| *sum += x * y);
        }
    }
    Some(inverse)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(vector: [f32; 3], bucket: u32) -> Seen {
        Seen { vector: vector.to_vec(), buckets: vec![(bucket, 1)] }
    }

    fn examples() -> (Vec<Seen>, Vec<usize>) {
        let a = [[1.0, 0.1, 0.0], [0.9, 0.0, 0.1], [1.0, 0.0, 0.2]].map(|v| seen(v, 1));
        let b = [[0.0, 1.0, 0.1], [0.1, 0.9, 0.0], [0.2, 1.0, 0.0]].map(|v| seen(v, 2));
        (a.into_iter().chain(b).collect(), vec![0, 0, 0, 1, 1, 1])
    }

    #[test]
    fn an_inverse_times_its_matrix_is_the_unit() {
        let a = vec![4.0, 1.0, 0.5, 1.0, 3.0, 0.25, 0.5, 0.25, 2.0];
        let inverse = invert(a.clone(), 3).unwrap();
        for i in 0..3 {
            for j in 0..3 {
                let sum: f64 = (0..3).map(|k| a[i * 3 + k] * inverse[k * 3 + j]).sum();
                assert!((sum - f64::from(u8::from(i == j))).abs() < 1e-12);
            }
        }
        assert_eq!(invert(vec![1.0, 2.0, 2.0, 1.0], 2), None);
    }

    #[test]
    fn leaving_an_example_out_is_as_learning_without_it() {
        let (examples, truth) = examples();
        let whole = Learnt::from(&examples, &truth, 2).unwrap();
        assert_eq!(whole.left_out(), truth);
        for left in 0..examples.len() {
            let without = |i: &usize| *i != left;
            let some: Vec<Seen> = (0..6).filter(without).map(|i| examples[i].clone()).collect();
            let labels: Vec<usize> = (0..6).filter(without).map(|i| truth[i]).collect();
            let learnt = Learnt::from(&some, &labels, 2).unwrap();
            let found = learnt.score(&Embedding::quantise(&examples[left].vector), &examples[left].buckets).unwrap();
            assert_eq!(found.label, truth[left]);
            assert!(found.probability > 0.5 && found.probability <= 1.0);
        }
        assert_eq!(whole.score(&Embedding::quantise(&[1.0]), &[]), None);
    }
}
