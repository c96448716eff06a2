//! Consumer groups: partitions are shared, moved and taken back; static members keep theirs.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::message::Message as _;

use crate::support::{PATIENCE, Server, consumer, create_topic, produce, unique, wait_for};

const SHORT: Duration = Duration::from_millis(10);

fn member(bootstrap: &str, group: &str, topic: &str, settings: &[(&str, &str)]) -> Result<BaseConsumer> {
    let mut config = consumer(bootstrap, group);
    config.set("enable.partition.eof", "false");
    for (name, value) in settings {
        config.set(*name, *value);
    }
    let member: BaseConsumer = config.create()?;
    member.subscribe(&[topic])?;
    Ok(member)
}

fn assigned(member: &BaseConsumer) -> usize {
    member.assignment().map_or(0, |partitions| partitions.count())
}

fn poll_into(member: &BaseConsumer, keys: &mut HashSet<Vec<u8>>) -> Result<()> {
    if let Some(Ok(message)) = member.poll(SHORT) {
        keys.insert(message.key().unwrap_or_default().to_vec());
        // A rebalance may be under way; then the next owner reads the record again.
        let _ = member.commit_message(&message, CommitMode::Sync);
    }
    Ok(())
}

fn partitions_are_shared_and_taken_back(strategy: &str) -> Result<()> {
    let server = Server::start();
    let (bootstrap, topic, group) = (server.bootstrap(), unique("group"), unique("g"));
    create_topic(bootstrap, &topic, 4, &[])?;
    produce(bootstrap, &topic, None, 0..200, &[])?;
    let settings = [("partition.assignment.strategy", strategy)];
    let mut keys = HashSet::new();
    let first = member(bootstrap, &group, &topic, &settings)?;
    wait_for("all partitions for the first member", || {
        poll_into(&first, &mut keys)?;
        Ok(assigned(&first) == 4)
    })?;
    let second = member(bootstrap, &group, &topic, &settings)?;
    wait_for("two partitions each", || {
        poll_into(&first, &mut keys)?;
        poll_into(&second, &mut keys)?;
        Ok((assigned(&first), assigned(&second)) == (2, 2))
    })?;
    produce(bootstrap, &topic, None, 200..400, &[])?;
    wait_for("every record", || {
        poll_into(&first, &mut keys)?;
        poll_into(&second, &mut keys)?;
        Ok(keys.len() == 400)
    })?;
    drop(second);
    wait_for("all partitions back", || {
        poll_into(&first, &mut keys)?;
        Ok(assigned(&first) == 4)
    })
}

#[test]
fn members_share_partitions_by_range() -> Result<()> {
    partitions_are_shared_and_taken_back("range")
}

#[test]
fn members_share_partitions_cooperatively() -> Result<()> {
    partitions_are_shared_and_taken_back("cooperative-sticky")
}

#[test]
fn a_static_member_comes_back_to_its_partitions_without_a_rebalance() -> Result<()> {
    let server = Server::start();
    let (bootstrap, topic, group) = (server.bootstrap(), unique("static"), unique("g"));
    create_topic(bootstrap, &topic, 4, &[])?;
    let named = |name: &'static str| {
        [("group.instance.id", name), ("session.timeout.ms", "30000"), ("partition.assignment.strategy", "range")]
    };
    let first = member(bootstrap, &group, &topic, &named("one"))?;
    let second = member(bootstrap, &group, &topic, &named("two"))?;
    wait_for("two partitions each", || {
        let _ = (first.poll(SHORT), second.poll(SHORT));
        Ok((assigned(&first), assigned(&second)) == (2, 2))
    })?;
    let before = second.assignment()?;
    // Left as it is, as by a process that was killed; the client library waits long when it closes a static member.
    std::mem::forget(second);
    let begun = Instant::now();
    let second = member(bootstrap, &group, &topic, &named("two"))?;
    wait_for("its partitions", || {
        let _ = (first.poll(SHORT), second.poll(SHORT));
        ensure!(assigned(&first) == 2, "the other member keeps its partitions");
        Ok(assigned(&second) == 2)
    })?;
    ensure!(second.assignment()? == before);
    ensure!(begun.elapsed() < Duration::from_secs(15), "it waited for no session: {:?}", begun.elapsed());
    std::mem::forget((first, second));
    Ok(())
}

#[test]
fn a_member_that_vanishes_is_evicted_after_its_session() -> Result<()> {
    let server = Server::start();
    let (bootstrap, topic, group) = (server.bootstrap(), unique("vanish"), unique("g"));
    create_topic(bootstrap, &topic, 4, &[])?;
    let first = member(bootstrap, &group, &topic, &[])?;
    // A static member says no goodbye when it ends.
    let vanishing = member(bootstrap, &group, &topic, &[("group.instance.id", "vanishing")])?;
    wait_for("two partitions each", || {
        let _ = (first.poll(SHORT), vanishing.poll(SHORT));
        Ok((assigned(&first), assigned(&vanishing)) == (2, 2))
    })?;
    drop(vanishing);
    wait_for("all partitions", || {
        let _ = first.poll(SHORT);
        Ok(assigned(&first) == 4)
    })?;
    ensure!(first.fetch_group_list(Some(&group), PATIENCE)?.groups()[0].members().len() == 1);
    Ok(())
}
