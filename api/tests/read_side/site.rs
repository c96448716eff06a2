//! A read side with everything it stands on, and clients of its streams.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use api::{Api, Config, Past};
use broker::Broker;
use futures_util::{SinkExt as _, StreamExt as _};
use schemas::{Codec, Turn, topic};
use serde_json::{Value, json};
use store::history::{History, Row};
use store::log::{Admin, Kafka, Producer, ProducerLimits, Record, TopicSpec};
use store::redis::{Redis, Shelf};
use store::registry::Registry;
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::sample;

const PARTITIONS: i32 = 3;

/// A broker, a history, an API and its listener; all of it ends with the value. Pages go through a Redis too, where one is
/// named.
pub(crate) struct Site {
    pub(crate) kafka: Kafka,
    pub(crate) history: History,
    pub(crate) shelf: Option<Shelf>,
    pub(crate) codec: Arc<Codec>,
    pub(crate) http: SocketAddr,
    pub(crate) api: Api,
    pub(crate) shutdown: CancellationToken,
    producer: Producer,
    _broker: Broker,
    _dir: TempDir,
}

impl Site {
    pub(crate) async fn start(config: Config) -> Site {
        let dir = tempfile::tempdir().unwrap();
        let broker = Broker::start(broker::Config::new(dir.path())).await.unwrap();
        let kafka = Kafka { bootstrap: broker.bootstrap(), ..Kafka::default() };
        let spec = TopicSpec {
            name: topic::TURNS_ENRICHED.to_owned(),
            partitions: PARTITIONS,
            replication: 1,
            config: BTreeMap::new(),
        };
        Admin::connect(&kafka).unwrap().create(&[spec]).await.unwrap();
        let history = tests::history().await;
        let codec = Arc::new(Codec::embedded());
        let producer = Producer::connect(&kafka, &ProducerLimits::default()).unwrap();
        let shutdown = CancellationToken::new();
        let shelf = shelf().await;
        let past = Past { history: history.clone(), shelf: shelf.clone(), memories: None };
        let (api, http) = serve(config, &kafka, past, &shutdown).await;
        Site { kafka, history, shelf, codec, http, api, shutdown, producer, _broker: broker, _dir: dir }
    }

    /// Another process's read side on the same log and history, started now.
    pub(crate) async fn restart(&mut self, config: Config) {
        let past = Past { history: self.history.clone(), shelf: self.shelf.clone(), memories: None };
        let (api, http) = serve(config, &self.kafka, past, &self.shutdown).await;
        self.api = api;
        self.http = http;
    }

    /// Another process's read side, which remembers.
    pub(crate) async fn remember(&mut self, memories: Arc<dyn api::memories::Memories>) {
        let past = Past { history: self.history.clone(), shelf: None, memories: Some(memories) };
        (self.api, self.http) = serve(Config::default(), &self.kafka, past, &self.shutdown).await;
    }

    /// The record of an enriched turn.
    pub(crate) fn record(&self, turn: &Turn) -> Record {
        Record {
            topic: topic::TURNS_ENRICHED.to_owned(),
            key: Some(turn.conversation.clone().into_bytes()),
            value: Some(self.codec.encode(turn).unwrap()),
            headers: vec![
                ("correlationid".to_owned(), format!("said \"{}\"", turn.external_id).into_bytes()),
                ("traceparent".to_owned(), b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_vec()),
            ],
            // The sample's times are long past; by them the log would delete the record at once.
            timestamp: SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64,
            ..Record::default()
        }
    }

    /// Appends enriched turns to the log.
    pub(crate) async fn say(&self, turns: &[Turn]) {
        for appended in self.producer.append_all(turns.iter().map(|turn| self.record(turn)).collect()).await {
            appended.unwrap();
        }
    }

    /// Writes enriched turns into history.
    pub(crate) async fn keep(&self, turns: &[Turn]) {
        let row = |turn: &Turn| Row {
            conversation: turn.conversation.clone(),
            position: turn.position.unwrap(),
            id: turn.id,
            at: turn.at,
            person: turn.person(),
            value: self.codec.encode(turn).unwrap(),
        };
        self.history.upsert(turns.iter().map(row).collect()).await.unwrap();
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, Value) {
        let response = reqwest::get(format!("http://{}{path}", self.http)).await.unwrap();
        let status = response.status().as_u16();
        (status, serde_json::from_str(&response.text().await.unwrap()).unwrap())
    }

    pub(crate) async fn delete(&self, path: &str) -> (u16, Value) {
        let response = reqwest::Client::new().delete(format!("http://{}{path}", self.http)).send().await.unwrap();
        let status = response.status().as_u16();
        (status, serde_json::from_str(&response.text().await.unwrap()).unwrap())
    }

    pub(crate) async fn connect(&self, query: &str) -> Client {
        let url = format!("ws://{}/v1/stream{query}", self.http);
        Client { socket: tokio_tungstenite::connect_async(url).await.unwrap().0, resume: None }
    }
}

/// A shelf of its own, where `UNDERTONE_TEST_REDIS` names a Redis.
async fn shelf() -> Option<Shelf> {
    let settings = tests::redis(&format!("read-side-{}", Uuid::new_v4()))?;
    Some(Shelf::on(Redis::connect(settings, &opentelemetry::global::meter("test")).await.unwrap()))
}

async fn serve(config: Config, kafka: &Kafka, past: Past, shutdown: &CancellationToken) -> (Api, SocketAddr) {
    let meter = opentelemetry::global::meter("test");
    let api = Api::start(config, kafka, past, Registry::embedded(), &meter, Default::default(), shutdown.clone());
    let api = api.await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let http = listener.local_addr().unwrap();
    let router = api.router();
    tokio::spawn(async move { axum::serve(listener, router).await });
    (api, http)
}

/// A few turns of a conversation.
pub(crate) fn turns(conversation: &str, positions: std::ops::RangeInclusive<i64>) -> Vec<Turn> {
    positions.map(|position| sample::turn(conversation, position, &format!("turn {position}"))).collect()
}

/// A client of `/v1/stream` that keeps its token.
pub(crate) struct Client {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    pub(crate) resume: Option<String>,
}

impl Client {
    pub(crate) async fn send(&mut self, frame: Value) {
        self.socket.send(Message::text(frame.to_string())).await.unwrap();
    }

    /// Follows conversations with the token, if there is one.
    pub(crate) async fn follow(&mut self, conversations: &[&str], resume: Option<&str>) {
        self.send(json!({ "type": "follow", "conversations": conversations, "resume": resume })).await;
    }

    /// The next message; a close as `{"close": code}`, the end of the connection as `{"close": null}`.
    pub(crate) async fn next(&mut self) -> Value {
        loop {
            match self.socket.next().await {
                Some(Ok(Message::Text(text))) => {
                    let message: Value = serde_json::from_str(&text).unwrap();
                    if let Some(resume) = message["resume"].as_str() {
                        self.resume = Some(resume.to_owned());
                    }
                    return message;
                }
                Some(Ok(Message::Close(Some(frame)))) => return json!({ "close": u16::from(frame.code) }),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                _ => return json!({ "close": null }),
            }
        }
    }

    /// The next message, which must be a turn: its conversation and position.
    pub(crate) async fn turn(&mut self) -> (String, i64) {
        let message = self.next().await;
        assert_eq!(message["type"], "turn", "{message}");
        place(&message)
    }
}

pub(crate) fn place(message: &Value) -> (String, i64) {
    let turn = &message["turn"];
    (turn["conversation"].as_str().unwrap().to_owned(), turn["position"].as_i64().unwrap())
}
