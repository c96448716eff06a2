//! Which faults happen, in which order and when: a pure function of the seed.
//!
//! Kills are counted exactly; the other faults stand among them in fixed proportions. Moments are drawn evenly from a
//! span, some of them so soon after the fault before that the system has not recovered.

use std::time::Duration;

use super::cache::Mishap;

/// Sebastiano Vigna's splitmix64: small, seeded, the same on every machine.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// A sequence that this seed begins.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is at least 1.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.number() % bound.max(1)
    }

    /// Whether something of this chance, in percent, happens.
    pub fn happens(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// A time up to `longest`, in whole microseconds.
    pub fn within(&mut self, longest: Duration) -> Duration {
        Duration::from_micros(self.below(longest.as_micros() as u64 + 1))
    }
}

/// What a fault hits. Processes stand in the order in which the report draws them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// The broker.
    Broker,
    /// The intake.
    Ingest,
    /// One of the processors that always run.
    Processors(usize),
    /// The processor that comes and goes.
    Extra,
    /// The history writer, with the read side.
    History,
}

/// A store of a role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Store {
    /// Of the processors.
    Contexts,
    /// Of the history writer.
    History,
}

/// Something that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL; started again after a while.
    Kill {
        /// What dies.
        target: Target,
        /// How long it stays away.
        away: Duration,
    },
    /// SIGKILL of everything at the same moment, as when the machine stops; started again after a while.
    KillAll {
        /// How long everything stays away.
        away: Duration,
    },
    /// SIGSTOP for longer than the session time-out, then SIGCONT: a zombie comes back.
    Stop {
        /// What freezes.
        target: Target,
        /// How long beyond the session time-out.
        beyond: Duration,
        /// Frozen again this soon after it came back: while it finds out that its partitions are gone.
        again: Option<Duration>,
    },
    /// SIGKILL of the broker, and this soon after it SIGSTOP of a processor, which then has a batch to abort and
    /// partitions to take over again when it comes back: too late.
    StopInDoubt {
        /// The processor.
        target: Target,
        /// From the kill to the stop.
        after: Duration,
        /// How long beyond the session time-out.
        beyond: Duration,
    },
    /// A further processor joins; the group shares anew.
    Add,
    /// It leaves in an orderly way.
    Remove,
    /// Another process holds the store's lock.
    Slow {
        /// Which store.
        store: Store,
        /// For how long.
        held: Duration,
    },
    /// The store's role cannot write to the disk any more.
    Refuse {
        /// Which store.
        store: Store,
    },
    /// All of the store's roles die, and the store has forgotten its last writes: this much before the end.
    Forget {
        /// Which store.
        store: Store,
        /// How much is forgotten.
        last: Duration,
    },
    /// The store is restored from a backup of a good while ago.
    Restore {
        /// Which store.
        store: Store,
    },
    /// Something happens to the Redis in front of the contexts.
    Cache {
        /// What.
        mishap: Mishap,
    },
}

/// A fault and its moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Whether the pipeline must have got on with its work since the fault before.
    pub settled: bool,
    /// Time from there to the fault.
    pub pause: Duration,
    /// What happens.
    pub fault: Fault,
}

/// Longest time from progress to the fault: over many batches, and often within one.
const PAUSE_MAX: Duration = Duration::from_millis(400);
/// Longest time that a killed process stays away.
const AWAY_MAX: Duration = Duration::from_millis(300);
/// Longest time beyond the session time-out that a process is frozen.
const BEYOND_MAX: Duration = Duration::from_millis(900);
/// Longest time after which a zombie is frozen again.
const AGAIN_MAX: Duration = Duration::from_millis(250);
/// How long a lock is held at most; a store waits for longer.
const HELD_MAX: Duration = Duration::from_secs(3);
/// The most that a store forgets of its last writes.
const FORGOTTEN_MAX: Duration = Duration::from_millis(600);
/// How long a cache is silent at most: longer than it is waited for.
const SILENT_MAX: Duration = Duration::from_secs(2);
/// Chance in percent that a fault does not wait for the one before to be over.
const UNSETTLED_PERCENT: u64 = 25;
/// Kills for each round of the other faults.
const KILLS_PER_ROUND: usize = 6;

/// The faults of a run. `processors` run always; the broker may be killed; there is a cache.
pub fn steps(kills: usize, processors: usize, broker: bool, cache: bool, random: &mut Random) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut kinds: Vec<Kind> = Vec::new();
    let mut killed = 0;
    while killed < kills {
        let until = (killed + KILLS_PER_ROUND).min(kills);
        while killed < until {
            let fault = kill(processors, broker, random);
            killed += fault.kills();
            steps.push(step(fault, random));
        }
        if kinds.is_empty() {
            kinds = shuffled(random);
        }
        if cache {
            for fault in mishaps(random) {
                steps.push(step(fault, random));
            }
        }
        if let Some(kind) = kinds.pop() {
            for fault in others(kind, processors, broker && killed < kills, random) {
                killed += fault.kills();
                steps.push(step(fault, random));
            }
        }
    }
    steps
}

