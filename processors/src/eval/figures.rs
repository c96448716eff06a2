//! The figures of a multi-label model, each with a bootstrap interval over texts.
//!
//! Promises: labels that count for the calibration error are chosen on the data as it is. Leaves out: thresholds.

use std::collections::BTreeMap;

use super::{Figure, bootstrap};

/// Bins of equal mass in the calibration error.
const BINS: usize = 15;
/// Positives that a label needs to count in the calibration error.
const POSITIVES_MIN: usize = 30;

/// What a model said, beside the truth; a row a text, a column a label.
pub(super) struct Judged {
    pub(super) probabilities: Vec<Vec<f32>>,
    pub(super) truth: Vec<Vec<bool>>,
    pub(super) predicted: Vec<Vec<bool>>,
    pub(super) ekman_predicted: Vec<Vec<bool>>,
    pub(super) ekman_truth: Vec<Vec<bool>>,
}

/// Names of the figures, in the order of [`Judged::values`].
const NAMES: [&str; 5] = ["macro_f1", "micro_f1", "ekman_macro_f1", "ece", "brier"];

impl Judged {
    /// All figures by name.
    pub(super) fn figures(&self) -> BTreeMap<String, Figure> {
        let orders = self.orders();
        bootstrap::figures(&NAMES, self.truth.len(), |times| self.values(times, &orders))
    }

    /// The figures when each row counts `times`.
    fn values(&self, times: &[u32], orders: &[(usize, Vec<usize>)]) -> [f64; NAMES.len()] {
        let rows: f64 = times.iter().map(|t| f64::from(*t)).sum();
        let labels = counts(&self.predicted, &self.truth, times);
        let ekman = counts(&self.ekman_predicted, &self.ekman_truth, times);
        let all = labels.iter().fold([0.0; 3], |sum, c| [sum[0] + c[0], sum[1] + c[1], sum[2] + c[2]]);
        let errors: f64 = orders.iter().map(|(label, order)| self.calibration_error(*label, order, times, rows)).sum();
        let ece = if orders.is_empty() { 0.0 } else { errors / orders.len() as f64 };
        [mean_f1(&labels), f1(all), mean_f1(&ekman), ece, self.brier(times) / rows]
    }

    /// Rows by rising probability, of each label with enough positives.
    fn orders(&self) -> Vec<(usize, Vec<usize>)> {
        let labels = self.truth.first().map_or(0, Vec::len);
        let enough = |label: &usize| self.truth.iter().filter(|row| row[*label]).count() >= POSITIVES_MIN;
        let order = |label: usize| {
            let mut rows: Vec<usize> = (0..self.truth.len()).collect();
            rows.sort_by(|a, b| self.probabilities[*a][label].total_cmp(&self.probabilities[*b][label]));
            (label, rows)
        };
        (0..labels).filter(enough).map(order).collect()
    }

    /// Σ |Σp − Σy| over bins of equal mass, over all rows. Of n rows the first n mod 15 bins hold one more.
    fn calibration_error(&self, label: usize, order: &[usize], times: &[u32], rows: f64) -> f64 {
        let n = rows as usize;
        let size = |bin: usize| n / BINS + usize::from(bin < n % BINS);
        let (mut error, mut gap, mut bin, mut left) = (0.0, 0.0, 0, size(0));
        for row in order {
            let difference = f64::from(self.probabilities[*row][label]) - f64::from(u8::from(self.truth[*row][label]));
            let mut remaining = times[*row] as usize;
            while remaining > 0 {
                while left == 0 {
                    error += f64::abs(gap);
                    (gap, bin) = (0.0, bin + 1);
                    left = size(bin);
                }
                let taken = remaining.min(left);
                gap += difference * taken as f64;
                (remaining, left) = (remaining - taken, left - taken);
            }
        }
        (error + f64::abs(gap)) / rows
    }

    /// Sum over rows of the mean squared error over labels.
    fn brier(&self, times: &[u32]) -> f64 {
        let square = |(p, y): (&f32, &bool)| (f64::from(*p) - f64::from(u8::from(*y))).powi(2);
        let row = |((p, y), times): ((&Vec<f32>, &Vec<bool>), &u32)| {
            f64::from(*times) * p.iter().zip(y).map(square).sum::<f64>() / p.len() as f64
        };
        self.probabilities.iter().zip(&self.truth).zip(times).map(row).sum()
    }
}

