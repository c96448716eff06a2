//! What all clients of the log share: settings, where librdkafka's own log lines go, calls that wait off the runtime.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers, Message as _};

use super::error::classify;
use super::{Kafka, LogError, Message};

/// How long a question to the brokers (metadata, offsets, commits) may take.
pub(crate) const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Time between two questions to a broker that does not lead yet.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Settings of every client.
pub(crate) fn base(kafka: &Kafka) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &kafka.bootstrap)
        .set("client.id", &kafka.client_id)
        // Idle connections are closed by the brokers as a matter of course.
        .set("log.connection.close", "false")
        .set("socket.nagle.disable", "true")
        // A broker that restarts is back within this time; the default waits up to ten seconds.
        .set("reconnect.backoff.ms", "50")
        .set("reconnect.backoff.max.ms", "1000")
        .set("enable.metrics.push", "false");
    kafka.security.set(&mut config);
    config
}

/// Settings of every consumer: committed records only, offsets by hand, bounded prefetch.
pub(crate) fn consumer(kafka: &Kafka, group: &str) -> ClientConfig {
    let mut config = base(kafka);
    config
        .set("group.id", group)
        .set("isolation.level", "read_committed")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "error")
        .set("allow.auto.create.topics", "false")
        .set("check.crcs", "true")
        // Memory for what was fetched ahead, for each partition; the default is 64 MiB.
        .set("queued.max.messages.kbytes", "8192")
        // When that is used up, look again soon; the default is a second.
        .set("fetch.queue.backoff.ms", "10")
        .set("fetch.error.backoff.ms", "50");
    config
}

/// Lets the configured properties win.
pub(crate) fn with_properties(mut config: ClientConfig, kafka: &Kafka) -> ClientConfig {
    for (key, value) in &kafka.properties {
        config.set(key, value);
    }
    config
}

/// Hands librdkafka's log lines to `tracing`.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Logged;

impl ClientContext for Logged {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
                tracing::error!(target: "librdkafka", facility, line, "client of the log");
            }
            RDKafkaLogLevel::Error | RDKafkaLogLevel::Warning => {
                tracing::warn!(target: "librdkafka", facility, line, "client of the log");
            }
            RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => {
                tracing::info!(target: "librdkafka", facility, line, "client of the log");
            }
            RDKafkaLogLevel::Debug => tracing::debug!(target: "librdkafka", facility, line, "client of the log"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        // Every call that suffers from it returns an error of its own; who consumes that one logs it.
        tracing::debug!(target: "librdkafka", %error, reason, "client of the log");
    }
}

impl ConsumerContext for Logged {}

/// Runs a call that waits for brokers on a thread where waiting is allowed.
pub(crate) async fn blocking<T, F>(call: F) -> Result<T, LogError>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, KafkaError> + Send + 'static,
{
    waiting(|| call().map_err(|error| classify(&error))).await
}

/// As [`blocking`], for a call that sorts its errors itself.
pub(crate) async fn waiting<T, F>(call: F) -> Result<T, LogError>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, LogError> + Send + 'static,
{
    match tokio::task::spawn_blocking(call).await {
        Ok(result) => result,
        Err(_) => Err(LogError::Transient("the runtime is shutting down".to_owned())),
    }
}

/// Drops a client where waiting is allowed: closing a consumer waits for brokers.
pub(crate) fn drop_aside<T: Send + 'static>(client: T) {
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) => drop(runtime.spawn_blocking(move || drop(client))),
        Err(_) => drop(client),
    }
}

/// The partitions of a topic, counted from 0.
pub(crate) fn partitions<C: ClientContext>(
    client: &rdkafka::client::Client<C>,
    topic: &str,
) -> Result<Vec<i32>, KafkaError> {
    let metadata = client.fetch_metadata(Some(topic), ANSWER_WITHIN)?;
    let found = metadata.topics().iter().find(|found| found.name() == topic);
    let unknown = || KafkaError::MetadataFetch(rdkafka::error::RDKafkaErrorCode::UnknownTopicOrPartition);
    let found = found.ok_or_else(unknown)?;
    if let Some(error) = found.error() {
        return Err(KafkaError::MetadataFetch(error.into()));
    }
    if found.partitions().is_empty() {
        return Err(unknown());
    }
    Ok(found.partitions().iter().map(rdkafka::metadata::MetadataPartition::id).collect())
}

/// Copies a message out of librdkafka. `topic` is the name that readers share.
pub(crate) fn owned(message: &BorrowedMessage<'_>, topic: &Arc<str>) -> Message {
    let headers = message.headers().map(|headers| {
        headers.iter().map(|header| (header.key.to_owned(), header.value.unwrap_or_default().to_vec())).collect()
    });
    let topic = if message.topic() == &**topic { Arc::clone(topic) } else { Arc::from(message.topic()) };
    Message {
        topic,
        partition: message.partition(),
        offset: message.offset(),
        timestamp: message.timestamp().to_millis().unwrap_or(0),
        key: message.key().map(<[u8]>::to_vec),
        value: message.payload().map(<[u8]>::to_vec),
        headers: headers.unwrap_or_default(),
    }
}
