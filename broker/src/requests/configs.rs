//! Settings of topics and of the broker, described and changed.

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::alter_configs_response::AlterConfigsResourceResponse;
use kafka_protocol::messages::describe_configs_response::{DescribeConfigsResourceResult, DescribeConfigsResult};
use kafka_protocol::messages::incremental_alter_configs_response::AlterConfigsResourceResponse as AlteredIncrementally;
use kafka_protocol::messages::{
    AlterConfigsRequest, AlterConfigsResponse, DescribeConfigsRequest, DescribeConfigsResponse,
    IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse,
};
use kafka_protocol::protocol::StrBytes;

use super::text;
use crate::node::{Node, TopicError};
use crate::settings::{Given, KNOWN, Known};

const TOPIC: i8 = 2;
const BROKER: i8 = 4;
const SOURCE_TOPIC: i8 = 1;
const SOURCE_BROKER: i8 = 4;
const SOURCE_DEFAULT: i8 = 5;
const SET: i8 = 0;
const DELETE: i8 = 1;
const APPEND: i8 = 2;
const SUBTRACT: i8 = 3;
const TYPE_BOOLEAN: i8 = 1;
const TYPE_STRING: i8 = 2;
const TYPE_LONG: i8 = 5;

pub(super) fn describe(node: &Node, request: &DescribeConfigsRequest) -> DescribeConfigsResponse {
    let results = request.resources.iter().map(|resource| {
        let result = DescribeConfigsResult::default()
            .with_resource_type(resource.resource_type)
            .with_resource_name(resource.resource_name.clone());
        let wanted = |name: &str| {
            resource.configuration_keys.as_ref().is_none_or(|keys| keys.iter().any(|key| key.as_str() == name))
        };
        let all = match (resource.resource_type, node.topic(&resource.resource_name)) {
            (TOPIC, Some(topic)) => KNOWN.iter().map(|known| topic_setting(known, &topic.given)).collect(),
            (TOPIC, None) => return result.with_error_code(ResponseError::UnknownTopicOrPartition.code()),
            (BROKER, _) => broker_settings(node),
            _ => return result.with_error_code(ResponseError::InvalidRequest.code()),
        };
        let configs: Vec<_> = all.into_iter().filter(|setting| wanted(&setting.name)).collect();
        result.with_configs(configs)
    });
    DescribeConfigsResponse::default().with_results(results.collect())
}

fn topic_setting(known: &Known, given: &Given) -> DescribeConfigsResourceResult {
    let own = given.get(known.name);
    DescribeConfigsResourceResult::default()
        .with_name(text(known.name))
        .with_value(Some(text(own.map_or(known.default, String::as_str))))
        .with_config_source(if own.is_some() { SOURCE_TOPIC } else { SOURCE_DEFAULT })
        .with_config_type(known.type_number())
}

/// The broker's own settings, under Apache Kafka's names where it has them. They cannot be changed while it runs.
fn broker_settings(node: &Node) -> Vec<DescribeConfigsResourceResult> {
    let config = &node.config;
    let long = |name, value: u128| (name, value.to_string(), TYPE_LONG);
    let settings = [
        ("broker.id", "1".to_owned(), TYPE_LONG),
        ("log.dirs", config.dir.display().to_string(), TYPE_STRING),
        ("auto.create.topics.enable", config.auto_create_topics.to_string(), TYPE_BOOLEAN),
        long("max.connections", config.connections_max as u128),
        long("connections.max.idle.ms", config.connection_idle.as_millis()),
        long("socket.request.max.bytes", config.request_bytes_max as u128),
        long("fetch.max.bytes", config.fetch_bytes_max as u128),
        long("transaction.max.timeout.ms", config.transaction_timeout_max.as_millis()),
        long("transactional.id.expiration.ms", config.transactional_id_expiry.as_millis()),
        long("producer.id.expiration.ms", config.producer_expiry.as_millis()),
        long("group.max.size", config.group_members_max as u128),
        long("group.min.session.timeout.ms", config.session_timeout_min.as_millis()),
        long("group.max.session.timeout.ms", config.session_timeout_max.as_millis()),
        long("group.initial.rebalance.delay.ms", config.initial_rebalance_delay.as_millis()),
    ];
    let describe = |(name, value, kind): (&str, String, i8)| {
        DescribeConfigsResourceResult::default()
            .with_name(text(name))
            .with_value(Some(text(value)))
            .with_read_only(true)
            .with_config_source(SOURCE_BROKER)
            .with_config_type(kind)
    };
    settings.into_iter().map(describe).collect()
}

