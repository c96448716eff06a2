//! The exactly-once shell around a chain: read a batch, load contexts, infer, fold, write contexts, and commit turns,
//! rejects and offsets in one transaction. Nothing is kept that a new owner of a partition must restore.
//!
//! Promises (the reasons stand in the README's decision list):
//! - Contexts are written before the transaction commits, with the versions that the batch started from as `previous`;
//!   so after a crash or an abort the version before it is there, and each turn is folded once.
//! - Reading and inferring run ahead of the commit, folding does not: the contexts of a batch are loaded and written only
//!   after the commit of the one before returned success, under the epoch of the assignment. What ran ahead of an abort
//!   is dropped.
//! - After a crash what was uncommitted runs one turn at a time, and a turn that is alone in work when the process
//!   dies [`KILLS_MAX`] times is rejected (or passed on without the parts of a later chain).
//! - A fault of ours stops the role; it never rejects a turn.
//! - While the contexts' store is away nothing flows: the partitions stay this process's own, and are taken over again as
//!   soon as the store answers. A client of the log that is beyond repair is replaced, a bounded number of times within
//!   some minutes: a process that another one fences for good ends.
//!
//! It blocks, so it lives on a thread of its own; the stores are asynchronous and are waited for.

mod bound;
mod commit;
mod error;
mod marks;
mod restarts;
mod units;
mod work;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use schemas::{Codec, Spans};
use store::Waiting;
use store::context::{Attempt, ContextError, Contexts, Epoch};
use store::log::transact::{Calls, CommitError, Delivery, Event, Settings, Transactor};
use store::log::{Kafka, LogError, Message};
use store::registry::Registry;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use self::bound::Recent;
pub use self::bound::RejectsBound;
use self::commit::Commits;
use self::error::Interrupted;
pub use self::error::RunError;
use self::marks::Marks;
use self::restarts::Restarts;
use self::work::{Ahead, Worked};
use crate::batch::TierPolicy;
use crate::chain::Chain;
use crate::meters::Meters;
use crate::plan::Plan;
use crate::replay::Reader;
use crate::standing::start;

/// A turn that was alone in work this many times when the process died is taken for the killer.
pub const KILLS_MAX: u32 = 3;
/// Longest wait for a message; also how soon a shutdown is noticed.
const POLL_WAIT: Duration = Duration::from_millis(100);
/// Waits between tries while the log is away, doubling up to the second.
const RETRY_WAITS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// Time after which the group is asked again about partitions that it gave and did not confirm.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// While a batch is being committed: time between two looks for messages that can join the next one.
const LOOK_AGAIN: Duration = Duration::from_micros(250);
/// Records that are forwarded in one transaction at most; the bytes bound them as well.
const FORWARDED_MAX: usize = 10_000;

/// Bounds of the runner.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Turns in a batch.
    pub batch_turns_max: usize,
    /// Bytes of the messages in a batch.
    pub batch_bytes_max: usize,
    /// Bytes that are fetched ahead of the work.
    pub fetch_ahead_bytes_max: usize,
    /// The group gives a silent process's partitions away after this time.
    pub session_timeout: Duration,
    /// The broker aborts a transaction that is open for longer.
    pub transaction_timeout: Duration,
    /// How often a commit whose outcome is in doubt is asked for before the client of the log is replaced. While the brokers
    /// are away each takes as long as a transaction may; the group takes a client that is replaced for dead first.
    pub commit_attempts_max: u32,
    /// The group gives away the partitions of a process that works on a batch for longer.
    pub work_time_max: Duration,
    /// Aborts in a row before the role gives up.
    pub aborts_max: u32,
    /// How long a start waits for brokers and topics.
    pub start_wait_max: Duration,
    /// Rejects among the last turns over which the role stops.
    pub rejects: RejectsBound,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            batch_turns_max: 512,
            batch_bytes_max: 4 * 1024 * 1024,
            fetch_ahead_bytes_max: 8 * 1024 * 1024,
            session_timeout: Duration::from_secs(6),
            transaction_timeout: Duration::from_secs(10),
            commit_attempts_max: 28,
            work_time_max: Duration::from_secs(300),
            aborts_max: 20,
            start_wait_max: Duration::from_secs(60),
            rejects: RejectsBound::default(),
        }
    }
}

/// A partition that this process owns.
struct Owned {
    epoch: Epoch,
    /// The offset at which the next batch starts.
    next: i64,
    /// The turn that runs alone, and how often the process died with it before this try.
    attempt: Option<Attempt>,
    /// After a crash, turns below this offset run alone: the batch that was not committed is among them.
    careful_until: i64,
}

