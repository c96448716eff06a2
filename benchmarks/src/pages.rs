//! Pages of history through the read side: without anything kept, from memory, and from memory with Redis behind it.
//!
//! On a SQLite file, and with `--cassandra` beside it on a CQL server, in a keyspace that is made for it and removed. Two
//! read sides, as of two processes, stand in front of the same history and log (the embedded broker's), and are started
//! anew for each run, as after a restart; what is in Redis stays. Requests are answered in this process, without a socket:
//! the whole of an answer, JSON included, is measured. Readers ask one after the other, as fast as they are answered:
//! conversations by Zipf's law, half of the questions for the newest page, a quarter for the one behind it, lists, and now
//! and then a conversation that is not there. Meanwhile turns come by the log, and are stored a moment later. Every page
//! is checked: as new as what had been stored when it was asked for, and dense.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use api::{Api, Past};
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::Request;
use broker::Broker;
use opentelemetry::metrics::MeterProvider as _;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use schemas::{
    Codec, Dialogue, DialogueState, Embedding, Emotion, Encoding, GoEmotions, Intent, Mood, Provenance, Question,
    Stamp, Tier, Turn, topic, turn_id,
};
use serde_json::Value;
use store::cql::Keyspace;
use store::history::{History, Row};
use store::log::{Admin, Kafka, Producer, ProducerLimits, Record, TopicSpec};
use store::redis::{Redis, Settings, Shelf};
use store::registry::Registry;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;
use uuid::Uuid;

use crate::Outcome;
use crate::figures::{Aim, Report, progress};
use crate::latency::Latencies;

/// Processes in front of the history.
const PROCESSES: usize = 2;
/// How often what came by the log is stored, as the writer's batches are.
const STORE_EVERY: Duration = Duration::from_millis(20);
/// Turns stored at a time while the conversations are made.
const FILL_TURNS: usize = 500;
/// Largest answer, in bytes.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Also measure this CQL server, as HOST:PORT.
    #[arg(long, value_name = "HOST:PORT")]
    cassandra: Option<String>,
    /// Also measure each with this Redis behind the memory.
    #[arg(long, value_name = "HOST:PORT")]
    redis: Option<String>,
    /// Conversations; they have 60 to 500 turns, the more the more often they are asked for.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(10..=1_000_000))]
    conversations: u32,
    /// Readers who ask at the same time.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1000))]
    readers: u16,
    /// Turns that come a second meanwhile.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    turns_per_s: u32,
    /// How long each run takes, in seconds.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// How often each measurement is made.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
}