fn change(
    node: &Node,
    resource: (i8, &StrBytes),
    change: impl FnOnce(&mut Given) -> Result<(), TopicError>,
    only_check: bool,
) -> (i16, Option<StrBytes>) {
    let (kind, name) = resource;
    let changed = if kind == TOPIC {
        node.alter_topic(name, change, only_check)
    } else {
        let message = "the broker's settings are changed in the configuration of the program that embeds it";
        Err(TopicError { error: ResponseError::InvalidRequest, message: message.to_owned() })
    };
    match changed {
        Ok(()) => (0, None),
        Err(TopicError { error, message }) => (error.code(), Some(text(message))),
    }
}

/// Replaces all settings of a topic. For I/O threads.
pub(super) fn alter(node: &Node, request: &AlterConfigsRequest) -> AlterConfigsResponse {
    let responses = request.resources.iter().map(|resource| {
        let replace = |given: &mut Given| {
            let configs = resource.configs.iter();
            *given = configs.filter_map(|c| Some((c.name.to_string(), c.value.as_ref()?.to_string()))).collect();
            Ok(())
        };
        let named = (resource.resource_type, &resource.resource_name);
        let (code, message) = change(node, named, replace, request.validate_only);
        AlterConfigsResourceResponse::default()
            .with_error_code(code)
            .with_error_message(message)
            .with_resource_type(resource.resource_type)
            .with_resource_name(resource.resource_name.clone())
    });
    AlterConfigsResponse::default().with_responses(responses.collect())
}

/// Changes single settings of a topic. For I/O threads.
pub(super) fn alter_incrementally(
    node: &Node,
    request: &IncrementalAlterConfigsRequest,
) -> IncrementalAlterConfigsResponse {
    let responses = request.resources.iter().map(|resource| {
        let alter = |given: &mut Given| {
            for config in &resource.configs {
                let value = config.value.as_ref().map(|value| value.as_str());
                alter_one(given, &config.name, config.config_operation, value)?;
            }
            Ok(())
        };
        let named = (resource.resource_type, &resource.resource_name);
        let (code, message) = change(node, named, alter, request.validate_only);
        AlteredIncrementally::default()
            .with_error_code(code)
            .with_error_message(message)
            .with_resource_type(resource.resource_type)
            .with_resource_name(resource.resource_name.clone())
    });
    IncrementalAlterConfigsResponse::default().with_responses(responses.collect())
}

fn alter_one(given: &mut Given, name: &str, operation: i8, value: Option<&str>) -> Result<(), TopicError> {
    let invalid = |message: &str| Err(TopicError { error: ResponseError::InvalidConfig, message: message.to_owned() });
    match (operation, value) {
        (DELETE, _) => {
            given.remove(name);
        }
        (SET, Some(value)) => {
            given.insert(name.to_owned(), value.to_owned());
        }
        (APPEND | SUBTRACT, Some(value)) => {
            let Some(known) = KNOWN.iter().find(|known| known.name == name && known.is_list()) else {
                return invalid("only settings that are lists can be appended to");
            };
            let now = given.get(name).map_or(known.default, String::as_str).to_owned();
            let mut words: Vec<&str> = now.split(',').filter(|word| *word != value).collect();
            if operation == APPEND {
                words.push(value);
            }
            given.insert(name.to_owned(), words.join(","));
        }
        _ => return invalid("a setting is set to a value, deleted, appended to or subtracted from"),
    }
    Ok(())
}
