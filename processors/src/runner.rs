//! The exactly-once shell around a chain: read a batch, load contexts, infer, fold, write contexts, and commit turns,
//! rejects and offsets in one transaction. Nothing is kept that a new owner of a partition must restore.
//!
//! Promises (the reasons stand in the README's decision list):
//! - Contexts are written before the transaction commits, with the versions that the batch started from as `previous`;
//!   so after a crash or an abort the version before it is there, and each turn is folded once.
//! - At most one batch is uncommitted; its contexts are written under the epoch of the assignment.
//! - After a crash the uncommitted batch runs one turn at a time, and a turn that is alone in work when the process
//!   dies [`KILLS_MAX`] times is rejected (or passed on without the parts of a later chain).
//! - A fault of ours stops the role; it never rejects a turn.
//!
//! It blocks, so it lives on a thread of its own; the stores are asynchronous and are waited for.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use schemas::{Codec, EncodeError, Reason, Skipped, Tier, Turn};
use store::context::{Attempt, Batch, ContextError, Contexts, Epoch, Version, Write};
use store::log::transact::{CommitError, Event, Settings, Transactor};
use store::log::{Kafka, LogError, Message, Record};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::batch::{Place, Refused, TierPolicy, admit, rejection};
use crate::chain::{Chain, Conversation, Folded};
use crate::meters::Meters;
use crate::plan::{Plan, PlanError};
use crate::stage::Failure;
use crate::standing::{StandingError, start};
use crate::status::Status;

/// A turn that was alone in work this many times when the process died is taken for the killer.
pub const KILLS_MAX: u32 = 3;
/// Longest wait for a message; also how soon a shutdown is noticed.
const POLL_WAIT: Duration = Duration::from_millis(100);
/// Waits between tries while the log is away, doubling up to the second.
const RETRY_WAITS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

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
    /// The group gives away the partitions of a process that works on a batch for longer.
    pub work_time_max: Duration,
    /// Aborts in a row before the role gives up.
    pub aborts_max: u32,
    /// How long a start waits for brokers and topics.
    pub start_wait_max: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            batch_turns_max: 256,
            batch_bytes_max: 4 * 1024 * 1024,
            fetch_ahead_bytes_max: 8 * 1024 * 1024,
            session_timeout: Duration::from_secs(10),
            transaction_timeout: Duration::from_secs(10),
            work_time_max: Duration::from_secs(300),
            aborts_max: 20,
            start_wait_max: Duration::from_secs(60),
        }
    }
}

