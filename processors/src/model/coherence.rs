//! How a turn goes on from the turns before it, and whether it begins another topic (`models/coherence`).
//!
//! Promises: of a text and its vector, projections in four roles (what is said now, the turn before, the one before that, the
//! talk so far); of those and a few likenesses, two log-odds, by one small network; all sums run in a fixed order, so that
//! results are equal bit for bit. Leaves out: whose turns they are and what is kept of them (the stage), and training.

use foldhash::HashSet;
use schemas::{Embedding, Provenance, Tier};
use serde::Deserialize;

use super::card::Family;
use super::tensors::Tensors;
use super::{embed, encoder};
use crate::stage::Failure;
use crate::wide::wide;

const FILE: &str = "coherence.safetensors";
const WORDS_FILE: &str = "stop.json";

/// Numbers of a projection.
pub const ROLE: usize = 32;
/// Roles that a turn is projected in.
const ROLES: usize = 4;
const PROJECTED: usize = ROLE * ROLES;
/// Hidden units of the network.
const HIDDEN: usize = 48;
/// Likenesses and places that stand beside the projections.
pub const SCALARS: usize = 13;
const INPUTS: usize = 5 * ROLE + SCALARS;
/// Buckets of word and word-pair hashes, and the numbers of each.
const BUCKETS: usize = 1 << 13;
const BAG: usize = 32;
/// Words of a text that are read: half from its beginning, half from its end.
const WORDS_MAX: usize = 24;
/// Letters of a content word that count: what follows is mostly inflection.
const STEM_BYTES: usize = 5;
/// Content words that are kept of a text.
pub const TERMS_MAX: usize = 32;
/// Inputs of the off-line segmenter.
pub const AROUND: usize = 16;

/// The model.
#[derive(Debug)]
pub struct Coherence {
    full: Head,
    fast: Head,
    stop: HashSet<Vec<u8>>,
    model: String,
    version: String,
}

/// What one tier reads.
#[derive(Debug)]
struct Head {
    /// For each component of the vector, then each number of the words, [`PROJECTED`] weights.
    projection: Vec<f32>,
    projection_bias: [[f32; ROLE]; ROLES],
    dimension: usize,
    grams: Vec<i8>,
    grams_scale: [f32; BAG],
    /// For each input, [`HIDDEN`] weights.
    hidden: Vec<f32>,
    hidden_bias: [f32; HIDDEN],
    /// Of the two outputs, a weight a hidden unit.
    out: Vec<f32>,
    out_bias: [f32; 2],
    /// Of a turn, the one before, how far they differ and their product: log-odds of a topic's beginning in a chat; the bias last.
    pair: Vec<f32>,
    /// Of what the decision is made of, weights, and the bias last.
    blend: [f32; 5],
    /// Log-odds from which a turn begins a segment; after the first and second turn of one they are higher.
    threshold: [f32; 3],
    /// Off-line: weights of what stands around a turn, and the bias last.
    around: [f32; AROUND + 1],
    /// Cosines under which the simple models begin another topic: in a chat, between tasks.
    simple: [f32; 2],
}

/// A turn in its four roles.
#[derive(Debug, Clone, PartialEq)]
pub struct Roles {
    /// As what is said now.
    pub now: [f32; ROLE],
    /// As the turn before.
    pub last: [f32; ROLE],
    /// As the turn before that.
    pub before: [f32; ROLE],
    /// As part of the talk so far.
    pub context: [f32; ROLE],
}

/// What a turn is held against.
#[derive(Debug, Clone, PartialEq)]
pub struct Against {
    /// The turn before, or zeros.
    pub last: [f32; ROLE],
    /// The turn before that, or zeros.
    pub before: [f32; ROLE],
    /// The mean of the talk so far, or zeros.
    pub context: [f32; ROLE],
    /// Likenesses and places.
    pub scalars: [f32; SCALARS],
}

/// What the model says of a turn, in log-odds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Said {
    /// That it is what comes next here.
    pub next: f32,
    /// That it begins another topic.
    pub shift: f32,
}

#[derive(Deserialize)]
struct Words {
    stop: Vec<String>,
}

