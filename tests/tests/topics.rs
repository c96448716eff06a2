//! Topics that are there already, otherwise than wanted: what would lose turns or their order keeps the program from
//! starting, with the mend; anything else does not. On the embedded broker, and on the Apache Kafka that
//! `UNDERTONE_TEST_KAFKA` names.

use schemas::topic::{TURNS_ENRICHED, TURNS_RECEIVED};
use store::log::{Admin, TopicSpec};
use tests::Server;
use undertone::config::Config;
use undertone::topics::wanted;
use undertone::up::{self, Role};

const PARTITIONS: i32 = 2;

/// Starts the intake on topics that somebody made, by settings that somebody wrote.
async fn started(make: impl FnOnce(&mut Vec<TopicSpec>), set: impl FnOnce(&mut Config)) -> Result<Vec<String>, String> {
    let server = Server::start().await;
    let admin = Admin::connect(&server.kafka).unwrap();
    let mut topics = wanted(&[], PARTITIONS, 1);
    make(&mut topics);
    admin.create(&topics).await.unwrap();
    let mut config = Config::at(&server.folder().join("program"));
    config.kafka.bootstrap.clone_from(&server.kafka.bootstrap);
    config.kafka.partitions = PARTITIONS;
    config.context.only_machine = true;
    set(&mut config);
    let running = up::start(config, &[Role::Ingest]).await.map_err(|error| format!("{error:#}"))?;
    assert!(running.stop().await.drained);
    let topics = admin.topics().await.unwrap();
    Ok(topics.into_iter().map(|topic| format!("{} {}", topic.name, topic.partitions)).collect())
}

fn change(name: &'static str, change: impl FnOnce(&mut TopicSpec)) -> impl FnOnce(&mut Vec<TopicSpec>) {
    move |topics| change(topics.iter_mut().find(|topic| topic.name == name).expect("it is wanted"))
}

fn set(key: &'static str, value: &'static str) -> impl FnOnce(&mut TopicSpec) {
    move |topic| drop(topic.config.insert(key.to_owned(), value.to_owned()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topics_that_would_lose_turns_or_their_order_keep_the_program_from_starting() {
    let refused = |error: String, said: &[&str]| assert!(said.iter().all(|said| error.contains(said)), "{error}");

    let compacted = started(change(TURNS_RECEIVED, set("cleanup.policy", "compact")), |_| {}).await;
    let command = "--entity-name undertone.turns.received.v1 --add-config cleanup.policy=delete";
    refused(compacted.unwrap_err(), &["cleanup.policy=compact", "kafka-configs.sh --bootstrap-server", command]);

    let narrow = started(change(TURNS_ENRICHED, set("max.message.bytes", "1000")), |_| {}).await;
    refused(narrow.unwrap_err(), &["has max.message.bytes=1000", "--add-config max.message.bytes=1048576"]);

    let uneven = started(change(TURNS_ENRICHED, |topic| topic.partitions = 3), |_| {}).await;
    refused(uneven.unwrap_err(), &["has 3 partitions", "undertone topics grow --partitions 3"]);

    let copies = started(|_| {}, |config| config.kafka.replication = 2).await;
    refused(copies.unwrap_err(), &["has 1 copies of each record, wanted 2", "[kafka] replication = 1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn harmless_differences_do_not_and_a_missing_topic_of_turns_is_made_like_the_others() {
    started(change(TURNS_RECEIVED, set("retention.ms", "3600000")), |_| {}).await.unwrap();
    started(change(TURNS_RECEIVED, set("max.message.bytes", "2097152")), |_| {}).await.unwrap();
    let alike = |topics: &mut Vec<TopicSpec>| topics.iter_mut().for_each(|topic| topic.partitions = 5);
    let cut = |config: &mut Config| config.processors.stages = vec!["encode".to_owned()];
    let topics = started(alike, cut).await.unwrap();
    assert!(topics.contains(&"undertone.turns.encode.v1 5".to_owned()), "{topics:?}");
}
