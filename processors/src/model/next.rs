//! The next action of a bot that carries out a task: small networks over embeddings (`models/dialogue/FORMAT.md`).
//!
//! Promises: probabilities of the labels that a task allows, from what was said, what the bot did before, and what a
//! knowledge base answered. Labels that training saw are told apart by a network that knows each of them; where one is
//! new, another network reads labels as words. A pure function of the state; sums run in a fixed order. Leaves out: which
//! task a conversation is about.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use schemas::{Embedding, Tier};
use serde::Deserialize;

use super::Models;
use super::card::Family;
use super::tensors::Tensors;
use super::{embed, encoder};
use crate::stage::Failure;

/// Actions of the past that count.
pub const HISTORY_MAX: usize = 32;
/// Actions of all tasks together, at most.
pub const ACTIONS_MAX: usize = 256;
/// Actions of the bot since a knowledge base answered, from which on the answer is old.
pub const OLD: usize = AGES - 1;

const ABOUT: &str = "next.json";
const AGES: usize = 4;
const EVENTS: usize = 6;
/// What an action weighs, by its age in actions.
const AGE_DECAY: f32 = 0.7;
/// What the words of an action weigh, by its age in actions.
const WORD_DECAY: f32 = 0.8;
/// Numbers of the state beside its event, age and knowledge.
const FLOW: usize = 7;
/// Words of an answer from which on its length counts no further.
const KNOWLEDGE_WORDS_MAX: usize = 20;
/// What is compared of a state and a label.
const PAIRS: usize = 13;
/// Cosine from which on an answer is the template.
const THE_SAME: f32 = 0.99;
const SIDE: usize = 24;
const DEEP: usize = 48;

/// Tasks, each with the labels of its actions and what the bot says with each; an empty template is none.
pub type Tasks = BTreeMap<String, BTreeMap<String, String>>;

/// What happened last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Event {
    /// Nothing yet.
    #[default]
    Start,
    /// The bot took an action.
    Action,
    /// The person said something.
    User,
    /// A knowledge base was asked.
    Query,
    /// It answered.
    Returned,
    /// The bot said something of its own.
    Words,
}

/// Where a dialogue stands when the bot has its turn.
#[derive(Debug, Clone, Copy, Default)]
pub struct State<'a> {
    /// Labels of the actions so far, the newest last.
    pub history: &'a [String],
    /// The person's last words, and those before.
    pub said: [Option<&'a Embedding>; 2],
    /// What a knowledge base answered last, in words.
    pub message: Option<&'a str>,
    /// The same as an embedding.
    pub told: Option<&'a Embedding>,
    /// What happened last.
    pub event: Event,
    /// Actions since the knowledge base answered; [`OLD`] where it did not.
    pub age: usize,
    /// Whether a knowledge base has answered at all.
    pub called: bool,
}

/// What is known beside the networks.
#[derive(Debug, Deserialize)]
pub struct About {
    tasks: BTreeMap<String, Vec<String>>,
    templates: BTreeMap<String, String>,
    canonical: HashMap<String, String>,
    knowledge: Vec<String>,
    words: Vec<String>,
    known: Vec<String>,
    transfer: Vec<String>,
    follows: HashMap<String, HashMap<String, u32>>,
}

impl About {
    fn open(family: &Family) -> Result<About, Failure> {
        serde_json::from_slice(&family.read(ABOUT)?).map_err(|e| family.failure(ABOUT, e))
    }

    /// The tasks that training saw.
    pub fn tasks(&self) -> Tasks {
        let labels = |labels: &Vec<String>| labels.iter().map(|label| (label.clone(), self.template(label))).collect();
        self.tasks.iter().map(|(task, of)| (task.clone(), labels(of))).collect()
    }

    /// What the bot of the training dialogues says with an action; empty for one that is not there.
    pub fn template(&self, label: &str) -> String {
        self.templates.get(label).cloned().unwrap_or_default()
    }

    /// The simple model beside the networks: how often an action came after another in training.
    pub fn follows(&self, last: &str, label: &str) -> u32 {
        self.follows.get(last).and_then(|after| after.get(label)).copied().unwrap_or(0)
    }

