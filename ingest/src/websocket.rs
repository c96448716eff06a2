//! The socket on which clients send turns: `GET /ingest/ws`, JSON text frames up, one answer for each turn down.
//!
//! Promises: an `ack` means that the turn is durable, and names its partition and offset; answers come in the order
//! in which turns were sent; a frame at fault is answered with an error that names the field, and the socket lives on.
//! At most `in_flight_max` turns wait for the broker at a time, and those of all sockets fit the room that intake has:
//! beyond that the socket is not read, so that the client feels it (back-pressure by TCP), and nothing is refused for it. Turns that are acknowledged stand in the log in the order sent; one that
//! was answered with `unavailable` takes its place when it is sent again.
//!
//! A client that goes away before its acknowledgement sends the frame again with the same id: the repeat is dropped
//! downstream.

pub mod frame;
mod origin;

use std::collections::VecDeque;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::http::header::{HOST, ORIGIN};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{FuturesOrdered, SplitSink, SplitStream};
use futures_util::{FutureExt, SinkExt, StreamExt};
use schemas::seal::Key;
use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, MissedTickBehavior};

use crate::Shared;
use crate::intake::{Beside, Input, Refusal};
use crate::meters::Outcome;
use crate::problem::Problem;
use crate::room::Held;
use crate::webhook::now_ms;
use frame::{Bounds, Code, FrameError, Said, WEBSOCKET};

/// Messages up to this many times the bound are read and refused by name; larger ones end the socket unread.
const READ_FACTOR: usize = 4;

/// What is kept of each socket for reading, and read at once, in bytes: some turns. The library's own choice is 128 KiB.
const READ_BUFFER_BYTES: usize = 8 * 1024;

/// How long a socket waits for its client to have read the last word.
const LINGER: Duration = Duration::from_secs(1);

/// RFC 6455, section 7.4.1.
mod close_code {
    pub(super) const GOING_AWAY: u16 = 1001;
    pub(super) const POLICY: u16 = 1008;
}

/// `GET /ingest/ws`.
pub(crate) async fn upgrade(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    let count = |outcome| shared.intake.meters.input(WEBSOCKET, "socket", outcome);
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("null"));
    if !origin::permitted(text(ORIGIN), text(HOST), &shared.config.origins_allowed) {
        count(Outcome::Unauthorized);
        let (title, detail) = ("Foreign origin", "this page's origin may not open sockets here");
        let mend = "name it among the allowed origins";
        return Problem::new(StatusCode::FORBIDDEN, "foreign_origin", title, detail, mend).into_response();
    }
    let upgrade = match upgrade {
        Ok(upgrade) => upgrade,
        Err(rejection) => {
            count(Outcome::Invalid);
            let (title, mend) = ("Not a WebSocket", "open this path with a WebSocket client");
            let status = rejection.status();
            return Problem::new(status, "not_a_websocket", title, rejection.to_string(), mend).into_response();
        }
    };
    if let Some(refusal) = shared.intake.closed().await {
        count(Outcome::Unavailable);
        return Problem::unavailable(refusal, shared.config.retry_after).into_response();
    }
    let Ok(place) = Arc::clone(&shared.sockets).try_acquire_owned() else {
        count(Outcome::Unavailable);
        return Problem::too_many_sockets(shared.config.retry_after).into_response();
    };
    let bytes_max = shared.config.websocket.frame_bytes_max.saturating_mul(READ_FACTOR);
    let upgrade = upgrade.max_message_size(bytes_max).max_frame_size(bytes_max);
    upgrade.read_buffer_size(READ_BUFFER_BYTES).on_upgrade(move |socket| serve(socket, shared, place)).into_response()
}

/// Serves one socket to its end. `place` is one of the bounded number of sockets.
async fn serve(socket: WebSocket, shared: Arc<Shared>, place: OwnedSemaphorePermit) {
    shared.intake.meters.socket_opened();
    let (sink, stream) = socket.split();
    let session = Session { shared: Arc::clone(&shared), sink, stream, waiting: VecDeque::new() };
    // A session is as large as its buffers; on the heap it does not weigh on the task that holds it.
    let ended = Box::pin(session.run()).await;
    tracing::debug!(ended = ended.name(), "socket ended");
    shared.intake.meters.socket_closed();
    drop(place);
}

/// Why a socket ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// The client closed it or is gone.
    Client,
    /// The client broke the protocol, or sent a message far over the bound.
    Protocol,
    /// Nothing came, not even an answer to a ping.
    Idle,
    /// The client does not read its answers.
    Stuck,
    /// The server goes down; all that was read is answered.
    Drained,
}

