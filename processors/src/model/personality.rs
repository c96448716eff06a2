//! What writing says of its writer: word categories and the vector of a text, taken together linearly (`models/personality`).
//!
//! Promises: a text has a score for each of the Big Five and each measure of style, so that scores weighted by words add up
//! over texts; sums run in a fixed order. The same sums give a person's traits with intervals, and the style in which to
//! write to them. A weak signal, never a ground for decisions about a person. Leaves out: who may be scored (the stage),
//! and training.

use foldhash::HashMap;
use schemas::slice::Statistics;
use schemas::{Embedding, Estimate, Provenance, Style, Tier, Traits};
use serde::Deserialize;

use super::card::Family;
use super::tensors::Tensors;
use super::{embed, encoder};
use crate::stage::Failure;

const FILE: &str = "personality.safetensors";
const WORDS_FILE: &str = "words.json";

/// The Big Five.
pub const TRAITS: usize = Traits::NAMES.len();
/// Measures of style.
pub const MEASURES: usize = Style::LABELS.len();
/// Scores of a text: the Big Five, in the order of [`Traits::NAMES`], then those of [`Style::LABELS`].
pub const SCORES: usize = TRAITS + MEASURES;
/// Scores that are read linearly from a text; verbosity and pace are measured.
const LINEAR: usize = TRAITS + 2;
/// Shares of words that stand beside the categories: long ones, those with an apostrophe, exclamation and question marks.
const SURFACE: usize = 4;
/// Letters from which a word is long.
const LONG_LETTERS: usize = 7;
/// Words of a text at which the verbosity is 1 − 1/e.
const VERBOSITY_WORDS: f32 = 20.0;
/// Words of a sentence at which the pace is one half.
const PACE_WORDS: f32 = 10.0;
/// Word categories, at most: they are bits of a number.
const CATEGORIES_MAX: usize = 64;
/// Shortest beginning of a word that a category may name, in bytes: a longer word is looked up by as many.
const PREFIX_BYTES: usize = 3;
/// Half the width of an interval that holds 80 % of a normal distribution, in standard deviations.
const QUANTILE: f64 = 1.281_551_6;
/// Turns that the prior of the spread within a person counts for.
const SPREAD_TURNS: f64 = 10.0;
/// Words for which the middle of the style counts: somebody's first sentences change little.
const STYLE_WORDS: f64 = 100.0;

/// The model.
#[derive(Debug)]
pub struct Personality {
    words: Words,
    full: Head,
    fast: Head,
    model: String,
    version: String,
}

/// The personas whose style is known, as examples of what the parameters mean.
pub const PERSONAS: [&str; 3] = ["friendly", "humorous", "professional"];

/// What one tier reads.
#[derive(Debug)]
struct Head {
    /// For each linear score a weight for every category, the surface and the vector.
    weight: Vec<f32>,
    inputs: usize,
    bias: [f32; LINEAR],
    /// Of each trait, the variance of a person's sentences among chats.
    spread: [f32; TRAITS],
    /// Of each trait, by how much sentences that follow each other vary less than as many that do not.
    drift: [f32; TRAITS],
    /// What each persona writes like: mean and spread of its replies' style, in the order of [`PERSONAS`].
    personas: [[[f32; MEASURES]; 2]; PERSONAS.len()],
}

/// Words and beginnings of words by category.
#[derive(Debug)]
struct Words {
    count: usize,
    whole: HashMap<String, u64>,
    /// By their first bytes: the rest, and the categories.
    beginnings: HashMap<[u8; PREFIX_BYTES], Vec<(String, u64)>>,
}

/// What is counted of a text.
struct Counted {
    words: u32,
    categories: [u32; CATEGORIES_MAX],
    surface: [u32; SURFACE],
    sentences: u32,
}

#[derive(Deserialize)]
struct Category {
    words: Vec<String>,
}

/// What a text says, and its words.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scored {
    /// How many words were read: runs of ASCII letters.
    pub words: u32,
    /// The scores.
    pub scores: [f32; SCORES],
}

