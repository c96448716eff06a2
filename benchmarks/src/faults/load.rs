//! Clients that speak to the intake while it is killed: each turn has an id and a number within its conversation.
//!
//! A client sends what was not acknowledged again after a reconnect, in order and under the same ids, and now and then
//! repeats on purpose what was acknowledged. Half of the conversations are patient: they wait for each acknowledgement
//! before they say more, so their order is strict whatever happens; the others have many turns on the way, and their
//! order is given up only if the intake refuses a turn, which says that it takes its place when it is sent again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use anyhow::Context as _;
use futures_util::{SinkExt as _, StreamExt as _};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;

use super::plan::Random;

/// Turns that a client has on the way at a time; far below the window of repeats that the processors know.
const WINDOW: usize = 16;
/// Chance in percent that an acknowledged turn is said again on purpose.
const REPEATED_PERCENT: u64 = 6;
/// A socket on which nothing is acknowledged for this long is given up.
const SILENT_MAX: Duration = Duration::from_secs(15);
/// Pause before the next try to connect.
const RECONNECT: Duration = Duration::from_millis(20);
/// What is said; the number of the turn follows.
const TEXTS: [&str; 8] = [
    "I can't believe it, thank you so much!",
    "this is the third time it broke, I am really angry",
    "ok",
    "Ich weiß nicht, ob ich morgen kommen kann 😕",
    "wow, that is the best news of the whole week",
    "I miss the old house, and the garden",
    "could you tell me when the train leaves?",
    "that was scary, I did not see it coming",
];

/// Which turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frame {
    /// The conversation.
    pub conversation: usize,
    /// Its number there, from 0.
    pub number: u64,
}

impl Frame {
    /// The conversation's id.
    pub fn room(conversation: usize) -> String {
        format!("faults-{conversation}")
    }

    /// The client's id of the turn.
    pub fn id(self) -> String {
        format!("{}-{}", self.conversation, self.number)
    }

    /// The turn of a client's id.
    pub fn of_id(id: &str) -> Option<Frame> {
        let (conversation, number) = id.split_once('-')?;
        Some(Frame { conversation: conversation.parse().ok()?, number: number.parse().ok()? })
    }

    /// Whether its conversation waits for each acknowledgement.
    pub fn is_patient(self) -> bool {
        self.conversation % 2 == 1
    }

    fn message(self) -> Message {
        let text = TEXTS[(self.conversation + self.number as usize * 3) % TEXTS.len()];
        let frame = json!({
            "id": self.id(), "conversation": Frame::room(self.conversation),
            "sender": { "id": format!("person-{}", self.number % 3) }, "text": format!("{text} ({})", self.number),
        });
        Message::text(frame.to_string())
    }
}

/// Where the intake says that a turn stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Acknowledged {
    /// The partition of `turns.received`.
    pub partition: i32,
    /// The offset there.
    pub offset: i64,
}

/// What clients said, and what they were told.
#[derive(Debug, Clone, Default)]
pub struct Said {
    /// Turns that were acknowledged, with each place that was named for them.
    pub acknowledged: BTreeMap<Frame, Vec<Acknowledged>>,
    /// Conversations in which a turn was refused for the moment.
    pub refused: BTreeSet<usize>,
    /// Turns sent again because their acknowledgement did not come.
    pub resent: u64,
    /// Turns repeated on purpose.
    pub repeated: u64,
    /// Sockets opened.
    pub sockets: u64,
}

impl Said {
    /// Adds what another client said.
    pub fn join(&mut self, other: Said) {
        self.acknowledged.extend(other.acknowledged);
        self.refused.extend(other.refused);
        self.resent += other.resent;
        self.repeated += other.repeated;
        self.sockets += other.sockets;
    }
}

/// What a client is to do.
#[derive(Debug, Clone)]
pub struct Speaking {
    /// Its conversations; no other client speaks in them.
    pub conversations: Vec<usize>,
    /// New turns a second.
    pub rate: f64,
    /// Where the intake is, when it is there. A client whose intake is another one from now on goes there at once.
    pub address: watch::Receiver<Option<String>>,
    /// No new turns from then on; it ends when all are acknowledged.
    pub enough: CancellationToken,
}

type Socket = tokio_tungstenite::WebSocketStream<tokio_tungstenite::MaybeTlsStream<tokio::net::TcpStream>>;

/// The intake's answer to a frame.
#[derive(Debug, Deserialize)]
struct Answer {
    #[serde(rename = "type")]
    kind: String,
    id: Option<String>,
    partition: Option<i32>,
    offset: Option<i64>,
    code: Option<String>,
    message: Option<String>,
}

