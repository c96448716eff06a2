//! What a WebSocket frame says: text in; for each turn in it a turn or an error that names the field, out.
//!
//! Promises: pure; a frame at fault never hides its neighbours in a batch; unknown fields are left alone, so that a
//! client may be newer than the server. A frame at fault is not kept as a reject: its sender is there to be told.
//!
//! A frame is one object, `{"batch": […]}`, or a bare array of objects. One with `consent` instead of `text` says whether
//! its sender may be profiled in that conversation: it becomes a turn of kind `consent`.

use schemas::{Consent, Sender, TraceParent, Turn, time};
use serde::Serialize;
use serde_json::{Map, Value};

/// Name of the source in turns.
pub(crate) const WEBSOCKET: &str = "websocket";
/// Conversations with this prefix belong to bots; a client may not speak in them.
const RESERVED_PREFIX: &str = "telegram:";
/// Longest conversation id, in bytes: it becomes a Kafka key and a part of URLs.
const CONVERSATION_BYTES_MAX: usize = 256;
/// Longest id of a client, a sender, a correlation or an answered turn, in bytes.
const ID_BYTES_MAX: usize = 128;
/// Longest name of a sender, in bytes.
const NAME_BYTES_MAX: usize = 256;
/// Longest language tag, in bytes (RFC 5646, section 4.4.1).
const LANGUAGE_BYTES_MAX: usize = 35;
/// Longest version of the text that a person agrees to, in bytes.
const VERSION_BYTES_MAX: usize = 64;
/// How far a client's clock may run ahead of ours, in milliseconds.
const AHEAD_MS_MAX: i64 = 24 * 60 * 60 * 1000;

/// Bounds that the configuration sets.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Longest text of a turn, in bytes of UTF-8.
    pub text_bytes_max: usize,
    /// Most turns in a batch.
    pub batch_frames_max: usize,
}

/// A turn that a client said, with what travels beside it.
#[derive(Debug, Clone, PartialEq)]
pub struct Said {
    /// The turn.
    pub turn: Turn,
    /// The client's correlation id, if it gave one.
    pub correlation_id: Option<String>,
    /// The client's trace. One that is broken is left out, as W3C Trace Context asks: tracing never costs words.
    pub trace: Option<TraceParent>,
}

/// Why a frame was not taken, as the client reads it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FrameError {
    /// The client's id of the frame, where it can be read.
    pub id: Option<String>,
    /// What the client can decide by.
    pub code: Code,
    /// The field at fault, as a path within the frame; absent where it is the whole frame.
    pub field: Option<&'static str>,
    /// What is wrong and how to mend it.
    pub message: String,
}

/// What a client can decide by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// Mend the frame, then send it again.
    Invalid,
    /// Make it smaller, then send it again.
    TooLarge,
    /// Nothing is wrong with the frame: send it again later, with the same id.
    Unavailable,
}

/// Reads a text frame. `received_at` is in milliseconds since the Unix epoch. There is at least one result, and they
/// are in the order of the frame.
pub fn parse(text: &str, received_at: i64, bounds: Bounds) -> Vec<Result<Said, FrameError>> {
    let frames = match serde_json::from_str(text) {
        Ok(Value::Array(frames)) => frames,
        Ok(Value::Object(mut members)) if members.contains_key("batch") => match members.remove("batch") {
            Some(Value::Array(frames)) => frames,
            _ => return vec![whole(Some("batch"), Code::Invalid, "must be an array of frames")],
        },
        Ok(frame @ Value::Object(_)) => return vec![one(frame, received_at, bounds)],
        Ok(_) => return vec![whole(None, Code::Invalid, "send a JSON object, or an array of them")],
        Err(e) => return vec![whole(None, Code::Invalid, &format!("not JSON ({e}): send a JSON object"))],
    };
    match frames.len() {
        0 => vec![whole(Some("batch"), Code::Invalid, "is empty: send at least one frame")],
        n if n > bounds.batch_frames_max => {
            let message = format!("holds {n} frames, at most {} are taken: split it", bounds.batch_frames_max);
            vec![whole(Some("batch"), Code::TooLarge, &message)]
        }
        _ => frames.into_iter().map(|frame| one(frame, received_at, bounds)).collect(),
    }
}

