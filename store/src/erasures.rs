//! What was forgotten: the list that whoever reads turns again consults, so that they find nothing back.
//!
//! Promises: everything that was acknowledged in `undertone.erasures.v1` before the list was read is in it; turns that
//! intake took after an erasure was asked for are not covered. The list is as long as the topic: an erasure of single turns
//! has their ids, at most [`TURNS_MAX`] a record. Leaves out: the erasing itself.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use schemas::{Codec, Erasure, Feedback, Reject, Reply, Turn, topic};

use crate::log::{Admin, From, Kafka, LogError, Tail};

/// Most ids of turns in one record.
pub const TURNS_MAX: usize = 10_000;
/// How often the position is looked at while no record comes: the marks of transactions are passed without one.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What was forgotten.
#[derive(Debug, Clone, Default)]
pub struct Erasures {
    /// When each was forgotten last, in milliseconds since the Unix epoch.
    conversations: HashMap<String, i64>,
    people: HashMap<String, i64>,
    turns: HashSet<String>,
}

impl Erasures {
    /// Reads the list; where the topic does not exist, nothing was forgotten.
    ///
    /// # Errors
    /// The log cannot be read.
    pub async fn read(kafka: &Kafka, codec: &Codec) -> Result<Erasures, LogError> {
        let mut erasures = Erasures::default();
        if !Admin::connect(kafka)?.topics().await?.iter().any(|known| known.name == topic::ERASURES) {
            return Ok(erasures);
        }
        let mut tail = Tail::open(kafka, topic::ERASURES, From::Beginning).await?;
        let ends = tail.ends_when_opened().clone();
        while tail.positions().iter().any(|(partition, next)| ends.get(partition).is_some_and(|end| next < end)) {
            let Ok(message) = tokio::time::timeout(LOOK_AGAIN, tail.next()).await else { continue };
            let message = message?;
            match codec.decode::<Erasure>(message.value.as_deref().unwrap_or_default()) {
                Ok(erasure) => erasures.add(erasure),
                Err(error) => {
                    let (partition, offset) = (message.partition, message.offset);
                    tracing::error!(%error, partition, offset, "a record in {} is no erasure", topic::ERASURES);
                }
            }
        }
        Ok(erasures)
    }

    /// Adds one.
    pub fn add(&mut self, erasure: Erasure) {
        let later = |known: &mut HashMap<String, i64>, name: String| {
            let at = known.entry(name).or_insert(erasure.at);
            *at = erasure.at.max(*at);
        };
        match erasure {
            Erasure { turns, .. } if !turns.is_empty() => self.turns.extend(turns),
            Erasure { person: Some(person), .. } => later(&mut self.people, person),
            Erasure { conversation: Some(conversation), .. } => later(&mut self.conversations, conversation),
            Erasure { .. } => {}
        }
    }

    /// Whether a reply was forgotten: with its conversation, or with the turn that it answers.
    pub fn covers_reply(&self, reply: &Reply) -> bool {
        self.has_conversation(&reply.conversation, reply.at) || self.turns.contains(&reply.in_reply_to.to_string())
    }

    /// Whether a reaction was forgotten: with its conversation, or with who reacted.
    pub fn covers_feedback(&self, feedback: &Feedback) -> bool {
        let person = || Some(format!("{}:{}", feedback.source, feedback.sender.as_ref()?.id));
        self.has_conversation(&feedback.conversation, feedback.received_at)
            || person().is_some_and(|person| self.has_person(&person, feedback.received_at))
    }

    /// Whether the input of a reject was forgotten: as the turn that it is, or, where it is none, with the conversation that
    /// the reject names.
    pub fn covers_reject(&self, codec: &Codec, reject: &Reject) -> bool {
        match codec.read::<Turn>(&reject.raw) {
            Ok(turn) => self.has_words(&turn),
            Err(_) => {
                let key = reject.key.as_deref().and_then(|key| std::str::from_utf8(key).ok());
                !reject.raw.is_empty() && key.is_some_and(|conversation| self.has_conversation(conversation, reject.at))
            }
        }
    }

