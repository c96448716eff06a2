//! What of a text is worth remembering, and what recall weighs how much (`models/memory`).
//!
//! Promises: content words in the order in which they are said, stemmed for English (Snowball); a salience from 0 to 1 by a
//! few rules whose weights were fitted (how much is said, of oneself, of a time); all of it a pure function of the text.
//! Leaves out: where a memory is put (the stage), and how it is found (`recall`).

use foldhash::HashSet;
use rust_stemmers::{Algorithm, Stemmer};
use schemas::{Provenance, Tier};
use serde::Deserialize;

use super::Options;
use super::card::Family;
use crate::stage::Failure;
use crate::stages::ROOMS_MAX;

const FILE: &str = "memory.json";
const SENSITIVE_FILE: &str = "sensitive.json";
/// Content words that are kept of a text: of a longer one the first.
pub const TERMS_MAX: usize = 128;
/// Longest word that is kept, in bytes: what is longer is no word.
const WORD_BYTES_MAX: usize = 64;
const APOSTROPHES: [char; 2] = ['\'', '\u{2019}'];
/// Words by which people speak of themselves.
const SELF: [&str; 6] = ["i", "my", "we", "our", "im", "ive"];

/// The model.
#[derive(Debug)]
pub struct Memory {
    recipe: Recipe,
    sensitive: HashSet<String>,
    keep_words_min: usize,
    rooms_max: usize,
    model: String,
    version: String,
}

#[derive(Debug, Deserialize)]
struct Recipe {
    stop: HashSet<String>,
    times: HashSet<String>,
    salience: Salience,
    full: Weights,
    fast: Weights,
    full_rooms: Rooms,
    fast_rooms: Rooms,
}

#[derive(Debug, Deserialize)]
struct Sensitive {
    stems: HashSet<String>,
}

/// Log-odds that a turn tells a fact.
#[derive(Debug, Deserialize)]
struct Salience {
    bias: f32,
    /// A weight of ln(1 + distinct content words) / ln(1 + `enough`), at most 1.
    length: f32,
    enough: f32,
    of_self: f32,
    of_time: f32,
}

/// What each score counts in recall.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub struct Weights {
    /// BM25 of the turn and what is around it, best 1.
    pub words: f32,
    /// Cosine of the turn.
    pub vector: f32,
    /// Cosine of the turn before.
    pub before: f32,
    /// Cosine of the turn after.
    pub after: f32,
    /// BM25 of the session, best 1.
    pub session_words: f32,
    /// Mean cosine of the session's nearest turns.
    pub session_vector: f32,
    /// That the speaker is meant.
    pub speaker: f32,
    /// How much the turn says, 0 to 1.
    pub length: f32,
    /// How well the time fits, 0 to 1.
    pub time: f32,
}

/// How rooms grow.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub struct Rooms {
    /// What the turn before counts in what is talked about now.
    pub decay: f32,
    /// What shared words count beside the cosine.
    pub words: f32,
    /// What a room is preferred by for being the one where the talk is.
    pub stay: f32,
    /// Likeness under which another room is built.
    pub new: f32,
    /// Content words under which a turn stays where the talk is.
    pub thin: usize,
    /// What the turn before counts in a room's own vector and words.
    pub room_decay: f32,
    /// Turns of a segment (stage coherence) in which the talk may enter another room; from then on it stays. 0: always.
    pub free: i64,
}

/// What a text says.
#[derive(Debug, Clone, PartialEq)]
pub struct Said {
    /// Its content words, stemmed.
    pub terms: Vec<String>,
    /// How much it tells, 0 to 1.
    pub salience: f32,
    /// Whether it is worth keeping.
    pub keep: bool,
}

impl Memory {
    /// Loads the family's file.
    ///
    /// # Errors
    /// [`Failure::Model`].
    pub fn open(family: &Family, options: &Options) -> Result<Memory, Failure> {
        let recipe = serde_json::from_slice(&family.read(FILE)?)
            .map_err(|e| family.failure(FILE, format!("not a recipe of memory: {e}")))?;
        let sensitive: Sensitive = serde_json::from_slice(&family.read(SENSITIVE_FILE)?)
            .map_err(|e| family.failure(SENSITIVE_FILE, format!("not a list of stems: {e}")))?;
        let sensitive = sensitive.stems;
        let (model, version) = (family.card().model.clone(), family.card().version.clone());
        let (keep_words_min, rooms_max) = (options.keep_words_min, options.rooms_max.clamp(1, ROOMS_MAX));
        Ok(Memory { recipe, sensitive, keep_words_min, rooms_max, model, version })
    }

    /// Which model it is.
    pub fn provenance(&self, tier: Tier) -> Provenance {
        Provenance { model: self.model.clone(), version: self.version.clone(), tier }
    }

    /// What recall weighs, by the tier whose vectors it reads.
    pub fn weights(&self, tier: Tier) -> &Weights {
        match tier {
            Tier::Full => &self.recipe.full,
            Tier::Fast => &self.recipe.fast,
        }
    }

    /// How rooms grow of a tier's vectors.
    pub fn rooms(&self, tier: Tier) -> &Rooms {
        match tier {
            Tier::Full => &self.recipe.full_rooms,
            Tier::Fast => &self.recipe.fast_rooms,
        }
    }

    /// Most rooms of a palace.
    pub fn rooms_max(&self) -> usize {
        self.rooms_max
    }

    /// Whether a stem speaks of health, sex, religion or politics.
    pub fn is_sensitive(&self, term: &str) -> bool {
        self.sensitive.contains(term)
    }

    /// A text as its words are read: in lower case, without apostrophes ("don't" is one word).
    pub fn lower(&self, text: &str) -> String {
        bare(text.to_lowercase())
    }

    /// The content words of a text in [`Memory::lower`] case, as they are said.
    pub fn words<'t>(&'t self, lower: &'t str) -> impl Iterator<Item = &'t str> {
        let known = |word: &&str| word.len() <= WORD_BYTES_MAX && !self.recipe.stop.contains(*word);
        words(lower).filter(known).take(TERMS_MAX)
    }

    /// The same words of any text, stemmed.
    pub fn terms(&self, text: &str) -> Vec<String> {
        self.words(&self.lower(text)).map(stem).collect()
    }

    /// What a text says, and whether that is worth keeping.
    pub fn said(&self, text: &str) -> Said {
        let lower = text.to_lowercase();
        let (mut of_self, mut timed) = (false, false);
        for word in words(&lower) {
            of_self |= SELF.contains(&word);
            timed |= self.recipe.times.contains(word) || is_year(word);
        }
        let terms: Vec<String> = self.words(&bare(lower)).map(stem).collect();
        let distinct = terms.iter().collect::<HashSet<_>>().len();
        let rule = &self.recipe.salience;
        let length = ((distinct as f32).ln_1p() / rule.enough.ln_1p()).min(1.0);
        let odds = rule.bias
            + rule.length * length
            + if of_self { rule.of_self } else { 0.0 }
            + if timed { rule.of_time } else { 0.0 };
        Said { terms, salience: 1.0 / (1.0 + (-odds).exp()), keep: distinct >= self.keep_words_min }
    }
}

fn bare(mut lower: String) -> String {
    lower.retain(|character| !APOSTROPHES.contains(&character));
    lower
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty())
}

/// The stem of a word in lower case.
pub fn stem(word: &str) -> String {
    Stemmer::create(Algorithm::English).stem(word).into_owned()
}

fn is_year(word: &str) -> bool {
    word.len() == 4 && (word.starts_with("19") || word.starts_with("20")) && word.bytes().all(|b| b.is_ascii_digit())
}
