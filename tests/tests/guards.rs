//! Each guard of the exactly-once shell at work: what would break without it happens here on purpose, at a moment that the
//! test chooses, and nothing is lost, doubled or folded twice; or the role stops and names the mend.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use processors::{KILLS_MAX, RunError};
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use schemas::topic::{REJECTS, TURNS_ENRICHED, TURNS_RECEIVED};
use schemas::{Reject, Stamp, Turn};
use store::context::Contexts;
use store::log::transact::{CommitError, Event, Settings, Transactor};
use store::log::{Admin, Kafka, LogError, Producer, ProducerLimits, Record, TopicSpec};
use tests::proxy::{Held, Kind, Proxy};
use tests::role::{GROUP, Outcome, Role, Setup, forget, outcome, rebuild, reference};
use tests::toy::{Hand, KILLER, MORTAL, ORDER};
use tests::{Log, PATIENCE, turn};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Says one turn of a conversation.
async fn say(log: &Log, conversation: &str, n: usize) {
    log.say(&turn(conversation, &n.to_string(), &format!("words {n}"))).await;
}

async fn enriched(log: &Log, count: usize) -> Vec<Turn> {
    log.read(TURNS_ENRICHED, count).await.into_iter().map(|(_, turn)| turn).collect()
}

/// The turns that were received, with their places.
async fn stamped(log: &Log, count: usize) -> Vec<(Stamp, Turn)> {
    let received = log.read::<Turn>(TURNS_RECEIVED, count).await.into_iter();
    received.map(|(at, turn)| (Stamp { partition: at.partition, offset: at.offset }, turn)).collect()
}

