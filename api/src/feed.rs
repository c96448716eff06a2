//! Feeds the hub from the log: the one task that reads the enriched turns.
//!
//! It begins behind the newest turns, so that a process that has just started holds what one holds that has run for long:
//! whoever comes here from another process is sent those turns at once, whether history has them yet or not.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use schemas::erasure::ERASURE;
use schemas::{Codec, Span, SpanKind, Spans, TraceParent, Turn, TurnHead, topic};
use store::log::{LogError, Message, Tail};
use store::registry::{Registry, RegistryError};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::hub::{Hub, Live};
use crate::meters::{Meters, Skip};
use crate::onward::Onward;
use crate::view::{self, Embeddings};

/// First and longest pause after a transient error of the log.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// How long nothing may come before a reader that fills the hub is asked where it stands: it passes the marks of
/// transactions silently.
const QUIET: Duration = Duration::from_millis(20);

/// What the reader needs.
pub(crate) struct Feed {
    pub(crate) hub: Arc<Hub>,
    pub(crate) registry: Registry,
    pub(crate) meters: Arc<Meters>,
    pub(crate) spans: Spans,
    /// Hears of conversations in which something was forgotten.
    pub(crate) forgotten: Box<dyn Fn(String) + Send + Sync>,
}

/// Why reading on is of no use.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum FeedError {
    /// What the log said.
    #[error(transparent)]
    Log(#[from] LogError),
    /// What a schema id stands for could not be found out in time.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

/// Reads until shutdown, or until reading on is of no use. `filled` is dropped when the hub holds what was there before.
///
/// # Errors
/// What the log said, or the schema registry.
pub(crate) async fn run(
    mut tail: Tail,
    feed: &Feed,
    filled: oneshot::Sender<()>,
    shutdown: CancellationToken,
) -> Result<(), FeedError> {
    let mut pause = PAUSE_MIN;
    let before = tail.ends_when_opened().clone();
    let reached = |positions: &BTreeMap<i32, i64>| {
        before.iter().all(|(partition, end)| positions.get(partition).is_some_and(|position| position >= end))
    };
    let mut filled = (!reached(&tail.positions())).then_some(filled);
    loop {
        let message = tokio::select! {
            message = tail.next() => message,
            () = shutdown.cancelled() => return Ok(()),
            () = tokio::time::sleep(QUIET), if filled.is_some() => {
                if reached(&tail.positions()) {
                    filled = None;
                }
                continue;
            }
        };
        match message {
            Ok(message) => {
                pause = PAUSE_MIN;
                // A turn whose schema is not known holds up those behind it: none may be missed.
                match feed.registry.know::<Turn>(message.value.as_deref(), &shutdown).await {
                    Err(_) if shutdown.is_cancelled() => return Ok(()),
                    known => known?,
                }
                let end = before.get(&message.partition).copied().unwrap_or(0);
                let (is_news, is_last) = (message.offset >= end, message.offset + 1 >= end);
                feed.publish(message, is_news);
                if filled.is_some() && is_last && reached(&tail.positions()) {
                    filled = None;
                }
            }
            Err(LogError::Transient(reason)) => {
                tracing::warn!(reason, pause_ms = pause.as_millis() as u64, "enriched turns cannot be read for now");
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = shutdown.cancelled() => return Ok(()),
                }
                pause = (pause * 2).min(PAUSE_MAX);
            }
            Err(error) => return Err(error.into()),
        }
    }
}

impl Feed {
    /// What the record is to the hub. Only what somebody follows is read to its end: that is most of the work.
    fn taken(&self, message: Message) -> Result<(Live, i64), Skip> {
        let codec = self.registry.codec();
        let (mut live, received_at) = live_of(codec, message)?;
        if self.hub.is_followed(&live.conversation) {
            let turn: Turn = codec.decode(&live.value).map_err(|_| Skip::Undecodable)?;
            live.json = Some(view::json(&turn, Embeddings::Hide));
        }
        Ok((live, received_at))
    }

