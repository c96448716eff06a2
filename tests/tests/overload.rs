//! More comes in than goes out: the fast tier takes over and gives back, and a reader that is about to lose what it has
//! not read is told.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use opentelemetry::metrics::Meter;
use processors::{AnyStage, Config, Failure, Limits, Stage, Surroundings, TierPolicy};
use schemas::slice::EmotionSlice;
use schemas::topic::{TURNS_ENRICHED, TURNS_RECEIVED};
use schemas::{Tier, Turn};
use store::log::{Admin, Producer, ProducerLimits, Record};
use tests::role::{config, surroundings};
use tests::{Log, Nothing, PATIENCE, now, turn};
use tokio_util::sync::CancellationToken;
use undertone::lag::Ends;
use undertone::retention;
use undertone::telemetry::Metrics;

/// Appends turns as if they had come in so long ago.
async fn say(log: &Log, ids: std::ops::Range<usize>, ago: Duration) {
    for id in ids {
        append(log, &turn("a", &id.to_string(), "hello"), now() - ago.as_millis() as i64).await;
    }
}

async fn append(log: &Log, turn: &Turn, timestamp: i64) {
    let producer = Producer::connect(&log.kafka, &ProducerLimits::default()).unwrap();
    let record = Record {
        topic: TURNS_RECEIVED.to_owned(),
        partition: None,
        key: Some(turn.conversation.clone().into_bytes()),
        value: Some(log.codec.encode(turn).unwrap()),
        headers: Vec::new(),
        timestamp,
    };
    producer.append(record).await.unwrap();
}

/// Of a processor that takes the fast tier when turns have waited for `bound`.
async fn settings(log: &Log, bound: Duration, meter: Meter, shutdown: CancellationToken) -> (Config, Surroundings) {
    let limits = Limits { session_timeout: Duration::from_secs(6), ..Limits::default() };
    let tier = TierPolicy::Degrade { lag_ms_max: bound.as_millis() as i64 };
    let config = Config { tier, ..config("0", &[], limits) };
    let contexts = tests::contexts().await;
    let around = Surroundings { meter, shutdown, ..surroundings(&log.kafka, &contexts) };
    (config, around)
}

/// Counts the turns that it infers, and asks for a shutdown meanwhile.
struct Last {
    inferred: Arc<AtomicUsize>,
    shutdown: CancellationToken,
}

impl Stage for Last {
    type Slice = EmotionSlice;

    fn name(&self) -> &'static str {
        "last"
    }

    fn infer(&self, turns: &mut [Turn]) -> Result<(), Failure> {
        self.inferred.fetch_add(turns.len(), Ordering::SeqCst);
        self.shutdown.cancel();
        Ok(())
    }

    fn fold(&self, _: &mut EmotionSlice, _: &mut Turn) -> Result<(), Failure> {
        Ok(())
    }
}

