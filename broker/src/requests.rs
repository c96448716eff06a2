//! Requests: which are understood, in which versions, and who serves them.
//!
//! A request that is not advertised, or cannot be decoded, closes the connection, as in Apache Kafka. The versions are
//! those of the classic protocols; see the crate's documentation for what is left out on purpose.

mod configs;
mod fetch;
mod groups;
mod offsets;
mod produce;
mod topics;
mod transactions;

use std::sync::Arc;

use bytes::{Buf as _, Bytes, BytesMut};
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::api_versions_response::ApiVersion;
use kafka_protocol::messages::{ApiKey, ApiVersionsResponse, BrokerId, RequestHeader, ResponseHeader, TopicName};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, StrBytes};

use crate::connection::Answer;
use crate::node::Node;

/// The id of the one node.
const NODE_ID: BrokerId = BrokerId(1);
/// Authorized operations when nobody asked for them.
const OPERATIONS_NOT_ASKED: i32 = i32::MIN;
/// Read, write, create, delete, alter, describe, their like for settings: bits as in `AclOperation`.
const OPERATIONS_TOPIC: i32 = 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 10 | 1 << 11;
/// Create, alter, describe, cluster action, settings, idempotent write.
const OPERATIONS_CLUSTER: i32 = 1 << 5 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 12;
/// Read, delete, describe.
const OPERATIONS_GROUP: i32 = 1 << 3 | 1 << 6 | 1 << 8;

/// What is advertised: request, lowest and highest version.
const APIS: &[(ApiKey, i16, i16)] = &[
    (ApiKey::Produce, 3, 9),
    (ApiKey::Fetch, 4, 11),
    (ApiKey::ListOffsets, 1, 6),
    (ApiKey::Metadata, 0, 9),
    (ApiKey::OffsetCommit, 2, 8),
    (ApiKey::OffsetFetch, 1, 7),
    (ApiKey::FindCoordinator, 0, 3),
    (ApiKey::JoinGroup, 0, 7),
    (ApiKey::Heartbeat, 0, 4),
    (ApiKey::LeaveGroup, 0, 4),
    (ApiKey::SyncGroup, 0, 5),
    (ApiKey::DescribeGroups, 0, 5),
    (ApiKey::ListGroups, 0, 4),
    (ApiKey::ApiVersions, 0, 3),
    (ApiKey::CreateTopics, 2, 6),
    (ApiKey::DeleteTopics, 1, 5),
    (ApiKey::DeleteRecords, 0, 2),
    (ApiKey::InitProducerId, 0, 4),
    (ApiKey::OffsetForLeaderEpoch, 2, 4),
    (ApiKey::AddPartitionsToTxn, 0, 3),
    (ApiKey::AddOffsetsToTxn, 0, 3),
    (ApiKey::EndTxn, 0, 3),
    (ApiKey::TxnOffsetCommit, 0, 3),
    (ApiKey::DescribeConfigs, 1, 4),
    (ApiKey::AlterConfigs, 0, 2),
    (ApiKey::CreatePartitions, 0, 3),
    (ApiKey::DeleteGroups, 0, 2),
    (ApiKey::IncrementalAlterConfigs, 0, 1),
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
    body: Bytes,
}

