//! How good the models are on labelled texts: what `undertone eval` computes.
//!
//! Promises: the shipped path runs, stage by stage; nothing is read of the data but inputs and labels to compare with; the
//! baseline runs on the same data in the same call. A task is a file under `eval/` and a line in [`TASKS`]. Leaves out:
//! reading files and printing (the program), and every task whose stage does not exist yet.

mod acts;
mod bootstrap;
mod coherence;
mod dialogues;
mod color;
mod dreams;
mod emotion;
mod figures;
mod intent;
mod language;
mod memory;
mod mood;
mod next_action;
mod personality;
mod rooms;
mod segmentation;
mod shift;
mod slots;
mod style;
mod transfer;
mod vad;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use schemas::{Provenance, Tier, Turn};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use crate::model::Models;
use crate::stage::Failure;

/// All tasks, as they are listed to people.
pub const TASKS: &[&dyn Task] = &[
    &emotion::EmotionTask,
    &transfer::TransferTask,
    &vad::VadTask,
    &personality::PersonalityTask,
    &style::StyleTask,
    &intent::IntentTask,
    &acts::ActsTask,
    &mood::MoodTask,
    &language::LanguageTask,
    &slots::SlotsTask,
    &next_action::NextActionTask,
    &memory::MemoryTask,
    &rooms::RoomsTask,
    &coherence::CoherenceTask,
    &shift::ShiftTask,
    &segmentation::SegmentationTask,
    &color::ColorTask,
    &dreams::DreamsTask,
];

/// One thing that models are asked to tell, and how well they do.
pub trait Task: Sync {
    /// Its name on the command line and in the report.
    fn name(&self) -> &'static str;

    /// Its figures in the order that they are read in: key, what it is, and which way is better. A report may lack some.
    fn rows(&self) -> &'static [(&'static str, &'static str)];

    /// Scores the shipped models and the baseline.
    ///
    /// # Errors
    /// The data or a choice is not what it should be, or a fault of ours.
    fn run(&self, case: &Case<'_>) -> Result<Report, EvalError>;
}

/// What to score, and on what.
#[derive(Debug)]
pub struct Case<'a> {
    /// The shipped models.
    pub models: &'a Arc<Models>,
    /// Which of them.
    pub tier: Tier,
    /// The content of the data file.
    pub data: &'a [u8],
    /// What the caller chose.
    pub choices: &'a Choices,
}

/// What some tasks let the caller choose; a task refuses what it does not know.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Choices {
    /// The labels to choose among; empty for those in the data.
    pub labels: Vec<String>,
    /// The set of intents; without it, the first one that is configured.
    pub set: Option<String>,
    /// A file of intents that are named by examples, instead of a set.
    pub examples: Option<PathBuf>,
    /// A file of the actions of tasks, beside the shipped ones.
    pub actions: Option<PathBuf>,
    /// The lines that the dream decoder was trained on, to look for copies.
    pub training: Vec<u8>,
    /// Conversations to dream of, JSON lines.
    pub conversations: Vec<u8>,
    /// The language of texts that name none, as an ISO 639-3 code.
    pub language: Option<String>,
    /// Whether what pictures show counts among what was said.
    pub captions: bool,
}

/// What an evaluation found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The task.
    pub task: String,
    /// SHA-256 of the data, in hexadecimal.
    pub data_sha256: String,
    /// Texts.
    pub n: usize,
    /// Name and version of the model.
    pub model: String,
    /// The tier that ran.
    pub tier: Tier,
    /// Figures by name.
    pub metrics: BTreeMap<String, Figure>,
    /// A simpler model on the same texts.
    pub baseline: Baseline,
    /// Texts a second through the stages, on the cores that the models may use.
    pub turns_per_second: f64,
}

/// A figure with its 95 % interval by 1,000 bootstrap resamples, seed 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Figure {
    /// On the data as it is.
    pub value: f64,
    /// 2.5th percentile.
    pub low: f64,
    /// 97.5th percentile.
    pub high: f64,
}

/// A simpler model's figures.
#[derive(Debug, Clone, Serialize)]
pub struct Baseline {
    /// What it is.
    pub name: String,
    /// Figures by name.
    pub metrics: BTreeMap<String, Figure>,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// A line is not what the task reads.
    #[error("line {line}: {problem}; {format}")]
    Data {
        /// Number of the line, from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
        /// What a line should be.
        format: &'static str,
    },
    /// There is nothing to evaluate on.
    #[error("the data has no line; {format}")]
    Empty {
        /// What a line should be.
        format: &'static str,
    },
    /// What was asked for is not there, or does not fit the task.
    #[error("{0}")]
    Choice(String),
    /// A fault of ours.
    #[error(transparent)]
    Model(#[from] Failure),
}

impl Case<'_> {
    /// The report on `n` texts that the stages took `time` for.
    fn report(
        &self,
        task: &dyn Task,
        n: usize,
        model: &Provenance,
        metrics: BTreeMap<String, Figure>,
        baseline: Baseline,
        time: Duration,
    ) -> Report {
        Report {
            task: task.name().to_owned(),
            data_sha256: Sha256::digest(self.data).iter().map(|b| format!("{b:02x}")).collect(),
            n,
            model: format!("{}@{}", model.model, model.version),
            tier: self.tier,
            metrics,
            baseline,
            turns_per_second: n as f64 / time.as_secs_f64(),
        }
    }
}

/// The lines that are not blank, each made a row by `row`, which says what is wrong with one. `format` says what a line
/// should be.
fn lines<T: DeserializeOwned, R>(
    data: &[u8],
    format: &'static str,
    row: impl Fn(T) -> Result<R, String>,
) -> Result<Vec<R>, EvalError> {
    let lines = data.split(|b| *b == b'\n').enumerate().filter(|(_, line)| !line.trim_ascii().is_empty());
    let rows: Result<Vec<R>, EvalError> = lines
        .map(|(index, line)| {
            let wrong = |problem: String| EvalError::Data { line: index + 1, problem, format };
            serde_json::from_slice(line).map_err(|e| wrong(e.to_string())).and_then(|line| row(line).map_err(wrong))
        })
        .collect();
    rows.and_then(|rows| if rows.is_empty() { Err(EvalError::Empty { format }) } else { Ok(rows) })
}

/// A text as the first turn of a conversation.
fn turn(text: &str, tier: Tier) -> Turn {
    Turn { tier: Some(tier), ..Turn::message("eval", "eval", "", "", text, 0) }
}
