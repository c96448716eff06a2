//! What administrators' tools depend on: answers about the cluster, groups, producers and transactions.

use anyhow::{Context as _, Result, ensure};
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::alter_partition_reassignments_request::{ReassignablePartition, ReassignableTopic};
use kafka_protocol::messages::create_partitions_request::{CreatePartitionsAssignment, CreatePartitionsTopic};
use kafka_protocol::messages::delete_records_request::{DeleteRecordsPartition, DeleteRecordsTopic};
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::describe_producers_request::TopicRequest;
use kafka_protocol::messages::elect_leaders_request::TopicPartitions;
use kafka_protocol::messages::incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig};
use kafka_protocol::messages::offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic};
use kafka_protocol::messages::offset_delete_request::{OffsetDeleteRequestPartition, OffsetDeleteRequestTopic};
use kafka_protocol::messages::offset_fetch_request::OffsetFetchRequestGroup;
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{
    AlterPartitionReassignmentsRequest, BrokerId, CreatePartitionsRequest, DeleteRecordsRequest, DescribeAclsRequest,
    DescribeClusterRequest, DescribeConfigsRequest, DescribeGroupsRequest, DescribeLogDirsRequest,
    DescribeProducersRequest, DescribeTransactionsRequest, ElectLeadersRequest, EndTxnRequest, FindCoordinatorRequest,
    GroupId, IncrementalAlterConfigsRequest, InitProducerIdRequest, InitProducerIdResponse, ListGroupsRequest,
    ListTransactionsRequest, OffsetCommitRequest, OffsetDeleteRequest, OffsetFetchRequest, ProduceRequest, ProducerId,
    TransactionalId,
};
use kafka_protocol::protocol::StrBytes;
use rdkafka::consumer::{BaseConsumer, Consumer as _};

use crate::support::{COMMITTED, Server, consumer, create_topic, produce, read_all, unique, wait_for};
use crate::wire::{Wire, batch, name};

const TOPIC: i8 = 2;

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

fn group_id(group: &str) -> GroupId {
    GroupId(text(group))
}

fn commit(wire: &mut Wire, group: &str, topic: &str, offset: i64) -> Result<i16> {
    let partition = OffsetCommitRequestPartition::default().with_committed_offset(offset);
    let committed = OffsetCommitRequestTopic::default().with_name(name(topic)).with_partitions(vec![partition]);
    let request = OffsetCommitRequest::default().with_group_id(group_id(group)).with_generation_id_or_member_epoch(-1);
    Ok(wire.ask(&request.with_topics(vec![committed]), 8)?.topics[0].partitions[0].error_code)
}

/// All committed offsets of some groups.
fn committed(wire: &mut Wire, groups: &[&str]) -> Result<Vec<(String, Vec<i64>)>> {
    let asked =
        groups.iter().map(|group| OffsetFetchRequestGroup::default().with_group_id(group_id(group)).with_topics(None));
    let answer = wire.ask(&OffsetFetchRequest::default().with_groups(asked.collect()), 8)?;
    let offsets = answer.groups.into_iter().map(|group| {
        let offsets = group.topics.iter().flat_map(|topic| &topic.partitions).map(|found| found.committed_offset);
        (group.group_id.to_string(), offsets.collect())
    });
    Ok(offsets.collect())
}

