//! A turn: one thing a person (or the bot) said in a conversation, with what the stages added to it.
//!
//! The Rust types mirror `avro/turn.avsc` field by field; the Avro schema is the contract, the golden bytes in
//! `tests/golden.rs` hold the two together.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::part::{Coherence, Dialogue, Emotion, Encoding, Memory, Personality, Synesthesia, Tier};

/// Flag of a turn in which, or lately before which, words of self-harm were said: words of a list, and no finding.
pub const SELF_HARM_WORDS: &str = "self_harm_words";

/// Where a turn stands: what of a [`Turn`] tells who wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TurnHead {
    /// As [`Turn::conversation`].
    pub conversation: String,
    /// As [`Turn::at`].
    pub at: i64,
    /// As [`Turn::received_at`].
    pub received_at: i64,
    /// As [`Turn::position`].
    pub position: Option<i64>,
}

/// One thing that was said in a conversation. Intake fills the fields up to `text`; the first processor adds
/// `position`, `stamp` and `tier`; every stage adds its own part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Turn {
    /// [`turn_id`]: the same message sent twice has the same id.
    pub id: Uuid,
    /// One chat of one bot or one web room; the Kafka key, so that a conversation is in order on one partition.
    pub conversation: String,
    /// When it was said, in milliseconds since the Unix epoch, by the source's clock.
    pub at: i64,
    /// When intake took it, in milliseconds since the Unix epoch.
    pub received_at: i64,
    /// Where it came from: `telegram` or `websocket`.
    pub source: String,
    /// What it is: `message`, `caption`, `edit`, `channel_post`, `callback`, `business_message`, `reply`, or what has no
    /// words: `consent`, which is never answered, `erasure` ([`Turn::is_erasure`]) and `forgotten` ([`Turn::forgotten`]).
    pub kind: String,
    /// The configured name of the bot that it was said to.
    pub bot: Option<String>,
    /// The source's own id: Telegram's update id, or the client's id of a frame.
    pub external_id: String,
    /// Who said it; absent where the source does not tell (anonymous channel posts).
    pub sender: Option<Sender>,
    /// `private`, `group`, `supergroup`, `channel` or `room`; absent where the source does not tell.
    pub chat_kind: Option<String>,
    /// The source's id of the message within its chat.
    pub message_id: Option<String>,
    /// The source's id of the message that this one answers.
    pub reply_to: Option<String>,
    /// The language that the source claims for the sender, as an IETF tag; a hint, never trusted.
    pub language_hint: Option<String>,
    /// The words, bounded at intake.
    pub text: String,
    /// Set in turns of kind `consent`.
    #[serde(default)]
    pub consent: Option<Consent>,
    /// Dense number within the conversation (1, 2, 3 …), given by the first processor.
    #[serde(default)]
    pub position: Option<i64>,
    /// Place in `turns.received`, given by the first processor.
    #[serde(default)]
    pub stamp: Option<Stamp>,
    /// The tier that the first processor chose for all stages of this turn.
    #[serde(default)]
    pub tier: Option<Tier>,
    /// Stages that left their part absent, and why.
    #[serde(default)]
    pub skipped: Vec<Skipped>,
    /// Part of stage `encode`.
    #[serde(default)]
    pub encoding: Option<Encoding>,
    /// Part of stage `emotion`.
    #[serde(default)]
    pub emotion: Option<Emotion>,
    /// Part of stage `personality`.
    #[serde(default)]
    pub personality: Option<Personality>,
    /// Part of stage `dialogue`.
    #[serde(default)]
    pub dialogue: Option<Dialogue>,
    /// Part of stage `coherence`.
    #[serde(default)]
    pub coherence: Option<Coherence>,
    /// Part of stage `synesthesia`.
    #[serde(default)]
    pub synesthesia: Option<Synesthesia>,
    /// Part of stage `memory`.
    #[serde(default)]
    pub memory: Option<Memory>,
    /// What a person should look at, such as `self_harm_words`: words that were found, never a finding about who said
    /// them.
    #[serde(default)]
    pub flags: Vec<String>,
    /// The whole value, encrypted, of which this is what is left without its key: see [`crate::seal`].
    #[serde(default, with = "apache_avro::serde::bytes_opt")]
    pub sealed: Option<Vec<u8>>,
}

