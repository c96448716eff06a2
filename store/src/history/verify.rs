//! Compares a history with the enriched turns that the log still holds, and writes what is missing or differs.
//!
//! What the log no longer holds is not looked at, nor what the writer has not come to yet. Memory is bounded: records are
//! compared in batches of a thousand, and of several records of one turn in a batch the last counts, as it does for the
//! writer. A memory is written with its turn, and not compared: it may have faded.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use schemas::{Turn, topic};
use serde::Serialize;

use super::writer::{Fate, read};
use super::{History, HistoryError, Kept, Memory, PAGE_MAX, Page, Row};
use crate::erasures::Erasures;
use crate::log::{From, Kafka, LogError, Tail};
use crate::registry::{Registry, RegistryError};

/// Records that are compared at a time.
const BATCH: usize = 1000;
/// How often the position is looked at while no record comes: the marks of transactions are passed without one.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What a comparison found, in records of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Comparison {
    /// Enriched turns that were compared.
    pub compared: u64,
    /// Those that the history does not have.
    pub missing: u64,
    /// Those that it has with another value.
    pub differing: u64,
    /// Those of the two that were written.
    pub mended: u64,
    /// Records that the writer has not come to yet.
    pub to_come: u64,
    /// Records that are no enriched turns; the writer sets them aside.
    pub unreadable: u64,
}

impl Comparison {
    /// Whether the history has, by now, what it should.
    pub fn is_whole(&self) -> bool {
        self.missing + self.differing == self.mended
    }
}

/// Why a comparison ended early.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The log cannot be read.
    #[error("read enriched turns: {0}")]
    Log(#[from] LogError),
    /// What the turns name cannot be asked for.
    #[error("read enriched turns: {0}")]
    Registry(#[from] RegistryError),
    /// The history cannot be read or written.
    #[error("compare with the history: {0}")]
    History(#[from] HistoryError),
}

/// Compares, and with `mend` writes what is missing or differs; `told` hears after each batch how far it has come.
///
/// # Errors
/// [`VerifyError`]; what was mended until then stays.
pub async fn verify(
    kafka: &Kafka,
    history: &History,
    registry: &Registry,
    mend: bool,
    mut told: impl FnMut(&Comparison),
) -> Result<Comparison, VerifyError> {
    // Before the topic's ends: what the writer keeps meanwhile is not called missing.
    let reached = history.reached(topic::TURNS_ENRICHED).await?;
    let codec = registry.codec();
    let erasures = Erasures::read(kafka, codec).await?;
    let mut tail = Tail::open(kafka, topic::TURNS_ENRICHED, From::Beginning).await?;
    let ends = tail.ends_when_opened().clone();
    let mut found = Comparison::default();
    // In the order of the log, by conversation and position.
    let mut batch: HashMap<String, BTreeMap<i64, (Row, Option<Memory>)>> = HashMap::new();
    let mut batched = 0;
    while tail.positions().iter().any(|(partition, next)| ends.get(partition).is_some_and(|end| next < end)) {
        let Ok(message) = tokio::time::timeout(LOOK_AGAIN, tail.next()).await else { continue };
        let message = message?;
        if message.offset >= ends.get(&message.partition).copied().unwrap_or(0) {
            continue;
        }
        if message.offset >= reached.get(&message.partition).copied().unwrap_or(0) {
            found.to_come += 1;
            continue;
        }
        registry.know_now::<Turn>(message.value.as_deref()).await?;
        let Ok((row, memory, fate)) = read(codec, message, &erasures) else {
            found.unreadable += 1;
            continue;
        };
        if fate == Fate::Forgotten {
            continue;
        }
        batch.entry(row.conversation.clone()).or_default().insert(row.position, (row, memory));
        batched += 1;
        if batched == BATCH {
            compare(history, std::mem::take(&mut batch), mend, &mut found).await?;
            batched = 0;
            told(&found);
        }
    }
    compare(history, batch, mend, &mut found).await?;
    Ok(found)
}

async fn compare(
    history: &History,
    batch: HashMap<String, BTreeMap<i64, (Row, Option<Memory>)>>,
    mend: bool,
    found: &mut Comparison,
) -> Result<(), HistoryError> {
    let (mut to_write, mut memories) = (Vec::new(), Vec::new());
    for (conversation, wanted) in batch {
        let mut kept: HashMap<i64, Row> = HashMap::new();
        let mut sought = wanted.keys().copied().peekable();
        while let Some(first) = sought.peek().copied() {
            let page = history.turns(&conversation, Page::After(first - 1), PAGE_MAX).await?;
            // Up to here the page says all that there is.
            let last = if page.len() < PAGE_MAX { i64::MAX } else { page.last().map_or(i64::MAX, |row| row.position) };
            while sought.next_if(|position| *position <= last).is_some() {}
            kept.extend(
                page.into_iter().filter(|row| wanted.contains_key(&row.position)).map(|row| (row.position, row)),
            );
        }
        for (position, (row, memory)) in wanted {
            found.compared += 1;
            match kept.get(&position) {
                Some(kept) if *kept == row => continue,
                Some(_) => found.differing += 1,
                None => found.missing += 1,
            }
            to_write.push(row);
            memories.extend(memory);
        }
    }
    if mend && !to_write.is_empty() {
        let written = to_write.len() as u64;
        let (rows, memories) = (Arc::from(to_write), Arc::from(memories));
        history.keep(Kept { rows, memories, topic: topic::TURNS_ENRICHED, ..Kept::default() }).await?;
        found.mended += written;
    }
    Ok(())
}
