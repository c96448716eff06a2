//! The read side: streams of enriched turns over WebSocket and SSE, history in pages, the schema registry's read API,
//! and the page.
//!
//! Promises: one reader of the log a process, whatever the number of clients; a client that comes back with its resume
//! token misses nothing and sees nothing twice, or is told `recovered: false`; a slow client holds up nobody; every
//! queue, page, replay and wait is bounded by [`Config`]. Every error is a problem detail that says how to mend it.
//!
//! Left out: listening (the caller does, on loopback until there are accounts), health and metrics endpoints, accounts
//! and rate limits.

#![warn(clippy::unwrap_used)]

mod command;
mod dream;
mod farewell;
mod feed;
mod firehose;
mod guard;
mod history;
mod hub;
pub mod memories;
#[doc(hidden)]
pub mod measured;
mod meters;
mod onward;
mod page;
mod pages;
mod problem;
mod reading;
mod recover;
mod registry;
mod resume;
mod router;
#[cfg(test)]
mod sample;
mod session;
mod sse;
mod stream;
mod view;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use opentelemetry::metrics::Meter;
use schemas::{Codec, Spans, topic};
use store::history::History;
use store::log::{From as Start, Kafka, LogError, Tail};
use store::redis::Shelf;
use store::registry::Registry;
use tokio::sync::{Semaphore, oneshot, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

pub use dream::{Dreams, Dreamt, NoDream};
use feed::FeedError;
use hub::Hub;
use meters::Meters;
use pages::Pages;
pub use pages::Tally;
pub use problem::Problem;
use reading::Reading;

/// Longest time that a start waits for the hub to hold the newest turns.
const FILL_WITHIN: Duration = Duration::from_secs(2);

/// Limits of the read side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Open streams, WebSocket and SSE together; the next one is answered 503.
    pub sockets_max: usize,
    /// Conversations that one WebSocket follows.
    pub conversations_per_socket_max: usize,
    /// Longest conversation id that can be followed, in bytes.
    pub conversation_bytes_max: usize,
    /// Turns that wait for one stream; when there are more, it is closed as slow. All turns of a transaction come at once,
    /// so it holds several of the largest. What waits is shared with the other streams and with the ring.
    pub socket_queue_turns_max: usize,
    /// Largest frame that a client may send, in bytes.
    pub frame_bytes_max: usize,
    /// Recent turns that the hub holds; it begins with those that are there.
    pub hub_turns_max: usize,
    /// Bytes of the recent turns that the hub holds.
    pub hub_bytes_max: usize,
    /// Turns that are replayed to a conversation's reader that comes back; beyond, it is `recovered: false`.
    pub replay_turns_max: usize,
    /// Bytes of JSON that are replayed likewise; all of it is in memory for the moment.
    pub replay_bytes_max: usize,
    /// Records that are replayed from the log to a reader of the firehose that comes back.
    pub firehose_replay_records_max: usize,
    /// Longest time that a read of the history may take; three that take longer open its circuit breaker.
    pub history_read_within: Duration,
    /// Bytes of pages that are held in memory in front of history; 0: none, and every page is read from it.
    pub pages_bytes_max: usize,
    /// How long a page at a fixed place is believed: erasure and mending, which the log does not tell, show after it.
    pub pages_fixed_max: Duration,
    /// How long a newest page, an unknown conversation or a list is believed of which the log says nothing.
    pub pages_newest_max: Duration,
    /// How long a list of conversations is believed although turns came.
    pub pages_list_max: Duration,
    /// Longest wait for a history that is behind the hub, and for a replay of the log that stands still.
    pub history_wait: Duration,
    /// Time between two of the five looks into a history that may be behind a hub which has seen nothing yet.
    pub settle_every: Duration,
    /// Turns or conversations on a page when no limit is asked for.
    pub page_turns_default: usize,
    /// Most turns or conversations on a page; below the 1,000 that history reads at once.
    pub page_turns_max: usize,
    /// Time between two pings, or two comments on SSE. A WebSocket that answers none of two is closed.
    pub heartbeat: Duration,
    /// Longest time that a WebSocket may take to accept a message.
    pub send_timeout: Duration,
    /// What an `EventSource` waits for before it comes back.
    pub retry: Duration,
    /// How far apart streams are told to come back when the server goes down.
    pub reconnect_spread: Duration,
    /// Host names beside the loopback ones that requests may name, such as a container's.
    pub hosts_allowed: Vec<String>,
    /// Where schemas are kept, if it is not here: what `/registry` answers then.
    pub registry_elsewhere: Option<String>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            sockets_max: 10_000,
            conversations_per_socket_max: 100,
            conversation_bytes_max: 1024,
            socket_queue_turns_max: 4096,
            frame_bytes_max: 256 * 1024,
            hub_turns_max: 20_000,
            hub_bytes_max: 128 * 1024 * 1024,
            replay_turns_max: 2_000,
            replay_bytes_max: 16 * 1024 * 1024,
            firehose_replay_records_max: 100_000,
            history_read_within: Duration::from_secs(2),
            pages_bytes_max: 64 * 1024 * 1024,
            pages_fixed_max: Duration::from_secs(60),
            pages_newest_max: Duration::from_secs(2),
            pages_list_max: Duration::from_millis(250),
            history_wait: Duration::from_secs(5),
            settle_every: Duration::from_secs(1),
            page_turns_default: 50,
            page_turns_max: 500,
            heartbeat: Duration::from_secs(15),
            send_timeout: Duration::from_secs(10),
            retry: Duration::from_secs(1),
            reconnect_spread: Duration::from_secs(5),
            hosts_allowed: Vec::new(),
            registry_elsewhere: None,
        }
    }
}

