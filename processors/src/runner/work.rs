//! One batch, from messages to a committed transaction.

use std::collections::{BTreeMap, HashMap};

use schemas::{Reason, Skipped, Tier, Turn};
use store::context::{Attempt, Batch, ContextError, Version, Write};
use store::log::transact::Transactor;
use store::log::{Message, Record};

use super::error::{Interrupted, RunError};
use super::{KILLS_MAX, Owned, Runner, now};
use crate::batch::{Admitted, Place, Refused, TierPolicy, admit, rejection};
use crate::chain::{Conversation, Folded};

/// What a round of work did.
pub(super) enum Worked {
    Nothing,
    Committed,
}

impl Runner {
    /// One batch, from messages to a committed transaction.
    pub(super) fn work(
        &self,
        transactor: &mut Transactor,
        owned: &mut BTreeMap<i32, Owned>,
        messages: Vec<Message>,
        last_tier: &mut Tier,
    ) -> Result<Worked, Interrupted> {
        let started = now();
        let oldest = messages.iter().map(|message| message.timestamp).min().unwrap_or(started);
        self.choose_tier(last_tier, started - oldest);
        let mut next: BTreeMap<i32, i64> = BTreeMap::new();
        let mut records = Vec::with_capacity(messages.len());
        let (mut turns, mut places) = (Vec::with_capacity(messages.len()), Vec::with_capacity(messages.len()));
        let (mut faults, mut last_fault) = (Vec::with_capacity(messages.len()), String::new());
        for message in messages {
            next.insert(message.partition, message.offset + 1);
            let kills = self.alone_in_work(owned, &message)?;
            let Some(admitted) = self.admit(&message, kills, *last_tier)? else { continue };
            match admitted {
                Ok((turn, place)) if kills >= KILLS_MAX => records.push(self.pass_on(turn, &place, started)?),
                Ok((turn, place)) => {
                    faults.push(false);
                    turns.push(turn);
                    places.push(place);
                }
                Err(refused) => {
                    faults.push(refused.reason != Reason::Killer);
                    records.push(self.reject(&refused, message, started)?);
                    last_fault = refused.detail;
                }
            }
        }
        self.stop_rejecting(&faults, last_fault)?;
        self.chain.infer(&mut turns).map_err(RunError::from)?;
        let mut work: BTreeMap<i32, Vec<(Turn, Place)>> = next.keys().map(|p| (*p, Vec::new())).collect();
        for (turn, place) in turns.into_iter().zip(places) {
            work.entry(place.partition).or_default().push((turn, place));
        }
        for (partition, work) in work {
            let folded = self.fold(partition, work, &mut records, started);
            let writes = folded.map_err(|error| self.blame(owned, partition, error))?;
            self.save(owned, partition, next[&partition], writes)?;
        }
        transactor.commit(&records, &next)?;
        self.recent.note(self.limits.rejects, &faults);
        self.meters.committed(&records, started, now());
        self.advance(owned, &next)
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

    /// Whose fault it is that a batch was not folded. A zombie that woke finds contexts that the owner has carried on, and
    /// then they are not ahead of the log: the batch is no longer its own.
    fn blame(&self, owned: &BTreeMap<i32, Owned>, partition: i32, error: RunError) -> Interrupted {
        let ahead = matches!(error, RunError::Context(ContextError::NoVersionBelow { .. }));
        if let Some(owner) = owned.get(&partition).filter(|_| ahead)
            && let Err(fenced) = self.wait(self.contexts.confirm(self.chain.name(), partition, owner.epoch))
        {
            return RunError::from(fenced).into();
        }
        error.into()
    }

    /// Reads a message, if it is to be worked on: a replay takes some.
    fn admit(&self, message: &Message, kills: u32, tier: Tier) -> Result<Option<Admitted>, RunError> {
        match &self.replay {
            None => Ok(Some(self.admit_new(message, kills, tier))),
            Some(replay) => self.wait(replay.borrow_mut().admit(&self.codec, self.chain.stages(), message)),
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
        tracing::warn!(
            partition = message.partition,
            offset = message.offset,
            reason = refused.reason.name(),
            "message rejected"
        );
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
}
