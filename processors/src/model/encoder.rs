//! The encoder of the full tier: WordPiece tokens through a static int8 transformer, whose lower layers serve two branches:
//! a general vector, and what the text feels like.
//!
//! Promises: a text's embedding does not depend on its neighbours, bit for bit: the graph's scales are constants, and
//! only texts of equal token length share a call, so that there is no padding. Leaves out: caching, which the stage does.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;

use ort::session::Session;
use ort::value::TensorRef;
use schemas::{Embedding, Provenance, Tier};

use super::card::Family;
use super::cores::{Cores, joined};
use super::runtime::{Runtime, Sessions};
use super::wordpiece::WordPiece;
use crate::stage::Failure;

/// Components of an embedding, and of what a text feels like.
pub const DIMENSION: usize = 384;
/// Tokens that are read of a text, the two special ones included.
pub const TOKENS_MAX: usize = 128;
/// Texts of equal length in one call of the graph.
pub const BATCH_TEXTS_MAX: usize = 8;

const GRAPH: &str = "encoder.onnx";
const TOKENIZER: &str = "tokenizer.json";
const EMBEDDING: &str = "embedding";
const FEELING: &str = "emotion";
/// Texts that a core tokenises at a time: a text takes about as long as the start of a thread.
const TOKENISE_GRAIN: NonZeroUsize = NonZeroUsize::new(32).expect("it is not zero");

/// What the encoder says of a text.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoded {
    /// The text's place in the general space, as it travels.
    pub embedding: Embedding,
    /// A vector of length one for the emotion model.
    pub feeling: Arc<[f32]>,
}

/// The encoder.
#[derive(Debug)]
pub struct Encoder {
    tokenizer: WordPiece,
    graph: Graph,
    provenance: Provenance,
}

/// The family's graph, loaded when it is first asked for.
#[derive(Debug)]
struct Graph {
    family: Family,
    runtime: Runtime,
    /// Single-threaded sessions.
    count: usize,
    loaded: OnceLock<Sessions>,
    /// Held while it is loaded, so that that is done once.
    loading: Mutex<()>,
}

impl Graph {
    fn sessions(&self) -> Result<&Sessions, Failure> {
        if let Some(sessions) = self.loaded.get() {
            return Ok(sessions);
        }
        let _once = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        match self.loaded.get() {
            Some(sessions) => Ok(sessions),
            None => {
                let sessions = Sessions::open(self.runtime.clone(), &self.family, GRAPH, self.count)?;
                Ok(self.loaded.get_or_init(|| sessions))
            }
        }
    }
}

impl Encoder {
    /// Loads the family's tokenizer, and its graph for `count` single-threaded sessions: now, or with the first text if it
    /// `waits`.
    ///
    /// # Errors
    /// [`Failure::Model`].
    pub fn open(family: Family, runtime: Runtime, count: usize, waits: bool) -> Result<Encoder, Failure> {
        let (model, version) = (family.card().model.clone(), family.card().version.clone());
        let provenance = Provenance { model, version, tier: Tier::Full };
        let graph = Graph { family, runtime, count, loaded: OnceLock::new(), loading: Mutex::new(()) };
        let (tokenizer, loaded) = thread::scope(|scope| {
            let tokenizer = scope.spawn(|| WordPiece::open(&graph.family, TOKENIZER));
            let loaded = if waits { Ok(()) } else { graph.sessions().map(|_| ()) };
            (joined(tokenizer.join()), loaded)
        });
        loaded?;
        Ok(Encoder { tokenizer: tokenizer?, graph, provenance })
    }

    /// What stands in the provenance of its parts.
    pub fn provenance(&self) -> Provenance {
        self.provenance.clone()
    }

    /// The first [`TOKENS_MAX`] token ids of a text, the special ones included.
    pub fn tokens(&self, text: &str) -> Vec<i64> {
        self.tokenizer.tokens_between_ends(text, TOKENS_MAX).into_iter().map(i64::from).collect()
    }

