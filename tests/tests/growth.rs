//! More partitions while conversations are under way: none of their turns is lost, each stays in order, and a conversation
//! that moves continues from its context; nothing is grown before everything is worked off. On the embedded broker, and on
//! the Apache Kafka that `UNDERTONE_TEST_KAFKA` names; contexts in memory, or on the Cassandra that
//! `UNDERTONE_TEST_CASSANDRA` names.

use std::collections::BTreeMap;
use std::time::Duration;

use processors::RunError;
use schemas::topic::{TURNS_ENRICHED, TURNS_RECEIVED};
use schemas::{Stamp, Turn};
use store::context::{ContextError, Contexts};
use store::log::{Admin, GroupReader};
use tests::role::{GROUP, Role, Setup, outcome, rebuild, reference};
use tests::toy::ORDER;
use tests::{Log, PATIENCE, turn};
use undertone::topics::grow::{self, Growth};

const CONVERSATIONS: usize = 12;
/// Turns of each conversation in each phase.
const TURNS: usize = 3;
const HISTORY: &str = "history";
/// As long as nobody writes, no longer than a look takes.
const QUIET_FOR: Duration = Duration::from_millis(1);

async fn say(log: &Log, received: &mut Vec<(Stamp, Turn)>) {
    for n in 0..CONVERSATIONS * TURNS {
        let said = turn(&format!("c{}", n % CONVERSATIONS), &received.len().to_string(), "some words");
        let place = log.say(&said).await;
        received.push((Stamp { partition: place.partition, offset: place.offset }, said));
    }
}

async fn plan(log: &Log, partitions: i32) -> anyhow::Result<Growth> {
    let admin = Admin::connect(&log.kafka)?;
    let existing = admin.topics().await?;
    let readers = grow::readers(GROUP, HISTORY, &ORDER, &existing);
    grow::plan(&admin, &readers, &existing, &ORDER, partitions, QUIET_FOR).await
}

async fn refused(log: &Log, partitions: i32, said: &str) {
    let error = plan(log, partitions).await.unwrap_err().to_string();
    assert!(error.contains(said), "{error}");
}

/// All enriched turns, in the order of each conversation; there are as many as were received.
async fn enriched(log: &Log, count: usize) -> Vec<Turn> {
    let mut turns: Vec<Turn> =
        log.read::<Turn>(TURNS_ENRICHED, count).await.into_iter().map(|(_, turn)| turn).collect();
    turns.sort_by_key(|turn| turn.position);
    turns
}

/// What came is what one thread makes of what was received.
async fn all_is_well(log: &Log, contexts: &Contexts, received: &[(Stamp, Turn)]) {
    let came = outcome(contexts, enriched(log, received.len()).await).await;
    assert_eq!(came, reference(&log.codec, received.iter().cloned()));
}

/// How many conversations are on several partitions.
fn moved(received: &[(Stamp, Turn)]) -> usize {
    let mut partitions: BTreeMap<&str, Vec<i32>> = BTreeMap::new();
    for (stamp, turn) in received {
        partitions.entry(&turn.conversation).or_default().push(stamp.partition);
    }
    partitions.values().filter(|of| of.iter().any(|partition| *partition != of[0])).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conversations_that_move_keep_their_order_and_their_contexts() {
    let mut log = Log::start(2, &[]).await;
    let contexts = tests::contexts().await;
    let mut received = Vec::new();
    say(&log, &mut received).await;
    refused(&log, 5, "records of undertone.turns.received.v1 behind").await;
    refused(&log, 1, "Kafka takes none away").await;

    let role = Role::start(&log, &contexts, &Setup::named("a"));
    enriched(&log, received.len()).await;
    refused(&log, 5, "members").await;
    role.stop().await.unwrap();

    // A history that has read a part only is behind as well.
    let mut history = GroupReader::join(&log.kafka, HISTORY, TURNS_ENRICHED).unwrap();
    let mut read = 0;
    while read == 0 {
        read += history.batch(1, PATIENCE).await.unwrap().len();
    }
    history.commit().await.unwrap();
    history.close().await;
    refused(&log, 5, "records of undertone.turns.enriched.v1 behind").await;
    let ends = Admin::connect(&log.kafka).unwrap().newest(TURNS_ENRICHED).await.unwrap();
    let mut history = GroupReader::join(&log.kafka, HISTORY, TURNS_ENRICHED).unwrap();
    let mut reached = BTreeMap::new();
    while ends.iter().any(|(partition, end)| *end > 0 && reached.get(partition) != Some(end)) {
        history.batch(1000, Duration::from_millis(100)).await.unwrap();
        reached.extend(history.reached().clone());
    }
    history.commit().await.unwrap();
    history.close().await;

    let growth = plan(&log, 5).await.unwrap();
    assert_eq!(growth.topics.last().map(String::as_str), Some(TURNS_RECEIVED), "it goes last: {growth:?}");
    let admin = Admin::connect(&log.kafka).unwrap();
    grow::grow(&admin, &contexts, &growth).await.unwrap();
    assert!(
        admin.topics().await.unwrap().iter().all(|topic| topic.partitions == 5 || !topic.name.contains("undertone"))
    );
    assert!(plan(&log, 5).await.unwrap().topics.is_empty(), "there is nothing left to grow");

    log.reconnect();
    say(&log, &mut received).await;
    assert!(moved(&received) >= CONVERSATIONS / 3, "most conversations move");
    let role = Role::start(&log, &contexts, &Setup::named("a"));
    all_is_well(&log, &contexts, &received).await;
    role.stop().await.unwrap();

    // Contexts that were lost afterwards are folded across both places.
    rebuild(&log, &contexts, &[]).await.unwrap();
    all_is_well(&log, &contexts, &received).await;
    say(&log, &mut received).await;
    let role = Role::start(&log, &contexts, &Setup::named("a"));
    all_is_well(&log, &contexts, &received).await;
    role.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_that_were_added_by_hand_stop_the_processors_and_a_rebuild_lets_them_go_on() {
    let mut log = Log::start(2, &[]).await;
    let contexts = tests::contexts().await;
    let mut received = Vec::new();
    say(&log, &mut received).await;
    let role = Role::start(&log, &contexts, &Setup::named("a"));
    enriched(&log, received.len()).await;
    role.stop().await.unwrap();
    let topics = [TURNS_ENRICHED.to_owned(), TURNS_RECEIVED.to_owned()];
    Admin::connect(&log.kafka).unwrap().grow(&topics, 5).await.unwrap();

    log.reconnect();
    say(&log, &mut received).await;
    let error = Role::start(&log, &contexts, &Setup::named("a")).ended().await.unwrap_err();
    assert!(matches!(error, RunError::Context(ContextError::ForeignPartition { .. })), "{error}");
    assert!(error.to_string().contains("undertone contexts rebuild"), "{error}");

    rebuild(&log, &contexts, &[]).await.unwrap();
    let role = Role::start(&log, &contexts, &Setup::named("a"));
    all_is_well(&log, &contexts, &received).await;
    role.stop().await.unwrap();
}
