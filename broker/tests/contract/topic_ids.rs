//! Topics by id, and offsets by other things than numbers: what newer clients ask of the log.

use anyhow::{Context as _, Result, ensure};
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::delete_topics_request::DeleteTopicState;
use kafka_protocol::messages::describe_topic_partitions_request::{Cursor, TopicRequest};
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::offset_for_leader_epoch_request::{OffsetForLeaderPartition, OffsetForLeaderTopic};
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{
    BrokerId, DeleteTopicsRequest, DescribeTopicPartitionsRequest, FetchRequest, FetchResponse, ListOffsetsRequest,
    MetadataRequest, OffsetForLeaderEpochRequest, ProduceRequest,
};
use uuid::Uuid;

use crate::support::{Server, create_topic, read_all, unique, wait_for};
use crate::wire::{Wire, batch, name, topic_id};

/// The first version of Produce and Fetch whose topics are ids.
const BY_ID: i16 = 13;

fn produce(wire: &mut Wire, topic: Uuid, values: &[&str]) -> Result<(i16, i64)> {
    let data = PartitionProduceData::default().with_records(Some(batch(values, None)));
    let topics = vec![TopicProduceData::default().with_topic_id(topic).with_partition_data(vec![data])];
    let request = ProduceRequest::default().with_acks(-1).with_timeout_ms(10_000).with_topic_data(topics);
    let answer = wire.ask(&request, BY_ID)?;
    let topic_answer = answer.responses.first().context("an answer for the topic")?;
    ensure!(topic_answer.topic_id == topic);
    let partition = topic_answer.partition_responses.first().context("an answer for the partition")?;
    Ok((partition.error_code, partition.base_offset))
}

fn fetch(wire: &mut Wire, topic: Uuid, change: impl FnOnce(FetchRequest) -> FetchRequest) -> Result<FetchResponse> {
    let partition = FetchPartition::default().with_partition_max_bytes(1 << 20);
    let topics = vec![FetchTopic::default().with_topic_id(topic).with_partitions(vec![partition])];
    let request = FetchRequest::default().with_max_bytes(1 << 20).with_max_wait_ms(100).with_topics(topics);
    wire.ask(&change(request), BY_ID)
}

fn first_error(answer: &FetchResponse) -> i16 {
    answer.responses[0].partitions[0].error_code
}

#[test]
fn a_topic_that_is_made_again_has_another_id_and_the_old_one_is_unknown() -> Result<()> {
    let server = Server::start();
    let (bootstrap, topic) = (server.bootstrap(), unique("ids"));
    create_topic(bootstrap, &topic, 1, &[])?;
    let mut wire = Wire::connect(bootstrap)?;
    let old = topic_id(&mut wire, &topic)?;
    ensure!(produce(&mut wire, old, &["a", "b"])? == (0, 0));
    let fetched = fetch(&mut wire, old, |request| request)?;
    ensure!(fetched.responses[0].topic_id == old && fetched.responses[0].partitions[0].high_watermark == 2);
    let by_id = MetadataRequestTopic::default().with_topic_id(old).with_name(None);
    let metadata = wire.ask(&MetadataRequest::default().with_topics(Some(vec![by_id.clone()])), 12)?;
    ensure!(metadata.topics[0].name.as_ref().is_some_and(|found| found.as_str() == topic));

    let meant = DeleteTopicState::default().with_name(None).with_topic_id(old);
    let request = DeleteTopicsRequest::default().with_topics(vec![meant]).with_timeout_ms(10_000);
    let deleted = wire.ask(&request, 6)?;
    ensure!(deleted.responses[0].error_code == 0 && deleted.responses[0].topic_id == old, "{deleted:?}");
    wait_for("the topic to be made again", || Ok(create_topic(bootstrap, &topic, 1, &[]).is_ok()))?;
    let new = topic_id(&mut wire, &topic)?;
    ensure!(new != old);
    let unknown = ResponseError::UnknownTopicId.code();
    ensure!(produce(&mut wire, old, &["c"])?.0 == unknown);
    ensure!(first_error(&fetch(&mut wire, old, |request| request)?) == unknown);
    let metadata = wire.ask(&MetadataRequest::default().with_topics(Some(vec![by_id])), 12)?;
    ensure!(metadata.topics[0].error_code == unknown && metadata.topics[0].name.is_none());
    ensure!(read_all(bootstrap, &topic, 1, &[])?.is_empty());
    Ok(())
}

#[test]
fn a_topic_keeps_its_id_over_a_restart_and_new_partitions() -> Result<()> {
    let mut server = Server::with(|_| ());
    let topic = unique("kept");
    create_topic(server.bootstrap(), &topic, 1, &[])?;
    let before = topic_id(&mut Wire::connect(server.bootstrap())?, &topic)?;
    server.crash();
    server.start_again();
    ensure!(topic_id(&mut Wire::connect(server.bootstrap())?, &topic)? == before);
    Ok(())
}