impl Fault {
    /// How many kills the plan counts it as. Those of all processes at once come on top, and those that a store fault
    /// needs on its way count nowhere.
    pub fn kills(&self) -> usize {
        usize::from(matches!(self, Fault::Kill { .. } | Fault::StopInDoubt { .. }))
    }
}

/// Faults that are no plain kill.
#[derive(Debug, Clone, Copy)]
enum Kind {
    All,
    Stop,
    StopTwice,
    StopInDoubt,
    Rebalance,
    Slow,
    Refuse,
    Forget,
    Restore,
    RestoreHistory,
}

fn shuffled(random: &mut Random) -> Vec<Kind> {
    use Kind::{All, Forget, Rebalance, Refuse, Restore, RestoreHistory, Slow, Stop, StopInDoubt, StopTwice};
    let mut kinds = vec![All, Stop, StopTwice, StopInDoubt, Rebalance, Slow, Refuse, Forget, Restore, RestoreHistory];
    for last in (1..kinds.len()).rev() {
        kinds.swap(last, random.below(last as u64 + 1) as usize);
    }
    kinds
}

fn step(fault: Fault, random: &mut Random) -> Step {
    Step { settled: !random.happens(UNSETTLED_PERCENT), pause: random.within(PAUSE_MAX), fault }
}

fn kill(processors: usize, broker: bool, random: &mut Random) -> Fault {
    let target = match random.below(100) {
        0..=19 if broker => Target::Broker,
        0..=39 => Target::Ingest,
        40..=54 => Target::History,
        _ => one(processors, random),
    };
    Fault::Kill { target, away: random.within(AWAY_MAX) }
}

/// A cache has one a round of each.
fn mishaps(random: &mut Random) -> [Fault; 4] {
    let mut mishaps = [
        Mishap::Flush,
        Mishap::Silence(random.within(SILENT_MAX)),
        Mishap::Kill(random.within(AWAY_MAX)),
        Mishap::BringBack,
    ];
    for last in (1..mishaps.len()).rev() {
        mishaps.swap(last, random.below(last as u64 + 1) as usize);
    }
    mishaps.map(|mishap| Fault::Cache { mishap })
}

fn one(processors: usize, random: &mut Random) -> Target {
    Target::Processors(random.below(processors as u64) as usize)
}

fn others(kind: Kind, processors: usize, broker: bool, random: &mut Random) -> Vec<Fault> {
    let target = one(processors, random);
    let beyond = random.within(BEYOND_MAX);
    let store = if random.happens(70) { Store::Contexts } else { Store::History };
    match kind {
        Kind::All => vec![Fault::KillAll { away: random.within(AWAY_MAX) }],
        Kind::Stop => {
            let target = if random.happens(25) { Target::History } else { target };
            vec![Fault::Stop { target, beyond, again: None }]
        }
        Kind::StopInDoubt if broker => {
            vec![Fault::StopInDoubt { target, after: random.within(AGAIN_MAX), beyond }]
        }
        Kind::StopTwice | Kind::StopInDoubt => {
            vec![Fault::Stop { target, beyond, again: Some(random.within(AGAIN_MAX)) }]
        }
        Kind::Rebalance => vec![Fault::Add, kill(processors, false, random), Fault::Remove],
        Kind::Slow => vec![Fault::Slow { store, held: HELD_MAX / 2 + random.within(HELD_MAX / 2) }],
        Kind::Refuse => vec![Fault::Refuse { store }],
        Kind::Forget => vec![Fault::Forget { store, last: random.within(FORGOTTEN_MAX) }],
        Kind::Restore => vec![Fault::Restore { store: Store::Contexts }],
        Kind::RestoreHistory => vec![Fault::Restore { store: Store::History }],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(steps: &[Step]) -> usize {
        steps.iter().map(|step| step.fault.kills()).sum()
    }

    #[test]
    fn the_same_seed_gives_the_same_faults_and_another_seed_others() {
        let of = |seed| steps(50, 2, true, true, &mut Random::new(seed));
        assert_eq!(of(7), of(7));
        assert_ne!(of(7), of(8));
    }

    #[test]
    fn at_least_as_many_kills_are_planned_as_asked_for_and_few_more() {
        for kills in 1..120 {
            let planned = counted(&steps(kills, 2, kills % 2 == 0, kills % 3 == 0, &mut Random::new(kills as u64)));
            assert!((kills..=kills + 1).contains(&planned), "{planned} for {kills}");
        }
    }

    #[test]
    fn every_kind_of_fault_is_in_a_hundred_kills_and_the_broker_is_spared_where_it_cannot_be_started_again() {
        let steps_with = |broker| steps(100, 2, broker, broker, &mut Random::new(1));
        let names = |steps: &[Step]| -> std::collections::BTreeSet<&'static str> {
            steps.iter().map(|step| super::super::timeline::name(&step.fault)).collect()
        };
        assert_eq!(names(&steps_with(true)).len(), 15);
        let is_broker =
            |step: &Step| matches!(step.fault, Fault::Kill { target: Target::Broker, .. } | Fault::StopInDoubt { .. });
        assert!(steps_with(true).iter().any(is_broker) && !steps_with(false).iter().any(is_broker));
    }
}
