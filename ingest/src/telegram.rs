//! What a Telegram update says: bytes in, a turn, feedback, a reject or nothing out.
//!
//! Promises: pure; every update ends in exactly one of four ways, and none is an error, because Telegram would send
//! it again for ever. Updates are read by the typed crate; a message that it cannot read because of an ornament that
//! is newer than the crate is read once more without its ornaments (`loose`), so that its words are not lost.
//!
//! Conversations: `telegram:BOT:CHAT`. All topics of a forum are one conversation, as they are one chat, because
//! reactions do not say their topic. Chats that the bot serves by another road are conversations of their own:
//! `telegram:BOT:business:CONNECTION:CHAT` for a business account, `telegram:BOT:guest:CHAT` where it is a guest, and
//! `telegram:BOT:inline:INSTANCE` for a button under an inline message, whose chat Telegram does not tell
//! (should the instance be absent, the inline message stands for it, else the person: `from:USER`).
//!
//! Left out: the road an update came by (webhook or poll), and media, which become turns by their captions only.

mod loose;
mod message;
mod rich;

use frankenstein::types::{
    CallbackQuery, Chat, ChatType, MaybeInaccessibleMessage, MessageReactionCountUpdated, MessageReactionUpdated,
    ReactionType,
};
use frankenstein::updates::{Update, UpdateContent};
use schemas::feedback::Reaction;
use schemas::{Feedback, Reason, Reject, Turn, turn_id};

pub use loose::KINDS;

/// What an update came to, and which kind of update it was.
#[derive(Debug, Clone, PartialEq)]
pub struct Parsed {
    /// One of [`KINDS`], `unknown` or `malformed`: a closed set, fit for a metric's label.
    pub kind: &'static str,
    /// What becomes of it.
    pub outcome: Outcome,
}

/// What becomes of an update.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// It carries words.
    Turn(Box<Turn>),
    /// It carries a reaction.
    Feedback(Box<Feedback>),
    /// It is well-formed and carries neither; only its number is of interest.
    Counted,
    /// It is at fault, or newer than this release; its bytes are kept.
    Reject(Box<Reject>),
}

/// The update around its content: what every outcome needs to know of it.
struct Frame<'a> {
    bot: &'a str,
    update_id: i64,
    /// Milliseconds since the Unix epoch.
    received_at: i64,
    text_bytes_max: usize,
    raw: &'a [u8],
}

/// Reads the body of a webhook call. `received_at` is in milliseconds since the Unix epoch; a text of more than
/// `text_bytes_max` bytes is rejected whole, never cut.
pub fn parse(bot: &str, body: &[u8], received_at: i64, text_bytes_max: usize) -> Parsed {
    let mut frame = Frame { bot, update_id: 0, received_at, text_bytes_max, raw: body };
    if let Ok(update) = serde_json::from_slice::<Update>(body)
        && !loose::lost_a_message(&update.content)
    {
        frame.update_id = i64::from(update.update_id);
        return frame.content(update.content);
    }
    match loose::read(body) {
        loose::Read::Update { update_id, content } => {
            frame.update_id = update_id;
            frame.content(*content)
        }
        loose::Read::Malformed(why) => {
            let detail = format!("{why}: send an Update of the Bot API as a JSON object");
            let id = turn_id(TELEGRAM, "", bot, &String::from_utf8_lossy(body));
            Parsed { kind: "malformed", outcome: frame.reject(id, Reason::Malformed, detail, None) }
        }
        loose::Read::UnknownKind { update_id } => {
            frame.update_id = update_id;
            let detail = format!("kind of update that this release does not know: upgrade; {KEPT}");
            Parsed { kind: "unknown", outcome: frame.reject(frame.id(""), Reason::UnknownKind, detail, None) }
        }
        loose::Read::UnknownShape { update_id, kind, why } => {
            frame.update_id = update_id;
            let detail = format!("{kind} is not in the shape that this release knows ({why}): upgrade; {KEPT}");
            Parsed { kind, outcome: frame.reject(frame.id(""), Reason::Invalid, detail, None) }
        }
    }
}