    /// Words of a label, without the number at its end and its domain before it.
    fn label_words(&self, label: &str, domains: &BTreeSet<String>) -> Vec<String> {
        let lower = label.to_lowercase();
        let split = lower.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
        let mut words: Vec<String> = split.map(str::to_owned).collect();
        if words.len() > 1 && words.last().is_some_and(|word| word.bytes().all(|b| b.is_ascii_digit())) {
            words.pop();
        }
        if words.len() > 1 && domains.contains(&words[0]) {
            words.remove(0);
        }
        words
    }

    /// Words in the form in which those that mean the same to a bot are the same.
    fn canonical<'a>(&self, words: impl Iterator<Item = &'a str>) -> BTreeSet<String> {
        let mut seen: BTreeSet<String> =
            words.map(|word| self.canonical.get(word).map_or(word, String::as_str).to_owned()).collect();
        let (not, available) = (seen.remove("not"), seen.remove("available"));
        if available {
            seen.insert(if not { "unavailable" } else { "available" }.to_owned());
        } else if not && !seen.contains("unavailable") {
            seen.insert("not".to_owned());
        }
        seen
    }

    /// What a knowledge base answered, as numbers; zeros where it did not.
    fn knowledge_numbers(&self, message: Option<&str>) -> Vec<f32> {
        let Some(message) = message else { return vec![0.0; self.knowledge.len() + 2] };
        let lower = message.to_lowercase();
        let words: Vec<&str> = lower.split(|c: char| !c.is_ascii_lowercase()).filter(|word| !word.is_empty()).collect();
        let found = self.canonical(words.iter().copied());
        let mut numbers: Vec<f32> = self.knowledge.iter().map(|word| one(found.contains(word))).collect();
        numbers.push(one(words.is_empty()));
        numbers.push(words.len().min(KNOWLEDGE_WORDS_MAX) as f32 / KNOWLEDGE_WORDS_MAX as f32);
        numbers
    }

    /// Numbers of a label's words that a network reads.
    fn bag(&self, words: &[String]) -> Vec<f32> {
        let found = self.canonical(words.iter().map(String::as_str));
        let mut bag: Vec<f32> = self.words.iter().map(|word| one(found.contains(word))).collect();
        bag.push(words.len() as f32 / 3.0);
        bag.push(found.iter().filter(|word| !self.words.contains(word)).count() as f32 / 2.0);
        bag
    }
}

/// Weights of one network of one tier; a matrix has a row an input.
#[derive(Debug)]
struct Network {
    /// Texts that are read: what the person said last, before, and for the known labels the answer.
    texts: usize,
    dimension: usize,
    hidden: usize,
    out: usize,
    /// Place of the labels that have weights of their own.
    own_at: HashMap<String, usize>,
    weights: HashMap<&'static str, Vec<f32>>,
}

/// Whether labels are told apart or read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Known,
    Transfer,
}

