//! The report: how each number of processes shared the work, what a turn cost, and the count.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::crew::{Done, Kind, Member};
use crate::Outcome;
use crate::faults::compare::{Evidence, Findings};
use crate::figures::short;
use crate::latency::Latencies;

/// What one number of processes came to.
#[derive(Debug)]
pub(super) struct Phase {
    /// Processes of each role.
    pub(super) count: usize,
    /// How long it was measured.
    pub(super) took: Duration,
    /// From the first process that was started or told to go until all partitions had their readers.
    pub(super) changed_in: Duration,
    /// Ages of turns at a socket during the change.
    pub(super) changing: Latencies,
    /// And afterwards.
    pub(super) steady: Latencies,
    pub(super) roles: Vec<Shared>,
}

/// How the processes of a role shared the work of a phase.
#[derive(Debug)]
pub(super) struct Shared {
    kind: Kind,
    turns: Vec<u64>,
    cpu_s: Vec<f64>,
    rss_mb: Vec<f64>,
    partitions: Vec<usize>,
}

impl Shared {
    /// From what each process had done before and after.
    pub(super) fn of(
        kind: Kind,
        before: &BTreeMap<Member, Done>,
        after: &BTreeMap<Member, Done>,
        partitions: &BTreeMap<Kind, Vec<usize>>,
    ) -> Option<Shared> {
        let partitions = partitions.get(&kind).cloned().unwrap_or_default();
        let mut shared = Shared { kind, turns: Vec::new(), cpu_s: Vec::new(), rss_mb: Vec::new(), partitions };
        for (member, after) in after.iter().filter(|(member, _)| member.0 == kind) {
            let before = before.get(member)?;
            shared.turns.push(after.turns.saturating_sub(before.turns));
            shared.cpu_s.push(after.spent.cpu_s - before.spent.cpu_s);
            shared.rss_mb.push(after.spent.rss_mb);
        }
        (!shared.turns.is_empty()).then_some(shared)
    }
}

impl Phase {
    /// Turns that came through.
    fn turns(&self) -> u64 {
        let of = self.roles.iter().find(|role| role.kind == Kind::Processors);
        of.map_or(0, |role| role.turns.iter().sum())
    }

    fn per_s(&self) -> f64 {
        self.turns() as f64 / self.took.as_secs_f64()
    }

    /// Milliseconds of processors that a role spent for each turn that came through, its processes together.
    fn cpu_ms(&self, role: &Shared) -> f64 {
        1000.0 * role.cpu_s.iter().sum::<f64>() / (self.turns() as f64).max(1.0)
    }

    pub(super) fn line(&self) -> String {
        format!(
            "{} of each role: {:.1} turns a second, p50 {:.0} ms, p99 {:.0} ms; the change took {:.1} s, p99 {:.0} ms",
            self.count,
            self.per_s(),
            self.steady.quantile_ms(0.5),
            self.steady.quantile_ms(0.99),
            self.changed_in.as_secs_f64(),
            self.changing.quantile_ms(0.99),
        )
    }

    fn text(&self) -> String {
        let mut text = format!("{}\n", self.line());
        for role in &self.roles {
            let total: u64 = role.turns.iter().sum();
            let shares = role.turns.iter().map(|turns| 100.0 * *turns as f64 / (total as f64).max(1.0));
            let worked = if total == 0 { String::new() } else { format!("{} %", span(shares)) };
            let partitions = span(role.partitions.iter().map(|count| *count as f64));
            text += &format!(
                "  {:<11} {:>7} {:>14} {:>9} {:>15} {:>15}\n",
                role.kind.name(),
                short(self.cpu_ms(role)),
                worked,
                partitions,
                span(role.cpu_s.iter().copied()),
                span(role.rss_mb.iter().copied()),
            );
        }
        text
    }

    fn json(&self) -> Value {
        let roles = self.roles.iter().map(|role| {
            let told = json!({
                "cpu_ms_a_turn": self.cpu_ms(role), "turns": role.turns, "cpu_s": role.cpu_s, "rss_mb": role.rss_mb,
                "partitions": role.partitions,
            });
            (role.kind.name().to_owned(), told)
        });
        json!({
            "processes": self.count, "seconds": self.took.as_secs_f64(), "turns": self.turns(),
            "turns_per_s": self.per_s(), "latency_p50_ms": self.steady.quantile_ms(0.5),
            "latency_p99_ms": self.steady.quantile_ms(0.99), "change_s": self.changed_in.as_secs_f64(),
            "change_latency_p99_ms": self.changing.quantile_ms(0.99),
            "change_latency_max_ms": self.changing.max_ms(),
            "roles": roles.collect::<serde_json::Map<_, _>>(),
        })
    }
}

