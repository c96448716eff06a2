//! Which topics are wanted, which exist, and what is to be done about the difference.
//!
//! The plan is pure; [`apply`] carries it out. What exists is never changed: a topic with other settings may be
//! somebody's decision, so differences are told and left to people.

use schemas::topic;
use store::log::{Admin, LogError, TopicSpec, TopicState};

/// Settings of a topic that are compared.
const RETENTION: &str = "retention.ms";
const MESSAGE_BYTES: &str = "max.message.bytes";
const CLEANUP: &str = "cleanup.policy";

/// A wanted topic beside the one that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Its name.
    pub name: String,
    /// What is to be done or told.
    pub state: State,
}

/// How a wanted topic stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// As wanted.
    Same,
    /// Does not exist.
    Missing(TopicSpec),
    /// Exists with other settings: one line each.
    Differs(Vec<String>),
}

/// The topics behind which the chain is cut, seen from a process that runs `stages` of `order` (empty: all of it).
pub fn cuts<'a>(order: &[&'a str], stages: &[String]) -> Vec<&'a str> {
    let place = |stage: &String| order.iter().position(|known| known == stage);
    let (Some(first), Some(last)) = (stages.first().and_then(place), stages.last().and_then(place)) else {
        return Vec::new();
    };
    let before = first.checked_sub(1).map(|before| order[before]);
    let after = (last + 1 < order.len()).then(|| order[last]);
    before.into_iter().chain(after).collect()
}

/// The specifications of all topics that a chain cut behind `cuts` needs.
pub fn wanted(cuts: &[&str], partitions: i32, replication: i32) -> Vec<TopicSpec> {
    let spec = |topic: topic::Topic| TopicSpec {
        name: topic.name,
        partitions,
        replication,
        config: [
            (RETENTION.to_owned(), topic.retention_ms.to_string()),
            (MESSAGE_BYTES.to_owned(), topic.max_message_bytes.to_string()),
            (CLEANUP.to_owned(), "delete".to_owned()),
        ]
        .into(),
    };
    topic::wanted(cuts).into_iter().map(spec).collect()
}

/// Lays what is wanted beside what exists, in the order of the wanted.
pub fn compare(wanted: &[TopicSpec], existing: &[TopicState]) -> Vec<Finding> {
    let find = |spec: &TopicSpec| {
        let Some(found) = existing.iter().find(|topic| topic.name == spec.name) else {
            return State::Missing(spec.clone());
        };
        let mut differences = Vec::new();
        if found.partitions != spec.partitions {
            differences.push(format!("has {} partitions, wanted {}", found.partitions, spec.partitions));
        }
        for (key, want) in &spec.config {
            match found.config.get(key) {
                Some(have) if have != want => differences.push(format!("has {key}={have}, wanted {want}")),
                _ => {}
            }
        }
        if differences.is_empty() { State::Same } else { State::Differs(differences) }
    };
    wanted.iter().map(|spec| Finding { name: spec.name.clone(), state: find(spec) }).collect()
}

/// Creates what is missing; doing it twice changes nothing. Returns the names of the created.
///
/// # Errors
/// The brokers did not answer, or refuse a topic.
pub async fn apply(admin: &Admin, findings: &[Finding]) -> Result<Vec<String>, LogError> {
    let missing = findings.iter().filter_map(|finding| match &finding.state {
        State::Missing(spec) => Some(spec.clone()),
        State::Same | State::Differs(_) => None,
    });
    admin.create(&missing.collect::<Vec<_>>()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn existing(spec: &TopicSpec) -> TopicState {
        TopicState { name: spec.name.clone(), partitions: spec.partitions, config: spec.config.clone() }
    }

    #[test]
    fn differences_are_told_and_only_missing_topics_are_to_be_created() {
        let wanted = wanted(&[], 8, 1);
        let mut have: Vec<TopicState> = wanted[1..].iter().map(existing).collect();
        have[0].partitions = 3;
        have[1].config.insert(RETENTION.to_owned(), "1".to_owned());
        have[2].config.clear();
        let findings = compare(&wanted, &have);
        assert!(matches!(&findings[0].state, State::Missing(spec) if spec.name == topic::TURNS_RECEIVED));
        assert_eq!(findings[1].state, State::Differs(vec!["has 3 partitions, wanted 8".to_owned()]));
        assert!(matches!(&findings[2].state, State::Differs(lines) if lines[0].starts_with("has retention.ms=1,")));
        assert_eq!(findings[3].state, State::Same, "a setting that the brokers do not tell is no difference");
    }

    #[test]
    fn a_process_wants_the_topics_at_both_ends_of_its_run() {
        let order = ["encode", "emotion", "memory"];
        let run = |stages: &[&str]| cuts(&order, &stages.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>());
        assert_eq!(run(&[]), [""; 0]);
        assert_eq!(run(&["encode", "emotion", "memory"]), [""; 0]);
        assert_eq!(run(&["encode"]), ["encode"]);
        assert_eq!(run(&["emotion"]), ["encode", "emotion"]);
        assert_eq!(run(&["memory"]), ["emotion"]);
    }
}
