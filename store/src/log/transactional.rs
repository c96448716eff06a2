//! A producer whose records become visible together or not at all, without a consumer beside it: for one-off work that
//! keeps its progress in the log itself.
//!
//! Promises: [`TransactionalProducer::connect`] ends what an earlier owner of the name left open, so that whoever reads
//! committed records after it sees all that the earlier one will ever have written, and a second process under the same
//! name fences the first. Between [`TransactionalProducer::write`] and [`TransactionalProducer::commit`] nothing is
//! visible; a process that dies there has written nothing.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::error::KafkaError;
use rdkafka::producer::{FutureProducer, Producer as _};

use super::client::{ANSWER_WITHIN, Logged, base, blocking, drop_aside, with_properties};
use super::error::classify;
use super::producer::outgoing;
use super::{Kafka, LogError, Record};

/// How often a commit whose outcome is in doubt is asked for before it fails.
const COMMIT_ATTEMPTS_MAX: u32 = 5;

/// A producer of transactions; see the module.
pub struct TransactionalProducer {
    /// `Some` until it is dropped.
    producer: Option<Arc<FutureProducer<Logged>>>,
    timeout: Duration,
}

impl std::fmt::Debug for TransactionalProducer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TransactionalProducer").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

impl TransactionalProducer {
    /// Takes over the transactional id. The broker aborts a transaction that is open for longer than `timeout`.
    ///
    /// # Errors
    /// A setting is refused, or the brokers do not answer in time.
    pub async fn connect(
        kafka: &Kafka,
        transactional_id: &str,
        timeout: Duration,
    ) -> Result<TransactionalProducer, LogError> {
        let mut config = base(kafka);
        config
            .set("transactional.id", transactional_id)
            .set("transaction.timeout.ms", timeout.as_millis().to_string())
            .set("enable.idempotence", "true")
            .set("partitioner", "murmur2_random")
            .set("compression.type", "lz4")
            .set("message.max.bytes", schemas::topic::REJECT_BYTES_MAX.to_string())
            .set("queue.buffering.max.ms", "0");
        let producer: FutureProducer<Logged> =
            with_properties(config, kafka).create_with_context(Logged).map_err(|error| classify(&error))?;
        let producer = Arc::new(producer);
        let taking = Arc::clone(&producer);
        blocking(move || taking.init_transactions(ANSWER_WITHIN)).await?;
        Ok(TransactionalProducer { producer: Some(producer), timeout })
    }

    /// Begins a transaction with these records; returns when the brokers have each of them, and shows none of them.
    ///
    /// # Errors
    /// [`LogError`]: the transaction was aborted, or another process has taken over.
    pub async fn write(&self, records: &[Record]) -> Result<(), LogError> {
        let producer = self.producer();
        producer.begin_transaction().map_err(|error| classify(&error))?;
        match tokio::time::timeout(self.timeout, self.produce(records)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                self.abort().await?;
                Err(classify(&error))
            }
            Err(_elapsed) => {
                self.abort().await?;
                Err(LogError::Transient("the records were not acknowledged in time".to_owned()))
            }
        }
    }

    /// Makes the records of the open transaction visible. An outcome in doubt is asked for again.
    ///
    /// # Errors
    /// [`LogError`]: nothing became visible, or the outcome stays in doubt; whoever connects next finds out.
    pub async fn commit(&self) -> Result<(), LogError> {
        let (producer, timeout) = (Arc::clone(self.producer()), self.timeout);
        blocking(move || {
            let mut asked = 0;
            loop {
                asked += 1;
                match producer.commit_transaction(timeout) {
                    Err(KafkaError::Transaction(error)) if error.is_retriable() && asked < COMMIT_ATTEMPTS_MAX => {}
                    Err(KafkaError::Transaction(error)) if error.txn_requires_abort() => {
                        producer.abort_transaction(timeout)?;
                        return Err(KafkaError::Transaction(error));
                    }
                    outcome => return outcome,
                }
            }
        })
        .await
    }

    async fn abort(&self) -> Result<(), LogError> {
        let (producer, timeout) = (Arc::clone(self.producer()), self.timeout);
        blocking(move || producer.abort_transaction(timeout)).await
    }

    async fn produce(&self, records: &[Record]) -> Result<(), KafkaError> {
        let mut deliveries = Vec::with_capacity(records.len());
        for record in records {
            deliveries.push(self.producer().send_result(outgoing(record)).map_err(|(error, _)| error)?);
        }
        for delivery in deliveries {
            match delivery.await {
                Ok(Ok(_)) => {}
                Ok(Err((error, _))) => return Err(error),
                Err(_closed) => return Err(KafkaError::Canceled),
            }
        }
        Ok(())
    }

    fn producer(&self) -> &Arc<FutureProducer<Logged>> {
        self.producer.as_ref().expect("only drop takes the producer")
    }
}

impl Drop for TransactionalProducer {
    fn drop(&mut self) {
        drop_aside(self.producer.take());
    }
}