impl Owned {
    fn is_careful(&self) -> bool {
        self.next < self.careful_until
    }
}

/// Everything that a run needs; see [`crate::run`].
pub(crate) struct Runner {
    pub(crate) chain: Chain,
    /// Records go on as they are; the chain is empty.
    pub(crate) forwards: bool,
    pub(crate) delivery: Delivery,
    pub(crate) plan: Plan,
    /// If it runs turns once more that were enriched before.
    pub(crate) replay: Option<RefCell<Reader>>,
    pub(crate) group: String,
    pub(crate) transactional_id: String,
    pub(crate) tier: TierPolicy,
    pub(crate) limits: Limits,
    pub(crate) kafka: Kafka,
    pub(crate) contexts: Contexts,
    pub(crate) codec: Arc<Codec>,
    pub(crate) registry: Registry,
    pub(crate) meters: Meters,
    pub(crate) spans: Spans,
    pub(crate) recent: Recent,
    pub(crate) waiting: Arc<Waiting>,
    pub(crate) calls: Arc<Calls>,
    /// What this process has noted of its attempts, by partition.
    pub(crate) marks: RefCell<BTreeMap<i32, Marks>>,
    pub(crate) shutdown: CancellationToken,
    pub(crate) runtime: Handle,
}

impl Runner {
    /// Runs until shutdown, under one client of the log after the other.
    pub(crate) fn run(&self) -> Result<(), RunError> {
        let mut restarts = Restarts::default();
        loop {
            let error = match self.run_client() {
                Err(error) if error.is_of_the_client() && !self.shutdown.is_cancelled() => error,
                ended => return ended,
            };
            let passes = matches!(&error, RunError::Log(error) if error.is_transient());
            let Some(pause) = restarts.next(Instant::now(), passes) else { return Err(error) };
            tracing::warn!(%error, pause_ms = pause.as_millis() as u64, "the client of the log is replaced");
            self.meters.restarted();
            self.waiting.set("replacing the client of the log");
            std::thread::sleep(pause);
        }
    }

    /// Runs until shutdown, or until this client of the log is of no use any more.
    fn run_client(&self) -> Result<(), RunError> {
        let Some(mut transactor) = self.connect()? else { return Ok(()) };
        let mut commits = Commits::start(Arc::clone(&self.calls))?;
        let mut ahead = Ahead::default();
        let mut owned: BTreeMap<i32, Owned> = BTreeMap::new();
        let worked = self.work(&mut transactor, &mut commits, &mut ahead, &mut owned);
        if worked.is_err() {
            // Best effort: what stopped the work is worth more than what else goes wrong now.
            let _ = self.drop_ahead(&mut commits, &mut owned, &mut ahead);
            let _ = self.leave(&mut owned);
        }
        worked
    }

    /// What [`Runner::run_client`] says, but for the partitions, which are left by whoever called.
    fn work(
        &self,
        transactor: &mut Transactor,
        commits: &mut Commits,
        ahead: &mut Ahead,
        owned: &mut BTreeMap<i32, Owned>,
    ) -> Result<(), RunError> {
        self.meters.degraded(false);
        let mut aborts = 0;
        let mut asked = Instant::now();
        while !self.shutdown.is_cancelled() {
            let worked = match self.next(transactor, commits, ahead, owned)? {
                Next::Settled => self.settle(commits, owned),
                Next::Ready => self.commit(transactor, commits, owned, ahead),
                Next::Waiting => Ok(Worked::Nothing),
                // The group did not confirm them, and did not take them away either: it could not be asked.
                Next::Nothing if owned.is_empty() && !transactor.given().is_empty() => {
                    if asked.elapsed() >= ASK_AGAIN {
                        self.take(transactor, owned)?;
                        asked = Instant::now();
                    }
                    continue;
                }
                Next::Nothing => {
                    self.choose_tier(&mut ahead.tier, 0);
                    self.pass_marks(transactor, owned)
                }
                Next::Misplaced(cause) => Err(Interrupted::Dropped(cause)),
                Next::Messages(messages) => {
                    self.read(commits, owned, messages, ahead).map(|()| Worked::Nothing).map_err(Into::into)
                }
                Next::Revoked => {
                    self.drop_ahead(commits, owned, ahead)?;
                    self.leave(owned)?;
                    self.waiting.set("waiting for partitions");
                    continue;
                }
                Next::Assigned => {
                    self.drop_ahead(commits, owned, ahead)?;
                    self.take(transactor, owned)?;
                    asked = Instant::now();
                    continue;
                }
            };
            match worked {
                Ok(Worked::Nothing) => {}
                Ok(Worked::Committed) => aborts = 0,
                Err(Interrupted::Away(error)) => {
                    tracing::warn!(%error, "batch dropped: the contexts' store is away");
                    self.drop_ahead(commits, owned, ahead)?;
                    self.leave(owned)?;
                    self.take(transactor, owned)?;
                    asked = Instant::now();
                }
                Err(Interrupted::Failed(error)) => return Err(error),
                Err(Interrupted::Dropped(cause)) => {
                    self.drop_ahead(commits, owned, ahead)?;
                    aborts += 1;
                    self.meters.aborted();
                    tracing::warn!(cause = %cause, aborts, "batch dropped, reading it again");
                    if aborts > self.limits.aborts_max {
                        return Err(RunError::Aborts(aborts, cause));
                    }
                    std::thread::sleep((RETRY_WAITS.0 * aborts).min(RETRY_WAITS.1));
                    // Taken over again, from the committed offsets and under new epochs. If they are no longer ours,
                    // the group does not confirm them, and the next poll says so.
                    self.leave(owned)?;
                    self.take(transactor, owned)?;
                }
            }
        }
        self.drop_ahead(commits, owned, ahead)?;
        self.leave(owned)
    }

