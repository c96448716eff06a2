//! One reader's view of the stream: what it follows, where it stands, and the messages that it is sent.
//!
//! Promises: behind a resume token nothing is missing and nothing repeated, or a message says `recovered: false`; this
//! holds also for a turn that history has and the hub never saw. Both transports send the same messages.
//!
//! Left out: sockets, frames and time-outs (`stream`, `sse`).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use schemas::Turn;
use serde_json::json;
use store::history::HistoryError;

use crate::Shared;
use crate::firehose::{self, Replay};
use crate::hub::{FirehoseStart, Live, Queue};
use crate::onward::Onward;
use crate::recover::{Item, Recovered, Sources};
use crate::resume::{Token, key};
use crate::view::{self, Embeddings};

/// A message for the client.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    /// The value of `type`, and the name of the SSE event.
    pub(crate) kind: &'static str,
    /// One JSON object.
    pub(crate) text: String,
    /// The token that `text` carries too: the SSE event id.
    pub(crate) resume: Option<String>,
    /// To be told once it is sent, where its turn is traced.
    pub(crate) onward: Option<Arc<Onward>>,
}

/// Why something cannot be followed. The client is told; the stream lives on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FollowError {
    #[error("a stream follows at most {0} conversations: open another one for more")]
    TooMany(usize),
    #[error("a stream follows either everything or single conversations: open another one, or unfollow first")]
    Mixed,
    #[error("conversation ids have 1 to {0} bytes")]
    BadConversation(usize),
    #[error("the token is of another kind: tokens of the firehose resume the firehose, others conversations")]
    WrongToken,
    #[error("history could not be read: send the same again in a moment; if it stays, `undertone doctor` says why")]
    History(#[from] HistoryError),
    #[error("the log could not be read: send the same again in a moment; if it stays, `undertone doctor` says why")]
    Log(#[from] store::log::LogError),
}

/// What came for the session, to be handed to [`Session::accept`].
#[derive(Debug)]
pub(crate) enum Arrival {
    /// A turn of something that is followed.
    Live(Arc<Live>),
    /// A step of the firehose's replay.
    Replayed(firehose::Step),
}

/// How often a session looks once more, [`crate::Config::settle_every`] apart.
const SETTLE_LOOKS: u8 = 5;

/// A reader.
pub(crate) struct Session {
    shared: Arc<Shared>,
    queue: Queue,
    embeddings: Embeddings,
    places: HashMap<Arc<str>, Place>,
    /// With the firehose: by partition, the next offset to deliver.
    offsets: Option<BTreeMap<i32, i64>>,
    replay: Option<Replay>,
    /// By [`key`], positions that a token brought for conversations which are still to be followed: until then they
    /// belong into every token that is sent, or a reader that is cut off in between would lose them.
    awaited: BTreeMap<u64, i64>,
}

/// Where the reader stands in a conversation.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// Position of the last turn that was delivered, or from which on turns are.
    last: i64,
    /// Whether the reader holds everything up to `last`, so that the next turn must be `last + 1`.
    dense: bool,
    /// How often history is still looked into for turns that neither it nor the hub had when the reader followed: those
    /// that were enriched before this process began to read, and not written to history by then.
    settle: u8,
}

impl Session {
    pub(crate) fn new(shared: Arc<Shared>, queue: Queue, embeddings: Embeddings) -> Session {
        Session {
            shared,
            queue,
            embeddings,
            places: HashMap::new(),
            offsets: None,
            replay: None,
            awaited: BTreeMap::new(),
        }
    }

    /// Keeps the positions that a token holds for conversations that are about to be followed.
    pub(crate) fn expect(&mut self, conversations: &[String], token: &Token) {
        let positions = conversations.iter().filter_map(|name| Some((key(name), token.position(name)?)));
        self.awaited.extend(positions);
    }

