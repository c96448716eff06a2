//! Segments with the whole dialogue in view: for reports on conversations that are over, never for a turn that has just come.
//!
//! Promises: of every place between two turns, log-odds of a boundary from what stands on both sides; of all ways to cut the
//! dialogue into segments of at least [`TURNS_MIN`] turns, the one with the greatest sum of them, found by dynamic programming. Pure.
//! Leaves out: what the odds of a turn are (the stage, in order).

use schemas::{Embedding, Tier};

use super::Followed;
use crate::model::coherence::{AROUND, Coherence, overlap};

/// Fewest turns of a segment.
pub const TURNS_MIN: usize = 2;
/// Turns on each side that are held against each other, as vectors.
const SIDES: [usize; 4] = [1, 2, 3, 5];
/// As words.
const WORD_SIDES: [usize; 2] = [2, 4];
/// Which of [`SIDES`] is looked at in neighbouring places too.
const DEPTH_OF: usize = 2;
/// How far a neighbouring place is.
const NEAR: usize = 2;

/// Places at which a segment begins, but the first: rising.
pub fn boundaries(model: &Coherence, tier: Tier, turns: &[(Followed, &Embedding)]) -> Vec<usize> {
    let odds: Vec<f32> = around(turns).iter().map(|around| model.boundary(tier, around)).collect();
    cut(&odds)
}

/// What stands around each place, from the one before the second turn on.
pub fn around(turns: &[(Followed, &Embedding)]) -> Vec<[f32; AROUND]> {
    let n = turns.len();
    let vectors: Vec<Vec<f32>> = turns.iter().map(|(_, vector)| vector.components().collect()).collect();
    let likeness = |t: usize, k: usize| cosine(&sum(&vectors[t.saturating_sub(k)..t]), &sum(&vectors[t..n.min(t + k)]));
    let words = |t: usize, k: usize| overlap(&terms(&turns[t.saturating_sub(k)..t]), &terms(&turns[t..n.min(t + k)]));
    let shift: Vec<f32> = turns.iter().enumerate().map(|(t, (f, _))| if t == 0 { 0.0 } else { f.shift }).collect();
    let next = |t: usize| turns.get(t).map_or(0.0, |(followed, _)| followed.next);
    let at = |t: usize| shift.get(t).copied().unwrap_or_default();
    let mean = shift.iter().sum::<f32>() / n.max(1) as f32;
    let sides: Vec<[f32; SIDES.len()]> = (1..n).map(|t| SIDES.map(|k| likeness(t, k))).collect();
    let depths: Vec<f32> = sides.iter().map(|sides| sides[DEPTH_OF]).collect();
    (1..n)
        .map(|t| {
            let [one, two, three, five] = sides[t - 1];
            let [few, more] = WORD_SIDES.map(|k| words(t, k));
            let best = |values: &[f32], place: usize| {
                let near = place.saturating_sub(NEAR)..values.len().min(place + NEAR + 1);
                near.filter(|i| *i != place).map(|i| values[i]).reduce(f32::max).unwrap_or(values[place])
            };
            let flag = |is: bool| f32::from(u8::from(is));
            [
                at(t),
                at(t - 1),
                at(t + 1),
                next(t),
                next(t + 1),
                one,
                two,
                three,
                five,
                few,
                more,
                best(&depths, t - 1) - depths[t - 1],
                shift[t] - best(&shift[1..], t - 1),
                flag(t == 1),
                flag(t + 1 == n),
                shift[t] - mean,
            ]
        })
        .collect()
}

/// The best way to cut: of the places between turns the ones that add up to most, none nearer than [`TURNS_MIN`] to another or to an end.
fn cut(odds: &[f32]) -> Vec<usize> {
    let n = odds.len() + 1;
    // Of the turns before `end`: the best sum, and where the last segment begins.
    let mut best = vec![(f32::NEG_INFINITY, 0); n + 1];
    best[0].0 = 0.0;
    for end in 1..=n {
        for begin in 0..end {
            let short = end - begin < TURNS_MIN && end - begin < n;
            let value = best[begin].0 + if begin == 0 { 0.0 } else { odds[begin - 1] };
            if !short && value > best[end].0 {
                best[end] = (value, begin);
            }
        }
    }
    let (mut places, mut end) = (Vec::new(), n);
    while end > 0 && best[end].1 > 0 {
        end = best[end].1;
        places.push(end);
    }
    places.reverse();
    places
}

fn sum(vectors: &[Vec<f32>]) -> Vec<f32> {
    let mut sum = vectors.first().cloned().unwrap_or_default();
    for vector in vectors.iter().skip(1) {
        sum.iter_mut().zip(vector).for_each(|(sum, x)| *sum += x);
    }
    sum
}

fn cosine(one: &[f32], other: &[f32]) -> f32 {
    let product = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    let lengths = (product(one, one) * product(other, other)).sqrt();
    if lengths > 0.0 { product(one, other) / lengths } else { 0.0 }
}

fn terms(turns: &[(Followed, &Embedding)]) -> Vec<i32> {
    let mut terms: Vec<i32> = turns.iter().flat_map(|(followed, _)| followed.terms.iter().copied()).collect();
    terms.sort_unstable();
    terms.dedup();
    terms
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_cut_is_that_of_all_cuts() {
        let mut state = 1u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 40) as f32 / 16_777_216.0 - 0.6
        };
        for n in 1..11 {
            let odds: Vec<f32> = (1..n).map(|_| random()).collect();
            let value = |places: &[usize]| places.iter().map(|p| odds[p - 1]).sum::<f32>();
            let all =
                (0..1usize << (n - 1)).map(|bits| (1..n).filter(|p| bits >> (p - 1) & 1 == 1).collect::<Vec<_>>());
            let fits = |places: &Vec<usize>| {
                let ends: Vec<usize> = [0].into_iter().chain(places.iter().copied()).chain([n]).collect();
                places.is_empty() || ends.windows(2).all(|pair| pair[1] - pair[0] >= TURNS_MIN)
            };
            let most = all.filter(fits).map(|places| value(&places)).fold(f32::NEG_INFINITY, f32::max);
            let found = cut(&odds);
            assert!(fits(&found), "{found:?} of {n}");
            assert!((value(&found) - most).abs() < 1e-6, "{found:?}");
        }
        assert_eq!(cut(&[]), [0; 0]);
        assert_eq!(cut(&[-1.0, 2.0, -1.0]), [2]);
    }

    #[test]
    fn what_stands_around_a_place_is_of_both_sides() {
        let said = |shift: f32, terms: &[i32]| Followed { next: 0.5, shift, begins: 0.0, terms: terms.to_vec() };
        let (one, other) = (Embedding::quantise(&[1.0, 0.0]), Embedding::quantise(&[0.0, 1.0]));
        let turns =
            [(said(9.0, &[1]), &one), (said(-1.0, &[1]), &one), (said(2.0, &[2]), &other), (said(-2.0, &[2]), &other)];
        let found = around(&turns);
        assert_eq!(found.len(), 3);
        let middle = found[1];
        assert_eq!((middle[0], middle[1], middle[2]), (2.0, -1.0, -2.0));
        assert!(middle[5].abs() < 1e-6 && middle[8].abs() < 1e-6 && middle[9] == 0.0);
        assert!(found[0][5] > 0.99 && found[0][13] == 1.0 && found[2][14] == 1.0);
        assert!((middle[12] - 3.0).abs() < 1e-6, "over its neighbours: {middle:?}");
        assert_eq!(around(&turns[..1]).len(), 0);
    }
}