    /// Waits for what is being committed, and drops what ran ahead of it: whoever has the partitions next reads it again.
    fn drop_ahead(
        &self,
        commits: &mut Commits,
        owned: &mut BTreeMap<i32, Owned>,
        ahead: &mut Ahead,
    ) -> Result<(), RunError> {
        ahead.clear();
        match self.settle(commits, owned) {
            // The outcome shows in the committed offsets.
            Ok(_) | Err(Interrupted::Dropped(_) | Interrupted::Away(_)) => Ok(()),
            Err(Interrupted::Failed(error)) => Err(error),
        }
    }

    /// Joins the group, waiting for brokers that are not there yet; `None` if told to shut down meanwhile.
    fn connect(&self) -> Result<Option<Transactor>, RunError> {
        let settings = Settings {
            group: self.group.clone(),
            topic: self.plan.input.clone(),
            transactional_id: self.transactional_id.clone(),
            transaction_timeout: self.limits.transaction_timeout,
            commit_attempts_max: self.limits.commit_attempts_max,
            session_timeout: self.limits.session_timeout,
            work_time_max: self.limits.work_time_max,
            fetch_ahead_bytes_max: self.limits.fetch_ahead_bytes_max,
        };
        let connected =
            self.patiently(|| Transactor::connect_for(&self.kafka, &settings, self.delivery, Arc::clone(&self.calls)));
        self.waiting.set("waiting for partitions");
        connected
    }

