//! What a client of `/v1/stream` asks: frames and query strings, read into commands. Pure.

use serde_json::Value;

use crate::resume::Token;
use crate::view::Embeddings;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Command {
    /// Follow conversations, from behind the token if there is one.
    Follow { conversations: Vec<String>, resume: Option<Token> },
    /// Follow everything.
    FollowAll { resume: Option<Token> },
    /// Follow conversations no longer.
    Unfollow { conversations: Vec<String> },
}

/// What is wrong with a frame; the socket lives on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) code: &'static str,
    /// The field at fault; empty if it is the frame as a whole.
    pub(crate) field: &'static str,
    pub(crate) message: String,
}

fn fault(code: &'static str, field: &'static str, message: impl Into<String>) -> Fault {
    Fault { code, field, message: message.into() }
}

/// Reads a frame.
pub(crate) fn parse(text: &str) -> Result<Command, Fault> {
    let frame: Value = serde_json::from_str(text)
        .map_err(|error| fault("bad_frame", "", format!("the frame is not JSON ({error}): send one object a frame")))?;
    let Some(fields) = frame.as_object() else {
        return Err(fault("bad_frame", "", "the frame is no JSON object: send {\"type\":\"follow\",…}"));
    };
    let kind = fields.get("type").and_then(Value::as_str);
    let known: &[&str] = match kind {
        Some("follow") => &["type", "conversations", "all", "resume"],
        Some("unfollow") => &["type", "conversations"],
        _ => return Err(fault("bad_field", "type", "`type` must be \"follow\" or \"unfollow\"")),
    };
    if let Some(name) = fields.keys().find(|name| !known.contains(&name.as_str())) {
        let message = format!("unknown field `{}`: send {}", clipped(name), known.join(", "));
        return Err(fault("unknown_field", "", message));
    }
    let all = match fields.get("all") {
        None | Some(Value::Null) => false,
        Some(all) => all.as_bool().ok_or_else(|| fault("bad_field", "all", "`all` must be true or false"))?,
    };
    let conversations = names(fields.get("conversations"))?;
    let resume = match fields.get("resume") {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) => {
            Some(Token::decode(text).map_err(|error| fault("bad_resume", "resume", error.to_string()))?)
        }
        Some(_) => return Err(fault("bad_field", "resume", "`resume` must be the text of a token")),
    };
    match (kind, all, conversations.is_empty()) {
        (Some("unfollow"), _, false) => Ok(Command::Unfollow { conversations }),
        (_, true, true) => Ok(Command::FollowAll { resume }),
        (_, false, false) => Ok(Command::Follow { conversations, resume }),
        (_, true, false) => {
            Err(fault("bad_field", "conversations", "`all` leaves no conversations to name: send one of the two"))
        }
        (_, false, true) => Err(fault("missing_field", "conversations", "`conversations` must name at least one")),
    }
}

fn names(value: Option<&Value>) -> Result<Vec<String>, Fault> {
    let wrong = || fault("bad_field", "conversations", "`conversations` must be a list of conversation ids (texts)");
    match value {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(list)) => {
            list.iter().map(|name| name.as_str().map(str::to_owned).ok_or_else(wrong)).collect()
        }
        Some(_) => Err(wrong()),
    }
}

/// The start of a name that a client made up.
fn clipped(name: &str) -> String {
    name.chars().take(40).collect()
}

/// What a query string asks for at once, and how turns are shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Opening {
    pub(crate) command: Option<Command>,
    pub(crate) embeddings: Embeddings,
}

