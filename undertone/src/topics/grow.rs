//! More partitions. A conversation's partition follows from their number, so most conversations move; and what they said
//! before must be worked off before they say more elsewhere, or turns would be folded out of order.
//!
//! Promises: nothing is changed unless every turn in the log is folded and written, nobody is a member of the groups, and
//! no turn comes meanwhile. The contexts are told how far each partition had been worked off, so that a conversation that
//! has moved continues from there. Left out: that no intake comes back with the old number of partitions in mind; whoever
//! runs this stops them, and a turn that one of them puts onto the old partition stops the processors.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use schemas::topic;
use store::context::Contexts;
use store::log::{Admin, TopicState};

/// How long the log must stay as it is before an intake counts as stopped.
pub const QUIET_FOR: Duration = Duration::from_secs(3);

/// A group that must have read all of a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reader {
    /// The group.
    pub group: String,
    /// What it reads.
    pub topic: String,
    /// Whether the topic's records are lost on whoever comes later, so that a group that never read is behind too.
    pub is_chain: bool,
}

/// What is to be grown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Growth {
    /// Topics with fewer partitions than wanted, `turns.received` last: an intake sees the new number when all is done.
    pub topics: Vec<String>,
    /// The number that they get.
    pub partitions: i32,
    /// The end of each partition of `turns.received`.
    pub drained: BTreeMap<i32, i64>,
}

/// The groups that read the topics of turns, for a chain that may be cut behind any stage of `order`.
pub fn readers(processors_group: &str, history_group: &str, order: &[&str], existing: &[TopicState]) -> Vec<Reader> {
    let inputs = order.iter().enumerate().map(|(n, stage)| {
        let topic =
            n.checked_sub(1).map_or(topic::TURNS_RECEIVED.to_owned(), |before| topic::turns_after(order[before]));
        Reader { group: processors::group(processors_group, stage), topic, is_chain: true }
    });
    let history = Reader { group: history_group.to_owned(), topic: topic::TURNS_ENRICHED.to_owned(), is_chain: false };
    let exists = |reader: &Reader| existing.iter().any(|topic| topic.name == reader.topic);
    inputs.chain([history]).filter(exists).collect()
}

/// Looks whether partitions can be added now, and changes nothing. `quiet_for` is [`QUIET_FOR`] but in tests.
///
/// # Errors
/// What stands against it, with the mend.
pub async fn plan(
    admin: &Admin,
    readers: &[Reader],
    existing: &[TopicState],
    order: &[&str],
    partitions: i32,
    quiet_for: Duration,
) -> anyhow::Result<Growth> {
    let ours: Vec<String> = topic::wanted(order).into_iter().map(|topic| topic.name).collect();
    let found: Vec<&TopicState> = existing.iter().filter(|topic| ours.contains(&topic.name)).collect();
    anyhow::ensure!(!found.is_empty(), "there are no topics yet: set [kafka] partitions, and start");
    for topic in &found {
        anyhow::ensure!(
            topic.partitions <= partitions,
            "{} has {} partitions, and Kafka takes none away: give {} or more",
            topic.name,
            topic.partitions,
            topic.partitions
        );
    }
    let mut topics: Vec<String> =
        found.iter().filter(|topic| topic.partitions < partitions).map(|topic| topic.name.clone()).collect();
    topics.sort_by_key(|name| name == topic::TURNS_RECEIVED);
    for reader in readers {
        let members = admin.members(&reader.group).await.with_context(|| format!("look at group {}", reader.group))?;
        anyhow::ensure!(
            members == 0,
            "group {} has {members} members: stop the intake first, let everything be worked off, then stop all other \
             roles, and run this again",
            reader.group
        );
    }
    let before = ends(admin, readers).await?;
    for reader in readers {
        let lag = behind(admin, reader, &before[&reader.topic]).await?;
        anyhow::ensure!(
            lag == 0,
            "group {} is {lag} records of {} behind: start the roles without the intake until the lag is nothing \
             (`undertone top`), stop them, and run this again",
            reader.group,
            reader.topic
        );
    }
    tokio::time::sleep(quiet_for).await;
    anyhow::ensure!(
        ends(admin, readers).await? == before,
        "turns come in meanwhile: stop every intake, and whoever else writes to the topics, and run this again"
    );
    let drained = before.get(topic::TURNS_RECEIVED).cloned().unwrap_or_default();
    Ok(Growth { topics, partitions, drained })
}

/// Adds the partitions.
///
/// # Errors
/// The contexts or the brokers could not serve; it may be run again, and goes on with the topics that are left.
pub async fn grow(admin: &Admin, contexts: &Contexts, growth: &Growth) -> anyhow::Result<()> {
    contexts.note_drained(&growth.drained).await.context("tell the contexts how far the partitions were worked off")?;
    admin.grow(&growth.topics, growth.partitions).await.context("add partitions; run this again to go on")
}

/// The ends of what the groups read, records of open transactions included.
async fn ends(admin: &Admin, readers: &[Reader]) -> anyhow::Result<BTreeMap<String, BTreeMap<i32, i64>>> {
    let mut ends = BTreeMap::new();
    for Reader { topic, .. } in readers {
        let newest = admin.newest(topic).await.with_context(|| format!("ask for the ends of {topic}"))?;
        ends.insert(topic.clone(), newest);
    }
    Ok(ends)
}

/// How many offsets a group is behind; one that never read is behind by all there is, or not in use.
async fn behind(admin: &Admin, reader: &Reader, ends: &BTreeMap<i32, i64>) -> anyhow::Result<i64> {
    let Reader { group, topic, is_chain } = reader;
    let committed = admin.committed(group, topic).await.with_context(|| format!("ask how far group {group} is"))?;
    if committed.is_empty() && !is_chain {
        return Ok(0);
    }
    let lows = admin.offsets(topic).await.with_context(|| format!("ask for the ends of {topic}"))?;
    let lag = |(partition, end): (&i32, &i64)| {
        let low = lows.get(partition).map_or(0, |(low, _)| *low);
        (end - committed.get(partition).copied().unwrap_or(low)).max(0)
    };
    Ok(ends.iter().map(lag).sum())
}