impl Personality {
    /// Loads the family's files.
    ///
    /// # Errors
    /// [`Failure::Model`].
    pub fn open(family: &Family) -> Result<Personality, Failure> {
        let words = Words::open(family)?;
        let bytes = family.read(FILE)?;
        let tensors = Tensors::open(family, FILE, &bytes)?;
        let head = |tier: Tier, dimension: usize| {
            let inputs = words.count + SURFACE + dimension;
            let named = |name: &str| format!("{}.{name}", tier.name());
            let personas = tensors.floats(&named("personas"), &[PERSONAS.len(), 2, MEASURES])?;
            let of = |persona, what, measure| personas[(persona * 2 + what) * MEASURES + measure];
            Ok::<_, Failure>(Head {
                weight: tensors.floats(&named("weight"), &[LINEAR, inputs])?,
                inputs,
                bias: tensors.labels(&named("bias"))?,
                spread: tensors.labels(&named("spread"))?,
                drift: tensors.labels(&named("drift"))?,
                personas: std::array::from_fn(|p| std::array::from_fn(|w| std::array::from_fn(|m| of(p, w, m)))),
            })
        };
        let (full, fast) = (head(Tier::Full, encoder::DIMENSION)?, head(Tier::Fast, embed::DIMENSION)?);
        let (model, version) = (family.card().model.clone(), family.card().version.clone());
        Ok(Personality { words, full, fast, model, version })
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

    /// What a text says of its writer. `embedding` is the tier's; of another dimension there is nothing.
    pub fn score(&self, tier: Tier, text: &str, embedding: &Embedding) -> Option<Scored> {
        let head = self.head(tier);
        let counted = self.words.count(text);
        let each = 1.0 / counted.words.max(1) as f32;
        let mut inputs = Vec::with_capacity(head.inputs);
        inputs.extend(counted.categories[..self.words.count].iter().map(|count| *count as f32 * each));
        inputs.extend(counted.surface.map(|count| count as f32 * each));
        inputs.extend(embedding.components());
        if inputs.len() != head.inputs {
            return None;
        }
        let linear = |score: usize| {
            let weights = &head.weight[score * head.inputs..][..head.inputs];
            weights.iter().zip(&inputs).fold(head.bias[score], |sum, (weight, x)| sum + weight * x)
        };
        let scores = std::array::from_fn(|score| match score {
            0..TRAITS => linear(score),
            TRAITS..LINEAR => 1.0 / (1.0 + (-linear(score)).exp()),
            LINEAR => 1.0 - (-(counted.words as f32) / VERBOSITY_WORDS).exp(),
            _ => PACE_WORDS / (PACE_WORDS + counted.words as f32 / counted.sentences as f32),
        });
        Some(Scored { words: counted.words, scores })
    }

    /// The traits that sums speak for, each with the interval for as many other words of the person. Their spread is that
    /// of the person's own turns, drawn to that of chats while they are few.
    pub fn traits(&self, tier: Tier, statistics: &Statistics) -> Traits {
        let head = self.head(tier);
        let words = (statistics.words as f64).max(1.0);
        Traits::from_array(std::array::from_fn(|trait_| {
            let sum = |sums: &[f64]| sums.get(trait_).copied().unwrap_or_default();
            let mean = sum(&statistics.sums) / words;
            let own = (sum(&statistics.squares) / words - mean * mean).max(0.0);
            let turns = statistics.turns as f64;
            let spread = (own * turns + f64::from(head.spread[trait_]) * SPREAD_TURNS) / (turns + SPREAD_TURNS);
            let variance = spread * f64::from(head.drift[trait_]) * statistics.words_squared / (words * words);
            let half = QUANTILE * (2.0 * variance).sqrt();
            Estimate { mean: mean as f32, low: (mean - half) as f32, high: (mean + half) as f32 }
        }))
    }

    /// How to write to the person that sums speak for: as they write.
    pub fn style(&self, statistics: &Statistics) -> Style {
        Style::from_array(std::array::from_fn(|measure| {
            let sum = statistics.sums.get(TRAITS + measure).copied().unwrap_or_default();
            ((sum + 0.5 * STYLE_WORDS) / (statistics.words as f64 + STYLE_WORDS)) as f32
        }))
    }

    /// How probably each persona writes in a style, in the order of [`PERSONAS`]; they add up to 1.
    pub fn personas(&self, tier: Tier, style: &[f32; MEASURES]) -> [f32; PERSONAS.len()] {
        let fits = self.head(tier).personas.map(|[mean, spread]| {
            let measures = style.iter().zip(mean).zip(spread);
            let fit: f32 = measures.map(|((x, mean), spread)| -0.5 * ((x - mean) / spread).powi(2) - spread.ln()).sum();
            fit
        });
        let best = fits.into_iter().fold(f32::NEG_INFINITY, f32::max);
        let shares = fits.map(|fit| (fit - best).exp());
        shares.map(|share| share / shares.iter().sum::<f32>())
    }
}

/// The measures of style among scores.
pub fn style_of(scores: &[f32; SCORES]) -> [f32; MEASURES] {
    std::array::from_fn(|measure| scores[TRAITS + measure])
}

impl Words {
    fn open(family: &Family) -> Result<Words, Failure> {
        let bytes = family.read(WORDS_FILE)?;
        let categories: Vec<Category> =
            serde_json::from_slice(&bytes).map_err(|e| family.failure(WORDS_FILE, format!("no categories: {e}")))?;
        if categories.is_empty() || categories.len() > CATEGORIES_MAX {
            let problem = format!("holds {} categories, expected 1 to {CATEGORIES_MAX}", categories.len());
            return Err(family.failure(WORDS_FILE, problem));
        }
        let mut words = Words { count: categories.len(), whole: HashMap::default(), beginnings: HashMap::default() };
        for (index, category) in categories.iter().enumerate() {
            for word in &category.words {
                let bit = 1u64 << index;
                match word.strip_suffix('*') {
                    None => *words.whole.entry(word.clone()).or_default() |= bit,
                    Some(beginning) => {
                        let Some((first, rest)) = beginning.as_bytes().split_first_chunk() else {
                            let problem = format!("{word} is shorter than {PREFIX_BYTES} letters");
                            return Err(family.failure(WORDS_FILE, problem));
                        };
                        let rest = String::from_utf8_lossy(rest).into_owned();
                        words.beginnings.entry(*first).or_default().push((rest, bit));
                    }
                }
            }
        }
        Ok(words)
    }

