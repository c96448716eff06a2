//! One batch, from messages to a committed transaction.

use std::collections::{BTreeMap, HashMap};

use schemas::{Reason, Skipped, Tier, Turn};
use store::context::{Attempt, Batch, ContextError, Epoch, Start, Version, Write};
use store::log::transact::{Outgoing, Transactor};
use store::log::{Message, Record};

use super::commit::{Commits, UnderWay};
use super::error::{Interrupted, RunError};
use super::units::units;
use super::{KILLS_MAX, Owned, Runner, now};
use crate::batch::{Admitted, Place, Refused, TierPolicy, admit, rejection};
use crate::chain::{Conversation, Folded};
use crate::spans::Watch;

/// What a round of work did.
pub(super) enum Worked {
    Nothing,
    Committed,
}

/// What was read, and inferred, while the batch before is committed. It makes up the next batch.
pub(super) struct Ahead {
    turns: Vec<(Turn, Place)>,
    /// What needs no folding: rejects, and turns that are passed on.
    records: Vec<Record>,
    /// What is forwarded as it is.
    forwarded: Vec<Message>,
    /// The offsets behind all of it.
    next: BTreeMap<i32, i64>,
    /// Whether each turn was at fault.
    faults: Vec<bool>,
    started: i64,
    watch: Watch,
    messages: usize,
    bytes: usize,
    /// That new turns got last.
    pub(super) tier: Tier,
}

impl Default for Ahead {
    fn default() -> Ahead {
        Ahead::new(Tier::Full)
    }
}

impl Ahead {
    fn new(tier: Tier) -> Ahead {
        let (next, faults, started) = (BTreeMap::new(), Vec::new(), 0);
        let (turns, records, forwarded) = (Vec::new(), Vec::new(), Vec::new());
        let watch = Watch::default();
        Ahead { turns, records, forwarded, next, faults, started, watch, messages: 0, bytes: 0, tier }
    }

    pub(super) fn messages(&self) -> usize {
        self.messages
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn clear(&mut self) {
        *self = Ahead::new(self.tier);
    }

    fn take(&mut self) -> Ahead {
        let tier = self.tier;
        std::mem::replace(self, Ahead::new(tier))
    }
}

impl Runner {
    /// From messages to inferred turns.
    pub(super) fn read(
        &self,
        commits: &Commits,
        owned: &mut BTreeMap<i32, Owned>,
        messages: Vec<Message>,
        ahead: &mut Ahead,
    ) -> Result<(), RunError> {
        let started = now();
        if ahead.messages == 0 {
            ahead.started = started;
            ahead.watch = Watch::begin(&self.spans);
        }
        ahead.messages += messages.len();
        ahead.bytes += messages.iter().filter_map(|message| message.value.as_ref()).map(Vec::len).sum::<usize>();
        ahead.next.extend(messages.iter().map(|message| (message.partition, message.offset + 1)));
        if self.forwards {
            ahead.forwarded.extend(messages);
            return Ok(());
        }
        // An id that is not known waits for the registry: that it is away is no fault of the message.
        let values = messages.iter().filter_map(|message| message.value.as_deref());
        match self.wait(self.registry.know::<Turn>(values, &self.shutdown)) {
            Err(_) if self.shutdown.is_cancelled() => {
                ahead.clear();
                return Ok(());
            }
            known => known?,
        }
        let oldest = messages.iter().map(|message| message.timestamp).min().unwrap_or(started);
        self.choose_tier(&mut ahead.tier, started - oldest);
        let (mut turns, mut places) = (Vec::with_capacity(messages.len()), Vec::with_capacity(messages.len()));
        let mut last_fault = String::new();
        for message in messages {
            let kills = self.alone_in_work(owned, &message)?;
            let Some(admitted) = self.admit(&message, kills, ahead.tier)? else { continue };
            match admitted {
                Ok((turn, place)) if kills >= KILLS_MAX => ahead.records.push(self.pass_on(turn, &place, started)?),
                Ok((turn, place)) => {
                    ahead.faults.push(false);
                    ahead.watch.turn(turn.id, &place, self.chain.name());
                    turns.push(turn);
                    places.push(place);
                }
                Err(refused) => {
                    ahead.faults.push(refused.reason != Reason::Killer);
                    ahead.records.push(self.reject(&refused, message, started)?);
                    last_fault = refused.detail;
                }
            }
        }
        self.stop_rejecting(&[commits.faults(), &ahead.faults].concat(), last_fault)?;
        ahead.watch.mark();
        for unit in units(&mut turns, |turn| turn.text.len()) {
            // The turns are read again by whoever has the partitions next; a shutdown does not wait for long texts.
            if self.shutdown.is_cancelled() {
                ahead.clear();
                return Ok(());
            }
            // Long texts take their time, and those behind them grow old meanwhile.
            if self.chain.is_first() && self.replay.is_none() {
                self.choose_tier(&mut ahead.tier, now() - oldest);
                unit.iter_mut().for_each(|turn| turn.tier = Some(ahead.tier));
            }
            self.chain.infer_with(unit, |stage| ahead.watch.step("infer", stage))?;
        }
        ahead.turns.extend(turns.into_iter().zip(places));
        Ok(())
    }