    /// Whether a person was forgotten before.
    pub fn knows_person(&self, person: &str) -> bool {
        self.people.contains_key(person)
    }

    /// Whether a record of a conversation that was forgotten has this key.
    pub fn has_key(&self, key: Option<&[u8]>) -> bool {
        let key = key.and_then(|key| std::str::from_utf8(key).ok());
        key.is_some_and(|conversation| self.conversations.contains_key(conversation))
    }

    /// Whether a turn of the log, as it stands there, was forgotten and has words still. Of one that is sealed its words are
    /// not asked: what is covered goes, with or without a key.
    pub fn has_words(&self, turn: &Turn) -> bool {
        match turn.sealed {
            Some(_) => self.covers_place(turn),
            None => self.covers(turn) && !turn.is_forgotten(),
        }
    }

    fn has_conversation(&self, conversation: &str, received_at: i64) -> bool {
        self.conversations.get(conversation).is_some_and(|at| received_at <= *at)
    }

    fn has_person(&self, person: &str, received_at: i64) -> bool {
        self.people.get(person).is_some_and(|at| received_at <= *at)
    }

    /// Whether a turn was forgotten. One that says so of others was not.
    pub fn covers(&self, turn: &Turn) -> bool {
        !turn.is_erasure()
            && (turn.is_forgotten()
                || self.covers_place(turn)
                || turn.person().is_some_and(|person| self.has_person(&person, turn.received_at)))
    }

    /// Whether a turn was forgotten by itself or with its conversation: that can be told of one that is sealed.
    fn covers_place(&self, turn: &Turn) -> bool {
        self.has_conversation(&turn.conversation, turn.received_at)
            || !self.turns.is_empty() && self.turns.contains(&turn.id.to_string())
    }
}

#[cfg(test)]
mod tests {
    use schemas::Sender;
    use uuid::Uuid;

    use super::*;

    fn said(conversation: &str, sender: &str, received_at: i64) -> Turn {
        let sender = Some(Sender { id: sender.to_owned(), name: None, bot: false });
        Turn { sender, ..Turn::message("test", conversation, "", &received_at.to_string(), "words", received_at) }
    }

    fn erasure(conversation: Option<&str>, person: Option<&str>, turns: &[Uuid]) -> Erasure {
        let (conversation, person) = (conversation.map(str::to_owned), person.map(str::to_owned));
        Erasure { id: Uuid::nil(), at: 100, conversation, person, turns: turns.iter().map(Uuid::to_string).collect() }
    }

    #[test]
    fn what_was_taken_before_is_covered_and_nothing_else_is() {
        let mut erasures = Erasures::default();
        assert!(!erasures.covers(&said("a", "ann", 1)));
        erasures.add(erasure(Some("a"), None, &[]));
        assert!(erasures.covers(&said("a", "ann", 100)));
        assert!(!erasures.covers(&said("a", "ann", 101)) && !erasures.covers(&said("b", "ann", 100)));
        erasures.add(erasure(None, Some("test:ben"), &[]));
        assert!(erasures.covers(&said("b", "ben", 7)) && !erasures.covers(&said("b", "ann", 7)));
        let one = said("c", "ann", 5);
        erasures.add(erasure(Some("c"), None, &[one.id]));
        assert!(erasures.covers(&one) && !erasures.covers(&said("c", "ann", 6)));
        assert!(erasures.covers(&said("d", "ann", 900).forgotten()), "what is left of one is covered by whatever list");
        let reply = |conversation: &str, in_reply_to, at| Reply {
            id: Uuid::nil(),
            conversation: conversation.to_owned(),
            in_reply_to,
            bot: None,
            at,
            text: "words".to_owned(),
            model: String::new(),
            finish_reason: "stop".to_owned(),
        };
        assert!(
            erasures.covers_reply(&reply("a", Uuid::nil(), 100)) && erasures.covers_reply(&reply("c", one.id, 900))
        );
        assert!(!erasures.covers_reply(&reply("a", Uuid::nil(), 101)));
        let mark = Turn { kind: schemas::erasure::ERASURE.to_owned(), ..said("a", "ann", 1) };
        assert!(!erasures.covers(&mark));
    }
}
