//! Producers and transactions as administrators see them. All for I/O threads.

use std::collections::BTreeMap;
use std::sync::Arc;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::describe_producers_response::{PartitionResponse, ProducerState, TopicResponse};
use kafka_protocol::messages::describe_transactions_response::{TopicData, TransactionState};
use kafka_protocol::messages::list_transactions_response::TransactionState as ListedTransaction;
use kafka_protocol::messages::{
    DescribeProducersRequest, DescribeProducersResponse, DescribeTransactionsRequest, DescribeTransactionsResponse,
    ListTransactionsRequest, ListTransactionsResponse, ProducerId, TransactionalId,
};

use super::{text, text_error, topic_name};
use crate::metadata::{Phase, Transaction};
use crate::node::{Node, now_ms};

/// The phases by the names of Apache Kafka's tools.
const PHASES: [(Phase, &str); 6] = [
    (Phase::Empty, "Empty"),
    (Phase::Ongoing, "Ongoing"),
    (Phase::Committing, "PrepareCommit"),
    (Phase::Aborting, "PrepareAbort"),
    (Phase::Committed, "CompleteCommit"),
    (Phase::Aborted, "CompleteAbort"),
];

fn name(phase: Phase) -> &'static str {
    PHASES.iter().find(|(known, _)| *known == phase).map_or("", |(_, name)| name)
}

/// The producers that partitions remember.
pub(super) fn describe(
    node: &Arc<Node>,
    request: &DescribeProducersRequest,
    _version: i16,
) -> DescribeProducersResponse {
    let topics = request.topics.iter().map(|topic| {
        let partitions = topic.partition_indexes.iter().map(|partition| {
            let response = PartitionResponse::default().with_partition_index(*partition);
            let Some(log) = node.partition(&topic.name, *partition) else {
                let error = ResponseError::UnknownTopicOrPartition;
                return response.with_error_code(error.code()).with_error_message(text_error(error));
            };
            let producers = log.producers().into_iter().map(|producer| {
                ProducerState::default()
                    .with_producer_id(ProducerId(producer.id))
                    .with_producer_epoch(i32::from(producer.epoch))
                    .with_last_sequence(producer.last_sequence)
                    .with_last_timestamp(producer.last_append_ms)
                    .with_coordinator_epoch(0)
                    .with_current_txn_start_offset(producer.open_from.unwrap_or(-1))
            });
            response.with_active_producers(producers.collect())
        });
        TopicResponse::default().with_name(topic.name.clone()).with_partitions(partitions.collect())
    });
    DescribeProducersResponse::default().with_topics(topics.collect())
}

pub(super) fn describe_transactions(
    node: &Arc<Node>,
    request: &DescribeTransactionsRequest,
    _version: i16,
) -> DescribeTransactionsResponse {
    let metadata = node.metadata();
    let known = &metadata.state().transactions;
    let states = request.transactional_ids.iter().map(|id| {
        let state = TransactionState::default().with_transactional_id(id.clone());
        match known.get(id.as_str()) {
            Some(transaction) => describe_one(state, transaction),
            None => state.with_error_code(ResponseError::TransactionalIdNotFound.code()),
        }
    });
    DescribeTransactionsResponse::default().with_transaction_states(states.collect())
}

fn describe_one(state: TransactionState, transaction: &Transaction) -> TransactionState {
    let mut topics: BTreeMap<&str, Vec<i32>> = BTreeMap::new();
    for (topic, partition) in &transaction.partitions {
        topics.entry(topic).or_default().push(*partition);
    }
    let topics = topics
        .into_iter()
        .map(|(topic, partitions)| TopicData::default().with_topic(topic_name(topic)).with_partitions(partitions));
    let open = matches!(transaction.phase, Phase::Ongoing | Phase::Committing | Phase::Aborting);
    state
        .with_transaction_state(text(name(transaction.phase)))
        .with_transaction_timeout_ms(transaction.timeout_ms as i32)
        .with_transaction_start_time_ms(if open { transaction.started_ms } else { -1 })
        .with_producer_id(ProducerId(transaction.producer_id))
        .with_producer_epoch(transaction.producer_epoch)
        .with_topics(topics.collect())
}

/// Transactional ids, as far as state, producer and the age of the transaction (since version 1) are asked for.
pub(super) fn list_transactions(
    node: &Arc<Node>,
    request: &ListTransactionsRequest,
    _version: i16,
) -> ListTransactionsResponse {
    let unknown = request.state_filters.iter().filter(|state| PHASES.iter().all(|(_, name)| *name != state.as_str()));
    let unknown: Vec<_> = unknown.cloned().collect();
    let now_ms = now_ms();
    let wanted = |transaction: &Transaction| {
        let (states, ids) = (&request.state_filters, &request.producer_id_filters);
        let age_ms = match transaction.phase {
            Phase::Ongoing => now_ms - transaction.started_ms,
            _ => -1,
        };
        (states.is_empty() || states.iter().any(|state| state.as_str() == name(transaction.phase)))
            && (ids.is_empty() || ids.contains(&ProducerId(transaction.producer_id)))
            && (request.duration_filter < 0 || age_ms > request.duration_filter)
    };
    let metadata = node.metadata();
    let states = metadata.state().transactions.iter().filter(|(_, transaction)| wanted(transaction));
    let states = states.map(|(id, transaction)| {
        ListedTransaction::default()
            .with_transactional_id(TransactionalId(text(id.as_str())))
            .with_producer_id(ProducerId(transaction.producer_id))
            .with_transaction_state(text(name(transaction.phase)))
    });
    ListTransactionsResponse::default().with_unknown_state_filters(unknown).with_transaction_states(states.collect())
}