/// Why the role ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The contexts.
    #[error(transparent)]
    Context(#[from] ContextError),
    /// A stage.
    #[error(transparent)]
    Stage(#[from] Failure),
    /// The log and the contexts do not belong together.
    #[error(transparent)]
    Standing(#[from] StandingError),
    /// A record does not fit its schema.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The same batch was aborted again and again.
    #[error("{0} transactions in a row were aborted, the last with: {1}; see to the brokers, then start again")]
    Aborts(u32, String),
    /// The stages do not make a chain.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The operating system gave no thread.
    #[error("start the processors' thread: {0}")]
    Thread(std::io::Error),
    /// A bug.
    #[error("the processors' thread panicked: report it with the lines above")]
    Panicked,
    /// A message between two chains is at fault.
    #[error("{topic} partition {partition} offset {offset}: {detail}")]
    Between {
        /// The topic.
        topic: String,
        /// The partition.
        partition: i32,
        /// The offset.
        offset: i64,
        /// What is wrong.
        detail: String,
    },
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
    pub(crate) plan: Plan,
    pub(crate) group: String,
    pub(crate) transactional_id: String,
    pub(crate) tier: TierPolicy,
    pub(crate) limits: Limits,
    pub(crate) kafka: Kafka,
    pub(crate) contexts: Contexts,
    pub(crate) codec: Arc<Codec>,
    pub(crate) meters: Meters,
    pub(crate) status: Arc<Status>,
    pub(crate) shutdown: CancellationToken,
    pub(crate) runtime: Handle,
}

impl Runner {
    /// Runs until shutdown.
    pub(crate) fn run(&self) -> Result<(), RunError> {
        let Some(mut transactor) = self.connect()? else { return Ok(()) };
        let mut owned: BTreeMap<i32, Owned> = BTreeMap::new();
        let mut last_tier = Tier::Full;
        let mut aborts = 0;
        while !self.shutdown.is_cancelled() {
            let worked = match self.collect(&mut transactor, &owned)? {
                Collected::Nothing => self.pass_marks(&mut transactor, &mut owned),
                Collected::Batch(messages) => self.work(&mut transactor, &mut owned, messages, &mut last_tier),
                Collected::Revoked => {
                    self.leave(&mut owned)?;
                    self.status.set("waiting for partitions");
                    continue;
                }
                Collected::Assigned(partitions) => {
                    self.take(&mut transactor, &partitions, &mut owned)?;
                    self.status.clear();
                    continue;
                }
            };
            match worked {
                Ok(Worked::Nothing) => {}
                Ok(Worked::Committed) => aborts = 0,
                Err(Interrupted::Failed(error)) => {
                    // Best effort: what stopped the role is worth more than what else goes wrong now.
                    let _ = self.leave(&mut owned);
                    return Err(error);
                }
                Err(Interrupted::Dropped(cause)) => {
                    aborts += 1;
                    self.meters.aborted();
                    tracing::warn!(cause = %cause, aborts, "batch dropped, reading it again");
                    if aborts > self.limits.aborts_max {
                        return Err(RunError::Aborts(aborts, cause));
                    }
                    std::thread::sleep((RETRY_WAITS.0 * aborts).min(RETRY_WAITS.1));
                    // Taken over again, from the committed offsets and under new epochs. If they are no longer ours,
                    // the group refuses the next commit, and the next poll says who they went to.
                    let partitions: Vec<i32> = owned.keys().copied().collect();
                    self.leave(&mut owned)?;
                    self.take(&mut transactor, &partitions, &mut owned)?;
                }
            }
        }
        self.leave(&mut owned)
    }

    /// Joins the group, waiting for brokers that are not there yet; `None` if told to shut down meanwhile.
    fn connect(&self) -> Result<Option<Transactor>, RunError> {
        let settings = Settings {
            group: self.group.clone(),
            topic: self.plan.input.clone(),
            transactional_id: self.transactional_id.clone(),
            transaction_timeout: self.limits.transaction_timeout,
            session_timeout: self.limits.session_timeout,
            work_time_max: self.limits.work_time_max,
            fetch_ahead_bytes_max: self.limits.fetch_ahead_bytes_max,
        };
        let connected = self.patiently(|| Transactor::connect(&self.kafka, &settings));
        self.status.set("waiting for partitions");
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

    /// Gathers what is there, up to a batch: a lone turn goes at once.
    fn collect(&self, transactor: &mut Transactor, owned: &BTreeMap<i32, Owned>) -> Result<Collected, RunError> {
        let careful = owned.values().any(Owned::is_careful);
        let turns_max = if careful { 1 } else { self.limits.batch_turns_max };
        let (mut messages, mut bytes) = (Vec::new(), 0);
        while messages.len() < turns_max && bytes < self.limits.batch_bytes_max {
            let wait = if messages.is_empty() { POLL_WAIT } else { Duration::ZERO };
            match transactor.poll(wait) {
                Ok(None) => break,
                Ok(Some(Event::Message(message))) => {
                    bytes += message.value.as_ref().map_or(0, Vec::len);
                    messages.push(message);
                }
                // What was gathered under the old assignment is read again by whoever gets the partitions.
                Ok(Some(Event::Revoked)) => return Ok(Collected::Revoked),
                Ok(Some(Event::Assigned(partitions))) => return Ok(Collected::Assigned(partitions)),
                Err(LogError::Transient(cause)) => {
                    tracing::debug!(cause, "the log is away for the moment");
                    break;
                }
                Err(LogError::UnknownTopic(topic)) if owned.is_empty() => {
                    tracing::debug!(topic, "waiting for the topic");
                    break;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(if messages.is_empty() { Collected::Nothing } else { Collected::Batch(messages) })
    }

    /// Takes over partitions: an epoch first, then where to start, then a mark that work goes on.
    fn take(
        &self,
        transactor: &mut Transactor,
        partitions: &[i32],
        owned: &mut BTreeMap<i32, Owned>,
    ) -> Result<(), RunError> {
        owned.clear();
        let mut assigned = BTreeMap::new();
        for partition in partitions {
            assigned.insert(*partition, self.wait(self.contexts.assign(self.chain.name(), *partition))?);
        }
        let Some(standing) = self.patiently(|| transactor.standing(partitions))? else { return Ok(()) };
        let mut starts = BTreeMap::new();
        for (partition, assigned) in assigned {
            let next = start(&self.plan.input, partition, standing[&partition], assigned.watermark)?;
            starts.insert(partition, next);
            let batch_end = next.saturating_add(self.limits.batch_turns_max as i64).min(standing[&partition].high);
            let careful_until = if assigned.attempt.is_some() { batch_end } else { next };
            let owner = Owned { epoch: assigned.epoch, next, attempt: assigned.attempt, careful_until };
            let mark = owner.attempt.unwrap_or(Attempt { offset: next, count: 0 });
            self.note(partition, &owner, Some(mark))?;
            owned.insert(partition, owner);
        }
        if let Err(error) = transactor.assign(&starts) {
            tracing::debug!(error = %error, "the group moved on before the partitions were taken");
            owned.clear();
        }
        tracing::info!(partitions = ?starts.keys().collect::<Vec<_>>(), "took over partitions");
        Ok(())
    }

    /// Leaves partitions in an orderly way: the next owner need not be careful, unless this one still was.
    fn leave(&self, owned: &mut BTreeMap<i32, Owned>) -> Result<(), RunError> {
        for (partition, owner) in std::mem::take(owned) {
            // The process did not die, so the turn that is in work now is marked as it was before.
            match self.note(partition, &owner, owner.attempt.filter(|_| owner.is_careful())) {
                Ok(()) | Err(RunError::Context(ContextError::Fenced { .. })) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn note(&self, partition: i32, owner: &Owned, attempt: Option<Attempt>) -> Result<(), RunError> {
        Ok(self.wait(self.contexts.note_attempt(self.chain.name(), partition, owner.epoch, attempt))?)
    }

    /// One batch, from messages to a committed transaction.
    fn work(
        &self,
        transactor: &mut Transactor,
        owned: &mut BTreeMap<i32, Owned>,
        messages: Vec<Message>,
        last_tier: &mut Tier,
    ) -> Result<Worked, Interrupted> {
        let started = now();
        let oldest = messages.iter().map(|message| message.timestamp).min().unwrap_or(started);
        *last_tier = self.tier.choose(*last_tier, started - oldest);
        let mut next: BTreeMap<i32, i64> = BTreeMap::new();
        let mut records = Vec::with_capacity(messages.len());
        let (mut turns, mut places) = (Vec::with_capacity(messages.len()), Vec::with_capacity(messages.len()));
        for message in messages {
            next.insert(message.partition, message.offset + 1);
            let kills = self.alone_in_work(owned, &message)?;
            match self.admit(&message, kills, *last_tier) {
                Ok((turn, place)) if kills >= KILLS_MAX => records.push(self.pass_on(turn, &place, started)?),
                Ok((turn, place)) => {
                    turns.push(turn);
                    places.push(place);
                }
                Err(refused) => records.push(self.reject(&refused, message, started)?),
            }
        }
        self.chain.infer(&mut turns).map_err(RunError::from)?;
        let mut work: BTreeMap<i32, Vec<(Turn, Place)>> = next.keys().map(|p| (*p, Vec::new())).collect();
        for (turn, place) in turns.into_iter().zip(places) {
            work.entry(place.partition).or_default().push((turn, place));
        }
        for (partition, work) in work {
            let writes = self.fold(partition, work, &mut records, started)?;
            self.save(owned, partition, next[&partition], writes)?;
        }
        transactor.commit(&records, &next)?;
        self.meters.committed(&records, started, now());
        self.advance(owned, &next)
    }

    /// When there is nothing to read: what stands between the last batch and here are marks of transactions. To commit
    /// behind them lets the lag fall to nothing, and ends the care after a crash.
    fn pass_marks(&self, transactor: &mut Transactor, owned: &mut BTreeMap<i32, Owned>) -> Result<Worked, Interrupted> {
        let mut next = transactor.positions().map_err(RunError::from)?;
        next.retain(|partition, position| owned.get(partition).is_some_and(|owner| owner.next < *position));
        if next.is_empty() {
            return Ok(Worked::Nothing);
        }
        for (partition, position) in &next {
            self.save(owned, *partition, *position, Vec::new())?;
        }
        transactor.commit(&[], &next)?;
        self.advance(owned, &next)
    }

    /// Writes slices and watermark. A turn that runs alone has now done the work that could kill, and did not.
    fn save(
        &self,
        owned: &BTreeMap<i32, Owned>,
        partition: i32,
        watermark: i64,
        writes: Vec<Write>,
    ) -> Result<(), Interrupted> {
        let Some(owner) = owned.get(&partition) else {
            return Err(Interrupted::Dropped("a partition was taken away".to_owned()));
        };
        let batch = Batch { chain: self.chain.name().to_owned(), partition, epoch: owner.epoch, watermark, writes };
        self.wait(self.contexts.save(batch)).map_err(RunError::from)?;
        if owner.is_careful() && owner.attempt.is_some() {
            self.note(partition, owner, owner.attempt)?;
        }
        Ok(())
    }

    /// Reads a message; the first chain also gives the turn its tier.
    fn admit(&self, message: &Message, kills: u32, tier: Tier) -> Result<(Turn, Place), Refused> {
        let (mut turn, place) = admit(&self.codec, self.chain.is_first(), message)?;
        if !self.chain.is_first() {
            return Ok((turn, place));
        }
        if kills >= KILLS_MAX {
            let detail = format!("the process died {kills} times with this turn alone in work: report it");
            return Err(Refused { reason: Reason::Killer, detail });
        }
        turn.tier = Some(tier);
        Ok((turn, place))
    }

    /// Before a turn runs alone after a crash: how often the process died with it, and a note that it is tried again.
    fn alone_in_work(&self, owned: &mut BTreeMap<i32, Owned>, message: &Message) -> Result<u32, RunError> {
        let Some(owner) = owned.get_mut(&message.partition).filter(|owner| owner.is_careful()) else { return Ok(0) };
        let died = owner.attempt.filter(|attempt| attempt.offset == message.offset).map_or(0, |attempt| attempt.count);
        owner.attempt = Some(Attempt { offset: message.offset, count: died });
        if died < KILLS_MAX {
            self.note(message.partition, owner, Some(Attempt { offset: message.offset, count: died + 1 }))?;
        }
        Ok(died)
    }

    /// A turn that kills this chain, which is not the first: it goes on without the parts of this chain.
    fn pass_on(&self, mut turn: Turn, place: &Place, now: i64) -> Result<Record, RunError> {
        for stage in self.chain.stages() {
            turn.skipped.push(Skipped { stage: stage.to_owned(), reason: Reason::Killer.name().to_owned() });
        }
        Ok(place.record(&self.codec, &turn, &self.plan.output, self.chain.name(), now)?)
    }

    /// A message at fault. Only the first processor rejects: between two chains it is a fault of ours.
    fn reject(&self, refused: &Refused, message: Message, now: i64) -> Result<Record, RunError> {
        if !self.chain.is_first() {
            let Message { topic, partition, offset, .. } = message;
            let detail = refused.detail.clone();
            return Err(RunError::Between { topic: topic.to_string(), partition, offset, detail });
        }
        self.meters.rejected(refused.reason);
        tracing::warn!(
            partition = message.partition,
            offset = message.offset,
            reason = refused.reason.name(),
            "message rejected"
        );
        Ok(rejection(&self.codec, refused, message, now)?)
    }

    /// Folds the turns of a partition, in order, and appends what they became to `records`. Returns the slices to
    /// write.
    fn fold(
        &self,
        partition: i32,
        work: Vec<(Turn, Place)>,
        records: &mut Vec<Record>,
        now: i64,
    ) -> Result<Vec<Write>, RunError> {
        let Some(below) = work.first().map(|(_, place)| place.stamp.offset) else { return Ok(Vec::new()) };
        let mut names: Vec<String> = work.iter().map(|(turn, _)| turn.conversation.clone()).collect();
        names.sort_unstable();
        names.dedup();
        let slices = self.chain.slices();
        let mut versions = self.wait(self.contexts.load(partition, below, &slices, &names))?;
        let mut open: HashMap<String, Conversation> = HashMap::with_capacity(names.len());
        for name in names {
            let version = |slice: &&'static str| {
                versions.remove(&(name.clone(), (*slice).to_owned())).map(|version| (*slice, version))
            };
            let base: HashMap<&'static str, Version> = slices.iter().filter_map(version).collect();
            let conversation = self.chain.open(&name, base)?;
            open.insert(name, conversation);
        }
        for (mut turn, place) in work {
            let conversation = open.get_mut(&turn.conversation).expect("opened above for every turn of the batch");
            match self.chain.fold(conversation, &mut turn, place.stamp)? {
                Folded::Repeated => self.meters.repeated(),
                Folded::Enriched => {
                    self.meters.enriched(&turn);
                    records.push(place.record(&self.codec, &turn, &self.plan.output, self.chain.name(), now)?);
                }
            }
        }
        let mut writes = Vec::with_capacity(open.len() * slices.len());
        for conversation in open.into_values() {
            writes.extend(self.chain.close(conversation)?);
        }
        Ok(writes)
    }

    /// After a commit: the next batch starts behind this one, and a turn that was tried alone did no harm.
    fn advance(&self, owned: &mut BTreeMap<i32, Owned>, next: &BTreeMap<i32, i64>) -> Result<Worked, Interrupted> {
        for (partition, offset) in next {
            let Some(owner) = owned.get_mut(partition) else { continue };
            owner.next = *offset;
            if owner.attempt.take().is_some() && !owner.is_careful() {
                self.note(*partition, owner, Some(Attempt { offset: *offset, count: 0 }))?;
            }
        }
        Ok(Worked::Committed)
    }

    /// Waits for a store.
    fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }
}

/// What a round of polling brought.
enum Collected {
    Nothing,
    Batch(Vec<Message>),
    Revoked,
    Assigned(Vec<i32>),
}

/// What a round of work did.
enum Worked {
    Nothing,
    Committed,
}

/// Why a batch did not get through.
enum Interrupted {
    /// Nothing of it is visible: read it again.
    Dropped(String),
    /// The role ends.
    Failed(RunError),
}

impl From<RunError> for Interrupted {
    fn from(error: RunError) -> Interrupted {
        match error {
            // Another process owns the partition; the group will say so.
            RunError::Context(fenced @ ContextError::Fenced { .. }) => Interrupted::Dropped(fenced.to_string()),
            error => Interrupted::Failed(error),
        }
    }
}

impl From<CommitError> for Interrupted {
    fn from(error: CommitError) -> Interrupted {
        match error {
            CommitError::Aborted(cause) => Interrupted::Dropped(cause),
            CommitError::Fatal(error) => Interrupted::Failed(error.into()),
        }
    }
}

/// Milliseconds since the Unix epoch.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
