//! Which topics are wanted, which exist, and what is to be done about the difference.
//!
//! The plan is pure; [`apply`] carries it out. What exists is never changed here: a topic with other settings may be
//! somebody's decision. A difference that would lose turns, or their order, keeps the program from starting
//! ([`refuse`]); another is told and left to people. More partitions are the matter of [`grow`].

pub mod grow;

use std::collections::BTreeSet;

use schemas::{Kind, topic};
use store::log::{Admin, LogError, TopicSpec, TopicState};

/// Settings of a topic that are compared.
const RETENTION: &str = "retention.ms";
const MESSAGE_BYTES: &str = "max.message.bytes";
const CLEANUP: &str = "cleanup.policy";
const IN_SYNC: &str = "min.insync.replicas";

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
    /// Exists otherwise.
    Differs(Vec<Difference>),
}

/// What is otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// What it is, and what was wanted.
    pub what: String,
    /// How to mend it, if it keeps the program from starting.
    pub mend: Option<String>,
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
    // An acknowledged record outlives a node, and one node may be away.
    let in_sync = (replication > 1).then(|| (IN_SYNC.to_owned(), (replication - 1).to_string()));
    let spec = |topic: topic::Topic| {
        let settings = [
            (RETENTION.to_owned(), topic.retention_ms.to_string()),
            (MESSAGE_BYTES.to_owned(), topic.max_message_bytes.to_string()),
            (CLEANUP.to_owned(), "delete".to_owned()),
        ];
        let config = settings.into_iter().chain(in_sync.clone()).collect();
        TopicSpec { name: topic.name, partitions, replication, config }
    };
    topic::wanted(cuts).into_iter().map(spec).collect()
}

/// Lays what is wanted beside what exists, in the order of the wanted. `bootstrap` stands in the commands that mend.
pub fn compare(wanted: &[TopicSpec], existing: &[TopicState], bootstrap: &str) -> Vec<Finding> {
    let of = |spec: &TopicSpec| existing.iter().find(|topic| topic.name == spec.name);
    // A turn stays on its partition from topic to topic.
    let is_chained = |spec: &TopicSpec| topic::kind(&spec.name) == Some(Kind::Turn);
    let chained: BTreeSet<i32> =
        wanted.iter().filter(|spec| is_chained(spec)).filter_map(|spec| Some(of(spec)?.partitions)).collect();
    let find = |spec: &TopicSpec| {
        let is_chained = is_chained(spec);
        let Some(found) = of(spec) else {
            // One that a new cut of the chain needs is made like the others.
            let alike = chained.last().filter(|_| is_chained).copied().unwrap_or(spec.partitions);
            return State::Missing(TopicSpec { partitions: alike, ..spec.clone() });
        };
        let uneven = (is_chained && chained.len() > 1).then(|| chained.last().copied().unwrap_or(spec.partitions));
        let mut differences = Vec::new();
        differences.extend(partitions(spec, found, uneven));
        differences.extend(replication(spec, found));
        differences.extend(spec.config.iter().filter_map(|(key, want)| setting(key, want, found, bootstrap)));
        if differences.is_empty() { State::Same } else { State::Differs(differences) }
    };
    wanted.iter().map(|spec| Finding { name: spec.name.clone(), state: find(spec) }).collect()
}

/// `uneven`: the largest number of partitions among the topics of turns, where these differ.
fn partitions(spec: &TopicSpec, found: &TopicState, uneven: Option<i32>) -> Option<Difference> {
    if found.partitions == spec.partitions && uneven.is_none() {
        return None;
    }
    let what = format!("has {} partitions, wanted {}", found.partitions, spec.partitions);
    let mend = uneven.map(|most| {
        format!(
            "all topics of turns must have as many: stop the roles and run `undertone topics grow --partitions {}`",
            most.max(spec.partitions)
        )
    });
    Some(Difference { what, mend })
}

fn replication(spec: &TopicSpec, found: &TopicState) -> Option<Difference> {
    (found.replication < spec.replication).then(|| Difference {
        what: format!("has {} copies of each record, wanted {}", found.replication, spec.replication),
        mend: Some(format!(
            "give it more with kafka-reassign-partitions.sh, or set [kafka] replication = {}",
            found.replication
        )),
    })
}

fn setting(key: &str, want: &str, found: &TopicState, bootstrap: &str) -> Option<Difference> {
    // One that the brokers do not tell is no difference.
    let have = found.config.get(key).filter(|have| *have != want)?;
    let number = |text: &str| text.parse::<i64>().ok();
    let harms = match key {
        CLEANUP => true,
        MESSAGE_BYTES => number(have) < number(want),
        _ => false,
    };
    // More copies that must have a record, or longer records, are as good.
    if matches!(key, MESSAGE_BYTES | IN_SYNC) && number(have) > number(want) {
        return None;
    }
    let name = &found.name;
    Some(Difference {
        what: format!("has {key}={have}, wanted {want}"),
        mend: harms.then(|| {
            format!(
                "kafka-configs.sh --bootstrap-server {bootstrap} --alter --entity-type topics --entity-name {name} \
                 --add-config {key}={want}"
            )
        }),
    })
}

