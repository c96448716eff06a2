//! The processes of a run: so many of each role, their addresses, and what each has done so far.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context as _;

use crate::faults::process::{Program, Slot};
use crate::faults::sight;
use crate::spent::{Spent, spent};

/// A role, or the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Broker,
    Ingest,
    Processors,
    History,
    Api,
}

impl Kind {
    pub(super) const ALL: [Kind; 5] = [Kind::Broker, Kind::Ingest, Kind::Processors, Kind::History, Kind::Api];
    /// Those that are shared.
    const SHARED: [Kind; 4] = [Kind::Ingest, Kind::Processors, Kind::History, Kind::Api];

    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Broker => "broker",
            Kind::Ingest => "ingest",
            Kind::Processors => "processors",
            Kind::History => "history",
            Kind::Api => "api",
        }
    }

    /// The metric that counts its turns, and a part of the label that says which.
    fn turns(self) -> Option<(&'static str, &'static str)> {
        match self {
            Kind::Broker => None,
            Kind::Ingest => Some(("undertone_ingest_inputs_total", "outcome=\"turn\"")),
            Kind::Processors => Some(("undertone_processors_turns_total", "outcome=\"enriched\"")),
            Kind::History => Some(("undertone_history_turns_total", "")),
            Kind::Api => Some(("undertone_api_turns_sent_total", "")),
        }
    }
}

/// A process: its role and its number.
pub(super) type Member = (Kind, usize);

/// What a process has done since it was started.
#[derive(Debug, Clone, Copy)]
pub(super) struct Done {
    pub(super) spent: Spent,
    /// Turns; of an `api`, frames that it handed to sockets; of the broker none.
    pub(super) turns: u64,
}

#[derive(Debug)]
pub(super) struct Crew {
    program: Program,
    slots: BTreeMap<Member, Slot>,
    leaving: Vec<Member>,
}

impl Crew {
    /// Nobody yet; with a broker of its own where no other log was given.
    pub(super) fn new(path: &Path, folder: &Path, variables: Vec<(&'static str, String)>, broker: bool) -> Crew {
        let program = Program { path: path.to_owned(), folder: folder.to_owned(), variables };
        let mut slots = BTreeMap::new();
        if broker {
            let alone = vec![("UNDERTONE__KAFKA__BOOTSTRAP", String::new())];
            slots.insert((Kind::Broker, 0), Slot::new("broker", &["broker"], alone));
        }
        Crew { program, slots, leaving: Vec::new() }
    }

    /// Starts who is missing; those that run then.
    pub(super) fn start(&mut self, count: usize) -> anyhow::Result<Vec<Member>> {
        for kind in Kind::SHARED {
            for number in 0..count {
                let name = format!("{}-{}", kind.name(), number + 1);
                let variables = vec![("UNDERTONE__KAFKA__INSTANCE", name.clone())];
                self.slots.entry((kind, number)).or_insert_with(|| Slot::new(&name, &[kind.name()], variables));
            }
        }
        self.slots.values_mut().try_for_each(|slot| slot.start(&self.program))?;
        Ok(self.slots.keys().copied().collect())
    }

    /// Whether all of them say that they are ready.
    pub(super) fn are_ready(&self, members: &[Member]) -> bool {
        members.iter().all(|member| self.slots.get(member).is_some_and(|slot| slot.said("roles").is_some()))
    }

    /// Tells those beyond `count` of each role to go; who they are.
    pub(super) fn leave(&mut self, count: usize) -> Vec<Member> {
        let beyond = self.slots.keys().copied().filter(|(kind, number)| *kind != Kind::Broker && *number >= count);
        let beyond: Vec<Member> = beyond.collect();
        for member in &beyond {
            self.slots[member].terminate();
            self.leaving.push(*member);
        }
        beyond
    }

    pub(super) fn are_gone(&self, members: &[Member]) -> bool {
        members.iter().all(|member| !self.slots.contains_key(member))
    }

    /// Notes who has gone as told.
    ///
    /// # Errors
    /// A process ended by itself, or not well.
    pub(super) fn look_after(&mut self) -> anyhow::Result<()> {
        let mut gone = Vec::new();
        for (member, slot) in &mut self.slots {
            let Some((status, lines)) = slot.ended() else { continue };
            let told = self.leaving.contains(member) && status.success();
            anyhow::ensure!(told, "{} ended with {status}: {}", slot.name, lines.join("\n"));
            gone.push(*member);
        }
        for member in gone {
            self.slots.remove(&member);
            self.leaving.retain(|leaving| *leaving != member);
        }
        Ok(())
    }

    /// `host:port` of the processes of a role, in order.
    pub(super) fn addresses(&self, kind: Kind) -> Vec<String> {
        let of = self.slots.iter().filter(|((found, _), _)| *found == kind);
        of.filter_map(|(_, slot)| Some(slot.said("http")?.trim_start_matches("http://").to_owned())).collect()
    }

    /// What each has done.
    pub(super) async fn look(&self) -> anyhow::Result<BTreeMap<Member, Done>> {
        let mut done = BTreeMap::new();
        for (member, slot) in &self.slots {
            let pid = slot.pid().with_context(|| format!("{} runs", slot.name))?;
            let mut turns = 0;
            if let (Some((metric, label)), Some(http)) = (member.0.turns(), slot.said("http")) {
                let address = http.trim_start_matches("http://").to_owned();
                turns = sight::count(&address, metric, label).await.unwrap_or(0);
            }
            done.insert(*member, Done { spent: spent(pid.as_raw_nonzero().get() as u32)?, turns });
        }
        Ok(done)
    }

    /// SIGTERM to all but the broker, until they have gone.
    pub(super) async fn stop(&mut self) -> anyhow::Result<()> {
        let all = self.leave(0);
        let begun = std::time::Instant::now();
        while !self.are_gone(&all) {
            anyhow::ensure!(begun.elapsed() < super::CHANGED_MAX, "a process does not end on SIGTERM");
            self.look_after()?;
            tokio::time::sleep(super::LOOK_EVERY).await;
        }
        Ok(())
    }

    /// Nobody reads any more.
    pub(super) fn kill_broker(&mut self) {
        self.slots.clear();
    }
}
