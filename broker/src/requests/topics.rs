//! Topics: what there is, and making, changing and deleting them.

use std::sync::Arc;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::create_partitions_response::CreatePartitionsTopicResult;
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::create_topics_response::{CreatableTopicConfigs, CreatableTopicResult};
use kafka_protocol::messages::delete_records_response::{DeleteRecordsPartitionResult, DeleteRecordsTopicResult};
use kafka_protocol::messages::delete_topics_response::DeletableTopicResult;
use kafka_protocol::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use kafka_protocol::messages::{
    CreatePartitionsRequest, CreatePartitionsResponse, CreateTopicsRequest, CreateTopicsResponse, DeleteRecordsRequest,
    DeleteRecordsResponse, DeleteTopicsRequest, DeleteTopicsResponse, MetadataRequest, MetadataResponse,
};

use super::{NODE_ID, OPERATIONS_CLUSTER, OPERATIONS_NOT_ASKED, OPERATIONS_TOPIC, text, topic_name};
use crate::node::{Node, Topic, TopicError};
use crate::settings::{Given, KNOWN};

pub(super) async fn metadata(node: &Arc<Node>, request: MetadataRequest, version: i16) -> MetadataResponse {
    let named = request.topics.as_ref().map(|topics| {
        topics.iter().filter_map(|topic| topic.name.as_ref()).map(|name| name.to_string()).collect::<Vec<_>>()
    });
    // Before version 1 an empty list asks for everything.
    let named = named.filter(|names| version > 0 || !names.is_empty());
    if node.config.auto_create_topics && (request.allow_auto_topic_creation || version < 4) {
        let missing: Vec<String> = named.iter().flatten().filter(|name| node.topic(name).is_none()).cloned().collect();
        if !missing.is_empty() {
            node.io(move |node| {
                for name in missing {
                    // What cannot be made is unknown in the answer below.
                    let _ = node.create_topic(&name, 1, Given::new());
                }
            })
            .await;
        }
    }
    let operations = |asked: bool, operations: i32| if asked { operations } else { OPERATIONS_NOT_ASKED };
    let on_topic = operations(request.include_topic_authorized_operations, OPERATIONS_TOPIC);
    let topics = match named {
        Some(names) => names.into_iter().map(|name| describe(&name, node.topic(&name), on_topic)).collect(),
        None => {
            let all = node.topics().into_iter();
            all.map(|(name, topic)| describe(&name, Some(topic), on_topic)).collect()
        }
    };
    let broker = MetadataResponseBroker::default()
        .with_node_id(NODE_ID)
        .with_host(text(node.host.as_str()))
        .with_port(i32::from(node.port));
    let on_cluster = operations(request.include_cluster_authorized_operations, OPERATIONS_CLUSTER);
    MetadataResponse::default()
        .with_brokers(vec![broker])
        .with_cluster_id(Some(text(node.cluster_id.as_str())))
        .with_controller_id(NODE_ID)
        .with_cluster_authorized_operations(if version >= 8 { on_cluster } else { OPERATIONS_NOT_ASKED })
        .with_topics(topics)
}

fn describe(name: &str, topic: Option<Arc<Topic>>, operations: i32) -> MetadataResponseTopic {
    let described = MetadataResponseTopic::default().with_name(Some(topic_name(name)));
    let Some(topic) = topic else {
        let error = ResponseError::UnknownTopicOrPartition.code();
        return described.with_error_code(error).with_topic_authorized_operations(OPERATIONS_NOT_ASKED);
    };
    let partitions = (0..topic.partitions.len()).map(|partition| {
        MetadataResponsePartition::default()
            .with_partition_index(partition as i32)
            .with_leader_id(NODE_ID)
            .with_leader_epoch(0)
            .with_replica_nodes(vec![NODE_ID])
            .with_isr_nodes(vec![NODE_ID])
    });
    described.with_topic_authorized_operations(operations).with_partitions(partitions.collect())
}

