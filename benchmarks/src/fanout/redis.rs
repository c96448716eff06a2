//! What the program would need of a Redis to hand turns on: a publisher, and the two ways to receive.

use std::collections::BTreeMap;
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::{AsyncConnectionConfig, Client, PushInfo, PushKind, Value, cmd};
use anyhow::Context as _;
use store::log::{Message, Tail};
use tokio::sync::mpsc;

use super::{PARTITIONS, Way};

/// Records that are handed on at once.
const BATCH_MAX: usize = 256;
/// Entries that a stream keeps, about; and that are read at once.
const STREAM_ENTRIES: usize = 10_000;
const READ_MAX: usize = 512;
/// How long a read of streams waits on the server.
const BLOCK_MS: usize = 500;
/// In front of all keys and channels.
const PREFIX: &str = "fanout:";

fn client(address: &str) -> anyhow::Result<Client> {
    Client::open(format!("redis://{address}/?protocol=resp3")).context("read the address of the Redis")
}

async fn connect(address: &str) -> anyhow::Result<MultiplexedConnection> {
    let config = AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(5)));
    client(address)?.get_multiplexed_async_connection_with_config(&config).await.context("connect to the Redis")
}

/// Reads the topic and hands each record on.
pub(super) async fn publish(mut tail: Tail, address: &str, way: Way) -> anyhow::Result<()> {
    let mut connection = connect(address).await?;
    loop {
        let mut batch = vec![tail.next().await.context("read the topic")?];
        while batch.len() < BATCH_MAX
            && let Ok(next) = tokio::time::timeout(Duration::ZERO, tail.next()).await
        {
            batch.push(next.context("read the topic")?);
        }
        let mut commands = ::redis::pipe();
        for message in &batch {
            let packed = pack(message);
            if way == Way::Channels {
                let channel = [PREFIX.as_bytes(), message.key.as_deref().unwrap_or_default()].concat();
                commands.cmd("SPUBLISH").arg(channel).arg(packed).ignore();
            } else {
                let stream = format!("{PREFIX}{}", message.partition);
                commands.cmd("XADD").arg(stream).arg("MAXLEN").arg("~").arg(STREAM_ENTRIES);
                commands.arg("*").arg("v").arg(packed).ignore();
            }
        }
        commands.exec_async(&mut connection).await.context("hand turns to the Redis")?;
    }
}

/// Receives what was handed on.
pub(super) enum Source {
    Channels { pushed: mpsc::UnboundedReceiver<PushInfo>, _connection: MultiplexedConnection },
    Streams { connection: MultiplexedConnection, last: BTreeMap<String, String> },
}

impl Source {
    /// Follows the rooms' channels, or all streams.
    pub(super) async fn open(address: &str, way: Way, rooms: &[String]) -> anyhow::Result<Source> {
        if way == Way::Streams {
            let last = (0..PARTITIONS).map(|partition| (format!("{PREFIX}{partition}"), "0".to_owned())).collect();
            return Ok(Source::Streams { connection: connect(address).await?, last });
        }
        let (sender, pushed) = mpsc::unbounded_channel();
        let config = AsyncConnectionConfig::new().set_push_sender(sender);
        let connection = client(address)?.get_multiplexed_async_connection_with_config(&config).await;
        let mut connection = connection.context("connect to the Redis")?;
        let channels: Vec<String> = rooms.iter().map(|room| format!("{PREFIX}{room}")).collect();
        cmd("SSUBSCRIBE").arg(channels).exec_async(&mut connection).await.context("follow the rooms")?;
        Ok(Source::Channels { pushed, _connection: connection })
    }

