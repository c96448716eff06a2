//! Whole pipelines in this process: they start on free ports, tell their addresses, end in order and by force, and do
//! not meet. On the embedded broker, and on the Apache Kafka that `UNDERTONE_TEST_KAFKA` names, but for what is in
//! `embedded`; with history in a file, and on the Apache Cassandra that `UNDERTONE_TEST_CASSANDRA` names.

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tests::Server;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use undertone::config::{Config, StoreKind};
use undertone::up::{self, Role, Running};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Settings of a pipeline on this server's log.
fn configured(server: &Server) -> Config {
    let mut config = Config::at(server.folder());
    if let Some(bootstrap) = server.apache() {
        config.kafka.bootstrap = bootstrap.to_owned();
        config.context.only_machine = true;
        config.kafka.partitions = tests::APACHE_PARTITIONS;
    }
    if let Some(scylla) = &server.cassandra {
        config.history.kind = StoreKind::Scylla;
        config.context.kind = StoreKind::Scylla;
        config.scylla.nodes = scylla.nodes.join(",");
        config.scylla.keyspace.clone_from(&scylla.keyspace);
        config.scylla.replication.clone_from(&scylla.replication);
        config.scylla.request_ms_max = scylla.request_timeout.as_millis() as u64;
    }
    config
}

async fn started(config: Config) -> Running {
    up::start(config, &[]).await.unwrap_or_else(|error| panic!("start: {error:#}"))
}

async fn get(running: &Running, path: &str) -> (u16, String) {
    ask(running, &format!("GET {path} HTTP/1.1\r\nHost: {}", running.http())).await
}

