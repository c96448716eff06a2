//! Requests: which are understood, in which versions, and who serves them.
//!
//! A request that is not advertised, or cannot be decoded, closes the connection, as in Apache Kafka. The versions are
//! those of the classic protocols; see the crate's documentation for what is left out on purpose.

mod cluster;
mod configs;
mod fetch;
mod groups;
mod metadata;
mod offsets;
mod produce;
mod producers;
mod security;
mod topics;
mod transactions;

use std::sync::Arc;

use bytes::{Buf as _, Bytes, BytesMut};
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::api_versions_response::ApiVersion;
use kafka_protocol::messages::{
    ApiKey, ApiVersionsResponse, BrokerId, CreatePartitionsRequest, CreateTopicsRequest, MetadataRequest,
    RequestHeader, ResponseHeader, TopicName,
};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, StrBytes};

use crate::connection::Answer;
use crate::frame;
use crate::node::Node;

/// The id of the one node.
const NODE_ID: BrokerId = BrokerId(1);
/// Authorized operations when nobody asked for them.
const OPERATIONS_NOT_ASKED: i32 = i32::MIN;
/// Read, write, create, delete, alter, describe, their like for settings: bits as in `AclOperation`.
const OPERATIONS_TOPIC: i32 = 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 10 | 1 << 11;
/// Create, alter, describe, cluster action, settings, idempotent write.
const OPERATIONS_CLUSTER: i32 = 1 << 5 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 12;
/// Read, delete, describe, settings.
const OPERATIONS_GROUP: i32 = 1 << 3 | 1 << 6 | 1 << 8 | 1 << 10 | 1 << 11;
/// The epoch of the one leader that every partition has had.
const LEADER_EPOCH: i32 = 0;

/// What is advertised: request, lowest and highest version. Each version in between is served in full; a test asks all.
const APIS: &[(ApiKey, i16, i16)] = &[
    (ApiKey::Produce, 3, 13),
    (ApiKey::Fetch, 4, 18),
    (ApiKey::ListOffsets, 1, 10),
    (ApiKey::Metadata, 0, 13),
    (ApiKey::OffsetCommit, 2, 9),
    (ApiKey::OffsetFetch, 1, 9),
    (ApiKey::FindCoordinator, 0, 6),
    (ApiKey::JoinGroup, 0, 9),
    (ApiKey::Heartbeat, 0, 4),
    (ApiKey::LeaveGroup, 0, 5),
    (ApiKey::SyncGroup, 0, 5),
    (ApiKey::DescribeGroups, 0, 6),
    (ApiKey::ListGroups, 0, 5),
    (ApiKey::ApiVersions, 0, 4),
    (ApiKey::CreateTopics, 2, 7),
    (ApiKey::DeleteTopics, 1, 6),
    (ApiKey::DeleteRecords, 0, 2),
    (ApiKey::InitProducerId, 0, 5),
    (ApiKey::OffsetForLeaderEpoch, 2, 4),
    // Later versions are for brokers among themselves.
    (ApiKey::AddPartitionsToTxn, 0, 3),
    (ApiKey::AddOffsetsToTxn, 0, 4),
    // Later versions of these two are the second transaction protocol.
    (ApiKey::EndTxn, 0, 4),
    (ApiKey::TxnOffsetCommit, 0, 4),
    (ApiKey::DescribeAcls, 1, 3),
    (ApiKey::CreateAcls, 1, 3),
    (ApiKey::DeleteAcls, 1, 3),
    (ApiKey::DescribeConfigs, 1, 4),
    (ApiKey::AlterConfigs, 0, 2),
    (ApiKey::DescribeLogDirs, 1, 4),
    (ApiKey::CreatePartitions, 0, 3),
    (ApiKey::DeleteGroups, 0, 2),
    (ApiKey::ElectLeaders, 0, 2),
    (ApiKey::IncrementalAlterConfigs, 0, 1),
    (ApiKey::AlterPartitionReassignments, 0, 1),
    (ApiKey::ListPartitionReassignments, 0, 0),
    (ApiKey::OffsetDelete, 0, 0),
    (ApiKey::DescribeClientQuotas, 0, 1),
    (ApiKey::DescribeUserScramCredentials, 0, 0),
    (ApiKey::DescribeCluster, 0, 2),
    (ApiKey::DescribeProducers, 0, 0),
    (ApiKey::DescribeTransactions, 0, 0),
    // Version 2 filters by a regular expression of a dialect of its own.
    (ApiKey::ListTransactions, 0, 1),
    (ApiKey::ListConfigResources, 0, 1),
    (ApiKey::DescribeTopicPartitions, 0, 0),
];

