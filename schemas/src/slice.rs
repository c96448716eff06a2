//! Slices of a context: what a stage knows of a conversation so far. Bounded in size; in the same versioned Avro as
//! what travels, so that the previous release can read them.

use serde::{Deserialize, Serialize};

use crate::part::{Embedding, Evidence, Question, Slot};

/// Slice of the first processor: numbers the turns of a conversation and knows the ids of the last ones.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Sequence {
    /// Position of the last turn; 0 before the first.
    pub position: i64,
    /// Ids of the last turns, 16 bytes each, the newest last.
    #[serde(with = "apache_avro::serde::bytes")]
    pub recent: Vec<u8>,
}

/// Slice of stage `encode`: what was said lately, as vectors.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct EncodeSlice {
    /// One for each embedding model.
    pub spaces: Vec<Space>,
    /// Turns to come that carry the flag [`crate::turn::SELF_HARM_WORDS`], because of what was said lately.
    #[serde(default)]
    pub flagged: i32,
}

/// The vectors of one embedding model; those of different models are never mixed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Space {
    /// Name and version of the model.
    pub model: String,
    /// Embeddings of the last turns, the newest last.
    pub recent: Vec<Embedding>,
}

/// Slice of stage `emotion`: the mood as decayed sums (means are sums over `weight`).
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct EmotionSlice {
    /// Turns folded so far.
    pub turns: i64,
    /// The latest time folded, in milliseconds since the Unix epoch.
    pub at: i64,
    /// Decayed number of turns.
    pub weight: f64,
    /// Decayed sum of the valence.
    pub valence: f64,
    /// Decayed sum of the squared valence.
    pub valence_squared: f64,
    /// Decayed sum of the intensity.
    pub intensity: f64,
    /// Decayed sums of the Ekman view, in the order of its labels; empty before the first turn.
    pub ekman: Vec<f64>,
    /// As `weight`, with the short half-life.
    pub recent_weight: f64,
    /// As `valence`, with the short half-life.
    pub recent_valence: f64,
    /// Decayed sum of the tension, with the short half-life.
    #[serde(default)]
    pub recent_tension: f64,
    /// The last turn that took a side: -1 tense, 1 pleasant; 0 before there was one.
    #[serde(default)]
    pub side: i32,
}

/// Slice of stage `dialogue`: who spoke, what is open, what was given.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct DialogueSlice {
    /// Turns folded so far.
    pub turns: i64,
    /// Who spoke last, as the source names them; empty where it does not.
    pub speaker: String,
    /// Turns of that speaker in a row.
    pub run: i32,
    /// How often the speaker has changed.
    pub exchanges: i64,
    /// Questions that wait for an answer, the oldest first.
    #[serde(default)]
    pub questions: Vec<Question>,
    /// The last value of each slot, the newest last.
    #[serde(default)]
    pub slots: Vec<Slot>,
    /// Labels of the actions of configured tasks that a bot took, the newest last.
    #[serde(default)]
    pub actions: Vec<String>,
}

/// Slice of stage `synesthesia`: where palette and feeling of the conversation stand, so that they move smoothly.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct SynesthesiaSlice {
    /// Turns folded so far.
    pub turns: i64,
    /// Smoothed valence, −1 to 1.
    pub valence: f64,
    /// Smoothed arousal, −1 to 1.
    pub arousal: f64,
    /// The palette as it was shown last; empty before the first turn.
    #[serde(default)]
    pub palette: Vec<Shade>,
}

/// A colour in OKLab.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Shade {
    /// 0 (black) to 1 (white).
    pub lightness: f32,
    /// Green to red.
    pub a: f32,
    /// Blue to yellow.
    pub b: f32,
}

/// Slice of stage `personality`: additive statistics of the people who consented, and of nobody else.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct PersonalitySlice {
    /// Those who consented, the one who spoke last at the end.
    #[serde(default)]
    pub persons: Vec<Person>,
}

/// Somebody who consented to being profiled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Person {
    /// Who, as the source names them.
    pub sender: String,
    /// When they consented last, in milliseconds since the Unix epoch.
    pub consented_at: i64,
    /// Version of the text that they agreed to.
    pub text_version: String,
    /// One for each model: those of different models are never mixed.
    #[serde(default)]
    pub statistics: Vec<Statistics>,
}

/// Sums of what one model measured of one person: those of several conversations add up.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Statistics {
    /// Name, version and tier of the model.
    pub model: String,
    /// Turns with words.
    pub turns: i64,
    /// Their words.
    pub words: i64,
    /// Sum of the squared words of each turn.
    pub words_squared: f64,
    /// Sums of words × score, in the model's order.
    #[serde(default)]
    pub sums: Vec<f64>,
    /// Sums of words × score², in the model's order.
    #[serde(default)]
    pub squares: Vec<f64>,
}

