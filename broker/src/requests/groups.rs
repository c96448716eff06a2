//! Consumer groups: the coordinator's requests, on top of [`crate::groups`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::delete_groups_response::DeletableGroupResult;
use kafka_protocol::messages::describe_groups_response::{DescribedGroup, DescribedGroupMember};
use kafka_protocol::messages::find_coordinator_response::Coordinator;
use kafka_protocol::messages::join_group_response::JoinGroupResponseMember;
use kafka_protocol::messages::leave_group_response::MemberResponse;
use kafka_protocol::messages::list_groups_response::ListedGroup;
use kafka_protocol::messages::{
    BrokerId, DeleteGroupsRequest, DeleteGroupsResponse, DescribeGroupsRequest, DescribeGroupsResponse,
    FindCoordinatorRequest, FindCoordinatorResponse, GroupId, HeartbeatRequest, HeartbeatResponse, JoinGroupRequest,
    JoinGroupResponse, LeaveGroupRequest, LeaveGroupResponse, ListGroupsRequest, ListGroupsResponse, SyncGroupRequest,
    SyncGroupResponse,
};
use kafka_protocol::protocol::StrBytes;

use super::{Call, NODE_ID, OPERATIONS_GROUP, Unreadable, operations, text, text_error};
use crate::connection::Answer;
use crate::groups::{Claim, Group, Join, NotJoined, Reply};
use crate::metadata::Entry;
use crate::node::Node;

const GROUP: i8 = 0;
const TRANSACTION: i8 = 1;
/// The kind of all groups here, as ListGroups names it.
const CLASSIC: &str = "classic";

/// The one node coordinates everything. Since version 4 a request asks for several keys.
pub(super) fn find_coordinator(
    node: &Arc<Node>,
    request: &FindCoordinatorRequest,
    version: i16,
) -> FindCoordinatorResponse {
    let (host, port) = (text(node.host.as_str()), i32::from(node.port));
    let known = matches!(request.key_type, GROUP | TRANSACTION);
    let error = if known { 0 } else { ResponseError::InvalidRequest.code() };
    let (id, host, port) = if known { (NODE_ID, host, port) } else { (BrokerId(-1), text(""), -1) };
    let message = (!known).then(|| text("groups and transactions have coordinators here, nothing else"));
    if version < 4 {
        let response = FindCoordinatorResponse::default().with_error_code(error).with_node_id(id);
        return response.with_error_message(message).with_host(host).with_port(port);
    }
    let coordinators = request.coordinator_keys.iter().map(|key| {
        Coordinator::default()
            .with_key(key.clone())
            .with_error_code(error)
            .with_error_message(message.clone())
            .with_node_id(id)
            .with_host(host.clone())
            .with_port(port)
    });
    FindCoordinatorResponse::default().with_coordinators(coordinators.collect())
}

/// Waits for a late answer; `None` if it will never come.
async fn late<T>(node: &Node, reply: Reply<T>) -> Option<T> {
    match reply {
        Reply::Now(answer) => Some(answer),
        Reply::Later(receiver) => tokio::select! {
            answer = receiver => answer.ok(),
            () = node.closing.cancelled() => None,
        },
    }
}

pub(super) async fn join(node: &Arc<Node>, mut call: Call) -> Result<Answer, Unreadable> {
    let (request, version): (JoinGroupRequest, _) = (call.decode()?, call.version);
    let instance = request.group_instance_id.as_ref().map(|instance| instance.to_string());
    let millis = |ms: i32| Duration::from_millis(u64::try_from(ms).unwrap_or(0));
    let new_member = format!("{}-{}", instance.as_deref().unwrap_or(&call.client), uuid::Uuid::new_v4());
    let given = request.member_id.to_string();
    let join = Join {
        group: request.group_id.to_string(),
        member: given.clone(),
        instance,
        client: call.client.clone(),
        protocol_type: request.protocol_type.to_string(),
        protocols: request.protocols.iter().map(|p| (p.name.to_string(), p.metadata.clone())).collect(),
        session_timeout: millis(request.session_timeout_ms),
        rebalance_timeout: millis(request.rebalance_timeout_ms),
        asks_twice: version >= 4,
        skips_assignment: version >= 9,
    };
    let reply = node.groups().join(join, new_member, Instant::now());
    let not_joined = NotJoined { error: ResponseError::RebalanceInProgress, member: given };
    let response = match late(node, reply).await.unwrap_or(Err(not_joined)) {
        Ok(joined) => {
            let members = joined.members.into_iter().map(|(id, instance, metadata)| {
                JoinGroupResponseMember::default()
                    .with_member_id(text(id))
                    .with_group_instance_id(instance.map(text))
                    .with_metadata(metadata)
            });
            JoinGroupResponse::default()
                .with_generation_id(joined.generation)
                .with_protocol_type(Some(text(joined.protocol_type)))
                .with_protocol_name(Some(text(joined.protocol)))
                .with_leader(text(joined.leader))
                .with_member_id(text(joined.member))
                .with_members(members.collect())
                .with_skip_assignment(joined.skip_assignment)
        }
        Err(NotJoined { error, member }) => JoinGroupResponse::default()
            .with_error_code(error.code())
            .with_generation_id(-1)
            .with_member_id(text(member))
            .with_protocol_name(if version >= 7 { None } else { Some(text("")) }),
    };
    call.answer(&response)
}

