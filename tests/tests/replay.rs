//! A replay on a real log: the same settings give the same turns, others give others in the same places, and one that
//! was interrupted goes on without doubling.

use std::collections::BTreeMap;

use processors::replay::{self, Extent, Range};
use processors::{Replay, RunError};
use schemas::topic::{TURNS_ENRICHED, TURNS_RECEIVED};
use schemas::{Tier, Turn};
use store::context::Contexts;
use store::log::{Admin, TopicSpec};
use tests::role::{Role, Setup, outcome, surroundings};
use tests::toy::{self, ORDER, folded};
use tests::{Log, PATIENCE, turn};

const PARTITIONS: i32 = 2;
const ROUNDS: usize = 8;
/// Turns that are enriched: one of each round and conversation.
const TURNS: usize = 2 * ROUNDS;

/// A log with turns that were enriched, some of them said twice, and an input at fault.
async fn lived() -> (Log, Contexts, Vec<Turn>) {
    let log = Log::start(PARTITIONS, &[]).await;
    let contexts = tests::contexts().await;
    let role = Role::start(&log, &contexts, &Setup::named("0"));
    log.append(b"a", b"no turn".to_vec()).await;
    for n in 0..ROUNDS {
        for conversation in ["a", "b"] {
            let said = turn(conversation, &n.to_string(), "some words");
            log.say(&said).await;
            if n % 3 == 0 {
                log.say(&said).await;
            }
        }
    }
    let enriched = turns(&log, TURNS_ENRICHED).await;
    role.stop().await.unwrap();
    (log, contexts, enriched)
}

async fn turns(log: &Log, topic: &str) -> Vec<Turn> {
    let count = if topic == TURNS_ENRICHED { TURNS } else { log.count(topic).await };
    let mut turns: Vec<Turn> = log.read(topic, count).await.into_iter().map(|(_, turn)| turn).collect();
    turns.sort_by_key(|turn| (turn.conversation.clone(), turn.position));
    turns
}

/// The replay of everything, by the models that served.
async fn planned(log: &Log, name: &str) -> Replay {
    let admin = Admin::connect(&log.kafka).unwrap();
    let spec = TopicSpec { name: replay::topic(name), partitions: PARTITIONS, replication: 1, config: BTreeMap::new() };
    admin.create(&[spec]).await.unwrap();
    let extent = async |topic| {
        let offsets = admin.offsets(topic).await.unwrap();
        let starts = offsets.iter().map(|(partition, (low, _))| (*partition, *low)).collect();
        Extent { starts, ends: offsets.into_iter().map(|(partition, (_, high))| (partition, high)).collect() }
    };
    let (received, enriched) = (extent(TURNS_RECEIVED).await, extent(TURNS_ENRICHED).await);
    Replay { name: name.to_owned(), range: Range::default(), tier: None, received, enriched }
}

