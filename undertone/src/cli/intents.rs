//! `undertone intents check`: how well the intents of a file of examples are told apart.
//!
//! Promises: each example is asked for without itself, by the code that serves. Leaves out: changing the file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Subcommand;
use processors::Models;
use processors::model::sets::{self, Set};
use schemas::Tier;
use serde_json::json;

use super::{TierChoice, say};
use crate::config::Config;
use crate::locate;

/// Pairs that are listed.
const PAIRS_MAX: usize = 10;
/// Share of an intent's examples below which it is listed.
const WEAK_BELOW: f64 = 0.8;

#[derive(Debug, Subcommand)]
pub(super) enum IntentsCommand {
    /// Ask for each example of a file without itself, and list the intents that are confused.
    Check {
        /// {"intent": ["an example sentence", …], …}
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Which models.
        #[arg(long, value_enum, default_value_t = TierChoice::Full)]
        tier: TierChoice,
        /// One JSON object, rather than a table.
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn intents(config: &Config, command: IntentsCommand) -> anyhow::Result<ExitCode> {
    let IntentsCommand::Check { file, tier, json } = command;
    let bytes = std::fs::read(&file).with_context(|| format!("read {}; check the path", file.display()))?;
    let examples = sets::examples(&file.display().to_string(), &bytes)?;
    let (dir, library) = (locate::models(&config.models.dir)?, locate::onnxruntime(&config.models.onnxruntime)?);
    let models = Models::open(&dir, &library, &config.options())?;
    let set = sets::learnt(&models, &file)?;
    let counts: Vec<usize> = examples.values().map(Vec::len).collect();
    let checked = Checked::of(&set, tier.into(), &counts).context("a set that is named by examples was left out")?;
    say(&if json { checked.json() } else { checked.text(&file) })
}

/// What leaving each example out showed.
struct Checked {
    hash: String,
    tier: Tier,
    examples: usize,
    right: usize,
    /// Of each intent: name, examples, how many were right.
    intents: Vec<(String, usize, usize)>,
    /// What was said, what was meant, how often; the commonest first.
    pairs: Vec<(String, String, usize)>,
}

impl Checked {
    fn of(set: &Set, tier: Tier, counts: &[usize]) -> Option<Checked> {
        let truth = counts.iter().enumerate().flat_map(|(label, count)| std::iter::repeat_n(label, *count));
        let mut pairs: BTreeMap<(usize, usize), usize> = BTreeMap::new();
        let mut right = vec![0; counts.len()];
        for (truth, said) in truth.zip(set.left_out(tier)?) {
            if truth == *said {
                right[truth] += 1;
            } else {
                *pairs.entry((truth, *said)).or_default() += 1;
            }
        }
        let name = |label: usize| set.labels[label].clone();
        let mut pairs: Vec<_> = pairs.into_iter().map(|((t, s), n)| (name(t), name(s), n)).collect();
        pairs.sort_by_key(|(_, _, n)| std::cmp::Reverse(*n));
        Some(Checked {
            hash: set.hash.clone(),
            tier,
            examples: counts.iter().sum(),
            right: right.iter().sum(),
            intents: counts.iter().zip(right).enumerate().map(|(l, (n, r))| (name(l), *n, r)).collect(),
            pairs,
        })
    }

    fn accuracy(&self) -> f64 {
        self.right as f64 / self.examples as f64
    }

    fn json(&self) -> String {
        let intents =
            self.intents.iter().map(|(name, n, right)| json!({ "intent": name, "examples": n, "right": right }));
        let pairs = self.pairs.iter().map(|(meant, said, n)| json!({ "meant": meant, "said": said, "times": n }));
        json!({
            "set_sha256": self.hash, "tier": self.tier.name(), "examples": self.examples, "accuracy": self.accuracy(),
            "intents": intents.collect::<Vec<_>>(), "confused": pairs.collect::<Vec<_>>(),
        })
        .to_string()
    }

    fn text(&self, file: &Path) -> String {
        let mut text = format!(
            "{}: {} intents, {} examples, {} tier, set {}\n\naccuracy   {:.3}  each example asked for without itself\n",
            file.display(),
            self.intents.len(),
            self.examples,
            self.tier.name(),
            self.hash,
            self.accuracy()
        );
        let weak = self.intents.iter().filter(|(_, n, right)| (*right as f64) < *n as f64 * WEAK_BELOW);
        let weak: Vec<String> = weak.map(|(name, n, right)| format!("  {name}: {right} of {n}\n")).collect();
        if !weak.is_empty() {
            text += &format!("\nweak intents; give them more or clearer examples:\n{}", weak.concat());
        }
        if !self.pairs.is_empty() {
            text += "\nconfused most often; say more clearly what sets them apart, or make them one:\n";
        }
        for (meant, said, n) in self.pairs.iter().take(PAIRS_MAX) {
            text += &format!("  {n:>3} × {meant} was taken for {said}\n");
        }
        text
    }
}