fn whole(field: Option<&'static str>, code: Code, message: &str) -> Result<Said, FrameError> {
    Err(FrameError { id: None, code, field, message: message.to_owned() })
}

fn one(frame: Value, received_at: i64, bounds: Bounds) -> Result<Said, FrameError> {
    let Value::Object(mut members) = frame else {
        return whole(None, Code::Invalid, "each frame must be a JSON object");
    };
    // The id first: every later error names it.
    let id = string(&mut members, "id", ID_BYTES_MAX).and_then(|id| required(id, "id"));
    let id = id.map_err(|fault| fault.of(None))?;
    fields(&id, members, received_at, bounds).map_err(|fault| fault.of(Some(id)))
}

fn fields(id: &str, mut members: Map<String, Value>, received_at: i64, bounds: Bounds) -> Result<Said, Fault> {
    let conversation = string(&mut members, "conversation", CONVERSATION_BYTES_MAX)?;
    let conversation = required(conversation, "conversation")?;
    if conversation.starts_with(RESERVED_PREFIX) {
        let message = format!("ids that begin with {RESERVED_PREFIX} belong to bots: choose another");
        return Err(Fault::invalid("conversation", message));
    }
    let sender = sender(members.remove("sender"))?;
    let consent = consent(members.remove("consent"))?;
    let text = match (&consent, members.remove("text")) {
        (None, said) => text(said, bounds.text_bytes_max)?,
        (Some(_), None | Some(Value::Null)) => String::new(),
        (Some(_), Some(_)) => {
            return Err(Fault::invalid("text", "stands beside consent, which has no words: send two frames"));
        }
    };
    if consent.is_some() && sender.bot {
        return Err(Fault::invalid("consent", "is a person's to give: bots are never profiled"));
    }
    let at = at(members.remove("at"), received_at)?;
    let reply_to = string(&mut members, "reply_to", ID_BYTES_MAX)?;
    let language_hint = language(string(&mut members, "language", LANGUAGE_BYTES_MAX)?)?;
    let correlation_id = string(&mut members, "correlation_id", ID_BYTES_MAX)?;
    let trace = members.get("traceparent").and_then(Value::as_str).and_then(TraceParent::parse);
    let bare = Turn::message(WEBSOCKET, &conversation, &sender.id, id, &text, at);
    let kind = if consent.is_some() { "consent".to_owned() } else { bare.kind.clone() };
    let turn = Turn {
        received_at,
        kind,
        consent,
        sender: Some(sender),
        chat_kind: Some("room".to_owned()),
        message_id: Some(id.to_owned()),
        reply_to,
        language_hint,
        ..bare
    };
    Ok(Said { turn, correlation_id, trace })
}

/// An error that does not know its frame's id yet.
struct Fault {
    code: Code,
    field: &'static str,
    message: String,
}

impl Fault {
    fn invalid(field: &'static str, message: impl Into<String>) -> Fault {
        Fault { code: Code::Invalid, field, message: message.into() }
    }

    fn of(self, id: Option<String>) -> FrameError {
        FrameError { id, code: self.code, field: Some(self.field), message: self.message }
    }
}

fn sender(value: Option<Value>) -> Result<Sender, Fault> {
    let Some(Value::Object(mut members)) = value else {
        return Err(Fault::invalid("sender", "must be an object with an id: {\"id\": \"ann\"}"));
    };
    let id = named(&mut members, "id", "sender.id", ID_BYTES_MAX)?;
    let id = required(id, "sender.id")?;
    let name = named(&mut members, "name", "sender.name", NAME_BYTES_MAX)?;
    let bot = match members.remove("bot") {
        None | Some(Value::Null) => false,
        Some(Value::Bool(bot)) => bot,
        Some(_) => return Err(Fault::invalid("sender.bot", "must be true or false")),
    };
    Ok(Sender { id, name, bot })
}

