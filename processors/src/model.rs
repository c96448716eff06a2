//! The model files, loaded once for the life of a pipeline and shared by its stages.
//!
//! Promises: a file is used only if it is what its card says (checksum, names of inputs and outputs); every problem is a
//! [`Failure::Model`] that names the file and the mend; what a model says of a text is a pure function of the text, bit
//! for bit the same alone and in any batch, in this process and in another on the same processor. Leaves out: where the
//! files are found (the program knows), and training (`models/`).

pub mod card;
pub mod coherence;
pub mod colours;
pub mod cores;
pub mod embed;
pub mod encoder;
pub mod examples;
pub mod expression;
pub mod intents;
pub mod memory;
pub mod next;
pub mod ngram;
pub mod personality;
pub mod runtime;
pub mod sets;
pub mod slots;
pub mod tensors;
pub mod vad;
pub mod wanted;
mod weigher;
pub mod wordpiece;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use schemas::{Provenance, Tier};

use crate::stage::Failure;
use crate::stages::ROOMS_MAX;
use card::Family;
use coherence::Coherence;
use colours::Colours;
use cores::Cores;
use embed::WordVectors;
use encoder::Encoder;
use expression::Expression;
use memory::Memory;
use personality::Personality;
use runtime::Runtime;
use sets::Dialogue;
use vad::Vad;

/// How models run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Cores that models may use at once, at least 1: as many single-threaded sessions are made.
    pub cores: usize,
    /// Whether valence, arousal and dominance have a model of their own, whose weights stand under a share-alike licence;
    /// without it they come from the 28 emotions.
    pub vad: bool,
    /// Whether the transformer is loaded with the first text of the full tier, rather than at the start.
    pub lazy: bool,
    /// Whether stage coherence measures the density matrix of what was said lately.
    pub density: bool,
    /// Different content words from which a turn is worth keeping.
    pub keep_words_min: usize,
    /// Rooms of a palace, at most [`crate::stages::ROOMS_MAX`].
    pub rooms_max: usize,
}

impl Default for Options {
    /// As many cores as the process may use: the standard library reads affinity and cgroup quotas.
    fn default() -> Options {
        Options {
            cores: thread::available_parallelism().map_or(1, usize::from),
            vad: true,
            lazy: false,
            density: false,
            keep_words_min: 2,
            rooms_max: ROOMS_MAX,
        }
    }
}

/// Hands back to the system what reading and checking the files has taken: a fifth of the process, which glibc would keep.
fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it may be called at any time, from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// All models of a pipeline.
#[derive(Debug)]
pub struct Models {
    encoder: Encoder,
    words: WordVectors,
    expression: Expression,
    personality: Personality,
    dialogue: Dialogue,
    memory: Memory,
    coherence: Coherence,
    density: bool,
    vad: Option<Vad>,
    colours: Colours,
    cores: Cores,
    /// Where the families lie, and the library.
    places: (PathBuf, PathBuf),
}

impl Models {
    /// Reads and checks every family under `dir` (`encoder`, `static`, `emotion`, `personality`, `dialogue`, `memory`, `coherence`,
    /// `synesthesia`, and `vad` if it is wanted) and loads the ONNX Runtime library at `onnxruntime`. The library is loaded
    /// once a process; another pipeline may open its own models on the same one.
    ///
    /// # Errors
    /// [`Failure::Model`]: a file is missing, damaged, or not what its card says; the library is missing, too old, or
    /// not the one that this process has already loaded.
    pub fn open(dir: &Path, onnxruntime: &Path, options: &Options) -> Result<Arc<Models>, Failure> {
        let cores = Cores::new(options.cores);
        // The families do not depend on each other; reading and checking them at once halves the start.
        let (encoder, words, expression, personality, dialogue, memory, coherence, vad, colours) =
            thread::scope(|scope| {
                let words = scope.spawn(|| WordVectors::open(&Family::open(dir, "static")?));
                let expression = scope.spawn(|| Expression::open(&Family::open(dir, "emotion")?));
                let personality = scope.spawn(|| Personality::open(&Family::open(dir, "personality")?));
                let dialogue = scope.spawn(|| Dialogue::open(Family::open(dir, "dialogue")?));
                let memory = scope.spawn(|| Memory::open(&Family::open(dir, "memory")?, options));
                let coherence = scope.spawn(|| Coherence::open(&Family::open(dir, "coherence")?));
                let vad = scope.spawn(|| options.vad.then(|| Vad::open(&Family::open(dir, "vad")?)).transpose());
                let colours = scope.spawn(|| Colours::open(&Family::open(dir, "synesthesia")?));
                let encoder = Runtime::load(onnxruntime).and_then(|runtime| {
                    Encoder::open(Family::open(dir, "encoder")?, runtime, options.cores, options.lazy)
                });
                let (words, expression) = (cores::joined(words.join()), cores::joined(expression.join()));
                let (personality, dialogue) = (cores::joined(personality.join()), cores::joined(dialogue.join()));
                let (memory, coherence) = (cores::joined(memory.join()), cores::joined(coherence.join()));
                (
                    encoder,
                    words,
                    expression,
                    personality,
                    dialogue,
                    memory,
                    coherence,
                    cores::joined(vad.join()),
                    cores::joined(colours.join()),
                )
            });
        let (encoder, words, expression) = (encoder?, words?, expression?);
        let (personality, dialogue, memory) = (personality?, dialogue?, memory?);
        let (coherence, vad, colours) = (coherence?, vad?, colours?);
        let density = options.density;
        give_back();
        Ok(Arc::new(Models {
            encoder,
            words,
            expression,
            personality,
            dialogue,
            memory,
            coherence,
            density,
            vad,
            colours,
            cores,
            places: (dir.to_owned(), onnxruntime.to_owned()),
        }))
    }

    /// The transformer of the full tier.
    pub fn encoder(&self) -> &Encoder {
        &self.encoder
    }

    /// The static embeddings of the fast tier.
    pub fn words(&self) -> &WordVectors {
        &self.words
    }

    /// What words express.
    pub fn expression(&self) -> &Expression {
        &self.expression
    }

    /// What writing says of its writer.
    pub fn personality(&self) -> &Personality {
        &self.personality
    }

    /// What words are meant to do.
    pub fn dialogue(&self) -> &Dialogue {
        &self.dialogue
    }

    /// What is worth remembering.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// How turns go on from each other.
    pub fn coherence(&self) -> &Coherence {
        &self.coherence
    }

    /// Whether the density matrix of what was said lately is measured.
    pub fn density(&self) -> bool {
        self.density
    }

    /// Valence, arousal and dominance, where they have a model of their own.
    pub fn vad(&self) -> Option<&Vad> {
        self.vad.as_ref()
    }

    /// Which colour words have.
    pub fn colours(&self) -> &Colours {
        &self.colours
    }

    /// The folder of the families, and the ONNX Runtime library: for what is loaded apart from the stages.
    pub fn places(&self) -> (&Path, &Path) {
        (&self.places.0, &self.places.1)
    }

    /// The cores that models may use.
    pub fn cores(&self) -> &Cores {
        &self.cores
    }

    /// Which model embeds texts of a tier.
    pub fn embedder(&self, tier: Tier) -> Provenance {
        match tier {
            Tier::Full => self.encoder.provenance(),
            Tier::Fast => self.words.provenance(),
        }
    }
}

#[cfg(test)]
mod tests;