    /// Hands a record to the hub. What is no news has been measured and traced when it was.
    pub(crate) fn publish(&self, message: Message, is_news: bool) {
        let (partition, offset) = (message.partition, message.offset);
        let begun = SystemTime::now();
        let trace = message.trace();
        let forgotten = self.forgotten_in(&message);
        self.publish_taken(message, is_news, begun, trace, (partition, offset));
        if let Some(conversation) = forgotten {
            (self.forgotten)(conversation);
        }
    }

    /// The conversation in which something was forgotten, if the record says so. Few turns have the word in them.
    fn forgotten_in(&self, message: &Message) -> Option<String> {
        let value = message.value.as_deref()?;
        if !value.windows(ERASURE.len()).any(|part| part == ERASURE.as_bytes()) {
            return None;
        }
        let turn: Turn = self.registry.codec().decode(value).ok()?;
        turn.is_erasure().then_some(turn.conversation)
    }

    fn publish_taken(
        &self,
        message: Message,
        is_news: bool,
        begun: SystemTime,
        trace: Option<TraceParent>,
        (partition, offset): (i32, i64),
    ) {
        match self.taken(message) {
            Ok((live, _)) if !is_news => self.hub.publish(live),
            Ok((mut live, received_at)) => {
                self.meters.hub_turns.add(1, &[]);
                let now = begun.duration_since(UNIX_EPOCH).unwrap_or_default();
                self.meters.journey.record((now.as_millis() as i64 - received_at).max(0) as f64 / 1000.0, &[]);
                let Some(parent) = self.spans.watched(trace) else { return self.hub.publish(live) };
                let onward = Arc::new(Onward::new(&self.spans, parent, begun));
                live.traceparent = Some(onward.place.to_string());
                live.onward = Some(Arc::clone(&onward));
                let span = Span::new("deliver", onward.place, Some(parent), begun, begun).facing(SpanKind::Consumer);
                let span = span
                    .with("messaging.system", "kafka")
                    .with("messaging.destination.name", topic::TURNS_ENRICHED)
                    .with("messaging.destination.partition.id", partition.to_string())
                    .with("messaging.kafka.offset", offset)
                    .with("undertone.position", live.position);
                self.hub.publish(live);
                self.spans.report(Span { ended: SystemTime::now(), ..span });
            }
            Err(skip) => {
                self.meters.skipped(skip);
                let trace_id = trace.map(|trace| trace.trace_hex());
                tracing::error!(
                    partition,
                    offset,
                    reason = ?skip,
                    trace_id,
                    "a record of the enriched turns cannot be shown"
                );
            }
        }
    }
}

/// The record as the hub holds it, without JSON, and when intake took the turn, in milliseconds since the Unix epoch.
pub(crate) fn live_of(codec: &Codec, message: Message) -> Result<(Live, i64), Skip> {
    let text = |name: &str| {
        let header = message.headers.iter().find(|(header, _)| header == name);
        header.and_then(|(_, value)| String::from_utf8(value.clone()).ok())
    };
    let (correlation_id, traceparent) = (text("correlationid"), text("traceparent"));
    let value = message.value.unwrap_or_default();
    let value = match codec.open(&value).map_err(|_| Skip::Undecodable)? {
        (Cow::Owned(opened), _) => opened,
        _ => value,
    };
    let head: TurnHead = codec.decode_head(&value).map_err(|_| Skip::Undecodable)?;
    let position = head.position.ok_or(Skip::NoPosition)?;
    let live = Live {
        conversation: head.conversation.into(),
        position,
        at: head.at,
        taken_at: tokio::time::Instant::now(),
        partition: message.partition,
        offset: message.offset,
        json: None,
        value,
        correlation_id,
        traceparent,
        onward: None,
    };
    Ok((live, head.received_at))
}
