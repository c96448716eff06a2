//! `/v1/stream`: turns over a WebSocket.
//!
//! The client sends `follow` and `unfollow`, the server `following`, `turn`, `gap`, `unfollowed`, `error` and
//! `reconnect`, as `/v1/asyncapi.json` describes. A server that goes down tells each when to come back, and closes with 1001. A client that reads more slowly than turns come is told so with its resume token and
//! closed with 1013; one that does not answer pings is closed too.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message as Frame, WebSocket, WebSocketUpgrade, close_code};
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use futures_util::SinkExt as _;
use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior};

use crate::Shared;
use crate::command::{self, Command, Fault, Opening};
use crate::farewell;
use crate::meters::{Closed, Transport};
use crate::problem::Problem;
use crate::session::{FollowError, Message, Session};

/// What is kept of each stream for reading, and read at once, in bytes. Clients send a short command now and then; the
/// library's own choice, 128 KiB, is nine tenths of what an idle stream takes.
const READ_BUFFER_BYTES: usize = 4 * 1024;

/// Upgrades, unless the query cannot be read or too many streams are open.
pub(crate) async fn upgrade(
    State(shared): State<Arc<Shared>>,
    Query(query): Query<Vec<(String, String)>>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    let upgrade = match upgrade {
        Ok(upgrade) => upgrade,
        Err(rejection) => return not_a_websocket(&rejection).into_response(),
    };
    let opening = match command::opening(&query) {
        Ok(opening) => opening,
        Err(fault) => return Problem::parameter(fault.field, fault.message, "see /v1/asyncapi.json").into_response(),
    };
    let limit = shared.config.sockets_max;
    let Ok(permit) = shared.streams.clone().try_acquire_owned() else {
        return Problem::too_many_streams(limit).into_response();
    };
    let frame_bytes_max = shared.config.frame_bytes_max;
    let upgrade = upgrade.max_message_size(frame_bytes_max).max_frame_size(frame_bytes_max);
    upgrade.read_buffer_size(READ_BUFFER_BYTES).on_upgrade(async move |socket| {
        shared.meters.opened(Transport::WebSocket);
        // Boxed: it holds a session and a replay, and there may be thousands.
        let why = Box::pin(run(&shared, socket, opening)).await;
        shared.meters.closed(Transport::WebSocket, why);
        drop(permit);
    })
}

fn not_a_websocket(rejection: &WebSocketUpgradeRejection) -> Problem {
    Problem::new(
        StatusCode::UPGRADE_REQUIRED,
        "not_a_websocket",
        "This path takes WebSocket connections",
        rejection.to_string(),
        "connect with a WebSocket client, or read /v1/conversations/{id}/events with an EventSource",
    )
}

