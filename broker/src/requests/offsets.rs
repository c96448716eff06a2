//! Offsets: of the log (by position or time), and those that groups commit.

use std::collections::BTreeMap;
use std::time::Instant;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::list_offsets_response::{ListOffsetsPartitionResponse, ListOffsetsTopicResponse};
use kafka_protocol::messages::offset_commit_response::{OffsetCommitResponsePartition, OffsetCommitResponseTopic};
use kafka_protocol::messages::offset_fetch_response::{OffsetFetchResponsePartition, OffsetFetchResponseTopic};
use kafka_protocol::messages::offset_for_leader_epoch_response::{EpochEndOffset, OffsetForLeaderTopicResult};
use kafka_protocol::messages::{
    ListOffsetsRequest, ListOffsetsResponse, OffsetCommitRequest, OffsetCommitResponse, OffsetFetchRequest,
    OffsetFetchResponse, OffsetForLeaderEpochRequest, OffsetForLeaderEpochResponse,
};

use super::{text, topic_name};
use crate::groups::Claim;
use crate::metadata::{Committed, Entry, GroupOffset};
use crate::node::Node;

/// Longest text that may be committed with an offset, in bytes; as in Apache Kafka.
pub(super) const OFFSET_METADATA_BYTES_MAX: usize = 4096;
const LATEST: i64 = -1;
const EARLIEST: i64 = -2;

/// For I/O threads.
pub(super) fn list(node: &Node, request: &ListOffsetsRequest, version: i16) -> ListOffsetsResponse {
    let committed_only = request.isolation_level == 1;
    let one = |topic: &str, partition: i32, timestamp_ms: i64| {
        let log = node.partition(topic, partition).ok_or(ResponseError::UnknownTopicOrPartition)?;
        let offsets = log.offsets();
        match timestamp_ms {
            LATEST => Ok((offsets.limit(committed_only), -1)),
            EARLIEST => Ok((offsets.start, -1)),
            time if time < 0 => Err(ResponseError::UnsupportedVersion),
            time => match log.find_time(time, committed_only) {
                Ok(found) => Ok(found.unwrap_or((-1, -1))),
                Err(error) => {
                    tracing::warn!(topic, partition, %error, "look for a time");
                    Err(ResponseError::KafkaStorageError)
                }
            },
        }
    };
    let topics = request.topics.iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|asked| {
            let found = one(&topic.name, asked.partition_index, asked.timestamp);
            let (offset, timestamp_ms) = found.unwrap_or((-1, -1));
            ListOffsetsPartitionResponse::default()
                .with_partition_index(asked.partition_index)
                .with_error_code(super::code(&found))
                .with_offset(offset)
                .with_timestamp(timestamp_ms)
                .with_leader_epoch(if version >= 4 { 0 } else { -1 })
        });
        ListOffsetsTopicResponse::default().with_name(topic.name.clone()).with_partitions(partitions.collect())
    });
    ListOffsetsResponse::default().with_topics(topics.collect())
}

pub(super) fn for_leader_epoch(node: &Node, request: &OffsetForLeaderEpochRequest) -> OffsetForLeaderEpochResponse {
    let topics = request.topics.iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|asked| {
            let end = EpochEndOffset::default().with_partition(asked.partition);
            match node.partition(&topic.topic, asked.partition) {
                Some(log) => end.with_leader_epoch(0).with_end_offset(log.offsets().end),
                None => end.with_error_code(ResponseError::UnknownTopicOrPartition.code()),
            }
        });
        OffsetForLeaderTopicResult::default().with_topic(topic.topic.clone()).with_partitions(partitions.collect())
    });
    OffsetForLeaderEpochResponse::default().with_topics(topics.collect())
}