#[test]
fn offsets_of_several_groups_are_told_at_once_and_deleted_one_by_one() -> Result<()> {
    let server = Server::start();
    let (topic, first, second) = (unique("offsets"), unique("g1"), unique("g2"));
    create_topic(server.bootstrap(), &topic, 2, &[])?;
    let mut wire = Wire::connect(server.bootstrap())?;
    wait_for("the coordinator", || Ok(commit(&mut wire, &first, &topic, 3)? == 0))?;
    ensure!(commit(&mut wire, &second, &topic, 5)? == 0);
    let expected = [(first.clone(), vec![3]), (second.clone(), vec![5])];
    ensure!(committed(&mut wire, &[&first, &second])? == expected);

    let mut delete = |group: &str| {
        let partition = OffsetDeleteRequestPartition::default().with_partition_index(0);
        let topics = vec![OffsetDeleteRequestTopic::default().with_name(name(&topic)).with_partitions(vec![partition])];
        let answer = wire.ask(&OffsetDeleteRequest::default().with_group_id(group_id(group)).with_topics(topics), 0)?;
        let of_partition = answer.topics.first().map_or(0, |topic| topic.partitions[0].error_code);
        anyhow::Ok((answer.error_code, of_partition))
    };
    ensure!(delete(&first)? == (0, 0));
    ensure!(delete(&unique("absent"))?.0 == ResponseError::GroupIdNotFound.code());
    let reader: BaseConsumer = consumer(server.bootstrap(), &second).create()?;
    reader.subscribe(&[&topic])?;
    wait_for("the member's partitions", || {
        let _ = reader.poll(std::time::Duration::from_millis(10));
        Ok(reader.assignment()?.count() == 2)
    })?;
    ensure!(delete(&second)? == (0, ResponseError::GroupSubscribedToTopic.code()), "a member reads the topic");
    let expected = [(first.clone(), vec![]), (second.clone(), vec![5])];
    ensure!(committed(&mut wire, &[&first, &second])? == expected);
    Ok(())
}

#[test]
fn coordinators_are_found_for_several_keys_and_not_for_other_kinds() -> Result<()> {
    let server = Server::start();
    let mut wire = Wire::connect(server.bootstrap())?;
    let keys = vec![text("one"), text("two")];
    let request = FindCoordinatorRequest::default().with_coordinator_keys(keys);
    wait_for("coordinators for both", || {
        let found = wire.ask(&request, 4)?.coordinators;
        let keys: Vec<_> = found.iter().map(|c| (c.key.as_str(), c.node_id)).collect();
        Ok(keys == [("one", BrokerId(1)), ("two", BrokerId(1))])
    })?;
    let request = FindCoordinatorRequest::default().with_key_type(9).with_coordinator_keys(vec![text("one")]);
    ensure!(wire.ask(&request, 4)?.coordinators[0].error_code == ResponseError::InvalidRequest.code());
    Ok(())
}

#[test]
fn groups_have_a_type_and_unknown_ones_are_not_found() -> Result<()> {
    let server = Server::start();
    let (topic, group) = (unique("typed"), unique("g"));
    create_topic(server.bootstrap(), &topic, 1, &[])?;
    let mut wire = Wire::connect(server.bootstrap())?;
    wait_for("the coordinator", || Ok(commit(&mut wire, &group, &topic, 0)? == 0))?;
    let mut listed = |kind: &str, state: &str| {
        let request =
            ListGroupsRequest::default().with_types_filter(vec![text(kind)]).with_states_filter(vec![text(state)]);
        let groups = wire.ask(&request, 5)?.groups;
        anyhow::Ok(groups.into_iter().find(|found| found.group_id.as_str() == group))
    };
    let found = listed("classic", "empty")?.context("the group among the classic ones")?;
    ensure!(
        (found.group_type.to_lowercase().as_str(), found.group_state.as_str()) == ("classic", "Empty"),
        "{found:?}"
    );
    ensure!(listed("consumer", "empty")?.is_none() && listed("classic", "stable")?.is_none());
    let absent = unique("absent");
    let described = wire.ask(&DescribeGroupsRequest::default().with_groups(vec![group_id(&absent)]), 6)?;
    ensure!(described.groups[0].error_code == ResponseError::GroupIdNotFound.code(), "{described:?}");
    let described = wire.ask(&DescribeGroupsRequest::default().with_groups(vec![group_id(&absent)]), 5)?;
    ensure!((described.groups[0].error_code, described.groups[0].group_state.as_str()) == (0, "Dead"), "{described:?}");
    Ok(())
}

