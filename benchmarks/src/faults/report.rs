//! What a run came to, for people and for machines.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;

use super::compare::{Evidence, Findings};
use super::director::Counts;
use super::fleet::Ended;
use super::timeline::{Lane, Timeline};
use crate::Outcome;

/// Unexpected ends that are told one by one.
const ENDS_TOLD_MAX: usize = 12;

/// Everything that is told.
pub(super) struct Report<'a> {
    pub(super) seed: u64,
    pub(super) log: String,
    pub(super) faulted_for: Duration,
    pub(super) evidence: &'a Evidence,
    pub(super) findings: &'a Findings,
    pub(super) counts: &'a Counts,
    pub(super) ended: &'a [Ended],
    pub(super) timeline: &'a Timeline,
    pub(super) names: BTreeMap<Lane, String>,
}

impl Report<'_> {
    /// The outcome. It passed if nothing was lost, doubled, out of order or different, and no store that had gone back
    /// in time was accepted.
    pub(super) fn outcome(&self) -> Outcome {
        let passed = self.findings.is_clean() && self.counts.accepted_too_old == 0;
        Outcome { text: self.text(passed), json: self.json(), passed }
    }

    fn kills(&self) -> u64 {
        self.counts.kills.values().sum()
    }

    fn json(&self) -> serde_json::Value {
        let (evidence, findings, said) = (self.evidence, self.findings, &self.evidence.said);
        let ended: Vec<_> =
            self.ended.iter().map(|ended| json!({ "name": ended.name, "reason": ended.reason })).collect();
        json!({
            "seed": self.seed,
            "log": self.log,
            "kills": self.kills(),
            "kills_by_process": self.counts.kills,
            "faults": self.counts.faults,
            "seconds": self.faulted_for.as_secs_f64(),
            "sent": said.acknowledged.len(),
            "resent": said.resent,
            "repeated": said.repeated,
            "sockets": said.sockets,
            "received": evidence.received.len(),
            "enriched": evidence.enriched.len(),
            "conversations": evidence.contexts.len(),
            "rebuilds": self.counts.rebuilds,
            "accepted_too_old": self.counts.accepted_too_old,
            "ended_by_themselves": ended,
            "lost": findings.lost,
            "doubled": findings.doubled,
            "out_of_order": findings.out_of_order,
            "contexts_differing": findings.contexts_differing,
            "turns_differing": findings.turns_differing,
            "differences": findings.told,
        })
    }

    fn text(&self, passed: bool) -> String {
        let (evidence, findings, said) = (self.evidence, self.findings, &self.evidence.said);
        let seconds = self.faulted_for.as_secs_f64();
        let mut text = format!(
            "{} kills in {seconds:.0} s on {}, seed {}: {}\n\n{}\n",
            self.kills(),
            self.log,
            self.seed,
            if passed { "nothing lost, nothing doubled" } else { "FAILED" },
            self.timeline.draw(&self.names),
        );
        let mut line = |name: &str, value: String| text += &format!("{name:<44} {value}\n");
        for (fault, times) in &self.counts.faults {
            line(told(fault), times.to_string());
        }
        line("contexts rebuilt because they were refused", self.counts.rebuilds.to_string());
        line("processes that ended by themselves", self.ended.len().to_string());
        line("turns acknowledged", said.acknowledged.len().to_string());
        line("  sent again after a lost socket", said.resent.to_string());
        line("  repeated on purpose", said.repeated.to_string());
        line("turns in the log, repeats among them", evidence.received.len().to_string());
        line("turns enriched and committed", evidence.enriched.len().to_string());
        line("conversations", evidence.contexts.len().to_string());
        line("lost", findings.lost.to_string());
        line("doubled", findings.doubled.to_string());
        line("out of order", findings.out_of_order.to_string());
        line("contexts differing from one thread's fold", findings.contexts_differing.to_string());
        line("turns differing from one thread's fold", findings.turns_differing.to_string());
        if self.counts.accepted_too_old > 0 {
            line("contexts accepted although they are too old", self.counts.accepted_too_old.to_string());
        }
        for difference in &findings.told {
            text += &format!("  {difference}\n");
        }
        for ended in self.ended.iter().take(ENDS_TOLD_MAX) {
            let (name, at, status) = (&ended.name, ended.at.as_secs_f64(), &ended.status);
            text += &format!("  {name} ended at {at:.1} s with {status}: {}\n", ended.reason);
        }
        text
    }
}

fn told(fault: &str) -> &str {
    match fault {
        "kill" => "killed with SIGKILL",
        "kill_all" => "all killed at the same moment",
        "stop" => "frozen for longer than the session",
        "stop_twice" => "frozen again while it came back",
        "stop_in_doubt" => "broker killed and a processor frozen",
        "add" => "processor added under load",
        "remove" => "processor removed under load",
        "store_slow" => "store slow: its lock held",
        "store_refuses" => "store refuses: no byte can be written",
        "store_forgets" => "store forgets its last writes",
        "store_restored" => "store restored from a backup",
        "cache_flushed" => "cache flushed",
        "cache_silent" => "cache silent",
        "cache_killed" => "cache killed, and back empty",
        "cache_brought_back" => "cache brought back to what it was",
        other => other,
    }
}