/// Names of the figures of one way to read.
struct Names {
    pages_per_s: &'static str,
    /// Middle and 99th percentile, in the order of [`Ask`].
    latency_ms: [[&'static str; 2]; 4],
    store_share: &'static str,
    redis_share: &'static str,
    late_share: &'static str,
}

macro_rules! names {
    ($way:literal) => {
        Names {
            pages_per_s: concat!($way, "_pages_per_s"),
            latency_ms: [
                [concat!($way, "_newest_p50_ms"), concat!($way, "_newest_p99_ms")],
                [concat!($way, "_older_p50_ms"), concat!($way, "_older_p99_ms")],
                [concat!($way, "_list_p50_ms"), concat!($way, "_list_p99_ms")],
                [concat!($way, "_unknown_p50_ms"), concat!($way, "_unknown_p99_ms")],
            ],
            store_share: concat!($way, "_store_share"),
            redis_share: concat!($way, "_redis_share"),
            late_share: concat!($way, "_late_share"),
        }
    };
}

const FILE: [Names; 3] = [names!("sqlite"), names!("sqlite_memory"), names!("sqlite_memory_redis")];
const CQL: [Names; 3] = [names!("cql"), names!("cql_memory"), names!("cql_memory_redis")];

/// What a reader asks for.
#[derive(Debug, Clone, Copy)]
enum Ask {
    Newest,
    Older,
    List,
    Unknown,
}

/// Runs it; progress goes to the error stream.
///
/// # Errors
/// It could not be run, or a page had a hole.
pub fn run(options: &Options) -> anyhow::Result<Outcome> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start a runtime")?;
    runtime.block_on(async {
        let mut report = Report::new();
        let folder = tempfile::tempdir().context("make a temporary folder")?;
        let file = History::open(&folder.path().join("history.sqlite")).await.context("open a file")?;
        measure(options, file, &FILE, &mut report).await?;
        let Some(address) = &options.cassandra else { return Ok(report.outcome()) };
        let keyspace = Keyspace::connect(&crate::keyspace_on(address)).await.context("connect to the CQL server")?;
        let history = History::on_scylla(keyspace.clone(), None).await.context("make the tables")?;
        let measured = measure(options, history, &CQL, &mut report).await;
        keyspace.remove().await.context("remove the keyspace")?;
        measured.map(|()| report.outcome())
    })
}

/// A history with its log, and how far both are.
struct Site {
    history: History,
    kafka: Kafka,
    codec: Codec,
    /// Of each conversation, the last position that is stored.
    stored: Vec<AtomicI64>,
    /// The first so many conversations are asked for with this probability.
    zipf: Vec<f64>,
    _broker: Broker,
    _folder: tempfile::TempDir,
}

async fn measure(options: &Options, history: History, names: &[Names; 3], report: &mut Report) -> anyhow::Result<()> {
    let site = Arc::new(Site::start(options, history).await?);
    let meter = opentelemetry::metrics::noop::NoopMeterProvider::new().meter("bench");
    let shelf = match &options.redis {
        Some(address) => {
            let prefix = format!("bench-{}", Uuid::new_v4());
            let settings = Settings { nodes: vec![address.clone()], prefix, ..Settings::default() };
            Some(Shelf::on(Redis::connect(settings, &meter).await.context("connect to Redis")?))
        }
        None => None,
    };
    let ways = [(0, None), (api::Config::default().pages_bytes_max, None)];
    let ways = ways.into_iter().chain(shelf.map(|shelf| (api::Config::default().pages_bytes_max, Some(shelf))));
    for ((bytes_max, shelf), names) in ways.zip(names) {
        let mut runs: Vec<Run> = Vec::new();
        for number in 0..options.runs {
            runs.push(one_run(options, &site, bytes_max, shelf.clone(), u64::from(number)).await?);
        }
        let figures = |of: &dyn Fn(&Run) -> f64| runs.iter().map(of).collect::<Vec<f64>>();
        let beside = format!("{} readers, {} conversations", options.readers, options.conversations);
        report.add(names.pages_per_s, Aim::None, &figures(&|run| run.pages_per_s), beside);
        for (ask, [p50, p99]) in names.latency_ms.iter().enumerate() {
            report.add(p50, Aim::None, &figures(&|run| run.latencies[ask].quantile_ms(0.5)), "");
            report.add(p99, Aim::None, &figures(&|run| run.latencies[ask].quantile_ms(0.99)), "");
        }
        report.add(names.store_share, Aim::None, &figures(&|run| run.store_share), "pages that came from the store");
        report.add(names.redis_share, Aim::None, &figures(&|run| run.redis_share), "pages that came from Redis");
        let late = "newest pages older than what was stored when they were asked for, of 2 % of them";
        report.add(names.late_share, Aim::None, &figures(&|run| run.late_share), late);
    }
    Ok(())
}

struct Run {
    pages_per_s: f64,
    latencies: [Latencies; 4],
    store_share: f64,
    redis_share: f64,
    late_share: f64,
}

async fn one_run(
    options: &Options,
    site: &Arc<Site>,
    bytes_max: usize,
    shelf: Option<Shelf>,
    seed: u64,
) -> anyhow::Result<Run> {
    let meter = opentelemetry::metrics::noop::NoopMeterProvider::new().meter("bench");
    let mut apis = Vec::new();
    for _ in 0..PROCESSES {
        let config = api::Config { pages_bytes_max: bytes_max, ..api::Config::default() };
        let past = Past { history: site.history.clone(), shelf: shelf.clone(), memories: None };
        let (registry, end) = (Registry::embedded(), CancellationToken::new());
        let api = Api::start(config, &site.kafka, past, registry, &meter, Default::default(), end);
        apis.push(api.await.context("start a read side")?);
    }
    let over = Arc::new(AtomicBool::new(false));
    let feeder = tokio::spawn(feed(Arc::clone(site), options.turns_per_s, Arc::clone(&over), seed));
    let begun = Instant::now();
    let readers = (0..options.readers).map(|number| {
        let (site, router) = (Arc::clone(site), apis[usize::from(number) % PROCESSES].router());
        let until = begun + Duration::from_secs(options.seconds);
        tokio::spawn(read(site, router, until, seed << 16 | u64::from(number)))
    });
    let readers: Vec<_> = readers.collect();
    let mut seen = Seen::default();
    for reader in readers {
        let read = reader.await.context("a reader ended abnormally")??;
        seen.latencies.iter_mut().zip(read.latencies).for_each(|(all, some)| all.extend(some));
        seen.checked += read.checked;
        seen.late += read.late;
    }
    let took = begun.elapsed();
    over.store(true, Ordering::Relaxed);
    feeder.await.context("the feeder ended abnormally")??;
    let count = |source| -> u64 {
        let kinds = ["newest", "unknown", "fixed", "list"];
        apis.iter().map(|api| kinds.iter().map(|kind| api.pages().count(kind, source)).sum::<u64>()).sum()
    };
    let all: u64 = ["memory", "shared", "redis", "store"].into_iter().map(count).sum();
    let pages = seen.latencies.iter().map(Vec::len).sum::<usize>();
    let latencies = seen.latencies.map(|some| {
        let mut latencies = Latencies::new();
        some.into_iter().for_each(|latency| latencies.note(latency));
        latencies
    });
    Ok(Run {
        pages_per_s: pages as f64 / took.as_secs_f64(),
        latencies,
        store_share: count("store") as f64 / all as f64,
        redis_share: count("redis") as f64 / all as f64,
        late_share: seen.late as f64 / seen.checked as f64,
    })
}

impl Site {
    async fn start(options: &Options, history: History) -> anyhow::Result<Site> {
        let folder = tempfile::tempdir().context("make a temporary folder")?;
        let broker = Broker::start(broker::Config::new(folder.path())).await.context("start the broker")?;
        let kafka = Kafka { bootstrap: broker.bootstrap(), ..Kafka::default() };
        let name = topic::TURNS_ENRICHED.to_owned();
        let spec = TopicSpec { name, partitions: 8, replication: 1, config: BTreeMap::new() };
        Admin::connect(&kafka)?.create(&[spec]).await.context("create the topic")?;
        let count = options.conversations as usize;
        let weights: Vec<f64> = (1..=count).map(|rank| 1.0 / rank as f64).collect();
        let all: f64 = weights.iter().sum();
        let sums = weights.iter().scan(0.0, |sum, weight| {
            *sum += weight / all;
            Some(*sum)
        });
        let zipf = sums.collect();
        let lengths: Vec<i64> = (0..count).map(|rank| 60 + 440 / (1 + rank as i64 / 10)).collect();
        let codec = Codec::embedded();
        let turns = lengths.iter().enumerate().flat_map(|(n, length)| (1..=*length).map(move |position| (n, position)));
        let turns: Vec<(usize, i64)> = turns.collect();
        for part in turns.chunks(FILL_TURNS) {
            let rows = part.iter().map(|(n, position)| row(&codec, &turn(*n, *position))).collect::<Result<_, _>>()?;
            history.upsert(rows).await.context("make the conversations")?;
        }
        progress(&format!("{} turns in {count} conversations", turns.len()));
        let stored = lengths.into_iter().map(AtomicI64::new).collect();
        Ok(Site { history, kafka, codec, stored, zipf, _broker: broker, _folder: folder })
    }

