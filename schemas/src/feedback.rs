//! Feedback: what people think of a turn, without words.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::turn::Sender;

/// A reaction to a message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Feedback {
    /// UUIDv5 as of a turn.
    pub id: Uuid,
    /// The conversation, also the Kafka key.
    pub conversation: String,
    /// When, in milliseconds since the Unix epoch, by the source's clock.
    pub at: i64,
    /// When intake took it, in milliseconds since the Unix epoch.
    pub received_at: i64,
    /// `telegram` or `websocket`.
    pub source: String,
    /// `reaction`, or `reaction_count` where the source does not tell who reacted.
    pub kind: String,
    /// The configured name of the bot that saw it.
    pub bot: Option<String>,
    /// The source's own id: Telegram's update id.
    pub external_id: String,
    /// Who reacted.
    pub sender: Option<Sender>,
    /// The source's id of the message that was reacted to.
    pub message_id: String,
    /// Reactions that stand now, with how many people gave each.
    pub reactions: Vec<Reaction>,
}

/// One kind of reaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reaction {
    /// An emoji, or `custom:ID`, or `paid`.
    pub emoji: String,
    /// How many people gave it.
    pub count: i64,
}