impl Coherence {
    /// Loads the family's files.
    ///
    /// # Errors
    /// [`Failure::Model`].
    pub fn open(family: &Family) -> Result<Coherence, Failure> {
        let bytes = family.read(FILE)?;
        let tensors = Tensors::open(family, FILE, &bytes)?;
        let head = |tier: Tier, dimension: usize| {
            let named = |name: &str| format!("{}.{name}", tier.name());
            Ok::<_, Failure>(Head {
                projection: tensors.floats(&named("projection"), &[dimension + BAG, PROJECTED])?,
                projection_bias: roles(&tensors.labels(&named("projection_bias"))?),
                dimension,
                grams: tensors.bytes(&named("grams"), &[BUCKETS, BAG])?,
                grams_scale: tensors.labels(&named("grams_scale"))?,
                hidden: tensors.floats(&named("hidden"), &[INPUTS, HIDDEN])?,
                hidden_bias: tensors.labels(&named("hidden_bias"))?,
                out: tensors.floats(&named("out"), &[2, HIDDEN])?,
                out_bias: tensors.labels(&named("out_bias"))?,
                pair: tensors.floats(&named("pair"), &[4 * dimension + 1])?,
                blend: tensors.labels(&named("blend"))?,
                threshold: tensors.labels(&named("threshold"))?,
                around: tensors.labels(&named("around"))?,
                simple: tensors.labels(&named("simple"))?,
            })
        };
        let (full, fast) = (head(Tier::Full, encoder::DIMENSION)?, head(Tier::Fast, embed::DIMENSION)?);
        let bytes = family.read(WORDS_FILE)?;
        let words: Words =
            serde_json::from_slice(&bytes).map_err(|e| family.failure(WORDS_FILE, format!("no word list: {e}")))?;
        let stop = words.stop.into_iter().map(String::into_bytes).collect();
        let (model, version) = (family.card().model.clone(), family.card().version.clone());
        Ok(Coherence { full, fast, stop, model, version })
    }

    /// Which model it is.
    pub fn provenance(&self, tier: Tier) -> Provenance {
        Provenance { model: self.model.clone(), version: self.version.clone(), tier }
    }

    fn head(&self, tier: Tier) -> &Head {
        match tier {
            Tier::Full => &self.full,
            Tier::Fast => &self.fast,
        }
    }

    /// A turn in its roles. `embedding` is the tier's; of another dimension there is nothing.
    pub fn roles(&self, tier: Tier, text: &str, embedding: &Embedding) -> Option<Roles> {
        let head = self.head(tier);
        if embedding.components().len() != head.dimension {
            return None;
        }
        let mut inputs: Vec<f32> = embedding.components().collect();
        inputs.extend(head.bag(text));
        let role =
            |place: usize| weighed(&head.projection, PROJECTED, place * ROLE, &head.projection_bias[place], &inputs);
        Some(Roles { now: role(0), last: role(1), before: role(2), context: role(3) })
    }

    /// What the model says of a turn.
    pub fn says(&self, tier: Tier, roles: &Roles, against: &Against) -> Said {
        let head = self.head(tier);
        let mut inputs = Vec::with_capacity(INPUTS);
        for other in [&against.last, &against.before, &against.context] {
            inputs.extend(roles.now.iter().zip(other).map(|(a, b)| a * b));
        }
        inputs.extend(roles.now);
        inputs.extend(against.last);
        inputs.extend(against.scalars);
        let mut hidden = weighed(&head.hidden, HIDDEN, 0, &head.hidden_bias, &inputs);
        hidden.iter_mut().for_each(|x| *x = x.max(0.0));
        let out = |output: usize| {
            let weights = &head.out[output * HIDDEN..][..HIDDEN];
            weights.iter().zip(&hidden).fold(head.out_bias[output], |sum, (weight, x)| sum + weight * x)
        };
        Said { next: out(0), shift: out(1) }
    }

    /// Log-odds that a turn begins another topic, by the linear model of pairs: one of the network's inputs. 0 of vectors of
    /// another dimension.
    pub fn pair(&self, tier: Tier, now: &Embedding, last: &Embedding) -> f32 {
        let head = self.head(tier);
        if now.values.len() != head.dimension || last.values.len() != head.dimension {
            return 0.0;
        }
        let ([of_now, of_last, of_difference, of_product], bias) = split(&head.pair, head.dimension);
        let components = now.components().zip(last.components()).enumerate();
        components.fold(bias, |sum, (i, (a, b))| {
            sum + a * of_now[i] + b * of_last[i] + (a - b).abs() * of_difference[i] + a * b * of_product[i]
        })
    }

