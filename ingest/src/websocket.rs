//! The socket on which clients send turns: `GET /ingest/ws`, JSON text frames up, one answer for each turn down.
//!
//! Promises: an `ack` means that the turn is durable, and names its partition and offset; answers come in the order
//! in which turns were sent; a frame at fault is answered with an error that names the field, and the socket lives on.
//! At most `in_flight_max` turns wait for the broker at a time: beyond that the socket is not read, so that the
//! client feels it (back-pressure by TCP). Turns that are acknowledged stand in the log in the order sent; one that
//! was answered with `unavailable` takes its place when it is sent again.
//!
//! A client that goes away before its acknowledgement sends the frame again with the same id: the repeat is dropped
//! downstream.

pub mod frame;
mod origin;
mod time;

use std::collections::VecDeque;
use std::sync::Arc;

use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::http::header::{HOST, ORIGIN};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{FuturesOrdered, SplitSink, SplitStream};
use futures_util::{FutureExt, SinkExt, StreamExt};
use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, MissedTickBehavior};

use crate::Shared;
use crate::intake::{Beside, Input, Refusal};
use crate::meters::Outcome;
use crate::problem::Problem;
use crate::webhook::now_ms;
use frame::{Bounds, Code, FrameError, Said, WEBSOCKET};

/// Messages up to this many times the bound are read and refused by name; larger ones end the socket unread.
const READ_FACTOR: usize = 4;

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
    upgrade.on_upgrade(move |socket| serve(socket, shared, place)).into_response()
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
            while in_flight.len() < limits.in_flight_max.max(1)
                && let Some(frame) = self.waiting.pop_front()
            {
                // Asked here, one frame after the other, because turns must be given to the log in their order.
                let closed = self.shared.intake.disk.nearly_full(std::time::Instant::now()).await;
                in_flight.push_back(answer(Arc::clone(&self.shared), frame, closed));
            }
            if draining_now && self.waiting.is_empty() && in_flight.is_empty() {
                self.close(close_code::GOING_AWAY, "server is going down: connect again").await;
                return Ended::Drained;
            }
            let reads = self.waiting.is_empty() && in_flight.len() < limits.in_flight_max.max(1) && !draining_now;
            if !reads {
                heard = Instant::now();
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
                message = self.stream.next(), if reads => {
                    heard = Instant::now();
                    match message {
                        Some(Ok(Message::Text(text))) => self.read(&text),
                        Some(Ok(Message::Binary(_))) => self.waiting.push_back(Err(binary())),
                        // The library answers pings and closes.
                        Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                        Some(Ok(Message::Close(_))) | None => return Ended::Client,
                        Some(Err(_)) => {
                            self.close(close_code::POLICY, "message far over the bound, or broken protocol").await;
                            return Ended::Protocol;
                        }
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

    async fn close(&mut self, code: u16, reason: &'static str) {
        let close = Message::Close(Some(CloseFrame { code, reason: reason.into() }));
        // A client that is gone does not read the reason either.
        let _ = tokio::time::timeout(self.shared.config.websocket.write_within, self.sink.send(close)).await;
    }
}

/// What a client reads for each turn that it sent.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Answer {
    /// The turn is durable.
    Ack { id: String, turn: uuid::Uuid, partition: i32, offset: i64 },
    /// It is not.
    Error(FrameError),
}

/// Gives a frame to the log and waits for what becomes of it. The record is handed over at the first poll, so that
/// frames keep their order.
async fn answer(shared: Arc<Shared>, frame: Frame, disk_nearly_full: bool) -> Answer {
    let count = |outcome| shared.intake.meters.input(WEBSOCKET, "message", outcome);
    let said = match frame {
        Ok(said) => said,
        Err(error) => {
            count(if error.code == Code::TooLarge { Outcome::TooLarge } else { Outcome::Invalid });
            return Answer::Error(error);
        }
    };
    let (id, turn) = (said.turn.external_id.clone(), said.turn.id);
    let beside = Beside { correlation_id: said.correlation_id, trace: said.trace };
    let input = Input::Turn(Box::new(said.turn));
    let appended = match disk_nearly_full {
        true => Err(Refusal::DiskNearlyFull),
        false => shared.intake.append(WEBSOCKET, &input, beside).await,
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