    /// From inferred turns to a transaction that is being committed.
    pub(super) fn commit(
        &self,
        transactor: &mut Transactor,
        commits: &mut Commits,
        owned: &mut BTreeMap<i32, Owned>,
        ahead: &mut Ahead,
    ) -> Result<Worked, Interrupted> {
        let Ahead { turns, mut records, forwarded, next, faults, started, mut watch, .. } = ahead.take();
        if self.forwards {
            let begun = transactor.begin(forwarded.iter().map(|message| self.forwarded(message)))?;
            commits.prepare(begun, &next)?;
        } else {
            let folded = self.fold(owned, turns, &mut records, now(), &mut watch);
            let mut writes = folded.map_err(|error| self.blame(owned, &next, error))?;
            let batches = self.batches(owned, &next, &mut writes)?;
            // Records and offsets are on their way to the broker while the contexts are written; they become visible
            // with the commit, which comes last.
            commits.prepare(transactor.begin(records.iter().map(Outgoing::from))?, &next)?;
            watch.mark();
            if let Err(interrupted) = self.save(owned, batches) {
                commits.abandon()?;
                return Err(interrupted);
            }
            watch.step("save", "contexts");
        }
        let is_careful = owned.values().any(Owned::is_careful);
        watch.mark();
        commits.commit(UnderWay { next, records, started, faults, watch })?;
        // A turn that runs alone is committed before the next one is read.
        if is_careful { self.settle(commits, owned) } else { Ok(Worked::Nothing) }
    }

    fn forwarded<'a>(&'a self, message: &'a Message) -> Outgoing<'a> {
        Outgoing {
            topic: &self.plan.output,
            partition: Some(message.partition),
            key: message.key.as_deref(),
            value: message.value.as_deref(),
            headers: &message.headers,
            timestamp: message.timestamp,
        }
    }

    /// When there is nothing to read: what stands between the last batch and here are marks of transactions. To commit
    /// behind them lets the lag fall to nothing, and ends the care after a crash.
    pub(super) fn pass_marks(
        &self,
        transactor: &mut Transactor,
        owned: &mut BTreeMap<i32, Owned>,
    ) -> Result<Worked, Interrupted> {
        let mut next = transactor.positions().map_err(RunError::from)?;
        next.retain(|partition, position| owned.get(partition).is_some_and(|owner| owner.next < *position));
        if next.is_empty() {
            return Ok(Worked::Nothing);
        }
        self.save(owned, self.batches(owned, &next, &mut BTreeMap::new())?)?;
        transactor.commit(&[], &next)?;
        self.advance(owned, &next)
    }