impl Statistics {
    /// Those of one turn.
    pub fn of(evidence: &Evidence) -> Statistics {
        let words = f64::from(evidence.words.max(0));
        let scores = || evidence.scores.iter().map(|score| f64::from(*score));
        Statistics {
            model: String::new(),
            turns: i64::from(evidence.words > 0),
            words: i64::from(evidence.words.max(0)),
            words_squared: words * words,
            sums: scores().map(|score| words * score).collect(),
            squares: scores().map(|score| words * score * score).collect(),
        }
    }

    /// Adds what the same model measured elsewhere: another turn, or another conversation of the same person.
    pub fn add(&mut self, other: &Statistics) {
        self.turns = self.turns.saturating_add(other.turns);
        self.words = self.words.saturating_add(other.words);
        self.words_squared += other.words_squared;
        for (ours, theirs) in [(&mut self.sums, &other.sums), (&mut self.squares, &other.squares)] {
            ours.resize(ours.len().max(theirs.len()), 0.0);
            ours.iter_mut().zip(theirs).for_each(|(sum, x)| *sum += x);
        }
    }
}

/// Slice of stage `coherence`: what was said lately, and the segment that it belongs to.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct CoherenceSlice {
    /// Models of the vectors and of the stage: what another made is forgotten.
    pub model: String,
    /// Turns that these models have read.
    pub spoken: i64,
    /// Who spoke last, as the source names them.
    pub sender: String,
    /// Number of the segment; 0 before the first turn.
    pub segment: i64,
    /// Position of its first turn.
    pub first: i64,
    /// Its turns.
    pub turns: i64,
    /// The last turns, the newest last.
    #[serde(default)]
    pub recent: Vec<Said>,
    /// What the last turn prepares, as the model reads it.
    #[serde(default)]
    pub last: Vec<f32>,
    /// The same of the last two turns for the turn after the next, the newest last.
    #[serde(default)]
    pub before: Vec<f32>,
    /// Decayed sum of what all turns were about.
    #[serde(default)]
    pub context: Vec<f32>,
    /// Decayed number of turns.
    #[serde(default)]
    pub weight: f32,
}

/// A turn, as the next ones are held against it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Said {
    /// Its place in the encoder's space.
    pub vector: Embedding,
    /// Hashes of its content words, rising.
    #[serde(default)]
    pub terms: Vec<i32>,
}

/// Slice of stage `memory`: the rooms of the palace, and where the talk is.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct MemorySlice {
    /// Model of the vectors: with another the rooms stand, their vectors begin anew.
    pub model: String,
    /// Turns that were given a place.
    pub turns: i64,
    /// Number of the room where the talk is; 0 before the first turn.
    pub room: i32,
    /// Decayed sum of what was said lately, as a vector.
    #[serde(default)]
    pub direction: Vec<f32>,
    /// Words of what was said lately.
    #[serde(default)]
    pub lately: Vec<Weighed>,
    /// The rooms, in the order in which they were built.
    #[serde(default)]
    pub rooms: Vec<Room>,
}

/// A word, and how much it counts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "WeighedFields")]
pub struct Weighed {
    term: String,
    /// As it was said last.
    pub word: String,
    /// Decayed number of turns with it.
    pub weight: f32,
    /// A hash of the stem, which does not travel: words of many rooms are told apart without a look at their letters.
    #[serde(skip)]
    key: u32,
}

/// What travels of [`Weighed`].
#[derive(Deserialize)]
#[serde(rename = "Weighed")]
struct WeighedFields {
    term: String,
    word: String,
    weight: f32,
}

impl From<WeighedFields> for Weighed {
    fn from(WeighedFields { term, word, weight }: WeighedFields) -> Weighed {
        Weighed { key: Weighed::key_of(&term), term, word, weight }
    }
}

impl Weighed {
    /// A word that was said in this turn.
    pub fn said(term: &str, word: &str) -> Weighed {
        Weighed { key: Weighed::key_of(term), term: term.to_owned(), word: word.to_owned(), weight: 1.0 }
    }

    /// Its stem.
    pub fn term(&self) -> &str {
        &self.term
    }

    /// The same for the same stem, and hardly for another one.
    pub fn key(&self) -> u32 {
        self.key
    }

    /// The key of a stem (FNV-1a).
    pub fn key_of(term: &str) -> u32 {
        term.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
    }

    /// Whether this is a word with this stem; `key` is the stem's.
    pub fn is(&self, key: u32, term: &str) -> bool {
        self.key == key && self.term == term
    }
}

/// A subject of the conversation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Room {
    /// 1, 2, 3 … in the order in which they were built.
    pub number: i32,
    /// Where it stands on the map, eastwards.
    pub x: i32,
    /// Where it stands on the map, northwards.
    pub y: i32,
    /// Places that were given so far.
    pub places: i32,
    /// When it was entered last, counted in turns.
    pub at: i64,
    /// Decayed sum of its turns; absent before the first with a vector.
    #[serde(default)]
    pub centroid: Option<Embedding>,
    /// Its words, the heaviest first.
    #[serde(default)]
    pub terms: Vec<Weighed>,
}
