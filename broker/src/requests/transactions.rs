//! Transactions: the coordinator's requests, on top of [`crate::transactions`]. All for I/O threads.

use std::sync::Arc;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::add_partitions_to_txn_response::{
    AddPartitionsToTxnPartitionResult, AddPartitionsToTxnTopicResult,
};
use kafka_protocol::messages::txn_offset_commit_response::{
    TxnOffsetCommitResponsePartition, TxnOffsetCommitResponseTopic,
};
use kafka_protocol::messages::{
    AddOffsetsToTxnRequest, AddOffsetsToTxnResponse, AddPartitionsToTxnRequest, AddPartitionsToTxnResponse,
    EndTxnRequest, EndTxnResponse, InitProducerIdRequest, InitProducerIdResponse, ProducerId, TxnOffsetCommitRequest,
    TxnOffsetCommitResponse,
};

use super::offsets::OFFSET_METADATA_BYTES_MAX;
use crate::batch::Marker;
use crate::groups::Claim;
use crate::metadata::{Committed, GroupOffset};
use crate::node::Node;
use crate::transactions::Producer;

/// Clients that do not know that a producer is fenced are told of its epoch instead.
fn code(result: Result<(), ResponseError>, knows_fenced: bool) -> i16 {
    match result {
        Err(ResponseError::ProducerFenced) if !knows_fenced => ResponseError::InvalidProducerEpoch.code(),
        result => super::code(&result),
    }
}

pub(super) fn init_producer(node: &Arc<Node>, request: &InitProducerIdRequest, version: i16) -> InitProducerIdResponse {
    let id = request.transactional_id.as_ref().map(|id| id.as_str());
    let expected = (request.producer_id.0 >= 0).then_some((request.producer_id.0, request.producer_epoch));
    let response = InitProducerIdResponse::default();
    match node.init_producer(id, i64::from(request.transaction_timeout_ms), expected) {
        Ok((id, epoch)) => response.with_producer_id(ProducerId(id)).with_producer_epoch(epoch),
        Err(error) => response
            .with_producer_id(ProducerId(-1))
            .with_producer_epoch(-1)
            .with_error_code(code(Err(error), version >= 4)),
    }
}

pub(super) fn add_partitions(
    node: &Arc<Node>,
    request: &AddPartitionsToTxnRequest,
    version: i16,
) -> AddPartitionsToTxnResponse {
    let producer = Producer {
        transactional_id: &request.v3_and_below_transactional_id,
        id: request.v3_and_below_producer_id.0,
        epoch: request.v3_and_below_producer_epoch,
    };
    let topics = &request.v3_and_below_topics;
    let partitions = topics.iter().flat_map(|t| t.partitions.iter().map(|p| (t.name.to_string(), *p)));
    let partitions: Vec<(String, i32)> = partitions.collect();
    let unknown = |topic: &str, partition: i32| node.partition(topic, partition).is_none();
    let some_unknown = partitions.iter().any(|(topic, partition)| unknown(topic, *partition));
    let result = if some_unknown {
        // All or none.
        Err(ResponseError::OperationNotAttempted)
    } else {
        node.add_partitions_to_transaction(producer, partitions)
    };
    let results = topics.iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|partition| {
            let code = if unknown(&topic.name, *partition) {
                ResponseError::UnknownTopicOrPartition.code()
            } else {
                code(result, version >= 2)
            };
            let result = AddPartitionsToTxnPartitionResult::default().with_partition_index(*partition);
            result.with_partition_error_code(code)
        });
        let result = AddPartitionsToTxnTopicResult::default().with_name(topic.name.clone());
        result.with_results_by_partition(partitions.collect())
    });
    AddPartitionsToTxnResponse::default().with_results_by_topic_v3_and_below(results.collect())
}

pub(super) fn add_offsets(node: &Arc<Node>, request: &AddOffsetsToTxnRequest, version: i16) -> AddOffsetsToTxnResponse {
    let producer = Producer {
        transactional_id: &request.transactional_id,
        id: request.producer_id.0,
        epoch: request.producer_epoch,
    };
    let result = node.add_offsets_to_transaction(producer);
    AddOffsetsToTxnResponse::default().with_error_code(code(result, version >= 2))
}

pub(super) fn commit_offsets(
    node: &Arc<Node>,
    request: &TxnOffsetCommitRequest,
    _version: i16,
) -> TxnOffsetCommitResponse {
    let producer = Producer {
        transactional_id: &request.transactional_id,
        id: request.producer_id.0,
        epoch: request.producer_epoch,
    };
    let claim = Claim {
        member: &request.member_id,
        instance: request.group_instance_id.as_deref(),
        generation: request.generation_id,
    };
    let offsets = request.topics.iter().flat_map(|topic| {
        topic.partitions.iter().map(|asked| GroupOffset {
            group: request.group_id.to_string(),
            topic: topic.name.to_string(),
            partition: asked.partition_index,
            committed: Committed {
                offset: asked.committed_offset,
                leader_epoch: asked.committed_leader_epoch,
                metadata: asked.committed_metadata.as_ref().map(|text| text.to_string()),
            },
        })
    });
    let offsets: Vec<GroupOffset> = offsets.collect();
    let too_long = |o: &GroupOffset| o.committed.metadata.as_ref().is_some_and(|m| m.len() > OFFSET_METADATA_BYTES_MAX);
    let result = if offsets.iter().any(too_long) {
        Err(ResponseError::OffsetMetadataTooLarge)
    } else if offsets.iter().any(|o| node.partition(&o.topic, o.partition).is_none()) {
        Err(ResponseError::UnknownTopicOrPartition)
    } else {
        node.commit_offsets_in_transaction(producer, offsets, |node| {
            node.groups().may_commit_in_transaction(&request.group_id, claim)
        })
    };
    let topics = request.topics.iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|asked| {
            let response = TxnOffsetCommitResponsePartition::default().with_partition_index(asked.partition_index);
            response.with_error_code(code(result, false))
        });
        TxnOffsetCommitResponseTopic::default().with_name(topic.name.clone()).with_partitions(partitions.collect())
    });
    TxnOffsetCommitResponse::default().with_topics(topics.collect())
}

pub(super) fn end(node: &Arc<Node>, request: &EndTxnRequest, version: i16) -> EndTxnResponse {
    let producer = Producer {
        transactional_id: &request.transactional_id,
        id: request.producer_id.0,
        epoch: request.producer_epoch,
    };
    let marker = if request.committed { Marker::Commit } else { Marker::Abort };
    let result = node.end_transaction(producer, marker);
    EndTxnResponse::default().with_error_code(code(result, version >= 2))
}
