//! The runner on a real log: turns are folded once, in order, whatever interrupts it. The stage counts what it folds, so
//! that a turn that is folded twice or lost shows.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use processors::{AnyStage, Chain, Failure, KILLS_MAX, Limits, RunError, Stage};
use schemas::slice::EmotionSlice;
use schemas::topic::{REJECTS, TURNS_ENRICHED};
use schemas::{Codec, Reject, Skipped, Stamp, Turn};
use store::context::{Attempt, Contexts, Write};
use store::log::Admin;
use store::log::transact::{CommitError, Event, Settings, Transactor};
use store::registry::Registry;
use tests::role::{GROUP, config, surroundings};
use tests::{Log, PATIENCE, turn};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Writes into each turn how many turns it has folded in this conversation.
struct Count {
    name: &'static str,
    fail: Arc<AtomicBool>,
}

impl Stage for Count {
    type Slice = EmotionSlice;

    fn name(&self) -> &'static str {
        self.name
    }

    fn infer(&self, _: &mut [Turn]) -> Result<(), Failure> {
        match self.fail.load(Ordering::SeqCst) {
            true => Err(Failure::Run { stage: self.name, problem: "told to fail".to_owned() }),
            false => Ok(()),
        }
    }

    fn fold(&self, slice: &mut EmotionSlice, turn: &mut Turn) -> Result<(), Failure> {
        slice.turns += 1;
        turn.skipped.push(Skipped { stage: self.name.to_owned(), reason: format!("turn_{}", slice.turns) });
        Ok(())
    }
}

/// How many turns a stage had folded when this turn came.
fn count(turn: &Turn, stage: &str) -> i64 {
    let note = turn.skipped.iter().find(|skipped| skipped.stage == stage).expect("the stage left its note");
    note.reason.trim_start_matches("turn_").parse().expect("a number")
}

const ORDER: [&str; 2] = ["one", "two"];

fn stages(fail: &Arc<AtomicBool>) -> Vec<Box<dyn AnyStage>> {
    let stage = |name| Box::new(Count { name, fail: Arc::clone(fail) }) as Box<dyn AnyStage>;
    ORDER.map(stage).into()
}

struct Role {
    task: JoinHandle<Result<(), RunError>>,
    shutdown: CancellationToken,
}

impl Role {
    fn start(log: &Log, contexts: &Contexts, stages: &[&str], fail: &Arc<AtomicBool>) -> Role {
        Role::start_as(log, contexts, stages, fail, "0")
    }

    fn start_as(log: &Log, contexts: &Contexts, stages: &[&str], fail: &Arc<AtomicBool>, instance: &str) -> Role {
        let limits = Limits { batch_turns_max: 16, session_timeout: Duration::from_secs(6), ..Limits::default() };
        let config = config(instance, stages, limits);
        let around = surroundings(&log.kafka, contexts);
        let shutdown = around.shutdown.clone();
        let fail = Arc::clone(fail);
        let load = move || -> Result<Vec<Box<dyn AnyStage>>, Failure> {
            Ok(vec![Box::new(Count { name: "one", fail: Arc::clone(&fail) }), Box::new(Count { name: "two", fail })])
        };
        let task = tokio::spawn(processors::run_stages(config, &["one", "two"], load, around));
        Role { task, shutdown }
    }

    async fn stop(self) -> Result<(), RunError> {
        self.shutdown.cancel();
        self.ended().await
    }

    async fn ended(self) -> Result<(), RunError> {
        tokio::time::timeout(PATIENCE, self.task)
            .await
            .expect("the role ends in time")
            .expect("the role does not panic")
    }
}