/// Of each label: true positives, predicted, present.
fn counts(predicted: &[Vec<bool>], truth: &[Vec<bool>], times: &[u32]) -> Vec<[f64; 3]> {
    let mut counts = vec![[0u32; 3]; truth.first().map_or(0, Vec::len)];
    for ((predicted, truth), times) in predicted.iter().zip(truth).zip(times) {
        for ((count, p), y) in counts.iter_mut().zip(predicted).zip(truth) {
            count[0] += times * u32::from(*p && *y);
            count[1] += times * u32::from(*p);
            count[2] += times * u32::from(*y);
        }
    }
    counts.into_iter().map(|count| count.map(f64::from)).collect()
}

/// Things in the order of what was said of each: how likely it is of a kind. Made once, judged for every resample.
pub(super) struct Ranking(Vec<(f64, bool, usize)>);

impl Ranking {
    /// Of each thing what was said, whether it is of the kind, and its unit of the bootstrap.
    pub(super) fn new(things: impl Iterator<Item = (f64, bool, usize)>) -> Ranking {
        let mut things: Vec<_> = things.collect();
        things.sort_by(|a, b| a.0.total_cmp(&b.0));
        Ranking(things)
    }

    /// The area under the ROC curve: the probability that one of the kind was said to be likelier than one that is not, a
    /// tie counting half; each unit counts `times`. `None` where one side is missing.
    pub(super) fn auc(&self, times: &[u32]) -> Option<f64> {
        let [mut others, mut of_kind, mut won] = [0.0; 3];
        for tied in self.0.chunk_by(|a, b| a.0 == b.0) {
            let count = |wanted: bool| -> f64 {
                tied.iter().filter(|(_, is, _)| *is == wanted).map(|(.., unit)| f64::from(times[*unit])).sum()
            };
            let (out, within) = (count(false), count(true));
            won += within * (others + out / 2.0);
            others += out;
            of_kind += within;
        }
        (others > 0.0 && of_kind > 0.0).then(|| won / (others * of_kind))
    }
}

pub(super) fn f1([hits, predicted, present]: [f64; 3]) -> f64 {
    if predicted + present > 0.0 { 2.0 * hits / (predicted + present) } else { 0.0 }
}

pub(super) fn mean_f1(counts: &[[f64; 3]]) -> f64 {
    counts.iter().map(|count| f1(*count)).sum::<f64>() / counts.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(p: &[f32], y: &[bool]) -> Judged {
        let columns = |v: Vec<bool>| v.into_iter().map(|b| vec![b]).collect::<Vec<_>>();
        let predicted: Vec<bool> = p.iter().map(|p| *p >= 0.5).collect();
        Judged {
            probabilities: p.iter().map(|p| vec![*p]).collect(),
            truth: columns(y.to_vec()),
            predicted: columns(predicted.clone()),
            ekman_predicted: columns(predicted),
            ekman_truth: columns(y.to_vec()),
        }
    }

    #[test]
    fn a_perfect_model_has_perfect_figures() {
        let y: Vec<bool> = (0..90).map(|i| i % 3 == 0).collect();
        let p: Vec<f32> = y.iter().map(|y| f32::from(u8::from(*y))).collect();
        let figures = judged(&p, &y).figures();
        for name in ["macro_f1", "micro_f1", "ekman_macro_f1"] {
            assert_eq!(figures[name], Figure { value: 1.0, low: 1.0, high: 1.0 });
        }
        assert_eq!((figures["ece"].value, figures["brier"].value), (0.0, 0.0));
    }

    #[test]
    fn figures_are_what_a_hand_computes() {
        // Sixty texts, half positive, always said to be 0.75 likely: two thirds F1, a quarter off.
        let y: Vec<bool> = (0..60).map(|i| i % 2 == 0).collect();
        let figures = judged(&[0.75; 60], &y).figures();
        assert!((figures["macro_f1"].value - 2.0 / 3.0).abs() < 1e-12);
        assert!((figures["ece"].value - 0.25).abs() < 1e-12, "{:?}", figures["ece"]);
        assert!((figures["brier"].value - (0.0625 + 0.5625) / 2.0).abs() < 1e-12);
        assert!(figures["macro_f1"].low < 2.0 / 3.0 && 2.0 / 3.0 < figures["macro_f1"].high);
    }

    #[test]
    fn a_label_that_is_never_predicted_counts_nothing() {
        assert_eq!(judged(&[0.1; 4], &[true, false, true, false]).figures()["macro_f1"].value, 0.0);
    }
}
