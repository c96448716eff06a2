//! Topics: making, changing and deleting them, and their records. All for I/O threads.

use std::collections::BTreeSet;
use std::sync::Arc;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::create_partitions_request::CreatePartitionsTopic;
use kafka_protocol::messages::create_partitions_response::CreatePartitionsTopicResult;
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::create_topics_response::{CreatableTopicConfigs, CreatableTopicResult};
use kafka_protocol::messages::delete_records_response::{DeleteRecordsPartitionResult, DeleteRecordsTopicResult};
use kafka_protocol::messages::delete_topics_response::DeletableTopicResult;
use kafka_protocol::messages::{
    CreatePartitionsRequest, CreatePartitionsResponse, CreateTopicsRequest, CreateTopicsResponse, DeleteRecordsRequest,
    DeleteRecordsResponse, DeleteTopicsRequest, DeleteTopicsResponse,
};
use uuid::Uuid;

use super::{NODE_ID, text, topic_name};
use crate::node::{Node, TopicError};
use crate::settings::{Given, KNOWN};

pub(super) fn create(node: &Arc<Node>, request: &CreateTopicsRequest, _version: i16) -> CreateTopicsResponse {
    let topics = request.topics.iter().map(|topic| {
        let given = topic.configs.iter().filter_map(|c| Some((c.name.to_string(), c.value.as_ref()?.to_string())));
        let given: Given = given.collect();
        let result = CreatableTopicResult::default().with_name(topic.name.clone());
        match create_one(node, topic, &given, request.validate_only) {
            Ok((partitions, id)) => {
                let configs = KNOWN.iter().map(|known| {
                    let value = given.get(known.name).map_or(known.default, String::as_str);
                    CreatableTopicConfigs::default()
                        .with_name(text(known.name))
                        .with_value(Some(text(value)))
                        .with_config_source(if given.contains_key(known.name) { 1 } else { 5 })
                });
                result
                    .with_topic_id(id)
                    .with_num_partitions(partitions)
                    .with_replication_factor(1)
                    .with_configs(Some(configs.collect()))
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

/// Makes a topic, or only checks whether it could be made; returns its partitions and its id.
fn create_one(node: &Node, topic: &CreatableTopic, given: &Given, only_check: bool) -> Result<(i32, Uuid), TopicError> {
    let refuse = |error, message: &str| Err(TopicError { error, message: message.to_owned() });
    let mut partitions = topic.num_partitions;
    if !topic.assignments.is_empty() {
        let numbers: BTreeSet<i32> = topic.assignments.iter().map(|assignment| assignment.partition_index).collect();
        let here = topic.assignments.iter().all(|assignment| assignment.broker_ids == [NODE_ID]);
        if !here || !numbers.into_iter().eq(0..topic.assignments.len() as i32) {
            return refuse(
                ResponseError::InvalidReplicaAssignment,
                "this broker is one node: every partition from 0 on is assigned to node 1 alone, or to nobody",
            );
        }
        partitions = topic.assignments.len() as i32;
    } else if !matches!(topic.replication_factor, -1 | 1) {
        let message = "this broker is one node: the replication factor is 1; a cluster runs Apache Kafka";
        return refuse(ResponseError::InvalidReplicationFactor, message);
    }
    let partitions = node.check_topic(&topic.name, partitions, given)?;
    let id = if only_check { Uuid::nil() } else { node.create_topic(&topic.name, partitions, given.clone())? };
    Ok((partitions, id))
}

pub(super) fn delete(node: &Arc<Node>, request: &DeleteTopicsRequest, version: i16) -> DeleteTopicsResponse {
    let named = request.topic_names.iter().map(|name| (Some(name.clone()), Uuid::nil()));
    let meant = request.topics.iter().map(|topic| (topic.name.clone(), topic.topic_id));
    let results = named.chain(meant).map(|(name, id)| {
        let topic = node.topic_meant(name.as_deref().map_or("", |name| name.as_str()), id);
        let deleted = match &topic {
            Ok(topic) => node.delete_topic(&topic.name),
            Err(error) => Err(TopicError { error: *error, message: error.to_string() }),
        };
        let name = topic.as_ref().ok().map(|topic| topic_name(&topic.name)).or(name);
        let id = topic.map_or(id, |topic| topic.id);
        let result = DeletableTopicResult::default().with_name(name).with_topic_id(id);
        match deleted {
            Ok(()) => result,
            Err(TopicError { error, message }) => {
                let message = (version >= 5).then(|| text(message));
                result.with_error_code(error.code()).with_error_message(message)
            }
        }
    });
    DeleteTopicsResponse::default().with_responses(results.collect())
}

pub(super) fn create_partitions(
    node: &Arc<Node>,
    request: &CreatePartitionsRequest,
    _version: i16,
) -> CreatePartitionsResponse {
    let results = request.topics.iter().map(|topic| {
        let result = CreatePartitionsTopicResult::default().with_name(topic.name.clone());
        match create_partitions_of(node, topic, request.validate_only) {
            Ok(()) => result,
            Err(TopicError { error, message }) => {
                result.with_error_code(error.code()).with_error_message(Some(text(message)))
            }
        }
    });
    CreatePartitionsResponse::default().with_results(results.collect())
}

fn create_partitions_of(node: &Node, topic: &CreatePartitionsTopic, only_check: bool) -> Result<(), TopicError> {
    if let Some(assignments) = &topic.assignments {
        let have = node.topic(&topic.name).map_or(0, |topic| topic.partitions.len());
        let one_each = usize::try_from(topic.count).is_ok_and(|count| count == have + assignments.len());
        if !one_each || assignments.iter().any(|assignment| assignment.broker_ids != [NODE_ID]) {
            let message = "this broker is one node: each new partition is assigned to node 1 alone, or to nobody";
            return Err(TopicError { error: ResponseError::InvalidReplicaAssignment, message: message.to_owned() });
        }
    }
    node.add_partitions(&topic.name, topic.count, only_check)
}

pub(super) fn delete_records(node: &Arc<Node>, request: &DeleteRecordsRequest, _version: i16) -> DeleteRecordsResponse {
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
