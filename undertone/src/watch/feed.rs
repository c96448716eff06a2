//! The client side of `/v1/stream`: connect, follow, keep the resume token, come back.

use std::time::Duration;

use anyhow::Context as _;
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use tokio_util::sync::CancellationToken;

use super::view::Seen;

/// First and longest pause before the next try to connect.
const RETRY_FIRST: Duration = Duration::from_millis(250);
const RETRY_LONGEST: Duration = Duration::from_secs(5);
/// A server that says nothing for so long, not even a ping, is taken for gone.
const SILENCE_MAX: Duration = Duration::from_secs(90);

/// What to follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Follow {
    /// Every conversation.
    All,
    /// One conversation, by its id.
    Conversation(String),
}

impl Follow {
    pub(super) fn title(&self) -> String {
        match self {
            Follow::All => "all conversations".to_owned(),
            Follow::Conversation(id) => id.clone(),
        }
    }

    fn request(&self, resume: Option<&str>) -> String {
        let mut request = match self {
            Follow::All => json!({ "type": "follow", "all": true }),
            Follow::Conversation(id) => json!({ "type": "follow", "conversations": [id] }),
        };
        if let Some(token) = resume {
            request["resume"] = token.into();
        }
        request.to_string()
    }
}

/// What the stream has to tell.
#[derive(Debug, Clone, PartialEq)]
pub enum News {
    /// The socket is open and follows; whether nothing was missed since the last one.
    Connected {
        /// `false`: turns were missed that the server could not send again.
        recovered: bool,
    },
    /// The socket is gone; the next try follows by itself.
    Lost(String),
    /// A turn.
    Turn(Box<Seen>),
    /// The server refused something.
    Refused(String),
}

/// Feeds `news` until `stop`, or until nobody listens.
///
/// # Errors
/// The address is no address: no retry mends that.
pub async fn run(url: String, follow: Follow, news: mpsc::Sender<News>, stop: CancellationToken) -> anyhow::Result<()> {
    let url = stream_url(&url)?;
    let mut resume: Option<String> = None;
    let mut pause = RETRY_FIRST;
    loop {
        let ended = tokio::select! {
            ended = one_socket(&url, &follow, &mut resume, &news, &mut pause) => ended,
            () = stop.cancelled() => return Ok(()),
        };
        if news.send(News::Lost(ended)).await.is_err() {
            return Ok(());
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(RETRY_LONGEST),
            () = stop.cancelled() => return Ok(()),
        }
    }
}

/// `http://host:port` as the address of the stream.
pub fn stream_url(url: &str) -> anyhow::Result<String> {
    websocket_url(url, "/v1/stream")
}

/// `http://host:port` as the address of a WebSocket of the same server.
///
/// # Errors
/// It is none, or it asks for TLS.
pub fn websocket_url(url: &str, path: &str) -> anyhow::Result<String> {
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("ws://")).with_context(|| {
        format!(
            "\"{url}\" is no address of Undertone; give http://HOST:PORT (TLS ends at a proxy: go through a tunnel)"
        )
    })?;
    let host = rest.split('/').next().unwrap_or(rest);
    anyhow::ensure!(!host.is_empty(), "\"{url}\" names no host; give http://HOST:PORT");
    Ok(format!("ws://{host}{path}"))
}

/// One connection from its start to its end; says why it ended.
async fn one_socket(
    url: &str,
    follow: &Follow,
    resume: &mut Option<String>,
    news: &mpsc::Sender<News>,
    pause: &mut Duration,
) -> String {
    let mut socket = match tokio_tungstenite::connect_async(url).await {
        Ok((socket, _)) => socket,
        Err(WsError::Http(response)) => return format!("the server answers {} at {url}", response.status()),
        Err(e) => return format!("no connection to {url}: {e}; is `undertone up` running there?"),
    };
    if let Err(e) = socket.send(Message::text(follow.request(resume.as_deref()))).await {
        return format!("the connection broke: {e}");
    }
    loop {
        let frame = match tokio::time::timeout(SILENCE_MAX, socket.next()).await {
            Err(_) => return "the server has fallen silent".to_owned(),
            Ok(None) => return "the server has closed the stream".to_owned(),
            Ok(Some(Err(e))) => return format!("the connection broke: {e}"),
            Ok(Some(Ok(frame))) => frame,
        };
        let text = match frame {
            Message::Text(text) => text,
            Message::Close(Some(close)) => return format!("the server has closed the stream: {}", close.reason),
            _ => continue,
        };
        *pause = RETRY_FIRST;
        let Some(item) = read(&text, resume) else { continue };
        if news.send(item).await.is_err() {
            return "nobody watches any more".to_owned();
        }
    }
}

/// One message of the server; `None` for those that need not be told.
fn read(text: &str, resume: &mut Option<String>) -> Option<News> {
    let mut message: Value = serde_json::from_str(text).ok()?;
    if let Some(token) = message.get("resume").and_then(Value::as_str) {
        *resume = Some(token.to_owned());
    }
    match message.get("type").and_then(Value::as_str)? {
        "turn" => serde_json::from_value(message["turn"].take()).ok().map(News::Turn),
        "following" => {
            // A first follow has nothing to recover, and the server then says nothing of it.
            let recovered = message.get("recovered").and_then(Value::as_bool).unwrap_or(true);
            Some(News::Connected { recovered })
        }
        "error" => {
            let said = message.get("message").and_then(Value::as_str).unwrap_or("the server refused, without a reason");
            Some(News::Refused(said.to_owned()))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_moves_the_resume_token() {
        let mut resume = None;
        let item = read(r#"{"type":"turn","turn":{"conversation":"c","text":"t"},"resume":"a"}"#, &mut resume);
        assert!(matches!(item, Some(News::Turn(turn)) if turn.text == "t"));
        assert_eq!(resume.as_deref(), Some("a"));
        let item = read(r#"{"type":"following","recovered":false,"resume":"b"}"#, &mut resume);
        assert_eq!(item, Some(News::Connected { recovered: false }));
        assert_eq!(resume.as_deref(), Some("b"));
        assert_eq!(read(r#"{"type":"news of a later release"}"#, &mut resume), None);
        assert!(Follow::All.request(resume.as_deref()).contains(r#""resume":"b""#));
    }

    #[test]
    fn addresses_are_of_http_or_refused_with_the_mend() {
        assert_eq!(stream_url("http://127.0.0.1:8080").unwrap(), "ws://127.0.0.1:8080/v1/stream");
        assert_eq!(stream_url("http://[::1]:80/").unwrap(), "ws://[::1]:80/v1/stream");
        assert!(stream_url("https://example.org").unwrap_err().to_string().contains("http://HOST:PORT"));
        assert!(stream_url("http://").is_err());
    }
}