impl Ended {
    fn name(self) -> &'static str {
        match self {
            Ended::Client => "client",
            Ended::Protocol => "protocol",
            Ended::Idle => "idle",
            Ended::Stuck => "stuck",
            Ended::Drained => "drained",
        }
    }
}

type Frame = Result<Said, FrameError>;

struct Session {
    shared: Arc<Shared>,
    sink: SplitSink<WebSocket, Message>,
    stream: SplitStream<WebSocket>,
    /// Read, and not yet given to the log: the rest of a batch that does not fit the window. The socket is only read
    /// while this is empty.
    waiting: VecDeque<Frame>,
}

impl Session {
    async fn run(mut self) -> Ended {
        let limits = self.shared.config.websocket.clone();
        let draining = self.shared.intake.draining.clone();
        let mut in_flight = FuturesOrdered::new();
        let mut heard = Instant::now();
        let mut pings = tokio::time::interval(limits.idle / 2);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut draining_now = false;
        loop {
            let in_flight_max = limits.in_flight_max.max(1);
            while in_flight.len() < in_flight_max
                && let Some(frame) = self.waiting.front()
            {
                let held = self.shared.intake.room.try_take(bytes_of(frame));
                let refused = match (&held, draining_now) {
                    // Nothing is waited for any more.
                    (None, true) => Some(Refusal::Draining),
                    (None, false) => break,
                    // Asked here, one frame after the other, because turns must be given to the log in their order.
                    (Some(_), _) => self.shared.intake.disk_refusal().await,
                };
                let frame = self.waiting.pop_front().expect("looked at above");
                let ready = self.ready(&frame, refused).await;
                in_flight.push_back(answer(Arc::clone(&self.shared), frame, ready, held));
            }
            if draining_now && self.waiting.is_empty() && in_flight.is_empty() {
                self.farewell().await;
                return Ended::Drained;
            }
            let may_read = self.waiting.is_empty() && in_flight.len() < in_flight_max && !draining_now;
            let reads = may_read && self.shared.intake.room.is_left();
            let next_bytes = self.waiting.front().filter(|_| in_flight.len() < in_flight_max).map(bytes_of);
            if !reads {
                heard = Instant::now();
            }
            if next_bytes.is_some() || (may_read && !reads) {
                self.shared.intake.room.waited();
            }
            tokio::select! {
                Some(first) = in_flight.next(), if !in_flight.is_empty() => {
                    let mut answers = vec![first];
                    while let Some(Some(next)) = in_flight.next().now_or_never() {
                        answers.push(next);
                    }
                    if !self.send(&answers).await {
                        return Ended::Stuck;
                    }
                }
                held = self.shared.intake.room.take(next_bytes.unwrap_or(0)), if next_bytes.is_some() => {
                    let refused = self.shared.intake.disk_refusal().await;
                    if let Some(frame) = self.waiting.pop_front() {
                        let ready = self.ready(&frame, refused).await;
                        in_flight.push_back(answer(Arc::clone(&self.shared), frame, ready, Some(held)));
                    }
                }
                () = self.shared.intake.room.left(), if may_read && !reads => {}
                message = self.stream.next(), if reads => {
                    heard = Instant::now();
                    if let Some(ended) = self.took(message).await {
                        return ended;
                    }
                }
                _ = pings.tick() => {
                    if heard.elapsed() >= limits.idle {
                        self.close(close_code::POLICY, "nothing heard, not even a pong: connect again").await;
                        return Ended::Idle;
                    }
                    let ping = self.sink.send(Message::Ping(axum::body::Bytes::new()));
                    if !matches!(tokio::time::timeout(limits.write_within, ping).await, Ok(Ok(()))) {
                        return Ended::Stuck;
                    }
                }
                () = draining.cancelled(), if !draining_now => draining_now = true,
            }
        }
    }

    /// What a frame is sealed by, unless it is refused. One frame after the other, as above.
    async fn ready(&self, frame: &Frame, refused: Option<Refusal>) -> Result<Option<Key>, Refusal> {
        match (refused, frame) {
            (Some(refusal), _) => Err(refusal),
            (None, Ok(said)) => self.shared.intake.key(&said.turn).await,
            (None, Err(_)) => Ok(None),
        }
    }