    /// What it says of texts, in their order: a lone text at once, many in batches of equal length spread over the cores.
    ///
    /// # Errors
    /// [`Failure::Run`]: the runtime failed, or returned something that is no vector. [`Failure::Model`] from a graph that
    /// waited for the first text.
    pub fn encode(&self, texts: &[&str], cores: &Cores) -> Result<Vec<Encoded>, Failure> {
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        let sessions = self.graph.sessions()?;
        let tokens = cores.map(texts, TOKENISE_GRAIN, |text| self.tokens(text));
        let batches = batches(&tokens);
        let results =
            cores.map(&batches, NonZeroUsize::MIN, |batch| sessions.with(|session| run(session, &tokens, batch)));
        let mut encoded: Vec<Option<Encoded>> = texts.iter().map(|_| None).collect();
        for (batch, result) in batches.iter().zip(results) {
            for (text, said) in batch.iter().zip(result?) {
                encoded[*text] = Some(said);
            }
        }
        Ok(encoded.into_iter().map(|e| e.expect("every text is in one batch")).collect())
    }
}

/// Indices of texts in groups of equal length, at most [`BATCH_TEXTS_MAX`] each; the longest first, so that no core
/// starts a long batch when the others are done.
fn batches(tokens: &[Vec<i64>]) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..tokens.len()).collect();
    order.sort_by_key(|text| std::cmp::Reverse(tokens[*text].len()));
    let equal = order.chunk_by(|a, b| tokens[*a].len() == tokens[*b].len());
    equal.flat_map(|same| same.chunks(BATCH_TEXTS_MAX)).map(<[usize]>::to_vec).collect()
}

/// One call of the graph on texts of equal length.
fn run(session: &mut Session, tokens: &[Vec<i64>], batch: &[usize]) -> Result<Vec<Encoded>, Failure> {
    let length = tokens[batch[0]].len();
    debug_assert!(batch.iter().all(|text| tokens[*text].len() == length), "a batch holds one length");
    let ids: Vec<i64> = batch.iter().flat_map(|text| &tokens[*text]).copied().collect();
    let (ones, zeros) = (vec![1i64; ids.len()], vec![0i64; ids.len()]);
    let shape = [batch.len(), length];
    let tensor = |values| TensorRef::from_array_view((shape, values));
    let inputs = ort::inputs![
        "input_ids" => tensor(ids.as_slice()).map_err(|e| failure(&e))?,
        "attention_mask" => tensor(ones.as_slice()).map_err(|e| failure(&e))?,
        "token_type_ids" => tensor(zeros.as_slice()).map_err(|e| failure(&e))?,
    ];
    let outputs = session.run(inputs).map_err(|e| failure(&e))?;
    let vectors = |name: &str| {
        let output = outputs.get(name).ok_or_else(|| failure(&format!("the graph has no output named {name}")))?;
        let (found, values) = output.try_extract_tensor::<f32>().map_err(|e| failure(&e))?;
        if **found != [batch.len() as i64, DIMENSION as i64] || !values.iter().all(|v| v.is_finite()) {
            let wanted = batch.len();
            return Err(failure(&format!("{name}: expected {wanted} finite vectors of {DIMENSION}, got {found:?}")));
        }
        Ok(values.chunks_exact(DIMENSION))
    };
    let pairs = vectors(EMBEDDING)?.zip(vectors(FEELING)?);
    Ok(pairs.map(|(e, feeling)| Encoded { embedding: Embedding::quantise(e), feeling: feeling.into() }).collect())
}

fn failure(problem: &dyn std::fmt::Display) -> Failure {
    Failure::Run { stage: "encode", problem: problem.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_hold_every_text_once_with_texts_of_its_length() {
        let tokens: Vec<Vec<i64>> = (0..100).map(|i| vec![0; 3 + i * 7 % 5]).collect();
        let batches = batches(&tokens);
        let mut seen: Vec<usize> = batches.concat();
        seen.sort_unstable();
        assert_eq!(seen, (0..100).collect::<Vec<_>>());
        for batch in &batches {
            assert!(batch.len() <= BATCH_TEXTS_MAX);
            assert!(batch.iter().all(|text| tokens[*text].len() == tokens[batch[0]].len()));
        }
    }
}