/// The value of a metric; `None` if it is not there.
fn value(metrics: &Metrics, line: &str) -> Option<f64> {
    let text = metrics.text().unwrap();
    text.lines().find_map(|found| found.strip_prefix(line)?.trim().parse().ok())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lag_over_its_bound_gives_the_fast_tier_and_the_full_one_comes_back() {
    const BOUND: Duration = Duration::from_secs(600);
    let log = Log::start(1, &[]).await;
    let metrics = Metrics::new();
    let shutdown = CancellationToken::new();
    let (config, around) = settings(&log, BOUND, metrics.meter(), shutdown.clone()).await;
    let load = || Ok(vec![Box::new(Nothing) as Box<dyn AnyStage>]);
    let role = tokio::spawn(processors::run_stages(config, &["nothing"], load, around));
    let tiers = async |count| {
        let turns = log.read::<Turn>(TURNS_ENRICHED, count).await;
        turns.into_iter().map(|(_, turn)| turn.tier.unwrap()).collect::<Vec<_>>()
    };
    say(&log, 0..2, Duration::ZERO).await;
    assert_eq!(tiers(2).await, [Tier::Full; 2]);
    assert_eq!(value(&metrics, "undertone_processors_degraded"), Some(0.0), "{}", metrics.text().unwrap());

    say(&log, 2..4, 2 * BOUND).await;
    assert_eq!(tiers(4).await[2..], [Tier::Fast; 2], "every turn that waited too long, and its part, records it");
    let switched = "undertone_processors_tier_switches_total{tier=\"fast\"}";
    assert!(value(&metrics, switched) >= Some(1.0), "{}", metrics.text().unwrap());

    // Between half of the bound and the bound nothing changes back and forth; below, full comes back.
    say(&log, 4..6, Duration::ZERO).await;
    assert_eq!(tiers(6).await[4..], [Tier::Full; 2]);
    let back = async {
        while value(&metrics, "undertone_processors_degraded") != Some(0.0) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, back).await.expect("the metric says so too");
    assert!(value(&metrics, "undertone_processors_tier_switches_total{tier=\"full\"}") >= Some(1.0));
    shutdown.cancel();
    tokio::time::timeout(PATIENCE, role).await.expect("it ends").unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_does_not_wait_until_a_batch_of_long_texts_is_inferred() {
    let log = Log::start(1, &[]).await;
    let long = "word ".repeat(5000);
    for id in 0..4 {
        append(&log, &turn("a", &id.to_string(), &long), now()).await;
    }
    let (inferred, shutdown) = (Arc::new(AtomicUsize::new(0)), CancellationToken::new());
    let meter = Metrics::new().meter();
    let (config, around) = settings(&log, Duration::from_secs(600), meter, shutdown.clone()).await;
    let last = Last { inferred: Arc::clone(&inferred), shutdown };
    let load = move || Ok(vec![Box::new(last) as Box<dyn AnyStage>]);
    let role = tokio::spawn(processors::run_stages(config, &["last"], load, around));
    tokio::time::timeout(PATIENCE, role).await.expect("it ends").unwrap().unwrap();
    assert_eq!(inferred.load(Ordering::SeqCst), 1, "the others are left to whoever comes next");
    assert!(log.read::<Turn>(TURNS_ENRICHED, 0).await.is_empty());
}

/// Takes so long for what it infers first that the lag passes its bound meanwhile.
struct Slow {
    until: i64,
    batches: Arc<Mutex<Vec<Vec<Tier>>>>,
}

impl Stage for Slow {
    type Slice = EmotionSlice;

    fn name(&self) -> &'static str {
        "slow"
    }

    fn infer(&self, turns: &mut [Turn]) -> Result<(), Failure> {
        self.batches.lock().unwrap().push(turns.iter().map(|turn| turn.tier.unwrap()).collect());
        while now() <= self.until {
            std::thread::yield_now();
        }
        Ok(())
    }

    fn fold(&self, _: &mut EmotionSlice, _: &mut Turn) -> Result<(), Failure> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_tier_is_chosen_again_when_a_batch_of_long_texts_takes_its_time() {
    const BOUND: Duration = Duration::from_secs(600);
    /// In which the role must begin.
    const LEFT: Duration = Duration::from_secs(3);
    let log = Log::start(1, &[]).await;
    let long = "word ".repeat(5000);
    let said = now() - (BOUND - LEFT).as_millis() as i64;
    for id in 0..3 {
        append(&log, &turn("a", &id.to_string(), &long), said).await;
    }
    let (batches, shutdown) = (Arc::default(), CancellationToken::new());
    let (config, around) = settings(&log, BOUND, Metrics::new().meter(), shutdown.clone()).await;
    let slow = Slow { until: said + BOUND.as_millis() as i64, batches: Arc::clone(&batches) };
    let load = move || Ok(vec![Box::new(slow) as Box<dyn AnyStage>]);
    let role = tokio::spawn(processors::run_stages(config, &["slow"], load, around));
    let turns = log.read::<Turn>(TURNS_ENRICHED, 3).await;
    let tiers: Vec<_> = turns.into_iter().map(|(_, turn)| turn.tier.unwrap()).collect();
    assert_eq!(tiers, [Tier::Full, Tier::Fast, Tier::Fast]);
    assert_eq!(*batches.lock().unwrap(), [[Tier::Full], [Tier::Fast], [Tier::Fast]], "what is recorded is what served");
    shutdown.cancel();
    tokio::time::timeout(PATIENCE, role).await.expect("it ends").unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_retention_is_about_to_overtake_is_known_from_the_log_alone() {
    const HOUR: Duration = Duration::from_secs(3600);
    const RETENTION: Duration = Duration::from_secs(100 * 3600);
    let log = Log::start(1, &[]).await;
    let admin = Admin::connect(&log.kafka).unwrap();
    let used = async || {
        let retention_ms = RETENTION.as_millis() as i64;
        retention::used(&admin, "slow", TURNS_RECEIVED, retention_ms, now()).await.unwrap()
    };
    assert_eq!(used().await, 0.0, "nothing is there to lose");
    say(&log, 0..1, 80 * HOUR).await;
    say(&log, 1..2, 30 * HOUR).await;
    say(&log, 2..3, HOUR).await;
    assert_eq!(used().await, 0.75);
    let commit = async |offset: i64| {
        let kafka = log.kafka.clone();
        let work = move || {
            use store::log::transact::{Event, Settings, Transactor};
            let settings = Settings {
                group: "slow".to_owned(),
                topic: TURNS_RECEIVED.to_owned(),
                transactional_id: "slow".to_owned(),
                transaction_timeout: Duration::from_secs(10),
                commit_attempts_max: 5,
                session_timeout: Duration::from_secs(6),
                work_time_max: Duration::from_secs(60),
                fetch_ahead_bytes_max: 1 << 20,
            };
            let mut member = Transactor::connect(&kafka, &settings).unwrap();
            while !matches!(member.poll(Duration::from_millis(50)), Ok(Some(Event::Assigned(_)))) {}
            member.commit(&[], &BTreeMap::from([(0, offset)])).unwrap();
        };
        tokio::time::timeout(PATIENCE, tokio::task::spawn_blocking(work)).await.expect("in time").unwrap();
    };
    for (offset, share) in [(1, 0.25), (2, 0.0), (3, 0.0)] {
        commit(offset).await;
        assert_eq!(used().await, share, "at offset {offset}");
    }
}

#[tokio::test]
async fn the_age_of_a_backlog_is_known_from_the_log_alone() {
    let log = Log::start(1, &[]).await;
    let hours = |hours: u64| Duration::from_secs(3600 * hours);
    say(&log, 0..3, hours(50)).await;
    say(&log, 3..5, hours(9)).await;
    say(&log, 5..6, Duration::ZERO).await;
    let admin = Admin::connect(&log.kafka).unwrap();
    let now = Duration::from_millis(now() as u64);
    for (read, waiting, age) in
        [(0, 6, hours(50)), (2, 4, hours(50)), (3, 3, hours(9)), (5, 1, hours(0)), (6, 0, hours(0))]
    {
        let (mut ends, committed) = (Ends::default(), BTreeMap::from([(0, read)]));
        ends.observe(&BTreeMap::from([(0, 6)]), now);
        ends.recall(&admin, TURNS_RECEIVED, &committed, &BTreeMap::new(), now).await.unwrap();
        let lag = ends.behind(&committed, &BTreeMap::new(), now)[0];
        assert_eq!(lag.messages, waiting);
        let (least, most) = (age.as_secs_f64() / 1.1 - 10.0, age.as_secs_f64() + 10.0);
        assert!((least..=most).contains(&lag.seconds), "{read} were read: {lag:?}");
    }
}