impl Call {
    fn decode<T: Decodable>(&mut self) -> Result<T, Unreadable> {
        let (key, version) = (self.key, self.version);
        let malformed =
            |error: &dyn std::fmt::Display| Unreadable::Malformed { key, version, reason: error.to_string() };
        // The generated decoders trust counts within the frame; a panic in one must cost no more than the connection.
        let decoding = std::panic::AssertUnwindSafe(|| T::decode(&mut self.body, version));
        match std::panic::catch_unwind(decoding) {
            Ok(decoded) => decoded.map_err(|error| malformed(&error)),
            Err(_) => Err(malformed(&"the decoder panicked")),
        }
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
    let mut call = Call { key, version, correlation_id, client: String::new(), body: Bytes::new() };
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

async fn route(node: &Arc<Node>, api: ApiKey, mut call: Call) -> Result<Option<Answer>, Unreadable> {
    let version = call.version;
    let answer = match api {
        ApiKey::Produce => return produce::serve(node, call).await,
        ApiKey::Fetch => return fetch::serve(node, call).await.map(Some),
        ApiKey::ApiVersions => call.answer(&api_versions()),
        ApiKey::Metadata => {
            let request = call.decode()?;
            call.answer(&topics::metadata(node, request, version).await)
        }
        ApiKey::CreateTopics => {
            let request = call.decode()?;
            settled(node, &call, &node.io(move |node| topics::create(node, &request)).await)
        }
        ApiKey::DeleteTopics => {
            let request = call.decode()?;
            settled(node, &call, &node.io(move |node| topics::delete(node, &request)).await)
        }
        ApiKey::CreatePartitions => {
            let request = call.decode()?;
            settled(node, &call, &node.io(move |node| topics::create_partitions(node, &request)).await)
        }
        ApiKey::DeleteRecords => {
            let request = call.decode()?;
            settled(node, &call, &node.io(move |node| topics::delete_records(node, &request)).await)
        }
        ApiKey::ListOffsets => {
            let request = call.decode()?;
            call.answer(&node.io(move |node| offsets::list(node, &request, version)).await)
        }
        ApiKey::OffsetForLeaderEpoch => {
            let request = call.decode()?;
            call.answer(&offsets::for_leader_epoch(node, &request))
        }
        ApiKey::OffsetCommit => {
            let request = call.decode()?;
            settled(node, &call, &node.io(move |node| offsets::commit(node, &request)).await)
        }
        ApiKey::OffsetFetch => {
            let request = call.decode()?;
            call.answer(&node.io(move |node| offsets::fetch(node, &request, version)).await)
        }
        ApiKey::FindCoordinator => call.answer(&groups::find_coordinator(node)),
        ApiKey::JoinGroup => {
            let request = call.decode()?;
            call.answer(&groups::join(node, request, version, &call.client).await)
        }
        ApiKey::SyncGroup => {
            let request = call.decode()?;
            call.answer(&groups::sync(node, request).await)
        }
        ApiKey::Heartbeat => {
            let request = call.decode()?;
            call.answer(&groups::heartbeat(node, &request))
        }
        ApiKey::LeaveGroup => {
            let request = call.decode()?;
            call.answer(&groups::leave(node, &request, version))
        }
        ApiKey::ListGroups => {
            let request = call.decode()?;
            call.answer(&node.io(move |node| groups::list(node, &request)).await)
        }
        ApiKey::DescribeGroups => {
            let request = call.decode()?;
            call.answer(&node.io(move |node| groups::describe(node, &request)).await)
        }
        ApiKey::DeleteGroups => {
            let request = call.decode()?;
            settled(node, &call, &node.io(move |node| groups::delete(node, &request)).await)
        }
        ApiKey::InitProducerId => {
            let request = call.decode()?;
            settled(node, &call, &node.io(move |node| transactions::init_producer(node, &request, version)).await)
        }
        ApiKey::AddPartitionsToTxn => {
            let request = call.decode()?;
            settled(node, &call, &node.io(move |node| transactions::add_partitions(node, &request, version)).await)
        }
        ApiKey::AddOffsetsToTxn => {
            let request = call.decode()?;
            settled(node, &call, &node.io(move |node| transactions::add_offsets(node, &request, version)).await)
        }
        ApiKey::TxnOffsetCommit => {
            let request = call.decode()?;
            settled(node, &call, &node.io(move |node| transactions::commit_offsets(node, &request)).await)
        }
        ApiKey::EndTxn => {
            let request = call.decode()?;
            settled(node, &call, &node.io(move |node| transactions::end(node, &request, version)).await)
        }
        ApiKey::DescribeConfigs => {
            let request = call.decode()?;
            call.answer(&configs::describe(node, &request))
        }
        ApiKey::AlterConfigs => {
            let request = call.decode()?;
            settled(node, &call, &node.io(move |node| configs::alter(node, &request)).await)
        }
        ApiKey::IncrementalAlterConfigs => {
            let request = call.decode()?;
            settled(node, &call, &node.io(move |node| configs::alter_incrementally(node, &request)).await)
        }
        _ => return Err(Unreadable::NotServed { key: call.key, version }),
    };
    answer.map(Some)
}

/// An answer that leaves when what was written before is as safe as the broker promises.
fn settled<T: Encodable + HeaderVersion>(node: &Node, call: &Call, response: &T) -> Result<Answer, Unreadable> {
    let mut answer = call.answer(response)?;
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
