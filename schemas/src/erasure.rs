//! What was forgotten, and which turns that covers.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::Turn;

/// Kind of a turn that says, in its place in the conversation, that something in front of it was forgotten: what is known of
/// the conversation begins anew behind it. It has no words, and its `external_id` is the erasure's id.
pub const ERASURE: &str = "erasure";

/// Kind of what is left of a turn that was forgotten, where the log was gone over for it: see [`Turn::forgotten`].
pub const FORGOTTEN: &str = "forgotten";

/// Turns that were forgotten.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Erasure {
    /// Its id.
    pub id: Uuid,
    /// When it was asked for, in milliseconds since the Unix epoch: turns that intake took later are not covered.
    pub at: i64,
    /// The conversation, or that of the turns.
    pub conversation: Option<String>,
    /// The person, as [`Turn::person`] names them, in all conversations.
    pub person: Option<String>,
    /// Ids of the turns; none: all that the conversation has, or the person said.
    #[serde(default)]
    pub turns: Vec<String>,
}

impl Turn {
    /// Whether it only says that something in front of it was forgotten.
    pub fn is_erasure(&self) -> bool {
        self.kind == ERASURE
    }

    /// What is left of a turn that was forgotten: that there was one, its id, its place and its times.
    pub fn forgotten(&self) -> Turn {
        Turn {
            id: self.id,
            kind: FORGOTTEN.to_owned(),
            received_at: self.received_at,
            position: self.position,
            stamp: self.stamp,
            tier: self.tier,
            ..Turn::message(&self.source, &self.conversation, "", "", "", self.at)
        }
    }

    /// Whether only that is left of it.
    pub fn is_forgotten(&self) -> bool {
        self.kind == FORGOTTEN
    }
}
