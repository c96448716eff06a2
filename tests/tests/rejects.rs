//! Inputs at fault on a real log: driven in again once, whatever interrupts it, and never for ever; and a role that stops
//! before it drains a topic into them.

use std::time::Duration;

use processors::{AnyStage, Limits, RejectsBound, RunError};
use schemas::topic::{REDRIVES, REJECTS, TURNS_ENRICHED, TURNS_RECEIVED};
use schemas::{Redrive, Reject, Turn, reject};
use store::Durability;
use store::context::Contexts;
use store::keys::Keys;
use store::log::{Admin, Message, Producer, ProducerLimits, Record};
use store::registry::Registry;
use tests::role::{config, surroundings};
use tests::{Log, Nothing, PATIENCE, now, turn};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use undertone::rejects::redrive::{Bounds, Outcome, Report, Run, Step, Taken};
use undertone::rejects::{Reader, Selection};

const ATTEMPTS_MAX: i32 = 3;

fn bounds(batch_max: usize) -> Bounds {
    let parser = ingest::websocket::frame::Bounds { text_bytes_max: 1000, batch_frames_max: 10 };
    Bounds { limit: usize::MAX, attempts_max: ATTEMPTS_MAX, batch_max, batch_bytes_max: 1 << 20, parser }
}

/// A reject of the first processor, whose turn is good by now.
fn reject_of(log: &Log, turn: &Turn) -> Reject {
    Reject {
        id: turn.id,
        at: now(),
        stage: "processors".to_owned(),
        reason: "killer".to_owned(),
        detail: "the process died".to_owned(),
        attempt: 1,
        source: None,
        bot: None,
        topic: Some(TURNS_RECEIVED.to_owned()),
        partition: Some(0),
        offset: Some(0),
        key: Some(turn.conversation.clone().into_bytes()),
        headers: Vec::new(),
        raw: log.codec.encode(turn).unwrap(),
    }
}

/// An update that an older release did not know.
fn reject_of_intake(raw: &[u8]) -> Reject {
    Reject {
        id: uuid(raw),
        at: now(),
        stage: "ingest".to_owned(),
        reason: "unknown_kind".to_owned(),
        detail: "upgrade".to_owned(),
        attempt: 1,
        source: Some("telegram".to_owned()),
        bot: Some("helper".to_owned()),
        topic: None,
        partition: None,
        offset: None,
        key: None,
        headers: Vec::new(),
        raw: raw.to_vec(),
    }
}

fn uuid(raw: &[u8]) -> uuid::Uuid {
    schemas::turn_id("telegram", "", "helper", &String::from_utf8_lossy(raw))
}

async fn write(log: &Log, rejects: &[Reject]) {
    let producer = Producer::connect(&log.kafka, &ProducerLimits::default()).unwrap();
    for reject in rejects {
        let record = Record {
            topic: REJECTS.to_owned(),
            partition: None,
            key: reject.key.clone(),
            value: Some(log.codec.encode(reject).unwrap()),
            headers: Vec::new(),
            timestamp: now(),
        };
        producer.append(record).await.unwrap();
    }
}

async fn redrive(log: &Log, selection: &Selection, dry_run: bool) -> Report {
    let registry = Registry::embedded();
    let run = Run { kafka: &log.kafka, registry: &registry, selection, bounds: &bounds(100), dry_run, now: now() };
    tokio::time::timeout(PATIENCE, run.go(|_| {}, async |_| {})).await.expect("in time").unwrap()
}

/// Records of a topic as a committed reader sees them; the marks of transactions are none.
async fn committed(log: &Log, topic: &str) -> Vec<Message> {
    use store::log::{From, Tail};
    let mut tail = Tail::open(&log.kafka, topic, From::Beginning).await.unwrap();
    let ends = tail.ends().await.unwrap();
    let mut messages = Vec::new();
    while ends.iter().any(|(partition, end)| tail.positions().get(partition) < Some(end)) {
        if let Ok(message) = tokio::time::timeout(Duration::from_millis(20), tail.next()).await {
            messages.push(message.unwrap());
        }
    }
    messages
}

