//! Several processes that serve streams of one log and one history: whoever is cut off at one goes on at another, with
//! nothing missed and nothing twice. On the embedded broker and SQLite, and on the servers that `UNDERTONE_TEST_KAFKA`
//! and `UNDERTONE_TEST_CASSANDRA` name.
//!
//! A process is a runtime of its own here, which is dropped with its sockets where a kill is meant.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use api::{Api, Config};
use futures_util::stream::BoxStream;
use futures_util::{SinkExt as _, StreamExt as _};
use schemas::{Turn, topic};
use serde_json::{Value, json};
use store::history::{History, writer};
use store::log::{Kafka, Producer, ProducerLimits, Record};
use store::registry::Registry;
use tests::proxy::{Held, Kind, Proxy};
use tests::{Log, PATIENCE};
use tokio::sync::Semaphore;
use tokio_tungstenite::tungstenite::Message as Frame;
use tokio_util::sync::CancellationToken;

const PARTITIONS: i32 = 3;
const ROOMS: [&str; 3] = ["room-7", "telegram:helper:42", "größer/kleiner?"];

/// One process that serves streams.
struct Process {
    http: SocketAddr,
    runtime: Option<tokio::runtime::Runtime>,
    _api: Api,
}

impl Process {
    async fn start(kafka: &Kafka, history: &History, config: Config) -> Process {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (kafka, history) = (kafka.clone(), history.clone());
        let started = runtime.spawn(async move {
            let meter = opentelemetry::global::meter("test");
            let registry = Registry::embedded();
            let shutdown = CancellationToken::new();
            let api =
                Api::start(config, &kafka, history, registry, &meter, Default::default(), shutdown).await.unwrap();
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let http = listener.local_addr().unwrap();
            let router = api.router();
            tokio::spawn(async move { axum::serve(listener, router).await });
            (http, api)
        });
        let (http, api) = started.await.unwrap();
        Process { http, runtime: Some(runtime), _api: api }
    }
}

impl Drop for Process {
    /// As a kill: nobody is told anything.
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A log, a history, and what is said there.
struct Site {
    log: Log,
    history: History,
    producer: Producer,
}

impl Site {
    async fn start() -> Site {
        let log = Log::start(PARTITIONS, &[]).await;
        let producer = Producer::connect(&log.kafka, &ProducerLimits::default()).unwrap();
        Site { history: tests::history().await, producer, log }
    }

    async fn process(&self) -> Process {
        Process::start(&self.log.kafka, &self.history, Config::default()).await
    }

    /// Says the turns of a conversation with these positions.
    async fn say(&self, room: &str, positions: std::ops::RangeInclusive<i64>) {
        for position in positions {
            self.producer.append(record(&self.log, room, position)).await.unwrap();
        }
    }

    /// Starts the history writer, which ends with the guard.
    fn write_history(&self) -> impl Drop {
        let (config, history) = (writer::Config::new(self.log.kafka.clone()), self.history.clone());
        let rejects = Producer::connect(&self.log.kafka, &ProducerLimits::default()).unwrap();
        let shutdown = CancellationToken::new();
        let token = shutdown.clone();
        tokio::spawn(async move {
            let meter = opentelemetry::global::meter("test");
            writer::run(config, history, rejects, &meter, Default::default(), token).await.unwrap();
        });
        shutdown.drop_guard()
    }
}

/// The record of an enriched turn.
fn record(log: &Log, room: &str, position: i64) -> Record {
    let turn = Turn { position: Some(position), ..tests::turn(room, &position.to_string(), "words") };
    Record {
        topic: topic::TURNS_ENRICHED.to_owned(),
        key: Some(room.as_bytes().to_vec()),
        value: Some(log.codec.encode(&turn).unwrap()),
        timestamp: tests::now(),
        ..Record::default()
    }
}

/// How a reader listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Socket,
    Firehose,
    Events,
}

