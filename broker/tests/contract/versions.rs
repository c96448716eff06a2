//! Every request in every version that the broker advertises: it is answered, and the answer is that version's.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, ensure};
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::delete_records_request::{DeleteRecordsPartition, DeleteRecordsTopic};
use kafka_protocol::messages::delete_topics_request::DeleteTopicState;
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic};
use kafka_protocol::messages::offset_fetch_request::{
    OffsetFetchRequestGroup, OffsetFetchRequestTopic, OffsetFetchRequestTopics,
};
use kafka_protocol::messages::offset_for_leader_epoch_request::{OffsetForLeaderPartition, OffsetForLeaderTopic};
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{
    AddOffsetsToTxnRequest, AddPartitionsToTxnRequest, AlterConfigsRequest, AlterPartitionReassignmentsRequest,
    ApiVersionsRequest, BrokerId, CreateAclsRequest, CreatePartitionsRequest, CreateTopicsRequest, DeleteAclsRequest,
    DeleteGroupsRequest, DeleteRecordsRequest, DeleteTopicsRequest, DescribeAclsRequest, DescribeClientQuotasRequest,
    DescribeClusterRequest, DescribeConfigsRequest, DescribeGroupsRequest, DescribeLogDirsRequest,
    DescribeProducersRequest, DescribeTopicPartitionsRequest, DescribeTransactionsRequest,
    DescribeUserScramCredentialsRequest, ElectLeadersRequest, EndTxnRequest, FetchRequest, FindCoordinatorRequest,
    GroupId, HeartbeatRequest, IncrementalAlterConfigsRequest, InitProducerIdRequest, JoinGroupRequest,
    LeaveGroupRequest, ListConfigResourcesRequest, ListGroupsRequest, ListOffsetsRequest,
    ListPartitionReassignmentsRequest, ListTransactionsRequest, MetadataRequest, OffsetCommitRequest,
    OffsetDeleteRequest, OffsetFetchRequest, OffsetForLeaderEpochRequest, ProduceRequest, SyncGroupRequest, TopicName,
    TransactionalId, TxnOffsetCommitRequest,
};
use kafka_protocol::protocol::{Request, StrBytes};

use crate::support::{Server, create_topic, produce, unique};
use crate::wire::{Wire, batch, name, topic_id};

/// Asks in all versions that both the broker and this test know.
struct Each {
    wire: Wire,
    advertised: BTreeMap<i16, (i16, i16)>,
    asked: BTreeSet<i16>,
}

impl Each {
    fn of<Q: Request>(&mut self, request: impl Fn(i16) -> Q) -> Result<()> {
        self.up_to(Q::VERSIONS.max, request)
    }

    fn up_to<Q: Request>(&mut self, last: i16, request: impl Fn(i16) -> Q) -> Result<()> {
        let (least, most) = *self.advertised.get(&Q::KEY).with_context(|| format!("{} is not served", Q::KEY))?;
        self.asked.insert(Q::KEY);
        for version in least.max(Q::VERSIONS.min)..=most.min(last) {
            let answer = self.wire.ask(&request(version), version);
            answer.with_context(|| format!("request {} version {version}", Q::KEY))?;
        }
        Ok(())
    }
}

#[test]
fn every_advertised_version_of_every_request_is_answered() -> Result<()> {
    let server = Server::start();
    let (bootstrap, topic, group) = (server.bootstrap(), unique("each"), unique("g"));
    create_topic(bootstrap, &topic, 2, &[])?;
    produce(bootstrap, &topic, Some(0), 0..5, &[])?;
    let mut wire = Wire::connect(bootstrap)?;
    let advertised = wire.versions()?.into_iter().map(|api| (api.api_key, (api.min_version, api.max_version)));
    let advertised: BTreeMap<_, _> = advertised.collect();
    let mut each = Each { wire, advertised, asked: BTreeSet::new() };
    records(&mut each, &topic, bootstrap)?;
    topics(&mut each, &topic)?;
    groups(&mut each, &topic, &group)?;
    transactions(&mut each)?;
    cluster(&mut each, &topic)?;
    let unasked: Vec<_> = each.advertised.keys().filter(|key| !each.asked.contains(*key)).collect();
    ensure!(!server.is_embedded() || unasked.is_empty(), "advertised and not asked: {unasked:?}");
    Ok(())
}