fn text(value: Option<Value>, bytes_max: usize) -> Result<String, Fault> {
    let Some(Value::String(text)) = value else {
        return Err(Fault::invalid("text", "must be a string with the words that are said"));
    };
    if text.len() > bytes_max {
        let message = format!("is {} bytes long, at most {bytes_max} are taken: split it", text.len());
        return Err(Fault { code: Code::TooLarge, field: "text", message });
    }
    if text.trim().is_empty() {
        return Err(Fault::invalid("text", "is empty: send at least one word"));
    }
    if text.contains('\0') {
        return Err(Fault::invalid("text", "holds U+0000, which many tools take for its end: send it without"));
    }
    Ok(text)
}

/// Whether the sender may be profiled, if the frame is about that.
fn consent(value: Option<Value>) -> Result<Option<Consent>, Fault> {
    let mut members = match value {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Object(members)) => members,
        Some(_) => {
            let message = "must be an object such as {\"granted\": true, \"text_version\": \"2026-01\"}";
            return Err(Fault::invalid("consent", message));
        }
    };
    let Some(Value::Bool(granted)) = members.remove("granted") else {
        return Err(Fault::invalid("consent.granted", "must be true or false"));
    };
    let version = named(&mut members, "text_version", "consent.text_version", VERSION_BYTES_MAX)?;
    // Consent to nothing in particular is none; it is withdrawn whatever the text was.
    let text_version = if granted { required(version, "consent.text_version")? } else { version.unwrap_or_default() };
    Ok(Some(Consent { granted, text_version }))
}

/// When it was said: the client's word for it, or else intake's clock.
fn at(value: Option<Value>, received_at: i64) -> Result<i64, Fault> {
    let at = match value {
        None | Some(Value::Null) => return Ok(received_at),
        Some(Value::Number(number)) => number.as_i64(),
        Some(Value::String(text)) => time::milliseconds(&text),
        Some(_) => None,
    };
    match at {
        Some(at) if at > received_at.saturating_add(AHEAD_MS_MAX) => {
            Err(Fault::invalid("at", "is more than a day ahead of the server's clock: set the client's clock"))
        }
        Some(at) if at >= 0 => Ok(at),
        Some(_) => Err(Fault::invalid("at", "is before 1970: send milliseconds since then, or leave it out")),
        None => Err(Fault::invalid(
            "at",
            "must be whole milliseconds since 1970, or RFC 3339 such as 2026-01-31T09:30:00Z, or absent",
        )),
    }
}

fn language(tag: Option<String>) -> Result<Option<String>, Fault> {
    match tag {
        Some(tag) if !tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') => {
            Err(Fault::invalid("language", "must be an IETF language tag such as en or pt-BR, or absent"))
        }
        tag => Ok(tag),
    }
}

fn string(members: &mut Map<String, Value>, name: &'static str, bytes_max: usize) -> Result<Option<String>, Fault> {
    named(members, name, name, bytes_max)
}

/// A string without control characters, which would break headers, keys and terminals; `None` if absent or null.
fn named(
    members: &mut Map<String, Value>,
    name: &str,
    field: &'static str,
    bytes_max: usize,
) -> Result<Option<String>, Fault> {
    match members.remove(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.len() > bytes_max => {
            let message = format!("is {} bytes long, at most {bytes_max} are taken: shorten it", text.len());
            Err(Fault { code: Code::TooLarge, field, message })
        }
        Some(Value::String(text)) if text.chars().any(char::is_control) => {
            Err(Fault::invalid(field, "holds a control character: send it without"))
        }
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(Fault::invalid(field, "must be a string")),
    }
}

fn required(value: Option<String>, field: &'static str) -> Result<String, Fault> {
    match value {
        Some(text) if !text.trim().is_empty() => Ok(text),
        _ => Err(Fault::invalid(field, "is absent or empty: send a string")),
    }
}