impl Turn {
    /// Who said it, named alike in all conversations of a source: `SOURCE:SENDER`.
    pub fn person(&self) -> Option<String> {
        Some(format!("{}:{}", self.source, self.sender.as_ref()?.id))
    }

    /// A message with nothing known of it but where it was said, by whom, and the words; `at` in milliseconds since the
    /// Unix epoch. Whoever knows more sets it.
    pub fn message(
        source: &str,
        conversation: &str,
        bot_or_sender: &str,
        external_id: &str,
        text: &str,
        at: i64,
    ) -> Turn {
        Turn {
            id: turn_id(source, conversation, bot_or_sender, external_id),
            conversation: conversation.to_owned(),
            at,
            received_at: at,
            source: source.to_owned(),
            kind: "message".to_owned(),
            bot: None,
            external_id: external_id.to_owned(),
            sender: None,
            chat_kind: None,
            message_id: None,
            reply_to: None,
            language_hint: None,
            text: text.to_owned(),
            consent: None,
            position: None,
            stamp: None,
            tier: None,
            skipped: Vec::new(),
            encoding: None,
            emotion: None,
            personality: None,
            dialogue: None,
            coherence: None,
            synesthesia: None,
            memory: None,
            flags: Vec::new(),
            sealed: None,
        }
    }

    /// Takes away what a stage added: its part, or the note that it left none.
    pub fn clear(&mut self, stage: &str) {
        match stage {
            "encode" => self.encoding = None,
            "emotion" => self.emotion = None,
            "personality" => self.personality = None,
            "dialogue" => self.dialogue = None,
            "coherence" => self.coherence = None,
            "synesthesia" => self.synesthesia = None,
            "memory" => self.memory = None,
            _ => {}
        }
        self.skipped.retain(|skipped| skipped.stage != stage);
    }
}

/// Who said a turn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sender {
    /// The source's id of the person or chat that speaks.
    pub id: String,
    /// A name to show.
    pub name: Option<String>,
    /// Whether a bot speaks.
    pub bot: bool,
}

/// What a sender says about being profiled, from its turn on: in its conversation, whoever else speaks there. Without it
/// nobody is profiled. The time is that of the turn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Consent {
    /// Given, or withdrawn: then what was gathered goes.
    pub granted: bool,
    /// Version of the text that the person agreed to.
    pub text_version: String,
}

/// A place in `turns.received`: the last turn folded into a slice of a context, or where a turn came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Partition of `turns.received`.
    pub partition: i32,
    /// Offset in that partition.
    pub offset: i64,
}

/// A stage that could not serve a turn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// Name of the stage.
    pub stage: String,
    /// Why, as a stable word such as `unsupported_language` or `empty_text`.
    pub reason: String,
}

/// Namespace of turn ids: drawn once for them. It never changes, or a message that is sent again would be another turn.
const NAMESPACE: Uuid = Uuid::from_u128(0x6d0d_3f0a_6e0e_5d8f_9a35_0c1e_6a4f_7b21);

/// The id of a turn: UUIDv5 of source, conversation, bot or sender, and the source's own id, so that the same message
/// sent twice has the same id. The parts are length-prefixed, so that no two different inputs meet.
pub fn turn_id(source: &str, conversation: &str, bot_or_sender: &str, external_id: &str) -> Uuid {
    let mut name = Vec::with_capacity(32 + source.len() + conversation.len() + bot_or_sender.len() + external_id.len());
    for part in [source, conversation, bot_or_sender, external_id] {
        name.extend_from_slice(&(part.len() as u64).to_be_bytes());
        name.extend_from_slice(part.as_bytes());
    }
    Uuid::new_v5(&NAMESPACE, &name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_message_has_the_same_id_and_shifted_parts_do_not() {
        let id = turn_id("telegram", "telegram:helper:42", "helper", "7");
        assert_eq!(id, turn_id("telegram", "telegram:helper:42", "helper", "7"));
        assert_ne!(turn_id("a", "bc", "", "d"), turn_id("ab", "c", "", "d"));
        assert_eq!(id.get_version_num(), 5);
    }
}