fn init(wire: &mut Wire, id: &str, expected: (i64, i16)) -> Result<InitProducerIdResponse> {
    let request = InitProducerIdRequest::default()
        .with_transactional_id(Some(TransactionalId(text(id))))
        .with_transaction_timeout_ms(30_000)
        .with_producer_id(ProducerId(expected.0))
        .with_producer_epoch(expected.1);
    // A cluster prepares itself for transactions when the first coordinator is looked for.
    let key = FindCoordinatorRequest::default().with_key_type(1).with_coordinator_keys(vec![text(id)]);
    wait_for("the coordinator", || Ok(wire.ask(&key, 4)?.coordinators[0].error_code == 0))?;
    let mut answer = wire.ask(&request, 4)?;
    // It may still be loading, or ending the transaction before.
    let later = [
        ResponseError::CoordinatorLoadInProgress,
        ResponseError::CoordinatorNotAvailable,
        ResponseError::NotCoordinator,
        ResponseError::ConcurrentTransactions,
    ];
    wait_for("the producer id", || {
        if later.iter().any(|error| error.code() == answer.error_code) {
            answer = wire.ask(&request, 4)?;
        }
        Ok(!later.iter().any(|error| error.code() == answer.error_code))
    })?;
    Ok(answer)
}

fn produce_in(wire: &mut Wire, topic: &str, id: &str, producer: (i64, i16, i32)) -> Result<i16> {
    let data = PartitionProduceData::default().with_records(Some(batch(&["in transaction"], Some(producer))));
    let topics = vec![TopicProduceData::default().with_name(name(topic)).with_partition_data(vec![data])];
    let request = ProduceRequest::default().with_acks(-1).with_timeout_ms(10_000).with_topic_data(topics);
    let answer = wire.ask(&request.with_transactional_id(Some(TransactionalId(text(id)))), 12)?;
    Ok(answer.responses[0].partition_responses[0].error_code)
}

#[test]
fn a_batch_of_version_12_adds_its_partition_and_the_transaction_can_be_looked_at() -> Result<()> {
    let server = Server::start();
    let (topic, id) = (unique("inspect"), unique("tx"));
    create_topic(server.bootstrap(), &topic, 2, &[])?;
    let mut wire = Wire::connect(server.bootstrap())?;
    let producer = init(&mut wire, &id, (-1, -1))?;
    ensure!(producer.error_code == 0, "{producer:?}");
    let (producer_id, epoch) = (producer.producer_id.0, producer.producer_epoch);
    ensure!(produce_in(&mut wire, &topic, &id, (producer_id, epoch, 0))? == 0);

    let request = DescribeTransactionsRequest::default();
    let request = request.with_transactional_ids(vec![TransactionalId(text(&id)), TransactionalId(text("absent"))]);
    let described = wire.ask(&request, 0)?.transaction_states;
    let state = &described[0];
    ensure!(
        (state.transaction_state.as_str(), state.producer_id.0, state.producer_epoch)
            == ("Ongoing", producer_id, epoch)
    );
    ensure!(state.topics.len() == 1 && state.topics[0].partitions == [0] && state.transaction_start_time_ms > 0);
    ensure!(described[1].error_code == ResponseError::TransactionalIdNotFound.code());
    let ongoing = ListTransactionsRequest::default().with_state_filters(vec![text("Ongoing"), text("Odd")]);
    let listed = wire.ask(&ongoing.with_duration_filter(-1), 1)?;
    ensure!(listed.transaction_states.iter().any(|state| state.transactional_id.as_str() == id), "{listed:?}");
    ensure!(listed.unknown_state_filters == [text("Odd")]);
    let long = ListTransactionsRequest::default().with_duration_filter(3_600_000);
    ensure!(wire.ask(&long, 1)?.transaction_states.iter().all(|state| state.transactional_id.as_str() != id));

    let asked = TopicRequest::default().with_name(name(&topic)).with_partition_indexes(vec![0, 7]);
    let producers = wire.ask(&DescribeProducersRequest::default().with_topics(vec![asked]), 0)?;
    let partitions = &producers.topics[0].partitions;
    let known = partitions[0].active_producers.first().context("the producer")?;
    ensure!(
        (known.producer_id.0, known.last_sequence, known.current_txn_start_offset) == (producer_id, 0, 0),
        "{known:?}"
    );
    ensure!(partitions[1].error_code == ResponseError::UnknownTopicOrPartition.code());

    let end = EndTxnRequest::default().with_transactional_id(TransactionalId(text(&id))).with_committed(true);
    let end = end.with_producer_id(ProducerId(producer_id)).with_producer_epoch(epoch);
    ensure!(wire.ask(&end, 3)?.error_code == 0);
    wait_for("the committed record", || Ok(read_all(server.bootstrap(), &topic, 2, COMMITTED)?.len() == 1))
}

