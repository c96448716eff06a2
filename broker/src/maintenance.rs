//! What happens by itself: group and transaction time-outs, retention, compaction, checkpoints, forgetting.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::log::Partition;
use crate::node::{Node, now_ms};

/// How often time-outs of groups and transactions are looked at.
const TIMEOUTS_EVERY: Duration = Duration::from_millis(50);

/// Runs until the broker closes.
pub(crate) async fn run(node: Arc<Node>) {
    let mut ticks = tokio::time::interval(TIMEOUTS_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut maintained = Instant::now();
    let mut rounds: Option<tokio::task::JoinHandle<()>> = None;
    loop {
        tokio::select! {
            () = node.closing.cancelled() => break,
            _ = ticks.tick() => {}
        }
        node.groups().tick(Instant::now());
        node.brief(|node| node.expire_transactions(now_ms())).await;
        let busy = rounds.as_ref().is_some_and(|round| !round.is_finished());
        if !busy && maintained.elapsed() >= node.config.maintenance_every {
            maintained = Instant::now();
            let node = node.clone();
            rounds = Some(tokio::task::spawn_blocking(move || round(&node)));
        }
    }
    if let Some(round) = rounds {
        let _ = round.await;
    }
}

/// One round over all partitions, on an I/O thread.
fn round(node: &Node) {
    let rewrite = node.metadata().begin_rewrite();
    if let Some(rewrite) = rewrite {
        rewrite.run(|| node.metadata());
    }
    if let Err(error) = node.expire_groups(now_ms()) {
        tracing::warn!(%error, "forget groups that are not used any more");
    }
    for (name, topic) in node.topics() {
        for (number, partition) in topic.partitions.iter().enumerate() {
            if node.closing.is_cancelled() {
                return;
            }
            if let Err(error) = maintain(node, &name, number as i32, partition) {
                tracing::warn!(topic = name, partition = number, %error, "look after a partition");
            }
        }
    }
}

fn maintain(node: &Node, topic: &str, number: i32, partition: &Partition) -> io::Result<()> {
    let now_ms = now_ms();
    if let Some(start) = partition.retention_start(now_ms)? {
        let deleted = node.delete_records(topic, number, start);
        deleted.map_err(|error| io::Error::other(error.to_string()))?;
    }
    let dropped = partition.compact(now_ms, node.config.compaction_keys_max)?;
    if dropped > 0 {
        tracing::debug!(topic, partition = number, dropped, "compacted");
    }
    let silent_since_ms = now_ms - node.config.producer_expiry.as_millis() as i64;
    partition.expire_producers(silent_since_ms, node.config.producers_max);
    partition.checkpoint(node.config.checkpoint_bytes)
}

/// The last writes of an orderly end.
pub(crate) fn last(node: &Node) -> io::Result<()> {
    for (_, topic) in node.topics() {
        for partition in &topic.partitions {
            partition.checkpoint(1)?;
        }
    }
    node.syncer.sync_now()
}