#[test]
fn a_fetch_session_that_is_not_known_is_refused() -> Result<()> {
    let server = Server::start();
    let topic = unique("session");
    create_topic(server.bootstrap(), &topic, 1, &[])?;
    let mut wire = Wire::connect(server.bootstrap())?;
    let id = topic_id(&mut wire, &topic)?;
    let answer = fetch(&mut wire, id, |request| request.with_session_id(77).with_session_epoch(3))?;
    ensure!(answer.error_code == ResponseError::FetchSessionIdNotFound.code(), "{answer:?}");
    Ok(())
}

#[test]
fn epochs_of_the_leader_that_have_not_been_are_unknown() -> Result<()> {
    let server = Server::start();
    let topic = unique("epochs");
    create_topic(server.bootstrap(), &topic, 1, &[])?;
    let mut wire = Wire::connect(server.bootstrap())?;
    let id = topic_id(&mut wire, &topic)?;
    ensure!(produce(&mut wire, id, &["a", "b", "c"])?.0 == 0);
    let mut end_of = |current: i32, epoch: i32| {
        let partition = OffsetForLeaderPartition::default().with_current_leader_epoch(current).with_leader_epoch(epoch);
        let asked = OffsetForLeaderTopic::default().with_topic(name(&topic)).with_partitions(vec![partition]);
        let request = OffsetForLeaderEpochRequest::default().with_replica_id(BrokerId(-1)).with_topics(vec![asked]);
        let answer = wire.ask(&request, 4)?;
        let end = &answer.topics[0].partitions[0];
        anyhow::Ok((end.error_code, end.leader_epoch, end.end_offset))
    };
    ensure!(end_of(-1, 0)? == (0, 0, 3));
    ensure!(end_of(0, 7)? == (0, -1, -1));
    ensure!(end_of(9, 0)?.0 == ResponseError::UnknownLeaderEpoch.code());
    let later = fetch(&mut wire, id, |mut request| {
        request.topics[0].partitions[0].current_leader_epoch = 9;
        request
    })?;
    ensure!(first_error(&later) == ResponseError::UnknownLeaderEpoch.code(), "{later:?}");
    Ok(())
}

#[test]
fn the_newest_record_is_found_by_its_time_also_before_later_ones() -> Result<()> {
    let server = Server::start();
    let topic = unique("newest");
    // The smallest segments that Apache Kafka allows, so that several are looked through.
    create_topic(server.bootstrap(), &topic, 1, &[("segment.bytes", "1048576")])?;
    let mut wire = Wire::connect(server.bootstrap())?;
    let id = topic_id(&mut wire, &topic)?;
    let newest = |wire: &mut Wire| {
        let partition = ListOffsetsPartition::default().with_timestamp(-3);
        let asked = ListOffsetsTopic::default().with_name(name(&topic)).with_partitions(vec![partition]);
        let request = ListOffsetsRequest::default().with_replica_id(BrokerId(-1)).with_topics(vec![asked]);
        let answer = wire.ask(&request, 7)?;
        let found = &answer.topics[0].partitions[0];
        ensure!(found.error_code == 0, "{found:?}");
        Ok(found.offset)
    };
    ensure!(newest(&mut wire)? == -1, "there is none yet");
    // Later values of a batch are newer; the batch behind it begins at the same time anew, and is shorter.
    let filler = "x".repeat(400_000);
    ensure!(produce(&mut wire, id, &["a", &filler, "c", "d", "e"])?.0 == 0);
    for _ in 0..4 {
        ensure!(produce(&mut wire, id, &[&filler])?.0 == 0);
    }
    let found = newest(&mut wire)?;
    ensure!((3..=8).contains(&found), "{found}");
    Ok(())
}

#[test]
fn partitions_are_described_page_by_page() -> Result<()> {
    let server = Server::start();
    let (one, two) = (unique("page-a"), unique("page-b"));
    create_topic(server.bootstrap(), &one, 3, &[])?;
    create_topic(server.bootstrap(), &two, 2, &[])?;
    let mut wire = Wire::connect(server.bootstrap())?;
    let mut seen = Vec::new();
    let mut cursor: Option<Cursor> = None;
    for _ in 0..5 {
        let topics = [&two, &one].map(|topic| TopicRequest::default().with_name(name(topic)));
        let request = DescribeTopicPartitionsRequest::default()
            .with_topics(topics.to_vec())
            .with_response_partition_limit(2)
            .with_cursor(cursor.take());
        let answer = wire.ask(&request, 0)?;
        for topic in &answer.topics {
            ensure!(topic.error_code == 0 && !topic.topic_id.is_nil(), "{topic:?}");
            let found = topic.name.as_ref().map_or("", |name| name.as_str()).to_owned();
            seen.extend(topic.partitions.iter().map(|partition| (found.clone(), partition.partition_index)));
        }
        match answer.next_cursor {
            None => break,
            Some(next) => {
                cursor =
                    Some(Cursor::default().with_topic_name(next.topic_name).with_partition_index(next.partition_index));
            }
        }
    }
    let expected: Vec<_> = (0..3).map(|i| (one.clone(), i)).chain((0..2).map(|i| (two.clone(), i))).collect();
    ensure!(seen == expected, "{seen:?}");
    Ok(())
}
