//! What there is: brokers, topics, partitions.

use std::sync::Arc;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::describe_topic_partitions_response::{
    Cursor, DescribeTopicPartitionsResponsePartition, DescribeTopicPartitionsResponseTopic,
};
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use kafka_protocol::messages::{
    DescribeTopicPartitionsRequest, DescribeTopicPartitionsResponse, MetadataRequest, MetadataResponse,
};

use super::{
    Call, LEADER_EPOCH, NODE_ID, OPERATIONS_CLUSTER, OPERATIONS_NOT_ASKED, OPERATIONS_TOPIC, Unreadable, operations,
    text, topic_name,
};
use crate::connection::Answer;
use crate::node::{Node, Topic, is_topic_name};
use crate::settings::Given;

/// Partitions in one answer to [`describe_partitions`], whatever the client allows; the rest follows from its cursor.
const DESCRIBED_PARTITIONS_MAX: usize = 2000;

pub(super) async fn serve(node: &Arc<Node>, mut call: Call) -> Result<Answer, Unreadable> {
    let (request, version): (MetadataRequest, _) = (call.decode()?, call.version);
    if node.config.auto_create_topics && (request.allow_auto_topic_creation || version < 4) {
        create_missing(node, request.topics.as_deref().unwrap_or_default()).await;
    }
    call.answer(&metadata(node, &request, version))
}

async fn create_missing(node: &Arc<Node>, asked: &[MetadataRequestTopic]) {
    let names = asked.iter().filter_map(|topic| topic.name.as_ref()).map(|name| name.to_string());
    let missing: Vec<String> = names.filter(|name| node.topic(name).is_none()).collect();
    if !missing.is_empty() {
        node.io(move |node| {
            for name in missing {
                // What cannot be made is unknown in the answer.
                let _ = node.create_topic(&name, 1, Given::new());
            }
        })
        .await;
    }
}

fn metadata(node: &Node, request: &MetadataRequest, version: i16) -> MetadataResponse {
    let on_topic = operations(request.include_topic_authorized_operations, OPERATIONS_TOPIC);
    // Before version 1 an empty list asks for everything.
    let named = request.topics.as_ref().filter(|topics| version > 0 || !topics.is_empty());
    let topics = match named {
        Some(asked) => asked.iter().map(|asked| described(node, asked, on_topic, version)).collect(),
        None => node.topics().into_iter().map(|(_, topic)| describe(&topic, on_topic, version)).collect(),
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

fn described(node: &Node, asked: &MetadataRequestTopic, operations: i32, version: i16) -> MetadataResponseTopic {
    let name = asked.name.as_ref().map(|name| name.as_str());
    // Who asks by id need not say a name.
    let found = match name.filter(|_| asked.topic_id.is_nil()) {
        Some(name) if !is_topic_name(name) => Err(ResponseError::InvalidTopicException),
        name => node.topic_meant(name.unwrap_or_default(), asked.topic_id),
    };
    match found {
        Ok(topic) => describe(&topic, operations, version),
        Err(error) => {
            // An unknown id has no name, which versions below 12 cannot say.
            let name = name.filter(|name| version < 12 || !name.is_empty()).or((version < 12).then_some(""));
            let name = name.map(topic_name);
            MetadataResponseTopic::default()
                .with_error_code(error.code())
                .with_name(name)
                .with_topic_id(asked.topic_id)
                .with_topic_authorized_operations(OPERATIONS_NOT_ASKED)
        }
    }
}

fn describe(topic: &Topic, operations: i32, version: i16) -> MetadataResponseTopic {
    let partitions = (0..topic.partitions.len()).map(|partition| {
        MetadataResponsePartition::default()
            .with_partition_index(partition as i32)
            .with_leader_id(NODE_ID)
            .with_leader_epoch(if version >= 7 { LEADER_EPOCH } else { -1 })
            .with_replica_nodes(vec![NODE_ID])
            .with_isr_nodes(vec![NODE_ID])
    });
    MetadataResponseTopic::default()
        .with_name(Some(topic_name(&topic.name)))
        .with_topic_id(topic.id)
        .with_topic_authorized_operations(operations)
        .with_partitions(partitions.collect())
}

/// Topics in the order of their names, from the cursor on, as many partitions as the client takes.
pub(super) fn describe_partitions(
    node: &Arc<Node>,
    request: &DescribeTopicPartitionsRequest,
    _version: i16,
) -> DescribeTopicPartitionsResponse {
    let mut names: Vec<String> = if request.topics.is_empty() {
        node.topics().into_iter().map(|(name, _)| name).collect()
    } else {
        request.topics.iter().map(|topic| topic.name.to_string()).collect()
    };
    names.sort_unstable();
    names.dedup();
    let (from_topic, from_partition) = request.cursor.as_ref().map_or((String::new(), 0), |cursor| {
        (cursor.topic_name.to_string(), usize::try_from(cursor.partition_index).unwrap_or(0))
    });
    let mut left = usize::try_from(request.response_partition_limit).unwrap_or(0).clamp(1, DESCRIBED_PARTITIONS_MAX);
    let mut topics = Vec::new();
    let mut next = None;
    for name in names.into_iter().filter(|name| *name >= from_topic) {
        if left == 0 {
            next = Some(Cursor::default().with_topic_name(topic_name(&name)));
            break;
        }
        let response = DescribeTopicPartitionsResponseTopic::default().with_name(Some(topic_name(&name)));
        let Some(topic) = node.topic(&name) else {
            let error = if is_topic_name(&name) {
                ResponseError::UnknownTopicOrPartition
            } else {
                ResponseError::InvalidTopicException
            };
            let response = response.with_topic_authorized_operations(OPERATIONS_NOT_ASKED);
            topics.push(response.with_error_code(error.code()));
            continue;
        };
        let first = if name == from_topic { from_partition } else { 0 };
        let end = topic.partitions.len().min(first.saturating_add(left));
        let partitions: Vec<_> = (first..end).map(described_partition).collect();
        left -= partitions.len();
        topics.push(
            response
                .with_topic_id(topic.id)
                .with_topic_authorized_operations(OPERATIONS_TOPIC)
                .with_partitions(partitions),
        );
        if end < topic.partitions.len() {
            next = Some(Cursor::default().with_topic_name(topic_name(&name)).with_partition_index(end as i32));
            break;
        }
    }
    DescribeTopicPartitionsResponse::default().with_topics(topics).with_next_cursor(next)
}

fn described_partition(partition: usize) -> DescribeTopicPartitionsResponsePartition {
    DescribeTopicPartitionsResponsePartition::default()
        .with_partition_index(partition as i32)
        .with_leader_id(NODE_ID)
        .with_leader_epoch(LEADER_EPOCH)
        .with_replica_nodes(vec![NODE_ID])
        .with_isr_nodes(vec![NODE_ID])
        .with_eligible_leader_replicas(Some(Vec::new()))
        .with_last_known_elr(Some(Vec::new()))
}