    /// The next records; may be none.
    pub(super) async fn next(&mut self) -> anyhow::Result<Vec<Message>> {
        match self {
            Source::Channels { pushed, .. } => {
                let PushInfo { kind, data } = pushed.recv().await.context("the Redis has closed the connection")?;
                anyhow::ensure!(kind != PushKind::Disconnection, "the Redis has closed the connection");
                match (kind, data.last()) {
                    (PushKind::SMessage, Some(Value::BulkString(bytes))) => Ok(unpack(bytes).into_iter().collect()),
                    _ => Ok(Vec::new()),
                }
            }
            Source::Streams { connection, last } => {
                let mut read = cmd("XREAD");
                read.arg("COUNT").arg(READ_MAX).arg("BLOCK").arg(BLOCK_MS).arg("STREAMS");
                read.arg(last.keys().collect::<Vec<_>>()).arg(last.values().collect::<Vec<_>>());
                let found: Value = read.query_async(connection).await.context("read the streams")?;
                let mut messages = Vec::new();
                let Value::Map(streams) = found else { return Ok(messages) };
                for (stream, entries) in streams {
                    let (Value::BulkString(stream), Value::Array(entries)) = (stream, entries) else { continue };
                    for entry in entries {
                        let Value::Array(entry) = entry else { continue };
                        let [Value::BulkString(id), Value::Array(fields)] = &entry[..] else { continue };
                        let id = String::from_utf8_lossy(id).into_owned();
                        last.insert(String::from_utf8_lossy(&stream).into_owned(), id);
                        if let Some(Value::BulkString(bytes)) = fields.get(1) {
                            messages.extend(unpack(bytes));
                        }
                    }
                }
                Ok(messages)
            }
        }
    }
}

/// Partition, offset, and the two headers that streams show, in front of the value.
fn pack(message: &Message) -> Vec<u8> {
    let mut packed = Vec::with_capacity(2048);
    packed.extend(message.partition.to_le_bytes());
    packed.extend(message.offset.to_le_bytes());
    for name in ["correlationid", "traceparent"] {
        let text = message.header(name).unwrap_or_default();
        packed.push(text.len().min(255) as u8);
        packed.extend(&text.as_bytes()[..text.len().min(255)]);
    }
    packed.extend(message.value.as_deref().unwrap_or_default());
    packed
}

fn unpack(mut packed: &[u8]) -> Option<Message> {
    let mut take = |length: usize| {
        let (taken, rest) = packed.split_at_checked(length)?;
        packed = rest;
        Some(taken)
    };
    let partition = i32::from_le_bytes(take(4)?.try_into().ok()?);
    let offset = i64::from_le_bytes(take(8)?.try_into().ok()?);
    let mut headers = Vec::new();
    for name in ["correlationid", "traceparent"] {
        let length = usize::from(*take(1)?.first()?);
        headers.push((name.to_owned(), take(length)?.to_vec()));
    }
    let value = Some(packed.to_vec());
    Some(Message { topic: "".into(), partition, offset, timestamp: 0, key: None, value, headers })
}

/// Removes what an earlier run left.
pub(super) fn forget(address: &str) -> anyhow::Result<()> {
    let mut connection = client(address)?.get_connection().context("connect to the Redis")?;
    let streams: Vec<String> = (0..PARTITIONS).map(|partition| format!("{PREFIX}{partition}")).collect();
    cmd("DEL").arg(streams).exec(&mut connection).context("remove the streams")
}

/// What the server says that it has used of the processors, in seconds.
pub(super) fn cpu_seconds(address: &str) -> anyhow::Result<f64> {
    let mut connection = client(address)?.get_connection().context("connect to the Redis")?;
    let told: ::redis::InfoDict = cmd("INFO").arg("cpu").query(&mut connection).context("ask the Redis")?;
    let part = |name: &str| told.get::<f64>(name).with_context(|| format!("the Redis says {name}"));
    Ok(part("used_cpu_user")? + part("used_cpu_sys")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_out_as_it_went_in() {
        let headers =
            vec![("correlationid".to_owned(), b"17-1".to_vec()), ("traceparent".to_owned(), b"00-0a-0b-00".to_vec())];
        let value = Some(b"value".to_vec());
        let message = Message { topic: "".into(), partition: 3, offset: 77, timestamp: 0, key: None, value, headers };
        assert_eq!(unpack(&pack(&message)), Some(message));
        assert_eq!(unpack(b"short"), None);
    }
}