/// Reads the query string of a stream: `conversation` (repeatable), `all=1`, `resume`, `embedding=1`.
pub(crate) fn opening(query: &[(String, String)]) -> Result<Opening, Fault> {
    let mut opening = Opening { command: None, embeddings: Embeddings::Hide };
    let (mut conversations, mut all, mut resume) = (Vec::new(), false, None);
    for (name, value) in query {
        match name.as_str() {
            "conversation" => conversations.push(value.clone()),
            "all" => all = flag("all", value)?,
            "resume" => {
                let token = Token::decode(value).map_err(|error| fault("bad_resume", "resume", error.to_string()))?;
                resume = Some(token);
            }
            "embedding" if flag("embedding", value)? => opening.embeddings = Embeddings::Show,
            _ => {}
        }
    }
    opening.command = match (all, conversations.is_empty()) {
        (true, true) => Some(Command::FollowAll { resume }),
        (true, false) => return Err(fault("bad_field", "conversation", "send either `all` or `conversation`")),
        (false, false) => Some(Command::Follow { conversations, resume }),
        (false, true) if resume.is_some() => {
            return Err(fault("missing_field", "conversation", "`resume` goes with `conversation` or `all=1`"));
        }
        (false, true) => None,
    };
    Ok(opening)
}

pub(crate) fn flag(name: &'static str, value: &str) -> Result<bool, Fault> {
    match value {
        "1" | "true" | "" => Ok(true),
        "0" | "false" => Ok(false),
        _ => Err(fault("bad_field", name, format!("`{name}` must be 1 or 0"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_become_commands_or_name_their_fault() {
        let token = Token::Offsets([(0, 7)].into());
        let one = vec!["room-7".to_owned()];
        let with_token = format!(r#"{{"type":"follow","all":true,"resume":"{}"}}"#, token.encode());
        for (text, expected) in [
            (
                r#"{"type":"follow","conversations":["room-7"]}"#,
                Ok(Command::Follow { conversations: one.clone(), resume: None }),
            ),
            (r#"{"type":"unfollow","conversations":["room-7"]}"#, Ok(Command::Unfollow { conversations: one })),
            (r#"{"type":"follow","all":true}"#, Ok(Command::FollowAll { resume: None })),
            (with_token.as_str(), Ok(Command::FollowAll { resume: Some(token) })),
            ("follow", Err(("bad_frame", ""))),
            ("[]", Err(("bad_frame", ""))),
            ("{}", Err(("bad_field", "type"))),
            (r#"{"type":"shout"}"#, Err(("bad_field", "type"))),
            (r#"{"type":"follow"}"#, Err(("missing_field", "conversations"))),
            (r#"{"type":"follow","conversations":"room-7"}"#, Err(("bad_field", "conversations"))),
            (r#"{"type":"follow","conversations":[7]}"#, Err(("bad_field", "conversations"))),
            (r#"{"type":"follow","conversations":["a"],"all":true}"#, Err(("bad_field", "conversations"))),
            (r#"{"type":"follow","all":"yes"}"#, Err(("bad_field", "all"))),
            (r#"{"type":"follow","all":true,"resume":"x"}"#, Err(("bad_resume", "resume"))),
            (r#"{"type":"follow","all":true,"resume":7}"#, Err(("bad_field", "resume"))),
            (r#"{"type":"follow","all":true,"since":7}"#, Err(("unknown_field", ""))),
        ] {
            let got = parse(text).map_err(|fault| (fault.code, fault.field));
            assert_eq!(got, expected, "{text}");
        }
    }

    #[test]
    fn query_strings_open_streams() {
        let query = |pairs: &[(&str, &str)]| {
            let pairs: Vec<_> = pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
            opening(&pairs).map_err(|fault| fault.field)
        };
        assert_eq!(query(&[]), Ok(Opening { command: None, embeddings: Embeddings::Hide }));
        let two = query(&[("conversation", "a"), ("conversation", "b"), ("embedding", "1")]).unwrap();
        let conversations = vec!["a".to_owned(), "b".to_owned()];
        assert_eq!(two.command, Some(Command::Follow { conversations, resume: None }));
        assert_eq!(two.embeddings, Embeddings::Show);
        assert_eq!(query(&[("resume", "damaged")]), Err("resume"));
        assert_eq!(query(&[("all", "1"), ("conversation", "a")]), Err("conversation"));
        assert_eq!(query(&[("all", "maybe")]), Err("all"));
    }
}
