//! Reads an update that the typed crate could not: names what is wrong with it, and reads a message once more without
//! its ornaments (entities, media, keyboards), so that an ornament newer than the crate does not cost the words.

use frankenstein::types::MaybeInaccessibleMessage;
use frankenstein::updates::UpdateContent;
use serde_json::{Map, Value};

use super::rich;

/// All kinds of update of the Bot API that this release knows, as the API spells them.
pub const KINDS: [&str; 27] = [
    "message",
    "edited_message",
    "channel_post",
    "edited_channel_post",
    "business_connection",
    "business_message",
    "edited_business_message",
    "deleted_business_messages",
    "guest_message",
    "message_reaction",
    "message_reaction_count",
    "inline_query",
    "chosen_inline_result",
    "callback_query",
    "shipping_query",
    "pre_checkout_query",
    "poll",
    "poll_answer",
    "my_chat_member",
    "chat_member",
    "chat_join_request",
    "chat_boost",
    "removed_chat_boost",
    "purchased_paid_media",
    "managed_bot",
    "subscription",
    "stopped_message_generation",
];

/// What an update looks like to a reader that asks for less.
pub(super) enum Read {
    /// Legible without its ornaments.
    Update { update_id: i64, content: Box<UpdateContent> },
    /// Not a JSON object with an `update_id`; why.
    Malformed(String),
    /// An update of a kind that is not in [`KINDS`].
    UnknownKind { update_id: i64 },
    /// An update of a known kind in an unknown shape; why.
    UnknownShape { update_id: i64, kind: &'static str, why: String },
}

pub(super) fn read(body: &[u8]) -> Read {
    let mut update = match serde_json::from_slice::<Value>(body) {
        Ok(Value::Object(update)) => update,
        Ok(_) => return Read::Malformed("body is not a JSON object".to_owned()),
        Err(e) => return Read::Malformed(format!("body is not JSON ({e})")),
    };
    let Some(update_id) = update.get("update_id").and_then(Value::as_i64) else {
        return Read::Malformed("update_id is absent or not an integer".to_owned());
    };
    let Some(kind) = KINDS.into_iter().find(|kind| update.contains_key(*kind)) else {
        return Read::UnknownKind { update_id };
    };
    let mut content = update.remove(kind).unwrap_or_default();
    strip(kind, &mut content);
    let tagged = Value::Object(Map::from_iter([(kind.to_owned(), content)]));
    match serde_json::from_value(tagged) {
        Ok(content) => Read::Update { update_id, content: Box::new(content) },
        Err(e) => Read::UnknownShape { update_id, kind, why: e.to_string() },
    }
}

/// Whether the typed reader took a message for an inaccessible one because it could not read all of it: Telegram dates
/// inaccessible messages with 0. The message would then lose its business connection, and with it its conversation.
pub(super) fn lost_a_message(content: &UpdateContent) -> bool {
    let UpdateContent::CallbackQuery(query) = content else { return false };
    matches!(&query.message, Some(MaybeInaccessibleMessage::InaccessibleMessage(m)) if m.date != 0)
}

/// Keeps of each kind what becomes part of a turn.
fn strip(kind: &str, content: &mut Value) {
    match kind {
        "message"
        | "edited_message"
        | "channel_post"
        | "edited_channel_post"
        | "business_message"
        | "edited_business_message"
        | "guest_message" => strip_message(content),
        "callback_query" => {
            keep(content, &["id", "from", "message", "inline_message_id", "chat_instance", "data"]);
            inside(content, "from", strip_user);
            inside(content, "message", strip_message);
            instance(content);
        }
        _ => {}
    }
}

/// The typed crate demands a chat instance. It names the conversation only of a button under an inline message, so
/// where it is absent that message stands for it, else the person who pressed.
fn instance(query: &mut Value) {
    let inline = query.get("inline_message_id").and_then(Value::as_str).map(str::to_owned);
    let person = query.pointer("/from/id").map(|id| format!("from:{id}"));
    if let (Some(instance), Some(members)) = (inline.or(person), query.as_object_mut()) {
        members.entry("chat_instance").or_insert(Value::String(instance));
    }
}

fn strip_message(message: &mut Value) {
    let rich = message.get("rich_message").map(rich::words_of).filter(|words| !words.is_empty());
    keep(
        message,
        &[
            "message_id",
            "from",
            "sender_chat",
            "sender_business_bot",
            "date",
            "edit_date",
            "business_connection_id",
            "chat",
            "reply_to_message",
            "text",
            "caption",
        ],
    );
    let Some(members) = message.as_object_mut() else { return };
    if let Some(words) = rich
        && !members.contains_key("text")
        && !members.contains_key("caption")
    {
        members.insert("text".to_owned(), Value::String(words));
    }
    inside(message, "from", strip_user);
    inside(message, "sender_business_bot", strip_user);
    inside(message, "chat", strip_chat);
    inside(message, "sender_chat", strip_chat);
    inside(message, "reply_to_message", |answered| {
        keep(answered, &["message_id", "date", "chat"]);
        inside(answered, "chat", strip_chat);
    });
}

fn strip_user(user: &mut Value) {
    keep(user, &["id", "is_bot", "first_name", "last_name", "language_code"]);
}

fn strip_chat(chat: &mut Value) {
    keep(chat, &["id", "type", "title", "username"]);
}

fn keep(value: &mut Value, names: &[&str]) {
    if let Some(members) = value.as_object_mut() {
        members.retain(|name, _| names.contains(&name.as_str()));
    }
}

fn inside(value: &mut Value, name: &str, change: impl FnOnce(&mut Value)) {
    if let Some(member) = value.get_mut(name) {
        change(member);
    }
}

/// The kind of an update, as the Bot API spells it.
pub(super) fn kind(content: &UpdateContent) -> &'static str {
    use UpdateContent as C;
    match content {
        C::Message(_) => "message",
        C::EditedMessage(_) => "edited_message",
        C::ChannelPost(_) => "channel_post",
        C::EditedChannelPost(_) => "edited_channel_post",
        C::BusinessConnection(_) => "business_connection",
        C::BusinessMessage(_) => "business_message",
        C::EditedBusinessMessage(_) => "edited_business_message",
        C::DeletedBusinessMessages(_) => "deleted_business_messages",
        C::GuestMessage(_) => "guest_message",
        C::MessageReaction(_) => "message_reaction",
        C::MessageReactionCount(_) => "message_reaction_count",
        C::InlineQuery(_) => "inline_query",
        C::ChosenInlineResult(_) => "chosen_inline_result",
        C::CallbackQuery(_) => "callback_query",
        C::ShippingQuery(_) => "shipping_query",
        C::PreCheckoutQuery(_) => "pre_checkout_query",
        C::Poll(_) => "poll",
        C::PollAnswer(_) => "poll_answer",
        C::MyChatMember(_) => "my_chat_member",
        C::ChatMember(_) => "chat_member",
        C::ChatJoinRequest(_) => "chat_join_request",
        C::ChatBoost(_) => "chat_boost",
        C::RemovedChatBoost(_) => "removed_chat_boost",
        C::PurchasedPaidMedia(_) => "purchased_paid_media",
        C::ManagedBot(_) => "managed_bot",
        C::Subscription(_) => "subscription",
        C::StoppedMessageGeneration(_) => "stopped_message_generation",
    }
}
