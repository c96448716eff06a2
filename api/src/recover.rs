//! Joins history to what the hub holds, by position.
//!
//! Positions are dense within a conversation, so that a join can be proved: either every turn behind a position is
//! there, or the answer says that it is not. History is written behind the hub, by another role; what the hub has
//! evicted and history does not have yet is waited for, within a bound. So is our own hub, where the reader comes from a
//! process that had read further.

use std::sync::Arc;
use std::time::Duration;

use schemas::Turn;
use store::history::{HistoryError, Page};
use store::registry::Registry;

use crate::hub::{Hub, Live};
use crate::pages::{Kept, Pages};
use crate::view::Embeddings;

/// Bounds of one recovery.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Most turns that are replayed.
    pub(crate) turns_max: usize,
    /// Most bytes of JSON that are replayed.
    pub(crate) bytes_max: usize,
    /// Longest wait for history to catch up.
    pub(crate) wait: Duration,
}

/// A turn on its way to a client.
#[derive(Debug, Clone)]
pub(crate) enum Item {
    /// From the hub.
    Live(Arc<Live>),
    /// From history, as JSON.
    Kept {
        /// Its place in the conversation.
        position: i64,
        /// As [`crate::view::json`] writes it.
        json: String,
    },
}

impl Item {
    pub(crate) fn position(&self) -> i64 {
        match self {
            Item::Live(live) => live.position,
            Item::Kept { position, .. } => *position,
        }
    }

    fn size_bytes(&self) -> usize {
        match self {
            Item::Live(live) => live.json.as_ref().map_or(0, String::len),
            Item::Kept { json, .. } => json.len(),
        }
    }
}

/// What is behind a position.
#[derive(Debug)]
pub(crate) enum Recovered {
    /// Every turn, in order.
    Complete(Vec<Item>),
    /// Something is missing, or it is too much.
    Lost,
}

/// Who has a position, and with it everything up to there.
enum Reached {
    /// The hub, which holds these.
    Hub(Vec<Arc<Live>>),
    /// History, and not the hub.
    History,
    Neither,
}

/// Where a conversation is read from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sources<'a> {
    pub(crate) hub: &'a Hub,
    pub(crate) history: &'a Pages,
    pub(crate) registry: &'a Registry,
    pub(crate) embeddings: Embeddings,
    pub(crate) limits: Limits,
}

/// First and longest pause between two looks at a history that is behind.
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_millis(250);
/// Rows that are read at once.
const PAGE_ROWS: usize = 200;

