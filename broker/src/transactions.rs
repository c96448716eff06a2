//! Transactions, the first protocol (KIP-98): one lock a transactional id, and every step written to the metadata
//! before it counts.
//!
//! A transaction is decided by one entry (`Committing` or `Aborting`); then the markers are written to its partitions,
//! then the end is noted, together with the offsets it committed. After a crash a decided transaction is finished at the
//! start. Where an acknowledgement promises the disk, each of these steps is on the disk before the next begins.
//! All functions here do file I/O and are for I/O threads.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kafka_protocol::error::ResponseError;

use crate::batch::{Header, Marker};
use crate::log::{AppendError, Partition};
use crate::metadata::{Entry, GroupOffset, Phase, State, Transaction};
use crate::node::{Node, now_ms};

/// The locks of the transactional ids.
#[derive(Default)]
pub(crate) struct Transactions {
    locks: Mutex<BTreeMap<String, Arc<Mutex<()>>>>,
}

/// Who speaks for a transaction.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Producer<'a> {
    pub(crate) transactional_id: &'a str,
    pub(crate) id: i64,
    pub(crate) epoch: i16,
}

impl Transactions {
    fn lock_of(&self, id: &str) -> Arc<Mutex<()>> {
        self.locks().entry(id.to_owned()).or_default().clone()
    }

