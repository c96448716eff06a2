//! What processors depend on goes away and comes back while they run: they wait, say for what, and go on by themselves,
//! with nothing lost, doubled or folded twice.

use std::time::Duration;

use schemas::topic::{TURNS_ENRICHED, TURNS_RECEIVED};
use schemas::{Stamp, Turn};
use store::context::Contexts;
use store::log::TransactionalProducer;
use tests::role::{GROUP, Role, Setup, outcome, reference};
use tests::toy::ORDER;
use tests::{Log, turn};

async fn say(log: &Log, n: usize) {
    log.say(&turn("a", &n.to_string(), &format!("words {n}"))).await;
}

/// What was received is folded once by hand, and compared with what came of it, to the last byte of the contexts.
async fn assert_exactly_once(log: &Log, contexts: &Contexts, received: usize) {
    let stamped = log.read::<Turn>(TURNS_RECEIVED, received).await.into_iter();
    let stamped = stamped.map(|(at, turn)| (Stamp { partition: at.partition, offset: at.offset }, turn));
    let enriched = log.read(TURNS_ENRICHED, received).await.into_iter().map(|(_, turn)| turn).collect();
    assert_eq!(outcome(contexts, enriched).await, reference(&log.codec, stamped));
    assert_eq!(log.count(TURNS_ENRICHED).await, received, "enriched turns, doubled ones included");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_of_the_log_that_was_fenced_is_replaced() {
    let log = Log::start(1, &[]).await;
    let contexts = tests::contexts().await;
    let role = Role::start(&log, &contexts, &Setup::named("0"));
    say(&log, 0).await;
    log.read::<Turn>(TURNS_ENRICHED, 1).await;
    // As the brokers do to one whose transaction they gave up, and as another process of the same name would.
    let name = format!("{}-0", processors::group(GROUP, ORDER[0]));
    let taker = TransactionalProducer::connect(&log.kafka, &name, Duration::from_secs(10)).await.unwrap();
    for n in 1..5 {
        say(&log, n).await;
    }
    assert_exactly_once(&log, &contexts, 5).await;
    drop(taker);
    role.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_of_one_name_do_not_take_turns_for_ever() {
    let log = Log::start(2, &[]).await;
    let contexts = tests::contexts().await;
    let (one, other) = (Setup::named("0"), Setup::named("0"));
    let roles = [Role::start(&log, &contexts, &one), Role::start(&log, &contexts, &other)];
    let [mut first, mut second] = roles;
    let error = tokio::select! {
        error = first.failed() => error,
        error = second.failed() => error,
    };
    assert!(error.to_string().contains("[kafka] instance"), "it says how to mend it: {error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contexts_that_are_away_stop_the_flow_until_they_are_back() {
    let log = Log::start(1, &[]).await;
    let path = log.folder().join("contexts.sqlite");
    let contexts = Contexts::open(&path).await.unwrap();
    let role = Role::start(&log, &contexts, &Setup::named("0"));
    say(&log, 0).await;
    log.read::<Turn>(TURNS_ENRICHED, 1).await;
    let holder = rusqlite::Connection::open(&path).unwrap();
    holder.execute_batch("BEGIN IMMEDIATE").unwrap();
    for n in 1..9 {
        say(&log, n).await;
    }
    role.waits_for("contexts' store").await;
    assert_eq!(log.count(TURNS_ENRICHED).await, 1, "nothing flows meanwhile");
    holder.execute_batch("ROLLBACK").unwrap();
    assert_exactly_once(&log, &contexts, 9).await;
    // Behind each transaction stands its mark.
    let offsets: Vec<i64> = log.read::<Turn>(TURNS_ENRICHED, 9).await.iter().skip(1).map(|(at, _)| at.offset).collect();
    let alone = offsets.windows(2).filter(|pair| pair[1] > pair[0] + 1).count();
    assert!(alone < 7, "they ran one by one, as after a crash: {offsets:?}");
    role.stop().await.unwrap();
}