impl Sources<'_> {
    /// Everything of the conversation behind position `after`, up to the end of what the hub holds; what the hub publishes
    /// later must be on its way to the reader already.
    ///
    /// # Errors
    /// History cannot be read.
    pub(crate) async fn after(&self, conversation: &str, after: i64) -> Result<Recovered, HistoryError> {
        let held = match self.reach(conversation, after).await? {
            Reached::Hub(held) => held,
            Reached::History => return self.between(conversation, after, None).await,
            Reached::Neither => return Ok(Recovered::Lost),
        };
        let behind: Vec<&Arc<Live>> = held.iter().filter(|live| live.position > after).collect();
        let Some(first) = behind.first() else { return Ok(Recovered::Complete(Vec::new())) };
        let Recovered::Complete(mut items) = self.between(conversation, after, Some(first.position)).await? else {
            return Ok(Recovered::Lost);
        };
        let mut last = items.last().map_or(after, Item::position);
        for live in behind {
            // The same position again is the same turn again.
            if live.position == last + 1 {
                last = live.position;
                let Some(live) = live.shown(self.registry.codec()) else { return Ok(Recovered::Lost) };
                items.push(Item::Live(live));
            } else if live.position > last + 1 {
                return Ok(Recovered::Lost);
            }
        }
        Ok(if self.fits(&items) { Recovered::Complete(items) } else { Recovered::Lost })
    }

    /// Everything of the conversation behind `after` and in front of `until`; without `until`, all that history has.
    ///
    /// # Errors
    /// History cannot be read.
    pub(crate) async fn between(
        &self,
        conversation: &str,
        after: i64,
        until: Option<i64>,
    ) -> Result<Recovered, HistoryError> {
        if until.is_some_and(|until| (until - after - 1) > self.limits.turns_max as i64) {
            return Ok(Recovered::Lost);
        }
        let mut items: Vec<Item> = Vec::new();
        let mut patience = Patience::new(self.limits.wait);
        loop {
            let last = items.last().map_or(after, Item::position);
            if until.is_some_and(|until| until <= last + 1) {
                return Ok(Recovered::Complete(items));
            }
            let rows = self.history.turns(conversation, Page::After(last), PAGE_ROWS).await?;
            // A turn of a newer release whose schema cannot be asked for now is one that cannot be shown.
            let values = rows.iter().map(|row| row.value.as_slice());
            if let Err(error) = self.registry.know_now::<Turn>(values).await {
                tracing::warn!(%error, "a turn in history has a schema that is not known");
                return Ok(Recovered::Lost);
            }
            let (whole_page, before) = (rows.len() == PAGE_ROWS, items.len());
            for row in rows.iter().take_while(|row| until.is_none_or(|until| row.position < until)) {
                // History is written in order: what it has passed over will not come.
                if row.position != items.last().map_or(after, Item::position) + 1 {
                    return Ok(Recovered::Lost);
                }
                let Some(json) = self.json(row) else { return Ok(Recovered::Lost) };
                items.push(Item::Kept { position: row.position, json });
            }
            if !self.fits(&items) {
                return Ok(Recovered::Lost);
            }
            let passed = until.is_some_and(|until| rows.iter().any(|row| row.position >= until));
            match until {
                None if !whole_page => return Ok(Recovered::Complete(items)),
                Some(until) if passed && items.last().map_or(after, Item::position) + 1 < until => {
                    return Ok(Recovered::Lost);
                }
                Some(_) if items.len() == before && !patience.pause().await => return Ok(Recovered::Lost),
                _ => {}
            }
        }
    }

    /// Who comes to have `position` within the bound. A reader may be ahead of us, having been served by another process:
    /// then it misses nothing once we have come as far. If nobody ever does, the position is from another life of the
    /// conversation.
    async fn reach(&self, conversation: &str, position: i64) -> Result<Reached, HistoryError> {
        let mut patience = Patience::new(self.limits.wait);
        loop {
            let held = self.hub.newer(conversation, 0);
            if held.last().is_some_and(|live| live.position >= position) {
                return Ok(Reached::Hub(held));
            }
            if position <= self.history.last_position(conversation).await?.unwrap_or(0) {
                return Ok(Reached::History);
            }
            if !patience.pause().await {
                return Ok(Reached::Neither);
            }
        }
    }

    fn fits(&self, items: &[Item]) -> bool {
        items.len() <= self.limits.turns_max
            && items.iter().map(Item::size_bytes).sum::<usize>() <= self.limits.bytes_max
    }

    /// The turn as JSON; `None` if it is none, which the log has been told by then.
    fn json(&self, turn: &Kept) -> Option<String> {
        turn.json(self.registry.codec(), self.embeddings).map(std::borrow::Cow::into_owned)
    }
}

/// A bounded wait in growing steps.
struct Patience {
    left: Duration,
    step: Duration,
}

impl Patience {
    fn new(wait: Duration) -> Patience {
        Patience { left: wait, step: PAUSE_MIN }
    }

    /// Waits a step; `false` when there is no patience left.
    async fn pause(&mut self) -> bool {
        let step = self.step.min(self.left);
        if step.is_zero() {
            return false;
        }
        tokio::time::sleep(step).await;
        self.left -= step;
        self.step = (self.step * 2).min(PAUSE_MAX);
        true
    }
}
