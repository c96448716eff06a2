//! Changes of the group, noted where librdkafka tells them and taken by the thread that polls.

use std::collections::VecDeque;
use std::sync::Mutex;

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientContext, TopicPartitionList};

use super::lock;
use crate::log::client::Logged;

/// A change of the group, in the order in which it came.
pub(super) enum Change {
    Assigned(Vec<i32>),
    Revoked,
    Failed(RDKafkaErrorCode),
}

/// Gives partitions back, and notes changes of the group; the rest is left to the thread that polls.
#[derive(Default)]
pub(super) struct Rebalances(Mutex<VecDeque<Change>>);

impl Rebalances {
    /// The oldest change that nobody has taken yet.
    pub(super) fn next(&self) -> Option<Change> {
        lock(&self.0).pop_front()
    }
}

impl ClientContext for Rebalances {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        Logged.log(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        Logged.error(error, reason);
    }
}

impl ConsumerContext for Rebalances {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, err: RDKafkaRespErr, list: &mut TopicPartitionList) {
        if err != RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            // At once, because closing the consumer waits for it. The polling thread has no commit under way here.
            if let Err(error) = consumer.unassign() {
                tracing::warn!(error = %error, "cannot give partitions back");
            }
        }
        let change = match err {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => {
                Change::Assigned(list.elements().iter().map(|element| element.partition()).collect())
            }
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__REVOKE_PARTITIONS => Change::Revoked,
            other => Change::Failed(other.into()),
        };
        lock(&self.0).push_back(change);
    }
}
