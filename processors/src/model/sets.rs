//! The sets of intents in force, and what else stage `dialogue` knows: `models/dialogue`, and files of the operator.
//!
//! Promises: a set has the hash of what defines it; a file that is changed while the program runs is read again within
//! [`LOOK_EVERY`], and one that cannot be used leaves the set as it was, with a warning. Leaves out: what a label is
//! worth to whom.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::thread;
use std::time::{Duration, SystemTime};

use schemas::{Embedding, Provenance, Tier};
use sha2::{Digest, Sha256};

use super::Models;
use super::card::Family;
use super::examples::{EXAMPLES_MAX, Learnt, Seen};
use super::intents::{Centroids, Head, LABELS_MAX, Scored, labels};
use super::next::{Actions, Next};
use super::ngram::Normalised;
use super::slots::{Dictionary, Tagger};
use crate::stage::Failure;

/// The sets that ship.
pub const SHIPPED: [&str; 3] = ["clinc150", "banking77", "hwu64"];
/// The set in force unless the configuration names others.
pub const DEFAULT: &str = "clinc150";
/// Most sets in force.
pub const SETS_MAX: usize = 8;
/// Largest file of examples, in bytes.
pub const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Longest example, in bytes.
pub const EXAMPLE_BYTES_MAX: usize = 4096;
/// Time between two looks at the files.
pub const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Hexadecimal digits of a set's hash.
const HASH_DIGITS: usize = 16;

/// What a turn may do.
pub const ACTS: [&str; 4] = ["inform", "question", "directive", "commissive"];
/// Index of `question` in [`ACTS`].
pub const QUESTION: usize = 1;

/// How much a sign that speaks for a question, or against it, moves its log-odds.
const SIGN: f32 = 4.0;
/// Words that may stand before a question.
const FILLERS: [&str; 7] = ["so", "and", "but", "well", "oh", "hey", "um"];
/// Words that open a question, without apostrophes.
const OPENERS: [&str; 34] = [
    "what", "who", "whom", "whose", "which", "where", "when", "why", "how", "is", "are", "was", "were", "do", "does",
    "did", "have", "has", "had", "can", "could", "would", "will", "shall", "should", "may", "might", "am", "any",
    "isnt", "arent", "doesnt", "didnt", "whats",
];

/// What signs say of a question: 1 with a question mark at the end; without any, −1 where no word opens a question, and −2
/// of "what a", which exclaims; else 0.
fn signs(text: &str) -> f32 {
    if text.trim_end_matches([' ', '\t', '\r', '\n', '"', '\'']).ends_with('?') {
        return 1.0;
    }
    let lower = text.to_lowercase();
    let mut words = lower.split_whitespace().skip_while(|word| FILLERS.contains(&word.trim_end_matches(',')));
    let first = words.next().unwrap_or("");
    let letters = &first[..first.find(|c: char| c != '\'' && !c.is_ascii_lowercase()).unwrap_or(first.len())];
    let opens = letters.split('\'').next().is_some_and(|word| OPENERS.contains(&word))
        || OPENERS.contains(&letters.replace('\'', "").as_str());
    match (text.contains('?'), opens, words.next()) {
        (true, ..) => 0.0,
        (_, false, _) => -1.0,
        (_, _, Some("a" | "an")) if letters == "what" => -2.0,
        _ => 0.0,
    }
}

/// A set of intents.
#[derive(Debug)]
pub struct Set {
    /// Its name: that of the shipped set, or of the file without its ending.
    pub name: String,
    /// First digits of the SHA-256 of what defines it.
    pub hash: String,
    /// The intents.
    pub labels: Vec<String>,
    knowledge: Knowledge,
}

#[derive(Debug)]
enum Knowledge {
    Shipped { full: Head, fast: Head },
    Learnt { full: Learnt, fast: Learnt },
}

impl Set {
    /// The most probable intent of a text; `None` if the embedding is not the tier's.
    pub fn score(&self, tier: Tier, embedding: &Embedding, buckets: &[(u32, u32)]) -> Option<Scored> {
        match (&self.knowledge, tier) {
            (Knowledge::Shipped { full, .. }, Tier::Full) => full.score(embedding, buckets),
            (Knowledge::Shipped { fast, .. }, Tier::Fast) => fast.score(embedding, buckets),
            (Knowledge::Learnt { full, .. }, Tier::Full) => full.score(embedding, buckets),
            (Knowledge::Learnt { fast, .. }, Tier::Fast) => fast.score(embedding, buckets),
        }
    }

    /// What each example of a file would have been called without itself; none for a shipped set.
    pub fn left_out(&self, tier: Tier) -> Option<&[usize]> {
        match (&self.knowledge, tier) {
            (Knowledge::Shipped { .. }, _) => None,
            (Knowledge::Learnt { full, .. }, Tier::Full) => Some(full.left_out()),
            (Knowledge::Learnt { fast, .. }, Tier::Fast) => Some(fast.left_out()),
        }
    }
}

