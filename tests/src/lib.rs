//! What the tests of the whole system share: a server of the log, embedded or real, Undertone's topics on it, history and
//! contexts in memory or on real servers, writers and readers of turns.

mod cassandra;
mod redis;
mod server;

pub mod certificates;
pub mod fuzz;
pub mod proxy;
pub mod registry;
pub mod role;
pub mod toy;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

pub use cassandra::{cassandra, contexts, history};
pub use redis::{cached, redis};
use schemas::{Codec, Erasure, Payload, Turn};
pub use server::Server;
use store::log::{Admin, From, Kafka, Message, Place, Producer, ProducerLimits, Record, Tail, TopicSpec};
use uuid::Uuid;

/// Partitions of the topics that a program makes on an Apache Kafka under test: it takes its time for each, and the next
/// test removes them.
pub const APACHE_PARTITIONS: i32 = 2;

/// Longest wait for anything in a test; reaching it is a failure.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How often the end of a topic is looked for while no record comes.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A log with Undertone's topics.
pub struct Log {
    /// What it runs on.
    pub server: Server,
    /// How to reach it.
    pub kafka: Kafka,
    /// Reads and writes values.
    pub codec: Arc<Codec>,
    producer: Producer,
}

impl Log {
    /// A fresh one. On an Apache Kafka a test has one at a time.
    pub async fn start(partitions: i32, cuts: &[&str]) -> Log {
        let server = Server::start().await;
        let kafka = server.kafka.clone();
        Admin::connect(&kafka).expect("connect").create(&topics(partitions, cuts)).await.expect("create topics");
        let producer = Producer::connect(&kafka, &ProducerLimits::default()).expect("connect");
        Log { server, kafka, codec: Arc::new(Codec::embedded()), producer }
    }

    /// Forgets how many partitions there are, as an intake that is started again does.
    pub fn reconnect(&mut self) {
        self.producer = Producer::connect(&self.kafka, &ProducerLimits::default()).expect("connect");
    }

    /// A folder for the test's other files.
    pub fn folder(&self) -> &std::path::Path {
        self.server.folder()
    }

    /// Appends a turn to `turns.received`, as intake does.
    pub async fn say(&self, turn: &Turn) -> Place {
        self.append(turn.conversation.as_bytes(), self.codec.encode(turn).expect("a turn fits its schema")).await
    }

    /// Appends any bytes to `turns.received`.
    pub async fn append(&self, key: &[u8], value: Vec<u8>) -> Place {
        let record = Record {
            topic: schemas::topic::TURNS_RECEIVED.to_owned(),
            partition: None,
            key: Some(key.to_vec()),
            value: Some(value),
            headers: Vec::new(),
            timestamp: now(),
        };
        self.producer.append(record).await.expect("the broker acknowledges")
    }

    /// Writes down that a conversation was forgotten, or some of its turns.
    pub async fn forget(&self, conversation: &str, turns: &[Uuid]) {
        let turns = turns.iter().map(Uuid::to_string).collect();
        let (conversation, id) = (Some(conversation.to_owned()), Uuid::new_v4());
        let erasure = Erasure { id, at: now(), conversation, person: None, turns };
        let record = Record {
            topic: schemas::topic::ERASURES.to_owned(),
            key: Some(id.to_string().into_bytes()),
            value: Some(self.codec.encode(&erasure).expect("an erasure fits its schema")),
            timestamp: now(),
            ..Record::default()
        };
        self.producer.append(record).await.expect("the broker acknowledges");
    }

    /// Reads a topic from its beginning, committed records only, until `count` have come.
    pub async fn read<T: Payload>(&self, topic: &str, count: usize) -> Vec<(Message, T)> {
        let mut tail = Tail::open(&self.kafka, topic, From::Beginning).await.expect("open a tail");
        let mut values = Vec::with_capacity(count);
        while values.len() < count {
            let message = tokio::time::timeout(PATIENCE, tail.next()).await;
            let message = message.unwrap_or_else(|_| panic!("{topic}: {} of {count} records came", values.len()));
            let message = message.expect("the tail reads");
            let value = self.codec.decode(message.value.as_deref().expect("a value")).expect("a known schema");
            values.push((message, value));
        }
        values
    }

    /// How many records a topic holds, committed ones only.
    pub async fn count(&self, topic: &str) -> usize {
        let ends = Admin::connect(&self.kafka).expect("connect").offsets(topic).await.expect("the broker answers");
        let mut tail = Tail::open(&self.kafka, topic, From::Beginning).await.expect("open a tail");
        let mut records = 0;
        let reads = async {
            while tail.positions().iter().any(|(partition, next)| *next < ends[partition].1) {
                // The marks of transactions are passed without a record.
                if let Ok(read) = tokio::time::timeout(LOOK_AGAIN, tail.next()).await {
                    read.expect("the tail reads");
                    records += 1;
                }
            }
        };
        tokio::time::timeout(PATIENCE, reads).await.expect("the topic is read in time");
        records
    }
}

/// Undertone's topics, as a chain cut behind `cuts` needs them.
pub fn topics(partitions: i32, cuts: &[&str]) -> Vec<TopicSpec> {
    let spec = |topic: schemas::topic::Topic| TopicSpec {
        name: topic.name,
        partitions,
        replication: 1,
        config: BTreeMap::from([("max.message.bytes".to_owned(), topic.max_message_bytes.to_string())]),
    };
    schemas::topic::wanted(cuts).into_iter().map(spec).collect()
}

/// A stage that adds nothing.
#[derive(Debug)]
pub struct Nothing;

impl processors::Stage for Nothing {
    type Slice = schemas::slice::EmotionSlice;

    fn name(&self) -> &'static str {
        "nothing"
    }

    fn infer(&self, _: &mut [Turn]) -> Result<(), processors::Failure> {
        Ok(())
    }

    fn fold(&self, _: &mut Self::Slice, _: &mut Turn) -> Result<(), processors::Failure> {
        Ok(())
    }
}

/// A turn of a web conversation.
pub fn turn(conversation: &str, client_id: &str, text: &str) -> Turn {
    Turn {
        chat_kind: Some("room".to_owned()),
        ..Turn::message("websocket", conversation, "ann", client_id, text, now())
    }
}

/// Milliseconds since the Unix epoch.
pub fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("the clock is past 1970");
    i64::try_from(since.as_millis()).expect("the clock is before the year 292 million")
}