/// How a socket ends: the close code, its reason, and the reason that is counted.
struct End(u16, &'static str, Closed);

/// The client went, or cannot be written to: there is nobody to tell.
const GONE: End = End(close_code::ABNORMAL, "", Closed::Client);

struct Socket {
    socket: WebSocket,
    send_timeout: Duration,
    shared: Arc<Shared>,
}

impl Socket {
    async fn send(&mut self, frame: Frame) -> Result<(), End> {
        match tokio::time::timeout(self.send_timeout, self.socket.send(frame)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(GONE),
            Err(_) => Err(End(close_code::ABNORMAL, "", Closed::Slow)),
        }
    }

    async fn send_all(&mut self, messages: Vec<Message>) -> Result<(), End> {
        let turns = messages.iter().filter(|message| message.kind == "turn").count();
        for message in messages {
            self.send(Frame::Text(message.text.into())).await?;
            if let Some(onward) = message.onward {
                onward.sent(Transport::WebSocket);
            }
        }
        if turns > 0 {
            self.shared.meters.sent(Transport::WebSocket, turns as u64);
        }
        Ok(())
    }

    /// Tells what is wrong, with the field at fault and, where it helps to come back, the token.
    async fn complain(&mut self, fault: &Fault, resume: Option<String>) -> Result<(), End> {
        let mut body = json!({ "type": "error", "code": fault.code, "field": fault.field, "message": fault.message });
        if let Some(resume) = resume {
            body["resume"] = json!(resume);
        }
        self.send(Frame::Text(body.to_string().into())).await
    }
}

async fn run(shared: &Arc<Shared>, socket: WebSocket, opening: Opening) -> Closed {
    let send_timeout = shared.config.send_timeout;
    let mut socket = Socket { socket, send_timeout, shared: shared.clone() };
    let ended = match shared.hub.subscribe() {
        Some(queue) => {
            let mut session = Session::new(shared.clone(), queue, opening.embeddings);
            serve(&mut socket, &mut session, opening.command).await
        }
        None => Err(End(close_code::AWAY, "going down: connect again", Closed::Shutdown)),
    };
    let Err(End(code, reason, why)) = ended;
    if code != close_code::ABNORMAL {
        let close = Frame::Close(Some(CloseFrame { code, reason: reason.into() }));
        // Whether it arrives changes nothing any more.
        drop(socket.send(close).await);
    }
    why
}

/// Serves until the end, and says why.
async fn serve(
    socket: &mut Socket,
    session: &mut Session,
    first: Option<Command>,
) -> Result<std::convert::Infallible, End> {
    if let Some(command) = first {
        obey(socket, session, command).await?;
    }
    let (shared, heartbeat) = (socket.shared.clone(), socket.shared.config.heartbeat);
    let mut beat = tokio::time::interval_at(Instant::now() + heartbeat, heartbeat);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let settle_every = shared.config.settle_every;
    let mut settle = tokio::time::interval_at(Instant::now() + settle_every, settle_every);
    settle.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut answered = true;
    loop {
        tokio::select! {
            () = shared.shutdown.cancelled() => {
                return Err(farewell(socket, session).await);
            }
            frame = socket.socket.recv() => {
                answered = true;
                match frame {
                    Some(Ok(Frame::Text(text))) => match command::parse(&text) {
                        Ok(command) => obey(socket, session, command).await?,
                        Err(fault) => socket.complain(&fault, None).await?,
                    },
                    Some(Ok(Frame::Binary(_))) => {
                        let message = "frames are JSON texts: send text frames".to_owned();
                        socket.complain(&Fault { code: "bad_frame", field: "", message }, None).await?;
                    }
                    Some(Ok(Frame::Ping(_) | Frame::Pong(_))) => {}
                    Some(Ok(Frame::Close(_))) => {
                        // The library's answer waits to be sent.
                        let _ = tokio::time::timeout(socket.send_timeout, socket.socket.close()).await;
                        return Err(GONE);
                    }
                    None => return Err(GONE),
                    // Too large a frame, or no WebSocket: after that nothing can be read.
                    Some(Err(_)) => return Err(End(close_code::POLICY, "a frame that is too large or broken", Closed::Broken)),
                }
            }
            arrival = session.next() => {
                let Some(arrival) = arrival else { return Err(cut_off(socket, session).await) };
                match session.accept(arrival).await {
                    Ok(messages) => socket.send_all(messages).await?,
                    Err(error) => return Err(give_up(socket, session, &error).await),
                }
            }
            _ = settle.tick(), if session.unsettled() => {
                match session.settle().await {
                    Ok(messages) => socket.send_all(messages).await?,
                    Err(error) => return Err(give_up(socket, session, &error).await),
                }
            }
            _ = beat.tick() => {
                if !std::mem::take(&mut answered) {
                    return Err(End(close_code::POLICY, "pings were not answered", Closed::Broken));
                }
                socket.send(Frame::Ping(Default::default())).await?;
            }
        }
    }
}

/// The server goes down: the client is told when to come back, and with what.
async fn farewell(socket: &mut Socket, session: &Session) -> End {
    let message = farewell::message(farewell::retry_of(&socket.shared.config), session.token());
    match socket.send(Frame::Text(message.text.into())).await {
        Ok(()) => End(close_code::AWAY, "going down: connect again with the last token", Closed::Shutdown),
        Err(end) => end,
    }
}

/// The queue has ended: the reader was too slow, or the hub is closed.
async fn cut_off(socket: &mut Socket, session: &Session) -> End {
    if !session.lagged() {
        return farewell(socket, session).await;
    }
    let message =
        "turns came faster than this socket was read: connect again with the token, read faster, or follow less";
    let fault = Fault { code: "slow", field: "", message: message.to_owned() };
    match socket.complain(&fault, Some(session.token())).await {
        Ok(()) => End(close_code::AGAIN, "slow: connect again with the last token", Closed::Slow),
        Err(end) => end,
    }
}

/// What came cannot be shown without a hole: the token from before it brings the client back to it.
async fn give_up(socket: &mut Socket, session: &Session, error: &FollowError) -> End {
    tracing::warn!(?error, "a stream was closed");
    match socket.complain(&fault_of(error), Some(session.token())).await {
        Ok(()) => End(close_code::AGAIN, "connect again with the last token", Closed::Shutdown),
        Err(end) => end,
    }
}

async fn obey(socket: &mut Socket, session: &mut Session, command: Command) -> Result<(), End> {
    match command {
        Command::Follow { conversations, resume } => {
            if let Some(token) = &resume {
                session.expect(&conversations, token);
            }
            for conversation in conversations {
                let followed = session.follow(&conversation, resume.as_ref()).await;
                answer(socket, followed).await?;
            }
        }
        Command::FollowAll { resume } => {
            let followed = session.follow_all(resume.as_ref()).await;
            answer(socket, followed).await?;
        }
        Command::Unfollow { conversations } => {
            let messages = conversations.iter().map(|conversation| session.unfollow(conversation)).collect();
            socket.send_all(messages).await?;
        }
    }
    Ok(())
}

async fn answer(socket: &mut Socket, followed: Result<Vec<Message>, FollowError>) -> Result<(), End> {
    match followed {
        Ok(messages) => socket.send_all(messages).await,
        Err(error) => {
            if matches!(error, FollowError::History(_) | FollowError::Log(_)) {
                tracing::warn!(?error, "a conversation could not be followed");
            }
            socket.complain(&fault_of(&error), None).await
        }
    }
}

/// The error as clients see it.
pub(crate) fn fault_of(error: &FollowError) -> Fault {
    let (code, field) = match error {
        FollowError::TooMany(_) => ("too_many", "conversations"),
        FollowError::Mixed => ("mixed", "conversations"),
        FollowError::BadConversation(_) => ("bad_field", "conversations"),
        FollowError::WrongToken => ("bad_resume", "resume"),
        FollowError::History(_) => ("history_unavailable", ""),
        FollowError::Log(_) => ("log_unavailable", ""),
    };
    Fault { code, field, message: error.to_string() }
}