    /// Notes what came; says if it was the end.
    async fn took(&mut self, message: Option<Result<Message, axum::Error>>) -> Option<Ended> {
        match message {
            Some(Ok(Message::Text(text))) => self.read(&text),
            Some(Ok(Message::Binary(_))) => self.waiting.push_back(Err(binary())),
            // The library answers pings and closes.
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(Message::Close(_))) => {
                // Its answer waits to be sent.
                let _ = tokio::time::timeout(self.shared.config.websocket.write_within, self.sink.close()).await;
                return Some(Ended::Client);
            }
            None => return Some(Ended::Client),
            Some(Err(_)) => {
                self.close(close_code::POLICY, "message far over the bound, or broken protocol").await;
                return Some(Ended::Protocol);
            }
        }
        None
    }

    fn read(&mut self, text: &str) {
        let limits = &self.shared.config.websocket;
        if text.len() > limits.frame_bytes_max {
            let message =
                format!("is {} bytes long, at most {} are taken: split it", text.len(), limits.frame_bytes_max);
            self.waiting.push_back(Err(FrameError { id: None, code: Code::TooLarge, field: None, message }));
            return;
        }
        let bounds =
            Bounds { text_bytes_max: self.shared.config.text_bytes_max, batch_frames_max: limits.batch_frames_max };
        self.waiting.extend(frame::parse(text, now_ms(), bounds));
    }

    /// Whether the answers went out in time.
    async fn send(&mut self, answers: &[Answer]) -> bool {
        let sent = async {
            for answer in answers {
                let text = serde_json::to_string(answer).expect("an answer is strings and numbers");
                self.sink.feed(Message::Text(text.into())).await?;
            }
            self.sink.flush().await
        };
        matches!(tokio::time::timeout(self.shared.config.websocket.write_within, sent).await, Ok(Ok(())))
    }

    /// The server goes down: the client is told when to come back, each client another moment.
    async fn farewell(&mut self) {
        let (wait, spread) = (self.shared.config.retry_after, self.shared.config.reconnect_spread);
        let share = RandomState::new().hash_one(()) as f64 / u64::MAX as f64;
        let retry_ms = u64::try_from((wait + spread.mul_f64(share)).as_millis()).unwrap_or(u64::MAX);
        if self.send(&[Answer::Reconnect { reason: "going_down", retry_ms }]).await {
            self.close(close_code::GOING_AWAY, "server is going down: connect again").await;
        }
        // A connection that is closed with something unread is reset, and the last answers could be lost with it. What
        // still comes is not taken, and not acknowledged.
        let gone = async { while let Some(Ok(_)) = self.stream.next().await {} };
        let _ = tokio::time::timeout(LINGER, gone).await;
    }

    async fn close(&mut self, code: u16, reason: &'static str) {
        let close = Message::Close(Some(CloseFrame { code, reason: reason.into() }));
        // A client that is gone does not read the reason either.
        let _ = tokio::time::timeout(self.shared.config.websocket.write_within, self.sink.send(close)).await;
    }
}

/// What a frame costs of the room: its words; the rest is small and bounded.
fn bytes_of(frame: &Frame) -> usize {
    frame.as_ref().map_or(0, |said| said.turn.text.len())
}

/// What a client reads for each turn that it sent, and at the end.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Answer {
    /// The turn is durable.
    Ack { id: String, turn: uuid::Uuid, partition: i32, offset: i64 },
    /// It is not.
    Error(FrameError),
    /// The last word of a server that goes down: come back after so long, and send again what was not acknowledged.
    Reconnect { reason: &'static str, retry_ms: u64 },
}

/// Gives a frame to the log and waits for what becomes of it. The record is handed over at the first poll, so that
/// frames keep their order.
async fn answer(shared: Arc<Shared>, frame: Frame, ready: Result<Option<Key>, Refusal>, held: Option<Held>) -> Answer {
    let count = |outcome| shared.intake.meters.input(WEBSOCKET, "message", outcome);
    let said = match frame {
        Ok(said) => said,
        Err(error) => {
            count(if error.code == Code::TooLarge { Outcome::TooLarge } else { Outcome::Invalid });
            return Answer::Error(error);
        }
    };
    let (id, turn) = (said.turn.external_id.clone(), said.turn.id);
    let beside = Beside { correlation_id: said.correlation_id, trace: said.trace, begun: None };
    let input = Input::Turn(Box::new(said.turn));
    let appended = match (ready, held) {
        (Ok(key), Some(held)) => shared.intake.append(WEBSOCKET, &input, key.as_ref(), beside, held).await,
        (Err(refused), _) => Err(refused),
        (Ok(_), None) => Err(shared.intake.full()),
    };
    match appended {
        Ok(place) => {
            count(Outcome::Turn);
            Answer::Ack { id, turn, partition: place.partition, offset: place.offset }
        }
        Err(refusal) => {
            count(Outcome::Unavailable);
            let message = refusal.to_string();
            Answer::Error(FrameError { id: Some(id), code: Code::Unavailable, field: None, message })
        }
    }
}

fn binary() -> FrameError {
    let message = "binary frames are not read: send JSON in text frames".to_owned();
    FrameError { id: None, code: Code::Invalid, field: None, message }
}