/// Sends a request without a body: its first line, and headers; returns the code and the body.
async fn ask(running: &Running, head: &str) -> (u16, String) {
    let mut socket = tokio::net::TcpStream::connect(running.http()).await.unwrap();
    let request = format!("{head}\r\nConnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, socket.read_to_string(&mut answer)).await.unwrap().unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// Follows `room`, says `texts` in it, and returns the enriched turns.
async fn converse(running: &Running, room: &str, texts: &[&str]) -> Vec<Value> {
    converse_from(running, room, texts, texts.len()).await
}

/// As [`converse`], if only `new` of the texts are new.
async fn converse_from(running: &Running, room: &str, texts: &[&str], new: usize) -> Vec<Value> {
    let address = running.http();
    let (mut stream, _) = tokio_tungstenite::connect_async(format!("ws://{address}/v1/stream")).await.unwrap();
    let follow = json!({ "type": "follow", "conversations": [room] });
    stream.send(Message::text(follow.to_string())).await.unwrap();
    let following = stream.next().await.unwrap().unwrap();
    assert!(following.to_text().unwrap().contains("following"), "{following}");
    let (mut door, _) = tokio_tungstenite::connect_async(format!("ws://{address}/ingest/ws")).await.unwrap();
    for (number, text) in texts.iter().enumerate() {
        let frame =
            json!({ "id": format!("c{number}"), "conversation": room, "sender": { "id": "ann" }, "text": text });
        door.send(Message::text(frame.to_string())).await.unwrap();
    }
    let mut turns = Vec::new();
    while turns.len() < new {
        let message = tokio::time::timeout(PATIENCE, stream.next()).await.expect("a turn comes in time");
        let Message::Text(text) = message.unwrap().unwrap() else { continue };
        let mut message: Value = serde_json::from_str(&text).unwrap();
        if message["type"] == "turn" {
            turns.push(message["turn"].take());
        }
    }
    turns
}

#[tokio::test(flavor = "multi_thread")]
async fn conversation_goes_on_after_a_kill() {
    let server = Server::for_program().await;
    let running = started(configured(&server)).await;
    let before = converse(&running, "room", &["one", "two"]).await;
    running.kill();
    let running = started(configured(&server)).await;
    assert_eq!(before[1]["position"], 2);
    // Ids of the client count from c0 again: the first two are known, so only the third becomes a turn.
    let after = converse_from(&running, "room", &["one", "two", "three"], 1).await;
    assert_eq!(after[0]["position"], 3, "{after:?}");
    assert_eq!(after[0]["text"], "three");
    assert!(running.stop().await.drained);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_said_is_recalled_with_the_reason_and_stands_in_a_palace() {
    let server = Server::for_program().await;
    let running = started(configured(&server)).await;
    let texts = [
        "my sister Anna moved to Lisbon last spring and works in a bakery there",
        "on rainy evenings I play chess with my grandfather",
        "the train to the mountains was two hours late again",
    ];
    converse(&running, "room", &texts).await;
    let recall = async |question: &str| {
        let (status, body) = get(&running, &format!("/v1/conversations/room/memories?limit=2&q={question}")).await;
        (status, serde_json::from_str::<Value>(&body).unwrap())
    };
    // The writer of the history may be a moment behind the stream.
    let found = tokio::time::timeout(PATIENCE, async {
        loop {
            let (status, found) = recall("where%20does%20Anna%20live").await;
            if status == 200 && found["searched"] == 3 {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let found = found.await.expect("three memories in time");
    assert_eq!(found["memories"].as_array().unwrap().len(), 2);
    assert_eq!(found["memories"][0]["text"], texts[0]);
    assert!(found["memories"][0]["why"]["words"].as_f64().unwrap() > 0.0, "{found}");
    assert_eq!(recall("chess").await.1["memories"][0]["position"], 2);
    let palace: Value = serde_json::from_str(&get(&running, "/v1/conversations/room/palace").await.1).unwrap();
    assert_eq!(palace["memories"], 3);
    let counts = palace["rooms"].as_array().unwrap().iter().map(|room| room["memories"].as_u64().unwrap());
    assert_eq!(counts.sum::<u64>(), 3, "{palace}");
    assert_eq!(get(&running, "/v1/conversations/nowhere/palace").await.0, 404);
    assert!(running.stop().await.drained);
}

#[tokio::test(flavor = "multi_thread")]
async fn client_that_closes_a_socket_is_answered() {
    let server = Server::for_program().await;
    let running = started(configured(&server)).await;
    for path in ["/ingest/ws", "/v1/stream"] {
        let address = running.http();
        let (mut socket, _) = tokio_tungstenite::connect_async(format!("ws://{address}{path}")).await.unwrap();
        let code = CloseCode::Normal;
        socket.send(Message::Close(Some(CloseFrame { code, reason: "done".into() }))).await.unwrap();
        let frame = loop {
            match tokio::time::timeout(PATIENCE, socket.next()).await.expect("in time") {
                Some(Ok(Message::Ping(_))) => {}
                Some(Ok(Message::Close(Some(frame)))) => break frame,
                other => panic!("{path}: {other:?}"),
            }
        };
        assert_eq!(frame.code, code, "{path}");
        assert!(socket.next().await.is_none_or(|end| end.is_err()), "{path}: nothing comes behind it");
    }
    assert!(running.stop().await.drained);
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_models_stop_the_start_with_the_mend() {
    let server = Server::for_program().await;
    let mut config = configured(&server);
    config.models.dir = server.folder().join("nothing");
    let message = format!("{:#}", up::start(config, &[]).await.unwrap_err());
    assert!(message.contains("[models] dir"), "{message}");
    // What had begun has ended: the folder is free again.
    assert!(started(configured(&server)).await.stop().await.drained);
}

#[tokio::test(flavor = "multi_thread")]
async fn taken_port_is_named_with_the_mend() {
    let server = Server::for_program().await;
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut config = configured(&server);
    config.http.listen = taken.local_addr().unwrap();
    let message = format!("{:#}", up::start(config, &[]).await.unwrap_err());
    assert!(message.contains(&taken.local_addr().unwrap().to_string()), "{message}");
    assert!(message.contains("[http] listen"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_spread_over_processes_on_one_log() {
    let (server, dir) = (Server::for_program().await, tempfile::tempdir().unwrap());
    let log = match server.apache() {
        Some(_) => None,
        None => Some(up::start(configured(&server), &[Role::Broker]).await.unwrap()),
    };
    let mut config = Config::at(dir.path());
    config.kafka.bootstrap = log.as_ref().map_or(server.kafka.bootstrap.as_str(), Running::kafka).to_owned();
    let refused = up::start(config.clone(), &[]).await.unwrap_err();
    assert!(format!("{refused:#}").contains("only_machine = true"), "{refused:#}");
    config.context.only_machine = true;
    let roles = [Role::Processors, Role::History, Role::Api, Role::Ingest];
    let work = up::start(config, &roles).await.unwrap();
    let turns = converse(&work, "room", &["thank you, that is so kind"]).await;
    assert_eq!(turns[0]["emotion"]["labels"][0], "gratitude", "{turns:?}");
    assert!(work.stop().await.drained);
    if let Some(log) = log {
        assert!(log.stop().await.drained);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_setting_opens_page_streams_and_webhooks_behind_a_proxy() {
    let server = Server::for_program().await;
    let mut config = configured(&server);
    config.http.hosts_allowed = vec!["undertone.example".to_owned()];
    let webhook_secret = "s3cret".to_owned().into();
    config.telegram.bots.insert("helper".to_owned(), undertone::config::Bot { webhook_secret });
    let running = up::start(config, &[]).await.unwrap_or_else(|error| panic!("start: {error:#}"));
    let ours = "Host: undertone.example\r\nOrigin: https://undertone.example";
    assert_eq!(ask(&running, &format!("GET / HTTP/1.1\r\n{ours}")).await.0, 200);
    assert_eq!(ask(&running, "GET / HTTP/1.1\r\nHost: evil.example").await.0, 403);
    let foreign = "Host: undertone.example\r\nOrigin: https://evil.example";
    for path in ["/v1/stream", "/ingest/ws"] {
        let upgrade = "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
        let code = async |names| {
            let mut socket = tokio::net::TcpStream::connect(running.http()).await.unwrap();
            let request = format!("GET {path} HTTP/1.1\r\n{names}\r\nConnection: Upgrade\r\n{upgrade}\r\n\r\n");
            socket.write_all(request.as_bytes()).await.unwrap();
            let mut answer = [0; 12];
            tokio::time::timeout(PATIENCE, socket.read_exact(&mut answer)).await.unwrap().unwrap();
            String::from_utf8(answer[9..].to_vec()).unwrap()
        };
        assert_eq!(code(ours).await, "101", "{path}");
        assert_eq!(code(foreign).await, "403", "{path}");
    }
    let call = "POST /telegram/helper/webhook HTTP/1.1\r\nHost: undertone.example\r\nContent-Length: 0";
    assert_eq!(ask(&running, call).await.0, 401);
    // With the secret the body is looked at: it is at fault, is kept, and Telegram need not send it again.
    let call = format!("{call}\r\nX-Telegram-Bot-Api-Secret-Token: s3cret");
    assert_eq!(ask(&running, &call).await.0, 200);
    assert!(running.stop().await.drained);
}

/// What concerns the embedded broker alone.
mod embedded {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn two_pipelines_in_one_process_do_not_meet() {
        let (dir, other_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (one, other) = (started(Config::at(dir.path())).await, started(Config::at(other_dir.path())).await);
        assert_ne!(one.http(), other.http());
        assert_ne!(one.kafka(), other.kafka());
        let turns = converse(&one, "room", &["I love this so much", "oh no, that is terrible"]).await;
        assert_eq!(turns[0]["position"], 1);
        assert_eq!(turns[1]["position"], 2);
        let valence = |turn: &Value| turn["emotion"]["valence"].as_f64().unwrap();
        assert!(valence(&turns[0]) > 0.2 && valence(&turns[1]) < 0.0, "{turns:?}");
        assert_eq!(get(&one, "/readyz").await.0, 200);
        let status: Value = serde_json::from_str(&get(&one, "/status").await.1).unwrap();
        assert_eq!(status["http"], one.http().to_string());
        assert_eq!(status["kafka"], one.kafka());
        assert_eq!(status["roles"], json!(["broker", "ingest", "processors", "history", "api"]));
        assert_eq!(get(&other, "/v1/conversations").await.0, 200);
        assert!(!get(&other, "/v1/conversations").await.1.contains("room"));
        assert!(one.stop().await.drained);
        assert_eq!(get(&other, "/readyz").await.0, 200, "ending one leaves the other");
        assert!(other.stop().await.drained);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn roles_without_a_log_are_refused_with_the_mend() {
        let dir = tempfile::tempdir().unwrap();
        let message = format!("{:#}", up::start(Config::at(dir.path()), &[Role::Ingest]).await.unwrap_err());
        assert!(message.contains("add the role broker") && message.contains("[kafka] bootstrap"), "{message}");
    }
}
