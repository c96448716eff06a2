//! A reply that the generator finished, and what became of its delivery.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A finished reply of a bot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// UUIDv5 of the turn that it answers.
    pub id: Uuid,
    /// The conversation, also the Kafka key.
    pub conversation: String,
    /// The turn that it answers.
    pub in_reply_to: Uuid,
    /// The configured name of the bot that speaks.
    pub bot: Option<String>,
    /// When it was finished, in milliseconds since the Unix epoch.
    pub at: i64,
    /// The words.
    pub text: String,
    /// The generator that made it.
    pub model: String,
    /// Why it ended: `stop`, `length` or `error`.
    pub finish_reason: String,
}

/// An attempt to deliver a reply: the intent before, the outcome after.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Delivery {
    /// The reply.
    pub reply: Uuid,
    /// The conversation, also the Kafka key.
    pub conversation: String,
    /// The configured name of the bot that sends.
    pub bot: String,
    /// When, in milliseconds since the Unix epoch.
    pub at: i64,
    /// `intended`, `sent`, `failed` or `unknown`.
    pub status: String,
    /// Number of the attempt, from 1.
    pub attempt: i32,
    /// The source's id of the message that was sent.
    pub message_id: Option<String>,
    /// What the source answered, where it failed.
    pub error: Option<String>,
}