    /// Follows a conversation: from behind the token's position if it holds one, from now on otherwise.
    pub(crate) async fn follow(
        &mut self,
        conversation: &str,
        token: Option<&Token>,
    ) -> Result<Vec<Message>, FollowError> {
        let config = &self.shared.config;
        if conversation.is_empty() || conversation.len() > config.conversation_bytes_max {
            return Err(FollowError::BadConversation(config.conversation_bytes_max));
        }
        if self.offsets.is_some() {
            return Err(FollowError::Mixed);
        }
        if matches!(token, Some(Token::Offsets(_))) {
            return Err(FollowError::WrongToken);
        }
        let known = self.places.contains_key(conversation);
        if !known && self.places.len() >= config.conversations_per_socket_max {
            return Err(FollowError::TooMany(config.conversations_per_socket_max));
        }
        if known {
            // Asked for again: it goes on where it stands.
            return Ok(vec![self.following(conversation, None)]);
        }
        let name: Arc<str> = conversation.into();
        let started = self.start(&name, token.and_then(|token| token.position(conversation))).await;
        match &started {
            Ok(_) => drop(self.awaited.remove(&key(conversation))),
            Err(_) => {
                self.queue.unfollow(conversation);
                self.places.remove(&name);
            }
        }
        started
    }

    async fn start(&mut self, name: &Arc<str>, resumed: Option<i64>) -> Result<Vec<Message>, FollowError> {
        // First the queue, then history: what comes in between is in the queue.
        let held = self.queue.follow(name);
        let recovered = match resumed {
            Some(after) => Some((after, self.sources().after(name, after).await?)),
            None => None,
        };
        if let Some((after, Recovered::Complete(items))) = recovered {
            self.shared.meters.resumed(true);
            self.places.insert(
                name.clone(),
                Place { last: after, dense: true, settle: if held.is_empty() { SETTLE_LOOKS } else { 0 } },
            );
            let mut messages = vec![self.following(name, Some(true))];
            messages.extend(items.into_iter().filter_map(|item| self.deliver(name, item)));
            return Ok(messages);
        }
        // Whoever follows from now on needs no history but for the number of the last turn.
        let (last, degraded) = match held.last() {
            Some(live) => (live.position, false),
            None => match self.shared.history.last_position(name).await {
                Err(error) if error.is_transient() && resumed.is_none() => (0, true),
                last => (last?.unwrap_or(0), false),
            },
        };
        self.places.insert(name.clone(), Place { last, dense: false, settle: 0 });
        let lost = resumed.map(|_| false);
        if lost.is_some() {
            self.shared.meters.resumed(false);
        }
        let mut following = self.following(name, lost);
        if degraded {
            following.text.insert_str(following.text.len() - 1, r#","degraded":true"#);
        }
        Ok(vec![following])
    }

    /// Follows every conversation: from the token's offsets, or from now on.
    pub(crate) async fn follow_all(&mut self, token: Option<&Token>) -> Result<Vec<Message>, FollowError> {
        if !self.places.is_empty() {
            return Err(FollowError::Mixed);
        }
        if self.offsets.is_some() {
            return Ok(vec![self.following_all(None)]);
        }
        let Some(token) = token else {
            return Ok(self.begin_all(None));
        };
        let Token::Offsets(offsets) = token else { return Err(FollowError::WrongToken) };
        if let Some(start) = self.queue.follow_all(Some(offsets)) {
            self.offsets = Some(offsets.clone());
            self.shared.meters.resumed(true);
            let mut messages = vec![self.following_all(Some(true))];
            messages.extend(self.join_all(start));
            return Ok(messages);
        }
        let replay = Replay::open(&self.shared, offsets).await?;
        self.shared.meters.resumed(replay.is_some());
        let Some(replay) = replay else {
            return Ok(self.begin_all(Some(false)));
        };
        self.offsets = Some(offsets.clone());
        self.replay = Some(replay);
        Ok(vec![self.following_all(Some(true))])
    }

    fn begin_all(&mut self, recovered: Option<bool>) -> Vec<Message> {
        // Without offsets the hub always starts; were it otherwise, the first turn would set them.
        self.offsets = Some(self.queue.follow_all(None).map(|start| start.next).unwrap_or_default());
        vec![self.following_all(recovered)]
    }

    /// Stops following a conversation, or everything.
    pub(crate) fn unfollow(&mut self, conversation: &str) -> Message {
        self.queue.unfollow(conversation);
        self.places.remove(conversation);
        self.awaited.remove(&key(conversation));
        let resume = self.token();
        let text = json!({ "type": "unfollowed", "conversation": conversation, "resume": resume }).to_string();
        Message { kind: "unfollowed", text, resume: Some(resume), onward: None }
    }

    /// The next thing to accept; `None` when the session was cut off or the hub closed. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Option<Arrival> {
        match &mut self.replay {
            Some(replay) => Some(Arrival::Replayed(replay.next().await)),
            None => self.queue.next().await.map(Arrival::Live),
        }
    }

