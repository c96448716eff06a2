//! `undertone memory`: what is remembered of a conversation, asked for in words, or drawn.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use api::memories::{Asked, Forget, Found, Held, Memories as _, Recalled, Receipt, Show, Why};
use clap::Subcommand;
use processors::{Loaded, Models};
use schemas::envelope;

use super::{runtime, say};
use crate::config::{Config, Memory, StoreKind};
use crate::forget::Forgetting;
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
    /// Forget a memory, a room, a conversation or a person, and tell what holds the words still; status 2 while something is
    /// under way: ask again.
    #[command(group = clap::ArgGroup::new("what").required(true))]
    Forget {
        /// One memory with its turn, as CONVERSATION/POSITION.
        #[arg(long, group = "what", value_name = "CONVERSATION/POSITION", value_parser = numbered)]
        memory: Option<(String, i64)>,
        /// The memories of a room with their turns, as CONVERSATION/ROOM.
        #[arg(long, group = "what", value_name = "CONVERSATION/ROOM", value_parser = numbered)]
        room: Option<(String, i64)>,
        /// All that was said in a conversation.
        #[arg(long, group = "what", value_name = "CONVERSATION")]
        conversation: Option<String>,
        /// All that a person said, in all conversations.
        #[arg(long, group = "what", value_name = "SOURCE:SENDER")]
        person: Option<String>,
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
        MemoryCommand::Forget { memory, room, conversation, person, json } => {
            let what = match (&memory, &room, &conversation, &person) {
                (Some((conversation, position)), ..) => Forget::Memory { conversation, position: *position },
                (_, Some((conversation, room)), ..) => {
                    Forget::Room { conversation, room: i32::try_from(*room).context("a room has a smaller number")? }
                }
                (.., Some(conversation), _) => Forget::Conversation(conversation),
                (.., Some(person)) => Forget::Person(person),
                _ => unreachable!("one of them is required"),
            };
            let receipt = runtime()?.block_on(forget(config, what))?;
            let receipt = receipt.context("there is nothing of it in the history; is the id right?")?;
            if json {
                say(&serde_json::to_string(&receipt)?)?
            } else {
                say(&receipted(&receipt))?
            };
            let under_way = receipt.places.iter().any(|held| held.state == "pending");
            Ok(if under_way { ExitCode::from(2) } else { ExitCode::SUCCESS })
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
    let registry = up::open_registry(config, &Databases::new(Health::default()), &Metrics::new().meter()).await?;
    let Memory { scope, cache_bytes_max, .. } = config.memory;
    Ok(Remembering::new(history, registry, models, scope, cache_bytes_max, None))
}

async fn forget(config: &Config, what: Forget<'_>) -> anyhow::Result<Option<Receipt>> {
    let (kafka, broker) = super::replay::reach(config).await?;
    let done = async {
        let databases = Databases::new(Health::default());
        let history = databases.history(config).await?;
        let registry = up::open_registry(config, &Databases::new(Health::default()), &Metrics::new().meter()).await?;
        Forgetting::new(config, kafka, history, registry).forget(what).await
    };
    let done = done.await;
    if let Some(broker) = broker {
        broker.stop().await;
    }
    done
}

/// CONVERSATION/NUMBER; the conversation may have slashes too.
fn numbered(text: &str) -> Result<(String, i64), String> {
    let parts = text.rsplit_once('/').and_then(|(name, number)| Some((name, number.parse::<i64>().ok()?)));
    let (name, number) = parts.filter(|(name, number)| !name.is_empty() && *number > 0).ok_or("give NAME/NUMBER")?;
    Ok((name.to_owned(), number))
}

fn receipted(receipt: &Receipt) -> String {
    let Receipt { id, at, what, turns, complete, places, .. } = receipt;
    let mut text = format!("forgotten   {}\nasked for   {at}\nerasure     {id}\nturns       {turns}\n\n", plain(what));
    for Held { place, state, until, why } in places {
        let more = until.as_deref().or(why.as_deref()).map(|more| format!(" {more}")).unwrap_or_default();
        text += &format!("  {state}{more}: {place}\n");
    }
    text + if *complete { "\nnothing holds the words any more\n" } else { "\nsome places hold the words until then\n" }
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
