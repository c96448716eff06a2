//! Commits on a thread of its own, so that the next batch is read and inferred meanwhile. One is under way at a time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, SystemTime};

use store::log::Record;
use store::log::transact::{Begun, Calls, CommitError};

use super::error::{Interrupted, RunError};
use super::work::Worked;
use super::{Owned, Runner, unix_ms};
use crate::spans::Watch;

/// The committing thread, which ends with this value, unless a call of its never comes back.
pub(super) struct Commits {
    calls: Arc<Calls>,
    begun: SyncSender<(Begun, BTreeMap<i32, i64>)>,
    /// Whether the contexts of what has begun were written.
    saved: SyncSender<bool>,
    outcomes: Receiver<Outcome>,
    under_way: Option<UnderWay>,
    /// The outcome of what is under way, once it is known.
    outcome: Option<Outcome>,
}

/// What became of a batch, and when.
type Outcome = (Result<(), CommitError>, SystemTime);

/// What is to be noted of a batch when it is committed.
pub(super) struct UnderWay {
    /// The offsets at which the next batches start.
    pub(super) next: BTreeMap<i32, i64>,
    pub(super) records: Vec<Record>,
    pub(super) started: i64,
    /// Whether each turn was at fault.
    pub(super) faults: Vec<bool>,
    /// What is told of it.
    pub(super) watch: Watch,
}

impl Commits {
    /// Starts the thread.
    pub(super) fn start(calls: Arc<Calls>) -> Result<Commits, RunError> {
        let (begun, taken) = sync_channel::<(Begun, BTreeMap<i32, i64>)>(1);
        let (saved, is_saved) = sync_channel(1);
        let (done, outcomes) = sync_channel(1);
        let work = move || {
            while let Ok((begun, next)) = taken.recv() {
                let prepared = begun.prepare(&next);
                let Ok(is_saved) = is_saved.recv() else { return };
                let outcome = prepared.and_then(|prepared| {
                    if is_saved { prepared.commit() } else { prepared.abandon().map_err(CommitError::from) }
                });
                if done.send((outcome, SystemTime::now())).is_err() {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("processors-commit".to_owned());
        thread.spawn(work).map_err(RunError::Thread)?;
        Ok(Commits { calls, begun, saved, outcomes, under_way: None, outcome: None })
    }

    /// Whether there is a batch that is not settled.
    pub(super) fn is_under_way(&self) -> bool {
        self.under_way.is_some()
    }

    /// Whether each turn of the batch that is not settled was at fault.
    pub(super) fn faults(&self) -> &[bool] {
        self.under_way.as_ref().map_or(&[], |batch| &batch.faults)
    }

    /// Whether the batch that is under way comes to its end within `wait`: it can be settled without waiting.
    pub(super) fn ends_within(&mut self, wait: Duration) -> Result<bool, RunError> {
        if self.under_way.is_some() && self.outcome.is_none() {
            let outcome = self.calls.outcome_within(&self.outcomes, wait)?;
            self.outcome = outcome.map(|outcome| outcome.ok_or(RunError::Panicked)).transpose()?;
        }
        Ok(self.outcome.is_some())
    }

    /// Sends the offsets at which the next batches start after the records of what has begun, and goes no further. The
    /// batch before must be settled.
    pub(super) fn prepare(&mut self, begun: Begun, next: &BTreeMap<i32, i64>) -> Result<(), RunError> {
        debug_assert!(self.under_way.is_none(), "at most one batch of a partition is uncommitted");
        self.begun.send((begun, next.clone())).map_err(|_| RunError::Panicked)
    }

    /// Commits what was prepared: its contexts are written.
    pub(super) fn commit(&mut self, batch: UnderWay) -> Result<(), RunError> {
        self.saved.send(true).map_err(|_| RunError::Panicked)?;
        self.under_way = Some(batch);
        Ok(())
    }

    /// Takes back what was prepared.
    pub(super) fn abandon(&mut self) -> Result<(), RunError> {
        self.saved.send(false).map_err(|_| RunError::Panicked)?;
        match self.wait()? {
            (Ok(()) | Err(CommitError::Aborted(_)), _) => Ok(()),
            (Err(CommitError::Fatal(error)), _) => Err(error.into()),
        }
    }

    fn wait(&self) -> Result<Outcome, RunError> {
        self.calls.outcome(&self.outcomes)?.ok_or(RunError::Panicked)
    }
}

impl Runner {
    /// Waits for the outcome of the batch that is being committed, if there is one.
    pub(super) fn settle(
        &self,
        commits: &mut Commits,
        owned: &mut BTreeMap<i32, Owned>,
    ) -> Result<Worked, Interrupted> {
        let Some(UnderWay { next, records, started, faults, watch }) = commits.under_way.take() else {
            return Ok(Worked::Nothing);
        };
        let (outcome, done) = commits.outcome.take().map_or_else(|| commits.wait(), Ok)?;
        outcome?;
        watch.report(self.chain.name(), &self.plan.input, records.len(), done);
        self.recent.note(self.limits.rejects, &faults);
        self.meters.committed(&records, started, unix_ms(done));
        self.advance(owned, &next)
    }
}