    /// Makes messages of what came: none for what the reader has or no longer wants.
    pub(crate) async fn accept(&mut self, arrival: Arrival) -> Result<Vec<Message>, FollowError> {
        match arrival {
            Arrival::Live(live) if self.offsets.is_some() => Ok(self.deliver_all(&live).into_iter().collect()),
            Arrival::Live(live) => self.accept_live(live).await,
            Arrival::Replayed(step) => self.accept_step(step),
        }
    }

    async fn accept_live(&mut self, live: Arc<Live>) -> Result<Vec<Message>, FollowError> {
        let name = live.conversation.clone();
        let Some(place) = self.places.get(&name).copied() else { return Ok(Vec::new()) };
        if live.position <= place.last {
            return Ok(Vec::new());
        }
        // One that cannot be read is missed by the turn behind it.
        let Some(live) = live.shown(&self.shared.codec) else { return Ok(Vec::new()) };
        let mut messages = Vec::new();
        if place.dense && live.position > place.last + 1 {
            match self.sources().between(&name, place.last, Some(live.position)).await? {
                Recovered::Complete(items) => {
                    messages.extend(items.into_iter().filter_map(|item| self.deliver(&name, item)));
                }
                Recovered::Lost => messages.push(self.gap(&name, place.last, live.position)),
            }
        }
        messages.extend(self.deliver(&name, Item::Live(live)));
        Ok(messages)
    }

    /// Whether [`Session::settle`] has something to look for.
    pub(crate) fn unsettled(&self) -> bool {
        self.places.values().any(|place| place.settle > 0)
    }

    /// Looks once more into history for conversations of which the hub knew nothing when they were followed.
    pub(crate) async fn settle(&mut self) -> Result<Vec<Message>, FollowError> {
        let mut messages = Vec::new();
        let open: Vec<Arc<str>> =
            self.places.iter().filter(|(_, place)| place.settle > 0).map(|(name, _)| name.clone()).collect();
        for name in open {
            let Some(place) = self.places.get(&name) else { continue };
            let last = place.last;
            let recovered = match self.sources().between(&name, last, None).await {
                // It is looked into again when it is back.
                Err(error) if error.is_transient() => continue,
                recovered => recovered?,
            };
            if let Some(place) = self.places.get_mut(&name) {
                place.settle -= 1;
            }
            if let Recovered::Complete(items) = recovered {
                messages.extend(items.into_iter().filter_map(|item| self.deliver(&name, item)));
            }
        }
        Ok(messages)
    }

    fn accept_step(&mut self, step: firehose::Step) -> Result<Vec<Message>, FollowError> {
        let mut messages = Vec::new();
        let quiet = match step {
            firehose::Step::Turn(live) => {
                messages.extend(self.deliver_all(&live));
                None
            }
            firehose::Step::Quiet(positions) => Some(positions),
            firehose::Step::Failed(error) => {
                self.replay = None;
                return Err(error.into());
            }
        };
        let offsets = self.offsets.get_or_insert_default();
        if let Some(positions) = quiet {
            // The marks of transactions are in the replay's positions, but not in the hub's offsets, which count
            // turns: what the replay has passed and the hub has not seen holds no turn.
            for (partition, next) in self.queue.next_offsets() {
                let passed = positions.get(&partition).copied().unwrap_or(0).min(next);
                let offset = offsets.entry(partition).or_insert(passed);
                *offset = passed.max(*offset);
            }
        }
        if let Some(start) = self.queue.follow_all(Some(offsets)) {
            self.replay = None;
            messages.extend(self.join_all(start));
        }
        Ok(messages)
    }

    fn join_all(&mut self, start: FirehoseStart) -> Vec<Message> {
        start.turns.iter().filter_map(|live| self.deliver_all(live)).collect()
    }

