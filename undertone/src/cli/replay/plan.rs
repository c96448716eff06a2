//! The plan of a replay: what was asked for, and what that is of the log. It is written down before the work begins, so
//! that the same command goes on with it after a stop or a kill, whatever has been appended since.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use processors::replay::{self, Extent, Range};
use schemas::Tier;
use schemas::topic::{TURNS_ENRICHED, TURNS_RECEIVED};
use serde::{Deserialize, Serialize};
use store::log::Admin;

/// What makes a replay what it is: the same name with another request is another replay, and refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Request {
    pub(super) range: Range,
    pub(super) tier: Option<Tier>,
    pub(super) models: Option<PathBuf>,
    pub(super) stages: Vec<String>,
}

/// The plan as it stands in the replay's folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Plan {
    pub(super) request: Request,
    /// What is read of `turns.received`.
    pub(super) received: Extent,
    /// What is read of `turns.enriched`.
    pub(super) enriched: Extent,
    /// Partitions of the topic that is written.
    pub(super) partitions: i32,
    /// Records of `received` that the live processors had not committed yet: left out, because only what was enriched is
    /// run once more.
    #[serde(default)]
    pub(super) not_yet_enriched: i64,
}

impl Plan {
    /// The plan that was written down in `folder`, or a new one for `request`; and whether it was written down. `live` is
    /// the consumer group of the live processors that read `turns.received`.
    pub(super) async fn find(
        admin: &Admin,
        folder: &Path,
        name: &str,
        live: &str,
        request: Request,
    ) -> anyhow::Result<(Plan, bool)> {
        let path = folder.join(FILE);
        if !path.exists() {
            return Ok((Plan::new(admin, folder, name, live, request).await?, false));
        }
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let plan: Plan = serde_json::from_str(&text).with_context(|| format!("read {}", path.display()))?;
        anyhow::ensure!(
            plan.request == request,
            "this replay was begun with other options ({}): give the same to go on with it, or another --name",
            serde_json::to_string(&plan.request)?
        );
        Ok((plan, true))
    }

    async fn new(admin: &Admin, folder: &Path, name: &str, live: &str, request: Request) -> anyhow::Result<Plan> {
        let topics = admin.topics().await.context("list the topics")?;
        let exists = |name: &str| topics.iter().any(|topic| topic.name == name);
        for needed in [TURNS_RECEIVED, TURNS_ENRICHED] {
            anyhow::ensure!(exists(needed), "there is no topic {needed} here: nothing was enriched yet");
        }
        let topic = replay::topic(name);
        let group = group(name, &request.stages)?;
        anyhow::ensure!(
            !exists(&topic),
            "the topic {topic} exists, and {} has no plan of it: give another --name, or delete the topic",
            folder.display()
        );
        anyhow::ensure!(
            admin.committed(&group, TURNS_RECEIVED).await.context("ask for the offsets of the replay")?.is_empty(),
            "the group {group} has read here before, and {} has no plan of it: give another --name, or delete the group",
            folder.display()
        );
        let (received, partitions) = received(admin, &request.range).await?;
        // Asked before where the enriched turns end: what is committed until here is among them.
        let committed = admin.committed(live, TURNS_RECEIVED).await.context("ask how far the live processors are")?;
        let not_yet_enriched = received.len() - received.before(&committed);
        let enriched = extent(admin, TURNS_ENRICHED, &request.range).await?;
        Ok(Plan { request, received, enriched, partitions, not_yet_enriched })
    }

    /// Writes it down, whole or not at all.
    pub(super) fn write(&self, folder: &Path) -> anyhow::Result<()> {
        std::fs::create_dir_all(folder).with_context(|| format!("make the folder {}", folder.display()))?;
        let (path, part) = (folder.join(FILE), folder.join("plan.json.part"));
        std::fs::write(&part, serde_json::to_string_pretty(self)?)
            .and_then(|()| std::fs::rename(&part, &path))
            .with_context(|| format!("write {}", path.display()))
    }
}

/// Name of the file in the replay's folder.
const FILE: &str = "plan.json";

/// The consumer group of a replay.
pub(super) fn group(name: &str, stages: &[String]) -> anyhow::Result<String> {
    let order = processors::stages::ORDER;
    let first = order[processors::plan(order, stages)?.run.start];
    Ok(processors::group(&replay::group(name), first))
}

/// What a range is of `turns.received`, and how many partitions that has.
async fn received(admin: &Admin, range: &Range) -> anyhow::Result<(Extent, i32)> {
    let mut extent = extent(admin, TURNS_RECEIVED, range).await?;
    let partitions = i32::try_from(extent.ends.len()).context("count the partitions")?;
    let named = range.partitions.iter().chain(range.from.keys()).chain(range.until.keys());
    if let Some(unknown) = named.into_iter().find(|partition| !extent.ends.contains_key(partition)) {
        anyhow::bail!("there is no partition {unknown}: there are {partitions}, counted from 0");
    }
    for (partition, from) in &range.from {
        let end = extent.ends[partition];
        anyhow::ensure!(
            *from <= end,
            "partition {partition} ends at offset {end}: begin there or before, not at {from}"
        );
        extent.starts.entry(*partition).and_modify(|start| *start = (*start).max(*from));
    }
    for (partition, until) in &range.until {
        let (start, end) = (extent.starts.get(partition).copied().unwrap_or(0), extent.ends[partition]);
        anyhow::ensure!(
            (start..=end).contains(until),
            "of partition {partition} there is {start} to {end} to replay: end there, not at {until}"
        );
        extent.ends.entry(*partition).and_modify(|end| *end = (*end).min(*until));
    }
    if !range.partitions.is_empty() {
        extent.ends.retain(|partition, _| range.partitions.contains(partition));
    }
    extent.starts.retain(|partition, _| extent.ends.contains_key(partition));
    Ok((extent, partitions))
}

/// What a topic holds since the beginning of a range. Both topics carry the time of intake, so that no turn of the range
/// stands before the first of its time; turns that were driven in again stand behind later ones, so the end is that of
/// the topic.
async fn extent(admin: &Admin, topic: &str, range: &Range) -> anyhow::Result<Extent> {
    let offsets = admin.offsets(topic).await.with_context(|| format!("ask where {topic} ends"))?;
    let since = match range.from_ms {
        Some(from) => Some(admin.offsets_since(topic, from).await.context("look up the time")?),
        None => None,
    };
    let start = |(partition, (low, high)): (&i32, &(i64, i64))| {
        let start = since.as_ref().map_or(*low, |since| since.get(partition).map_or(*high, |start| *start.max(low)));
        (*partition, start)
    };
    let starts = offsets.iter().map(start).collect();
    let ends = offsets.iter().map(|(partition, (_, high))| (*partition, *high)).collect();
    Ok(Extent { starts, ends })
}