fn attempt(message: &Message) -> i32 {
    reject::attempt(message.headers.iter().map(|(name, value)| (name.as_str(), value.as_slice())))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_is_killed_at_every_step_drives_each_reject_in_once() {
    const REJECTED: usize = 7;
    let log = Log::start(1, &[]).await;
    let turns: Vec<Turn> = (0..REJECTED).map(|n| turn("a", &n.to_string(), "hello")).collect();
    let rejects: Vec<Reject> = turns.iter().map(|turn| reject_of(&log, turn)).collect();
    write(&log, &rejects).await;
    let selection = Selection::default();
    // Each run dies at its first step of this kind; a run that gets to its end has none left.
    let mut done = None;
    for life in 0.. {
        let dies_at = if life % 2 == 0 { Step::Written } else { Step::Committed };
        let bounds = bounds(2);
        let run = Run {
            kafka: &log.kafka,
            registry: &Registry::embedded(),
            selection: &selection,
            bounds: &bounds,
            dry_run: false,
            now: now(),
        };
        let dying = Notify::new();
        let killed = async |step: Step| {
            if step == dies_at {
                dying.notify_one();
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            report = run.go(|_| {}, killed) => {
                done = Some(report.unwrap());
                break;
            }
            // The future is dropped with its producer, its transaction open or just committed.
            () = dying.notified() => {}
            () = tokio::time::sleep(PATIENCE) => panic!("a run gets on in time"),
        }
        assert!(life < 4 * REJECTED, "runs get on");
    }
    let report = done.expect("the last run gets to its end");
    assert_eq!((report.redriven, report.redriven_before), (0, REJECTED as u64));
    let redriven = committed(&log, TURNS_RECEIVED).await;
    let ids: Vec<_> = redriven
        .iter()
        .map(|message| log.codec.decode::<Turn>(message.value.as_deref().unwrap()).unwrap().id)
        .collect();
    assert_eq!(ids, turns.iter().map(|turn| turn.id).collect::<Vec<_>>(), "each once, in order");
    assert!(redriven.iter().all(|message| attempt(message) == 2));
    let notes = log.read::<Redrive>(REDRIVES, REJECTED).await;
    assert_eq!(committed(&log, REDRIVES).await.len(), REJECTED);
    assert!(notes.iter().all(|(_, note)| note.outcome == "record" && note.topic.as_deref() == Some(TURNS_RECEIVED)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_sealed_stays_sealed_and_what_was_not_is_sealed_on_its_way() {
    let log = Log::start(1, &[]).await;
    let keys = Keys::open(&log.folder().join("keys.sqlite"), Durability::Kill).await.unwrap();
    let (said, forgotten) = (turn("a", "1", "the vault is open"), turn("b", "2", "nobody knows"));
    let (stays, goes) = (keys.current("a", "", 0).await.unwrap(), keys.current("b", "", 0).await.unwrap());
    let sealed = |turn: &Turn, key| Reject { raw: log.codec.seal(turn, key).unwrap(), ..reject_of(&log, turn) };
    let update = br#"{"update_id":7,"message":{"message_id":1,"date":1700000000,"chat":{"id":5,"type":"private"},"text":"a secret"}}"#;
    let gone = reject_of_intake(b"it was at fault").forgotten();
    let rejects = [sealed(&said, &stays), sealed(&forgotten, &goes), reject_of_intake(update), gone];
    write(&log, &rejects).await;
    keys.destroy("b", &[goes.id]).await.unwrap();

    let registry = Registry::embedded().opening(keys);
    let (selection, bounds) = (Selection::default(), bounds(100));
    let run = Run {
        kafka: &log.kafka,
        registry: &registry,
        selection: &selection,
        bounds: &bounds,
        dry_run: false,
        now: now(),
    };
    let mut refused = Vec::new();
    let taken = |taken: &Taken| {
        if let Outcome::Refused(why) = &taken.outcome {
            refused.push((taken.found.reject.id, why.clone()));
        }
    };
    let report = tokio::time::timeout(PATIENCE, run.go(taken, async |_| {})).await.expect("in time").unwrap();
    assert_eq!((report.redriven, refused.len()), (2, 2), "{report:?}");
    assert!(refused[0].0 == forgotten.id && refused.iter().all(|(_, why)| why.contains("forgotten")), "{refused:?}");
    let written = committed(&log, TURNS_RECEIVED).await;
    assert_eq!(written[0].value, Some(rejects[0].raw.clone()));
    let value = written[1].value.as_deref().unwrap();
    assert!(!value.windows(6).any(|part| part == b"secret"), "it is sealed now");
    registry.know_now::<Turn>([value]).await.unwrap();
    assert_eq!(registry.codec().decode::<Turn>(value).unwrap().text, "a secret");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_run_fences_the_first_and_doubles_nothing() {
    let log = Log::start(1, &[]).await;
    let turns: Vec<Turn> = (0..3).map(|n| turn("a", &n.to_string(), "hello")).collect();
    write(&log, &turns.iter().map(|turn| reject_of(&log, turn)).collect::<Vec<_>>()).await;
    let (selection, bounds, registry) = (Selection::default(), bounds(1), Registry::embedded());
    let run = Run {
        kafka: &log.kafka,
        registry: &registry,
        selection: &selection,
        bounds: &bounds,
        dry_run: false,
        now: now(),
    };
    // While the first run holds a transaction open, the second does all the work.
    let first = run.go(
        |_| {},
        async |step| {
            if step == Step::Written {
                let second = redrive(&log, &selection, false).await;
                assert_eq!((second.redriven, second.redriven_before), (3, 0));
            }
        },
    );
    let error = tokio::time::timeout(PATIENCE, Box::pin(first)).await.expect("in time").unwrap_err();
    assert!(format!("{error:#}").contains("another redrive"), "{error:#}");
    assert_eq!(committed(&log, TURNS_RECEIVED).await.len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conditions_choose_and_a_dry_run_writes_nothing() {
    let log = Log::start(2, &[]).await;
    let update =
        std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../ingest/tests/data/telegram/message_private.json"));
    let good = turn("a", "1", "hello");
    let rejects =
        [reject_of(&log, &good), reject_of_intake(&update.unwrap()), reject_of_intake(b"{\"update_id\":1,\"x\":{}}")];
    write(&log, &rejects).await;
    let ends = async || {
        let admin = Admin::connect(&log.kafka).unwrap();
        let mut ends = Vec::new();
        for topic in [TURNS_RECEIVED, REJECTS, REDRIVES] {
            ends.push(admin.offsets(topic).await.unwrap());
        }
        ends
    };
    let before = ends().await;
    let all = Selection::default();
    let report = redrive(&log, &all, true).await;
    assert_eq!((report.selected, report.redriven, report.rejected_again), (3, 3, 1));
    assert_eq!(ends().await, before, "a dry run writes nothing");

    let of_intake = Selection { stages: vec!["ingest".to_owned()], ..all.clone() };
    let report = redrive(&log, &of_intake, false).await;
    assert_eq!((report.selected, report.redriven, report.rejected_again), (2, 2, 1));
    let (message, turn) = log.read::<Turn>(TURNS_RECEIVED, 1).await.remove(0);
    assert_eq!((turn.source.as_str(), turn.received_at, attempt(&message)), ("telegram", rejects[1].at, 2));
    // Other conditions, the same rejects: what was driven in is not driven in again.
    let report = redrive(&log, &Selection { reasons: vec!["unknown_kind".to_owned()], ..all.clone() }, false).await;
    assert_eq!((report.selected, report.redriven_before), (1, 2), "what was rejected again is new");
    let report = redrive(&log, &all, false).await;
    assert_eq!((report.redriven, report.refused), (1, 1), "{report:?}");
    assert_eq!(committed(&log, TURNS_RECEIVED).await.len(), 2);

    let mut reader = Reader::open(&log.kafka, &log.codec).await.unwrap();
    let mut open = Vec::new();
    while let Some(found) = reader.next().await.unwrap() {
        if found.redriven.is_none() {
            open.push((found.reject.attempt, found.reject.reason));
        }
    }
    assert_eq!(open, [(ATTEMPTS_MAX, "unknown_kind".to_owned())]);

    let nowhere = Selection { which: vec!["1:99".parse().unwrap()], stages: vec!["intake".to_owned()], ..all.clone() };
    let told = redrive(&log, &nowhere, true).await.not_found;
    assert_eq!(told[0], "there is no reject 1:99; `undertone rejects list --redriven` shows all");
    assert_eq!(told[1], "no reject has the stage \"intake\"; there are: ingest, processors");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reject_of_what_was_forgotten_is_not_driven_in_again() {
    let log = Log::start(1, &[]).await;
    let (forgotten, other) = (turn("a", "1", "marzipan"), turn("b", "1", "hello"));
    write(&log, &[reject_of(&log, &forgotten), reject_of(&log, &other)]).await;
    log.forget("a", &[]).await;
    let report = redrive(&log, &Selection::default(), false).await;
    assert_eq!((report.selected, report.redriven, report.refused), (2, 1, 1), "{report:?}");
    let (_, driven_in) = log.read::<Turn>(TURNS_RECEIVED, 1).await.remove(0);
    assert_eq!(driven_in.conversation, "b");
    assert_eq!(committed(&log, TURNS_RECEIVED).await.len(), 1);
    assert_eq!(redrive(&log, &Selection::default(), false).await.redriven, 0, "nor the next time");
}

struct Role {
    task: JoinHandle<Result<(), RunError>>,
    shutdown: CancellationToken,
}

impl Role {
    fn start(log: &Log, contexts: &Contexts, rejects: RejectsBound) -> Role {
        let limits =
            Limits { batch_turns_max: 4, session_timeout: Duration::from_secs(6), rejects, ..Limits::default() };
        let around = surroundings(&log.kafka, contexts);
        let shutdown = around.shutdown.clone();
        let load = || Ok(vec![Box::new(Nothing) as Box<dyn AnyStage>]);
        let task = tokio::spawn(processors::run_stages(config("0", &[], limits), &["nothing"], load, around));
        Role { task, shutdown }
    }

    async fn ended(self) -> Result<(), RunError> {
        tokio::time::timeout(PATIENCE, self.task).await.expect("it ends in time").unwrap()
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.ended().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn poison_goes_round_until_the_bound_and_no_further() {
    let log = Log::start(1, &[]).await;
    let contexts = tests::contexts().await;
    let role = Role::start(&log, &contexts, RejectsBound::default());
    log.append(b"a", b"no avro".to_vec()).await;
    let selection = Selection::default();
    for try_number in 1..ATTEMPTS_MAX {
        let rejects = log.read::<Reject>(REJECTS, try_number as usize).await;
        assert_eq!(rejects.last().unwrap().1.attempt, try_number, "a record that is rejected again counts one more");
        let report = redrive(&log, &selection, false).await;
        assert_eq!((report.redriven, report.refused), (1, 0));
    }
    log.read::<Reject>(REJECTS, ATTEMPTS_MAX as usize).await;
    let report = redrive(&log, &selection, false).await;
    assert_eq!((report.redriven, report.refused), (0, 1));
    assert!(report.refusals[0].why.contains("attempts_max"), "{report:?}");
    role.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redriven_turn_takes_a_new_position_and_keeps_its_id_and_time() {
    let log = Log::start(1, &[]).await;
    let contexts = tests::contexts().await;
    let late = Turn { at: 1_600_000_000_000, received_at: 1_600_000_000_001, ..turn("a", "late", "hello") };
    write(&log, &[reject_of(&log, &late)]).await;
    let role = Role::start(&log, &contexts, RejectsBound::default());
    log.say(&turn("a", "1", "hello")).await;
    log.say(&turn("a", "2", "hello")).await;
    log.read::<Turn>(TURNS_ENRICHED, 2).await;
    redrive(&log, &Selection::default(), false).await;
    let (_, enriched) = log.read::<Turn>(TURNS_ENRICHED, 3).await.remove(2);
    assert_eq!((enriched.id, enriched.at, enriched.received_at), (late.id, late.at, late.received_at));
    assert_eq!(enriched.position, Some(3));
    assert!(enriched.stamp.unwrap().offset > 1);
    role.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_that_rejects_everything_stops_before_it_drains_the_topic() {
    const POISON: usize = 60;
    let log = Log::start(1, &[]).await;
    let contexts = tests::contexts().await;
    for n in 0..POISON {
        log.append(b"a", format!("poison {n}").into_bytes()).await;
    }
    let bound = RejectsBound { window_turns: 20, share_max: 0.5 };
    let error = Role::start(&log, &contexts, bound).ended().await.unwrap_err();
    assert!(matches!(error, RunError::Rejecting { window: 20, .. }), "{error}");
    assert!(error.to_string().contains("[processors] rejects_share_max"), "{error}");
    let rejected = committed(&log, REJECTS).await.len();
    assert!(rejected <= 10, "{rejected} were committed");

    // Told that this is as it should be, it goes on where it stood.
    let role = Role::start(&log, &contexts, RejectsBound { window_turns: 0, ..bound });
    let rejects = log.read::<Reject>(REJECTS, POISON).await;
    let offsets: Vec<_> = rejects.iter().map(|(_, reject)| reject.offset.unwrap()).collect();
    assert_eq!(offsets, (0..POISON as i64).collect::<Vec<_>>(), "each once");
    role.stop().await;
}