pub(super) async fn sync(node: &Arc<Node>, mut call: Call) -> Result<Answer, Unreadable> {
    let request: SyncGroupRequest = call.decode()?;
    let claim = Claim {
        member: &request.member_id,
        instance: request.group_instance_id.as_deref(),
        generation: request.generation_id,
    };
    let assignments = request.assignments.iter().map(|a| (a.member_id.to_string(), a.assignment.clone())).collect();
    let reply = node.groups().sync(&request.group_id, claim, assignments, Instant::now());
    let response = match late(node, reply).await.unwrap_or(Err(ResponseError::RebalanceInProgress)) {
        Ok(synced) => SyncGroupResponse::default()
            .with_protocol_type(Some(text(synced.protocol_type)))
            .with_protocol_name(Some(text(synced.protocol)))
            .with_assignment(synced.assignment),
        Err(error) => SyncGroupResponse::default()
            .with_error_code(error.code())
            .with_protocol_type(request.protocol_type)
            .with_protocol_name(request.protocol_name),
    };
    call.answer(&response)
}

pub(super) fn heartbeat(node: &Arc<Node>, request: &HeartbeatRequest, _version: i16) -> HeartbeatResponse {
    let claim = Claim {
        member: &request.member_id,
        instance: request.group_instance_id.as_deref(),
        generation: request.generation_id,
    };
    let result = node.groups().heartbeat(&request.group_id, claim, Instant::now());
    HeartbeatResponse::default().with_error_code(super::code(&result))
}

pub(super) fn leave(node: &Arc<Node>, request: &LeaveGroupRequest, version: i16) -> LeaveGroupResponse {
    let mut groups = node.groups();
    let now = Instant::now();
    if version < 3 {
        let result = groups.leave(&request.group_id, &request.member_id, None, now);
        return LeaveGroupResponse::default().with_error_code(super::code(&result));
    }
    let members = request.members.iter().map(|member| {
        let instance = member.group_instance_id.as_deref();
        let result = groups.leave(&request.group_id, &member.member_id, instance, now);
        MemberResponse::default()
            .with_member_id(member.member_id.clone())
            .with_group_instance_id(member.group_instance_id.clone())
            .with_error_code(super::code(&result))
    });
    LeaveGroupResponse::default().with_members(members.collect())
}

/// Groups with members, and those with committed offsets alone. For I/O threads.
pub(super) fn list(node: &Arc<Node>, request: &ListGroupsRequest, version: i16) -> ListGroupsResponse {
    let mut all: BTreeMap<String, (String, &str)> = BTreeMap::new();
    for group in node.metadata().state().offsets.keys() {
        all.insert(group.clone(), (String::new(), "Empty"));
    }
    for (name, group) in node.groups().iter() {
        all.insert(name.clone(), (group.protocol_type().to_owned(), group.phase().name()));
    }
    let among = |filter: &[StrBytes], word: &str| {
        filter.is_empty() || filter.iter().any(|wanted| wanted.as_str().eq_ignore_ascii_case(word))
    };
    let wanted = |state: &str| among(&request.states_filter, state) && among(&request.types_filter, CLASSIC);
    let groups = all.into_iter().filter(|(_, (_, state))| wanted(state)).map(|(name, (protocol_type, state))| {
        ListedGroup::default()
            .with_group_id(GroupId(text(name)))
            .with_protocol_type(text(protocol_type))
            .with_group_state(text(if version >= 4 { state } else { "" }))
            .with_group_type(text(if version >= 5 { CLASSIC } else { "" }))
    });
    ListGroupsResponse::default().with_groups(groups.collect())
}

/// For I/O threads.
pub(super) fn describe(node: &Arc<Node>, request: &DescribeGroupsRequest, version: i16) -> DescribeGroupsResponse {
    let metadata = node.metadata();
    let groups = node.groups();
    let asked = request.include_authorized_operations;
    let described = request.groups.iter().map(|name| {
        let group = DescribedGroup::default()
            .with_group_id(name.clone())
            .with_authorized_operations(operations(asked, OPERATIONS_GROUP));
        match groups.get(name) {
            Some(found) => describe_one(group, found),
            None if metadata.state().offsets.contains_key(name.as_str()) => group.with_group_state(text("Empty")),
            None => {
                let error = ResponseError::GroupIdNotFound;
                let known = if version >= 6 { (error.code(), text_error(error)) } else { (0, None) };
                group.with_error_code(known.0).with_error_message(known.1).with_group_state(text("Dead"))
            }
        }
    });
    DescribeGroupsResponse::default().with_groups(described.collect())
}

fn describe_one(described: DescribedGroup, group: &Group) -> DescribedGroup {
    let members = group.members().map(|(id, member)| {
        DescribedGroupMember::default()
            .with_member_id(text(id.as_str()))
            .with_group_instance_id(member.instance.clone().map(text))
            .with_client_id(text(member.client.as_str()))
            .with_client_host(text("/127.0.0.1"))
            .with_member_metadata(member.metadata(group.protocol()))
            .with_member_assignment(member.assignment.clone())
    });
    described
        .with_group_state(text(group.phase().name()))
        .with_protocol_type(text(group.protocol_type()))
        .with_protocol_data(text(group.protocol()))
        .with_members(members.collect())
}

/// For I/O threads.
pub(super) fn delete(node: &Arc<Node>, request: &DeleteGroupsRequest, _version: i16) -> DeleteGroupsResponse {
    let one = |name: &str| {
        let mut metadata = node.metadata();
        let was_member_group = node.groups().delete(name)?;
        if metadata.state().offsets.contains_key(name) {
            let deleted = metadata.append(Entry::GroupDeleted { group: name.to_owned() });
            return deleted.map_err(|error| {
                tracing::warn!(%error, "delete group");
                ResponseError::CoordinatorNotAvailable
            });
        }
        if was_member_group { Ok(()) } else { Err(ResponseError::GroupIdNotFound) }
    };
    let results = request.groups_names.iter().map(|name| {
        let result = DeletableGroupResult::default().with_group_id(name.clone());
        result.with_error_code(super::code(&one(name)))
    });
    DeleteGroupsResponse::default().with_results(results.collect())
}