impl Way {
    fn rooms(self) -> &'static [&'static str] {
        if self == Way::Events { &ROOMS[2..] } else { &ROOMS }
    }
}

/// A reader, wherever it is connected.
struct Reader {
    way: Way,
    token: Option<String>,
    messages: BoxStream<'static, Value>,
    seen: BTreeMap<String, i64>,
}

impl Reader {
    async fn connect(way: Way, process: &Process) -> Reader {
        let mut reader =
            Reader { way, token: None, messages: messages(way, process.http, None).await, seen: BTreeMap::new() };
        let followed = if way == Way::Socket { way.rooms().len() } else { 1 };
        for _ in 0..followed {
            assert_eq!(reader.message().await["type"], "following");
        }
        reader
    }

    /// Comes back elsewhere.
    async fn reconnect(&mut self, process: &Process) {
        self.messages = messages(self.way, process.http, self.token.as_deref()).await;
    }

    async fn message(&mut self) -> Value {
        let message = tokio::time::timeout(PATIENCE, self.messages.next()).await;
        let message = message.unwrap_or_else(|_| panic!("{:?}: nothing comes after {:?}", self.way, self.seen));
        let message = message.unwrap_or_else(|| panic!("{:?}: the stream ended after {:?}", self.way, self.seen));
        if let Some(token) = message["resume"].as_str() {
            self.token = Some(token.to_owned());
        }
        message
    }

    /// The next turn, which must go on where its conversation stands: its place there.
    async fn turn(&mut self) -> i64 {
        loop {
            let message = self.message().await;
            match message["type"].as_str() {
                Some("following") => assert_eq!(message["recovered"], true, "{:?}: {message}", self.way),
                Some("turn") => {
                    let room = message["turn"]["conversation"].as_str().unwrap().to_owned();
                    let position = message["turn"]["position"].as_i64().unwrap();
                    let last = self.seen.entry(room).or_default();
                    assert_eq!(position, *last + 1, "{:?}: {message}", self.way);
                    *last = position;
                    return position;
                }
                _ => panic!("{:?}: {message}", self.way),
            }
        }
    }
}

async fn messages(way: Way, http: SocketAddr, token: Option<&str>) -> BoxStream<'static, Value> {
    if way == Way::Events {
        return events(http, token).await;
    }
    let (mut socket, _) = tokio_tungstenite::connect_async(format!("ws://{http}/v1/stream")).await.unwrap();
    let command = match way {
        Way::Firehose => json!({ "type": "follow", "all": true, "resume": token }),
        _ => json!({ "type": "follow", "conversations": way.rooms(), "resume": token }),
    };
    socket.send(Frame::text(command.to_string())).await.unwrap();
    // Behind the error that a cut is, the stream ends.
    let texts = socket.filter_map(|frame| {
        let text = frame.ok().filter(Frame::is_text);
        std::future::ready(text.map(|text| serde_json::from_str(text.to_text().unwrap()).unwrap()))
    });
    texts.boxed()
}

