//! Offsets: of the log (by position or time), and those that groups commit.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::list_offsets_request::ListOffsetsPartition;
use kafka_protocol::messages::list_offsets_response::{ListOffsetsPartitionResponse, ListOffsetsTopicResponse};
use kafka_protocol::messages::offset_commit_response::{OffsetCommitResponsePartition, OffsetCommitResponseTopic};
use kafka_protocol::messages::offset_delete_response::{OffsetDeleteResponsePartition, OffsetDeleteResponseTopic};
use kafka_protocol::messages::offset_fetch_response::{
    OffsetFetchResponseGroup, OffsetFetchResponsePartition, OffsetFetchResponsePartitions, OffsetFetchResponseTopic,
    OffsetFetchResponseTopics,
};
use kafka_protocol::messages::offset_for_leader_epoch_request::OffsetForLeaderPartition;
use kafka_protocol::messages::offset_for_leader_epoch_response::{EpochEndOffset, OffsetForLeaderTopicResult};
use kafka_protocol::messages::{
    ListOffsetsRequest, ListOffsetsResponse, OffsetCommitRequest, OffsetCommitResponse, OffsetDeleteRequest,
    OffsetDeleteResponse, OffsetFetchRequest, OffsetFetchResponse, OffsetForLeaderEpochRequest,
    OffsetForLeaderEpochResponse,
};
use kafka_protocol::protocol::StrBytes;

use super::{LEADER_EPOCH, check_leader_epoch, text, topic_name};
use crate::groups::Claim;
use crate::metadata::{Committed, Entry, GroupOffset, State};
use crate::node::Node;

/// Longest text that may be committed with an offset, in bytes; as in Apache Kafka.
pub(super) const OFFSET_METADATA_BYTES_MAX: usize = 4096;
const LATEST: i64 = -1;
const EARLIEST: i64 = -2;
/// The record with the largest timestamp.
const NEWEST: i64 = -3;
/// The first offset that is on this machine.
const EARLIEST_LOCAL: i64 = -4;
/// The last offset in tiered storage, of which there is none.
const LATEST_TIERED: i64 = -5;

/// For I/O threads.
pub(super) fn list(node: &Arc<Node>, request: &ListOffsetsRequest, version: i16) -> ListOffsetsResponse {
    let committed_only = request.isolation_level == 1;
    let one = |topic: &str, asked: &ListOffsetsPartition| {
        let partition = asked.partition_index;
        let log = node.partition(topic, partition).ok_or(ResponseError::UnknownTopicOrPartition)?;
        check_leader_epoch(asked.current_leader_epoch)?;
        let offsets = log.offsets();
        let found = match asked.timestamp {
            LATEST => Ok(Some((offsets.limit(committed_only), -1))),
            EARLIEST => Ok(Some((offsets.start, -1))),
            NEWEST if version >= 7 => log.find_newest(committed_only),
            EARLIEST_LOCAL if version >= 8 => Ok(Some((offsets.start, -1))),
            LATEST_TIERED if version >= 9 => Ok(None),
            time if time < 0 => return Err(ResponseError::UnsupportedVersion),
            time => log.find_time(time, committed_only),
        };
        found.map_err(|error| {
            tracing::warn!(topic, partition, %error, "look for a time");
            ResponseError::KafkaStorageError
        })
    };
    let topics = request.topics.iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|asked| {
            let found = one(&topic.name, asked);
            let (offset, timestamp_ms) = found.ok().flatten().unwrap_or((-1, -1));
            ListOffsetsPartitionResponse::default()
                .with_partition_index(asked.partition_index)
                .with_error_code(super::code(&found))
                .with_offset(offset)
                .with_timestamp(timestamp_ms)
                .with_leader_epoch(if version >= 4 && offset >= 0 { LEADER_EPOCH } else { -1 })
        });
        ListOffsetsTopicResponse::default().with_name(topic.name.clone()).with_partitions(partitions.collect())
    });
    ListOffsetsResponse::default().with_topics(topics.collect())
}

pub(super) fn for_leader_epoch(
    node: &Arc<Node>,
    request: &OffsetForLeaderEpochRequest,
    _version: i16,
) -> OffsetForLeaderEpochResponse {
    let end_of = |topic: &str, asked: &OffsetForLeaderPartition| {
        let log = node.partition(topic, asked.partition).ok_or(ResponseError::UnknownTopicOrPartition)?;
        check_leader_epoch(asked.current_leader_epoch)?;
        // An epoch that has not been is unknown, which is no error.
        let known = asked.leader_epoch == LEADER_EPOCH;
        Ok(if known { (LEADER_EPOCH, log.offsets().end) } else { (-1, -1) })
    };
    let topics = request.topics.iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|asked| {
            let found = end_of(&topic.topic, asked);
            let (epoch, end) = found.unwrap_or((-1, -1));
            EpochEndOffset::default()
                .with_partition(asked.partition)
                .with_error_code(super::code(&found))
                .with_leader_epoch(epoch)
                .with_end_offset(end)
        });
        OffsetForLeaderTopicResult::default().with_topic(topic.topic.clone()).with_partitions(partitions.collect())
    });
    OffsetForLeaderEpochResponse::default().with_topics(topics.collect())
}

