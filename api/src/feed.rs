//! Feeds the hub from the log: the one task that reads the enriched turns.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use schemas::{Codec, Turn};
use store::log::{LogError, Message, Tail};
use tokio_util::sync::CancellationToken;

use crate::hub::{Hub, Live};
use crate::meters::{Meters, Skip};
use crate::view::{self, Embeddings};

/// First and longest pause after a transient error of the log.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// Reads until shutdown, or until the log says that reading on is of no use.
///
/// # Errors
/// What the log said.
pub(crate) async fn run(
    mut tail: Tail,
    hub: Arc<Hub>,
    codec: Arc<Codec>,
    meters: Arc<Meters>,
    shutdown: CancellationToken,
) -> Result<(), LogError> {
    let mut pause = PAUSE_MIN;
    loop {
        let message = tokio::select! {
            message = tail.next() => message,
            () = shutdown.cancelled() => return Ok(()),
        };
        match message {
            Ok(message) => {
                pause = PAUSE_MIN;
                publish(message, &hub, &codec, &meters);
            }
            Err(LogError::Transient(reason)) => {
                tracing::warn!(reason, pause_ms = pause.as_millis() as u64, "enriched turns cannot be read for now");
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = shutdown.cancelled() => return Ok(()),
                }
                pause = (pause * 2).min(PAUSE_MAX);
            }
            Err(error) => return Err(error),
        }
    }
}

fn publish(message: Message, hub: &Hub, codec: &Codec, meters: &Meters) {
    let (partition, offset) = (message.partition, message.offset);
    match live_of(codec, message) {
        Ok((live, received_at)) => {
            meters.hub_turns.add(1, &[]);
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            meters.journey.record((now.as_millis() as i64 - received_at).max(0) as f64 / 1000.0, &[]);
            hub.publish(live);
        }
        Err(skip) => {
            meters.skipped(skip);
            tracing::error!(partition, offset, reason = ?skip, "a record of the enriched turns cannot be shown");
        }
    }
}

/// The record as the hub holds it, and when intake took the turn, in milliseconds since the Unix epoch.
pub(crate) fn live_of(codec: &Codec, message: Message) -> Result<(Live, i64), Skip> {
    let text = |name: &str| {
        let header = message.headers.iter().find(|(header, _)| header == name);
        header.and_then(|(_, value)| String::from_utf8(value.clone()).ok())
    };
    let (correlation_id, traceparent) = (text("correlationid"), text("traceparent"));
    let value = message.value.unwrap_or_default();
    let turn: Turn = codec.decode(&value).map_err(|_| Skip::Undecodable)?;
    let position = turn.position.ok_or(Skip::NoPosition)?;
    let live = Live {
        conversation: turn.conversation.as_str().into(),
        position,
        partition: message.partition,
        offset: message.offset,
        json: view::json(&turn, Embeddings::Hide),
        value,
        correlation_id,
        traceparent,
    };
    Ok((live, turn.received_at))
}
