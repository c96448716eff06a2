//! What can go wrong with the log, sorted by what a caller can do about it. One function reads librdkafka's errors.

use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

/// Why the log could not serve.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// Goes by itself: try again. Brokers that cannot be reached, elections, time-outs, rebalances.
    #[error("the log is not available at the moment: {0}")]
    Transient(String),
    /// The transaction is lost: abort it, seek back to the committed offsets, and run the batch again.
    #[error("the transaction must be aborted: {0}")]
    Abortable(String),
    /// Another process works under the same identity, or the brokers gave the transaction up: end this one.
    #[error(
        "another process has taken over, or the brokers aborted a transaction that could not end in time (their disk is \
         full, they were away): {0}; give each process its own [kafka] instance, and start this one again"
    )]
    Fenced(String),
    /// An offset is outside of what the log holds: data expired before it was read, or the topic is another one.
    #[error(
        "offset outside of the log ({0}): the topic was recreated, is on another cluster, or lost records that had not \
         been read; check `undertone topics`, then reset the group's offsets"
    )]
    OutOfRange(String),
    /// The topic or partition does not exist.
    #[error("unknown topic or partition ({0}): create it with `undertone topics apply`")]
    UnknownTopic(String),
    /// The brokers do not let us, or are not those that we trust.
    #[error("access to the brokers is refused: {0}")]
    Unauthorized(String),
    /// A setting of the client is wrong.
    #[error("wrong Kafka setting: {0}; check [kafka] in the configuration")]
    Settings(String),
    /// Anything else; the client is of no use any more.
    #[error("the log failed: {0}; restart the process and report it if it comes back")]
    Fatal(String),
}

impl LogError {
    /// Whether the same call may succeed later by itself.
    pub fn is_transient(&self) -> bool {
        matches!(self, LogError::Transient(_))
    }
}

/// Why a record was not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// The queue is full: nothing was sent. Answer 503 and let the sender come again.
    #[error("the producer's queue is full: try again, or raise its limits")]
    Full,
    /// Not acknowledged in time; the record may or may not be in the log. Goes by itself.
    #[error("the log did not acknowledge in time: {0}")]
    Unavailable(String),
    /// Larger than the topic takes. Sending it again changes nothing.
    #[error("a record of {bytes} bytes is larger than {topic} takes: send less, or raise max.message.bytes")]
    TooLarge {
        /// Where it should have gone.
        topic: String,
        /// Bytes of key, value and headers.
        bytes: usize,
    },
    /// The brokers refuse it, and will again until somebody mends it.
    #[error("the log refused the record: {0}")]
    Refused(String),
    /// The producer is of no use any more: end the role.
    #[error("the producer failed: {0}; restart the process")]
    Fatal(String),
}

impl AppendError {
    /// Whether the same record may be taken later, without anybody mending something.
    pub fn is_transient(&self) -> bool {
        matches!(self, AppendError::Full | AppendError::Unavailable(_))
    }
}

/// Sorts an error of librdkafka.
pub(crate) fn classify(error: &KafkaError) -> LogError {
    let text = error.to_string();
    match error {
        KafkaError::Transaction(inner) => classify_transaction(inner, text),
        KafkaError::MessageConsumptionFatal(code) if !is_fenced(*code) => LogError::Fatal(text),
        KafkaError::ClientConfig(..) | KafkaError::ClientCreation(_) | KafkaError::Nul(_) => LogError::Settings(text),
        KafkaError::Canceled => LogError::Fatal(text),
        // An operation on a partition that was revoked in the meantime.
        KafkaError::Seek(_) | KafkaError::NoMessageReceived => LogError::Transient(text),
        _ => match error.rdkafka_error_code() {
            Some(code) => classify_code(code, text),
            None => LogError::Fatal(text),
        },
    }
}

fn classify_transaction(error: &rdkafka::error::RDKafkaError, text: String) -> LogError {
    if is_fenced(error.code()) {
        LogError::Fenced(text)
    } else if error.is_fatal() {
        LogError::Fatal(text)
    } else if error.txn_requires_abort() {
        LogError::Abortable(text)
    } else if error.is_retriable() {
        LogError::Transient(text)
    } else {
        classify_code(error.code(), text)
    }
}

fn is_fenced(code: Code) -> bool {
    matches!(code, Code::Fenced | Code::ProducerFenced | Code::FencedInstanceId | Code::InvalidProducerEpoch)
}