    /// Log-odds that a turn begins another topic, from what the network and the model of pairs say: one learnt more from tasks, the
    /// other from chats.
    pub fn begins(&self, tier: Tier, said: Said, pair: f32) -> f32 {
        let [shift, of_pair, next, both, bias] = self.head(tier).blend;
        bias + shift * said.shift + of_pair * pair + next * said.next + both * (said.shift * pair)
    }

    /// Log-odds from which a turn begins another segment, when the one so far has `turns`.
    pub fn threshold(&self, tier: Tier, turns: i64) -> f32 {
        let thresholds = &self.head(tier).threshold;
        thresholds[usize::try_from(turns - 1).unwrap_or_default().min(thresholds.len() - 1)]
    }

    /// Log-odds of a boundary before a turn, when what follows it is known as well.
    pub fn boundary(&self, tier: Tier, around: &[f32; AROUND]) -> f32 {
        let weights = &self.head(tier).around;
        weights.iter().zip(around).fold(weights[AROUND], |sum, (weight, x)| sum + weight * x)
    }

    /// The cosine with the turn before under which the simplest model begins another topic: in a chat, and between tasks.
    pub fn simple(&self, tier: Tier) -> [f32; 2] {
        self.head(tier).simple
    }

    /// Hashes of the content words of a text, rising, each once.
    pub fn terms(&self, text: &str) -> Vec<i32> {
        let mut terms = Vec::new();
        each_token(text, |token| {
            if token[0].is_ascii_alphanumeric() && !self.stop.contains(token) {
                terms.push((hash(&[&token[..token.len().min(STEM_BYTES)]]) & 0x7fff_ffff) as i32);
            }
        });
        terms.sort_unstable();
        terms.dedup();
        terms.truncate(TERMS_MAX);
        terms
    }
}

/// Of all roles, what is of each.
fn roles(all: &[f32; PROJECTED]) -> [[f32; ROLE]; ROLES] {
    std::array::from_fn(|place| std::array::from_fn(|i| all[place * ROLE + i]))
}

/// The weights of the linear model of pairs, and its bias.
fn split(weights: &[f32], dimension: usize) -> ([&[f32]; 4], f32) {
    (std::array::from_fn(|part| &weights[part * dimension..][..dimension]), weights[4 * dimension])
}

impl Head {
    /// The words of a text, one after another and in pairs.
    fn bag(&self, text: &str) -> [f32; BAG] {
        let buckets = buckets(text);
        let mut sum = [0f32; BAG];
        for bucket in &buckets {
            let row = &self.grams[bucket * BAG..][..BAG];
            sum.iter_mut().zip(row).for_each(|(sum, step)| *sum += f32::from(*step));
        }
        let each = 1.0 / (buckets.len().max(1) as f32).sqrt();
        std::array::from_fn(|i| sum[i] * self.grams_scale[i] * each)
    }
}

/// How many content words two turns share: the cosine of the sets. Both rising.
pub fn overlap(one: &[i32], other: &[i32]) -> f32 {
    let (mut i, mut j, mut both) = (0, 0, 0u32);
    while let (Some(a), Some(b)) = (one.get(i), other.get(j)) {
        both += u32::from(a == b);
        i += usize::from(a <= b);
        j += usize::from(b <= a);
    }
    if both == 0 { 0.0 } else { both as f32 / ((one.len() * other.len()) as f32).sqrt() }
}

/// The cosine of two vectors as they travel; of different lengths, 0.
pub fn cosine(one: &Embedding, other: &Embedding) -> f32 {
    if one.values.len() != other.values.len() {
        return 0.0;
    }
    steps(&one.values, &other.values) as f32 * one.scale * other.scale
}