/// Runs it until its group has come to the ends, or it fails.
async fn run(log: &Log, contexts: &Contexts, replay: &Replay, setup: &Setup) -> Result<(), RunError> {
    let around = surroundings(&log.kafka, contexts);
    let shutdown = around.shutdown.clone();
    let hand = setup.hand.clone();
    let load = move || Ok(toy::stages(&hand));
    let group = processors::group(&replay::group(&replay.name), setup.stages.first().unwrap_or(&ORDER[0]));
    let admin = Admin::connect(&log.kafka).unwrap();
    let done = async {
        let received = &replay.received;
        while received.before(&admin.committed(&group, TURNS_RECEIVED).await.unwrap()) < received.len() {}
        shutdown.cancel();
    };
    let work = processors::run_replay_stages(setup.config(), replay.clone(), &ORDER, load, around);
    let (result, ()) = tokio::time::timeout(PATIENCE, async {
        let mut work = std::pin::pin!(work);
        tokio::select! {
            result = &mut work => (result, ()),
            () = done => (work.await, ()),
        }
    })
    .await
    .expect("it ends in time");
    result
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_settings_give_the_same_turns_and_contexts_and_the_live_ones_stay() {
    let (log, live, enriched) = lived().await;
    let before = outcome(&live, enriched.clone()).await;
    let (replay, contexts) = (planned(&log, "same").await, tests::contexts().await);
    run(&log, &contexts, &replay, &Setup::named("0")).await.unwrap();
    let replayed = turns(&log, &replay::topic("same")).await;
    assert_eq!(replayed, enriched);
    let mut slices = before.slices.clone();
    slices.retain(|(_, stage), _| ORDER.contains(&stage.as_str()));
    assert_eq!(outcome(&contexts, replayed).await.slices, slices, "positions are given, not counted anew");
    assert_eq!(log.count(TURNS_ENRICHED).await, TURNS, "nothing was written to the live topic");
    assert_eq!(outcome(&live, enriched).await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_from_the_beginning_finds_nothing_of_what_was_forgotten() {
    let (log, _, mut enriched) = lived().await;
    let gone = enriched.iter().position(|turn| turn.conversation == "b").unwrap() + 2;
    log.forget("a", &[]).await;
    log.forget("b", &[enriched[gone].id]).await;
    let (replay, contexts) = (planned(&log, "forgetful").await, tests::contexts().await);
    run(&log, &contexts, &replay, &Setup::named("0")).await.unwrap();
    let replayed = turns(&log, &replay::topic("forgetful")).await;
    enriched.remove(gone);
    enriched.retain(|turn| turn.conversation != "a");
    let place = |turn: &Turn| (turn.id, turn.position);
    assert_eq!(replayed.iter().map(place).collect::<Vec<_>>(), enriched.iter().map(place).collect::<Vec<_>>());
    let kept = outcome(&contexts, replayed).await.slices;
    assert!(!kept.is_empty() && kept.keys().all(|(conversation, _)| conversation == "b"), "{:?}", kept.keys());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_tier_gives_its_parts_in_the_same_places() {
    let (log, _, enriched) = lived().await;
    let replay = Replay { tier: Some(Tier::Full), ..planned(&log, "full").await };
    run(&log, &tests::contexts().await, &replay, &Setup::named("0")).await.unwrap();
    let replayed = turns(&log, &replay::topic("full")).await;
    let place = |turn: &Turn| (turn.id, turn.position, turn.stamp, turn.text.clone());
    assert_eq!(replayed.iter().map(place).collect::<Vec<_>>(), enriched.iter().map(place).collect::<Vec<_>>());
    for (turn, was) in replayed.iter().zip(&enriched) {
        assert_eq!((turn.tier, was.tier), (Some(Tier::Full), Some(Tier::Fast)));
        assert!(turn.skipped.iter().all(|note| note.reason.starts_with("full")), "{:?}", turn.skipped);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_of_some_stages_of_a_range_leaves_the_others_as_they_were() {
    let (log, _, enriched) = lived().await;
    let of_a: Vec<&Turn> = enriched.iter().filter(|turn| turn.conversation == "a").collect();
    let (from, until) = (of_a[2].stamp.unwrap(), of_a[6].stamp.unwrap());
    let mut replay = Replay { tier: Some(Tier::Full), ..planned(&log, "some").await };
    replay.range = Range {
        from: [(from.partition, from.offset)].into(),
        until: [(until.partition, until.offset)].into(),
        partitions: vec![from.partition],
        ..Range::default()
    };
    let setup = Setup { stages: vec!["two"], ..Setup::named("0") };
    run(&log, &tests::contexts().await, &replay, &setup).await.unwrap();
    let replayed = turns(&log, &replay::topic("some")).await;
    let replayed: Vec<&Turn> = replayed.iter().filter(|turn| turn.conversation == "a").collect();
    assert_eq!(replayed.len(), 4, "from the first bound up to the second");
    for (n, (turn, was)) in replayed.into_iter().zip(&of_a[2..6]).enumerate() {
        assert_eq!(turn.position, was.position);
        assert_eq!(folded(turn, "two"), n as i64 + 1, "its contexts begin with the range");
        let note = |turn: &Turn, place: usize| turn.skipped[place].clone();
        assert!(note(turn, 1).reason.starts_with("full"));
        assert_eq!((note(turn, 0), note(turn, 2)), (note(was, 0), note(was, 2)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_that_failed_in_the_middle_goes_on_without_doubling() {
    let (log, _, enriched) = lived().await;
    let (replay, contexts) = (planned(&log, "again").await, tests::contexts().await);
    let mut setup = Setup::named("0");
    setup.limits.batch_turns_max = 3;
    setup.hand.hold();
    let fail_later = async {
        setup.hand.holding().await;
        setup.hand.fail_from_now();
    };
    let (failed, ()) = tokio::join!(run(&log, &contexts, &replay, &setup), fail_later);
    assert!(matches!(failed, Err(RunError::Stage(_))), "{failed:?}");
    let written = log.count(&replay::topic("again")).await;
    assert!((1..TURNS).contains(&written), "{written} turns: it failed in the middle");
    setup.hand.fail(false);
    run(&log, &contexts, &replay, &setup).await.unwrap();
    assert_eq!(turns(&log, &replay::topic("again")).await, enriched);
}
