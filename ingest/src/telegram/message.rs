//! What a Telegram message says: its words, who said them, and in which conversation.
//!
//! Words are the text, the caption of media, or the text within a rich message. A message without words (a sticker, a
//! photo without caption, a service message) is counted.

use frankenstein::types::{Chat, Message, User};
use schemas::Sender;

use super::{Frame, Outcome, Said, TELEGRAM, chat_kind, milliseconds, rich};

impl Frame<'_> {
    /// A message of any kind but a guest's; `kind` is what the turn is called unless it is a caption.
    pub(super) fn message(&self, message: Message, kind: &'static str) -> Outcome {
        let conversation = self.conversation_of(&message);
        self.said(message, conversation, kind)
    }

    /// A message by which a user calls the bot into a chat that it is no member of. The answer to it takes another
    /// road than a message does, so that it is another conversation than the chat's own.
    pub(super) fn guest_message(&self, message: Message) -> Outcome {
        let conversation = format!("{TELEGRAM}:{}:guest:{}", self.bot, message.chat.id);
        self.said(message, conversation, "message")
    }

    pub(super) fn conversation_of(&self, message: &Message) -> String {
        match &message.business_connection_id {
            Some(connection) => format!("{TELEGRAM}:{}:business:{connection}:{}", self.bot, message.chat.id),
            None => self.chat(message.chat.id),
        }
    }

    fn said(&self, message: Message, conversation: String, kind: &'static str) -> Outcome {
        let sender = sender(&message);
        let (text, kind) = match (message.text, message.caption, message.rich_message) {
            (Some(text), _, _) => (text, kind),
            (None, Some(caption), _) if kind == "message" => (caption, "caption"),
            (None, Some(caption), _) => (caption, kind),
            (None, None, Some(rich)) => (rich::words(&*rich), kind),
            (None, None, None) => return Outcome::Counted,
        };
        let said_at = if kind == "edit" { message.edit_date.unwrap_or(message.date) } else { message.date };
        let Some(at) = milliseconds(said_at) else { return self.out_of_time(self.id(&conversation), conversation) };
        self.turn(Said {
            conversation,
            at,
            kind,
            sender,
            chat_kind: Some(chat_kind(&message.chat)),
            message_id: Some(message.message_id.to_string()),
            reply_to: message.reply_to_message.map(|m| m.message_id.to_string()),
            language_hint: message.from.and_then(|user| user.language_code),
            text,
        })
    }
}

/// Who speaks. Where a chat speaks (an anonymous administrator, a channel), `from` holds a stand-in user, so the chat
/// goes first; where a bot speaks for a business account, it is the bot that spoke.
fn sender(message: &Message) -> Option<Sender> {
    if let Some(bot) = &message.sender_business_bot {
        return Some(person(bot));
    }
    match (&message.sender_chat, &message.from) {
        (Some(chat), _) => Some(chat_as_sender(chat)),
        (None, Some(user)) => Some(person(user)),
        (None, None) => None,
    }
}

pub(super) fn person(user: &User) -> Sender {
    let name = match &user.last_name {
        Some(last) => format!("{} {last}", user.first_name),
        None => user.first_name.clone(),
    };
    Sender { id: user.id.to_string(), name: Some(name), bot: user.is_bot }
}

pub(super) fn chat_as_sender(chat: &Chat) -> Sender {
    let name = chat.title.clone().or_else(|| chat.username.clone());
    Sender { id: chat.id.to_string(), name, bot: false }
}