fn records(each: &mut Each, topic: &str, bootstrap: &str) -> Result<()> {
    let id = topic_id(&mut Wire::connect(bootstrap)?, topic)?;
    each.of(|version| {
        let named = TopicProduceData::default();
        let named = if version >= 13 { named.with_topic_id(id) } else { named.with_name(name(topic)) };
        let data = PartitionProduceData::default().with_index(0).with_records(Some(batch(&["v"], None)));
        ProduceRequest::default()
            .with_acks(-1)
            .with_timeout_ms(1000)
            .with_topic_data(vec![named.with_partition_data(vec![data])])
    })?;
    each.of(|version| {
        let named = FetchTopic::default();
        let named = if version >= 13 { named.with_topic_id(id) } else { named.with_topic(name(topic)) };
        let partition = FetchPartition::default().with_partition_max_bytes(1 << 20);
        FetchRequest::default()
            .with_max_bytes(1 << 20)
            .with_min_bytes(1)
            .with_topics(vec![named.with_partitions(vec![partition])])
    })?;
    each.of(|_| {
        let partition = ListOffsetsPartition::default().with_timestamp(-1);
        let asked = ListOffsetsTopic::default().with_name(name(topic)).with_partitions(vec![partition]);
        ListOffsetsRequest::default().with_replica_id(BrokerId(-1)).with_topics(vec![asked])
    })?;
    each.of(|_| {
        let partition = OffsetForLeaderPartition::default().with_leader_epoch(0);
        let asked = OffsetForLeaderTopic::default().with_topic(name(topic)).with_partitions(vec![partition]);
        OffsetForLeaderEpochRequest::default().with_topics(vec![asked])
    })?;
    each.of(|_| {
        let partition = DeleteRecordsPartition::default().with_offset(0);
        let asked = DeleteRecordsTopic::default().with_name(name(topic)).with_partitions(vec![partition]);
        DeleteRecordsRequest::default().with_topics(vec![asked]).with_timeout_ms(1000)
    })
}

fn topics(each: &mut Each, topic: &str) -> Result<()> {
    each.of(|_| ApiVersionsRequest::default().with_client_software_name(StrBytes::from_static_str("wire")))?;
    each.of(|_| {
        let asked = MetadataRequestTopic::default().with_name(Some(name(topic)));
        MetadataRequest::default().with_topics(Some(vec![asked]))
    })?;
    each.of(|_| DescribeTopicPartitionsRequest::default().with_response_partition_limit(10))?;
    each.of(|_| {
        let new = CreatableTopic::default().with_name(name(&unique("new")));
        let new = new.with_num_partitions(1).with_replication_factor(1);
        CreateTopicsRequest::default().with_topics(vec![new]).with_validate_only(true).with_timeout_ms(1000)
    })?;
    each.of(|version| {
        let absent = name(&unique("absent"));
        if version >= 6 {
            let meant = DeleteTopicState::default().with_name(Some(absent));
            DeleteTopicsRequest::default().with_topics(vec![meant]).with_timeout_ms(1000)
        } else {
            DeleteTopicsRequest::default().with_topic_names(vec![absent]).with_timeout_ms(1000)
        }
    })?;
    each.of(|_| CreatePartitionsRequest::default().with_timeout_ms(1000))?;
    each.of(|_| {
        let resource = DescribeConfigsResource::default().with_resource_type(2);
        let resource = resource.with_resource_name(StrBytes::from_string(topic.to_owned()));
        DescribeConfigsRequest::default().with_resources(vec![resource]).with_include_synonyms(true)
    })?;
    each.of(|_| AlterConfigsRequest::default())?;
    each.of(|_| IncrementalAlterConfigsRequest::default())?;
    each.of(|_| ListConfigResourcesRequest::default())
}

