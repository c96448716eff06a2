//! The commands that run the models themselves: `analyze`, `contexts show`, `contexts rebuild`.

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use processors::rebuild::Rebuilt;
use processors::{Chain, Models, Plan};
use schemas::slice::{
    CoherenceSlice, DialogueSlice, EmotionSlice, EncodeSlice, MemorySlice, PersonalitySlice, Sequence, SynesthesiaSlice,
};
use schemas::{Codec, Density, Estimate, Locus, Style, Tier, Traits, Turn};
use serde_json::{Value, json};
use store::context::{Contexts, Record, Version};
use store::log::Kafka;
use store::registry::Registry;

use super::{runtime, say};
use crate::config::{Config, StoreKind};
use crate::health::Health;
use crate::locate;
use crate::telemetry::Metrics;
use crate::up::{self, Databases, Role};

/// Bars of the emotions that are drawn, and how wide the longest is.
const BARS: usize = 6;
const BAR_WIDTH: f64 = 30.0;

pub(super) fn analyze(
    config: &Config,
    texts: &[String],
    tier: Tier,
    as_json: bool,
    consent: bool,
) -> anyhow::Result<ExitCode> {
    let chain = chain(config, &[])?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock stands before 1970; set it")?;
    let turns = processors::analyze(&chain, texts, tier, now.as_millis() as i64, consent)?;
    let colour = std::io::stdout().is_terminal();
    let shown = turns.iter().map(|turn| if as_json { turn_json(turn) } else { Ok(turn_text(turn, colour)) });
    say(&shown.collect::<anyhow::Result<Vec<String>>>()?.join("\n"))
}

/// The chain of these stages (none: all of them), with its models.
fn chain(config: &Config, stages: &[String]) -> anyhow::Result<Chain> {
    let plan = processors::plan(processors::stages::ORDER, stages)?;
    let (dir, library) = (locate::models(&config.models.dir)?, locate::onnxruntime(&config.models.onnxruntime)?);
    let models = Models::open(&dir, &library, &config.options())?;
    config.dialogue.wanted().configure(&models).context("read [dialogue]")?;
    let mut all = processors::stages::all(&models);
    Ok(Chain::new(all.drain(plan.run).collect(), plan.first, Arc::new(Codec::embedded())))
}

/// The parts of a turn, one line; of the embedding only its shape.
fn turn_json(turn: &Turn) -> anyhow::Result<String> {
    let mut value = serde_json::to_value(turn).context("write the turn")?;
    let embedding = &mut value["encoding"]["embedding"];
    if let Some(embedding) = embedding.as_object_mut() {
        embedding.remove("values");
    }
    let parts = json!({
        "text": value["text"], "tier": value["tier"], "skipped": value["skipped"],
        "encoding": value["encoding"], "emotion": value["emotion"],
        "personality": value["personality"], "dialogue": value["dialogue"],
        "memory": value["memory"], "coherence": value["coherence"], "synesthesia": value["synesthesia"],
        "flags": value["flags"],
    });
    Ok(parts.to_string())
}

