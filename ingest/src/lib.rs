//! Intake: takes Telegram updates and WebSocket frames and appends them to the log.
//!
//! Promises: an input is acknowledged only when it is durable in the log; inputs at fault are kept with their bytes
//! (`rejects`) or told to their sender; nothing is cut silently; every size, number and wait has a bound in [`Config`].
//! Parsers are pure ([`telegram::parse`], [`websocket::frame::parse`]); `intake` is the one shell around the log.
//!
//! Left out: who listens (the caller serves [`Ingest::router`]), creating topics, deduplication (by id, downstream),
//! and any look at the processors.
//!
//! To add a source: one parser file, one handler that calls `intake`, one route in [`Ingest::router`].

#![warn(clippy::unwrap_used)]

mod disk;
mod intake;
mod meters;
mod problem;
pub mod redrive;
mod room;
mod seldom;
pub mod telegram;
mod webhook;
pub mod websocket;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use axum::Router;
use axum::http::{Method, Uri};
use axum::routing::{get, post};
use opentelemetry::metrics::Meter;
use schemas::{Spans, topic};
use secrecy::SecretString;
use store::log::{Producer, ProducerLimits};
use store::registry::Registry;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::disk::Disk;
pub use crate::disk::free_bytes;
use crate::intake::Intake;
use crate::meters::Meters;
use crate::problem::Problem;
use crate::room::Room;
use crate::seldom::Seldom;

/// What intake may do, and how much.
#[derive(Debug, Clone)]
pub struct Config {
    /// The bots whose updates are taken, by the name that stands in the webhook's URL.
    pub bots: BTreeMap<String, Bot>,
    /// Largest body of a webhook call, in bytes. At most half of what the rejects topic takes, so that a body at
    /// fault always fits there; a larger value counts as that.
    pub body_bytes_max: usize,
    /// How long a body may take to arrive.
    pub body_read_within: Duration,
    /// Longest text of a turn, in bytes of UTF-8.
    pub text_bytes_max: usize,
    /// How long the log may take to acknowledge a record. Telegram gives up on a call after about a minute.
    pub acknowledge_within: Duration,
    /// What `Retry-After` tells callers that were not served; whole seconds, at least one.
    pub retry_after: Duration,
    /// How far apart sockets are told to come back when the server goes down.
    pub reconnect_spread: Duration,
    /// Bytes that are held for the log at a time, all sources together, a kilobyte beside its own for each input.
    /// Beyond that webhooks are refused and sockets are not read. [`Config::producer_limits`] fits it.
    pub in_flight_bytes_max: usize,
    /// Intake stops when less than this is free on the disk of `data_dir`, in bytes.
    pub disk_free_bytes_min: u64,
    /// A folder on the disk that the log is on; absent if that is another machine's.
    pub data_dir: Option<PathBuf>,
    /// Origins such as `https://app.example` whose pages may open sockets, beside the server's own.
    pub origins_allowed: Vec<String>,
    /// Bounds of the sockets.
    pub websocket: WebSocketLimits,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            bots: BTreeMap::new(),
            body_bytes_max: 1024 * 1024,
            body_read_within: Duration::from_secs(10),
            text_bytes_max: topic::TEXT_BYTES_MAX,
            acknowledge_within: Duration::from_secs(5),
            retry_after: Duration::from_secs(5),
            reconnect_spread: Duration::from_secs(5),
            in_flight_bytes_max: 64 * 1024 * 1024,
            disk_free_bytes_min: 256 * 1024 * 1024,
            data_dir: None,
            origins_allowed: Vec::new(),
            websocket: WebSocketLimits::default(),
        }
    }
}

impl Config {
    /// A queue that holds all that intake does, so that intake's bound is the one that is met.
    pub fn producer_limits(&self) -> ProducerLimits {
        ProducerLimits {
            queue_records_max: self.in_flight_bytes_max / 1024 + 1,
            // An encoded turn or reject is larger than what was said, by its headers, its ids and its names.
            queue_bytes_max: self.in_flight_bytes_max.saturating_mul(2).max(2 * topic::REJECT_BYTES_MAX),
            ..ProducerLimits::default()
        }
    }
}