impl Config {
    fn recovery(&self) -> recover::Limits {
        recover::Limits { turns_max: self.replay_turns_max, bytes_max: self.replay_bytes_max, wait: self.history_wait }
    }

    fn pages(&self) -> pages::Limits {
        pages::Limits {
            bytes_max: self.pages_bytes_max,
            fixed: self.pages_fixed_max,
            newest: self.pages_newest_max,
            list: self.pages_list_max,
        }
    }
}

/// What every request and stream of one API shares.
#[derive(Debug)]
pub(crate) struct Shared {
    config: Config,
    hub: Arc<Hub>,
    kafka: Kafka,
    history: Pages,
    memories: Option<Arc<dyn memories::Memories>>,
    codec: Arc<Codec>,
    registry: Registry,
    meters: Arc<Meters>,
    streams: Arc<Semaphore>,
    dreams: OnceLock<Arc<dyn Dreams>>,
    shutdown: CancellationToken,
}

/// Where what was said before is read: the store, and a shelf in Redis that stands in front of it.
#[derive(Debug, Clone)]
pub struct Past {
    /// The store.
    pub history: History,
    /// The shelf, where there is one.
    pub shelf: Option<Shelf>,
    /// What is remembered of it, where it can be asked for.
    pub memories: Option<Arc<dyn memories::Memories>>,
}

impl From<History> for Past {
    fn from(history: History) -> Past {
        Past { history, shelf: None, memories: None }
    }
}

/// Reads a frame, a query string, a resume token, a cursor and a schema of a client, and forgets them: for fuzzing, which
/// must reach what only a socket reaches.
///
/// # Panics
/// A token or a cursor that was read is not written as it was: a fault of ours.
#[doc(hidden)]
pub fn reads_command(text: &str) {
    let _ = command::parse(text);
    let query: Vec<(String, String)> = text
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let _ = command::opening(&query);
    history::reads_cursor(text);
    registry::reads_schema(text);
    if let Ok(token) = resume::Token::decode(text) {
        assert_eq!(resume::Token::decode(&token.encode()).as_ref(), Ok(&token), "a token comes back as it went");
    }
}

/// Why the read side cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The log does not answer, or the topic of enriched turns is missing.
    #[error("open the enriched turns: {0}")]
    Log(#[from] LogError),
}

/// Why the read side ended by itself: the process should end too.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the reader of the enriched turns ended: {0}")]
pub struct Failure(FeedError);