/// Where a person finds what was not taken.
const KEPT: &str = "it is kept in undertone.rejects.v1";
/// Latest time that is taken, in seconds since the Unix epoch: the end of the year 9999, beyond which dates cannot be
/// written in RFC 3339.
const SECONDS_MAX: u64 = 253_402_300_799;

/// Name of the source in turns, feedback and rejects.
pub(crate) const TELEGRAM: &str = "telegram";

impl Frame<'_> {
    fn content(&self, content: UpdateContent) -> Parsed {
        use UpdateContent as C;
        let kind = loose::kind(&content);
        let outcome = match content {
            C::Message(m) => self.message(*m, "message"),
            C::EditedMessage(m) | C::EditedChannelPost(m) | C::EditedBusinessMessage(m) => self.message(*m, "edit"),
            C::ChannelPost(m) => self.message(*m, "channel_post"),
            C::BusinessMessage(m) => self.message(*m, "business_message"),
            C::GuestMessage(m) => self.guest_message(*m),
            C::CallbackQuery(query) => self.callback(*query),
            C::MessageReaction(reaction) => self.reaction(reaction),
            C::MessageReactionCount(count) => self.reaction_count(count),
            C::BusinessConnection(_)
            | C::DeletedBusinessMessages(_)
            | C::InlineQuery(_)
            | C::ChosenInlineResult(_)
            | C::ShippingQuery(_)
            | C::PreCheckoutQuery(_)
            | C::Poll(_)
            | C::PollAnswer(_)
            | C::MyChatMember(_)
            | C::ChatMember(_)
            | C::ChatJoinRequest(_)
            | C::ChatBoost(_)
            | C::RemovedChatBoost(_)
            | C::PurchasedPaidMedia(_)
            | C::ManagedBot(_)
            | C::Subscription(_)
            | C::StoppedMessageGeneration(_) => Outcome::Counted,
        };
        Parsed { kind, outcome }
    }

    /// A pressed button says the data behind it. Telegram does not tell when it was pressed, so the time is intake's.
    fn callback(&self, query: CallbackQuery) -> Outcome {
        let Some(data) = query.data else { return Outcome::Counted };
        let (conversation, chat_kind, button) = match &query.message {
            Some(MaybeInaccessibleMessage::Message(m)) => {
                (self.conversation_of(m), Some(chat_kind(&m.chat)), Some(m.message_id))
            }
            Some(MaybeInaccessibleMessage::InaccessibleMessage(m)) => {
                (self.chat(m.chat.id), Some(chat_kind(&m.chat)), Some(m.message_id))
            }
            None => (format!("{TELEGRAM}:{}:inline:{}", self.bot, query.chat_instance), None, None),
        };
        let hint = query.from.language_code.clone();
        self.turn(Said {
            conversation,
            at: self.received_at,
            kind: "callback",
            sender: Some(message::person(&query.from)),
            chat_kind,
            message_id: None,
            reply_to: button.map(|id| id.to_string()),
            language_hint: hint,
            text: data,
        })
    }

    fn reaction(&self, update: MessageReactionUpdated) -> Outcome {
        let sender = match (&update.user, &update.actor_chat) {
            (Some(user), _) => Some(message::person(user)),
            (None, Some(chat)) => Some(message::chat_as_sender(chat)),
            (None, None) => None,
        };
        let reactions = update.new_reaction.iter().map(|r| Reaction { emoji: emoji(r), count: 1 }).collect();
        self.feedback("reaction", &update.chat, update.date, update.message_id, sender, reactions)
    }

    fn reaction_count(&self, update: MessageReactionCountUpdated) -> Outcome {
        let count = |r: &frankenstein::types::ReactionCount| Reaction {
            emoji: emoji(&r.type_field),
            count: i64::from(r.total_count),
        };
        let reactions = update.reactions.iter().map(count).collect();
        self.feedback("reaction_count", &update.chat, update.date, update.message_id, None, reactions)
    }

    fn feedback(
        &self,
        kind: &str,
        chat: &Chat,
        date: u64,
        message_id: i32,
        sender: Option<schemas::Sender>,
        reactions: Vec<Reaction>,
    ) -> Outcome {
        let conversation = self.chat(chat.id);
        let id = self.id(&conversation);
        let Some(at) = milliseconds(date) else { return self.out_of_time(id, conversation) };
        Outcome::Feedback(Box::new(Feedback {
            id,
            conversation,
            at,
            received_at: self.received_at,
            source: TELEGRAM.to_owned(),
            kind: kind.to_owned(),
            bot: Some(self.bot.to_owned()),
            external_id: self.update_id.to_string(),
            sender,
            message_id: message_id.to_string(),
            reactions,
        }))
    }

    /// A turn, unless its text is empty, too long, or holds what no text may hold.
    fn turn(&self, said: Said) -> Outcome {
        if said.text.trim().is_empty() {
            return Outcome::Counted;
        }
        let id = self.id(&said.conversation);
        if said.text.len() > self.text_bytes_max {
            let (bytes, max) = (said.text.len(), self.text_bytes_max);
            let detail = format!("text of {bytes} bytes is over the bound of {max}: say it in parts; {KEPT}");
            return self.reject(id, Reason::Oversized, detail, Some(said.conversation));
        }
        if said.text.contains('\0') {
            let detail = "text holds U+0000, which many tools take for its end: send it without".to_owned();
            return self.reject(id, Reason::Invalid, detail, Some(said.conversation));
        }
        let external_id = self.update_id.to_string();
        Outcome::Turn(Box::new(Turn {
            received_at: self.received_at,
            kind: said.kind.to_owned(),
            bot: Some(self.bot.to_owned()),
            sender: said.sender,
            chat_kind: said.chat_kind.map(str::to_owned),
            message_id: said.message_id,
            reply_to: said.reply_to,
            language_hint: said.language_hint,
            ..Turn::message(TELEGRAM, &said.conversation, self.bot, &external_id, &said.text, said.at)
        }))
    }

    fn out_of_time(&self, id: uuid::Uuid, conversation: String) -> Outcome {
        let detail = format!("date is not within 0 to {SECONDS_MAX} seconds: send a Unix time; {KEPT}");
        self.reject(id, Reason::Invalid, detail, Some(conversation))
    }

    fn reject(&self, id: uuid::Uuid, reason: Reason, detail: String, conversation: Option<String>) -> Outcome {
        Outcome::Reject(Box::new(Reject {
            id,
            at: self.received_at,
            stage: "ingest".to_owned(),
            reason: reason.name().to_owned(),
            detail,
            attempt: 1,
            source: Some(TELEGRAM.to_owned()),
            bot: Some(self.bot.to_owned()),
            topic: None,
            partition: None,
            offset: None,
            key: conversation.map(String::into_bytes),
            headers: Vec::new(),
            raw: self.raw.to_vec(),
        }))
    }

    fn id(&self, conversation: &str) -> uuid::Uuid {
        turn_id(TELEGRAM, conversation, self.bot, &self.update_id.to_string())
    }

    fn chat(&self, chat: i64) -> String {
        format!("{TELEGRAM}:{}:{chat}", self.bot)
    }
}

/// What an update that carries words says, before it is known to be fit for a turn.
struct Said {
    conversation: String,
    at: i64,
    kind: &'static str,
    sender: Option<schemas::Sender>,
    chat_kind: Option<&'static str>,
    message_id: Option<String>,
    reply_to: Option<String>,
    language_hint: Option<String>,
    text: String,
}

fn chat_kind(chat: &Chat) -> &'static str {
    match chat.type_field {
        ChatType::Private => "private",
        ChatType::Group => "group",
        ChatType::Supergroup => "supergroup",
        ChatType::Channel => "channel",
    }
}

fn emoji(reaction: &ReactionType) -> String {
    match reaction {
        ReactionType::Emoji(r) => r.emoji.clone(),
        ReactionType::CustomEmoji(r) => format!("custom:{}", r.custom_emoji_id),
        ReactionType::Paid(_) => "paid".to_owned(),
    }
}

/// Telegram counts in seconds since the Unix epoch; `None` beyond [`SECONDS_MAX`].
fn milliseconds(seconds: u64) -> Option<i64> {
    let seconds = i64::try_from(seconds).ok().filter(|_| seconds <= SECONDS_MAX)?;
    Some(seconds * 1000)
}