/// A request that nothing can be answered to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unreadable {
    #[error("request {key} version {version} is not served here")]
    NotServed { key: i16, version: i16 },
    #[error("request {key} version {version} cannot be decoded: {reason}")]
    Malformed { key: i16, version: i16, reason: String },
    #[error("answer to request {key} version {version} cannot be encoded: {reason}")]
    Answer { key: i16, version: i16, reason: String },
}

/// A request with its header read.
pub(crate) struct Call {
    key: i16,
    version: i16,
    correlation_id: i32,
    client: String,
    /// Size of the request.
    bytes: usize,
    body: Bytes,
}

impl Call {
    fn decode<T: Decodable>(&mut self) -> Result<T, Unreadable> {
        let (key, version) = (self.key, self.version);
        frame::decode(&mut self.body, version).map_err(|reason| Unreadable::Malformed { key, version, reason })
    }

    fn answer<T: Encodable + HeaderVersion>(&self, response: &T) -> Result<Answer, Unreadable> {
        self.answer_as(response, self.version)
    }

    fn answer_as<T: Encodable + HeaderVersion>(&self, response: &T, version: i16) -> Result<Answer, Unreadable> {
        let (key, correlation_id) = (self.key, self.correlation_id);
        let encode = || {
            let mut bytes = BytesMut::with_capacity(64 + response.compute_size(version)?);
            bytes.extend_from_slice(&[0; 4]);
            let header = ResponseHeader::default().with_correlation_id(correlation_id);
            header.encode(&mut bytes, T::header_version(version))?;
            response.encode(&mut bytes, version).map(|()| bytes)
        };
        let mut bytes = encode().map_err(|error| Unreadable::Answer { key, version, reason: error.to_string() })?;
        let length = (bytes.len() - 4) as i32;
        bytes[..4].copy_from_slice(&length.to_be_bytes());
        Ok(Answer { bytes, after: None, memory: None })
    }
}

/// Serves one request; `None` if it wants no answer.
pub(crate) async fn serve(node: &Arc<Node>, mut frame: Bytes) -> Result<Option<Answer>, Unreadable> {
    let mut head = frame.slice(..8);
    let (key, version, correlation_id) = (head.get_i16(), head.get_i16(), head.get_i32());
    let not_served = Unreadable::NotServed { key, version };
    let Some((api, least, most)) = APIS.iter().copied().find(|(api, ..)| *api as i16 == key) else {
        return Err(not_served);
    };
    let bytes = frame.len();
    let mut call = Call { key, version, correlation_id, client: String::new(), bytes, body: Bytes::new() };
    if !(least..=most).contains(&version) {
        if api != ApiKey::ApiVersions {
            return Err(not_served);
        }
        // A newer client asks again with a version from this answer.
        let response = api_versions().with_error_code(ResponseError::UnsupportedVersion.code());
        return call.answer_as(&response, 0).map(Some);
    }
    let header = RequestHeader::decode(&mut frame, api.request_header_version(version));
    let header = header.map_err(|error| Unreadable::Malformed { key, version, reason: error.to_string() })?;
    call.client = header.client_id.map(|client| client.to_string()).unwrap_or_default();
    call.body = frame;
    route(node, api, call).await
}

