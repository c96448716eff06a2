//! Recall: which memories of a conversation answer a question in words, and why.
//!
//! Promises: a weighted sum of what each score says: words (BM25 of stems, where a turn also holds those of the turns around
//! it, at a weight: who answers seldom repeats what was asked), vectors of the turn and of its neighbours, words and vectors
//! of the session, the speaker who is meant, the time that is named, and how much it says. Salience decides what fades, not
//! what is found: in its place length found more (`models/memory`). Each found memory tells its share of each score. The same
//! memories and question give the same result, bit for bit; equal scores stand in the order of time. Memories whose vector is
//! of another model count by their words alone. Leaves out: where memories are kept, whose they are, and what a model is
//! (`model::memory`).

mod bm25;
pub mod time;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use schemas::{Embedding, Encoding, Tier, Turn};

use crate::model::Models;
use crate::model::coherence::cosine;
use crate::model::memory::{Weights, stem};
use crate::stage::{Failure, Stage as _};
use crate::stages::Encode;
use bm25::Bm25;

/// Silence after which another session begins, in milliseconds.
pub const SESSION_GAP_MS: i64 = 60 * 60 * 1000;
/// Bits of a position: who searches several conversations together numbers them above these.
pub const POSITION_BITS: u32 = 40;
/// What the words of the turn before count for a turn; those of the one before that, its square.
const BEFORE: f32 = 0.5;
/// What the words of the turn after count.
const AFTER: f32 = 0.2;
/// Saturation and length normalisation of BM25 for turns; those of Anserini's defaults.
const TURNS: (f32, f32) = (0.9, 0.4);
/// The same for sessions; those of Robertson and Zaragoza.
const SESSIONS: (f32, f32) = (1.2, 0.75);
/// Content words with which a turn says as much as any.
const ENOUGH: f32 = 20.0;
/// Turns that speak for a session: those nearest to the question.
const SPEAKING: usize = 3;

/// A memory, as it is searched.
#[derive(Debug, Clone)]
pub struct Remembered {
    /// Position of its turn.
    pub position: i64,
    /// When it was said, in milliseconds since the Unix epoch.
    pub at: i64,
    /// Who said it, as the source names them.
    pub sender: String,
    /// How they are called; empty where nobody knows.
    pub name: String,
    /// Stemmed content words.
    pub terms: Vec<String>,
    /// Model of the vector.
    pub model: String,
    /// The turn's vector.
    pub vector: Embedding,
    /// 0 to 1.
    pub salience: f32,
}

/// What is asked.
#[derive(Debug, Clone)]
pub struct Question {
    /// In words.
    pub text: String,
    /// Stemmed content words.
    pub terms: Vec<String>,
    /// Model of the vector.
    pub model: String,
    /// Its vector.
    pub vector: Embedding,
    /// Who asks, as the source names them: their own turns are meant by "I" and "my".
    pub asker: Option<String>,
}

impl Remembered {
    /// What is remembered of an enriched turn: nothing where it is not worth keeping.
    pub fn of(turn: &Turn) -> Option<Remembered> {
        let part = turn.memory.as_ref().filter(|part| part.keep)?;
        let encoding = turn.encoding.as_ref()?;
        let sender = turn.sender.as_ref();
        Some(Remembered {
            position: turn.position?,
            at: turn.at,
            name: sender.and_then(|sender| sender.name.clone()).unwrap_or_default(),
            sender: sender.map(|sender| sender.id.clone()).unwrap_or_default(),
            terms: part.terms.clone(),
            model: model_of(encoding),
            vector: encoding.embedding.clone(),
            salience: part.salience,
        })
    }
}

impl Question {
    /// A question in words, read by the models of a tier: that of the memories. Nothing where it says nothing.
    ///
    /// # Errors
    /// A fault of ours.
    pub fn of(models: &Arc<Models>, tier: Tier, text: &str) -> Result<Option<Question>, Failure> {
        let mut turn = [Turn { tier: Some(tier), ..Turn::message("recall", "recall", "", "", text, 0) }];
        Encode::new(Arc::clone(models)).infer(&mut turn)?;
        let [turn] = turn;
        Ok(turn.encoding.map(|encoding| {
            let terms = models.memory().terms(text);
            let model = model_of(&encoding);
            Question { text: text.to_owned(), terms, model, vector: encoding.embedding, asker: None }
        }))
    }
}

/// Name and version of the model of a vector: vectors of two models are never compared.
pub fn model_of(encoding: &Encoding) -> String {
    format!("{}@{}", encoding.provenance.model, encoding.provenance.version)
}

/// What each score gave; the sum is the memory's score.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Why {
    /// Its words and those around it.
    pub words: f32,
    /// Its vector.
    pub vector: f32,
    /// Vectors of the turns before and after.
    pub around: f32,
    /// Words and vectors of its session.
    pub session: f32,
    /// That its speaker is meant.
    pub speaker: f32,
    /// How much it says.
    pub length: f32,
    /// That its time is named.
    pub time: f32,
}