/// A bot whose updates are taken.
#[derive(Debug, Clone)]
pub struct Bot {
    /// The `secret_token` that was given to `setWebhook`, 1 to 256 characters. An empty one fits no call.
    pub webhook_secret: SecretString,
}

/// Bounds of the sockets.
#[derive(Debug, Clone)]
pub struct WebSocketLimits {
    /// Most sockets open at a time.
    pub sockets_max: u32,
    /// Largest message, in bytes.
    pub frame_bytes_max: usize,
    /// Most turns in one batch.
    pub batch_frames_max: usize,
    /// Most turns of one socket that wait for the broker; the socket is not read beyond that.
    pub in_flight_max: usize,
    /// A socket on which nothing was heard for so long, not even a pong, is closed. At least two milliseconds.
    pub idle: Duration,
    /// How long a client may take to read its answers.
    pub write_within: Duration,
}

impl Default for WebSocketLimits {
    fn default() -> WebSocketLimits {
        WebSocketLimits {
            sockets_max: 10_000,
            frame_bytes_max: 1024 * 1024,
            batch_frames_max: 1_000,
            in_flight_max: 1_000,
            idle: Duration::from_secs(60),
            write_within: Duration::from_secs(10),
        }
    }
}

/// Shared by all calls and sockets.
struct Shared {
    config: Config,
    intake: Intake,
    /// One permit for each socket that may be open.
    sockets: Arc<Semaphore>,
}

/// The intake of one process.
#[derive(Clone)]
pub struct Ingest {
    shared: Arc<Shared>,
}

impl Ingest {
    /// An intake that appends by `producer`, in the encoding and with the keys of `registry`, and reports to `meter` and
    /// `spans`.
    pub fn new(mut config: Config, producer: Producer, registry: Registry, meter: &Meter, spans: Spans) -> Ingest {
        config.body_bytes_max = config.body_bytes_max.min(topic::REJECT_BYTES_MAX / 2);
        config.websocket.idle = config.websocket.idle.max(Duration::from_millis(2));
        let intake = Intake {
            producer,
            codec: Arc::clone(registry.codec()),
            keys: registry.keys().cloned(),
            disk: Disk::new(config.data_dir.clone(), config.disk_free_bytes_min),
            acknowledge_within: config.acknowledge_within,
            meters: Meters::new(meter),
            spans,
            room: Room::new(config.in_flight_bytes_max, meter),
            seldom: Seldom::default(),
            draining: CancellationToken::new(),
            broken: CancellationToken::new(),
            failing: AtomicBool::new(false),
        };
        let sockets = Arc::new(Semaphore::new(config.websocket.sockets_max as usize));
        Ingest { shared: Arc::new(Shared { config, intake, sockets }) }
    }

    /// `POST /telegram/{bot}/webhook` and `GET /ingest/ws`.
    pub fn router(&self) -> Router {
        Router::new()
            .route("/telegram/{bot}/webhook", post(webhook::webhook))
            .route("/ingest/ws", get(websocket::upgrade))
            .method_not_allowed_fallback(async |method: Method, uri: Uri| {
                Problem::wrong_method(method.as_str(), uri.path())
            })
            .with_state(Arc::clone(&self.shared))
    }

    /// Takes no more inputs, answers those that were read, and closes the sockets. Calls of the webhook that are
    /// under way are the server's to wait for. Returns whether all was done `within` the time.
    pub async fn drain(&self, within: Duration) -> bool {
        self.shared.intake.draining.cancel();
        let all = self.shared.config.websocket.sockets_max;
        let drained = async {
            let closed = self.shared.sockets.acquire_many(all).await;
            closed.is_ok() && self.shared.intake.producer.flush(within).await.is_ok()
        };
        tokio::time::timeout(within, drained).await.unwrap_or(false)
    }

    /// Bytes that are held for the log now; [`Config::in_flight_bytes_max`] bounds them.
    pub fn in_flight_bytes(&self) -> usize {
        self.shared.intake.room.held_bytes()
    }

    /// Returns when the producer is beyond repair: nothing will be taken any more, and the process should end. The
    /// reason was logged.
    pub async fn broken(&self) {
        self.shared.intake.broken.cancelled().await;
    }
}

impl std::fmt::Debug for Ingest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ingest").field("config", &self.shared.config).finish_non_exhaustive()
    }
}
