//! `/v1/conversations/{id}/events`: the turns of one conversation as server-sent events.
//!
//! Every event's id is a resume token, so that an `EventSource` comes back to where it was by itself; after that the
//! first event is `recovered`, whose `recovered` says whether nothing is missing. Data are the messages of `/v1/stream`.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderName};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde_json::json;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use crate::Shared;
use crate::command;
use crate::farewell;
use crate::meters::{Closed, Transport};
use crate::problem::Problem;
use crate::resume::Token;
use crate::session::{FollowError, Message, Session};
use crate::stream::fault_of;
use crate::view::Embeddings;

/// The stream of events.
pub(crate) async fn events(
    State(shared): State<Arc<Shared>>,
    Path(conversation): Path<String>,
    Query(query): Query<Vec<(String, String)>>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let asked = query.iter().find(|(name, _)| name == "resume").map(|(_, value)| value.as_str());
    // A browser sends the header when it comes back by itself: it is newer than the address.
    let header = headers.get(HeaderName::from_static("last-event-id")).and_then(|value| value.to_str().ok());
    let token = header.or(asked).filter(|text| !text.is_empty()).map(Token::decode).transpose();
    let token = token.map_err(|error| {
        Problem::parameter("resume", error, "take the id of the last event, or leave it out to start from now")
    })?;
    let show = query.iter().find(|(name, _)| name == "embedding").map(|(_, value)| command::flag("embedding", value));
    let show = show.transpose().map_err(|fault| Problem::parameter("embedding", fault.message, "send embedding=1"))?;
    let embeddings = if show == Some(true) { Embeddings::Show } else { Embeddings::Hide };

    let limit = shared.config.sockets_max;
    let permit = shared.streams.clone().try_acquire_owned().map_err(|_| Problem::too_many_streams(limit))?;
    let queue = shared.hub.subscribe().ok_or_else(Problem::going_down)?;
    let mut session = Session::new(shared.clone(), queue, embeddings);
    let followed = session.follow(&conversation, token.as_ref()).await.map_err(|error| match error {
        FollowError::History(error) => {
            tracing::warn!(%error, "a conversation could not be followed");
            Problem::history_unavailable()
        }
        error => Problem::parameter("id", error, "GET /v1/conversations lists the ids"),
    })?;
    shared.meters.opened(Transport::Sse);
    let heartbeat = shared.config.heartbeat;
    let settle_every = shared.config.settle_every;
    let mut settle = tokio::time::interval_at(Instant::now() + settle_every, settle_every);
    settle.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let retry = Event::default().retry(shared.config.retry);
    let reader = Reader {
        pending: VecDeque::from([retry]),
        session,
        settle,
        over: false,
        why: Closed::Client,
        shared,
        _permit: permit,
    };
    let reader = reader.with(followed);
    let events = stream::unfold(reader, |mut reader| async move {
        let event = Box::pin(reader.next()).await?;
        Some((Ok::<_, Infallible>(event), reader))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(heartbeat)).into_response())
}

struct Reader {
    pending: VecDeque<Event>,
    session: Session,
    settle: Interval,
    over: bool,
    why: Closed,
    shared: Arc<Shared>,
    _permit: OwnedSemaphorePermit,
}

impl Reader {
    fn with(mut self, messages: Vec<Message>) -> Reader {
        self.push(messages);
        self
    }

    fn push(&mut self, messages: Vec<Message>) {
        let turns = messages.iter().filter(|message| message.kind == "turn").count();
        if turns > 0 {
            self.shared.meters.sent(Transport::Sse, turns as u64);
        }
        messages.iter().filter_map(|message| message.onward.as_ref()).for_each(|onward| onward.sent(Transport::Sse));
        self.pending.extend(messages.into_iter().map(event));
    }

    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Some(event);
            }
            if self.over {
                return None;
            }
            let shutdown = self.shared.shutdown.clone();
            let accepted = tokio::select! {
                () = shutdown.cancelled() => {
                    self.farewell();
                    continue;
                }
                _ = self.settle.tick(), if self.session.unsettled() => self.session.settle().await,
                arrival = self.session.next() => match arrival {
                    Some(arrival) => self.session.accept(arrival).await,
                    None => {
                        self.cut_off();
                        continue;
                    }
                },
            };
            match accepted {
                Ok(messages) => self.push(messages),
                Err(error) => {
                    tracing::warn!(?error, "a stream was closed");
                    let fault = fault_of(&error);
                    self.complain(fault.code, &fault.message);
                }
            }
        }
    }

    fn cut_off(&mut self) {
        if self.session.lagged() {
            self.why = Closed::Slow;
            let message = "turns came faster than this stream was read: connect again with the last event's id";
            self.complain("slow", message);
        } else {
            self.farewell();
        }
    }

    /// The server goes down: the `EventSource` is told by the stream's own field when to come back.
    fn farewell(&mut self) {
        let retry = farewell::retry_of(&self.shared.config);
        let message = farewell::message(retry, self.session.token());
        self.pending.push_back(event(message).retry(retry));
        self.over = true;
        self.why = Closed::Shutdown;
    }

    fn complain(&mut self, code: &str, message: &str) {
        let resume = self.session.token();
        let text =
            json!({ "type": "error", "code": code, "field": "", "message": message, "resume": resume }).to_string();
        self.pending.push_back(event(Message { kind: "error", text, resume: Some(resume), onward: None }));
        self.over = true;
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.shared.meters.closed(Transport::Sse, self.why);
    }
}

/// A message as an event. What follows a resumption is called `recovered`, so that a page can listen for it alone.
fn event(message: Message) -> Event {
    let resumed = message.kind == "following" && message.text.contains("\"recovered\":");
    let event = Event::default().event(if resumed { "recovered" } else { message.kind }).data(message.text);
    match message.resume {
        Some(resume) => event.id(resume),
        None => event,
    }
}