/// What was received is folded once by hand, and compared with what came of it, to the last byte of the contexts.
async fn assert_exactly_once(log: &Log, contexts: &Contexts, received: usize) {
    let wanted = reference(&log.codec, stamped(log, received).await);
    let turns = wanted.turns.values().map(Vec::len).sum();
    let came: Outcome = outcome(contexts, enriched(log, turns).await).await;
    assert_eq!(came, wanted);
    // Nothing stands behind what was compared.
    assert_eq!(log.count(TURNS_ENRICHED).await, turns, "enriched turns, doubled ones included");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_zombie_that_wakes_before_it_loads_contexts_changes_nothing() {
    zombie_wakes(Hand::hold).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_zombie_that_wakes_with_contexts_to_write_writes_nothing() {
    zombie_wakes(Hand::hold_fold).await;
}

async fn zombie_wakes(hold: fn(&Hand)) {
    let log = Log::start(1, &[]).await;
    let contexts = tests::contexts().await;
    let zombie_setup = Setup::named("zombie");
    let mut zombie = Role::start(&log, &contexts, &zombie_setup);
    say(&log, "a", 0).await;
    enriched(&log, 1).await;
    hold(&zombie_setup.hand);
    say(&log, "a", 1).await;
    zombie_setup.hand.holding().await;
    // It is silent for too long: the group gives its partition to another, which folds the same turn and more.
    let owner = Role::start(&log, &contexts, &Setup::named("owner"));
    say(&log, "a", 2).await;
    enriched(&log, 3).await;
    zombie_setup.hand.release();
    zombie.without_partitions().await;
    for n in 3..6 {
        say(&log, "a", n).await;
    }
    assert_exactly_once(&log, &contexts, 6).await;
    zombie.stop().await.unwrap();
    owner.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_zombie_that_wakes_while_the_owner_commits_the_first_batch_of_the_group_changes_nothing() {
    let log = Log::start(1, &[]).await;
    let contexts = tests::contexts().await;
    let zombie_setup = Setup::named("zombie");
    zombie_setup.hand.hold();
    let mut zombie = Role::start(&log, &contexts, &zombie_setup);
    say(&log, "a", 0).await;
    zombie_setup.hand.holding().await;
    // The owner has written its contexts and is about to commit the group's first batch.
    let proxy = Proxy::start(&log.kafka).await;
    proxy.hold(Held::Request(Kind::Produce));
    let owner = Role::start(&log, &contexts, &Setup { kafka: Some(proxy.kafka(&log.kafka)), ..Setup::named("owner") });
    proxy.holding().await;
    // The zombie is told that its epoch is old, and takes a newer one before it learns that the partition is gone.
    zombie_setup.hand.release();
    zombie.without_partitions().await;
    proxy.release();
    for n in 1..4 {
        say(&log, "a", n).await;
    }
    assert_exactly_once(&log, &contexts, 4).await;
    zombie.stop().await.unwrap();
    owner.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_takes_longer_than_the_group_waits_is_read_again_by_the_same_role() {
    let log = Log::start(1, &[]).await;
    let contexts = tests::contexts().await;
    let setup = Setup::named("0");
    let role = Role::start(&log, &contexts, &setup);
    say(&log, "a", 0).await;
    enriched(&log, 1).await;
    setup.hand.hold();
    say(&log, "a", 1).await;
    setup.hand.holding().await;
    // The group gives it up, and there is nobody else.
    let kafka = log.kafka.clone();
    blocking(move || group_is(&kafka, &processors::group(GROUP, ORDER[0]), "Empty")).await;
    setup.hand.release();
    say(&log, "a", 2).await;
    assert_exactly_once(&log, &contexts, 3).await;
    role.stop().await.unwrap();
}

fn settings(id: &str) -> Settings {
    Settings {
        group: GROUP.to_owned(),
        topic: TURNS_RECEIVED.to_owned(),
        transactional_id: id.to_owned(),
        transaction_timeout: Duration::from_secs(3),
        commit_attempts_max: 5,
        session_timeout: Duration::from_secs(3),
        work_time_max: Duration::from_secs(3),
        fetch_ahead_bytes_max: 1 << 20,
    }
}

/// Polls until the group has given it the partition.
fn joined(transactor: &mut Transactor) {
    let event = changed(transactor);
    assert!(matches!(&event, Event::Assigned(partitions) if partitions == &[0]), "{event:?}");
    transactor.assign(&BTreeMap::from([(0, 0)])).unwrap();
}

/// Polls until the group gives or takes.
fn changed(transactor: &mut Transactor) -> Event {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        match transactor.poll(Duration::from_millis(20)) {
            Ok(Some(event @ (Event::Assigned(_) | Event::Revoked))) => return event,
            Ok(_) | Err(LogError::Transient(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
    panic!("the group did not move in time");
}

/// Waits until the broker says that of a group; who waits bounds it.
fn group_is(kafka: &Kafka, group: &str, state: &str) {
    let client: BaseConsumer = ClientConfig::new().set("bootstrap.servers", &kafka.bootstrap).create().unwrap();
    let known = || client.fetch_group_list(Some(group), PATIENCE).unwrap();
    while known().groups().iter().all(|known| known.state() != state) {}
}

/// An enriched turn that says who wrote it.
fn signed(log: &Log, by: &str) -> Record {
    let turn = turn("a", by, by);
    Record {
        topic: TURNS_ENRICHED.to_owned(),
        partition: Some(0),
        key: Some(turn.conversation.clone().into_bytes()),
        value: Some(log.codec.encode(&turn).unwrap()),
        headers: Vec::new(),
        timestamp: turn.received_at,
    }
}

/// Blocking work beside the test, within [`PATIENCE`].
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::time::timeout(PATIENCE, tokio::task::spawn_blocking(work)).await.expect("in time").expect("no panic")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_lost_its_partition_and_rejoined_commits_nothing_of_the_batch_before() {
    let log = Log::start(1, &[]).await;
    say(&log, "a", 0).await;
    let (kafka, late, good) = (log.kafka.clone(), signed(&log, "the member before"), signed(&log, "the owner"));
    blocking(move || {
        let mut member = Transactor::connect(&kafka, &settings("member")).unwrap();
        joined(&mut member);
        // It works on its batch for too long; another gets the partition, does the work, and leaves.
        let mut owner = Transactor::connect(&kafka, &settings("owner")).unwrap();
        joined(&mut owner);
        owner.commit(&[good], &BTreeMap::from([(0, 1)])).unwrap();
        drop(owner);
        let refused = member.commit(std::slice::from_ref(&late), &BTreeMap::from([(0, 1)]));
        assert!(matches!(refused, Err(CommitError::Aborted(_))), "{refused:?}");
        // The group has nobody else now, and takes it in again. What it held is of a time that has passed.
        let event = changed(&mut member);
        assert!(matches!(event, Event::Revoked), "a loss goes before what is given anew: {event:?}");
        // The client has rejoined by now, under a new generation that could commit; the batch is of the one before.
        group_is(&kafka, &settings("member").group, "Stable");
        let refused = member.commit(std::slice::from_ref(&late), &BTreeMap::from([(0, 1)]));
        assert!(matches!(refused, Err(CommitError::Aborted(_))), "{refused:?}");
        joined(&mut member);
        assert_eq!(member.standing(&[0]).unwrap()[&0].committed, Some(1));
    })
    .await;
    let turns = enriched(&log, 1).await;
    assert_eq!(turns[0].text, "the owner");
    assert_eq!(log.count(TURNS_ENRICHED).await, 1);
}

thread_local! {
    /// Who is told of the warnings of this thread.
    static TOLD: RefCell<Option<mpsc::UnboundedSender<()>>> = const { RefCell::new(None) };
}

/// The process's subscriber. One for a thread alone could miss what another thread met first: tracing remembers for each
/// place in the code whether anybody listens.
struct Warnings;

impl tracing::Subscriber for Warnings {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() == tracing::Level::WARN
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, _: &tracing::Event<'_>) {
        TOLD.with_borrow(|told| {
            if let Some(told) = told {
                let _ = told.send(());
            }
        });
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_timed_out_is_asked_for_again_and_happens_once() {
    let log = Log::start(1, &[]).await;
    say(&log, "a", 0).await;
    let proxy = Proxy::start(&log.kafka).await;
    let (kafka, record) = (proxy.kafka(&log.kafka), signed(&log, "the member"));
    proxy.hold(Held::Answer(Kind::EndTransaction));
    let (warn, mut warned) = mpsc::unbounded_channel();
    tracing::subscriber::set_global_default(Warnings).expect("no other test sets one");
    let work = blocking(move || {
        let mut member = Transactor::connect(&kafka, &settings("member")).unwrap();
        joined(&mut member);
        TOLD.set(Some(warn));
        member.commit(&[record], &BTreeMap::from([(0, 1)])).unwrap();
        TOLD.set(None);
        assert_eq!(member.standing(&[0]).unwrap()[&0].committed, Some(1));
    });
    let answer = async {
        proxy.holding().await;
        warned.recv().await.expect("the member warns that the outcome is in doubt");
        proxy.release();
    };
    tokio::join!(work, answer);
    enriched(&log, 1).await;
    assert_eq!(log.count(TURNS_ENRICHED).await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_stays_in_doubt_is_settled_by_another_client_of_the_log() {
    let log = Log::start(1, &[]).await;
    let contexts = tests::contexts().await;
    let proxy = Proxy::start(&log.kafka).await;
    let mut setup = Setup { kafka: Some(proxy.kafka(&log.kafka)), ..Setup::named("0") };
    (setup.limits.transaction_timeout, setup.limits.commit_attempts_max) = (Duration::from_secs(3), 2);
    let mut role = Role::start(&log, &contexts, &setup);
    say(&log, "a", 0).await;
    enriched(&log, 1).await;
    proxy.hold(Held::Answer(Kind::EndTransaction));
    say(&log, "a", 1).await;
    // It is asked for several times, and had happened all the same.
    role.without_partitions().await;
    proxy.release();
    say(&log, "a", 2).await;
    assert_exactly_once(&log, &contexts, 3).await;
    role.stop().await.unwrap();
}

/// Contexts in a file, behind one cache for all files of a log, as where one comes from a backup.
async fn open(log: &Log, path: &Path) -> Contexts {
    tests::cached(Contexts::open(path).await.unwrap(), &log.folder().display().to_string()).await
}

/// Lets a role fold what was said, up to so many turns.
async fn work(log: &Log, path: &Path, turns: usize) {
    let contexts = open(log, path).await;
    let role = Role::start(log, &contexts, &Setup::named("0"));
    enriched(log, turns).await;
    role.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_from_an_older_backup_or_without_its_last_write_stops_the_role_and_is_rebuilt() {
    for lost in [7, 1] {
        let log = Log::start(1, &[]).await;
        let (path, backup) = (log.folder().join("contexts.sqlite"), log.folder().join("backup.sqlite"));
        for n in 0..3 {
            say(&log, "a", n).await;
        }
        work(&log, &path, 3).await;
        let database = rusqlite::Connection::open(&path).unwrap();
        database.execute("VACUUM INTO ?1", [backup.to_str().unwrap()]).unwrap();
        for n in 3..3 + lost {
            say(&log, "a", n).await;
        }
        work(&log, &path, 3 + lost).await;

        let contexts = open(&log, &backup).await;
        let error = Role::start(&log, &contexts, &Setup::named("0")).ended().await.unwrap_err();
        assert!(error.to_string().contains("undertone contexts rebuild"), "{error}");
        rebuild(&log, &contexts, &[]).await.unwrap();
        let role = Role::start(&log, &contexts, &Setup::named("0"));
        say(&log, "a", 3 + lost).await;
        assert_exactly_once(&log, &contexts, 4 + lost).await;
        role.stop().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_refuses_a_batch_ends_the_role_and_the_batch_is_folded_once_when_it_takes_it() {
    let log = Log::start(1, &[]).await;
    let path = log.folder().join("contexts.sqlite");
    say(&log, "a", 0).await;
    work(&log, &path, 1).await;
    let database = rusqlite::Connection::open(&path).unwrap();
    database
        .execute_batch("CREATE TRIGGER full BEFORE INSERT ON slices BEGIN SELECT raise(ABORT, 'told to refuse'); END;")
        .unwrap();
    let contexts = open(&log, &path).await;
    let role = Role::start(&log, &contexts, &Setup::named("0"));
    say(&log, "a", 1).await;
    let error = role.ended().await.unwrap_err();
    assert!(matches!(error, RunError::Context(_)), "{error}");
    database.execute_batch("DROP TRIGGER full").unwrap();
    let role = Role::start(&log, &contexts, &Setup::named("0"));
    say(&log, "a", 2).await;
    assert_exactly_once(&log, &contexts, 3).await;
    role.stop().await.unwrap();
}

fn admin(kafka: &Kafka) -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", &kafka.bootstrap).create().unwrap()
}

/// Deletes a topic and makes it anew.
async fn recreate(kafka: &Kafka, topic: &str) {
    admin(kafka).delete_topics(&[topic], &AdminOptions::new()).await.unwrap();
    let spec = TopicSpec { name: topic.to_owned(), partitions: 1, replication: 1, config: BTreeMap::new() };
    let creation = Admin::connect(kafka).unwrap();
    // Apache Kafka deletes in the background, and says until then that the topic exists.
    let recreated = async { while creation.create(std::slice::from_ref(&spec)).await.unwrap().is_empty() {} };
    tokio::time::timeout(PATIENCE, recreated).await.expect("the topic is made anew in time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_committed_offset_that_retention_has_passed_stops_the_role() {
    let log = Log::start(1, &[]).await;
    let contexts = tests::contexts().await;
    let role = Role::start(&log, &contexts, &Setup::named("0"));
    say(&log, "a", 0).await;
    enriched(&log, 1).await;
    role.stop().await.unwrap();
    for n in 1..4 {
        say(&log, "a", n).await;
    }
    let mut gone = TopicPartitionList::new();
    gone.add_partition_offset(TURNS_RECEIVED, 0, Offset::Offset(3)).unwrap();
    admin(&log.kafka).delete_records(&gone, &AdminOptions::new()).await.unwrap();
    let error = Role::start(&log, &contexts, &Setup::named("0")).ended().await.unwrap_err();
    assert!(error.to_string().contains("the committed offset 1 is outside of the log (3 to 4)"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recreated_topic_that_is_shorter_stops_the_role_and_forgetting_mends_it() {
    for turns in [0, 2] {
        let log = Log::start(1, &[]).await;
        let contexts = tests::contexts().await;
        let role = Role::start(&log, &contexts, &Setup::named("0"));
        for n in 0..3 {
            say(&log, "a", n).await;
        }
        enriched(&log, 3).await;
        role.stop().await.unwrap();
        recreate(&log.kafka, TURNS_RECEIVED).await;
        let producer = Producer::connect(&log.kafka, &ProducerLimits::default()).unwrap();
        for n in 0..turns {
            let said = turn("b", &n.to_string(), "words");
            let (key, value) = (said.conversation.clone().into_bytes(), log.codec.encode(&said).unwrap());
            let topic = TURNS_RECEIVED.to_owned();
            let record = Record { topic, key: Some(key), value: Some(value), ..Record::default() };
            producer.append(record).await.unwrap();
        }
        let error = Role::start(&log, &contexts, &Setup::named("0")).ended().await.unwrap_err();
        assert!(error.to_string().contains("recreated"), "{turns} turns: {error}");
        assert!(error.to_string().contains("undertone contexts rebuild"), "{turns} turns: {error}");

        forget(&log, &contexts).await.unwrap();
        let role = Role::start(&log, &contexts, &Setup::named("0"));
        let positions: Vec<i64> = enriched(&log, 3 + turns).await[3..].iter().filter_map(|t| t.position).collect();
        assert_eq!(positions, (1..=turns as i64).collect::<Vec<_>>());
        role.stop().await.unwrap();
    }
}

/// Processors in a process of their own, which a turn can kill.
struct Mortal {
    /// The process ends in an orderly way when this is dropped.
    _stdin: ChildStdin,
    ended: JoinHandle<ExitStatus>,
}

impl Mortal {
    fn start(log: &Log, contexts: &Path) -> Mortal {
        let mut child = Command::new(env!("CARGO_BIN_EXE_mortal"))
            .args([log.kafka.bootstrap.as_ref(), contexts.as_os_str()])
            .env(MORTAL, "1")
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("start the process");
        let stdin = child.stdin.take().expect("it is piped");
        Mortal { _stdin: stdin, ended: tokio::task::spawn_blocking(move || child.wait().expect("it ends")) }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_that_kills_the_process_is_rejected_after_three_deaths_alone_and_its_neighbours_are_folded_once() {
    let log = Log::start(1, &[]).await;
    let path = log.folder().join("contexts.sqlite");
    say(&log, "a", 0).await;
    log.say(&turn("a", "killer", KILLER)).await;
    say(&log, "a", 1).await;
    let mut rejected = Box::pin(log.read::<Reject>(REJECTS, 1));
    let mut deaths = 0;
    let (reject, last) = loop {
        let mut mortal = Mortal::start(&log, &path);
        tokio::select! {
            status = &mut mortal.ended => {
                assert!(status.unwrap().code().is_none(), "it dies of a signal");
                deaths += 1;
                assert!(deaths <= 1 + KILLS_MAX, "the killer is rejected in the end");
            }
            mut rejects = &mut rejected => break (rejects.remove(0).1, mortal),
        }
    };
    assert_eq!(deaths, 1 + KILLS_MAX, "once in company, then alone");
    assert_eq!((reject.reason.as_str(), reject.offset), ("killer", Some(1)));
    let came = enriched(&log, 2).await;
    drop(last);
    let mut received = stamped(&log, 3).await;
    received.retain(|(_, turn)| turn.text != KILLER);
    let contexts = open(&log, &path).await;
    assert_eq!(outcome(&contexts, came).await, reference(&log.codec, received));
    assert_eq!(log.count(TURNS_ENRICHED).await, 2);
}
