//! Fetch: waits until there is enough to read, or for as long as the client allows, then reads.
//!
//! Waiting costs no file access and no memory for records; appends and ends of transactions wake it. Fetch sessions
//! (KIP-227) are not offered: clients name all partitions each time.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::fetch_request::FetchPartition;
use kafka_protocol::messages::fetch_response::{AbortedTransaction, FetchableTopicResponse, PartitionData};
use kafka_protocol::messages::{BrokerId, FetchRequest, FetchResponse, ProducerId};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use super::{Call, Unreadable, check_leader_epoch};
use crate::connection::{Answer, take};
use crate::log::{Offsets, Read};
use crate::node::{Node, PERMIT_BYTES, Topic};

/// A client that asks to wait longer is answered after this time.
const WAIT_MAX: Duration = Duration::from_secs(60);
const READ_COMMITTED: i8 = 1;
/// A fetch gets this much even when memory is scarce; it waits if there is not that much.
const SHARE_BYTES_MIN: usize = 64 * 1024;
/// What lies this near to the end of a partition was appended a moment ago.
const RECENT_BYTES_MAX: u64 = 128 * 1024;

pub(super) async fn serve(node: &Arc<Node>, mut call: Call) -> Result<Answer, Unreadable> {
    let request: Arc<FetchRequest> = Arc::new(call.decode()?);
    if request.session_epoch > 0 {
        // A session of another broker; the client begins anew without one.
        let error = ResponseError::FetchSessionIdNotFound.code();
        return call.answer(&FetchResponse::default().with_error_code(error));
    }
    let wait = Duration::from_millis(u64::try_from(request.max_wait_ms).unwrap_or(0)).min(WAIT_MAX);
    let until = Instant::now() + wait;
    let bytes_max = usize::try_from(request.max_bytes).unwrap_or(0).clamp(1, node.config.fetch_bytes_max);
    let enough = usize::try_from(request.min_bytes).unwrap_or(0).min(bytes_max);
    let changed = Arc::new(Notify::new());
    loop {
        let state = look(node, &request, &changed);
        let last = Instant::now() >= until || node.closing.is_cancelled() || state == State::Failing || enough == 0;
        if state != State::Nothing || last {
            let share = share(node, bytes_max);
            let (memory, (response, bytes)) = if state == State::Nothing {
                (None, read(node, &request, 0))
            } else {
                let memory = take(&node.fetch_memory, share).await;
                let asked = request.clone();
                // What was just written is in the page cache: to read it here is faster than to hand it on.
                let read = if all_are_recent(node, &request) {
                    read(node, &request, share)
                } else {
                    node.io(move |node| read(node, &asked, share)).await
                };
                (memory, read)
            };
            if bytes >= enough || last || (bytes > 0 && share < bytes_max) {
                let mut answer = call.answer(&response)?;
                // What the records did not need is free for others at once.
                answer.memory =
                    memory.and_then(|mut memory| memory.split(bytes.div_ceil(PERMIT_BYTES)).or(Some(memory)));
                return Ok(answer);
            }
        }
        tokio::select! {
            _ = timeout_at(until, changed.notified()) => {}
            () = node.closing.cancelled() => {}
        }
    }
}

/// How much of `bytes_max` a fetch gets: the less memory is free, the less, so that readers who take their answers
/// slowly, and hold the memory meanwhile, leave some for the others.
fn share(node: &Node, bytes_max: usize) -> usize {
    let free = node.fetch_memory.available_permits() * PERMIT_BYTES;
    bytes_max.min((free / 4).max(SHARE_BYTES_MIN))
}