/// Sorts an error code.
pub(crate) fn classify_code(code: Code, text: String) -> LogError {
    match code {
        _ if is_fenced(code) => LogError::Fenced(text),
        // Of the client itself.
        Code::BrokerTransportFailure
        | Code::AllBrokersDown
        | Code::Resolve
        | Code::OperationTimedOut
        | Code::MessageTimedOut
        | Code::TimedOutQueue
        | Code::WaitingForCoordinator
        | Code::InProgress
        | Code::PreviousInProgress
        | Code::Retry
        | Code::Outdated
        | Code::AssignmentLost
        // A member that worked for too long without a look at the group has lost its partitions; it joins again.
        | Code::PollExceeded
        | Code::QueueFull
        | Code::BadMessage
        // Of the brokers.
        | Code::InvalidMessage
        | Code::LeaderNotAvailable
        | Code::NotLeaderForPartition
        | Code::RequestTimedOut
        | Code::BrokerNotAvailable
        | Code::ReplicaNotAvailable
        | Code::NetworkException
        | Code::CoordinatorLoadInProgress
        | Code::CoordinatorNotAvailable
        | Code::NotCoordinator
        | Code::NotEnoughReplicas
        | Code::NotEnoughReplicasAfterAppend
        | Code::NotController
        | Code::IllegalGeneration
        | Code::UnknownMemberId
        | Code::RebalanceInProgress
        | Code::KafkaStorageError
        | Code::FetchSessionIdNotFound
        | Code::InvalidFetchSessionEpoch
        | Code::ListenerNotFound
        | Code::FencedLeaderEpoch
        | Code::UnknownLeaderEpoch
        | Code::OffsetNotAvailable
        | Code::MemberIdRequired
        | Code::UnstableOffsetCommit
        | Code::ConcurrentTransactions
        | Code::ThrottlingQuotaExceeded => LogError::Transient(text),
        Code::OffsetOutOfRange | Code::AutoOffsetReset | Code::NoOffset | Code::LogTruncation => {
            LogError::OutOfRange(text)
        }
        Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition | Code::InvalidTopic => {
            LogError::UnknownTopic(text)
        }
        Code::TopicAuthorizationFailed
        | Code::GroupAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::TransactionalIdAuthorizationFailed => {
            LogError::Unauthorized(format!("{text}; give [kafka] user the right by the brokers' access rules"))
        }
        Code::SaslAuthenticationFailed | Code::Authentication | Code::SSL => LogError::Unauthorized(text),
        Code::InvalidArgument | Code::InvalidConfig | Code::InvalidTransactionTimeout | Code::UnsupportedVersion => {
            LogError::Settings(text)
        }
        _ => LogError::Fatal(text),
    }
}

/// Sorts why a record was not delivered.
pub(crate) fn classify_append(error: &KafkaError, topic: &str, bytes: usize) -> AppendError {
    match error.rdkafka_error_code() {
        Some(Code::QueueFull) => AppendError::Full,
        Some(Code::MessageSizeTooLarge | Code::InvalidMessageSize) => {
            AppendError::TooLarge { topic: topic.to_owned(), bytes }
        }
        // The queue was emptied because the producer is going away.
        Some(Code::PurgeQueue | Code::PurgeInflight) => AppendError::Unavailable(error.to_string()),
        // Such a record breaks a rule of the topic, like one without a key in a compacted topic.
        Some(Code::InvalidRecord) => AppendError::Refused(format!("{topic}: {error}")),
        _ => match classify(error) {
            LogError::Transient(text) => AppendError::Unavailable(text),
            LogError::UnknownTopic(_) => AppendError::Refused(LogError::UnknownTopic(topic.to_owned()).to_string()),
            LogError::Unauthorized(text) => AppendError::Refused(LogError::Unauthorized(text).to_string()),
            other => AppendError::Fatal(other.to_string()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_is_sorted_by_what_to_do() {
        let cases = [
            (KafkaError::MessageConsumption(Code::BrokerTransportFailure), "transient"),
            (KafkaError::MessageConsumption(Code::AllBrokersDown), "transient"),
            (KafkaError::MessageConsumption(Code::PollExceeded), "transient"),
            (KafkaError::ConsumerCommit(Code::RebalanceInProgress), "transient"),
            (KafkaError::MetadataFetch(Code::OperationTimedOut), "transient"),
            (KafkaError::MessageConsumption(Code::AutoOffsetReset), "out of range"),
            (KafkaError::MessageConsumption(Code::OffsetOutOfRange), "out of range"),
            (KafkaError::MessageConsumption(Code::UnknownTopicOrPartition), "unknown topic"),
            (KafkaError::MessageConsumption(Code::TopicAuthorizationFailed), "unauthorized"),
            (KafkaError::MessageConsumptionFatal(Code::FencedInstanceId), "fenced"),
            (KafkaError::MessageConsumptionFatal(Code::UnknownMemberId), "fatal"),
            (KafkaError::ClientCreation("no such setting".to_owned()), "settings"),
            (KafkaError::MessageConsumption(Code::Fail), "fatal"),
        ];
        for (error, expected) in cases {
            let sorted = match classify(&error) {
                LogError::Transient(_) => "transient",
                LogError::Abortable(_) => "abortable",
                LogError::Fenced(_) => "fenced",
                LogError::OutOfRange(_) => "out of range",
                LogError::UnknownTopic(_) => "unknown topic",
                LogError::Unauthorized(_) => "unauthorized",
                LogError::Settings(_) => "settings",
                LogError::Fatal(_) => "fatal",
            };
            assert_eq!(sorted, expected, "{error}");
        }
    }

    #[test]
    fn record_at_fault_is_told_from_a_log_that_is_away() {
        let sorted = |code| classify_append(&KafkaError::MessageProduction(code), "t", 7);
        assert_eq!(sorted(Code::QueueFull), AppendError::Full);
        assert_eq!(sorted(Code::MessageSizeTooLarge), AppendError::TooLarge { topic: "t".to_owned(), bytes: 7 });
        assert!(matches!(sorted(Code::MessageTimedOut), AppendError::Unavailable(_)));
        assert!(matches!(sorted(Code::NotEnoughReplicas), AppendError::Unavailable(_)));
        assert!(matches!(sorted(Code::InvalidRecord), AppendError::Refused(_)));
        assert!(matches!(sorted(Code::UnknownTopicOrPartition), AppendError::Refused(_)));
        assert!(matches!(sorted(Code::Fenced), AppendError::Fatal(_)));
    }
}
