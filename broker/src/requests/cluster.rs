//! The cluster of one node: who is in it, where its data is, and what it has in place of replicas.

use std::sync::Arc;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::alter_partition_reassignments_response::{
    ReassignablePartitionResponse, ReassignableTopicResponse,
};
use kafka_protocol::messages::describe_cluster_response::DescribeClusterBroker;
use kafka_protocol::messages::describe_log_dirs_response::{
    DescribeLogDirsPartition, DescribeLogDirsResult, DescribeLogDirsTopic,
};
use kafka_protocol::messages::elect_leaders_response::{PartitionResult, ReplicaElectionResult};
use kafka_protocol::messages::{
    AlterPartitionReassignmentsRequest, AlterPartitionReassignmentsResponse, BrokerId, DescribeClusterRequest,
    DescribeClusterResponse, DescribeLogDirsRequest, DescribeLogDirsResponse, ElectLeadersRequest,
    ElectLeadersResponse, ListPartitionReassignmentsRequest, ListPartitionReassignmentsResponse,
};

use super::{NODE_ID, OPERATIONS_CLUSTER, operations, text, text_error, topic_name};
use crate::node::Node;

/// Endpoints of brokers; the other kind, that of controllers, does not exist here.
const BROKERS: i8 = 1;
/// Sizes of volumes are not told.
const BYTES_UNKNOWN: i64 = -1;

pub(super) fn describe(node: &Arc<Node>, request: &DescribeClusterRequest, version: i16) -> DescribeClusterResponse {
    let response = DescribeClusterResponse::default()
        .with_cluster_id(text(node.cluster_id.as_str()))
        .with_cluster_authorized_operations(operations(
            request.include_cluster_authorized_operations,
            OPERATIONS_CLUSTER,
        ));
    if version > 0 && request.endpoint_type != BROKERS {
        let error = ResponseError::MismatchedEndpointType;
        let response = response.with_controller_id(BrokerId(-1)).with_endpoint_type(BROKERS);
        return response.with_error_code(error.code()).with_error_message(text_error(error));
    }
    let broker = DescribeClusterBroker::default()
        .with_broker_id(NODE_ID)
        .with_host(text(node.host.as_str()))
        .with_port(i32::from(node.port));
    response.with_controller_id(NODE_ID).with_brokers(vec![broker])
}

pub(super) fn describe_log_dirs(
    node: &Arc<Node>,
    request: &DescribeLogDirsRequest,
    _version: i16,
) -> DescribeLogDirsResponse {
    let wanted = |name: &str, partition: i32| {
        request.topics.as_ref().is_none_or(|topics| {
            topics.iter().any(|asked| asked.topic.as_str() == name && asked.partitions.contains(&partition))
        })
    };
    let topics = node.topics().into_iter().filter_map(|(name, topic)| {
        let partitions = topic.partitions.iter().zip(0..).filter(|(_, number)| wanted(&name, *number));
        let partitions = partitions.map(|(log, number)| {
            let described = DescribeLogDirsPartition::default().with_partition_index(number);
            described.with_partition_size(log.bytes() as i64)
        });
        let partitions: Vec<_> = partitions.collect();
        let described = DescribeLogDirsTopic::default().with_name(topic_name(&name));
        (!partitions.is_empty()).then(|| described.with_partitions(partitions))
    });
    let dir = DescribeLogDirsResult::default()
        .with_log_dir(text(node.config.dir.display().to_string()))
        .with_topics(topics.collect())
        .with_total_bytes(BYTES_UNKNOWN)
        .with_usable_bytes(BYTES_UNKNOWN);
    DescribeLogDirsResponse::default().with_results(vec![dir])
}

/// The one node leads every partition already.
pub(super) fn elect_leaders(node: &Arc<Node>, request: &ElectLeadersRequest, _version: i16) -> ElectLeadersResponse {
    // Asked for all partitions, only those that got a new leader are told.
    let results = request.topic_partitions.iter().flatten().map(|topic| {
        let results = topic.partitions.iter().map(|partition| {
            let error = match node.partition(&topic.topic, *partition) {
                Some(_) => ResponseError::ElectionNotNeeded,
                None => ResponseError::UnknownTopicOrPartition,
            };
            let result = PartitionResult::default().with_partition_id(*partition);
            result.with_error_code(error.code()).with_error_message(text_error(error))
        });
        ReplicaElectionResult::default().with_topic(topic.topic.clone()).with_partition_result(results.collect())
    });
    ElectLeadersResponse::default().with_replica_election_results(results.collect())
}

/// Every partition is where it can only be: an assignment to the one node is done at once, others are refused.
pub(super) fn alter_reassignments(
    node: &Arc<Node>,
    request: &AlterPartitionReassignmentsRequest,
    _version: i16,
) -> AlterPartitionReassignmentsResponse {
    let responses = request.topics.iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|asked| {
            let result = match (node.partition(&topic.name, asked.partition_index), &asked.replicas) {
                (None, _) => Err(ResponseError::UnknownTopicOrPartition),
                (Some(_), None) => Err(ResponseError::NoReassignmentInProgress),
                (Some(_), Some(replicas)) if *replicas == [NODE_ID] => Ok(()),
                (Some(_), Some(_)) => Err(ResponseError::InvalidReplicaAssignment),
            };
            ReassignablePartitionResponse::default()
                .with_partition_index(asked.partition_index)
                .with_error_code(super::code(&result))
                .with_error_message(result.err().and_then(text_error))
        });
        ReassignableTopicResponse::default().with_name(topic.name.clone()).with_partitions(partitions.collect())
    });
    AlterPartitionReassignmentsResponse::default()
        .with_allow_replication_factor_change(true)
        .with_responses(responses.collect())
}

/// None is ever under way.
pub(super) fn list_reassignments(
    _node: &Arc<Node>,
    _request: &ListPartitionReassignmentsRequest,
    _version: i16,
) -> ListPartitionReassignmentsResponse {
    ListPartitionReassignmentsResponse::default()
}