/// Refuses topics that would lose turns, or their order.
///
/// # Errors
/// One line for each difference, with its mend.
pub fn refuse(findings: &[Finding]) -> anyhow::Result<()> {
    let mut lines = Vec::new();
    for finding in findings {
        let State::Differs(differences) = &finding.state else { continue };
        for Difference { what, mend } in differences {
            let Some(mend) = mend else { continue };
            lines.push(format!("{} {what}; {mend}", finding.name));
        }
    }
    anyhow::ensure!(lines.is_empty(), "topics would lose turns or their order:\n  {}", lines.join("\n  "));
    Ok(())
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
        TopicState {
            name: spec.name.clone(),
            partitions: spec.partitions,
            replication: spec.replication,
            config: spec.config.clone(),
        }
    }

    fn told(state: &State) -> (Vec<&str>, Vec<&str>) {
        let State::Differs(differences) = state else { return Default::default() };
        let mends = differences.iter().filter_map(|difference| difference.mend.as_deref()).collect();
        (differences.iter().map(|difference| difference.what.as_str()).collect(), mends)
    }

    #[test]
    fn harmless_differences_are_told_and_only_missing_topics_are_to_be_created() {
        let wanted = wanted(&[], 8, 1);
        let mut have: Vec<TopicState> = wanted[1..].iter().map(existing).collect();
        have[1].partitions = 3;
        have[2].config.insert(RETENTION.to_owned(), "1".to_owned());
        have[3].config.clear();
        have[4].config.insert(MESSAGE_BYTES.to_owned(), "9000000".to_owned());
        let findings = compare(&wanted, &have, "kafka:9092");
        assert!(matches!(&findings[0].state, State::Missing(spec) if spec.name == topic::TURNS_RECEIVED));
        assert_eq!(findings[1].state, State::Same);
        assert_eq!(told(&findings[2].state).0, ["has 3 partitions, wanted 8"], "{}", findings[2].name);
        assert!(told(&findings[3].state).0[0].starts_with("has retention.ms=1,"));
        assert_eq!(findings[4].state, State::Same, "a setting that the brokers do not tell is no difference");
        assert_eq!(findings[5].state, State::Same, "more than is wanted is as good");
        refuse(&findings).unwrap();
        let all_alike: Vec<TopicState> =
            wanted.iter().map(|spec| TopicState { partitions: 3, ..existing(spec) }).collect();
        refuse(&compare(&wanted, &all_alike, "kafka:9092")).unwrap();
    }

    #[test]
    fn what_would_lose_turns_or_their_order_is_refused_with_the_command_that_mends_it() {
        let wanted = wanted(&["encode"], 4, 2);
        let refused = |change: &dyn Fn(&mut TopicState)| {
            let mut have: Vec<TopicState> = wanted.iter().map(existing).collect();
            change(&mut have[1]);
            refuse(&compare(&wanted, &have, "kafka:9092")).unwrap_err().to_string()
        };
        let set = |key: &'static str, value: &'static str| {
            move |topic: &mut TopicState| drop(topic.config.insert(key.to_owned(), value.to_owned()))
        };
        let said = refused(&set(CLEANUP, "compact"));
        assert!(
            said.contains("kafka-configs.sh --bootstrap-server kafka:9092") && said.contains("policy=delete"),
            "{said}"
        );
        assert!(said.contains("undertone.turns.encode.v1 has cleanup.policy=compact"), "{said}");
        let said = refused(&set(MESSAGE_BYTES, "1000"));
        assert!(said.contains("max.message.bytes=1000") && said.contains("max.message.bytes=1048576"), "{said}");
        let said = refused(&|topic| topic.replication = 1);
        assert!(said.contains("has 1 copies") && said.contains("[kafka] replication = 1"), "{said}");
        let said = refused(&|topic| topic.partitions = 6);
        assert_eq!(
            said.matches("undertone topics grow --partitions 6").count(),
            3,
            "each of the chain is named: {said}"
        );
    }

    #[test]
    fn topics_of_several_copies_want_all_but_one_of_them_to_have_a_record() {
        let in_sync = |replication| wanted(&[], 8, replication)[0].config.get(IN_SYNC).cloned();
        assert_eq!((in_sync(1), in_sync(2).as_deref(), in_sync(3).as_deref()), (None, Some("1"), Some("2")));
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