/// Whether the bytes are a request that makes topics or asks for them; nothing is made. For fuzzing.
pub(crate) fn reads(request: &[u8]) -> bool {
    let mut frame = Bytes::copy_from_slice(request);
    let Ok((key, version)) = frame.clone().try_get_i16().and_then(|key| Ok((key, frame.slice(2..).try_get_i16()?)))
    else {
        return false;
    };
    let known = APIS.iter().find(|(api, least, most)| *api as i16 == key && (*least..=*most).contains(&version));
    let Some((api, ..)) = known else { return false };
    if RequestHeader::decode(&mut frame, api.request_header_version(version)).is_err() {
        return false;
    }
    let mut call = Call { key, version, correlation_id: 0, client: String::new(), bytes: request.len(), body: frame };
    match api {
        ApiKey::CreateTopics => call.decode::<CreateTopicsRequest>().is_ok(),
        ApiKey::CreatePartitions => call.decode::<CreatePartitionsRequest>().is_ok(),
        ApiKey::Metadata => call.decode::<MetadataRequest>().is_ok(),
        _ => false,
    }
}

/// Who serves what. Requests that may have to wait for the disk are served on I/O threads.
async fn route(node: &Arc<Node>, api: ApiKey, call: Call) -> Result<Option<Answer>, Unreadable> {
    let answer = match api {
        ApiKey::Produce => return produce::serve(node, call).await,
        ApiKey::Fetch => fetch::serve(node, call).await,
        ApiKey::ApiVersions => call.answer(&api_versions()),
        ApiKey::Metadata => metadata::serve(node, call).await,
        ApiKey::DescribeTopicPartitions => at_once(node, call, metadata::describe_partitions),
        ApiKey::CreateTopics => settled(node, call, topics::create).await,
        ApiKey::DeleteTopics => settled(node, call, topics::delete).await,
        ApiKey::CreatePartitions => settled(node, call, topics::create_partitions).await,
        ApiKey::DeleteRecords => settled(node, call, topics::delete_records).await,
        ApiKey::ListOffsets => read(node, call, offsets::list).await,
        ApiKey::OffsetForLeaderEpoch => at_once(node, call, offsets::for_leader_epoch),
        ApiKey::OffsetCommit => noted(node, call, offsets::commit).await,
        ApiKey::OffsetFetch => recalled(node, call, offsets::fetch).await,
        ApiKey::OffsetDelete => settled(node, call, offsets::delete).await,
        ApiKey::FindCoordinator => at_once(node, call, groups::find_coordinator),
        ApiKey::JoinGroup => groups::join(node, call).await,
        ApiKey::SyncGroup => groups::sync(node, call).await,
        ApiKey::Heartbeat => at_once(node, call, groups::heartbeat),
        ApiKey::LeaveGroup => at_once(node, call, groups::leave),
        ApiKey::ListGroups => read(node, call, groups::list).await,
        ApiKey::DescribeGroups => read(node, call, groups::describe).await,
        ApiKey::DeleteGroups => settled(node, call, groups::delete).await,
        ApiKey::InitProducerId => noted(node, call, transactions::init_producer).await,
        ApiKey::AddPartitionsToTxn => noted(node, call, transactions::add_partitions).await,
        ApiKey::AddOffsetsToTxn => noted(node, call, transactions::add_offsets).await,
        ApiKey::TxnOffsetCommit => noted(node, call, transactions::commit_offsets).await,
        ApiKey::EndTxn => noted(node, call, transactions::end).await,
        ApiKey::DescribeProducers => read(node, call, producers::describe).await,
        ApiKey::DescribeTransactions => read(node, call, producers::describe_transactions).await,
        ApiKey::ListTransactions => read(node, call, producers::list_transactions).await,
        ApiKey::DescribeConfigs => at_once(node, call, configs::describe),
        ApiKey::AlterConfigs => settled(node, call, configs::alter).await,
        ApiKey::IncrementalAlterConfigs => settled(node, call, configs::alter_incrementally).await,
        ApiKey::ListConfigResources => at_once(node, call, configs::list_resources),
        ApiKey::DescribeCluster => at_once(node, call, cluster::describe),
        ApiKey::DescribeLogDirs => at_once(node, call, cluster::describe_log_dirs),
        ApiKey::ElectLeaders => at_once(node, call, cluster::elect_leaders),
        ApiKey::AlterPartitionReassignments => at_once(node, call, cluster::alter_reassignments),
        ApiKey::ListPartitionReassignments => at_once(node, call, cluster::list_reassignments),
        ApiKey::DescribeAcls => at_once(node, call, security::describe_acls),
        ApiKey::CreateAcls => at_once(node, call, security::create_acls),
        ApiKey::DeleteAcls => at_once(node, call, security::delete_acls),
        ApiKey::DescribeClientQuotas => at_once(node, call, security::describe_quotas),
        ApiKey::DescribeUserScramCredentials => at_once(node, call, security::describe_credentials),
        _ => return Err(Unreadable::NotServed { key: call.key, version: call.version }),
    };
    answer.map(Some)
}

