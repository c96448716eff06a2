//! Figures with their intervals.
//!
//! Promises: deterministic: 1,000 resamples of units by a SplitMix64 generator with seed 1, percentiles 2.5 and 97.5. A unit
//! is a text, or a dialogue or person where texts belong together; the caller says which. Leaves out: what a figure is.

use std::collections::BTreeMap;

use super::Figure;

const RESAMPLES: usize = 1000;
const SEED: u64 = 1;

/// The figures of these names: `values` computes them, given how often each of the `units` counts.
pub(super) fn figures<const N: usize>(
    names: &[&str; N],
    units: usize,
    values: impl Fn(&[u32]) -> [f64; N],
) -> BTreeMap<String, Figure> {
    let value = values(&vec![1; units]);
    let mut random = SplitMix64(SEED);
    let mut drawn: [Vec<f64>; N] = std::array::from_fn(|_| Vec::with_capacity(RESAMPLES));
    for _ in 0..RESAMPLES {
        let mut times = vec![0u32; units];
        (0..units).for_each(|_| times[random.below(units)] += 1);
        for (drawn, value) in drawn.iter_mut().zip(values(&times)) {
            drawn.push(value);
        }
    }
    let interval = |drawn: &mut Vec<f64>, value: f64| {
        drawn.sort_by(f64::total_cmp);
        Figure { value, low: percentile(drawn, 0.025), high: percentile(drawn, 0.975) }
    };
    names.iter().zip(&mut drawn).zip(value).map(|((name, drawn), v)| ((*name).to_owned(), interval(drawn, v))).collect()
}

/// Linear interpolation between the neighbours, as numpy does.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let place = share * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    below + (above - below) * place.fract()
}

/// SplitMix64 (Steele, Lea and Flood 2014): small, and the same everywhere.
pub(super) struct SplitMix64(pub(super) u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Evenly below `bound`, by the high half of a product (the bias is below 2⁻³² for any data that fits here).
    pub(super) fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }
}
