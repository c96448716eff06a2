//! `undertone memory`: what is remembered of a conversation, asked for in words, or drawn.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use api::memories::{Asked, Found, Memories as _, Recalled, Show, Why};
use clap::Subcommand;
use processors::{Loaded, Models};
use schemas::envelope;

use super::{runtime, say};
use crate::config::{Config, StoreKind};
use crate::health::Health;
use crate::locate;
use crate::memories::{Remembering, map};
use crate::telemetry::Metrics;
use crate::up::{self, Databases};
use crate::watch::lines::plain;

#[derive(Debug, Subcommand)]
pub(super) enum MemoryCommand {
    /// Find the memories that answer a question, and say why each was found.
    Recall {
        /// The conversation.
        conversation: String,
        /// In words.
        question: String,
        /// Most memories to find.
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=100))]
        limit: u64,
        /// Who asks, as the source names them: "I" and "my" mean them.
        #[arg(long, value_name = "SENDER")]
        asker: Option<String>,
        /// Name rooms of health, sex, religion or politics too.
        #[arg(long)]
        all: bool,
        /// One JSON object, rather than lines.
        #[arg(long)]
        json: bool,
    },
    /// Show the rooms of a conversation, and draw them where a file is named.
    Map {
        /// The conversation.
        conversation: String,
        /// File to draw the map to, as SVG.
        #[arg(long, value_name = "FILE")]
        svg: Option<PathBuf>,
        /// Name rooms of health, sex, religion or politics too.
        #[arg(long)]
        all: bool,
        /// One JSON object, rather than lines.
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn memory(config: &Config, command: MemoryCommand) -> anyhow::Result<ExitCode> {
    let shown = |all: bool| if all { Show::All } else { Show::Usual };
    match command {
        MemoryCommand::Recall { conversation, question, limit, asker, all, json } => {
            let models = models(config)?;
            let asked = Asked {
                question: &question,
                asker: asker.as_deref(),
                limit: usize::try_from(limit).unwrap_or(usize::MAX),
                show: shown(all),
            };
            let recalled = runtime()?.block_on(async {
                let recalled = remembering(config, models).await?.recall(&conversation, asked).await;
                recalled.with_context(|| format!("recall from {conversation}"))
            })?;
            if json { say(&serde_json::to_string(&recalled)?) } else { say(&told(&recalled)) }
        }
        MemoryCommand::Map { conversation, svg, all, json } => {
            let palace = runtime()?.block_on(async {
                let palace = remembering(config, Loaded::default()).await?;
                let palace = palace.palace(&conversation, map::LIGHTS_MAX, shown(all)).await;
                palace.with_context(|| format!("read the palace of {conversation}"))
            })?;
            if let Some(path) = &svg {
                write(path, &map::picture(&palace))?;
            }
            if json { say(&serde_json::to_string(&palace)?) } else { say(&map::lines(&palace)) }
        }
    }
}

/// What the history remembers.
async fn remembering(config: &Config, models: Loaded) -> anyhow::Result<Remembering> {
    let path = config.history_path();
    anyhow::ensure!(
        config.history.kind == StoreKind::Scylla || path.exists(),
        "there is no history at {}; is --data-dir right?",
        path.display()
    );
    let history = Databases::new(Health::default()).history(config).await?;
    let registry = up::open_registry(config, &Health::default(), &Metrics::new().meter()).await?;
    Ok(Remembering::new(history, registry, models, config.memory.scope, config.memory.cache_bytes_max))
}

fn models(config: &Config) -> anyhow::Result<Loaded> {
    let (dir, library) = (locate::models(&config.models.dir)?, locate::onnxruntime(&config.models.onnxruntime)?);
    let models = Models::open(&dir, &library, &config.options())?;
    let loaded = Loaded::default();
    let _ = loaded.set(Arc::clone(&models));
    Ok(loaded)
}

fn told(recalled: &Recalled) -> String {
    let mut text = format!("{} of {} memories\n", recalled.memories.len(), recalled.searched);
    for found in &recalled.memories {
        let Found { position, at, name, sender, text: words, score, .. } = found;
        let who = name.as_deref().or(sender.as_deref()).unwrap_or("somebody");
        text += &format!("\n{score:.2}  {} {}, turn {position}", envelope::rfc3339(*at), plain(who));
        if found.conversation != recalled.conversation {
            text += &format!(" of {}", plain(&found.conversation));
        }
        let room = found.locus.name.as_deref().map_or("not shown".to_owned(), plain);
        text += &format!(", room {} ({room})\n      {}\n      {}\n", found.locus.room, plain(words), because(found));
    }
    text
}

/// Why it was found: the shares of its score, the largest first.
fn because(found: &Found) -> String {
    let Why { words, vector, around, session, speaker, length, time } = found.why;
    let words_named =
        if found.terms.is_empty() { "words".to_owned() } else { format!("words ({})", found.terms.join(", ")) };
    let mut shares = vec![
        (words, words_named.as_str()),
        (vector, "meaning"),
        (around, "turns around it"),
        (session, "session"),
        (speaker, "who said it"),
        (length, "how much it says"),
        (time, "time"),
    ];
    shares.retain(|(share, _)| *share > 0.005);
    shares.sort_by(|(one, _), (other, _)| other.total_cmp(one));
    shares.iter().map(|(share, name)| format!("{name} {share:.2}")).collect::<Vec<_>>().join(", ")
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("write {}; does its folder exist?", path.display()))
}