impl Network {
    fn open(family: &Family, tier: Tier, kind: Kind, about: &About) -> Result<Network, Failure> {
        let (name, own, texts) = match kind {
            Kind::Known => ("known", &about.known, 3),
            Kind::Transfer => ("transfer", &about.transfer, 2),
        };
        let dimension = if tier == Tier::Full { encoder::DIMENSION } else { embed::DIMENSION };
        let file = format!("next.{}.{name}.safetensors", tier.name());
        let bytes = family.read(&file)?;
        let tensors = Tensors::open(family, &file, &bytes)?;
        let (hidden, out, bag) = (tensors.rows("text_bias")?, tensors.rows("label_bias")?, about.words.len() + 2);
        let state = 3 * out + bag + EVENTS + AGES + FLOW + about.knowledge.len() + 2;
        let mut weights = HashMap::new();
        let shapes: [(&'static str, &[usize]); 17] = [
            ("word", &[bag, out]),
            ("own", &[own.len(), out]),
            ("text", &[texts * dimension, hidden]),
            ("text_bias", &[hidden]),
            ("state", &[state, hidden]),
            ("out", &[hidden, out]),
            ("out_bias", &[out]),
            ("side_state", &[hidden, SIDE]),
            ("side_state_bias", &[SIDE]),
            ("side_label", &[out, SIDE]),
            ("side_pair", &[PAIRS, DEEP]),
            ("side_pair_bias", &[DEEP]),
            ("deep", &[2 * SIDE + DEEP, DEEP]),
            ("deep_bias", &[DEEP]),
            ("last", &[DEEP, 1]),
            ("last_bias", &[1]),
            ("label_bias", &[out]),
        ];
        for (name, shape) in shapes {
            weights.insert(name, tensors.floats(name, shape)?);
        }
        let own_at = own.iter().enumerate().map(|(at, label)| (label.clone(), at)).collect();
        Ok(Network { texts, dimension, hidden, out, own_at, weights })
    }

    /// What stands for a label.
    fn label(&self, label: &str, bag: &[f32]) -> Vec<f32> {
        let mut z = vec![0.0; self.out];
        add(&mut z, bag, &self.weights["word"]);
        if let Some(at) = self.own_at.get(label) {
            let own = &self.weights["own"][at * self.out..][..self.out];
            z.iter_mut().zip(own).for_each(|(z, own)| *z += own);
        }
        z
    }

    /// A score for each candidate: `z` and `pairs` hold what stands for it, and how it compares with the state.
    fn scores(&self, texts: &[&[f32]], state: &[f32], candidates: &[(&[f32], [f32; PAIRS])]) -> Vec<f32> {
        let w = &self.weights;
        let mut h = w["text_bias"].clone();
        for (text, weights) in texts.iter().zip(w["text"].chunks_exact(self.dimension * self.hidden)) {
            add(&mut h, text, weights);
        }
        add(&mut h, state, &w["state"]);
        rectify(&mut h);
        let mut query = w["out_bias"].clone();
        add(&mut query, &h, &w["out"]);
        let mut beside = w["side_state_bias"].clone();
        add(&mut beside, &h, &w["side_state"]);
        rectify(&mut beside);
        let score = |(z, pairs): &(&[f32], [f32; PAIRS])| {
            let (mut label, mut pair) = (vec![0.0; SIDE], w["side_pair_bias"].clone());
            add(&mut label, z, &w["side_label"]);
            add(&mut pair, pairs, &w["side_pair"]);
            let mut side = [beside.as_slice(), &label, &pair].concat();
            rectify(&mut side);
            let mut deep = w["deep_bias"].clone();
            add(&mut deep, &side, &w["deep"]);
            rectify(&mut deep);
            dot(z, &query) + dot(&deep, &w["last"]) + w["last_bias"][0] + dot(z, &w["label_bias"])
        };
        candidates.iter().map(score).collect()
    }
}

/// What ships: a network of each kind for both tiers.
#[derive(Debug)]
pub struct Next {
    about: About,
    full: [Network; 2],
    fast: [Network; 2],
}

impl Next {
    /// Loads it.
    ///
    /// # Errors
    /// [`Failure::Model`].
    pub(super) fn open(family: &Family) -> Result<Next, Failure> {
        let about = About::open(family)?;
        let open = |tier| -> Result<[Network; 2], Failure> {
            let of = |kind| Network::open(family, tier, kind, &about);
            Ok([of(Kind::Known)?, of(Kind::Transfer)?])
        };
        Ok(Next { full: open(Tier::Full)?, fast: open(Tier::Fast)?, about })
    }

    /// What is known beside the networks.
    pub fn about(&self) -> &About {
        &self.about
    }