    /// What is saved of each partition: its slices, and the offset that is about to be committed.
    fn batches(
        &self,
        owned: &BTreeMap<i32, Owned>,
        next: &BTreeMap<i32, i64>,
        writes: &mut BTreeMap<i32, Vec<Write>>,
    ) -> Result<Vec<Batch>, Interrupted> {
        let mut batches = Vec::with_capacity(next.len());
        for (&partition, &watermark) in next {
            let Some(owner) = owned.get(&partition) else {
                return Err(Interrupted::Dropped("a partition was taken away".to_owned()));
            };
            let (chain, writes) = (self.chain.name().to_owned(), writes.remove(&partition).unwrap_or_default());
            batches.push(Batch { chain, partition, epoch: owner.epoch, watermark, writes });
        }
        Ok(batches)
    }

    /// Writes slices and watermarks. A turn that runs alone has now done the work that could kill, and did not.
    fn save(&self, owned: &BTreeMap<i32, Owned>, batches: Vec<Batch>) -> Result<(), Interrupted> {
        let partitions: Vec<i32> = batches.iter().map(|batch| batch.partition).collect();
        self.wait(self.contexts.save_all(batches)).map_err(RunError::from)?;
        for partition in partitions {
            let Some(owner) = owned.get(&partition) else { continue };
            if owner.is_careful() && owner.attempt.is_some() {
                self.note(partition, owner, owner.attempt)?;
            }
        }
        Ok(())
    }

    /// Whose fault it is that a batch was not folded. A zombie that woke finds contexts that the owner has carried on, and
    /// then they are not ahead of the log: the batch is no longer its own.
    fn blame(&self, owned: &BTreeMap<i32, Owned>, next: &BTreeMap<i32, i64>, error: RunError) -> Interrupted {
        if !matches!(error, RunError::Context(ContextError::NoVersionBelow { .. })) {
            return error.into();
        }
        for (partition, owner) in owned.iter().filter(|(partition, _)| next.contains_key(partition)) {
            if let Err(fenced) = self.wait(self.contexts.confirm(self.chain.name(), *partition, owner.epoch)) {
                return RunError::from(fenced).into();
            }
        }
        error.into()
    }

    /// Reads a message, if it is to be worked on: a replay takes some.
    fn admit(&self, message: &Message, kills: u32, tier: Tier) -> Result<Option<Admitted>, RunError> {
        match &self.replay {
            None => Ok(Some(self.admit_new(message, kills, tier))),
            Some(replay) => self.wait(replay.borrow_mut().admit(&self.registry, self.chain.stages(), message)),
        }
    }

    /// Reads a message; the first chain also gives the turn its tier.
    fn admit_new(&self, message: &Message, kills: u32, tier: Tier) -> Admitted {
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
        let Message { partition, offset, .. } = message;
        let reason = refused.reason.name();
        let (correlation_id, trace_id) = (message.correlation_id(), message.trace_id());
        tracing::warn!(partition, offset, reason, correlation_id, trace_id, "message rejected");
        Ok(rejection(&self.codec, refused, message, now)?)
    }

    /// Chooses the tier of new turns by how long the oldest of them has waited; nothing to do is no wait.
    pub(super) fn choose_tier(&self, last_tier: &mut Tier, lag_ms: i64) {
        let tier = self.tier.choose(*last_tier, lag_ms);
        if tier == *last_tier {
            return;
        }
        *last_tier = tier;
        let TierPolicy::Degrade { lag_ms_max } = self.tier else { return };
        self.meters.degraded(tier == Tier::Fast);
        self.meters.switched(tier);
        match tier {
            Tier::Fast => tracing::warn!(lag_ms, lag_ms_max, "lag over its bound: new turns get the fast tier"),
            Tier::Full => tracing::info!(lag_ms, "lag is gone: new turns get the full tier again"),
        }
    }

    /// Fails the role before it drains the topic into the rejects.
    fn stop_rejecting(&self, faults: &[bool], detail: String) -> Result<(), RunError> {
        let bound = self.limits.rejects;
        match self.recent.over(bound, faults) {
            None => Ok(()),
            Some(at_fault) => Err(RunError::Rejecting {
                at_fault,
                window: bound.window_turns,
                share_max: bound.share_max,
                detail,
                topic: self.plan.input.clone(),
            }),
        }
    }

