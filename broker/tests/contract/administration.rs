//! Administration: topics, their settings, groups, deletion of records.

use anyhow::{Context as _, Result, ensure};
use rdkafka::admin::{
    AlterConfig, ConfigSource, NewPartitions, NewTopic, OwnedResourceSpecifier, ResourceSpecifier, TopicReplication,
};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::RDKafkaErrorCode;

use crate::support::{
    PATIENCE, Server, admin, admin_options, at, block_on, client, commit, committed, consumer, create_topic, produce,
    read_all, unique, wait_for,
};

#[test]
fn topics_are_made_grown_described_altered_and_deleted() -> Result<()> {
    let server = Server::start();
    let (bootstrap, topic) = (server.bootstrap(), unique("topic"));
    create_topic(bootstrap, &topic, 4, &[("retention.ms", "3600000")])?;
    let (admin, options) = (admin(bootstrap), admin_options());
    let again = block_on(admin.create_topics(&[NewTopic::new(&topic, 1, TopicReplication::Fixed(1))], &options))?;
    ensure!(again[0].as_ref().is_err_and(|(_, code)| *code == RDKafkaErrorCode::TopicAlreadyExists));

    let described = block_on(admin.describe_configs(&[ResourceSpecifier::Topic(&topic)], &options))?;
    let settings = described[0].as_ref().map_err(|code| anyhow::anyhow!("{code}"))?;
    ensure!(matches!(&settings.specifier, OwnedResourceSpecifier::Topic(name) if *name == topic));
    let entries = settings.entry_map();
    let (own, default) = (entries["retention.ms"], entries["cleanup.policy"]);
    ensure!(own.value.as_deref() == Some("3600000") && matches!(own.source, ConfigSource::DynamicTopic));
    ensure!(default.value.as_deref() == Some("delete") && matches!(default.source, ConfigSource::Default));

    let change = AlterConfig::new(ResourceSpecifier::Topic(&topic)).set("retention.ms", "7200000");
    ensure!(block_on(admin.alter_configs(&[change], &options))?[0].is_ok());
    let described = block_on(admin.describe_configs(&[ResourceSpecifier::Topic(&topic)], &options))?;
    let settings = described[0].as_ref().map_err(|code| anyhow::anyhow!("{code}"))?;
    ensure!(settings.entry_map()["retention.ms"].value.as_deref() == Some("7200000"));

    ensure!(block_on(admin.create_partitions(&[NewPartitions::new(&topic, 8)], &options))?[0].is_ok());
    let client: BaseConsumer = client(bootstrap).create()?;
    let partitions = || {
        let metadata = client.fetch_metadata(Some(&topic), PATIENCE)?;
        anyhow::Ok(metadata.topics().first().map_or(0, |topic| topic.partitions().len()))
    };
    wait_for("eight partitions", || Ok(partitions()? == 8))?;
    ensure!(block_on(admin.delete_topics(&[&topic], &options))?[0].is_ok());
    wait_for("the topic to be gone", || Ok(partitions()? == 0))
}

#[test]
fn a_topic_of_the_same_name_begins_anew() -> Result<()> {
    let server = Server::start();
    let (bootstrap, topic, group) = (server.bootstrap(), unique("again"), unique("g"));
    create_topic(bootstrap, &topic, 1, &[])?;
    produce(bootstrap, &topic, None, 0..10, &[])?;
    let reader: BaseConsumer = consumer(bootstrap, &group).create()?;
    commit(&reader, &at(&topic, 0, 7))?;
    ensure!(block_on(admin(bootstrap).delete_topics(&[&topic], &admin_options()))?[0].is_ok());
    wait_for("the topic to be made again", || Ok(create_topic(bootstrap, &topic, 1, &[]).is_ok()))?;
    ensure!(read_all(bootstrap, &topic, 1, &[])?.is_empty());
    ensure!(committed(&reader, &topic, 0)? == rdkafka::Offset::Invalid, "its offsets went with the old one");
    Ok(())
}