/// What is wrong with a file of examples.
#[derive(Debug, thiserror::Error)]
pub enum ExamplesError {
    /// It cannot be read.
    #[error("read {file}: {error}")]
    Read {
        /// The file.
        file: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// It is not what it should be.
    #[error("{file}: {problem}; it holds a JSON object of intents, each with a list of example sentences")]
    Content {
        /// The file.
        file: String,
        /// What is wrong.
        problem: String,
    },
    /// A name that is neither a shipped set nor a file.
    #[error("there is no set of intents \"{0}\": name one of {list}, or a file that ends with .json", list = SHIPPED.join(", "))]
    Unknown(String),
    /// Too many sets.
    #[error("{0} sets of intents are more than {SETS_MAX}; take some out of [dialogue] intents")]
    TooMany(usize),
    /// A fault of ours.
    #[error(transparent)]
    Model(#[from] Failure),
}

/// Intents with their example sentences, in the order of their names.
pub type Examples = BTreeMap<String, Vec<String>>;

/// Reads examples: `{intent: [sentences]}`, at least two intents, at least two sentences each, repeated ones taken out.
///
/// # Errors
/// [`ExamplesError::Content`].
pub fn examples(file: &str, bytes: &[u8]) -> Result<Examples, ExamplesError> {
    let wrong = |problem: String| ExamplesError::Content { file: file.to_owned(), problem };
    let mut examples: Examples = serde_json::from_slice(bytes).map_err(|e| wrong(e.to_string()))?;
    let mut seen: BTreeMap<String, String> = BTreeMap::new();
    for (intent, sentences) in &mut examples {
        let mut kept = Vec::with_capacity(sentences.len());
        for sentence in sentences.drain(..) {
            if sentence.trim().is_empty() || sentence.len() > EXAMPLE_BYTES_MAX {
                return Err(wrong(format!(
                    "intent {intent} has an example that is empty or over {EXAMPLE_BYTES_MAX} bytes"
                )));
            }
            match seen.insert(sentence.trim().to_lowercase(), intent.clone()) {
                None => kept.push(sentence),
                Some(other) if other == *intent => {}
                Some(other) => return Err(wrong(format!("{other} and {intent} have the same example: {sentence}"))),
            }
        }
        *sentences = kept;
        if sentences.len() < 2 {
            return Err(wrong(format!("intent {intent} has fewer than two different examples")));
        }
    }
    let count: usize = examples.values().map(Vec::len).sum();
    if examples.len() < 2 || examples.len() > LABELS_MAX || count > EXAMPLES_MAX {
        return Err(wrong(format!(
            "{} intents with {count} examples: 2 to {LABELS_MAX} intents and at most {EXAMPLES_MAX} examples are served",
            examples.len()
        )));
    }
    Ok(examples)
}

/// The family `dialogue`, and the sets in force.
#[derive(Debug)]
pub struct Dialogue {
    family: Family,
    acts: (Head, Head),
    tagger: Tagger,
    next: Next,
    sets: RwLock<Arc<Vec<Set>>>,
    domains: RwLock<Arc<Vec<String>>>,
    actions: RwLock<Option<Arc<Actions>>>,
}

impl Dialogue {
    /// Opens the family; the default set is in force.
    ///
    /// # Errors
    /// [`Failure::Model`].
    pub(super) fn open(family: Family) -> Result<Dialogue, Failure> {
        let acts = |tier: Tier| Head::open(&family, &format!("acts.{}.safetensors", tier.name()), tier, ACTS.len());
        let acts = (acts(Tier::Full)?, acts(Tier::Fast)?);
        let first = shipped(&family, DEFAULT)?;
        Ok(Dialogue {
            acts,
            tagger: Tagger::open(&family)?,
            next: Next::open(&family)?,
            sets: RwLock::new(Arc::new(vec![first])),
            domains: RwLock::default(),
            actions: RwLock::default(),
            family,
        })
    }

    /// What stands in the provenance of its parts.
    pub fn provenance(&self, tier: Tier) -> Provenance {
        let card = self.family.card();
        Provenance { model: card.model.clone(), version: card.version.clone(), tier }
    }

    /// Probabilities of [`ACTS`].
    pub fn acts(&self, tier: Tier, text: &str, embedding: &Embedding, buckets: &[(u32, u32)]) -> Option<Vec<f32>> {
        let head = if tier == Tier::Full { &self.acts.0 } else { &self.acts.1 };
        let mut p = head.probabilities(embedding, buckets)?;
        p[QUESTION] *= (SIGN * signs(text)).exp();
        let sum: f32 = p.iter().sum();
        p.iter_mut().for_each(|p| *p /= sum);
        Some(p)
    }

    /// The sets in force, in their order.
    pub fn sets(&self) -> Arc<Vec<Set>> {
        Arc::clone(&self.sets.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// What finds values.
    pub fn tagger(&self) -> &Tagger {
        &self.tagger
    }

    /// The domains in force, whose values are looked for.
    pub fn domains(&self) -> Arc<Vec<String>> {
        Arc::clone(&self.domains.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// What tells next actions.
    pub fn next(&self) -> &Next {
        &self.next
    }

    /// The actions of the tasks in force; none: no task is.
    pub fn actions(&self) -> Option<Arc<Actions>> {
        self.actions.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts the actions of tasks in force.
    pub(super) fn choose_from(&self, actions: Option<Arc<Actions>>) {
        *self.actions.write().unwrap_or_else(PoisonError::into_inner) = actions;
    }

    /// Puts domains in force.
    pub(super) fn look_for(&self, domains: Vec<String>) {
        *self.domains.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(domains);
    }

    /// The simple model beside the one that finds values.
    ///
    /// # Errors
    /// [`Failure::Model`].
    pub fn dictionary(&self) -> Result<Dictionary, Failure> {
        Dictionary::open(&self.family)
    }

    /// The simple model beside a shipped set: its labels, and a centroid of n-grams for each.
    ///
    /// # Errors
    /// [`Failure::Model`].
    pub fn centroids(&self, set: &str) -> Result<Centroids, Failure> {
        let labels = labels(&self.family, &format!("{set}.json"))?;
        Centroids::open(&self.family, &format!("{set}.centroid.safetensors"), labels.len())
    }
}

fn shipped(family: &Family, name: &str) -> Result<Set, Failure> {
    let file = format!("{name}.json");
    let labels = labels(family, &file)?;
    let head = |tier: Tier| Head::open(family, &format!("{name}.{}.safetensors", tier.name()), tier, labels.len());
    let knowledge = Knowledge::Shipped { full: head(Tier::Full)?, fast: head(Tier::Fast)? };
    Ok(Set { name: name.to_owned(), hash: hash(&family.read(&file)?), labels, knowledge })
}

fn hash(bytes: &[u8]) -> String {
    let digits: String = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
    digits[..HASH_DIGITS].to_owned()
}

fn is_file(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|e| e == "json") || name.contains(std::path::MAIN_SEPARATOR)
}

/// The bytes of a file of examples.
fn read(file: &Path) -> Result<Vec<u8>, ExamplesError> {
    let wrong = |error| ExamplesError::Read { file: file.display().to_string(), error };
    let size = std::fs::metadata(file).map_err(wrong)?.len();
    if size > FILE_BYTES_MAX {
        let problem = format!("{size} bytes are more than {FILE_BYTES_MAX}");
        return Err(ExamplesError::Content { file: file.display().to_string(), problem });
    }
    std::fs::read(file).map_err(wrong)
}

/// A set that is named by examples, for both tiers.
///
/// # Errors
/// The file is not what it should be, or a fault of ours.
pub fn learnt(models: &Models, file: &Path) -> Result<Set, ExamplesError> {
    let bytes = read(file)?;
    let named = file.file_stem().map_or_else(|| "examples".to_owned(), |s| s.to_string_lossy().into_owned());
    let shown = file.display().to_string();
    let examples = examples(&shown, &bytes)?;
    learnt_from(models, named, hash(&bytes), &examples).map_err(|problem| match problem {
        Learning::Model(failure) => ExamplesError::Model(failure),
        Learning::Singular(problem) => ExamplesError::Content { file: shown, problem },
    })
}

enum Learning {
    Model(Failure),
    Singular(String),
}

fn learnt_from(models: &Models, name: String, hash: String, examples: &Examples) -> Result<Set, Learning> {
    let labels: Vec<String> = examples.keys().cloned().collect();
    let texts: Vec<&str> = examples.values().flatten().map(String::as_str).collect();
    let truth: Vec<usize> = examples.values().enumerate().flat_map(|(l, e)| e.iter().map(move |_| l)).collect();
    let full = models.encoder().encode(&texts, models.cores()).map_err(Learning::Model)?;
    let full: Vec<Embedding> = full.into_iter().map(|said| said.embedding).collect();
    let fast: Vec<Embedding> = texts.iter().map(|text| models.words().embed(text)).collect();
    let buckets: Vec<Vec<(u32, u32)>> = texts.iter().map(|text| Normalised::of(text).buckets()).collect();
    let learn = |embeddings: &[Embedding]| {
        let seen = embeddings.iter().zip(&buckets);
        let seen: Vec<Seen> =
            seen.map(|(e, b)| Seen { vector: e.components().collect(), buckets: b.clone() }).collect();
        Learnt::from(&seen, &truth, labels.len()).map_err(|e| Learning::Singular(e.to_string()))
    };
    let knowledge = Knowledge::Learnt { full: learn(&full)?, fast: learn(&fast)? };
    Ok(Set { name, hash, labels, knowledge })
}

/// A set by its name, or the file of its examples.
///
/// # Errors
/// There is none of that name, the file is not what it should be, or a fault of ours.
pub fn open(models: &Models, name: &str) -> Result<Set, ExamplesError> {
    match name {
        name if SHIPPED.contains(&name) => Ok(shipped(&models.dialogue().family, name)?),
        name if is_file(name) => learnt(models, Path::new(name)),
        name => Err(ExamplesError::Unknown(name.to_owned())),
    }
}

/// Puts these sets in force: names of shipped ones, or files.
///
/// # Errors
/// A name or a file that cannot be used, or a fault of ours; the sets stay as they were.
pub fn configure(models: &Models, names: &[String]) -> Result<(), ExamplesError> {
    if names.len() > SETS_MAX {
        return Err(ExamplesError::TooMany(names.len()));
    }
    let sets = names.iter().map(|name| open(models, name)).collect::<Result<Vec<Set>, ExamplesError>>()?;
    *models.dialogue().sets.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(sets);
    Ok(())
}

/// As [`configure`], and follows what changes in the files.
///
/// # Errors
/// [`Failure::Model`] that names what cannot be used.
pub fn follow(models: &Arc<Models>, names: &[String]) -> Result<(), Failure> {
    let failure = |problem: String| Failure::Model {
        file: "of [dialogue] intents".to_owned(),
        problem,
        mend: "mend it, or take it out of [dialogue] intents (`undertone intents check FILE` tells more)".to_owned(),
    };
    configure(models, names).map_err(|error| match error {
        ExamplesError::Model(failure) => failure,
        error => failure(error.to_string()),
    })?;
    watch(models, names.to_vec()).map_err(|error| failure(format!("start the thread that reads it again: {error}")))
}

/// Looks at the files among these names for as long as the models live, and puts them in force again when one has changed.
///
/// # Errors
/// The thread cannot be started.
fn watch(models: &Arc<Models>, names: Vec<String>) -> std::io::Result<()> {
    let files: Vec<PathBuf> = names.iter().filter(|name| is_file(name)).map(PathBuf::from).collect();
    if files.is_empty() {
        return Ok(());
    }
    let (models, mut known) = (Arc::downgrade(models), looks(&files));
    let work = move || {
        loop {
            thread::sleep(LOOK_EVERY);
            let Some(models) = Weak::upgrade(&models) else { return };
            let now = looks(&files);
            if now != known {
                match configure(&models, &names) {
                    Ok(()) => tracing::info!("the intents were read again"),
                    Err(error) => tracing::warn!(%error, "the intents stay as they were"),
                }
                known = now;
            }
        }
    };
    thread::Builder::new().name("intents".to_owned()).spawn(work).map(|_| ())
}

/// What tells that a file has changed.
fn looks(files: &[PathBuf]) -> Vec<Option<(SystemTime, u64)>> {
    let look = |file: &PathBuf| std::fs::metadata(file).ok().and_then(|m| Some((m.modified().ok()?, m.len())));
    files.iter().map(look).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_of_a_question_are_seen() {
        for text in ["Is it?", "He said: \"Why?\" ", "two?? "] {
            assert_eq!(signs(text), 1.0, "{text}");
        }
        for text in
            ["Why? I see.", "so, what's up", "Don't you? No", "isn't it nice", "and where is it", "what about a tea"]
        {
            assert_eq!(signs(text), 0.0, "{text}");
        }
        for text in ["It is.", "", "so", "Whatever you say", "don't worry"] {
            assert_eq!(signs(text), -1.0, "{text}");
        }
        for text in ["what a lovely day", "Oh, what an idea!"] {
            assert_eq!(signs(text), -2.0, "{text}");
        }
    }

    #[test]
    fn examples_at_fault_are_named() {
        let problem = |text: &str| examples("f.json", text.as_bytes()).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(problem("[]").starts_with("f.json: "));
        assert!(problem(r#"{"a":["x","y"],"b":["z"]}"#).contains("intent b has fewer"));
        assert!(problem(r#"{"a":["x","y"],"b":["z","X "]}"#).contains("a and b have the same example"));
        assert!(problem(r#"{"a":["x","y"]}"#).contains("1 intents"));
        assert!(problem(r#"{"a":["x",""],"b":["z","q"]}"#).contains("empty"));
        let read = examples("f.json", br#"{"b":["x","y","x"],"a":["z","q"]}"#).unwrap();
        assert_eq!(read.into_iter().map(|(k, v)| (k, v.len())).collect::<Vec<_>>(), [("a".into(), 2), ("b".into(), 2)]);
    }
}
