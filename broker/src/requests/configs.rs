//! Settings of topics and of the broker, described and changed.

use std::sync::Arc;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::alter_configs_response::AlterConfigsResourceResponse;
use kafka_protocol::messages::describe_configs_response::{
    DescribeConfigsResourceResult, DescribeConfigsResult, DescribeConfigsSynonym,
};
use kafka_protocol::messages::incremental_alter_configs_response::AlterConfigsResourceResponse as AlteredIncrementally;
use kafka_protocol::messages::list_config_resources_response::ConfigResource;
use kafka_protocol::messages::{
    AlterConfigsRequest, AlterConfigsResponse, DescribeConfigsRequest, DescribeConfigsResponse,
    IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse, ListConfigResourcesRequest,
    ListConfigResourcesResponse,
};
use kafka_protocol::protocol::StrBytes;

use super::{NODE_ID, text, text_error};
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

pub(super) fn describe(node: &Arc<Node>, request: &DescribeConfigsRequest, _version: i16) -> DescribeConfigsResponse {
    let results = request.resources.iter().map(|resource| {
        let result = DescribeConfigsResult::default()
            .with_resource_type(resource.resource_type)
            .with_resource_name(resource.resource_name.clone());
        let wanted = |name: &str| {
            resource.configuration_keys.as_ref().is_none_or(|keys| keys.iter().any(|key| key.as_str() == name))
        };
        match settings_of(node, resource.resource_type, &resource.resource_name, request.include_synonyms) {
            Ok(all) => result.with_configs(all.into_iter().filter(|setting| wanted(&setting.name)).collect()),
            Err(error) => result.with_error_code(error.code()).with_error_message(text_error(error)),
        }
    });
    DescribeConfigsResponse::default().with_results(results.collect())
}

fn settings_of(
    node: &Node,
    kind: i8,
    name: &str,
    with_synonyms: bool,
) -> Result<Vec<DescribeConfigsResourceResult>, ResponseError> {
    match kind {
        TOPIC => {
            let topic = node.topic(name).ok_or(ResponseError::UnknownTopicOrPartition)?;
            Ok(KNOWN.iter().map(|known| topic_setting(known, &topic.given, with_synonyms)).collect())
        }
        // Settings that all brokers share are none that this broker has.
        BROKER if name.is_empty() => Ok(Vec::new()),
        BROKER if name == NODE_ID.0.to_string() => Ok(broker_settings(node, with_synonyms)),
        _ => Err(ResponseError::InvalidRequest),
    }
}

fn topic_setting(known: &Known, given: &Given, with_synonyms: bool) -> DescribeConfigsResourceResult {
    let own = given.get(known.name).map(|value| (value.as_str(), SOURCE_TOPIC));
    // The value in force first, then what it hides.
    let values: Vec<(&str, i8)> = own.into_iter().chain([(known.default, SOURCE_DEFAULT)]).collect();
    let (value, source) = values[0];
    let synonyms = values.iter().filter(|_| with_synonyms).map(|(value, source)| synonym(known.name, value, *source));
    DescribeConfigsResourceResult::default()
        .with_name(text(known.name))
        .with_value(Some(text(value)))
        .with_config_source(source)
        .with_synonyms(synonyms.collect())
        .with_config_type(known.type_number())
}

fn synonym(name: &str, value: &str, source: i8) -> DescribeConfigsSynonym {
    DescribeConfigsSynonym::default().with_name(text(name)).with_value(Some(text(value))).with_source(source)
}

/// Topics and the one broker, as far as the client asks for their kind; before version 1 the kind was another one.
pub(super) fn list_resources(
    node: &Arc<Node>,
    request: &ListConfigResourcesRequest,
    version: i16,
) -> ListConfigResourcesResponse {
    let wanted =
        |kind: i8| version > 0 && (request.resource_types.is_empty() || request.resource_types.contains(&kind));
    let topics = node.topics().into_iter().map(|(name, _)| (TOPIC, name));
    let all = topics.chain([(BROKER, NODE_ID.0.to_string())]).filter(|(kind, _)| wanted(*kind));
    let resources =
        all.map(|(kind, name)| ConfigResource::default().with_resource_type(kind).with_resource_name(text(name)));
    ListConfigResourcesResponse::default().with_config_resources(resources.collect())
}

/// The broker's own settings, under Apache Kafka's names where it has them. They cannot be changed while it runs.
fn broker_settings(node: &Node, with_synonyms: bool) -> Vec<DescribeConfigsResourceResult> {
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
        let synonyms = with_synonyms.then(|| synonym(name, &value, SOURCE_BROKER));
        DescribeConfigsResourceResult::default()
            .with_name(text(name))
            .with_synonyms(synonyms.into_iter().collect())
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
pub(super) fn alter(node: &Arc<Node>, request: &AlterConfigsRequest, _version: i16) -> AlterConfigsResponse {
    let responses = request.resources.iter().map(|resource| {
        let replace = |given: &mut Given| {
            given.clear();
            for config in &resource.configs {
                alter_one(given, &config.name, SET, config.value.as_ref().map(|value| value.as_str()))?;
            }
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
    node: &Arc<Node>,
    request: &IncrementalAlterConfigsRequest,
    _version: i16,
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
            let named: Vec<&str> = value.split(',').map(str::trim).collect();
            let mut words: Vec<&str> = now.split(',').map(str::trim).filter(|word| !word.is_empty()).collect();
            if operation == APPEND {
                let more: Vec<&str> = named.into_iter().filter(|word| !words.contains(word)).collect();
                words.extend(more);
            } else {
                words.retain(|word| !named.contains(word));
            }
            given.insert(name.to_owned(), words.join(","));
        }
        _ => return invalid("a setting is set to a value, deleted, appended to or subtracted from"),
    }
    Ok(())
}