    fn network(&self, tier: Tier, kind: Kind) -> &Network {
        let of = if tier == Tier::Full { &self.full } else { &self.fast };
        &of[usize::from(kind == Kind::Transfer)]
    }
}

/// A label that a task may allow.
#[derive(Debug)]
struct Action {
    label: String,
    bag: Vec<f32>,
    asks: bool,
    /// Its words as an embedding, full and fast.
    named: [Vec<f32>; 2],
    /// Its template as an embedding, full and fast; none where it has none.
    said: Option<[Vec<f32>; 2]>,
}

/// The actions of some tasks.
#[derive(Debug)]
pub struct Actions {
    /// In the order of their labels.
    actions: Vec<Action>,
    tasks: BTreeMap<String, Vec<usize>>,
    place: HashMap<String, usize>,
}

impl Actions {
    /// Prepares tasks.
    ///
    /// # Errors
    /// A fault of ours.
    pub fn of(models: &Models, tasks: &Tasks) -> Result<Actions, Failure> {
        let about = models.dialogue().next().about();
        let names = about.tasks.keys().chain(tasks.keys());
        let domains: BTreeSet<String> =
            names.map(|task| task.to_lowercase().split('_').next().unwrap_or_default().to_owned()).collect();
        let mut labels: BTreeMap<&str, &str> = BTreeMap::new();
        for (label, template) in tasks.values().flatten() {
            let known = labels.entry(label).or_default();
            if known.is_empty() {
                *known = template;
            }
        }
        let words: Vec<Vec<String>> = labels.keys().map(|label| about.label_words(label, &domains)).collect();
        let names: Vec<String> = words.iter().map(|words| words.join(" ")).collect();
        let texts: Vec<&str> = names.iter().map(String::as_str).chain(labels.values().copied()).collect();
        let full = models.encoder().encode(&texts, models.cores())?;
        let mut both = full.into_iter().zip(&texts).map(|(full, text)| {
            [full.embedding.components().collect(), models.words().embed(text).components().collect()]
        });
        let named: Vec<[Vec<f32>; 2]> = both.by_ref().take(names.len()).collect();
        let said: Vec<[Vec<f32>; 2]> = both.collect();
        let rows = labels.into_iter().zip(words).zip(named.into_iter().zip(said));
        let action = |(((label, template), words), (named, said)): (((&str, &str), Vec<String>), _)| Action {
            label: label.to_owned(),
            bag: about.bag(&words),
            asks: words.iter().any(|word| word == "ask"),
            named,
            said: Some(said).filter(|_| !template.is_empty()),
        };
        let actions: Vec<Action> = rows.map(action).collect();
        let place: HashMap<String, usize> =
            actions.iter().enumerate().map(|(at, action)| (action.label.clone(), at)).collect();
        let places = |labels: &BTreeMap<String, String>| labels.keys().map(|label| place[label]).collect();
        let tasks = tasks.iter().map(|(task, labels)| (task.clone(), places(labels))).collect();
        Ok(Actions { actions, tasks, place })
    }

    /// Names of the tasks.
    pub fn tasks(&self) -> impl Iterator<Item = &str> {
        self.tasks.keys().map(String::as_str)
    }

    /// The labels that any of these tasks allows, in their order.
    pub fn labels(&self, tasks: &[&str]) -> Vec<&str> {
        self.candidates(tasks).into_iter().map(|at| self.actions[at].label.as_str()).collect()
    }

    fn candidates(&self, tasks: &[&str]) -> BTreeSet<usize> {
        tasks.iter().filter_map(|task| self.tasks.get(*task)).flatten().copied().collect()
    }

    /// The action whose template is nearest to what a bot said, from a cosine of `least`.
    pub fn recognise(&self, tier: Tier, words: &Embedding, least: f32) -> Option<&str> {
        let said: Vec<f32> = words.components().collect();
        let cosine = |action: &Action| {
            let template = &action.said.as_ref()?[column(tier)];
            (template.len() == said.len())
                .then(|| dot(template, &said) / (length(template) * length(&said)).max(f32::MIN_POSITIVE))
        };
        let near = self.actions.iter().filter_map(|action| Some((action, cosine(action)?)));
        near.filter(|(_, c)| *c >= least).max_by(|a, b| a.1.total_cmp(&b.1)).map(|(action, _)| action.label.as_str())
    }

    /// Probabilities of the labels that any of these tasks allows, the most probable first.
    pub fn score(&self, next: &Next, tier: Tier, tasks: &[&str], state: &State<'_>) -> Vec<(&str, f32)> {
        let known = &next.network(tier, Kind::Known).own_at;
        let is_known = self.labels(tasks).iter().all(|label| known.contains_key(*label));
        self.score_by(next, tier, if is_known { Kind::Known } else { Kind::Transfer }, tasks, state)
    }

