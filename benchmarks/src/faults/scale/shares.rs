//! Who of a consumer group has how many partitions, as the brokers know it.

use std::time::Duration;

use anyhow::Context as _;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use store::log::Kafka;

/// How long the brokers may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Partitions of each member. None while the group is being shared anew.
pub(super) async fn of(kafka: &Kafka, group: &str) -> anyhow::Result<Vec<usize>> {
    let (bootstrap, group) = (kafka.bootstrap.clone(), group.to_owned());
    let asked = tokio::task::spawn_blocking(move || {
        let consumer: BaseConsumer =
            ClientConfig::new().set("bootstrap.servers", bootstrap).create().context("make a client")?;
        let listed = consumer.fetch_group_list(Some(&group), ANSWER_WITHIN).context("ask for the group")?;
        let members = listed.groups().iter().filter(|found| found.name() == group).flat_map(|found| found.members());
        Ok(members.filter_map(|member| member.assignment().and_then(partitions)).filter(|count| *count > 0).collect())
    });
    asked.await.context("ask for the group")?
}

/// How many partitions an assignment names: version, topics, and for each its name and its partitions (Kafka's
/// `ConsumerProtocolAssignment`).
fn partitions(assignment: &[u8]) -> Option<usize> {
    let mut rest = assignment.get(2..)?;
    let topics = number(&mut rest)?;
    let mut count = 0;
    for _ in 0..topics {
        let (length, behind) = rest.split_first_chunk()?;
        rest = behind.get(usize::from(u16::from_be_bytes(*length))..)?;
        let partitions = number(&mut rest)? as usize;
        rest = rest.get(partitions * 4..)?;
        count += partitions;
    }
    Some(count)
}

fn number(bytes: &mut &[u8]) -> Option<u32> {
    let (number, behind) = bytes.split_first_chunk()?;
    *bytes = behind;
    Some(u32::from_be_bytes(*number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_of_all_topics_are_counted_and_a_torn_assignment_is_none() {
        let bytes = [0, 1, 0, 0, 0, 2, 0, 1, b'a', 0, 0, 0, 1, 0, 0, 0, 5, 0, 1, b'b', 0, 0, 0, 0, 255, 255, 255, 255];
        assert_eq!(partitions(&bytes), Some(1));
        assert_eq!(partitions(&bytes[..15]), None);
    }
}