fn turn_text(turn: &Turn, colour: bool) -> String {
    let (bold, dim, end) = if colour { ("\x1b[1m", "\x1b[2m", "\x1b[0m") } else { ("", "", "") };
    let mut text = format!("{bold}{}{end}\n", crate::watch::lines::plain(&turn.text));
    if let Some(encoding) = &turn.encoding {
        let language = encoding.language.as_deref().unwrap_or("not sure");
        let confidence = encoding.language_confidence.map(|c| format!(" ({c:.2})")).unwrap_or_default();
        text += &format!("  language   {language}{confidence}\n");
        text += &format!("  {dim}encoder    {}{end}\n", provenance(&encoding.provenance));
    }
    if let Some(emotion) = &turn.emotion {
        text += &format!("  valence    {:+.2}\n", emotion.valence);
        for (axis, value) in [("arousal", emotion.arousal), ("dominance", emotion.dominance)] {
            text += &value.map(|value| format!("  {axis:<9}  {value:+.2}\n")).unwrap_or_default();
        }
        text += &format!("  intensity  {:.2}\n", emotion.intensity);
        text += &format!("  emotions   {}\n", emotion.labels.join(", "));
        let mut bars: Vec<(&str, f32)> =
            schemas::GoEmotions::LABELS.into_iter().zip(emotion.probabilities.to_array()).collect();
        bars.sort_by(|a, b| b.1.total_cmp(&a.1));
        for (label, p) in bars.into_iter().take(BARS) {
            let length = (f64::from(p) * BAR_WIDTH).round() as usize;
            text += &format!("    {label:<15} {p:.2} {}\n", "█".repeat(length));
        }
        text += &format!("  {dim}model      {}{end}\n", provenance(&emotion.provenance));
    }
    if let Some(personality) = &turn.personality {
        let traits = personality.traits.iter().flat_map(|traits| Traits::NAMES.into_iter().zip(traits.to_array()));
        for (name, Estimate { mean, low, high }) in traits {
            text += &format!("  {name:<17} {mean:+.1} ({low:+.1} to {high:+.1})\n");
        }
        let enough = if personality.not_enough { "not enough for traits" } else { "a weak signal" };
        text += &format!("  words      {}: {enough}\n", personality.words);
        if let Some(style) = &personality.style {
            let measures = Style::LABELS.into_iter().zip(style.to_array());
            let shown: Vec<String> = measures.map(|(name, value)| format!("{name} {value:.2}")).collect();
            text += &format!("  style      {}\n", shown.join(", "));
        }
        text += &format!("  {dim}model      {}{end}\n", provenance(&personality.provenance));
    }
    if let Some(dialogue) = &turn.dialogue {
        text += &format!("  act        {} ({:.2})\n", dialogue.act, dialogue.act_probability);
        for intent in &dialogue.intents {
            let scope = if intent.out_of_scope { "none; nearest " } else { "" };
            text += &format!("  intent     {scope}{} ({:.2}) of {}\n", intent.name, intent.probability, intent.set);
        }
        for slot in &dialogue.slots {
            let value = crate::watch::lines::plain(&slot.value);
            text += &format!("  slot       {} = {value} ({:.2})\n", slot.name, slot.probability);
        }
        for next in &dialogue.next_actions {
            text += &format!("  next       {} ({:.2}) of {}\n", next.action, next.probability, next.task);
        }
        if let Some(question) = dialogue.state.as_ref().and_then(|state| state.waiting.as_ref()) {
            text += &format!("  waiting    for an answer to turn {}\n", question.position);
        }
        text += &format!("  {dim}model      {}{end}\n", provenance(&dialogue.provenance));
    }
    if let Some(coherence) = &turn.coherence {
        text += &format!("  coherence  {:.2}\n", coherence.score);
        let (begins, segment) = (if coherence.shift { ", a new topic" } else { "" }, coherence.segment);
        text += &segment.map(|s| format!("  segment    {}, turn {}{begins}\n", s.number, s.turns)).unwrap_or_default();
        if let Some(Density { purity, entropy, effective_dimension, .. }) = coherence.density {
            text +=
                &format!("  density    purity {purity:.2}, entropy {entropy:.2}, dimension {effective_dimension:.2}\n");
        }
        text += &format!("  {dim}model      {}{end}\n", provenance(&coherence.provenance));
    }
    if let Some(memory) = &turn.memory {
        text += &format!("  salience   {:.2}\n", memory.salience);
        text += &match &memory.locus {
            Some(Locus { room, place, x, y, sensitive: true, .. }) => {
                format!("  locus      place {place} of room {room} at {x}, {y}, whose name is not shown\n")
            }
            Some(Locus { room, name, place, x, y, .. }) => {
                let name = crate::watch::lines::plain(name);
                format!("  locus      place {place} of room {room} at {x}, {y}: {name}\n")
            }
            None => "  locus      none: it is not kept\n".to_owned(),
        };
        text += &format!("  {dim}model      {}{end}\n", provenance(&memory.provenance));
    }
    if let Some(part) = &turn.synesthesia {
        text += &super::synesthesia::described(part, colour);
        text += &format!("  {dim}model      {}{end}\n", provenance(&part.provenance));
    }
    for flag in &turn.flags {
        text += &format!("  flag       {}: words that were found, no diagnosis; a person should look\n", flag);
    }
    for skipped in &turn.skipped {
        text += &format!("  {:<10} absent: {}\n", skipped.stage, skipped.reason);
    }
    text
}

fn provenance(made: &schemas::Provenance) -> String {
    format!("{} version {}, {} tier", made.model, made.version, made.tier.name())
}