fn groups(each: &mut Each, topic: &str, group: &str) -> Result<()> {
    let id = |version: i16| GroupId(StrBytes::from_string(format!("{group}-{version}")));
    each.of(|version| {
        let key = StrBytes::from_string(group.to_owned());
        let request = FindCoordinatorRequest::default();
        if version >= 4 { request.with_coordinator_keys(vec![key]) } else { request.with_key(key) }
    })?;
    each.of(|version| {
        let protocol = JoinGroupRequestProtocol::default().with_name(StrBytes::from_static_str("range"));
        JoinGroupRequest::default()
            .with_group_id(id(version))
            .with_protocol_type(StrBytes::from_static_str("consumer"))
            .with_session_timeout_ms(6_000)
            .with_rebalance_timeout_ms(6_000)
            .with_protocols(vec![protocol])
    })?;
    each.of(|version| SyncGroupRequest::default().with_group_id(id(version)))?;
    each.of(|version| HeartbeatRequest::default().with_group_id(id(version)))?;
    each.of(|version| LeaveGroupRequest::default().with_group_id(id(version)))?;
    each.of(|_| {
        let partition = OffsetCommitRequestPartition::default().with_committed_offset(1);
        let committed = OffsetCommitRequestTopic::default().with_name(name(topic)).with_partitions(vec![partition]);
        OffsetCommitRequest::default()
            .with_group_id(GroupId(StrBytes::from_string(group.to_owned())))
            .with_generation_id_or_member_epoch(-1)
            .with_topics(vec![committed])
    })?;
    each.of(|version| {
        let asked = GroupId(StrBytes::from_string(group.to_owned()));
        if version >= 8 {
            let topics = OffsetFetchRequestTopics::default().with_name(name(topic)).with_partition_indexes(vec![0]);
            let asked = OffsetFetchRequestGroup::default().with_group_id(asked).with_topics(Some(vec![topics]));
            OffsetFetchRequest::default().with_groups(vec![asked])
        } else {
            let topics = OffsetFetchRequestTopic::default().with_name(name(topic)).with_partition_indexes(vec![0]);
            OffsetFetchRequest::default().with_group_id(asked).with_topics(Some(vec![topics]))
        }
    })?;
    each.of(|version| OffsetDeleteRequest::default().with_group_id(id(version)))?;
    each.of(|_| ListGroupsRequest::default())?;
    each.of(|version| DescribeGroupsRequest::default().with_groups(vec![id(version), id(-1)]))?;
    each.of(|_| DeleteGroupsRequest::default().with_groups_names(vec![id(-1)]))
}

fn transactions(each: &mut Each) -> Result<()> {
    let id = || TransactionalId(StrBytes::from_string(unique("tx")));
    each.of(|_| InitProducerIdRequest::default().with_transactional_id(Some(id())).with_transaction_timeout_ms(1000))?;
    // Later versions are for brokers among themselves.
    each.up_to(3, |_| AddPartitionsToTxnRequest::default().with_v3_and_below_transactional_id(id()))?;
    each.of(|_| AddOffsetsToTxnRequest::default().with_transactional_id(id()))?;
    each.of(|_| TxnOffsetCommitRequest::default().with_transactional_id(id()))?;
    each.of(|_| EndTxnRequest::default().with_transactional_id(id()))?;
    each.of(|_| DescribeProducersRequest::default())?;
    each.of(|_| DescribeTransactionsRequest::default().with_transactional_ids(vec![id()]))?;
    each.of(|_| ListTransactionsRequest::default())
}

fn cluster(each: &mut Each, topic: &str) -> Result<()> {
    each.of(|_| DescribeClusterRequest::default().with_include_cluster_authorized_operations(true))?;
    each.of(|_| DescribeLogDirsRequest::default().with_topics(None))?;
    each.of(|_| {
        let asked = kafka_protocol::messages::elect_leaders_request::TopicPartitions::default();
        let asked = asked.with_topic(TopicName(StrBytes::from_string(topic.to_owned()))).with_partitions(vec![0]);
        ElectLeadersRequest::default().with_topic_partitions(Some(vec![asked])).with_timeout_ms(1000)
    })?;
    each.of(|_| AlterPartitionReassignmentsRequest::default().with_timeout_ms(1000))?;
    each.of(|_| ListPartitionReassignmentsRequest::default().with_timeout_ms(1000))?;
    // Any kind of resource, pattern, operation and permission.
    each.of(|_| {
        DescribeAclsRequest::default()
            .with_resource_type_filter(1)
            .with_pattern_type_filter(1)
            .with_operation(1)
            .with_permission_type(1)
    })?;
    each.of(|_| CreateAclsRequest::default())?;
    each.of(|_| DeleteAclsRequest::default())?;
    each.of(|_| DescribeClientQuotasRequest::default())?;
    each.of(|_| DescribeUserScramCredentialsRequest::default())
}