#[test]
fn a_producer_that_asks_again_for_its_epoch_gets_the_same_one() -> Result<()> {
    let server = Server::start();
    let id = unique("tx");
    let mut wire = Wire::connect(server.bootstrap())?;
    let first = init(&mut wire, &id, (-1, -1))?;
    let present = (first.producer_id.0, first.producer_epoch);
    let second = init(&mut wire, &id, present)?;
    ensure!((second.error_code, second.producer_epoch) == (0, present.1 + 1), "{second:?}");
    let again = init(&mut wire, &id, present)?;
    ensure!((again.error_code, again.producer_epoch) == (0, present.1 + 1), "the answer may have been lost: {again:?}");
    let another = init(&mut wire, &id, (-1, -1))?;
    ensure!(another.producer_epoch == present.1 + 2, "{another:?}");
    let zombie = init(&mut wire, &id, (present.0, present.1 + 1))?;
    ensure!(zombie.error_code == ResponseError::ProducerFenced.code(), "{zombie:?}");
    Ok(())
}

#[test]
fn the_cluster_is_described_as_one_node_that_leads_everything() -> Result<()> {
    let server = Server::start();
    let topic = unique("cluster");
    create_topic(server.bootstrap(), &topic, 1, &[])?;
    produce(server.bootstrap(), &topic, Some(0), 0..10, &[])?;
    let mut wire = Wire::connect(server.bootstrap())?;
    let request = DescribeClusterRequest::default().with_include_cluster_authorized_operations(true);
    let cluster = wire.ask(&request, 1)?;
    let port = server.bootstrap().rsplit(':').next().context("a port")?.parse::<i32>()?;
    ensure!(cluster.brokers.len() == 1 && cluster.brokers[0].port == port && cluster.controller_id == BrokerId(1));
    ensure!(cluster.cluster_authorized_operations > 0 && !cluster.cluster_id.is_empty());
    ensure!(wire.ask(&request.with_endpoint_type(2), 1)?.error_code != 0, "there is no endpoint of controllers");

    let asked = TopicPartitions::default().with_topic(name(&topic)).with_partitions(vec![0, 9]);
    let election = ElectLeadersRequest::default().with_topic_partitions(Some(vec![asked])).with_timeout_ms(10_000);
    let results = wire.ask(&election, 2)?.replica_election_results;
    let mut codes: Vec<_> =
        results.iter().flat_map(|r| &r.partition_result).map(|r| (r.partition_id, r.error_code)).collect();
    codes.sort_unstable();
    let expected = [(0, ResponseError::ElectionNotNeeded), (9, ResponseError::UnknownTopicOrPartition)];
    ensure!(codes == expected.map(|(partition, error)| (partition, error.code())), "{codes:?}");

    let mut reassign = |partition: i32, replicas: Option<Vec<BrokerId>>| {
        let partition = ReassignablePartition::default().with_partition_index(partition).with_replicas(replicas);
        let topics = vec![ReassignableTopic::default().with_name(name(&topic)).with_partitions(vec![partition])];
        let request = AlterPartitionReassignmentsRequest::default().with_topics(topics).with_timeout_ms(10_000);
        anyhow::Ok(wire.ask(&request, 0)?.responses[0].partitions[0].error_code)
    };
    ensure!(reassign(0, Some(vec![BrokerId(1)]))? == 0);
    ensure!(reassign(0, Some(vec![BrokerId(7)]))? == ResponseError::InvalidReplicaAssignment.code());
    ensure!(reassign(0, None)? == ResponseError::NoReassignmentInProgress.code());
    ensure!(reassign(9, None)? == ResponseError::UnknownTopicOrPartition.code());

    let dirs = wire.ask(&DescribeLogDirsRequest::default().with_topics(None), 4)?;
    let described = dirs.results.iter().flat_map(|dir| &dir.topics).find(|found| found.name.as_str() == topic);
    ensure!(described.context("the topic's size")?.partitions[0].partition_size > 100);
    let any = DescribeAclsRequest::default().with_resource_type_filter(1).with_pattern_type_filter(1);
    let acls = wire.ask(&any.with_operation(1).with_permission_type(1), 1)?;
    ensure!(acls.error_code == ResponseError::SecurityDisabled.code(), "{acls:?}");
    Ok(())
}