    fn score_by(&self, next: &Next, tier: Tier, kind: Kind, tasks: &[&str], state: &State<'_>) -> Vec<(&str, f32)> {
        let network = next.network(tier, kind);
        let column = column(tier);
        let none = vec![0.0; network.dimension];
        let vector = |embedding: Option<&Embedding>| {
            let read = embedding.map(|e| e.components().collect::<Vec<f32>>());
            read.filter(|v| v.len() == network.dimension).unwrap_or_else(|| none.clone())
        };
        let (user, before, told) = (vector(state.said[0]), vector(state.said[1]), vector(state.told));
        let start = state.history.len().saturating_sub(HISTORY_MAX);
        let past: Vec<usize> =
            state.history[start..].iter().rev().filter_map(|label| self.place.get(label).copied()).collect();
        let candidates = self.candidates(tasks);
        let standing = |at: usize| network.label(&self.actions[at].label, &self.actions[at].bag);

        let mut numbers = Vec::new();
        let nothing = vec![0.0; network.out];
        for age in 0..2 {
            numbers.extend(past.get(age).map_or_else(|| nothing.clone(), |at| standing(*at)));
        }
        let mut weight: BTreeMap<usize, f32> = BTreeMap::new();
        let mut words = vec![0.0_f32; next.about.words.len() + 2];
        for (age, at) in past.iter().enumerate() {
            weight.entry(*at).or_insert_with(|| AGE_DECAY.powi(age as i32));
            let decayed = WORD_DECAY.powi(age as i32);
            words.iter_mut().zip(&self.actions[*at].bag).for_each(|(word, bag)| *word = word.max(bag * decayed));
        }
        let mut history = nothing;
        for (at, weight) in &weight {
            history.iter_mut().zip(standing(*at)).for_each(|(sum, z)| *sum += weight * z);
        }
        numbers.extend(history);
        numbers.extend(words);
        numbers.extend((0..EVENTS).map(|event| one(event == state.event as usize)));
        numbers.extend((0..AGES).map(|age| one(age == state.age.min(OLD))));
        let asks: Vec<usize> = candidates.iter().copied().filter(|at| self.actions[*at].asks).collect();
        let asked = asks.iter().filter(|at| weight.contains_key(at)).count();
        numbers.extend([
            one(past.is_empty()),
            one(past.len() == 1),
            past.len().min(10) as f32 / 10.0,
            one(state.called),
            asked as f32 / asks.len().max(1) as f32,
            (asks.len() - asked) as f32 / 10.0,
            one(past.first().is_some_and(|at| self.actions[*at].asks)),
        ]);
        numbers.extend(next.about.knowledge_numbers(state.message));

        let pairs = |at: usize| {
            let (named, said) = (&self.actions[at].named[column], self.actions[at].said.as_ref());
            let count = past.iter().filter(|p| **p == at).count();
            let like = |at: usize| dot(named, &self.actions[at].named[column]);
            let (near_user, near_told) = said.map_or((0.0, 0.0), |s| (dot(&s[column], &user), dot(&s[column], &told)));
            [
                one(count > 0),
                count.min(3) as f32 / 3.0,
                one(past.first() == Some(&at)),
                one(past.get(1) == Some(&at)),
                weight.get(&at).copied().unwrap_or(0.0),
                dot(named, &user),
                dot(named, &before),
                dot(named, &told),
                past.first().map_or(0.0, |last| like(*last)),
                past.iter().map(|at| like(*at)).reduce(f32::max).unwrap_or(0.0),
                near_user,
                near_told,
                one(near_told > THE_SAME),
            ]
        };
        let stand: Vec<Vec<f32>> = candidates.iter().map(|at| standing(*at)).collect();
        let rows: Vec<(&[f32], [f32; PAIRS])> =
            candidates.iter().zip(&stand).map(|(at, z)| (z.as_slice(), pairs(*at))).collect();
        let texts = [user.as_slice(), &before, &told];
        let scores = network.scores(&texts[..network.texts], &numbers, &rows);
        let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let exp: Vec<f32> = scores.iter().map(|score| (score - most).exp()).collect();
        let sum: f32 = exp.iter().sum();
        let named = candidates.iter().zip(exp).map(|(at, p)| (self.actions[*at].label.as_str(), p / sum));
        let mut named: Vec<(&str, f32)> = named.collect();
        named.sort_by(|a, b| b.1.total_cmp(&a.1));
        named
    }
}

fn column(tier: Tier) -> usize {
    usize::from(tier == Tier::Fast)
}

fn one(is: bool) -> f32 {
    f32::from(u8::from(is))
}

/// Adds `x` times the matrix, whose rows are as long as `sum`.
fn add(sum: &mut [f32], x: &[f32], matrix: &[f32]) {
    for (x, row) in x.iter().zip(matrix.chunks_exact(sum.len())).filter(|(x, _)| **x != 0.0) {
        sum.iter_mut().zip(row).for_each(|(sum, w)| *sum += x * w);
    }
}

fn rectify(values: &mut [f32]) {
    values.iter_mut().for_each(|v| *v = v.max(0.0));
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn length(a: &[f32]) -> f32 {
    dot(a, a).sqrt()
}

#[cfg(test)]
mod tests;