/// The data of an event source's events.
async fn events(http: SocketAddr, last: Option<&str>) -> BoxStream<'static, Value> {
    let mut url = reqwest::Url::parse(&format!("http://{http}/v1/conversations/")).unwrap();
    url.path_segments_mut().unwrap().pop_if_empty().push(Way::Events.rooms()[0]).push("events");
    let mut request = reqwest::Client::new().get(url);
    if let Some(last) = last {
        request = request.header("last-event-id", last);
    }
    let response = request.send().await.unwrap().error_for_status().unwrap();
    let mut rest = Vec::new();
    let data = response.bytes_stream().filter_map(|chunk| std::future::ready(chunk.ok())).flat_map(move |chunk| {
        rest.extend_from_slice(&chunk);
        let end = rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let lines: Vec<u8> = rest.drain(..end).collect();
        let lines = String::from_utf8(lines).unwrap();
        let data: Vec<Value> =
            lines.lines().filter_map(|line| Some(serde_json::from_str(line.strip_prefix("data:")?).unwrap())).collect();
        futures_util::stream::iter(data)
    });
    data.boxed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_whose_process_dies_while_turns_flow_goes_on_at_another() {
    const TURNS: i64 = 60;
    for way in [Way::Socket, Way::Firehose, Way::Events] {
        let site = Arc::new(Site::start().await);
        let _writer = site.write_history();
        let mut here = site.process().await;
        let mut other = site.process().await;
        let mut reader = Reader::connect(way, &here).await;
        // So many turns are said ahead of what has been seen: some are always on their way.
        let ahead = Arc::new(Semaphore::new(20));
        let saying = tokio::spawn({
            let (site, ahead) = (site.clone(), ahead.clone());
            async move {
                for position in 1..=TURNS {
                    for room in way.rooms() {
                        ahead.acquire().await.unwrap().forget();
                        site.say(room, position..=position).await;
                    }
                }
            }
        });
        let all = TURNS * way.rooms().len() as i64;
        for turn in 1..=all {
            reader.turn().await;
            ahead.add_permits(1);
            if turn % (all / 5) == 0 {
                // To one that has run all the time, and the next time to one that has not seen what is asked for.
                here = std::mem::replace(&mut other, site.process().await);
                reader.reconnect(&here).await;
            }
        }
        saying.await.unwrap();
        assert!(reader.seen.values().all(|last| *last == TURNS) && reader.seen.len() == way.rooms().len());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_has_read_less_than_the_one_before_comes_as_far_first() {
    for way in [Way::Socket, Way::Firehose, Way::Events] {
        let site = Site::start().await;
        let proxy = Proxy::start(&site.log.kafka).await;
        let behind = Process::start(&proxy.kafka(&site.log.kafka), &site.history, Config::default()).await;
        let before = site.process().await;
        let mut reader = Reader::connect(way, &before).await;
        proxy.hold(Held::Request(Kind::Fetch));
        proxy.holding().await;
        let room = way.rooms()[0];
        site.say(room, 1..=3).await;
        for position in 1..=3 {
            assert_eq!(reader.turn().await, position);
        }
        drop(before);
        // Nobody writes history here: the log is all that there is.
        let come_as_far = async {
            site.say(room, 4..=5).await;
            proxy.release();
        };
        tokio::join!(reader.reconnect(&behind), come_as_far);
        assert_eq!((reader.turn().await, reader.turn().await), (4, 5));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_starts_later_has_what_history_has_not_yet() {
    for way in [Way::Socket, Way::Firehose, Way::Events] {
        let site = Site::start().await;
        let before = site.process().await;
        let mut reader = Reader::connect(way, &before).await;
        let room = way.rooms()[0];
        site.say(room, 1..=1).await;
        assert_eq!(reader.turn().await, 1);
        drop(before);
        site.say(room, 2..=3).await;
        let later = site.process().await;
        reader.reconnect(&later).await;
        assert_eq!((reader.turn().await, reader.turn().await), (2, 3));
        site.say(room, 4..=4).await;
        assert_eq!(reader.turn().await, 4);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_waits_for_a_history_that_lags_behind_what_it_holds() {
    for way in [Way::Socket, Way::Events] {
        let site = Site::start().await;
        let before = site.process().await;
        let mut reader = Reader::connect(way, &before).await;
        let room = way.rooms()[0];
        site.say(room, 1..=2).await;
        assert_eq!((reader.turn().await, reader.turn().await), (1, 2));
        drop(before);
        site.say(room, 3..=20).await;
        // So small a memory that most comes from history, whose writer starts only now.
        let config = Config { hub_turns_max: 3, history_wait: PATIENCE, ..Config::default() };
        let later = Process::start(&site.log.kafka, &site.history, config).await;
        let written = async { site.write_history() };
        let ((), _writer) = tokio::join!(reader.reconnect(&later), written);
        for position in 3..=20 {
            assert_eq!(reader.turn().await, position);
        }
    }
}