/// The read side of one process. Dropping it ends its reader and its streams.
#[derive(Debug)]
pub struct Api {
    router: Router,
    failure: watch::Receiver<Option<Failure>>,
    pages: Arc<Tally>,
    shared: Arc<Shared>,
    _end: DropGuard,
}

impl Api {
    /// Starts reading the enriched turns; streams and pages are served by whoever serves [`Api::router`].
    ///
    /// `shutdown` ends the reader, and every stream with a word to come back.
    ///
    /// # Errors
    /// The log does not answer, or `undertone.turns.enriched.v1` is missing.
    pub async fn start(
        config: Config,
        kafka: &Kafka,
        past: impl Into<Past>,
        registry: Registry,
        meter: &Meter,
        spans: Spans,
        shutdown: CancellationToken,
    ) -> Result<Api, StartError> {
        let tail = Tail::open(kafka, topic::TURNS_ENRICHED, Start::Last(config.hub_turns_max as u64)).await?;
        let hub = Hub::new(config.hub_turns_max, config.hub_bytes_max, config.socket_queue_turns_max, tail.positions());
        let (hub, Past { history, shelf, memories }) = (Arc::new(hub), past.into());
        let store = Reading::new(history, config.history_read_within, meter);
        let shutdown = shutdown.child_token();
        let shared = Arc::new(Shared {
            streams: Arc::new(Semaphore::new(config.sockets_max.min(Semaphore::MAX_PERMITS))),
            history: Pages::new(store, Arc::clone(&hub), config.pages(), shelf, meter),
            memories,
            hub,
            kafka: kafka.clone(),
            config,
            codec: Arc::clone(registry.codec()),
            registry,
            meters: Arc::new(Meters::new(meter)),
            dreams: OnceLock::new(),
            shutdown: shutdown.clone(),
        });
        let (failed, failure) = watch::channel(None);
        let (filled, is_filled) = oneshot::channel();
        tokio::spawn({
            let feed = feed::Feed {
                hub: shared.hub.clone(),
                registry: shared.registry.clone(),
                meters: shared.meters.clone(),
                spans,
                forgotten: Box::new({
                    let shared = Arc::downgrade(&shared);
                    move |conversation| {
                        if let Some(shared) = shared.upgrade() {
                            memories::let_go(&shared, &[conversation]);
                        }
                    }
                }),
            };
            let shutdown = shutdown.clone();
            async move {
                let ended = feed::run(tail, &feed, filled, shutdown).await;
                feed.hub.close();
                match ended {
                    Err(error) => drop(failed.send(Some(Failure(error)))),
                    // The sender lives as long as the process may still be asked.
                    Ok(()) => failed.closed().await,
                }
            }
        });
        // The sender is dropped when it is done, or failed. Late turns are sent as those that are new.
        drop(tokio::time::timeout(FILL_WITHIN, is_filled).await);
        let pages = shared.history.tally();
        Ok(Api { router: router::build(Arc::clone(&shared)), failure, pages, shared, _end: shutdown.drop_guard() })
    }

    /// The paths; unknown ones are answered by a problem detail, so that no other router merged with it may have a
    /// fallback.
    pub fn router(&self) -> Router {
        self.router.clone()
    }

    /// Lets dreams be made by this, from now on; without, they are answered as unavailable. Only the first call counts.
    pub fn dream_by(&self, dreams: Arc<dyn Dreams>) {
        let _ = self.shared.dreams.set(dreams);
    }

    /// Who answered how many questions for pages, from the start on.
    pub fn pages(&self) -> Arc<Tally> {
        Arc::clone(&self.pages)
    }

    /// Resolves when the reader of the log has died for good; never after a shutdown.
    pub async fn failed(&self) -> Failure {
        let mut failure = self.failure.clone();
        // The guard must not live across an await, or the future could not move between threads.
        let died = failure.wait_for(Option::is_some).await.is_ok();
        let failure = failure.borrow().clone();
        match failure {
            Some(failure) if died => failure,
            _ => std::future::pending().await,
        }
    }
}
