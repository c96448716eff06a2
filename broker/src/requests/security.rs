//! Access rules, quotas and credentials, of which this broker has none. It says so as an Apache Kafka without an
//! authorizer does, so that tools which look at them go on.

use std::sync::Arc;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::create_acls_response::AclCreationResult;
use kafka_protocol::messages::delete_acls_response::DeleteAclsFilterResult;
use kafka_protocol::messages::describe_user_scram_credentials_response::DescribeUserScramCredentialsResult;
use kafka_protocol::messages::{
    CreateAclsRequest, CreateAclsResponse, DeleteAclsRequest, DeleteAclsResponse, DescribeAclsRequest,
    DescribeAclsResponse, DescribeClientQuotasRequest, DescribeClientQuotasResponse,
    DescribeUserScramCredentialsRequest, DescribeUserScramCredentialsResponse,
};

use super::{text, text_error};
use crate::node::Node;

const NO_AUTHORIZER: &str = "this broker has no access rules: everyone who reaches it may do everything";

pub(super) fn describe_acls(_node: &Arc<Node>, _request: &DescribeAclsRequest, _version: i16) -> DescribeAclsResponse {
    DescribeAclsResponse::default()
        .with_error_code(ResponseError::SecurityDisabled.code())
        .with_error_message(Some(text(NO_AUTHORIZER)))
}

pub(super) fn create_acls(_node: &Arc<Node>, request: &CreateAclsRequest, _version: i16) -> CreateAclsResponse {
    let results = request.creations.iter().map(|_| {
        AclCreationResult::default()
            .with_error_code(ResponseError::SecurityDisabled.code())
            .with_error_message(Some(text(NO_AUTHORIZER)))
    });
    CreateAclsResponse::default().with_results(results.collect())
}

pub(super) fn delete_acls(_node: &Arc<Node>, request: &DeleteAclsRequest, _version: i16) -> DeleteAclsResponse {
    let results = request.filters.iter().map(|_| {
        DeleteAclsFilterResult::default()
            .with_error_code(ResponseError::SecurityDisabled.code())
            .with_error_message(Some(text(NO_AUTHORIZER)))
    });
    DeleteAclsResponse::default().with_filter_results(results.collect())
}

pub(super) fn describe_quotas(
    _node: &Arc<Node>,
    _request: &DescribeClientQuotasRequest,
    _version: i16,
) -> DescribeClientQuotasResponse {
    DescribeClientQuotasResponse::default().with_entries(Some(Vec::new()))
}

pub(super) fn describe_credentials(
    _node: &Arc<Node>,
    request: &DescribeUserScramCredentialsRequest,
    _version: i16,
) -> DescribeUserScramCredentialsResponse {
    let error = ResponseError::ResourceNotFound;
    let results = request.users.iter().flatten().map(|user| {
        let result = DescribeUserScramCredentialsResult::default().with_user(user.name.clone());
        result.with_error_code(error.code()).with_error_message(text_error(error))
    });
    DescribeUserScramCredentialsResponse::default().with_results(results.collect())
}