/// For I/O threads. The metadata is locked before the group is asked, so that what was allowed is written before the
/// next owner of the partition can read or commit.
pub(super) fn commit(node: &Arc<Node>, request: &OffsetCommitRequest, _version: i16) -> OffsetCommitResponse {
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

/// For I/O threads. Since version 8 a request asks for several groups.
pub(super) fn fetch(node: &Arc<Node>, request: &OffsetFetchRequest, version: i16) -> OffsetFetchResponse {
    let metadata = node.metadata();
    let state = metadata.state();
    if version < 8 {
        let asked = request.topics.as_ref().map(|topics| {
            topics.iter().map(|topic| (topic.name.to_string(), topic.partition_indexes.clone())).collect()
        });
        let topics = offsets_of(state, &request.group_id, asked, request.require_stable);
        let topics = topics.into_iter().map(|(name, partitions)| {
            let partitions = partitions.into_iter().map(|found| {
                OffsetFetchResponsePartition::default()
                    .with_partition_index(found.partition)
                    .with_error_code(found.error)
                    .with_committed_offset(found.offset)
                    .with_committed_leader_epoch(if version >= 5 { found.leader_epoch } else { -1 })
                    .with_metadata(Some(found.metadata))
            });
            OffsetFetchResponseTopic::default().with_name(topic_name(&name)).with_partitions(partitions.collect())
        });
        return OffsetFetchResponse::default().with_topics(topics.collect());
    }
    let groups = request.groups.iter().map(|group| {
        let asked = group.topics.as_ref().map(|topics| {
            topics.iter().map(|topic| (topic.name.to_string(), topic.partition_indexes.clone())).collect()
        });
        let topics = offsets_of(state, &group.group_id, asked, request.require_stable);
        let topics = topics.into_iter().map(|(name, partitions)| {
            let partitions = partitions.into_iter().map(|found| {
                OffsetFetchResponsePartitions::default()
                    .with_partition_index(found.partition)
                    .with_error_code(found.error)
                    .with_committed_offset(found.offset)
                    .with_committed_leader_epoch(found.leader_epoch)
                    .with_metadata(Some(found.metadata))
            });
            OffsetFetchResponseTopics::default().with_name(topic_name(&name)).with_partitions(partitions.collect())
        });
        OffsetFetchResponseGroup::default().with_group_id(group.group_id.clone()).with_topics(topics.collect())
    });
    OffsetFetchResponse::default().with_groups(groups.collect())
}

/// What is committed for a partition; -1 if nothing is.
struct Found {
    partition: i32,
    error: i16,
    offset: i64,
    leader_epoch: i32,
    metadata: StrBytes,
}

/// The committed offsets of a group: all, or those asked for.
fn offsets_of(
    state: &State,
    group: &str,
    asked: Option<Vec<(String, Vec<i32>)>>,
    only_stable: bool,
) -> Vec<(String, Vec<Found>)> {
    let none = BTreeMap::new();
    let committed = state.offsets.get(group).unwrap_or(&none);
    let asked = asked.unwrap_or_else(|| {
        let mut all: BTreeMap<String, Vec<i32>> = BTreeMap::new();
        for (topic, partition) in committed.keys() {
            all.entry(topic.clone()).or_default().push(*partition);
        }
        all.into_iter().collect()
    });
    let open = state.transactions.values().flat_map(|transaction| &transaction.offsets);
    let open: Vec<&GroupOffset> = open.filter(|offset| only_stable && offset.group == group).collect();
    let found = |topic: &str, partition: i32| {
        let unstable = open.iter().any(|offset| offset.topic == topic && offset.partition == partition);
        let known = committed.get(&(topic.to_owned(), partition)).filter(|_| !unstable);
        Found {
            partition,
            error: if unstable { ResponseError::UnstableOffsetCommit.code() } else { 0 },
            offset: known.map_or(-1, |known| known.offset),
            leader_epoch: known.map_or(-1, |known| known.leader_epoch),
            metadata: text(known.and_then(|known| known.metadata.clone()).unwrap_or_default()),
        }
    };
    let each = asked.into_iter().map(|(topic, partitions)| {
        let partitions = partitions.into_iter().map(|partition| found(&topic, partition)).collect();
        (topic, partitions)
    });
    each.collect()
}

/// Deletes committed offsets of partitions that no member reads. For I/O threads.
pub(super) fn delete(node: &Arc<Node>, request: &OffsetDeleteRequest, _version: i16) -> OffsetDeleteResponse {
    let mut metadata = node.metadata();
    let response = OffsetDeleteResponse::default();
    let group = request.group_id.as_str();
    let subscribed = match node.groups().get(group).filter(|group| !group.is_empty()) {
        None if !metadata.state().offsets.contains_key(group) => {
            return response.with_error_code(ResponseError::GroupIdNotFound.code());
        }
        None => BTreeSet::new(),
        Some(found) => match found.subscribed_topics() {
            Some(topics) => topics,
            None => return response.with_error_code(ResponseError::NonEmptyGroup.code()),
        },
    };
    let mut deleted = Vec::new();
    let topics = request.topics.iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|asked| {
            let result = if subscribed.contains(topic.name.as_str()) {
                Err(ResponseError::GroupSubscribedToTopic)
            } else if node.partition(&topic.name, asked.partition_index).is_none() {
                Err(ResponseError::UnknownTopicOrPartition)
            } else {
                deleted.push((topic.name.to_string(), asked.partition_index));
                Ok(())
            };
            let response = OffsetDeleteResponsePartition::default().with_partition_index(asked.partition_index);
            response.with_error_code(super::code(&result))
        });
        OffsetDeleteResponseTopic::default().with_name(topic.name.clone()).with_partitions(partitions.collect())
    });
    let topics = topics.collect();
    let entry = Entry::OffsetsDeleted { group: group.to_owned(), partitions: deleted };
    if let Err(error) = metadata.append(entry) {
        tracing::warn!(%error, "delete committed offsets");
        return response.with_error_code(ResponseError::CoordinatorNotAvailable.code());
    }
    response.with_topics(topics)
}
