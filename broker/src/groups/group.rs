//! One group: members, phases and generations.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes};
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::ConsumerProtocolSubscription;
use kafka_protocol::protocol::Message as _;
use tokio::sync::oneshot;

use super::{Claim, Join, JoinAnswer, Joined, Limits, NotJoined, Reply, SyncAnswer, Synced};
use crate::frame;

/// Where a group is between two generations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Empty,
    /// Members join the next generation.
    Preparing,
    /// The leader works out the assignment.
    Completing,
    Stable,
}

impl Phase {
    /// As Apache Kafka's tools show it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Phase::Empty => "Empty",
            Phase::Preparing => "PreparingRebalance",
            Phase::Completing => "CompletingRebalance",
            Phase::Stable => "Stable",
        }
    }
}

/// Protocol type of groups whose members read topics.
const CONSUMER: &str = "consumer";

/// The topics that a consumer's metadata names. They are as foreign as a request, and are read with the same care.
fn subscription(mut metadata: Bytes) -> Option<BTreeSet<String>> {
    let version = metadata.try_get_i16().ok()?;
    let version = version.min(ConsumerProtocolSubscription::VERSIONS.max);
    let subscription: ConsumerProtocolSubscription = frame::decode(&mut metadata, version).ok()?;
    Some(subscription.topics.iter().map(|topic| topic.to_string()).collect())
}

/// Whether a member that comes back wants the same topics by the group's strategy. Its metadata may differ otherwise: it
/// also names the generation that the member knew.
fn reads_the_same(before: &[(String, Bytes)], after: &[(String, Bytes)], protocol: &str) -> bool {
    let of = |protocols: &[(String, Bytes)]| {
        protocols.iter().find(|(name, _)| name == protocol).map(|(_, metadata)| metadata.clone())
    };
    match (of(before), of(after)) {
        (Some(before), Some(after)) if before == after => true,
        (Some(before), Some(after)) => subscription(before).is_some_and(|topics| subscription(after) == Some(topics)),
        _ => false,
    }
}

pub(crate) struct Group {
    phase: Phase,
    generation: i32,
    protocol_type: String,
    protocol: String,
    leader: String,
    members: BTreeMap<String, Member>,
    /// Ids that were given out and have not joined yet, with the time after which they are void.
    promised: BTreeMap<String, Instant>,
    /// While preparing: not before, and not after.
    complete_after: Instant,
    complete_before: Instant,
    joined_so_far: u64,
    initial_delay: Duration,
}

pub(crate) struct Member {
    pub(crate) instance: Option<String>,
    pub(crate) client: String,
    pub(crate) assignment: Bytes,
    protocols: Vec<(String, Bytes)>,
    session_timeout: Duration,
    rebalance_timeout: Duration,
    heard: Instant,
    join: Option<oneshot::Sender<JoinAnswer>>,
    sync: Option<oneshot::Sender<SyncAnswer>>,
    order: u64,
}

impl Member {
    fn knows(&self, protocol: &str) -> bool {
        self.protocols.iter().any(|(name, _)| name == protocol)
    }

    pub(crate) fn metadata(&self, protocol: &str) -> Bytes {
        self.protocols.iter().find(|(name, _)| name == protocol).map(|(_, bytes)| bytes.clone()).unwrap_or_default()
    }
}