/// Dense positions, and each stage folded each turn once.
fn assert_in_order(enriched: &[Turn], conversation: &str, turns: usize) {
    let of: Vec<&Turn> = enriched.iter().filter(|turn| turn.conversation == conversation).collect();
    let positions: Vec<i64> = of.iter().map(|turn| turn.position.expect("a position")).collect();
    assert_eq!(positions, (1..=turns as i64).collect::<Vec<_>>(), "{conversation}");
    for turn in of {
        assert_eq!(count(turn, "one"), turn.position.unwrap(), "{conversation}: stage one folded once");
        assert_eq!(count(turn, "two"), turn.position.unwrap(), "{conversation}: stage two folded once");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn turns_are_numbered_in_order_and_repeated_ones_dropped() {
    let log = Log::start(2, &[]).await;
    let contexts = tests::contexts().await;
    let role = Role::start(&log, &contexts, &[], &Arc::default());
    for n in 0..40 {
        for conversation in ["a", "b", "c"] {
            let said = turn(conversation, &n.to_string(), "hello");
            log.say(&said).await;
            if n % 7 == 0 {
                log.say(&said).await;
            }
        }
    }
    let enriched: Vec<Turn> = log.read(TURNS_ENRICHED, 120).await.into_iter().map(|(_, turn)| turn).collect();
    for conversation in ["a", "b", "c"] {
        assert_in_order(&enriched, conversation, 40);
    }
    role.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn poison_is_rejected_with_its_bytes_and_passed_by() {
    let log = Log::start(1, &[]).await;
    let contexts = tests::contexts().await;
    log.say(&turn("a", "1", "before")).await;
    let poison: [(&[u8], Vec<u8>, &str); 4] = [
        (b"a", b"not avro".to_vec(), "malformed"),
        (b"a", vec![0, 0, 0, 77, 7, 1, 2], "unknown_schema"),
        (b"b", log.codec.encode(&turn("a", "x", "under a foreign key")).unwrap(), "invalid"),
        (b"a", log.codec.encode(&turn("a", "y", &"long ".repeat(10_000))).unwrap(), "oversized"),
    ];
    for (key, value, _) in &poison {
        log.append(key, value.clone()).await;
    }
    log.say(&turn("a", "2", "after")).await;
    let role = Role::start(&log, &contexts, &[], &Arc::default());
    let enriched: Vec<Turn> = log.read(TURNS_ENRICHED, 2).await.into_iter().map(|(_, turn)| turn).collect();
    assert_eq!(enriched.iter().map(|t| t.text.as_str()).collect::<Vec<_>>(), ["before", "after"]);
    assert_in_order(&enriched, "a", 2);
    let rejects: Vec<Reject> = log.read(REJECTS, poison.len()).await.into_iter().map(|(_, reject)| reject).collect();
    for (n, ((_, raw, reason), reject)) in poison.iter().zip(&rejects).enumerate() {
        assert_eq!((&reject.raw, reject.reason.as_str(), reject.offset), (raw, *reason, Some(n as i64 + 1)));
    }
    role.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_failed_goes_on_where_it_stood() {
    let log = Log::start(2, &[]).await;
    let path = log.folder().join("contexts.sqlite");
    let contexts = tests::cached(Contexts::open(&path).await.unwrap(), &path.display().to_string()).await;
    let fail = Arc::new(AtomicBool::new(false));
    let role = Role::start(&log, &contexts, &[], &fail);
    for n in 0..20 {
        log.say(&turn("a", &n.to_string(), "hello")).await;
    }
    log.read::<Turn>(TURNS_ENRICHED, 20).await;
    fail.store(true, Ordering::SeqCst);
    for n in 20..40 {
        log.say(&turn("a", &n.to_string(), "hello")).await;
    }
    let error = role.ended().await.unwrap_err();
    assert!(matches!(error, RunError::Stage(Failure::Run { stage: "one", .. })), "{error}");

    fail.store(false, Ordering::SeqCst);
    let role = Role::start(&log, &contexts, &[], &fail);
    let enriched: Vec<Turn> = log.read(TURNS_ENRICHED, 40).await.into_iter().map(|(_, turn)| turn).collect();
    assert_in_order(&enriched, "a", 40);
    role.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_chain_gives_the_same_turns_as_a_fused_one() {
    let log = Log::start(2, &["one"]).await;
    let contexts = tests::contexts().await;
    let fail = Arc::default();
    let head = Role::start_as(&log, &contexts, &["one"], &fail, "head");
    let tail = Role::start_as(&log, &contexts, &["two"], &fail, "tail");
    for n in 0..30 {
        for conversation in ["a", "b"] {
            log.say(&turn(conversation, &n.to_string(), "hello")).await;
        }
    }
    let enriched: Vec<Turn> = log.read(TURNS_ENRICHED, 60).await.into_iter().map(|(_, turn)| turn).collect();
    assert_in_order(&enriched, "a", 30);
    assert_in_order(&enriched, "b", 30);
    head.stop().await.unwrap();
    tail.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_later_chain_commits_behind_the_marks_of_transactions_and_care_ends_there() {
    let log = Log::start(2, &["one"]).await;
    let contexts = tests::contexts().await;
    let fail = Arc::default();
    let head = Role::start_as(&log, &contexts, &["one"], &fail, "head");
    for n in 0..10 {
        log.say(&turn("a", &n.to_string(), "hello")).await;
    }
    let between = schemas::topic::turns_after("one");
    log.read::<Turn>(&between, 10).await;
    head.stop().await.unwrap();
    // As a process leaves it that was killed with nothing in work.
    for partition in 0..2 {
        let assigned = contexts.assign("two", partition).await.unwrap();
        contexts.note_attempt("two", partition, assigned.epoch, Some(Attempt { offset: 0, count: 0 })).await.unwrap();
    }
    let tail = Role::start_as(&log, &contexts, &["two"], &fail, "tail");
    log.read::<Turn>(TURNS_ENRICHED, 10).await;
    let admin = Admin::connect(&log.kafka).unwrap();
    let ends: BTreeMap<i32, i64> = admin
        .offsets(&between)
        .await
        .unwrap()
        .into_iter()
        .map(|(p, (_, high))| (p, high))
        .filter(|(_, h)| *h > 0)
        .collect();
    let caught_up = async {
        while admin.committed(&processors::group(GROUP, "two"), &between).await.unwrap() != ends {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, caught_up).await.expect("the group commits up to the end of the topic");
    tail.stop().await.unwrap();
    let left = contexts.watermarks().await.unwrap();
    assert!(left.iter().all(|watermark| watermark.attempt.is_none()), "{left:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_whose_epoch_was_taken_takes_a_new_one_if_the_partition_is_still_its_own() {
    let log = Log::start(1, &[]).await;
    let contexts = tests::contexts().await;
    let role = Role::start(&log, &contexts, &[], &Arc::default());
    log.say(&turn("a", "1", "hello")).await;
    log.read::<Turn>(TURNS_ENRICHED, 1).await;
    contexts.assign("one", 0).await.unwrap();
    log.say(&turn("a", "2", "hello")).await;
    let enriched: Vec<Turn> = log.read(TURNS_ENRICHED, 2).await.into_iter().map(|(_, turn)| turn).collect();
    assert_in_order(&enriched, "a", 2);
    role.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_ran_ahead_of_an_abort_is_dropped_and_folded_once() {
    let log = Log::start(2, &[]).await;
    let contexts = tests::contexts().await;
    // Many times what may be uncommitted: while one batch commits, the next is read and inferred.
    for n in 0..200 {
        for conversation in ["a", "b", "c"] {
            log.say(&turn(conversation, &n.to_string(), "hello")).await;
        }
    }
    let role = Role::start(&log, &contexts, &[], &Arc::default());
    for come in [50, 250, 450] {
        log.read::<Turn>(TURNS_ENRICHED, come).await;
        // The next batch is refused by the store, and with it goes what was inferred behind it.
        contexts.assign("one", 0).await.unwrap();
        contexts.assign("one", 1).await.unwrap();
    }
    let enriched: Vec<Turn> = log.read(TURNS_ENRICHED, 600).await.into_iter().map(|(_, turn)| turn).collect();
    for conversation in ["a", "b", "c"] {
        assert_in_order(&enriched, conversation, 200);
    }
    role.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_lost_its_partition_is_not_confirmed_and_cannot_commit() {
    let log = Log::start(1, &[]).await;
    log.say(&turn("a", "1", "hello")).await;
    let kafka = log.kafka.clone();
    let settings = move |id: &str| Settings {
        group: GROUP.to_owned(),
        topic: schemas::topic::TURNS_RECEIVED.to_owned(),
        transactional_id: id.to_owned(),
        transaction_timeout: Duration::from_secs(10),
        commit_attempts_max: 5,
        session_timeout: Duration::from_secs(6),
        work_time_max: Duration::from_secs(6),
        fetch_ahead_bytes_max: 1 << 20,
    };
    let work = move || {
        let joined = |transactor: &mut Transactor| loop {
            if let Ok(Some(Event::Assigned(partitions))) = transactor.poll(Duration::from_millis(50)) {
                assert_eq!(partitions, [0]);
                return;
            }
        };
        let mut zombie = Transactor::connect(&kafka, &settings("zombie")).unwrap();
        joined(&mut zombie);
        let start = BTreeMap::from([(0, 0)]);
        zombie.confirm(&[0]).unwrap();
        assert_eq!(zombie.standing(&[0]).unwrap()[&0].committed, None, "to be asked commits nothing");
        // From here on the zombie does not look up; the group, which has committed nothing, gives its partition away.
        let mut owner = Transactor::connect(&kafka, &settings("owner")).unwrap();
        joined(&mut owner);
        let asked = zombie.confirm(&[0]);
        assert!(matches!(asked, Err(CommitError::Aborted(_))), "{asked:?}");
        owner.confirm(&[0]).unwrap();
        owner.commit(&[], &BTreeMap::from([(0, 1)])).unwrap();
        let late = zombie.commit(&[], &start);
        assert!(matches!(late, Err(CommitError::Aborted(_))), "{late:?}");
        assert_eq!(owner.standing(&[0]).unwrap()[&0].committed, Some(1));
    };
    tokio::time::timeout(PATIENCE, tokio::task::spawn_blocking(work)).await.expect("in time").unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_process_shares_the_work_and_loses_nothing() {
    let log = Log::start(4, &[]).await;
    let contexts = tests::contexts().await;
    let fail = Arc::default();
    let first = Role::start_as(&log, &contexts, &[], &fail, "first");
    let conversations: Vec<String> = (0..8).map(|n| format!("c{n}")).collect();
    let said = AtomicU32::new(0);
    let say = async |rounds: std::ops::Range<u32>| {
        for n in rounds {
            for conversation in &conversations {
                log.say(&turn(conversation, &n.to_string(), "hello")).await;
                said.fetch_add(1, Ordering::SeqCst);
            }
        }
    };
    say(0..10).await;
    let second = Role::start_as(&log, &contexts, &[], &fail, "second");
    say(10..20).await;
    log.read::<Turn>(TURNS_ENRICHED, 160).await;
    first.stop().await.unwrap();
    say(20..30).await;
    let enriched: Vec<Turn> = log.read(TURNS_ENRICHED, 240).await.into_iter().map(|(_, turn)| turn).collect();
    for conversation in &conversations {
        assert_in_order(&enriched, conversation, 30);
    }
    second.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_contexts_are_folded_again_from_the_log_to_the_same_bytes() {
    let log = Log::start(2, &[]).await;
    let contexts = tests::contexts().await;
    let fail = Arc::default();
    let role = Role::start(&log, &contexts, &[], &fail);
    for n in 0..20 {
        for conversation in ["a", "b"] {
            let said = turn(conversation, &n.to_string(), "hello");
            log.say(&said).await;
            if n % 5 == 0 {
                log.say(&said).await;
            }
        }
    }
    log.append(b"a", b"poison".to_vec()).await;
    log.say(&turn("a", "20", "the last")).await;
    log.read::<Turn>(TURNS_ENRICHED, 41).await;
    role.stop().await.unwrap();

    let lost = tests::contexts().await;
    let plan = processors::plan::<&str>(&ORDER, &[]).unwrap();
    let chain = Chain::new(stages(&fail), true, Arc::clone(&log.codec));
    let group = processors::group(GROUP, chain.name());
    let rebuilt =
        processors::rebuild::rebuild(&chain, &group, &plan, &log.kafka, &lost, &Registry::embedded()).await.unwrap();
    assert_eq!((rebuilt.turns, rebuilt.conversations), (41, 2));
    for conversation in ["a", "b"] {
        let current = async |contexts: &Contexts| {
            let records = contexts.show(conversation).await.unwrap();
            let of = |r: store::context::Record| (r.stage, r.current.stamp.offset, r.current.bytes);
            records.into_iter().map(of).collect::<Vec<_>>()
        };
        let slices = current(&lost).await;
        assert_eq!(slices.len(), 3, "sequence and two stages");
        assert_eq!(slices, current(&contexts).await, "{conversation}");
    }
    let role = Role::start(&log, &lost, &[], &fail);
    log.say(&turn("b", "20", "and on")).await;
    let enriched: Vec<Turn> = log.read(TURNS_ENRICHED, 42).await.into_iter().map(|(_, turn)| turn).collect();
    assert_in_order(&enriched, "a", 21);
    assert_in_order(&enriched, "b", 21);
    role.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_that_killed_the_process_three_times_is_rejected_and_a_failure_is_no_kill() {
    let log = Log::start(1, &[]).await;
    let contexts = tests::contexts().await;
    for n in 0..4 {
        log.say(&turn("a", &n.to_string(), &format!("turn {n}"))).await;
    }
    // What a process leaves that died for the second time with turn 1 alone in work.
    let died = async |count| {
        let assigned = contexts.assign("one", 0).await.unwrap();
        let attempt = Some(Attempt { offset: 1, count });
        contexts.note_attempt("one", 0, assigned.epoch, attempt).await.unwrap();
    };
    died(2).await;
    // A role that fails in an orderly way, however often, is not killed.
    let fail = Arc::new(AtomicBool::new(true));
    for _ in 0..3 {
        Role::start(&log, &contexts, &[], &fail).ended().await.unwrap_err();
    }
    died(2).await;
    fail.store(false, Ordering::SeqCst);
    let role = Role::start(&log, &contexts, &[], &fail);
    let enriched: Vec<Turn> = log.read(TURNS_ENRICHED, 4).await.into_iter().map(|(_, turn)| turn).collect();
    assert_in_order(&enriched, "a", 4);
    role.stop().await.unwrap();

    log.say(&turn("a", "4", "the killer")).await;
    log.say(&turn("a", "5", "after it")).await;
    let assigned = contexts.assign("one", 0).await.unwrap();
    let attempt = Some(Attempt { offset: 4, count: KILLS_MAX });
    contexts.note_attempt("one", 0, assigned.epoch, attempt).await.unwrap();
    let role = Role::start(&log, &contexts, &[], &fail);
    let (_, reject) = log.read::<Reject>(REJECTS, 1).await.remove(0);
    assert_eq!((reject.reason.as_str(), reject.offset), ("killer", Some(4)));
    let enriched: Vec<Turn> = log.read(TURNS_ENRICHED, 5).await.into_iter().map(|(_, turn)| turn).collect();
    assert_eq!(enriched[4].text, "after it");
    assert_in_order(&enriched, "a", 5);
    role.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contexts_from_another_log_stop_the_role_and_name_the_mend() {
    let log = Log::start(1, &[]).await;
    let contexts = tests::contexts().await;
    let role = Role::start(&log, &contexts, &[], &Arc::default());
    log.say(&turn("a", "1", "hello")).await;
    log.read::<Turn>(TURNS_ENRICHED, 1).await;
    role.stop().await.unwrap();

    let lost = tests::contexts().await;
    let error = Role::start(&log, &lost, &[], &Arc::default()).ended().await.unwrap_err();
    assert!(error.to_string().contains("undertone contexts rebuild"), "{error}");

    // Before the other one starts: on an Apache Kafka it is the same server, emptied.
    drop(log);
    let other = Log::start(1, &[]).await;
    let error = Role::start(&other, &contexts, &[], &Arc::default()).ended().await.unwrap_err();
    assert!(error.to_string().contains("recreated"), "{error}");
}

#[test]
fn a_turn_that_says_what_was_forgotten_lets_go_of_both_versions_and_the_numbers_go_on() {
    let chain = Chain::new(tests::toy::stages(&Default::default()), true, Arc::new(Codec::embedded()));
    let turn = |n: i64, kind: &str| Turn {
        kind: kind.to_owned(),
        ..Turn::message("test", "a", "", &n.to_string(), "words", n)
    };
    let run = |base: &[Write], mut turn: Turn, offset| {
        let versions = chain
            .slices()
            .into_iter()
            .filter_map(|slice| Some((slice, base.iter().find(|write| write.stage == slice)?.current.clone())));
        let mut conversation = chain.open("a", versions.collect()).unwrap();
        chain.infer(std::slice::from_mut(&mut turn)).unwrap();
        chain.fold(&mut conversation, &mut turn, Stamp { partition: 0, offset }).unwrap();
        (turn.position, chain.close(conversation).unwrap())
    };
    let (_, said) = run(&[], turn(1, "message"), 0);
    let (position, forgotten) = run(&said, turn(2, schemas::erasure::ERASURE), 1);
    let (_, new) = run(&[], turn(2, schemas::erasure::ERASURE), 1);
    assert_eq!(position, Some(2));
    for (write, fresh) in forgotten.iter().zip(&new) {
        let is_sequence = write.stage == processors::sequence::SLICE;
        assert_eq!(write.previous.is_some(), is_sequence, "{}", write.stage);
        assert_eq!(write.current.bytes == fresh.current.bytes, !is_sequence, "{}", write.stage);
    }
    assert_eq!(run(&forgotten, turn(1, "message"), 2).1, [], "repeats are told still");
}