/// Speaks until it is enough and everything is acknowledged.
///
/// # Errors
/// The intake answers something that no client could understand, or calls a good frame invalid.
pub async fn speak(speaking: Speaking, random: Random) -> anyhow::Result<Said> {
    let next = speaking.conversations.iter().map(|conversation| (*conversation, 0)).collect();
    let waiting = VecDeque::with_capacity(WINDOW * 2);
    let mut client = Client { speaking, random, next, waiting, said: Said::default() };
    while !client.is_done() {
        let Some((socket, address)) = client.connect().await else { continue };
        client.said.sockets += 1;
        client.talk(socket, &address).await?;
    }
    Ok(client.said)
}

struct Client {
    speaking: Speaking,
    random: Random,
    /// The number of the next turn, by conversation.
    next: BTreeMap<usize, u64>,
    /// Not acknowledged yet, in order.
    waiting: VecDeque<Frame>,
    said: Said,
}

impl Client {
    fn is_done(&self) -> bool {
        self.speaking.enough.is_cancelled() && self.waiting.is_empty()
    }

    async fn connect(&mut self) -> Option<(Socket, String)> {
        tokio::time::sleep(RECONNECT).await;
        let address = self.speaking.address.borrow_and_update().clone()?;
        let connected = tokio_tungstenite::connect_async(format!("ws://{address}/ingest/ws"));
        Some((timeout(SILENT_MAX, connected).await.ok()?.ok()?.0, address))
    }

    /// Until the socket dies, the intake is another one, or everything is acknowledged.
    async fn talk(&mut self, mut socket: Socket, here: &str) -> anyhow::Result<()> {
        self.said.resent += self.waiting.len() as u64;
        let mut sent = 0;
        let mut ticks = interval(Duration::from_secs_f64(1.0 / self.speaking.rate.max(0.1)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard = Instant::now();
        let (enough, mut address) = (self.speaking.enough.clone(), self.speaking.address.clone());
        while !self.is_done() && heard.elapsed() < SILENT_MAX {
            while sent < self.waiting.len() {
                if socket.send(self.waiting[sent].message()).await.is_err() {
                    return Ok(());
                }
                sent += 1;
            }
            tokio::select! {
                _ = ticks.tick(), if !enough.is_cancelled() => self.say_more(),
                message = timeout(SILENT_MAX, socket.next()) => {
                    let Ok(Some(Ok(message))) = message else { return Ok(()) };
                    let Message::Text(text) = message else { continue };
                    heard = Instant::now();
                    if !self.hear(&text)? {
                        return Ok(());
                    }
                    sent -= 1;
                }
                () = enough.cancelled(), if !enough.is_cancelled() => {}
                () = moved(&mut address, here) => return Ok(()),
            }
        }
        Ok(())
    }

    fn say_more(&mut self) {
        let conversations = &self.speaking.conversations;
        let conversation = conversations[self.random.below(conversations.len() as u64) as usize];
        let number = self.next.entry(conversation).or_default();
        let frame = Frame { conversation, number: *number };
        let busy = || self.waiting.iter().any(|waiting| waiting.conversation == conversation);
        if self.waiting.len() >= WINDOW || frame.is_patient() && busy() {
            return;
        }
        *number += 1;
        self.waiting.push_back(frame);
    }

    /// Takes an answer; whether the socket is still of use.
    fn hear(&mut self, text: &str) -> anyhow::Result<bool> {
        let answer: Answer = serde_json::from_str(text).with_context(|| format!("read the answer {text}"))?;
        if answer.kind == "reconnect" {
            // It ends in good order.
            return Ok(false);
        }
        let frame = *self.waiting.front().with_context(|| format!("an answer to nothing: {text}"))?;
        anyhow::ensure!(answer.id == Some(frame.id()), "answers come in order: {text} is no answer to {frame:?}");
        match (answer.kind.as_str(), answer.partition, answer.offset) {
            ("ack", Some(partition), Some(offset)) => {
                self.waiting.pop_front();
                self.said.acknowledged.entry(frame).or_default().push(Acknowledged { partition, offset });
                if self.random.happens(REPEATED_PERCENT) && !self.speaking.enough.is_cancelled() {
                    self.said.repeated += 1;
                    self.waiting.push_back(frame);
                }
                Ok(true)
            }
            ("error", ..) if answer.code.as_deref() == Some("unavailable") => {
                // What was sent behind it may have been taken: all of it is sent again, in order.
                self.said.refused.extend(self.waiting.iter().map(|waiting| waiting.conversation));
                Ok(false)
            }
            _ => anyhow::bail!("a good frame is refused: {}", answer.message.unwrap_or_default()),
        }
    }
}

/// Until the intake is another one.
async fn moved(address: &mut watch::Receiver<Option<String>>, here: &str) {
    let elsewhere = |address: &Option<String>| address.as_ref().is_some_and(|address| address != here);
    if address.wait_for(elsewhere).await.is_err() {
        // Nobody says any more where it is.
        std::future::pending().await
    }
}