impl Why {
    /// The memory's score.
    pub fn score(&self) -> f32 {
        self.words + self.vector + self.around + self.session + self.speaker + self.length + self.time
    }
}

/// The memories of a conversation, ready to be searched.
#[derive(Debug)]
pub struct Palace {
    memories: Vec<Remembered>,
    /// Of each memory.
    known: Vec<Known>,
    sessions_count: usize,
    /// Models of vectors, and senders, by their numbers.
    models: Vec<String>,
    senders: Vec<String>,
    words: HashMap<String, u32>,
    turns: Bm25,
    talks: Bm25,
    /// Of each sender, the parts of their names.
    names: BTreeMap<String, HashSet<String>>,
    /// Stems of those: they say who is meant, not what.
    called: HashSet<String>,
}

/// What is computed of a memory once.
#[derive(Debug)]
struct Known {
    session: u32,
    model: u32,
    sender: u32,
    /// How much it says, 0 to 1.
    length: f32,
    date: time::Date,
}

impl Palace {
    /// An index over memories, in any order.
    pub fn new(mut memories: Vec<Remembered>) -> Palace {
        memories.sort_by_key(|memory| memory.position);
        let (mut known, mut models, mut senders) = (Vec::with_capacity(memories.len()), Vec::new(), Vec::new());
        let mut session = 0u32;
        for (place, memory) in memories.iter().enumerate() {
            let begins = place > 0 && is_apart(&memories[place - 1], memory);
            session += u32::from(begins);
            known.push(Known {
                session,
                model: number(&mut models, &memory.model),
                sender: number(&mut senders, &memory.sender),
                length: length(memory),
                date: time::Date::of(memory.at),
            });
        }
        let sessions_count = known.last().map_or(0, |last| last.session as usize + 1);
        let mut words: HashMap<String, u32> = HashMap::new();
        let ids: Vec<Vec<u32>> = memories
            .iter()
            .map(|memory| {
                let id = |term: &String| {
                    let next = words.len() as u32;
                    *words.entry(term.clone()).or_insert(next)
                };
                memory.terms.iter().map(id).collect()
            })
            .collect();
        let around = |place: usize| {
            let near = |other: Option<usize>, weight: f32| {
                let session = |place: usize| known.get(place).map(|known: &Known| known.session);
                let other = other.filter(|other| session(*other) == session(place));
                other.map(|other| (ids[other].as_slice(), weight))
            };
            let neighbours = [
                near(place.checked_sub(1), BEFORE),
                near(place.checked_sub(2), BEFORE * BEFORE),
                near(Some(place + 1), AFTER),
            ];
            let mut terms: BTreeMap<u32, f32> = BTreeMap::new();
            for (ids, weight) in neighbours.into_iter().flatten().chain([(ids[place].as_slice(), 1.0)]) {
                ids.iter().for_each(|id| *terms.entry(*id).or_default() += weight);
            }
            terms
        };
        let turns = Bm25::new(words.len(), TURNS, (0..memories.len()).map(around), &ids);
        let mut talked: Vec<Vec<u32>> = vec![Vec::new(); sessions_count];
        for (ids, known) in ids.iter().zip(&known) {
            talked[known.session as usize].extend(ids);
        }
        let counts = talked.iter().map(|ids| {
            let mut terms: BTreeMap<u32, f32> = BTreeMap::new();
            ids.iter().for_each(|id| *terms.entry(*id).or_default() += 1.0);
            terms
        });
        let talks = Bm25::new(words.len(), SESSIONS, counts, &talked);
        let mut names: BTreeMap<String, HashSet<String>> = BTreeMap::new();
        for memory in memories.iter().filter(|memory| !memory.name.is_empty()) {
            let parts = memory.name.to_lowercase();
            let parts = parts.split(|c: char| !c.is_alphanumeric()).filter(|part| !part.is_empty());
            names.entry(memory.sender.clone()).or_default().extend(parts.map(str::to_owned));
        }
        let called = names.values().flatten().map(|part| stem(part)).collect();
        Palace { memories, known, sessions_count, models, senders, words, turns, talks, names, called }
    }

    /// The memories, in the order of time.
    pub fn memories(&self) -> &[Remembered] {
        &self.memories
    }

    /// The session of a memory, by its place in [`Palace::memories`]: 0, 1, 2 …
    pub fn session(&self, place: usize) -> usize {
        self.known[place].session as usize
    }