/// The buckets of a text: each word, each with the one before it, and the last with the end.
fn buckets(text: &str) -> Vec<usize> {
    let (mut letters, mut tokens) = (Vec::with_capacity(text.len()), Vec::new());
    each_token(text, |token| {
        let begin = letters.len();
        letters.extend_from_slice(token);
        tokens.push(begin..letters.len());
    });
    if tokens.len() > WORDS_MAX {
        tokens.drain(WORDS_MAX / 2..tokens.len() - WORDS_MAX / 2);
    }
    let mut buckets = Vec::with_capacity(2 * tokens.len() + 1);
    let bucket = |parts: &[&[u8]]| (hash(parts) >> 20) as usize % BUCKETS;
    let mut before: &[u8] = b"^";
    for token in tokens {
        let token = &letters[token];
        buckets.push(bucket(&[token]));
        buckets.push(bucket(&[before, b" ", token]));
        before = token;
    }
    if !buckets.is_empty() {
        buckets.push(bucket(&[before, b" $"]));
    }
    buckets
}

/// Runs of ASCII letters and digits in lower case, apostrophes left out, and the marks `?`, `!` and `.`.
fn each_token(text: &str, mut met: impl FnMut(&[u8])) {
    let mut word = Vec::new();
    for character in text.chars() {
        if character.is_ascii_alphanumeric() {
            word.push(character.to_ascii_lowercase() as u8);
        } else if !matches!(character, '\'' | '\u{2019}') {
            if !word.is_empty() {
                met(&word);
                word.clear();
            }
            if matches!(character, '?' | '!' | '.') {
                met(&[character as u8]);
            }
        }
    }
    if !word.is_empty() {
        met(&word);
    }
}

/// FNV-1a of the parts, one after another.
fn hash(parts: &[&[u8]]) -> u64 {
    let bytes = parts.iter().flat_map(|part| part.iter());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

wide! {
    /// Biases and, for each input, its weights times the input: of a row of `stride` weights those from `begin`. So few sums at
    /// a time that they stay in registers.
    fn weighed<const SIZE: usize>(weights: &[f32], stride: usize, begin: usize, bias: &[f32; SIZE], inputs: &[f32]) -> [f32; SIZE] {
        let mut sums = *bias;
        let mut place = 0;
        while place < inputs.len() {
            let (x, row) = (inputs[place], &weights[place * stride + begin..][..SIZE]);
            let mut i = 0;
            while i < SIZE {
                sums[i] += x * row[i];
                i += 1;
            }
            place += 1;
        }
        sums
    }

    /// The product of two vectors in steps: whole numbers, exact in any order.
    pub(crate) fn steps(one: &[u8], other: &[u8]) -> i32 {
        let (mut sum, mut i) = (0, 0);
        while i < one.len() && i < other.len() {
            sum += i32::from(one[i] as i8) * i32::from(other[i] as i8);
            i += 1;
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(text: &str) -> Vec<String> {
        let mut found = Vec::new();
        each_token(text, |token| found.push(String::from_utf8_lossy(token).into_owned()));
        found
    }

    #[test]
    fn tokens_are_words_and_marks() {
        assert_eq!(
            tokens("I DON\u{2019}T, really?! naïve 2nd."),
            ["i", "dont", "really", "?", "!", "na", "ve", "2nd", "."]
        );
        assert_eq!(tokens("… ''"), [""; 0]);
    }

    #[test]
    fn a_long_text_is_read_at_both_ends() {
        let long: String = (0..100).map(|i| format!("w{i} ")).collect();
        assert_eq!(buckets(&long).len(), 2 * WORDS_MAX + 1);
        assert_eq!(buckets("").len(), 0);
        assert_eq!(buckets("hello").len(), 3);
    }

    #[test]
    fn overlap_is_the_cosine_of_sets() {
        assert_eq!(overlap(&[1, 2, 3, 9], &[2]), 0.5);
        assert_eq!(overlap(&[1, 2], &[1, 2]), 1.0);
        assert_eq!(overlap(&[1], &[]), 0.0);
    }

    #[test]
    fn the_cosine_is_that_of_the_vectors_as_they_travel() {
        let (one, other) = (Embedding::quantise(&[0.6, 0.8]), Embedding::quantise(&[0.8, -0.6]));
        assert!((cosine(&one, &one) - 1.0).abs() < 0.01 && cosine(&one, &other).abs() < 0.01);
        assert_eq!(cosine(&one, &Embedding::quantise(&[1.0])), 0.0);
    }
}
