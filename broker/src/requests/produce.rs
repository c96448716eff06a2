//! Produce: appends batches, and answers when they are as safe as promised.

use std::sync::Arc;

use bytes::Bytes;
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::produce_response::{PartitionProduceResponse, TopicProduceResponse};
use kafka_protocol::messages::{ProduceRequest, ProduceResponse};

use super::{Call, Unreadable};
use crate::batch::Header;
use crate::connection::Answer;
use crate::log::AppendError;
use crate::node::{Node, Topic, now_ms};
use crate::transactions::{Producer, produce_error};

/// From this version on a batch of a transaction adds its partition to it (KIP-890).
const ADDS_PARTITIONS_FROM: i16 = 12;

/// Larger requests are appended on an I/O thread, so that those of other connections need not wait for the copying.
const BRIEF_BYTES_MAX: usize = 256 * 1024;

pub(super) async fn serve(node: &Arc<Node>, mut call: Call) -> Result<Option<Answer>, Unreadable> {
    let request: ProduceRequest = call.decode()?;
    let acks = request.acks;
    let adds_itself = call.version >= ADDS_PARTITIONS_FROM;
    let large = call.bytes > BRIEF_BYTES_MAX;
    let append = move |node: &Arc<Node>| append(node, request, adds_itself);
    let response = if large { node.io(append).await } else { node.brief(append).await };
    if acks == 0 {
        // Nobody waits for the disk, but readers may see it only then.
        drop(node.syncer.ticket());
        return Ok(None);
    }
    let mut answer = call.answer(&response)?;
    answer.after = node.syncer.ticket();
    Ok(Some(answer))
}

fn append(node: &Node, request: ProduceRequest, adds_itself: bool) -> ProduceResponse {
    let transaction = request.transactional_id.as_ref().map(|id| (id.0.as_str(), adds_itself));
    let mut responses = Vec::with_capacity(request.topic_data.len());
    for topic in request.topic_data {
        let meant = node.topic_meant(&topic.name, topic.topic_id);
        let mut partitions = Vec::with_capacity(topic.partition_data.len());
        for data in topic.partition_data {
            let appended = if matches!(request.acks, -1..=1) {
                let batch = data.records.unwrap_or_default();
                meant
                    .as_ref()
                    .map_err(|error| *error)
                    .and_then(|meant| append_one(node, transaction, (meant, data.index), &batch))
            } else {
                Err(ResponseError::InvalidRequiredAcks)
            };
            let response = PartitionProduceResponse::default().with_index(data.index).with_log_append_time_ms(-1);
            partitions.push(match appended {
                Ok((offset, start)) => response.with_base_offset(offset).with_log_start_offset(start),
                Err(error) => response.with_base_offset(-1).with_log_start_offset(-1).with_error_code(error.code()),
            });
        }
        responses.push(
            TopicProduceResponse::default()
                .with_name(topic.name)
                .with_topic_id(topic.topic_id)
                .with_partition_responses(partitions),
        );
    }
    ProduceResponse::default().with_responses(responses)
}

/// Appends one batch; returns its base offset and the partition's start. A transaction has its id, and says whether the
/// batch adds its partition.
fn append_one(
    node: &Node,
    transaction: Option<(&str, bool)>,
    (topic, partition): (&Topic, i32),
    batch: &Bytes,
) -> Result<(i64, i64), ResponseError> {
    let log = topic.partition(partition).ok_or(ResponseError::UnknownTopicOrPartition)?;
    let at = (topic.name.as_str(), partition);
    let transactional = Header::parse(batch).filter(Header::is_transactional);
    let appended = match (transactional, transaction) {
        (None, _) => log.append(batch, now_ms()),
        (Some(header), Some((id, adds_itself))) => {
            if adds_itself {
                let producer = Producer { transactional_id: id, id: header.producer_id, epoch: header.producer_epoch };
                node.add_partitions_to_transaction(producer, vec![(topic.name.clone(), partition)])
                    .map_err(produce_error)?;
            }
            node.append_in_transaction(id, at, &log, batch, &header)
        }
        (Some(_), None) => Err(AppendError::Refused(ResponseError::InvalidTxnState)),
    };
    match appended {
        Ok(offset) => Ok((offset, log.offsets().start)),
        Err(AppendError::Refused(error)) => Err(error),
        // The partition logs it, once.
        Err(AppendError::Storage(_)) => Err(ResponseError::KafkaStorageError),
    }
}