    /// Tries again while the log is away, up to `start_wait_max`; `None` if told to shut down meanwhile.
    fn patiently<T>(&self, mut work: impl FnMut() -> Result<T, LogError>) -> Result<Option<T>, RunError> {
        let deadline = Instant::now() + self.limits.start_wait_max;
        let mut wait = RETRY_WAITS.0;
        loop {
            match work() {
                Ok(done) => return Ok(Some(done)),
                Err(LogError::Transient(_) | LogError::UnknownTopic(_)) if self.shutdown.is_cancelled() => {
                    return Ok(None);
                }
                Err(error @ (LogError::Transient(_) | LogError::UnknownTopic(_))) if Instant::now() < deadline => {
                    tracing::info!(error = %error, "waiting for the log");
                    std::thread::sleep(wait);
                    wait = (wait * 2).min(RETRY_WAITS.1);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// What is to be done next. A batch is what was read while the one before was committed: a lone turn goes at once,
    /// and a backlog in the largest batches that the limits allow.
    fn next(
        &self,
        transactor: &mut Transactor,
        commits: &mut Commits,
        ahead: &Ahead,
        owned: &BTreeMap<i32, Owned>,
    ) -> Result<Next, RunError> {
        if commits.ends_within(Duration::ZERO)? {
            return Ok(Next::Settled);
        }
        let is_under_way = commits.is_under_way();
        if !is_under_way && ahead.messages() > 0 {
            let rest = transactor.rest();
            if rest.is_zero() {
                return Ok(Next::Ready);
            }
            return self.use_rest(transactor, owned, ahead, rest);
        }
        let wait = if is_under_way { Duration::ZERO } else { POLL_WAIT };
        match self.collect(transactor, owned, ahead, wait)? {
            Next::Nothing if is_under_way => {
                Ok(if commits.ends_within(LOOK_AGAIN)? { Next::Settled } else { Next::Waiting })
            }
            next => Ok(next),
        }
    }

    /// The brokers would refuse a batch that begins now: what comes meanwhile joins it.
    fn use_rest(
        &self,
        transactor: &mut Transactor,
        owned: &BTreeMap<i32, Owned>,
        ahead: &Ahead,
        rest: Duration,
    ) -> Result<Next, RunError> {
        let begun = Instant::now();
        match self.collect(transactor, owned, ahead, rest)? {
            Next::Nothing => {
                // A full batch takes no more.
                std::thread::sleep(rest.saturating_sub(begun.elapsed()));
                Ok(Next::Waiting)
            }
            next => Ok(next),
        }
    }

    /// Gathers what is there and has room in the batch.
    fn collect(
        &self,
        transactor: &mut Transactor,
        owned: &BTreeMap<i32, Owned>,
        ahead: &Ahead,
        wait: Duration,
    ) -> Result<Next, RunError> {
        let turns_max = match (owned.values().any(Owned::is_careful), self.forwards) {
            (true, _) => 1,
            (false, true) => FORWARDED_MAX,
            (false, false) => self.limits.batch_turns_max,
        };
        let (turns_max, mut bytes) = (turns_max.saturating_sub(ahead.messages()), ahead.bytes());
        let mut messages = Vec::new();
        while messages.len() < turns_max && bytes < self.limits.batch_bytes_max {
            let wait = if messages.is_empty() { wait } else { Duration::ZERO };
            match transactor.poll(wait) {
                Ok(None) => break,
                Ok(Some(Event::Message(message))) => {
                    bytes += message.value.as_ref().map_or(0, Vec::len);
                    messages.push(message);
                }
                // What was gathered under the old assignment is read again by whoever gets the partitions.
                Ok(Some(Event::Revoked)) => return Ok(Next::Revoked),
                Ok(Some(Event::Assigned(_))) => return Ok(Next::Assigned),
                Err(LogError::Transient(cause)) => {
                    tracing::debug!(cause, "the log is away for the moment");
                    break;
                }
                Err(LogError::UnknownTopic(topic)) if owned.is_empty() => {
                    tracing::debug!(topic, "waiting for the topic");
                    break;
                }
                // True, and then taking over again says what contradicts what; or a look-up of offsets went wrong.
                Err(LogError::OutOfRange(cause)) if !owned.is_empty() => return Ok(Next::Misplaced(cause)),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(if messages.is_empty() { Next::Nothing } else { Next::Messages(messages) })
    }

    /// Takes over the partitions that were given: an epoch first, then where to start, whether they are still ours, and
    /// a mark that work goes on. If they are not, or nobody could say, none is owned; the next poll tells the loss.
    fn take(&self, transactor: &mut Transactor, owned: &mut BTreeMap<i32, Owned>) -> Result<(), RunError> {
        owned.clear();
        let starts = match self.take_given(transactor, owned) {
            Err(RunError::Context(ContextError::Database(error))) if error.is_transient() => {
                self.waiting.set_away("waiting for the contexts' store, which is away (settings: [context])");
                tracing::debug!(%error, "the partitions are not taken over yet");
                None
            }
            starts => starts?,
        };
        if starts.is_none() {
            owned.clear();
        }
        // Without an answer the client waits, and does not even learn that it lost them: none are assigned then.
        if let Err(error) = transactor.assign(&starts.clone().unwrap_or_default()) {
            tracing::debug!(error = %error, "the group moved on before the partitions were taken");
            owned.clear();
        }
        if let Some(starts) = starts {
            self.waiting.clear();
            tracing::info!(partitions = ?starts.keys().collect::<Vec<_>>(), "took over partitions");
        }
        Ok(())
    }

    /// The offsets to start from; `None` if the partitions are not confirmed.
    fn take_given(
        &self,
        transactor: &mut Transactor,
        owned: &mut BTreeMap<i32, Owned>,
    ) -> Result<Option<BTreeMap<i32, i64>>, RunError> {
        let given = transactor.given().to_vec();
        if given.is_empty() {
            // The others have them all: ready for what may come.
            return Ok(Some(BTreeMap::new()));
        }
        // Asked before as well: a new epoch stops whoever works on the partition, so one who lost it must not get any.
        if !self.is_member(transactor, &given)? {
            return Ok(None);
        }
        let mut assigned = BTreeMap::new();
        for partition in &given {
            assigned.insert(*partition, self.wait(self.contexts.assign(self.chain.name(), *partition))?);
        }
        let Some(mut standing) = self.patiently(|| transactor.standing(&given))? else { return Ok(None) };
        if let Some(replay) = &self.replay {
            replay.borrow().begin(&mut standing);
        }
        if !self.is_member(transactor, &given)? {
            return Ok(None);
        }
        let mut starts = BTreeMap::new();
        for (partition, assigned) in assigned {
            let next = start(&self.plan.input, partition, standing[&partition], assigned.watermark)?;
            starts.insert(partition, next);
            // One batch was being committed, and the next one inferred.
            let uncommitted_max = 2 * self.limits.batch_turns_max as i64;
            let batch_end = next.saturating_add(uncommitted_max).min(standing[&partition].high);
            let attempt = self.marks(partition, |marks| {
                let attempt = marks.read(assigned.attempt);
                marks.mean(attempt);
                attempt
            });
            if let Some(Attempt { offset, count }) = attempt {
                tracing::info!(partition, offset, count, until = batch_end, "after a crash turns are taken one by one");
            }
            let careful_until = if attempt.is_some() { batch_end } else { next };
            let owner = Owned { epoch: assigned.epoch, next, attempt, careful_until };
            let noted = match attempt {
                Some(_) => self.note(partition, &owner, attempt),
                None => self.mark(partition, &owner),
            };
            match noted {
                Ok(()) => {}
                Err(RunError::Context(fenced @ ContextError::Fenced { .. })) => {
                    tracing::info!(cause = %fenced, "the partitions are no longer ours");
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
            owned.insert(partition, owner);
        }
        Ok(Some(starts))
    }

    /// Whether the group still counts this process as the one that was given the partitions. Asked after the epochs
    /// were issued, it says that whoever gets them later has later epochs, so that an older owner cannot write.
    fn is_member(&self, transactor: &mut Transactor, given: &[i32]) -> Result<bool, RunError> {
        match transactor.confirm(given) {
            Ok(()) => Ok(true),
            Err(CommitError::Aborted(cause)) => {
                tracing::info!(cause, "the partitions are not confirmed");
                Ok(false)
            }
            Err(CommitError::Fatal(error)) => Err(error.into()),
        }
    }

    /// Leaves partitions in an orderly way: the next owner need not be careful, unless this one still was. Where the
    /// store is away this process at least knows its own marks.
    fn leave(&self, owned: &mut BTreeMap<i32, Owned>) -> Result<(), RunError> {
        let mut away = false;
        for (partition, owner) in std::mem::take(owned) {
            // The process did not die, so the turn that is in work now is marked as it was before.
            let attempt = owner.attempt.filter(|_| owner.is_careful());
            self.marks(partition, |marks| marks.mean(attempt));
            // One that does not answer is not asked for each partition.
            let noted = if away { Ok(()) } else { self.note(partition, &owner, attempt) };
            match noted {
                Ok(()) | Err(RunError::Context(ContextError::Fenced { .. })) => {}
                Err(RunError::Context(ContextError::Database(error))) if error.is_transient() => away = true,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Marks that work goes on without care from where the partition stands.
    fn mark(&self, partition: i32, owner: &Owned) -> Result<(), RunError> {
        self.note(partition, owner, Some(Attempt { offset: owner.next, count: 0 }))
    }

    fn note(&self, partition: i32, owner: &Owned, attempt: Option<Attempt>) -> Result<(), RunError> {
        self.marks(partition, |marks| marks.ask(attempt));
        self.wait(self.contexts.note_attempt(self.chain.name(), partition, owner.epoch, attempt))?;
        self.marks(partition, |marks| marks.kept(attempt));
        Ok(())
    }

    fn marks<T>(&self, partition: i32, with: impl FnOnce(&mut Marks) -> T) -> T {
        with(self.marks.borrow_mut().entry(partition).or_default())
    }

    /// Waits for a store.
    fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }
}

/// What is to be done next.
enum Next {
    /// A commit has come to its end.
    Settled,
    /// What was read makes up a batch.
    Ready,
    /// For a commit.
    Waiting,
    Nothing,
    /// A partition cannot be read where it stands.
    Misplaced(String),
    Messages(Vec<Message>),
    Revoked,
    Assigned,
}

/// Milliseconds since the Unix epoch.
fn now() -> i64 {
    unix_ms(SystemTime::now())
}

/// A moment in milliseconds since the Unix epoch.
fn unix_ms(moment: SystemTime) -> i64 {
    let since = moment.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