impl Group {
    pub(super) fn new(now: Instant) -> Group {
        Group {
            phase: Phase::Empty,
            generation: 0,
            protocol_type: String::new(),
            protocol: String::new(),
            leader: String::new(),
            members: BTreeMap::new(),
            promised: BTreeMap::new(),
            complete_after: now,
            complete_before: now,
            joined_so_far: 0,
            initial_delay: Duration::ZERO,
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Nobody is in and nobody was promised an id.
    pub(super) fn is_forgotten(&self) -> bool {
        self.members.is_empty() && self.promised.is_empty()
    }

    pub(crate) fn protocol_type(&self) -> &str {
        &self.protocol_type
    }

    pub(crate) fn protocol(&self) -> &str {
        &self.protocol
    }

    /// Topics that any member reads; `None` if the members are no consumers, or cannot be understood.
    pub(crate) fn subscribed_topics(&self) -> Option<BTreeSet<String>> {
        if self.protocol_type != CONSUMER {
            return None;
        }
        let mut topics = BTreeSet::new();
        for (_, metadata) in self.members.values().flat_map(|member| &member.protocols) {
            topics.extend(subscription(metadata.clone())?);
        }
        Some(topics)
    }

    pub(crate) fn members(&self) -> impl Iterator<Item = (&String, &Member)> {
        self.members.iter()
    }

    pub(super) fn join(&mut self, join: Join, new_member: String, limits: &Limits, now: Instant) -> Reply<JoinAnswer> {
        self.initial_delay = limits.initial_rebalance_delay;
        let refuse = |error, member: &str| Reply::Now(Err(NotJoined { error, member: member.to_owned() }));
        if !self.accepts(&join) {
            return refuse(ResponseError::InconsistentGroupProtocol, &join.member);
        }
        let present = join.instance.as_ref().and_then(|instance| self.holder(instance));
        let full = self.members.len() + self.promised.len() >= limits.members_max;
        let member = match (present, join.member.is_empty()) {
            (Some(old), true) => return self.replace(&old, new_member, join, now),
            (Some(old), false) if old != join.member => return refuse(ResponseError::FencedInstanceId, &join.member),
            (None, false) if join.instance.is_some() => return refuse(ResponseError::UnknownMemberId, &join.member),
            (None, true) if full => return refuse(ResponseError::GroupMaxSizeReached, ""),
            (None, true) if join.instance.is_none() && join.asks_twice => {
                self.promised.insert(new_member.clone(), now + join.session_timeout);
                return refuse(ResponseError::MemberIdRequired, &new_member);
            }
            (None, true) => new_member,
            (_, false) => join.member.clone(),
        };
        let known = self.members.contains_key(&member);
        if !known && !join.member.is_empty() && self.promised.remove(&member).is_none() {
            return refuse(ResponseError::UnknownMemberId, &join.member);
        }
        // A follower that asks again without news gets the present generation again.
        if self.phase == Phase::Stable
            && self.leader != member
            && self.members.get(&member).is_some_and(|m| m.protocols == join.protocols)
        {
            self.touch(&member, now);
            return Reply::Now(Ok(self.joined(&member, Vec::new())));
        }
        let receiver = self.admit(member, join, now);
        self.prepare(now);
        self.try_complete(now);
        Reply::Later(receiver)
    }

    /// Whether the member shares the protocol type and a strategy with the others.
    fn accepts(&self, join: &Join) -> bool {
        let mut others = self.members.iter().filter(|(id, _)| **id != join.member).map(|(_, member)| member);
        if self.members.keys().all(|id| *id == join.member) {
            return !join.protocols.is_empty();
        }
        let others: Vec<&Member> = others.by_ref().collect();
        self.protocol_type == join.protocol_type
            && join.protocols.iter().any(|(name, _)| others.iter().all(|member| member.knows(name)))
    }

    /// The member that has a static name.
    fn holder(&self, instance: &str) -> Option<String> {
        let found = self.members.iter().find(|(_, member)| member.instance.as_deref() == Some(instance));
        found.map(|(id, _)| id.clone())
    }

    /// A static member came back under a new id; if nothing else changed, the generation goes on.
    fn replace(&mut self, old: &str, new: String, join: Join, now: Instant) -> Reply<JoinAnswer> {
        let mut member = self.members.remove(old).expect("the holder of a static name is a member");
        if let Some(waiting) = member.join.take() {
            let _ = waiting.send(Err(NotJoined { error: ResponseError::FencedInstanceId, member: old.to_owned() }));
        }
        if let Some(waiting) = member.sync.take() {
            let _ = waiting.send(Err(ResponseError::FencedInstanceId));
        }
        let unchanged = reads_the_same(&member.protocols, &join.protocols, &self.protocol);
        let led = self.leader == old;
        member.heard = now;
        if unchanged {
            member.protocols.clone_from(&join.protocols);
        }
        self.members.insert(new.clone(), member);
        if led {
            self.leader.clone_from(&new);
        }
        if self.phase == Phase::Stable && unchanged {
            if led && join.skips_assignment {
                let joined = self.joined(&new, self.everyone());
                return Reply::Now(Ok(Joined { skip_assignment: true, ..joined }));
            }
            let mut joined = self.joined(&new, Vec::new());
            if led {
                // Told the old id, it does not take itself for the leader and only fetches its assignment.
                joined.leader = old.to_owned();
            }
            return Reply::Now(Ok(joined));
        }
        let receiver = self.admit(new, join, now);
        self.prepare(now);
        self.try_complete(now);
        Reply::Later(receiver)
    }

    fn admit(&mut self, id: String, join: Join, now: Instant) -> oneshot::Receiver<JoinAnswer> {
        let (sender, receiver) = oneshot::channel();
        self.joined_so_far += 1;
        self.protocol_type = join.protocol_type;
        let before = self.members.remove(&id);
        let (assignment, order) =
            before.map_or((Bytes::new(), self.joined_so_far), |before| (before.assignment, before.order));
        let member = Member {
            instance: join.instance,
            client: join.client,
            assignment,
            protocols: join.protocols,
            session_timeout: join.session_timeout,
            rebalance_timeout: join.rebalance_timeout.max(join.session_timeout),
            heard: now,
            join: Some(sender),
            sync: None,
            order,
        };
        self.members.insert(id, member);
        receiver
    }

    /// Begins the way to the next generation.
    fn prepare(&mut self, now: Instant) {
        if self.phase == Phase::Preparing {
            return;
        }
        for member in self.members.values_mut() {
            if let Some(waiting) = member.sync.take() {
                let _ = waiting.send(Err(ResponseError::RebalanceInProgress));
            }
        }
        self.complete_after = if self.phase == Phase::Empty { now + self.initial_delay } else { now };
        let longest = self.members.values().map(|member| member.rebalance_timeout).max().unwrap_or_default();
        self.complete_before = now + longest;
        self.phase = Phase::Preparing;
    }

    /// Begins the next generation if everyone is there or the time is over.
    fn try_complete(&mut self, now: Instant) {
        let everyone = self.members.values().all(|member| member.join.is_some());
        let ready = now >= self.complete_after && (everyone || now >= self.complete_before);
        if self.phase != Phase::Preparing || !ready {
            return;
        }
        // Static members may take their session time to come back.
        self.members.retain(|_, member| member.join.is_some() || member.instance.is_some());
        self.generation += 1;
        let mut present: Vec<(&String, &Member)> = self.members.iter().filter(|(_, m)| m.join.is_some()).collect();
        present.sort_by_key(|(_, member)| member.order);
        let Some((eldest, _)) = present.first() else {
            self.phase = if self.members.is_empty() { Phase::Empty } else { Phase::Stable };
            return;
        };
        if !present.iter().any(|(id, _)| **id == self.leader) {
            self.leader = (*eldest).clone();
        }
        let strategies = self.members[&self.leader].protocols.iter().map(|(name, _)| name);
        let shared = strategies.into_iter().find(|name| self.members.values().all(|member| member.knows(name)));
        self.protocol = shared.cloned().unwrap_or_default();
        self.phase = Phase::Completing;
        let everyone = self.everyone();
        let ids: Vec<String> = self.members.keys().cloned().collect();
        for id in ids {
            let members = if id == self.leader { everyone.clone() } else { Vec::new() };
            let joined = self.joined(&id, members);
            let member = self.members.get_mut(&id).expect("the id is of a member");
            member.assignment = Bytes::new();
            if let Some(waiting) = member.join.take() {
                member.heard = now;
                let _ = waiting.send(Ok(joined));
            }
        }
    }

    /// Id, static name and metadata of all members.
    fn everyone(&self) -> Vec<(String, Option<String>, Bytes)> {
        let everyone = self.members.iter();
        everyone.map(|(id, m)| (id.clone(), m.instance.clone(), m.metadata(&self.protocol))).collect()
    }

    fn joined(&self, member: &str, members: Vec<(String, Option<String>, Bytes)>) -> Joined {
        Joined {
            generation: self.generation,
            protocol_type: self.protocol_type.clone(),
            protocol: self.protocol.clone(),
            leader: self.leader.clone(),
            member: member.to_owned(),
            members,
            skip_assignment: false,
        }
    }

    pub(super) fn sync(
        &mut self,
        claim: Claim<'_>,
        assignments: Vec<(String, Bytes)>,
        now: Instant,
    ) -> Reply<SyncAnswer> {
        if let Err(error) = self.check(claim) {
            return Reply::Now(Err(error));
        }
        self.touch(claim.member, now);
        match self.phase {
            Phase::Empty => Reply::Now(Err(ResponseError::UnknownMemberId)),
            Phase::Preparing => Reply::Now(Err(ResponseError::RebalanceInProgress)),
            Phase::Stable => Reply::Now(Ok(self.synced(claim.member))),
            Phase::Completing if claim.member != self.leader => {
                let (sender, receiver) = oneshot::channel();
                if let Some(member) = self.members.get_mut(claim.member) {
                    member.sync = Some(sender);
                }
                Reply::Later(receiver)
            }
            Phase::Completing => {
                for (id, assignment) in assignments {
                    if let Some(member) = self.members.get_mut(&id) {
                        member.assignment = assignment;
                    }
                }
                self.phase = Phase::Stable;
                let waiting: Vec<String> = self.members.keys().cloned().collect();
                for id in waiting {
                    let synced = self.synced(&id);
                    let member = self.members.get_mut(&id).expect("the id is of a member");
                    if let Some(waiting) = member.sync.take() {
                        member.heard = now;
                        let _ = waiting.send(Ok(synced));
                    }
                }
                Reply::Now(Ok(self.synced(claim.member)))
            }
        }
    }

    fn synced(&self, member: &str) -> Synced {
        Synced {
            protocol_type: self.protocol_type.clone(),
            protocol: self.protocol.clone(),
            assignment: self.members.get(member).map(|member| member.assignment.clone()).unwrap_or_default(),
        }
    }

    /// Whether the claim is that of a member of the present generation.
    pub(super) fn check(&self, claim: Claim<'_>) -> Result<(), ResponseError> {
        if let Some(instance) = claim.instance {
            match self.holder(instance) {
                None => return Err(ResponseError::UnknownMemberId),
                Some(holder) if holder != claim.member => return Err(ResponseError::FencedInstanceId),
                Some(_) => {}
            }
        }
        if !self.members.contains_key(claim.member) {
            return Err(ResponseError::UnknownMemberId);
        }
        if claim.generation == self.generation { Ok(()) } else { Err(ResponseError::IllegalGeneration) }
    }

    pub(super) fn touch(&mut self, member: &str, now: Instant) {
        if let Some(member) = self.members.get_mut(member) {
            member.heard = now;
        }
    }

    pub(super) fn leave(&mut self, member: &str, instance: Option<&str>, now: Instant) -> Result<(), ResponseError> {
        let id = match instance.map(|instance| self.holder(instance)) {
            Some(None) => return Err(ResponseError::UnknownMemberId),
            Some(Some(holder)) if !member.is_empty() && holder != member => {
                return Err(ResponseError::FencedInstanceId);
            }
            Some(Some(holder)) => holder,
            None => member.to_owned(),
        };
        if self.promised.remove(&id).is_some() {
            return Ok(());
        }
        if !self.members.contains_key(&id) {
            return Err(ResponseError::UnknownMemberId);
        }
        self.remove(&id, now);
        Ok(())
    }

    fn remove(&mut self, id: &str, now: Instant) {
        self.members.remove(id);
        if self.members.is_empty() {
            self.phase = Phase::Empty;
            self.generation += 1;
            self.leader.clear();
            return;
        }
        self.prepare(now);
        self.try_complete(now);
    }

    pub(super) fn tick(&mut self, now: Instant) {
        self.promised.retain(|_, void_after| *void_after > now);
        let waits = |member: &Member| member.join.is_some() || member.sync.is_some();
        let silent = self.members.iter().filter(|(_, m)| !waits(m) && now > m.heard + m.session_timeout);
        let silent: Vec<String> = silent.map(|(id, _)| id.clone()).collect();
        for id in silent {
            self.remove(&id, now);
        }
        self.try_complete(now);
    }
}