    /// The token for where the reader stands.
    pub(crate) fn token(&self) -> String {
        match &self.offsets {
            Some(offsets) => Token::Offsets(offsets.clone()).encode(),
            None => {
                let mut positions = self.awaited.clone();
                positions.extend(self.places.iter().map(|(name, place)| (key(name), place.last)));
                Token::Positions(positions).encode()
            }
        }
    }

    /// Whether the session was cut off because it read too slowly.
    pub(crate) fn lagged(&self) -> bool {
        self.queue.lagged()
    }

    fn sources(&self) -> Sources<'_> {
        Sources {
            hub: &self.shared.hub,
            history: &self.shared.history,
            registry: &self.shared.registry,
            embeddings: self.embeddings,
            limits: self.shared.config.recovery(),
        }
    }

    /// The message for a turn that comes next, and the step there; `None` if the reader has it.
    fn deliver(&mut self, name: &Arc<str>, item: Item) -> Option<Message> {
        let place = self.places.get_mut(name)?;
        let position = item.position();
        if position <= place.last {
            return None;
        }
        // What the hub brings leaves no doubt about what is before it.
        let settle = if matches!(item, Item::Kept { .. }) { place.settle } else { 0 };
        *place = Place { last: position, dense: true, settle };
        Some(match item {
            Item::Live(live) => return self.turn(&live),
            Item::Kept { json, .. } => turn_message(&json, self.token(), None, None),
        })
    }

    fn deliver_all(&mut self, live: &Arc<Live>) -> Option<Message> {
        let offset = self.offsets.as_mut()?.entry(live.partition).or_insert(live.offset);
        if live.offset < *offset {
            return None;
        }
        *offset = live.offset + 1;
        self.turn(&*live.shown(&self.shared.codec)?)
    }

    /// The message for a turn that is shown.
    fn turn(&self, live: &Live) -> Option<Message> {
        let (correlation, trace) = (live.correlation_id.as_deref(), live.traceparent.as_deref());
        if self.embeddings == Embeddings::Show
            && let Ok(turn) = self.shared.codec.decode::<Turn>(&live.value)
        {
            let message = turn_message(&view::json(&turn, Embeddings::Show), self.token(), correlation, trace);
            return Some(Message { onward: live.onward.clone(), ..message });
        }
        let message = turn_message(live.json.as_deref()?, self.token(), correlation, trace);
        Some(Message { onward: live.onward.clone(), ..message })
    }

    fn following(&self, conversation: &str, recovered: Option<bool>) -> Message {
        let position = self.places.get(conversation).map_or(0, |place| place.last);
        self.note("following", json!({ "conversation": conversation, "position": position }), recovered)
    }

    fn following_all(&self, recovered: Option<bool>) -> Message {
        self.note("following", json!({ "all": true }), recovered)
    }

    fn gap(&self, conversation: &str, after: i64, next: i64) -> Message {
        self.note("gap", json!({ "conversation": conversation, "after": after, "next": next }), Some(false))
    }

    fn note(&self, kind: &'static str, mut body: serde_json::Value, recovered: Option<bool>) -> Message {
        let resume = self.token();
        body["type"] = json!(kind);
        body["resume"] = json!(resume);
        if let Some(recovered) = recovered {
            body["recovered"] = json!(recovered);
        }
        Message { kind, text: body.to_string(), resume: Some(resume), onward: None }
    }
}

/// `{"type":"turn","turn":…,"resume":…}` around JSON that is written already.
fn turn_message(turn: &str, resume: String, correlation: Option<&str>, trace: Option<&str>) -> Message {
    use std::fmt::Write as _;
    // Tokens are base64url and need no escaping; the headers may hold anything.
    let mut text = String::with_capacity(turn.len() + resume.len() + 128);
    write!(text, r#"{{"type":"turn","turn":{turn},"resume":"{resume}""#).expect("writing to a string cannot fail");
    for (name, value) in [("correlation_id", correlation), ("traceparent", trace)] {
        if let Some(value) = value {
            write!(text, r#","{name}":{}"#, json!(value)).expect("writing to a string cannot fail");
        }
    }
    text.push('}');
    Message { kind: "turn", text, resume: Some(resume), onward: None }
}