/// Serves a request that touches no file.
fn at_once<Q: Decodable, R: Encodable + HeaderVersion>(
    node: &Arc<Node>,
    mut call: Call,
    work: fn(&Arc<Node>, &Q, i16) -> R,
) -> Result<Answer, Unreadable> {
    let request = call.decode()?;
    call.answer(&work(node, &request, call.version))
}

/// Serves a request on an I/O thread.
async fn read<Q, R>(node: &Arc<Node>, mut call: Call, work: fn(&Arc<Node>, &Q, i16) -> R) -> Result<Answer, Unreadable>
where
    Q: Decodable + Send + 'static,
    R: Encodable + HeaderVersion + Send + 'static,
{
    let (request, version): (Q, _) = (call.decode()?, call.version);
    call.answer(&node.io(move |node| work(node, &request, version)).await)
}

/// Serves a request for what is held in memory behind the log of the metadata.
async fn recalled<Q, R>(
    node: &Arc<Node>,
    mut call: Call,
    work: fn(&Arc<Node>, &Q, i16) -> R,
) -> Result<Answer, Unreadable>
where
    Q: Decodable + Send + 'static,
    R: Encodable + HeaderVersion + Send + 'static,
{
    let (request, version): (Q, _) = (call.decode()?, call.version);
    call.answer(&node.brief(move |node| work(node, &request, version)).await)
}

/// As [`recalled`], for what adds an entry to the metadata or a batch to a partition; the answer leaves when that is as
/// safe as the broker promises.
async fn noted<Q, R>(node: &Arc<Node>, call: Call, work: fn(&Arc<Node>, &Q, i16) -> R) -> Result<Answer, Unreadable>
where
    Q: Decodable + Send + 'static,
    R: Encodable + HeaderVersion + Send + 'static,
{
    let mut answer = recalled(node, call, work).await?;
    answer.after = node.syncer.ticket();
    Ok(answer)
}

/// As [`read`]; the answer leaves when what was written before is as safe as the broker promises.
async fn settled<Q, R>(node: &Arc<Node>, call: Call, work: fn(&Arc<Node>, &Q, i16) -> R) -> Result<Answer, Unreadable>
where
    Q: Decodable + Send + 'static,
    R: Encodable + HeaderVersion + Send + 'static,
{
    let mut answer = read(node, call, work).await?;
    answer.after = node.syncer.ticket();
    Ok(answer)
}

fn api_versions() -> ApiVersionsResponse {
    let version = |(api, least, most): &(ApiKey, i16, i16)| {
        ApiVersion::default().with_api_key(*api as i16).with_min_version(*least).with_max_version(*most)
    };
    ApiVersionsResponse::default().with_api_keys(APIS.iter().map(version).collect())
}

fn code<T>(result: &Result<T, ResponseError>) -> i16 {
    result.as_ref().err().map_or(0, ResponseError::code)
}

fn text(text: impl Into<String>) -> StrBytes {
    StrBytes::from_string(text.into())
}

fn topic_name(name: &str) -> TopicName {
    TopicName(text(name))
}

fn text_error(error: ResponseError) -> Option<StrBytes> {
    Some(text(error.to_string()))
}

/// Refuses a client that knows another epoch of the leader than the only one there is, as it would after it was moved
/// here from a cluster. Below 0 the client does not say.
fn check_leader_epoch(epoch: i32) -> Result<(), ResponseError> {
    if epoch > LEADER_EPOCH { Err(ResponseError::UnknownLeaderEpoch) } else { Ok(()) }
}

fn operations(asked: bool, operations: i32) -> i32 {
    if asked { operations } else { OPERATIONS_NOT_ASKED }
}