pub(super) fn contexts_show(config: &Config, conversation: &str) -> anyhow::Result<ExitCode> {
    let path = config.context_path();
    anyhow::ensure!(
        config.context.kind == StoreKind::Scylla || path.exists(),
        "there are no contexts at {}; is --data-dir right?",
        path.display()
    );
    let records = runtime()?.block_on(async {
        let contexts = Databases::new(Health::default()).contexts(config).await?;
        contexts.show(conversation).await.context("read the contexts")
    })?;
    anyhow::ensure!(!records.is_empty(), "there is no context of a conversation \"{conversation}\"");
    let codec = Codec::embedded();
    let mut slices = serde_json::Map::new();
    for record in &records {
        slices.insert(record.stage.clone(), slice(&codec, record));
    }
    say(&serde_json::to_string_pretty(&json!({ "conversation": conversation, "slices": slices }))?)
}

fn slice(codec: &Codec, record: &Record) -> Value {
    let version = |version: &Version| {
        let read = match record.stage.as_str() {
            "sequence" => codec.decode::<Sequence>(&version.bytes).map(serde_json::to_value),
            "encode" => codec.decode::<EncodeSlice>(&version.bytes).map(serde_json::to_value),
            "emotion" => codec.decode::<EmotionSlice>(&version.bytes).map(serde_json::to_value),
            "memory" => codec.decode::<MemorySlice>(&version.bytes).map(serde_json::to_value),
            "coherence" => codec.decode::<CoherenceSlice>(&version.bytes).map(serde_json::to_value),
            "personality" => codec.decode::<PersonalitySlice>(&version.bytes).map(serde_json::to_value),
            "dialogue" => codec.decode::<DialogueSlice>(&version.bytes).map(serde_json::to_value),
            "synesthesia" => codec.decode::<SynesthesiaSlice>(&version.bytes).map(serde_json::to_value),
            _ => Ok(Ok(json!({ "size_bytes": version.bytes.len() }))),
        };
        let content = match read {
            Ok(Ok(content)) => content,
            Ok(Err(error)) => json!({ "unreadable": error.to_string() }),
            Err(error) => json!({ "unreadable": error.to_string() }),
        };
        json!({ "partition": version.stamp.partition, "offset": version.stamp.offset, "content": content })
    };
    json!({ "current": version(&record.current), "previous": record.previous.as_ref().map(version) })
}

pub(super) fn contexts_rebuild(mut config: Config, forget: bool) -> anyhow::Result<ExitCode> {
    config.check_only_machine()?;
    let stages = config.processors.stages.clone();
    let plan = processors::plan(processors::stages::ORDER, &stages)?;
    let chain = chain(&config, &stages)?;
    let group = processors::group(&config.processors.group, chain.name());
    runtime()?.block_on(async {
        // The embedded log runs only while we do: its processors are stopped, because the folder is locked.
        config.http.listen.set_port(0);
        config.broker.listen.set_port(0);
        let alone = "open the log for the rebuild; stop `undertone up` first if it runs on this data folder";
        let broker = match config.is_embedded() {
            true => Some(up::start(config.clone(), &[Role::Broker]).await.context(alone)?),
            false => None,
        };
        let mut kafka = up::kafka_of(&config);
        if let Some(broker) = &broker {
            broker.kafka().clone_into(&mut kafka.bootstrap);
        }
        let contexts = Databases::new(Health::default()).contexts(&config).await?;
        let done = match forget {
            true => forgotten(&chain, &group, &plan, &kafka, &contexts).await,
            false => {
                match up::open_registry(&config, &Databases::new(Health::default()), &Metrics::new().meter()).await {
                    Ok(registry) => rebuilt(&chain, &group, &plan, &kafka, &contexts, &registry).await,
                    Err(error) => Err(error),
                }
            }
        };
        if let Some(broker) = broker {
            broker.stop().await;
        }
        say(&done?)
    })
}

async fn rebuilt(
    chain: &Chain,
    group: &str,
    plan: &Plan,
    kafka: &Kafka,
    contexts: &Contexts,
    registry: &Registry,
) -> anyhow::Result<String> {
    let rebuilt = processors::rebuild::rebuild(chain, group, plan, kafka, contexts, registry).await;
    let Rebuilt { turns, conversations, partitions } = rebuilt.context("rebuild the contexts")?;
    Ok(format!("{turns} turns of {conversations} conversations folded again, {partitions} partitions\n"))
}

async fn forgotten(
    chain: &Chain,
    group: &str,
    plan: &Plan,
    kafka: &Kafka,
    contexts: &Contexts,
) -> anyhow::Result<String> {
    let partitions = processors::rebuild::forget(chain, group, plan, kafka, contexts).await;
    Ok(format!("contexts of {} partitions forgotten\n", partitions.context("forget the contexts")?))
}