    fn locks(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Mutex<()>>>> {
        self.locks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn hold(lock: &Mutex<()>) -> MutexGuard<'_, ()> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Node {
    /// Gives a producer id and epoch. With a transactional id, an open transaction of a predecessor is aborted and the
    /// predecessor fenced. `expected` is what a client that goes on thinks it has.
    pub(crate) fn init_producer(
        &self,
        transactional_id: Option<&str>,
        timeout_ms: i64,
        expected: Option<(i64, i16)>,
    ) -> Result<(i64, i16), ResponseError> {
        let Some(id) = transactional_id else { return Ok((self.new_producer_id()?, 0)) };
        if id.is_empty() {
            return Err(ResponseError::InvalidRequest);
        }
        if timeout_ms <= 0 || timeout_ms > self.config.transaction_timeout_max.as_millis() as i64 {
            return Err(ResponseError::InvalidTransactionTimeout);
        }
        let lock = self.transactions.lock_of(id);
        let _held = hold(&lock);
        let before = {
            let metadata = self.metadata();
            let state = metadata.state();
            let before = state.transactions.get(id).cloned();
            if before.is_none() && state.transactions.len() >= self.config.transactional_ids_max {
                return Err(ResponseError::CoordinatorNotAvailable);
            }
            before
        };
        let mut transaction = match before {
            None => Transaction { producer_id: self.new_producer_id()?, producer_epoch: -1, ..Transaction::default() },
            Some(before) => {
                let present = (before.producer_id, before.producer_epoch);
                if let Some((id, epoch)) = expected.filter(|expected| *expected != present) {
                    // The client may not have heard the answer to this very question.
                    let asks_again = id == present.0 && before.bumped_from == Some(epoch);
                    let unused = before.phase == Phase::Empty;
                    return if asks_again && unused { Ok(present) } else { Err(ResponseError::ProducerFenced) };
                }
                self.settle_predecessor(id, before)?
            }
        };
        if transaction.producer_epoch >= i16::MAX - 1 {
            transaction.producer_id = self.new_producer_id()?;
            transaction.producer_epoch = -1;
        }
        transaction.producer_epoch += 1;
        transaction.bumped_from = expected.map(|(_, epoch)| epoch);
        transaction.timeout_ms = timeout_ms;
        transaction.phase = Phase::Empty;
        transaction.used_ms = now_ms();
        let given = (transaction.producer_id, transaction.producer_epoch);
        self.write(Entry::Transaction { id: id.to_owned(), transaction })?;
        Ok(given)
    }

    /// Ends what the last holder of the id left open.
    fn settle_predecessor(&self, id: &str, mut before: Transaction) -> Result<Transaction, ResponseError> {
        let marker = match before.phase {
            Phase::Ongoing => {
                // The marker carries a higher epoch, so that what is still under way from the predecessor is refused.
                before.producer_epoch = before.producer_epoch.saturating_add(1);
                Marker::Abort
            }
            Phase::Committing => Marker::Commit,
            Phase::Aborting => Marker::Abort,
            Phase::Empty | Phase::Committed | Phase::Aborted => return Ok(before),
        };
        self.finish(id, before, marker)
    }

    fn new_producer_id(&self) -> Result<i64, ResponseError> {
        let mut metadata = self.metadata();
        let id = metadata.state().next_producer_id;
        metadata.append(Entry::NextProducerId(id + 1)).map_err(unavailable)?;
        Ok(id)
    }

    /// Adds partitions to the transaction, which begins with them.
    pub(crate) fn add_partitions_to_transaction(
        &self,
        producer: Producer<'_>,
        partitions: Vec<(String, i32)>,
    ) -> Result<(), ResponseError> {
        self.change(producer, |transaction| {
            transaction.partitions.extend(partitions);
            Ok(())
        })
    }

    /// Says that offsets of a group will be added to the transaction.
    pub(crate) fn add_offsets_to_transaction(&self, producer: Producer<'_>) -> Result<(), ResponseError> {
        self.change(producer, |_| Ok(()))
    }

    /// Adds offsets that count when the transaction commits, if `allowed` says so while nothing else is committed: a
    /// next owner of the partitions must not read their offsets between that check and the write.
    pub(crate) fn commit_offsets_in_transaction(
        &self,
        producer: Producer<'_>,
        offsets: Vec<GroupOffset>,
        allowed: impl FnOnce(&Node) -> Result<(), ResponseError>,
    ) -> Result<(), ResponseError> {
        self.change(producer, |transaction| {
            allowed(self)?;
            for offset in offsets {
                let same = |o: &GroupOffset| {
                    (&o.group, &o.topic, o.partition) == (&offset.group, &offset.topic, offset.partition)
                };
                transaction.offsets.retain(|other| !same(other));
                transaction.offsets.push(offset);
            }
            Ok(())
        })
    }

    fn change(
        &self,
        producer: Producer<'_>,
        change: impl FnOnce(&mut Transaction) -> Result<(), ResponseError>,
    ) -> Result<(), ResponseError> {
        let lock = self.transactions.lock_of(producer.transactional_id);
        let _held = hold(&lock);
        let mut metadata = self.metadata();
        let before = find(metadata.state(), producer)?;
        let mut transaction = before.clone();
        match transaction.phase {
            Phase::Ongoing => {}
            Phase::Empty | Phase::Committed | Phase::Aborted => {
                transaction.phase = Phase::Ongoing;
                transaction.started_ms = now_ms();
            }
            Phase::Committing | Phase::Aborting => return Err(ResponseError::ConcurrentTransactions),
        }
        change(&mut transaction)?;
        if transaction == *before {
            return Ok(());
        }
        transaction.used_ms = now_ms();
        let id = producer.transactional_id.to_owned();
        metadata.append(Entry::Transaction { id, transaction }).map_err(unavailable)
    }

    /// Appends a transactional batch, if its transaction is open and holds the partition. The transaction's lock is
    /// held meanwhile, so that its end cannot overtake the append.
    pub(crate) fn append_in_transaction(
        &self,
        transactional_id: &str,
        at: (&str, i32),
        log: &Partition,
        batch: &[u8],
        header: &Header,
    ) -> Result<i64, AppendError> {
        let lock = self.transactions.lock_of(transactional_id);
        let _held = hold(&lock);
        let producer = Producer { transactional_id, id: header.producer_id, epoch: header.producer_epoch };
        let transaction = self.transaction_of(producer).map_err(|error| AppendError::Refused(produce_error(error)))?;
        let holds = transaction.partitions.iter().any(|(topic, partition)| (topic.as_str(), *partition) == at);
        if transaction.phase != Phase::Ongoing || !holds {
            return Err(AppendError::Refused(ResponseError::InvalidTxnState));
        }
        log.append(batch, now_ms())
    }

    /// Commits or aborts. Asking again for what was done is no error.
    pub(crate) fn end_transaction(&self, producer: Producer<'_>, marker: Marker) -> Result<(), ResponseError> {
        let lock = self.transactions.lock_of(producer.transactional_id);
        let _held = hold(&lock);
        let transaction = self.transaction_of(producer)?;
        match (transaction.phase, marker) {
            (Phase::Ongoing, _) | (Phase::Committing, Marker::Commit) | (Phase::Aborting, Marker::Abort) => {
                self.finish(producer.transactional_id, transaction, marker).map(|_| ())
            }
            (Phase::Committed, Marker::Commit) | (Phase::Aborted, Marker::Abort) => Ok(()),
            _ => Err(ResponseError::InvalidTxnState),
        }
    }

    /// Decides the transaction and carries it out. The id's lock must be held.
    fn finish(&self, id: &str, mut transaction: Transaction, marker: Marker) -> Result<Transaction, ResponseError> {
        let (deciding, decided) = match marker {
            Marker::Commit => (Phase::Committing, Phase::Committed),
            Marker::Abort => (Phase::Aborting, Phase::Aborted),
        };
        transaction.phase = deciding;
        let id = id.to_owned();
        self.write(Entry::Transaction { id: id.clone(), transaction: transaction.clone() })?;
        self.syncer.settle().map_err(|_| ResponseError::CoordinatorNotAvailable)?;
        let producer = (transaction.producer_id, transaction.producer_epoch);
        for (topic, partition) in &transaction.partitions {
            // A deleted topic needs no marker.
            let Some(log) = self.partition(topic, *partition) else { continue };
            log.end_transaction(producer, marker, now_ms()).map_err(unavailable)?;
        }
        self.syncer.settle().map_err(|_| ResponseError::CoordinatorNotAvailable)?;
        let mut offsets = std::mem::take(&mut transaction.offsets);
        if marker == Marker::Abort {
            offsets.clear();
        }
        offsets.retain(|offset| self.topic(&offset.topic).is_some());
        transaction.partitions.clear();
        transaction.phase = decided;
        transaction.used_ms = now_ms();
        let ended = Entry::TransactionEnded { id, transaction: transaction.clone(), offsets };
        self.write(ended)?;
        Ok(transaction)
    }

    fn transaction_of(&self, producer: Producer<'_>) -> Result<Transaction, ResponseError> {
        find(self.metadata().state(), producer).cloned()
    }

    fn write(&self, entry: Entry) -> Result<(), ResponseError> {
        self.metadata().append(entry).map_err(unavailable)
    }

    /// At the start: carries out what was decided before.
    pub(crate) fn finish_decided(&self) {
        self.each_transaction(
            |transaction| matches!(transaction.phase, Phase::Committing | Phase::Aborting),
            |id, t| {
                let marker = if t.phase == Phase::Committing { Marker::Commit } else { Marker::Abort };
                self.finish(id, t, marker).map(|_| ())
            },
        );
    }

    /// Aborts transactions that are open for longer than their producer allowed, fencing it, and tries again to finish
    /// decided ones that a full disk held up. Forgets ids that were not used for long.
    pub(crate) fn expire_transactions(&self, now_ms: i64) {
        let overdue = |t: &Transaction| t.phase == Phase::Ongoing && now_ms - t.started_ms > t.timeout_ms;
        self.each_transaction(overdue, |id, mut transaction| {
            tracing::warn!(transactional_id = id, "transaction timed out, aborting it");
            transaction.producer_epoch = transaction.producer_epoch.saturating_add(1);
            self.finish(id, transaction, Marker::Abort).map(|_| ())
        });
        self.finish_decided();
        let before_ms = now_ms - self.config.transactional_id_expiry.as_millis() as i64;
        let idle = |phase| matches!(phase, Phase::Empty | Phase::Committed | Phase::Aborted);
        let unused = move |t: &Transaction| idle(t.phase) && t.used_ms < before_ms;
        self.each_transaction(unused, |id, _| self.write(Entry::TransactionForgotten { id: id.to_owned() }));
        let locks = self.transactions.locks().len();
        if locks <= self.metadata().state().transactions.len() {
            return;
        }
        let known: BTreeSet<String> = self.metadata().state().transactions.keys().cloned().collect();
        // A lock that someone else holds or waits for has a second owner.
        self.transactions.locks().retain(|id, lock| known.contains(id) || Arc::strong_count(lock) > 1);
    }

    /// Does something with each transaction that meets the condition, under its lock.
    fn each_transaction(
        &self,
        condition: impl Fn(&Transaction) -> bool,
        act: impl Fn(&str, Transaction) -> Result<(), ResponseError>,
    ) {
        let ids: Vec<String> = {
            let metadata = self.metadata();
            let all = metadata.state().transactions.iter();
            all.filter(|(_, transaction)| condition(transaction)).map(|(id, _)| id.clone()).collect()
        };
        for id in ids {
            let lock = self.transactions.lock_of(&id);
            let _held = hold(&lock);
            let transaction = self.metadata().state().transactions.get(&id).cloned();
            if let Some(transaction) = transaction.filter(&condition)
                && let Err(error) = act(&id, transaction)
            {
                tracing::warn!(transactional_id = id, %error, "finish transaction");
            }
        }
    }
}

/// An error in the words of Produce, whose clients hear of a fenced producer by its epoch.
pub(crate) fn produce_error(error: ResponseError) -> ResponseError {
    if error == ResponseError::ProducerFenced { ResponseError::InvalidProducerEpoch } else { error }
}

fn find<'s>(state: &'s State, producer: Producer<'_>) -> Result<&'s Transaction, ResponseError> {
    let transaction = state.transactions.get(producer.transactional_id);
    let transaction = transaction.ok_or(ResponseError::InvalidProducerIdMapping)?;
    if transaction.producer_id != producer.id {
        return Err(ResponseError::InvalidProducerIdMapping);
    }
    if transaction.producer_epoch != producer.epoch {
        return Err(ResponseError::ProducerFenced);
    }
    Ok(transaction)
}

fn unavailable(error: std::io::Error) -> ResponseError {
    tracing::warn!(%error, "write the state of a transaction");
    ResponseError::CoordinatorNotAvailable
}