    fn any(&self, random: &mut StdRng) -> usize {
        let at = random.random::<f64>();
        self.zipf.partition_point(|sum| *sum < at).min(self.zipf.len() - 1)
    }
}

/// Lets turns come: into the log, and a moment later into the store.
async fn feed(site: Arc<Site>, per_s: u32, over: Arc<AtomicBool>, seed: u64) -> anyhow::Result<()> {
    let producer = Producer::connect(&site.kafka, &ProducerLimits::default()).context("connect to the log")?;
    let mut random = StdRng::seed_from_u64(seed);
    let mut every = tokio::time::interval(STORE_EVERY);
    let mut due = 0.0;
    while !over.load(Ordering::Relaxed) {
        every.tick().await;
        due += f64::from(per_s) * STORE_EVERY.as_secs_f64();
        let mut newest: BTreeMap<usize, i64> = BTreeMap::new();
        let mut turns = Vec::new();
        while due >= 1.0 {
            due -= 1.0;
            let n = site.any(&mut random);
            let position = newest.entry(n).or_insert_with(|| site.stored[n].load(Ordering::SeqCst));
            *position += 1;
            turns.push(turn(n, *position));
        }
        let record = |turn: &Turn| {
            Ok::<_, anyhow::Error>(Record {
                topic: topic::TURNS_ENRICHED.to_owned(),
                key: Some(turn.conversation.clone().into_bytes()),
                value: Some(site.codec.encode(turn)?),
                timestamp: now_ms(),
                ..Record::default()
            })
        };
        for appended in producer.append_all(turns.iter().map(record).collect::<Result<_, _>>()?).await {
            appended.context("append a turn")?;
        }
        let rows = turns.iter().map(|turn| row(&site.codec, turn)).collect::<Result<_, _>>()?;
        site.history.upsert(rows).await.context("store turns")?;
        for (n, position) in newest {
            site.stored[n].store(position, Ordering::SeqCst);
        }
    }
    Ok(())
}

/// What a reader saw.
#[derive(Default)]
struct Seen {
    /// How long each answer took, by what was asked.
    latencies: [Vec<Duration>; 4],
    /// Newest pages that were looked into, and those that were older than what was stored when they were asked for.
    checked: u64,
    late: u64,
}

/// Asks until the end.
async fn read(site: Arc<Site>, router: Router, until: Instant, seed: u64) -> anyhow::Result<Seen> {
    let (mut random, mut read) = (StdRng::seed_from_u64(seed), Seen::default());
    // Where a reader would go on, by conversation, as the newest page said.
    let mut next: BTreeMap<usize, String> = BTreeMap::new();
    while Instant::now() < until {
        let n = site.any(&mut random);
        let ask = match random.random_range(0..100) {
            0..50 => Ask::Newest,
            50..75 if next.contains_key(&n) => Ask::Older,
            50..75 => Ask::Newest,
            75..95 => Ask::List,
            _ => Ask::Unknown,
        };
        let turns = format!("/v1/conversations/{}/turns", name(n));
        let (path, status) = match ask {
            Ask::Newest => (turns, 200),
            Ask::Older => (format!("{turns}?cursor={}", next[&n]), 200),
            Ask::List => ("/v1/conversations".to_owned(), 200),
            Ask::Unknown => (format!("/v1/conversations/nobody-{}/turns", n % 100), 404),
        };
        let stored = site.stored[n].load(Ordering::SeqCst);
        let request = Request::get(&path).header("host", "127.0.0.1").body(Body::empty())?;
        let begun = Instant::now();
        let response = router.clone().oneshot(request).await.expect("a router always answers");
        let got = response.status().as_u16();
        let body = to_bytes(response.into_body(), ANSWER_BYTES_MAX).await?;
        read.latencies[ask as usize].push(begun.elapsed());
        anyhow::ensure!(got == status, "{path} was answered {got}: {}", String::from_utf8_lossy(&body));
        if matches!(ask, Ask::Newest) {
            next.extend(cursor(&body).map(|cursor| (n, cursor)));
        }
        // Parsing costs more than answering: a sample shows what is wrong just as well.
        if matches!(ask, Ask::Newest | Ask::Older) && random.random_bool(0.02) {
            let newest = newest(&serde_json::from_slice(&body)?).with_context(|| path.clone())?;
            if matches!(ask, Ask::Newest) {
                read.checked += 1;
                read.late += u64::from(newest < stored);
            }
        }
    }
    Ok(read)
}

/// The cursor of the page behind; it stands behind the turns, and is never text that somebody said.
fn cursor(body: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(body).ok()?;
    let behind = text.rsplit_once(r#"],"next":""#)?.1;
    behind.split_once('"').map(|(cursor, _)| cursor.to_owned())
}

/// The newest position of a page without a hole.
fn newest(page: &Value) -> anyhow::Result<i64> {
    let turns = page["turns"].as_array().context("a page has turns")?;
    let positions: Vec<i64> = turns.iter().filter_map(|turn| turn["position"].as_i64()).collect();
    let newest = *positions.first().context("a page is not empty")?;
    let dense = positions.iter().zip(0..).all(|(position, back)| *position == newest - back);
    anyhow::ensure!(dense && positions.len() == turns.len(), "positions {positions:?}");
    Ok(newest)
}

fn name(n: usize) -> String {
    format!("telegram-helper-{n}")
}

fn now_ms() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    now.as_millis() as i64
}

fn row(codec: &Codec, turn: &Turn) -> anyhow::Result<Row> {
    let position = turn.position.context("an enriched turn has a position")?;
    let (conversation, value) = (turn.conversation.clone(), codec.encode(turn)?);
    Ok(Row { conversation, position, id: turn.id, at: turn.at, person: turn.person(), value })
}

/// A turn as large as real ones.
fn turn(n: usize, position: i64) -> Turn {
    let provenance = Provenance { model: "emotion-full".to_owned(), version: "2026.1".to_owned(), tier: Tier::Full };
    let probabilities = GoEmotions { joy: 0.513_671_9, neutral: 0.251_953_1, love: 0.031_25, ..GoEmotions::default() };
    let conversation = name(n);
    let bytes = (0..384).map(|at: i64| ((at * 37 + position) % 251) as u8).collect();
    let ekman = probabilities.ekman();
    Turn {
        id: turn_id("websocket", &conversation, "ada", &position.to_string()),
        conversation,
        at: now_ms(),
        received_at: now_ms(),
        source: "websocket".to_owned(),
        kind: "message".to_owned(),
        bot: None,
        external_id: position.to_string(),
        sender: Some(schemas::Sender { id: "ada".to_owned(), name: Some("Ada".to_owned()), bot: false }),
        chat_kind: Some("room".to_owned()),
        message_id: None,
        reply_to: None,
        language_hint: None,
        text: format!("I had not thought that we would come so far with this, number {position}, thank you!"),
        consent: None,
        position: Some(position),
        stamp: Some(Stamp { partition: 0, offset: position }),
        tier: Some(Tier::Full),
        skipped: Vec::new(),
        encoding: Some(Encoding {
            provenance: provenance.clone(),
            embedding: Embedding { values: bytes, scale: 0.003_921_569, dimension: 384 },
            language: Some("eng".to_owned()),
            language_confidence: Some(0.875),
            feeling: None,
            grams: None,
        }),
        emotion: Some(Emotion {
            provenance: provenance.clone(),
            probabilities,
            ekman,
            labels: vec!["joy".to_owned()],
            valence: 0.482_421_88,
            arousal: None,
            dominance: None,
            intensity: 0.748_046_9,
            mood: Some(Mood {
                valence: 0.251_953_1,
                intensity: 0.513_671_9,
                trend: 0.013_671_875,
                volatility: 0.125_976_56,
                ekman,
                turns: position,
                turning: None,
                tension: 0.125,
            }),
        }),
        personality: None,
        dialogue: Some(Dialogue {
            provenance,
            intents: vec![Intent {
                name: "greeting".to_owned(),
                probability: 0.875,
                out_of_scope: false,
                set: "clinc150".to_owned(),
                set_sha256: "0123456789abcdef".to_owned(),
            }],
            act: "question".to_owned(),
            act_probability: 0.75,
            question: 0.75,
            slots: Vec::new(),
            next_actions: Vec::new(),
            state: Some(DialogueState {
                waiting: Some(Question { position, asked_by: "ada".to_owned(), at: 0 }),
                open_questions: 1,
                answered: 0,
                run: 1,
                exchanges: 0,
                slots: Vec::new(),
            }),
        }),
        coherence: None,
        synesthesia: None,
        memory: None,
        flags: Vec::new(),
        sealed: None,
    }
}
