//! The hub and what feeds it, for whoever measures the ways in which turns may come to it (`undertone bench fanout`).

use std::collections::BTreeMap;
use std::sync::Arc;

use schemas::Spans;
use store::log::{Message, Tail};
use store::registry::Registry;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::feed::{self, Feed};
use crate::hub::{Hub, Queue};
use crate::meters::Meters;
use crate::{Config, Failure};

/// A hub of the default size, and its feed.
pub struct Fed(Feed);

/// Follows conversations of that hub.
#[derive(Debug)]
pub struct Follower(Queue);

/// A hub that begins at these offsets, and somebody who follows these conversations and whose queue holds so many turns.
pub fn hub(next: BTreeMap<i32, i64>, conversations: &[String], queue_turns_max: usize) -> (Fed, Follower) {
    let Config { hub_turns_max, hub_bytes_max, .. } = Config::default();
    let hub = Arc::new(Hub::new(hub_turns_max, hub_bytes_max, queue_turns_max, next));
    let queue = hub.subscribe().expect("the hub is open");
    for conversation in conversations {
        queue.follow(&conversation.as_str().into());
    }
    let meters = Arc::new(Meters::new(&opentelemetry::global::meter("bench")));
    (
        Fed(Feed { hub, registry: Registry::embedded(), meters, spans: Spans::default(), forgotten: Box::new(|_| {}) }),
        Follower(queue),
    )
}

impl Fed {
    /// Feeds the hub from the log until shutdown, as a process does.
    ///
    /// # Errors
    /// What the log said.
    pub async fn tail(&self, tail: Tail, shutdown: CancellationToken) -> Result<(), Failure> {
        feed::run(tail, &self.0, oneshot::channel().0, shutdown).await.map_err(Failure)
    }

    /// Feeds the hub one record that came in another way.
    pub fn take(&self, message: Message) {
        self.0.publish(message, true);
    }
}

impl Follower {
    /// The correlation id of the next turn that is followed; `None` when too many waited.
    pub async fn next(&mut self) -> Option<String> {
        let live = self.0.next().await?;
        Some(live.correlation_id.clone().unwrap_or_default())
    }
}