/// Whether everything that would be read was appended a moment ago.
fn all_are_recent(node: &Node, request: &FetchRequest) -> bool {
    request.topics.iter().all(|topic| {
        let Ok(meant) = node.topic_meant(&topic.topic, topic.topic_id) else { return true };
        topic.partitions.iter().all(|asked| {
            let log = meant.partition(asked.partition);
            log.is_none_or(|log| log.bytes_behind(asked.fetch_offset) <= RECENT_BYTES_MAX)
        })
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Nothing,
    Something,
    /// A partition has an error, which the client is told at once.
    Failing,
}

/// Whether there is anything to answer; `changed` is told when that may be otherwise.
fn look(node: &Node, request: &FetchRequest, changed: &Arc<Notify>) -> State {
    let committed_only = request.isolation_level == READ_COMMITTED;
    let mut state = State::Nothing;
    for topic in &request.topics {
        let Ok(meant) = node.topic_meant(&topic.topic, topic.topic_id) else { return State::Failing };
        for asked in &topic.partitions {
            let Some(log) = meant.partition(asked.partition) else { return State::Failing };
            let offsets = log.watch(changed, committed_only);
            let within = (offsets.start..=offsets.end).contains(&asked.fetch_offset);
            if !within || check_leader_epoch(asked.current_leader_epoch).is_err() {
                return State::Failing;
            }
            if asked.fetch_offset < offsets.limit(committed_only) {
                state = State::Something;
            }
        }
    }
    state
}

/// Reads up to `bytes_max` in all, but at least one batch unless that is 0. Returns the bytes of records as well.
fn read(node: &Node, request: &FetchRequest, bytes_max: usize) -> (FetchResponse, usize) {
    let committed_only = request.isolation_level == READ_COMMITTED;
    let mut left = bytes_max;
    let mut responses = Vec::with_capacity(request.topics.len());
    for topic in &request.topics {
        let meant = node.topic_meant(&topic.topic, topic.topic_id);
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for asked in &topic.partitions {
            let data = match &meant {
                Ok(topic) => read_one(topic, asked, committed_only, left),
                Err(error) => failing(*error, None),
            };
            left = left.saturating_sub(data.records.as_ref().map_or(0, Bytes::len));
            partitions.push(data.with_partition_index(asked.partition).with_preferred_read_replica(BrokerId(-1)));
        }
        let response = FetchableTopicResponse::default().with_topic(topic.topic.clone()).with_topic_id(topic.topic_id);
        responses.push(response.with_partitions(partitions));
    }
    (FetchResponse::default().with_responses(responses), bytes_max - left)
}

fn read_one(topic: &Topic, asked: &FetchPartition, committed_only: bool, left: usize) -> PartitionData {
    let Some(log) = topic.partition(asked.partition) else {
        return failing(ResponseError::UnknownTopicOrPartition, None);
    };
    let most = usize::try_from(asked.partition_max_bytes).unwrap_or(0).clamp(1, left.max(1));
    let offsets = log.offsets();
    if let Err(error) = check_leader_epoch(asked.current_leader_epoch) {
        return failing(error, Some(offsets));
    }
    if !(offsets.start..=offsets.end).contains(&asked.fetch_offset) {
        return failing(ResponseError::OffsetOutOfRange, Some(offsets));
    }
    let read = if left == 0 {
        Ok(Read { records: Bytes::new(), aborted: Vec::new() })
    } else {
        log.read(asked.fetch_offset, committed_only, most)
    };
    match read {
        Ok(read) => filled(read, offsets, committed_only),
        Err(error) => {
            tracing::warn!(topic = topic.name, partition = asked.partition, %error, "read a log");
            // A client tries again after an error of the disk; damage it must be told of.
            let damaged = error.kind() == std::io::ErrorKind::InvalidData;
            let told = if damaged { ResponseError::CorruptMessage } else { ResponseError::KafkaStorageError };
            failing(told, Some(offsets))
        }
    }
}

fn filled(read: Read, offsets: Offsets, committed_only: bool) -> PartitionData {
    let aborted = read.aborted.into_iter().map(|aborted| {
        let transaction = AbortedTransaction::default().with_first_offset(aborted.first);
        transaction.with_producer_id(ProducerId(aborted.producer_id))
    });
    PartitionData::default()
        .with_high_watermark(offsets.end)
        .with_last_stable_offset(offsets.stable)
        .with_log_start_offset(offsets.start)
        .with_aborted_transactions(committed_only.then(|| aborted.collect()))
        .with_records(Some(read.records))
}

fn failing(error: ResponseError, offsets: Option<Offsets>) -> PartitionData {
    let offsets = offsets.unwrap_or(Offsets { start: -1, end: -1, stable: -1 });
    PartitionData::default()
        .with_error_code(error.code())
        .with_high_watermark(offsets.end)
        .with_last_stable_offset(offsets.stable)
        .with_log_start_offset(offsets.start)
        .with_records(Some(Bytes::new()))
}