    fn count(&self, text: &str) -> Counted {
        let mut counted = Counted { words: 0, categories: [0; CATEGORIES_MAX], surface: [0; SURFACE], sentences: 0 };
        each_word(text, |word| {
            counted.words += 1;
            counted.surface[0] += u32::from(word.len() >= LONG_LETTERS);
            counted.surface[1] += u32::from(word.contains('\''));
            let mut bits = self.categories(word);
            while bits != 0 {
                counted.categories[bits.trailing_zeros() as usize] += 1;
                bits &= bits - 1;
            }
        });
        let mut ended = true;
        for character in text.chars() {
            counted.surface[2] += u32::from(character == '!');
            counted.surface[3] += u32::from(character == '?');
            match character {
                '.' | '!' | '?' | '\n' => ended = true,
                _ if ended && !character.is_whitespace() => {
                    counted.sentences += 1;
                    ended = false;
                }
                _ => {}
            }
        }
        counted.sentences = counted.sentences.max(1);
        counted
    }

    fn categories(&self, word: &str) -> u64 {
        let mut bits = self.whole.get(word).copied().unwrap_or_default();
        if let Some((first, rest)) = word.as_bytes().split_first_chunk() {
            for (beginning, bit) in self.beginnings.get(first).into_iter().flatten() {
                if rest.starts_with(beginning.as_bytes()) {
                    bits |= bit;
                }
            }
        }
        bits
    }
}

/// The words of a text in lower case: runs of ASCII letters, with apostrophes between them.
fn each_word(text: &str, mut met: impl FnMut(&str)) {
    let mut word = String::new();
    let mut letters = text.chars().flat_map(char::to_lowercase).peekable();
    while let Some(letter) = letters.next() {
        let apostrophe = matches!(letter, '\'' | '\u{2019}');
        let within = apostrophe && !word.is_empty() && letters.peek().is_some_and(char::is_ascii_lowercase);
        if letter.is_ascii_lowercase() {
            word.push(letter);
        } else if within {
            word.push('\'');
        } else if !word.is_empty() {
            met(&word);
            word.clear();
        }
    }
    if !word.is_empty() {
        met(&word);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        let mut found = Vec::new();
        each_word(text, |word| found.push(word.to_owned()));
        found
    }

    #[test]
    fn words_are_runs_of_letters_with_apostrophes_between() {
        assert_eq!(
            words("I can\u{2019}t, 'really' 2nd naïve DON'T'"),
            ["i", "can't", "really", "nd", "na", "ve", "don't"]
        );
        assert_eq!(words("' '' 12 …"), [""; 0]);
    }

    #[test]
    fn a_word_counts_in_every_category_that_names_it_or_its_beginning() {
        let mut lists = Words { count: 2, whole: HashMap::default(), beginnings: HashMap::default() };
        lists.whole.insert("love".to_owned(), 1);
        lists.beginnings.insert(*b"lov", vec![("e".to_owned(), 2), ("ing".to_owned(), 1)]);
        let counted = lists.count("Love, lovely loving! He'd lo?");
        assert_eq!((counted.words, counted.categories[0], counted.categories[1]), (5, 2, 2));
        assert_eq!((counted.surface, counted.sentences), ([0, 1, 1, 1], 2));
    }
}
