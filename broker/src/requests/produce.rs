//! Produce: appends batches, on an I/O thread, and answers when they are as safe as promised.

use std::sync::Arc;

use bytes::Bytes;
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::produce_response::{PartitionProduceResponse, TopicProduceResponse};
use kafka_protocol::messages::{ProduceRequest, ProduceResponse};

use super::{Call, Unreadable};
use crate::batch::Header;
use crate::connection::Answer;
use crate::log::AppendError;
use crate::node::{Node, now_ms};

pub(super) async fn serve(node: &Arc<Node>, mut call: Call) -> Result<Option<Answer>, Unreadable> {
    let request: ProduceRequest = call.decode()?;
    let acks = request.acks;
    let response = node.io(move |node| append(node, request)).await;
    if acks == 0 {
        return Ok(None);
    }
    let mut answer = call.answer(&response)?;
    answer.after = node.syncer.ticket();
    Ok(Some(answer))
}

fn append(node: &Node, request: ProduceRequest) -> ProduceResponse {
    let transactional_id = request.transactional_id.as_ref().map(|id| id.0.as_str());
    let mut responses = Vec::with_capacity(request.topic_data.len());
    for topic in request.topic_data {
        let mut partitions = Vec::with_capacity(topic.partition_data.len());
        for data in topic.partition_data {
            let appended = if matches!(request.acks, -1..=1) {
                let batch = data.records.unwrap_or_default();
                append_one(node, transactional_id, (&topic.name, data.index), &batch)
            } else {
                Err(ResponseError::InvalidRequiredAcks)
            };
            let response = PartitionProduceResponse::default().with_index(data.index).with_log_append_time_ms(-1);
            partitions.push(match appended {
                Ok((offset, start)) => response.with_base_offset(offset).with_log_start_offset(start),
                Err(error) => response.with_base_offset(-1).with_log_start_offset(-1).with_error_code(error.code()),
            });
        }
        responses.push(TopicProduceResponse::default().with_name(topic.name).with_partition_responses(partitions));
    }
    ProduceResponse::default().with_responses(responses)
}

/// Appends one batch; returns its base offset and the partition's start.
fn append_one(
    node: &Node,
    transactional_id: Option<&str>,
    at: (&str, i32),
    batch: &Bytes,
) -> Result<(i64, i64), ResponseError> {
    let log = node.partition(at.0, at.1).ok_or(ResponseError::UnknownTopicOrPartition)?;
    let transactional = Header::parse(batch).filter(Header::is_transactional);
    let appended = match (transactional, transactional_id) {
        (None, _) => log.append(batch, now_ms()),
        (Some(header), Some(id)) => node.append_in_transaction(id, at, &log, batch, &header),
        (Some(_), None) => Err(AppendError::Refused(ResponseError::InvalidTxnState)),
    };
    match appended {
        Ok(offset) => Ok((offset, log.offsets().start)),
        Err(AppendError::Refused(error)) => Err(error),
        // The partition logs it, once.
        Err(AppendError::Storage(_)) => Err(ResponseError::KafkaStorageError),
    }
}