#[test]
fn settings_are_changed_one_by_one_and_show_what_they_hide() -> Result<()> {
    let server = Server::start();
    let topic = unique("settings");
    create_topic(server.bootstrap(), &topic, 1, &[])?;
    let mut wire = Wire::connect(server.bootstrap())?;
    let mut alter = |setting: &str, operation: i8, value: Option<&str>| {
        let config = AlterableConfig::default().with_name(text(setting)).with_config_operation(operation);
        let resource = AlterConfigsResource::default().with_resource_type(TOPIC).with_resource_name(text(&topic));
        let resource = resource.with_configs(vec![config.with_value(value.map(text))]);
        let request = IncrementalAlterConfigsRequest::default().with_resources(vec![resource]);
        anyhow::Ok(wire.ask(&request, 1)?.responses[0].error_code)
    };
    ensure!(alter("cleanup.policy", 2, Some("compact"))? == 0);
    ensure!(alter("retention.ms", 0, Some("7200000"))? == 0);
    ensure!(alter("retention.ms", 2, Some("1"))? == ResponseError::InvalidConfig.code(), "it is no list");
    let mut wire = Wire::connect(server.bootstrap())?;
    let mut values = |setting: &str| {
        let resource = DescribeConfigsResource::default().with_resource_type(TOPIC).with_resource_name(text(&topic));
        let resource = resource.with_configuration_keys(Some(vec![text(setting)]));
        let request = DescribeConfigsRequest::default().with_resources(vec![resource]).with_include_synonyms(true);
        let answer = wire.ask(&request, 4)?;
        let found = answer.results[0].configs.first().context("the setting")?;
        let hidden = found.synonyms.iter().map(|synonym| synonym.value.as_deref().unwrap_or_default().to_owned());
        anyhow::Ok((found.value.as_deref().unwrap_or_default().to_owned(), hidden.collect::<Vec<_>>()))
    };
    let (policy, hidden) = values("cleanup.policy")?;
    ensure!(policy == "delete,compact" && hidden == ["delete,compact", "delete"], "{policy} {hidden:?}");
    ensure!(values("retention.ms")?.0 == "7200000");
    Ok(())
}

#[test]
fn partitions_and_records_are_changed_only_where_they_may_be() -> Result<()> {
    let server = Server::start();
    let (topic, compacted) = (unique("grow"), unique("compacted"));
    create_topic(server.bootstrap(), &topic, 2, &[])?;
    create_topic(server.bootstrap(), &compacted, 1, &[("cleanup.policy", "compact")])?;
    produce(server.bootstrap(), &compacted, Some(0), 0..5, &[])?;
    let mut wire = Wire::connect(server.bootstrap())?;
    let mut grow = |count: i32, assigned: Option<Vec<i32>>| {
        let assign = |id: i32| CreatePartitionsAssignment::default().with_broker_ids(vec![BrokerId(id)]);
        let assignments = assigned.map(|ids| ids.into_iter().map(assign).collect());
        let new = CreatePartitionsTopic::default().with_name(name(&topic)).with_count(count);
        let request = CreatePartitionsRequest::default().with_topics(vec![new.with_assignments(assignments)]);
        anyhow::Ok(wire.ask(&request.with_timeout_ms(10_000), 1)?.results[0].error_code)
    };
    ensure!(grow(2, None)? == ResponseError::InvalidPartitions.code());
    ensure!(grow(3, Some(vec![7]))? == ResponseError::InvalidReplicaAssignment.code());
    ensure!(grow(4, Some(vec![1]))? == ResponseError::InvalidReplicaAssignment.code());
    ensure!(grow(3, Some(vec![1]))? == 0);
    let partition = DeleteRecordsPartition::default().with_offset(3);
    let asked = DeleteRecordsTopic::default().with_name(name(&compacted)).with_partitions(vec![partition]);
    let request = DeleteRecordsRequest::default().with_topics(vec![asked]).with_timeout_ms(10_000);
    let answer = wire.ask(&request, 2)?;
    ensure!(answer.topics[0].partitions[0].error_code == ResponseError::PolicyViolation.code(), "{answer:?}");
    Ok(())
}
