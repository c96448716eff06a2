//! What the tests of intake share: a log, an intake in front of it on a free port, and clients.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use ingest::{Bot, Config, Ingest};
use schemas::{Codec, Turn, topic};
use serde_json::{Value, json};
use store::log::{Admin, From, Kafka, Message, Producer, ProducerLimits, Tail, TopicSpec};
use store::registry::Registry;
use tokio::net::TcpStream;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

pub(crate) const SECRET: &str = "open-sesame_7";

/// Longer than anything here takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

pub(crate) struct House {
    pub(crate) ingest: Ingest,
    pub(crate) codec: Arc<Codec>,
    pub(crate) client: reqwest::Client,
    kafka: Kafka,
    address: std::net::SocketAddr,
    server: tokio::task::JoinHandle<()>,
    broker: Option<broker::Broker>,
    dir: tempfile::TempDir,
}

impl Drop for House {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl House {
    pub(crate) async fn open() -> House {
        House::open_with(|_| {}).await
    }

    pub(crate) async fn open_with(change: impl FnOnce(&mut Config)) -> House {
        let dir = tempfile::tempdir().unwrap();
        let broker = broker::Broker::start(broker::Config::new(dir.path().join("log"))).await.unwrap();
        let kafka = Kafka { bootstrap: broker.bootstrap().to_string(), ..Kafka::default() };
        create_topics(&kafka).await;
        House::build(kafka, Some(broker), dir, &ProducerLimits::default(), change).await
    }

    /// A house whose log is not there: the port was free a moment ago. There is room for one short input, which is held
    /// for as long as the log may take to come.
    pub(crate) async fn without_log(delivery_timeout: Duration, change: impl FnOnce(&mut Config)) -> House {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let kafka = Kafka { bootstrap: free.to_string(), ..Kafka::default() };
        let limits = ProducerLimits { delivery_timeout, ..ProducerLimits::default() };
        let short = |config: &mut Config| {
            config.acknowledge_within = Duration::from_millis(50);
            config.in_flight_bytes_max = 2048;
            change(config);
        };
        House::build(kafka, None, tempfile::tempdir().unwrap(), &limits, short).await
    }

    /// The log comes, where it was looked for.
    pub(crate) async fn log_comes(&mut self) {
        let mut config = broker::Config::new(self.dir.path().join("log"));
        config.listen = self.kafka.bootstrap.parse().unwrap();
        self.broker = Some(broker::Broker::start(config).await.unwrap());
        create_topics(&self.kafka).await;
    }

    async fn build(
        kafka: Kafka,
        broker: Option<broker::Broker>,
        dir: tempfile::TempDir,
        limits: &ProducerLimits,
        change: impl FnOnce(&mut Config),
    ) -> House {
        let mut config = Config {
            body_bytes_max: 64 * 1024,
            retry_after: Duration::from_secs(7),
            data_dir: Some(dir.path().to_owned()),
            disk_free_bytes_min: 0,
            ..Config::default()
        };
        config.acknowledge_within = Duration::from_secs(20);
        config.websocket.frame_bytes_max = 16 * 1024;
        config.bots.insert("helper".to_owned(), Bot { webhook_secret: SECRET.to_owned().into() });
        change(&mut config);
        let registry = Registry::embedded();
        let codec = Arc::clone(registry.codec());
        let producer = Producer::connect(&kafka, limits).unwrap();
        let meter = opentelemetry::global::meter("test");
        let ingest = Ingest::new(config, producer, registry, &meter, Default::default());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = ingest.router();
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        House { ingest, codec, client: reqwest::Client::new(), kafka, address, server, broker, dir }
    }

    pub(crate) fn http(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn address(&self) -> std::net::SocketAddr {
        self.address
    }

    pub(crate) fn ws(&self) -> String {
        format!("ws://{}/ingest/ws", self.address)
    }

    pub(crate) async fn socket(&self) -> Socket {
        tokio_tungstenite::connect_async(self.ws()).await.unwrap().0
    }

    /// A call of a bot's webhook with the right secret.
    pub(crate) fn call(&self, bot: &str, body: Vec<u8>) -> reqwest::RequestBuilder {
        let url = format!("{}/telegram/{bot}/webhook", self.http());
        self.client.post(url).header("X-Telegram-Bot-Api-Secret-Token", SECRET).body(body)
    }

    /// All records of a topic, as far as it goes now.
    pub(crate) async fn records(&self, topic: &str) -> Vec<Message> {
        let mut tail = Tail::open(&self.kafka, topic, From::Beginning).await.unwrap();
        let wanted: i64 = tail.ends().await.unwrap().values().sum();
        let mut records = Vec::new();
        for _ in 0..wanted {
            records.push(tail.next().await.unwrap());
        }
        records
    }

    pub(crate) async fn turns(&self) -> Vec<Turn> {
        let records = self.records(topic::TURNS_RECEIVED).await;
        records.iter().map(|record| self.codec.decode(record.value.as_deref().unwrap()).unwrap()).collect()
    }
}

async fn create_topics(kafka: &Kafka) {
    let topics: Vec<TopicSpec> = topic::wanted(&[])
        .into_iter()
        .map(|topic| TopicSpec { name: topic.name, partitions: 2, replication: 1, config: Default::default() })
        .collect();
    Admin::connect(kafka).unwrap().create(&topics).await.unwrap();
}

/// Waits until intake holds so many bytes.
pub(crate) async fn held(house: &House, bytes: usize) {
    let reached = async {
        while house.ingest.in_flight_bytes() != bytes {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, reached).await.expect("in time");
}

/// The payload of a case of the parser's test.
pub(crate) fn update(case: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/telegram");
    std::fs::read(folder.join(format!("{case}.json"))).unwrap()
}

pub(crate) fn frame(id: &str, conversation: &str, text: &str) -> Value {
    json!({"id": id, "conversation": conversation, "sender": {"id": "ann", "name": "Ann"}, "text": text})
}

/// The next answer on a socket.
pub(crate) async fn next(socket: &mut Socket) -> Value {
    loop {
        let message = socket.next().await.expect("the socket is open").unwrap();
        if let Ok(text) = message.to_text()
            && message.is_text()
        {
            return serde_json::from_str(text).unwrap();
        }
    }
}
