//! `undertone demo`: plays a bundled real conversation through the front door, as two people would type it.
//!
//! The player is a client like any other: it sends frames to `/ingest/ws` and waits for the acknowledgement of each.
//! The conversations are from the BYU chitchat dataset (MIT); `demo/README.md` holds the attribution.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use futures_util::{SinkExt as _, StreamExt as _};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;

use crate::watch::feed::websocket_url;

/// The conversation that is played if none is named.
pub const FIRST: &str = "haunted-house";
/// All of them, by name.
const SCRIPTS: [(&str, &str); 4] = [
    (FIRST, include_str!("../demo/haunted-house.json")),
    ("magic-wand", include_str!("../demo/magic-wand.json")),
    ("no-internet", include_str!("../demo/no-internet.json")),
    ("unicorns", include_str!("../demo/unicorns.json")),
];
/// Real pauses, cut to what one likes to watch.
const PAUSE_SHORTEST: Duration = Duration::from_millis(800);
const PAUSE_LONGEST: Duration = Duration::from_secs(3);
/// How long the log may take to acknowledge a turn.
const ACKNOWLEDGE_WITHIN: Duration = Duration::from_secs(10);

/// A conversation to play.
#[derive(Debug, Clone, Deserialize)]
pub struct Script {
    /// The name that it is asked for by.
    #[serde(skip)]
    name: String,
    /// What was said, in order.
    pub turns: Vec<Said>,
}

/// One thing that was said.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Said {
    /// Who said it.
    pub sender: String,
    /// When, in seconds since the first.
    pub seconds: u64,
    /// The words.
    pub text: String,
}

/// The names of all conversations.
pub fn names() -> Vec<&'static str> {
    SCRIPTS.iter().map(|(name, _)| *name).collect()
}

/// The conversation of this name.
///
/// # Errors
/// There is none.
pub fn script(name: &str) -> anyhow::Result<Script> {
    let (name, text) = SCRIPTS
        .iter()
        .find(|(known, _)| *known == name)
        .with_context(|| format!("there is no bundled conversation \"{name}\"; there are {}", names().join(", ")))?;
    let script: Script = serde_json::from_str(text).context("read the bundled conversation")?;
    Ok(Script { name: (*name).to_owned(), ..script })
}

/// A speed of at least 0.1 and at most 100.
pub(crate) fn parse_speed(text: &str) -> Result<f64, String> {
    let speed: f64 = text.parse().map_err(|_| "give a number such as 1 or 2.5".to_owned())?;
    if (0.1..=100.0).contains(&speed) { Ok(speed) } else { Err("give a number from 0.1 to 100".to_owned()) }
}

impl Script {
    /// A room of its own for each playing, so that each begins a new conversation.
    pub fn room(&self) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        format!("demo-{}-{}", self.name, now.as_secs())
    }

    /// The pause before each turn.
    fn pauses(&self, speed: f64) -> Vec<Duration> {
        let before = std::iter::once(0).chain(self.turns.iter().map(|turn| turn.seconds));
        let gaps = self.turns.iter().zip(before).map(|(turn, before)| turn.seconds.saturating_sub(before));
        gaps.map(|gap| Duration::from_secs(gap).clamp(PAUSE_SHORTEST, PAUSE_LONGEST).div_f64(speed)).collect()
    }
}

/// Plays it into `room` of the Undertone at `url`, until its end or `stop`.
///
/// # Errors
/// Nobody answers, or a turn is refused.
pub async fn play(
    url: String,
    script: Script,
    room: String,
    speed: f64,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let address = websocket_url(&url, "/ingest/ws")?;
    let connected = tokio_tungstenite::connect_async(&address).await;
    let (mut socket, _) =
        connected.with_context(|| format!("connect to {address}; is `undertone up` running there?"))?;
    let pauses = script.pauses(speed);
    for (number, (turn, pause)) in script.turns.iter().zip(pauses).enumerate() {
        if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return Ok(());
        }
        let frame = json!({
            "id": number.to_string(),
            "conversation": room,
            "sender": { "id": turn.sender.to_lowercase(), "name": turn.sender },
            "text": turn.text,
        });
        socket.send(Message::text(frame.to_string())).await.context("send a turn")?;
        loop {
            let answer = tokio::time::timeout(ACKNOWLEDGE_WITHIN, socket.next()).await;
            let answer = answer.context("no acknowledgement came in time; `undertone doctor` says what is wrong")?;
            let Message::Text(text) = answer.context("the server closed the socket")?? else { continue };
            let answer: Value = serde_json::from_str(&text).context("read the acknowledgement")?;
            anyhow::ensure!(answer["type"] == "ack", "the turn was refused: {}", answer["message"]);
            break;
        }
    }
    let _ = socket.close(None).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bundled_conversation_can_be_played() {
        for name in names() {
            let script = script(name).unwrap();
            assert!(script.turns.len() >= 10, "{name}");
            assert!(script.turns.iter().all(|turn| !turn.text.trim().is_empty()), "{name}");
            let pauses = script.pauses(1.0);
            assert!(pauses.iter().all(|p| (PAUSE_SHORTEST..=PAUSE_LONGEST).contains(p)), "{name}");
            assert!(script.pauses(100.0).iter().sum::<Duration>() < Duration::from_secs(2), "{name}");
        }
        assert!(script("none").unwrap_err().to_string().contains(FIRST));
    }
}