/// The least and the most; one number where there is one.
fn span(values: impl Iterator<Item = f64>) -> String {
    let values: Vec<f64> = values.collect();
    let least = values.iter().copied().reduce(f64::min);
    let most = values.iter().copied().reduce(f64::max);
    match (least, most) {
        (Some(least), Some(most)) if values.len() > 1 => format!("{} to {}", short(least), short(most)),
        (Some(one), _) => short(one),
        _ => String::new(),
    }
}

pub(super) struct Report<'a> {
    /// What was run, in words.
    pub(super) shape: String,
    pub(super) phases: &'a [Phase],
    pub(super) evidence: &'a Evidence,
    pub(super) findings: &'a Findings,
    /// Bytes on the disk and in Redis at the end.
    pub(super) sizes: &'a BTreeMap<String, u64>,
}

impl Report<'_> {
    pub(super) fn outcome(&self) -> Outcome {
        let passed = self.findings.is_clean();
        Outcome { text: self.text(), json: self.json(), passed }
    }

    fn bytes_a_turn(&self) -> BTreeMap<&str, f64> {
        let turns = (self.evidence.enriched.len() as f64).max(1.0);
        self.sizes.iter().map(|(name, bytes)| (name.as_str(), *bytes as f64 / turns)).collect()
    }

    fn text(&self) -> String {
        let mut text = format!(
            "{}\n\n  {:<11} {:>7} {:>14} {:>9} {:>15} {:>15}\n",
            self.shape, "role", "ms CPU", "share of turns", "parts", "CPU s", "RSS MiB"
        );
        for phase in self.phases {
            text += &phase.text();
        }
        text += "\nms CPU: of processors, for each turn that came through, all processes of the role together; then of each \
                 process, from the least to the most: its share of the role's turns (of an api: of the frames to its sockets), \
                 its partitions, its CPU and its memory.\n\n";
        let mut line = |name: &str, value: String| text += &format!("{name:<44} {value}\n");
        let (evidence, findings) = (self.evidence, self.findings);
        for (name, bytes) in self.bytes_a_turn() {
            line(&format!("bytes a turn: {name}"), format!("{bytes:.0}"));
        }
        line("turns acknowledged", evidence.said.acknowledged.len().to_string());
        line("  sent again to another intake", evidence.said.resent.to_string());
        line("turns in the log, repeats among them", evidence.received.len().to_string());
        line("turns enriched and committed", evidence.enriched.len().to_string());
        line("lost", findings.lost.to_string());
        line("doubled", findings.doubled.to_string());
        line("out of order", findings.out_of_order.to_string());
        line("contexts differing from one thread's fold", findings.contexts_differing.to_string());
        line("turns differing from one thread's fold", findings.turns_differing.to_string());
        for difference in &findings.told {
            text += &format!("  {difference}\n");
        }
        text
    }

    fn json(&self) -> Value {
        let (evidence, findings) = (self.evidence, self.findings);
        json!({
            "shape": self.shape,
            "phases": self.phases.iter().map(Phase::json).collect::<Vec<_>>(),
            "bytes": self.sizes,
            "bytes_a_turn": self.bytes_a_turn(),
            "sent": evidence.said.acknowledged.len(),
            "resent": evidence.said.resent,
            "received": evidence.received.len(),
            "enriched": evidence.enriched.len(),
            "conversations": evidence.contexts.len(),
            "lost": findings.lost,
            "doubled": findings.doubled,
            "out_of_order": findings.out_of_order,
            "contexts_differing": findings.contexts_differing,
            "turns_differing": findings.turns_differing,
            "differences": findings.told,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spent::Spent;

    #[test]
    fn a_phase_counts_what_each_process_did_since_it_began() {
        let done = |cpu_s, turns| Done { spent: Spent { cpu_s, rss_mb: 50.0 }, turns };
        let (one, two) = ((Kind::Processors, 0), (Kind::Processors, 1));
        let before = BTreeMap::from([(one, done(1.0, 100)), (two, done(2.0, 0))]);
        let after = BTreeMap::from([(one, done(1.5, 400)), (two, done(2.25, 200))]);
        let partitions = BTreeMap::from([(Kind::Processors, vec![3, 5])]);
        let shared = Shared::of(Kind::Processors, &before, &after, &partitions).unwrap();
        let ages = Latencies::new;
        let (took, changed_in) = (Duration::from_secs(10), Duration::from_secs(1));
        let phase = Phase { count: 2, took, changed_in, changing: ages(), steady: ages(), roles: vec![shared] };
        let told = phase.json();
        assert_eq!(told["turns_per_s"], 50.0);
        assert_eq!(told["roles"]["processors"]["cpu_ms_a_turn"], 1.5);
        assert!(phase.text().contains("40.0 to 60.0 %"), "{}", phase.text());
        assert!(Shared::of(Kind::Api, &before, &after, &partitions).is_none());
    }
}