    /// Folds turns, in the order of their partition, and appends what they became to `records`. Returns the slices to
    /// write, by partition.
    fn fold(
        &self,
        owned: &BTreeMap<i32, Owned>,
        turns: Vec<(Turn, Place)>,
        records: &mut Vec<Record>,
        now: i64,
        watch: &mut Watch,
    ) -> Result<BTreeMap<i32, Vec<Write>>, RunError> {
        watch.mark();
        let mut open = self.open(owned, &turns)?;
        watch.step("load", "contexts");
        for (mut turn, place) in turns {
            let conversation = open.get_mut(&turn.conversation).map(|(_, conversation)| conversation);
            let conversation = conversation.expect("opened above for every turn of the batch");
            watch.mark();
            let told = |stage| watch.folded(place.stamp, stage);
            match self.chain.fold_with(conversation, &mut turn, place.stamp, told)? {
                Folded::Repeated => self.meters.repeated(),
                Folded::Enriched => {
                    self.meters.enriched(&turn);
                    records.push(place.record(&self.codec, &turn, &self.plan.output, self.chain.name(), now)?);
                }
            }
        }
        let mut writes: BTreeMap<i32, Vec<Write>> = BTreeMap::new();
        for (partition, conversation) in open.into_values() {
            writes.entry(partition).or_default().extend(self.chain.close(conversation)?);
        }
        Ok(writes)
    }

    /// The conversations of a batch as they are before it, each with its partition.
    fn open(
        &self,
        owned: &BTreeMap<i32, Owned>,
        turns: &[(Turn, Place)],
    ) -> Result<HashMap<String, (i32, Conversation)>, RunError> {
        let mut starts: BTreeMap<i32, Start> = BTreeMap::new();
        for (turn, place) in turns {
            let (partition, below) = (place.partition, place.stamp.offset);
            let start = starts.entry(partition).or_insert_with(|| {
                // A partition that was taken away meanwhile has no epoch; what is folded of it is not saved.
                let (epoch, offset) =
                    owned.get(&partition).map_or((Epoch(0), below), |owner| (owner.epoch, owner.next));
                Start { partition, epoch, offset, below, conversations: Vec::new() }
            });
            start.conversations.push(turn.conversation.clone());
        }
        let mut names: Vec<(i32, String)> = Vec::with_capacity(turns.len());
        for start in starts.values_mut() {
            start.conversations.sort_unstable();
            start.conversations.dedup();
            names.extend(start.conversations.iter().map(|name| (start.partition, name.clone())));
        }
        let slices = self.chain.slices();
        let mut versions = if starts.is_empty() {
            HashMap::new()
        } else {
            self.wait(self.contexts.load_all(self.chain.name(), starts.into_values().collect(), &slices))?
        };
        let mut open = HashMap::with_capacity(names.len());
        for (partition, name) in names {
            let version = |slice: &&'static str| {
                versions.remove(&(name.clone(), (*slice).to_owned())).map(|version| (*slice, version))
            };
            let base: HashMap<&'static str, Version> = slices.iter().filter_map(version).collect();
            let conversation = self.chain.open(&name, base)?;
            if let Some((found, _)) = open.insert(name.clone(), (partition, conversation)) {
                let (conversation, stage) = (name, self.chain.name().to_owned());
                let foreign = ContextError::ForeignPartition { conversation, stage, found, expected: partition };
                return Err(foreign.into());
            }
        }
        Ok(open)
    }

    /// After a commit: the next batch starts behind this one, and a turn that was tried alone did no harm.
    pub(super) fn advance(
        &self,
        owned: &mut BTreeMap<i32, Owned>,
        next: &BTreeMap<i32, i64>,
    ) -> Result<Worked, Interrupted> {
        for (partition, offset) in next {
            let Some(owner) = owned.get_mut(partition) else { continue };
            owner.next = *offset;
            if owner.attempt.take().is_some() && !owner.is_careful() {
                self.mark(*partition, owner)?;
            }
        }
        Ok(Worked::Committed)
    }
}
