//! The turns: as the processors write them, in an open loop or as fast as they go.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer};
use schemas::{Codec, Embedding, Envelope, TraceParent, Turn, topic};
use store::log::{Admin, Kafka, TopicSpec};

use super::{PARTITIONS, ROOMS};
use crate::latency::{Schedule, clock, sleep_until};

/// Turns that are sent as fast as they go: as many as a Redis keeps for a subscriber that is slower (32 MB).
pub(super) const BURST: u64 = 16_000;
const FLUSH_WITHIN: Duration = Duration::from_secs(30);
/// Numbers of the encoder's vectors.
const DIMENSION: usize = 384;

pub(super) struct Load {
    producer: ThreadedProducer<DefaultProducerContext>,
    codec: Codec,
    turn: Turn,
}

/// What a record is made of.
struct Said {
    key: String,
    value: Vec<u8>,
    headers: Vec<(&'static str, String)>,
}

/// The name of a conversation.
pub(super) fn room(number: usize) -> String {
    format!("telegram:helper:{number}")
}

impl Load {
    /// Makes the topic.
    pub(super) fn open(bootstrap: &str) -> anyhow::Result<Load> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")?;
        let kafka = Kafka { bootstrap: bootstrap.to_owned(), ..Kafka::default() };
        let spec = TopicSpec {
            name: topic::TURNS_ENRICHED.to_owned(),
            partitions: PARTITIONS,
            replication: 1,
            config: BTreeMap::new(),
        };
        runtime.block_on(Admin::connect(&kafka)?.create(&[spec])).context("create the topic")?;
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", bootstrap)
            .set("socket.nagle.disable", "true")
            .set("linger.ms", "0")
            .set("compression.codec", "lz4")
            .set("partitioner", "murmur2_random")
            .set("enable.metrics.push", "false");
        let producer = config.create().context("make a producer")?;
        let example = include_str!("../../../schemas/avro/examples/turn.json");
        let mut turn: Turn = serde_json::from_str(example).context("the example is a turn")?;
        if let Some(encoding) = &mut turn.encoding {
            let vector: Vec<f32> = (0..DIMENSION).map(|n| ((n * 37 % 101) as f32 - 50.0) / 500.0).collect();
            encoding.embedding = Embedding::quantise(&vector);
        }
        Ok(Load { producer, codec: Codec::embedded(), turn })
    }

    /// Bytes of a record's key, value and headers, uncompressed.
    pub(super) fn record_bytes(&self) -> anyhow::Result<usize> {
        let Said { key, value, headers } = self.record(0, 0, true)?;
        let headers: usize = headers.iter().map(|(name, value)| name.len() + value.len()).sum();
        Ok(key.len() + value.len() + headers)
    }

    /// Sends so many turns, the rooms in turn, and waits until the broker has them; how many that were.
    pub(super) fn send(&self, turns: u64, per_second: u32, counts: bool) -> anyhow::Result<u64> {
        let schedule = Schedule { start: clock(), per_second: u64::from(per_second.max(1)) };
        for number in 0..turns {
            if per_second > 0 {
                sleep_until(schedule.due(number));
            }
            let (room, position) = (number as usize % ROOMS, number as i64 / ROOMS as i64 + 1);
            let Said { key, value, headers: texts } = self.record(room, position, counts)?;
            let mut headers = OwnedHeaders::new();
            for (key, value) in &texts {
                headers = headers.insert(Header { key, value: Some(value) });
            }
            let record = BaseRecord::to(topic::TURNS_ENRICHED).key(&key).payload(&value).headers(headers);
            self.producer.send(record).map_err(|(error, _)| error).context("append a turn")?;
        }
        self.producer.flush(FLUSH_WITHIN).context("append the turns")?;
        Ok(turns)
    }

    fn record(&self, number: usize, position: i64, counts: bool) -> anyhow::Result<Said> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let received_at = now.as_millis() as i64;
        let turn = Turn { conversation: room(number), position: Some(position), received_at, ..self.turn.clone() };
        let envelope = Envelope {
            id: turn.id.to_string(),
            source: "/processors/sequence+encode+emotion".to_owned(),
            kind: "dev.undertone.turn.enriched.v1".to_owned(),
            time: received_at,
            // The moment travels to the follower in it.
            correlation_id: format!("{}-{}", now.as_nanos(), u8::from(counts)),
            trace: Some(TraceParent { flags: 0, ..TraceParent::root(turn.id) }),
        };
        let value = self.codec.encode(&turn)?;
        Ok(Said { key: turn.conversation, value, headers: envelope.headers() })
    }
}
