//! Reads everything at the end: the topics as committed readers see them, the history, the contexts.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use schemas::{Codec, Turn, topic};
use store::context::Contexts;
use store::history::{History, Page};
use store::log::{Admin, From, Kafka, Message, Tail};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::compare::{Evidence, Placed};
use super::load::{Acknowledged, Said};

/// Longest time to read a topic.
const READ_MAX: Duration = Duration::from_secs(120);
/// How often the end is looked for while no record comes.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Turns of the history that are read at once.
const PAGE: usize = 500;

/// Everything.
pub(super) async fn evidence(
    kafka: &Kafka,
    history: &History,
    contexts: &Contexts,
    codec: &Codec,
    said: Said,
) -> anyhow::Result<Evidence> {
    let placed = |message: Message| -> anyhow::Result<Placed> {
        let place = Acknowledged { partition: message.partition, offset: message.offset };
        let value = message.value.unwrap_or_default();
        let turn: Turn = codec.decode(&value).with_context(|| format!("decode what stands at {place:?}"))?;
        Ok(Placed { place, turn, value })
    };
    let received: Vec<Placed> =
        topic_of(kafka, topic::TURNS_RECEIVED).await?.into_iter().map(placed).collect::<Result<_, _>>()?;
    let enriched = topic_of(kafka, topic::TURNS_ENRICHED).await?.into_iter().map(placed).collect::<Result<_, _>>()?;
    let rejects = topic_of(kafka, topic::REJECTS).await?.len();
    let mut evidence = Evidence { said, received, enriched, rejects, ..Evidence::default() };
    for conversation in history.conversations(None, PAGE).await?.into_iter().map(|of| of.conversation) {
        let mut rows = Vec::new();
        loop {
            let last = rows.last().map_or(0, |row: &store::history::Row| row.position);
            let page = history.turns(&conversation, Page::After(last), PAGE).await?;
            if page.is_empty() {
                break;
            }
            rows.extend(page);
        }
        evidence.history.insert(conversation, rows);
    }
    for conversation in contexts.conversations(None, PAGE).await? {
        let records = contexts.show(&conversation).await?;
        evidence.contexts.insert(conversation, records);
    }
    Ok(evidence)
}

/// All committed records of a topic, in order within a partition.
async fn topic_of(kafka: &Kafka, topic: &str) -> anyhow::Result<Vec<Message>> {
    let ends = Admin::connect(kafka)?.offsets(topic).await.with_context(|| format!("ask for the end of {topic}"))?;
    let mut tail = Tail::open(kafka, topic, From::Beginning).await.with_context(|| format!("read {topic}"))?;
    let (mut messages, begun) = (Vec::new(), Instant::now());
    while tail.positions().iter().any(|(partition, next)| ends.get(partition).is_some_and(|(_, end)| next < end)) {
        anyhow::ensure!(begun.elapsed() < READ_MAX, "{topic} cannot be read to its end: an open transaction?");
        // The marks of transactions are passed without a record.
        match tokio::time::timeout(LOOK_AGAIN, tail.next()).await {
            Ok(Ok(message)) => messages.push(message),
            Ok(Err(error)) if !error.is_transient() => return Err(error).with_context(|| format!("read {topic}")),
            Ok(Err(_)) | Err(_) => {}
        }
    }
    messages.sort_by_key(|message| (message.partition, message.offset));
    Ok(messages)
}

/// Counts the committed enriched turns as they come, through every outage, until told to stop.
pub(super) async fn count(kafka: Kafka, count: watch::Sender<u64>, stop: CancellationToken) {
    let follow = async {
        let mut tail = loop {
            match Tail::open(&kafka, topic::TURNS_ENRICHED, From::Beginning).await {
                Ok(tail) => break tail,
                Err(_) => tokio::time::sleep(LOOK_AGAIN).await,
            }
        };
        loop {
            match tail.next().await {
                Ok(_) => count.send_modify(|count| *count += 1),
                Err(_) => tokio::time::sleep(LOOK_AGAIN).await,
            }
        }
    };
    stop.run_until_cancelled(follow).await;
}

/// Whether the log holds nothing of ours yet: a run counts from the beginning of the topics.
pub(super) async fn is_fresh(kafka: &Kafka) -> anyhow::Result<bool> {
    let admin = Admin::connect(kafka)?;
    let names: Vec<String> = admin.topics().await.context("list the topics")?.into_iter().map(|of| of.name).collect();
    for name in [topic::TURNS_RECEIVED, topic::TURNS_ENRICHED, topic::REJECTS] {
        if names.iter().any(|known| known == name) {
            let offsets: BTreeMap<i32, (i64, i64)> = admin.offsets(name).await?;
            if offsets.values().any(|(_, high)| *high > 0) {
                return Ok(false);
            }
        }
    }
    Ok(true)
}