#[test]
fn unknown_settings_illegal_values_and_names_are_refused() -> Result<()> {
    let server = Server::start();
    let (admin, options) = (admin(server.bootstrap()), admin_options());
    let topic = unique("refused");
    let one = || NewTopic::new(&topic, 1, TopicReplication::Fixed(1));
    let cases = [
        (one().set("retention.hours", "1"), RDKafkaErrorCode::InvalidConfig),
        (one().set("cleanup.policy", "shred"), RDKafkaErrorCode::InvalidConfig),
        (NewTopic::new("no spaces", 1, TopicReplication::Fixed(1)), RDKafkaErrorCode::InvalidTopic),
        (NewTopic::new(&topic, 1, TopicReplication::Fixed(3)), RDKafkaErrorCode::InvalidReplicationFactor),
    ];
    for (new, expected) in cases {
        let result = block_on(admin.create_topics(&[new], &options))?;
        let code = result[0].as_ref().err().map(|(_, code)| *code);
        ensure!(code == Some(expected), "{code:?} where {expected:?} was expected");
    }
    create_topic(server.bootstrap(), &topic, 1, &[])?;
    // rdkafka hides the error of a single resource here, so what counts is that nothing has changed.
    let change =
        AlterConfig::new(ResourceSpecifier::Topic(&topic)).set("retention.hours", "1").set("retention.ms", "1");
    let _ = block_on(admin.alter_configs(&[change], &options))?;
    let described = block_on(admin.describe_configs(&[ResourceSpecifier::Topic(&topic)], &options))?;
    let settings = described[0].as_ref().map_err(|code| anyhow::anyhow!("{code}"))?;
    ensure!(settings.entry_map()["retention.ms"].value.as_deref() == Some("604800000"));
    Ok(())
}

#[test]
fn records_are_deleted_up_to_an_offset_and_not_beyond_the_end() -> Result<()> {
    let server = Server::start();
    let (bootstrap, topic) = (server.bootstrap(), unique("delete"));
    create_topic(bootstrap, &topic, 1, &[])?;
    produce(bootstrap, &topic, Some(0), 0..100, &[])?;
    let (admin, options) = (admin(bootstrap), admin_options());
    let deleted = block_on(admin.delete_records(&at(&topic, 0, 50), &options))?;
    ensure!(deleted.elements()[0].error().is_ok());
    let client: BaseConsumer = consumer(bootstrap, &unique("g")).create()?;
    ensure!(client.fetch_watermarks(&topic, 0, PATIENCE)? == (50, 100));
    ensure!(read_all(bootstrap, &topic, 1, &[])?.first().map(|record| record.offset) == Some(50));
    let beyond = block_on(admin.delete_records(&at(&topic, 0, 101), &options))?;
    let code = beyond.elements()[0].error().err().and_then(|error| error.rdkafka_error_code());
    ensure!(code == Some(RDKafkaErrorCode::OffsetOutOfRange), "{code:?}");
    Ok(())
}

#[test]
fn the_broker_describes_its_own_settings() -> Result<()> {
    let server = Server::start();
    let described =
        block_on(admin(server.bootstrap()).describe_configs(&[ResourceSpecifier::Broker(1)], &admin_options()))?;
    let settings = described[0].as_ref().map_err(|code| anyhow::anyhow!("{code}"))?;
    let idle = settings.entry_map().get("connections.max.idle.ms").and_then(|entry| entry.value.clone());
    ensure!(idle.context("connections.max.idle.ms")? == "600000");
    Ok(())
}

#[test]
fn groups_are_listed_and_an_empty_one_is_deleted() -> Result<()> {
    let server = Server::start();
    let (bootstrap, topic, group) = (server.bootstrap(), unique("listed"), unique("g"));
    create_topic(bootstrap, &topic, 1, &[])?;
    let reader: BaseConsumer = consumer(bootstrap, &group).create()?;
    commit(&reader, &at(&topic, 0, 0))?;
    let listed = || {
        let groups = reader.fetch_group_list(None, PATIENCE)?;
        anyhow::Ok(groups.groups().iter().any(|listed| listed.name() == group))
    };
    wait_for("the group in the list", listed)?;
    ensure!(block_on(admin(bootstrap).delete_groups(&[&group], &admin_options()))?[0].is_ok());
    wait_for("the group to be gone", || Ok(!listed()?))
}