    /// The best memories for a question, by their place in [`Palace::memories`], the best first.
    pub fn recall(&self, question: &Question, weights: &Weights, limit: usize) -> Vec<(usize, Why)> {
        let why = self.weighed(question, weights);
        let mut found: Vec<(usize, f32)> = why.iter().map(Why::score).enumerate().collect();
        let order = |(a, one): &(usize, f32), (b, other): &(usize, f32)| other.total_cmp(one).then(a.cmp(b));
        if limit < found.len() {
            found.select_nth_unstable_by(limit, order);
            found.truncate(limit);
        }
        found.sort_unstable_by(order);
        found.into_iter().map(|(place, _)| (place, why[place])).collect()
    }

    /// What each memory's scores say.
    fn weighed(&self, question: &Question, weights: &Weights) -> Vec<Why> {
        let meant = self.meant(question).and_then(|sender| self.senders.iter().position(|known| known == sender));
        let subjects = question.terms.iter().filter(|term| !self.called.contains(term.as_str()));
        let mut terms: Vec<u32> = subjects.filter_map(|term| self.words.get(term).copied()).collect();
        terms.sort_unstable();
        terms.dedup();
        let words = self.turns.scores(&terms);
        let talks = self.talks.scores(&terms);
        let likeness = self.likeness(question);
        let spoken = self.speaking(&likeness);
        let asked = time::Asked::of(&question.text);
        let neighbour = |place: usize, other: Option<usize>| {
            let session = self.known[place].session;
            let other = other.filter(|other| self.known.get(*other).is_some_and(|known| known.session == session));
            other.map_or(0.0, |other| likeness[other])
        };
        (0..self.memories.len())
            .map(|place| {
                let (known, session) = (&self.known[place], self.session(place));
                let before = neighbour(place, place.checked_sub(1));
                let after = neighbour(place, Some(place + 1));
                Why {
                    words: weights.words * words[place],
                    vector: weights.vector * likeness[place],
                    around: weights.before * before + weights.after * after,
                    session: weights.session_words * talks[session] + weights.session_vector * spoken[session],
                    speaker: if meant == Some(known.sender as usize) { weights.speaker } else { 0.0 },
                    length: weights.length * known.length,
                    time: weights.time * asked.fits(&known.date),
                }
            })
            .collect()
    }

    /// Whose turns a question is about: the one speaker that it names, or who asks and says "I".
    fn meant<'p>(&'p self, question: &'p Question) -> Option<&'p str> {
        let text = question.text.to_lowercase();
        let words: HashSet<&str> = text.split(|c: char| !c.is_alphanumeric()).collect();
        let mut named = self.names.iter().filter(|(_, parts)| parts.iter().any(|part| words.contains(part.as_str())));
        match (named.next(), named.next()) {
            (Some((sender, _)), None) => Some(sender),
            (None, _) if ["i", "my", "me"].iter().any(|word| words.contains(word)) => question.asker.as_deref(),
            _ => None,
        }
    }

    /// How like the question each memory is; 0 where its vector is of another model.
    fn likeness(&self, question: &Question) -> Vec<f32> {
        let model = self.models.iter().position(|model| *model == question.model);
        let like = |(memory, known): (&Remembered, &Known)| {
            if model == Some(known.model as usize) { cosine(&question.vector, &memory.vector) } else { 0.0 }
        };
        self.memories.iter().zip(&self.known).map(like).collect()
    }

    /// How near the sessions are to the question: the mean of their nearest turns.
    fn speaking(&self, likeness: &[f32]) -> Vec<f32> {
        let mut nearest = vec![[f32::NEG_INFINITY; SPEAKING]; self.sessions_count];
        for (known, x) in self.known.iter().zip(likeness) {
            let best = &mut nearest[known.session as usize];
            let mut x = *x;
            for held in best {
                if x > *held {
                    std::mem::swap(held, &mut x);
                }
            }
        }
        let mean = |best: [f32; SPEAKING]| {
            let there = best.iter().filter(|x| x.is_finite());
            there.clone().sum::<f32>() / there.count().max(1) as f32
        };
        nearest.into_iter().map(mean).collect()
    }
}

/// The number of a name among those that are known; a new one gets the next.
fn number(names: &mut Vec<String>, name: &str) -> u32 {
    let place = names.iter().position(|known| known == name);
    place.unwrap_or_else(|| {
        names.push(name.to_owned());
        names.len() - 1
    }) as u32
}

/// Whether two memories in a row are of different sessions.
fn is_apart(before: &Remembered, now: &Remembered) -> bool {
    before.position >> POSITION_BITS != now.position >> POSITION_BITS
        || now.at.saturating_sub(before.at).saturating_abs() >= SESSION_GAP_MS
}

/// How much a memory says: by its content words, from 0 to 1.
fn length(memory: &Remembered) -> f32 {
    ((memory.terms.len() as f32).ln_1p() / ENOUGH.ln_1p()).min(1.0)
}

#[cfg(test)]
mod tests;