/// For I/O threads.
pub(super) fn create(node: &Node, request: &CreateTopicsRequest) -> CreateTopicsResponse {
    let topics = request.topics.iter().map(|topic| {
        let given = topic.configs.iter().filter_map(|c| Some((c.name.to_string(), c.value.as_ref()?.to_string())));
        let given: Given = given.collect();
        let result = CreatableTopicResult::default().with_name(topic.name.clone());
        match create_one(node, topic, &given, request.validate_only) {
            Ok(partitions) => {
                let configs = KNOWN.iter().map(|known| {
                    let value = given.get(known.name).map_or(known.default, String::as_str);
                    CreatableTopicConfigs::default()
                        .with_name(text(known.name))
                        .with_value(Some(text(value)))
                        .with_config_source(if given.contains_key(known.name) { 1 } else { 5 })
                });
                result.with_num_partitions(partitions).with_replication_factor(1).with_configs(Some(configs.collect()))
            }
            Err(TopicError { error, message }) => result
                .with_error_code(error.code())
                .with_error_message(Some(text(message)))
                .with_num_partitions(-1)
                .with_replication_factor(-1),
        }
    });
    CreateTopicsResponse::default().with_topics(topics.collect())
}

fn create_one(node: &Node, topic: &CreatableTopic, given: &Given, only_check: bool) -> Result<i32, TopicError> {
    let refuse = |error, message: &str| Err(TopicError { error, message: message.to_owned() });
    let mut partitions = topic.num_partitions;
    if !topic.assignments.is_empty() {
        let here = topic.assignments.iter().all(|assignment| assignment.broker_ids == [NODE_ID]);
        if !here {
            return refuse(
                ResponseError::InvalidReplicaAssignment,
                "this broker is one node: every replica is on node 1",
            );
        }
        partitions = topic.assignments.len() as i32;
    } else if !matches!(topic.replication_factor, -1 | 1) {
        let message = "this broker is one node: the replication factor is 1; a cluster runs Apache Kafka";
        return refuse(ResponseError::InvalidReplicationFactor, message);
    }
    let partitions = node.check_topic(&topic.name, partitions, given)?;
    if !only_check {
        node.create_topic(&topic.name, partitions, given.clone())?;
    }
    Ok(partitions)
}

/// For I/O threads.
pub(super) fn delete(node: &Node, request: &DeleteTopicsRequest) -> DeleteTopicsResponse {
    let results = request.topic_names.iter().map(|name| {
        let result = DeletableTopicResult::default().with_name(Some(name.clone()));
        match node.delete_topic(name) {
            Ok(()) => result,
            Err(TopicError { error, message }) => {
                result.with_error_code(error.code()).with_error_message(Some(text(message)))
            }
        }
    });
    DeleteTopicsResponse::default().with_responses(results.collect())
}

/// For I/O threads.
pub(super) fn create_partitions(node: &Node, request: &CreatePartitionsRequest) -> CreatePartitionsResponse {
    let results = request.topics.iter().map(|topic| {
        let result = CreatePartitionsTopicResult::default().with_name(topic.name.clone());
        match node.add_partitions(&topic.name, topic.count, request.validate_only) {
            Ok(()) => result,
            Err(TopicError { error, message }) => {
                result.with_error_code(error.code()).with_error_message(Some(text(message)))
            }
        }
    });
    CreatePartitionsResponse::default().with_results(results.collect())
}

/// For I/O threads.
pub(super) fn delete_records(node: &Node, request: &DeleteRecordsRequest) -> DeleteRecordsResponse {
    let topics = request.topics.iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|asked| {
            let result = node.delete_records(&topic.name, asked.partition_index, asked.offset);
            DeleteRecordsPartitionResult::default()
                .with_partition_index(asked.partition_index)
                .with_error_code(super::code(&result))
                .with_low_watermark(result.unwrap_or(-1))
        });
        DeleteRecordsTopicResult::default().with_name(topic.name.clone()).with_partitions(partitions.collect())
    });
    DeleteRecordsResponse::default().with_topics(topics.collect())
}
