//! Consumer groups, the classic protocol: who is in, which generation, who leads, what each was assigned.
//!
//! A state machine in memory: time is an argument, and answers that must wait go through one-shot channels. After a
//! restart groups are empty and members join anew, as after a failover of a coordinator in Apache Kafka; committed
//! offsets are in [`crate::metadata`]. Static members (KIP-345) keep their place while they restart.

mod group;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kafka_protocol::error::ResponseError;
use tokio::sync::oneshot;

pub(crate) use group::{Group, Phase};

/// Bounds of what clients may ask for.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    pub(crate) groups_max: usize,
    pub(crate) members_max: usize,
    pub(crate) session_timeout_min: Duration,
    pub(crate) session_timeout_max: Duration,
    pub(crate) initial_rebalance_delay: Duration,
}

/// All groups of the broker.
pub(crate) struct Groups {
    limits: Limits,
    by_name: BTreeMap<String, Group>,
}

/// A request to join.
#[derive(Debug, Clone)]
pub(crate) struct Join {
    pub(crate) group: String,
    /// Empty for a new member.
    pub(crate) member: String,
    /// The name of a static member.
    pub(crate) instance: Option<String>,
    pub(crate) client: String,
    pub(crate) protocol_type: String,
    /// Assignment strategies that the member knows, best first, each with its metadata.
    pub(crate) protocols: Vec<(String, Bytes)>,
    pub(crate) session_timeout: Duration,
    pub(crate) rebalance_timeout: Duration,
    /// Whether the client comes back with the id that it is told (KIP-394).
    pub(crate) asks_twice: bool,
    /// Whether the client, as leader, can be told that the assignment stays as it is.
    pub(crate) skips_assignment: bool,
}

/// Why someone may not join; the member id is for the client to come back with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NotJoined {
    pub(crate) error: ResponseError,
    pub(crate) member: String,
}

/// A completed join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Joined {
    pub(crate) generation: i32,
    pub(crate) protocol_type: String,
    pub(crate) protocol: String,
    pub(crate) leader: String,
    pub(crate) member: String,
    /// For the leader: id, static name and metadata of everyone.
    pub(crate) members: Vec<(String, Option<String>, Bytes)>,
    /// The assignment stays as it is, although the member leads.
    pub(crate) skip_assignment: bool,
}

/// What a member was assigned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Synced {
    pub(crate) protocol_type: String,
    pub(crate) protocol: String,
    pub(crate) assignment: Bytes,
}

pub(crate) type JoinAnswer = Result<Joined, NotJoined>;
pub(crate) type SyncAnswer = Result<Synced, ResponseError>;

/// An answer that is there, or comes later.
pub(crate) enum Reply<T> {
    Now(T),
    Later(oneshot::Receiver<T>),
}

/// Who speaks for a group: member, static name, generation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Claim<'a> {
    pub(crate) member: &'a str,
    pub(crate) instance: Option<&'a str>,
    pub(crate) generation: i32,
}

impl Groups {
    pub(crate) fn new(limits: Limits) -> Groups {
        Groups { limits, by_name: BTreeMap::new() }
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Group> {
        self.by_name.get(name)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&String, &Group)> {
        self.by_name.iter()
    }

    /// Joins a group, which may begin a new generation. `new_member` is an id for a new member.
    pub(crate) fn join(&mut self, join: Join, new_member: String, now: Instant) -> Reply<JoinAnswer> {
        let refuse = |error, member: &str| Reply::Now(Err(NotJoined { error, member: member.to_owned() }));
        if join.group.is_empty() {
            return refuse(ResponseError::InvalidGroupId, &join.member);
        }
        let allowed = self.limits.session_timeout_min..=self.limits.session_timeout_max;
        if !allowed.contains(&join.session_timeout) {
            return refuse(ResponseError::InvalidSessionTimeout, &join.member);
        }
        if !self.by_name.contains_key(&join.group) {
            if !join.member.is_empty() {
                return refuse(ResponseError::UnknownMemberId, &join.member);
            }
            if self.by_name.len() >= self.limits.groups_max {
                return refuse(ResponseError::CoordinatorNotAvailable, "");
            }
            self.by_name.insert(join.group.clone(), Group::new(now));
        }
        let group = self.by_name.get_mut(&join.group).expect("it was just made sure of");
        group.join(join, new_member, &self.limits, now)
    }

    /// Gets a member's assignment; the leader's call brings everyone's.
    pub(crate) fn sync(
        &mut self,
        name: &str,
        claim: Claim<'_>,
        assignments: Vec<(String, Bytes)>,
        now: Instant,
    ) -> Reply<SyncAnswer> {
        match self.by_name.get_mut(name) {
            None => Reply::Now(Err(ResponseError::UnknownMemberId)),
            Some(group) => group.sync(claim, assignments, now),
        }
    }

    pub(crate) fn heartbeat(&mut self, name: &str, claim: Claim<'_>, now: Instant) -> Result<(), ResponseError> {
        let group = self.by_name.get_mut(name).ok_or(ResponseError::UnknownMemberId)?;
        group.check(claim)?;
        group.touch(claim.member, now);
        if group.phase() == Phase::Preparing { Err(ResponseError::RebalanceInProgress) } else { Ok(()) }
    }

    /// Takes a member out, by id or by static name.
    pub(crate) fn leave(
        &mut self,
        name: &str,
        member: &str,
        instance: Option<&str>,
        now: Instant,
    ) -> Result<(), ResponseError> {
        let group = self.by_name.get_mut(name).ok_or(ResponseError::UnknownMemberId)?;
        group.leave(member, instance, now)
    }

    /// Whether an offset may be committed for the group. A generation below 0 is that of a client without membership,
    /// which may commit while the group is empty.
    pub(crate) fn may_commit(&mut self, name: &str, claim: Claim<'_>, now: Instant) -> Result<(), ResponseError> {
        match self.by_name.get_mut(name) {
            Some(group) if !group.is_empty() => {
                group.check(claim)?;
                group.touch(claim.member, now);
                let assigning = group.phase() == Phase::Completing;
                if assigning { Err(ResponseError::RebalanceInProgress) } else { Ok(()) }
            }
            _ if claim.generation >= 0 => Err(ResponseError::UnknownMemberId),
            _ => Ok(()),
        }
    }

    /// Whether offsets may be added to a transaction for the group: as [`Groups::may_commit`], but clients that do not
    /// say who they are may always.
    pub(crate) fn may_commit_in_transaction(&self, name: &str, claim: Claim<'_>) -> Result<(), ResponseError> {
        if claim.generation < 0 && claim.member.is_empty() {
            return Ok(());
        }
        self.by_name.get(name).ok_or(ResponseError::UnknownMemberId)?.check(claim)
    }

    /// Forgets an empty group; says whether it was there.
    pub(crate) fn delete(&mut self, name: &str) -> Result<bool, ResponseError> {
        match self.by_name.get(name) {
            Some(group) if !group.is_empty() => Err(ResponseError::NonEmptyGroup),
            Some(_) => Ok(self.by_name.remove(name).is_some()),
            None => Ok(false),
        }
    }

    /// Takes out members that were silent for too long, completes rebalances whose time is over, forgets empty groups.
    pub(crate) fn tick(&mut self, now: Instant) {
        for group in self.by_name.values_mut() {
            group.tick(now);
        }
        self.by_name.retain(|_, group| !group.is_forgotten());
    }
}

#[cfg(test)]
mod tests;