/// For I/O threads. The metadata is locked before the group is asked, so that what was allowed is written before the
/// next owner of the partition can read or commit.
pub(super) fn commit(node: &Node, request: &OffsetCommitRequest) -> OffsetCommitResponse {
    let mut metadata = node.metadata();
    let claim = Claim {
        member: &request.member_id,
        instance: request.group_instance_id.as_deref(),
        generation: request.generation_id_or_member_epoch,
    };
    let mut allowed = node.groups().may_commit(&request.group_id, claim, Instant::now());
    if metadata.state().offsets_count() >= node.config.group_offsets_max {
        tracing::warn!("as many committed offsets as the broker keeps, refusing more; delete groups that are not used");
        allowed = allowed.and(Err(ResponseError::InvalidCommitOffsetSize));
    }
    let mut offsets = Vec::new();
    let mut topics = Vec::new();
    for topic in &request.topics {
        let mut partitions = Vec::new();
        for asked in &topic.partitions {
            let text = asked.committed_metadata.as_ref().map(|text| text.to_string());
            let result = if text.as_ref().is_some_and(|text| text.len() > OFFSET_METADATA_BYTES_MAX) {
                Err(ResponseError::OffsetMetadataTooLarge)
            } else if node.partition(&topic.name, asked.partition_index).is_none() {
                allowed.and(Err(ResponseError::UnknownTopicOrPartition))
            } else {
                allowed
            };
            if result.is_ok() {
                offsets.push(GroupOffset {
                    group: request.group_id.to_string(),
                    topic: topic.name.to_string(),
                    partition: asked.partition_index,
                    committed: Committed {
                        offset: asked.committed_offset,
                        leader_epoch: asked.committed_leader_epoch,
                        metadata: text,
                    },
                });
            }
            let response = OffsetCommitResponsePartition::default().with_partition_index(asked.partition_index);
            partitions.push(response.with_error_code(super::code(&result)));
        }
        topics.push(OffsetCommitResponseTopic::default().with_name(topic.name.clone()).with_partitions(partitions));
    }
    if !offsets.is_empty()
        && let Err(error) = metadata.append(Entry::Offsets(offsets))
    {
        tracing::warn!(%error, "write committed offsets");
        for partition in topics.iter_mut().flat_map(|topic| &mut topic.partitions) {
            partition.error_code = ResponseError::CoordinatorNotAvailable.code();
        }
    }
    OffsetCommitResponse::default().with_topics(topics)
}

/// For I/O threads.
pub(super) fn fetch(node: &Node, request: &OffsetFetchRequest, version: i16) -> OffsetFetchResponse {
    let metadata = node.metadata();
    let state = metadata.state();
    let group = request.group_id.as_str();
    let none = BTreeMap::new();
    let committed = state.offsets.get(group).unwrap_or(&none);
    let asked: Vec<(String, Vec<i32>)> = match &request.topics {
        Some(topics) => topics.iter().map(|t| (t.name.to_string(), t.partition_indexes.clone())).collect(),
        None => {
            let mut all: BTreeMap<String, Vec<i32>> = BTreeMap::new();
            for (topic, partition) in committed.keys() {
                all.entry(topic.clone()).or_default().push(*partition);
            }
            all.into_iter().collect()
        }
    };
    let open = state.transactions.values().flat_map(|transaction| &transaction.offsets);
    let open: Vec<&GroupOffset> = open.filter(|offset| request.require_stable && offset.group == group).collect();
    let topics = asked.into_iter().map(|(topic, partitions)| {
        let partitions = partitions.into_iter().map(|partition| {
            let response = OffsetFetchResponsePartition::default()
                .with_partition_index(partition)
                .with_committed_leader_epoch(-1)
                .with_committed_offset(-1)
                .with_metadata(Some(text("")));
            if open.iter().any(|offset| offset.topic == topic && offset.partition == partition) {
                return response.with_error_code(ResponseError::UnstableOffsetCommit.code());
            }
            match committed.get(&(topic.clone(), partition)) {
                Some(committed) => response
                    .with_committed_offset(committed.offset)
                    .with_committed_leader_epoch(if version >= 5 { committed.leader_epoch } else { -1 })
                    .with_metadata(Some(text(committed.metadata.clone().unwrap_or_default()))),
                None => response,
            }
        });
        OffsetFetchResponseTopic::default().with_name(topic_name(&topic)).with_partitions(partitions.collect())
    });
    OffsetFetchResponse::default().with_topics(topics.collect())
}
