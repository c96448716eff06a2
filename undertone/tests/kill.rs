//! The program as users run it: the real binary, killed with SIGKILL at any moment, ended by signals, failing to start.
//!
//! What survives is compared with what was sent: on the log as a committed reader sees it, and in the history over
//! HTTP. The moments of the kills come from a seed that is printed; `UNDERTONE_TEST_SEED` repeats a run. On the embedded
//! broker, and on the Apache Kafka that `UNDERTONE_TEST_KAFKA` names, but for what is in `embedded`.
#![expect(clippy::print_stdout, reason = "the seed and the moments of a run that failed must be told")]

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::{SinkExt as _, StreamExt as _};
use schemas::{Codec, Turn, topic};
use serde_json::{Value, json};
use store::log::{Admin, From, Kafka, Tail};
use tests::Server;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::pipe;
use tokio_tungstenite::tungstenite::Message;

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Time between two looks at something that has no event to wait for.
const POLL: Duration = Duration::from_millis(50);
const KILLS: usize = 4;
const ROOMS: usize = 3;
const TURNS_PER_ROOM: usize = 40;
/// Frames that the client has on the way at a time.
const WINDOW: usize = 8;
/// Longest time from the first frame to the kill: among the acknowledgements, and up to long after the last turn.
const KILL_AFTER_MICROS_MAX: [u64; 2] = [10_000, 500_000];

/// The program, running as a process of its own.
struct Program {
    child: Ended,
    /// Held open: the program may go on printing.
    _out: BufReader<pipe::Receiver>,
    errors: pipe::Receiver,
    /// What it printed when it was ready, by its first word.
    said: BTreeMap<String, String>,
}

/// `undertone`, on free ports and the fast tier.
fn command(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_undertone"));
    command
        .args(["--data-dir".as_ref(), dir.as_os_str()])
        .env("UNDERTONE__HTTP__LISTEN", "127.0.0.1:0")
        .env("UNDERTONE__BROKER__LISTEN", "127.0.0.1:0")
        .env("UNDERTONE__PROCESSORS__TIER", "fast")
        .env("UNDERTONE__LOG__LEVEL", "warn")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Settings that point the program to a log outside of it.
fn on(bootstrap: Option<&str>) -> Vec<(&'static str, &str)> {
    let of = |bootstrap| {
        [
            ("UNDERTONE__KAFKA__BOOTSTRAP", bootstrap),
            ("UNDERTONE__KAFKA__PARTITIONS", "2"),
            ("UNDERTONE__CONTEXT__ONLY_MACHINE", "true"),
        ]
    };
    bootstrap.into_iter().flat_map(of).collect()
}

/// The other end of a stream of a child.
fn pipe_of(end: impl Into<OwnedFd>) -> pipe::Receiver {
    pipe::Receiver::from_owned_fd(end.into()).unwrap()
}

/// Runs a command that ends by itself; its exit code and its error stream.
async fn failing(mut command: Command) -> (Option<i32>, String) {
    let mut child = Ended(command.spawn().expect("start the program"));
    let mut said = String::new();
    let mut errors = pipe_of(child.0.stderr.take().unwrap());
    let read = tokio::time::timeout(PATIENCE, errors.read_to_string(&mut said)).await;
    read.expect("it ends by itself").unwrap();
    (child.0.wait().unwrap().code(), said)
}

/// A process that does not outlive the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Program {
    /// Every role in one process but, where the test runs on an Apache Kafka, the broker.
    async fn start(server: &Server) -> Program {
        Program::run(server.folder(), &["up"], &on(server.apache())).await
    }

    /// Reads what it prints until it is ready.
    async fn run(dir: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Program {
        let mut command = command(dir);
        command.args(arguments).envs(variables.iter().copied());
        Program::of(command).await
    }

    /// Reads what the program of a command prints until it is ready.
    async fn of(mut command: Command) -> Program {
        let mut child = Ended(command.spawn().expect("start the program"));
        let mut out = BufReader::new(pipe_of(child.0.stdout.take().unwrap()));
        let mut errors = pipe_of(child.0.stderr.take().unwrap());
        let mut said = BTreeMap::new();
        while !said.contains_key("roles") {
            let mut line = String::new();
            let read = tokio::time::timeout(PATIENCE, out.read_line(&mut line)).await.expect("it is ready in time");
            if read.unwrap() == 0 {
                let mut said = String::new();
                errors.read_to_string(&mut said).await.unwrap();
                panic!("it ended before it was ready: {said}");
            }
            if let Some((word, rest)) = line.trim().split_once(' ') {
                said.insert(word.to_owned(), rest.trim().to_owned());
            }
        }
        Program { child, _out: out, errors, said }
    }

    fn authority(&self) -> &str {
        self.said["http"].strip_prefix("http://").unwrap()
    }

    async fn socket(&self) -> Socket {
        let address = format!("ws://{}/ingest/ws", self.authority());
        tokio_tungstenite::connect_async(address).await.unwrap().0
    }

    async fn get(&self, path: &str) -> (u16, String) {
        let mut socket = tokio::net::TcpStream::connect(self.authority()).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.authority());
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        tokio::time::timeout(PATIENCE, socket.read_to_string(&mut answer)).await.unwrap().unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    /// Sends a signal by its name without `SIG`.
    fn signal(&self, name: &str) {
        let command = format!("kill -s {name} {}", self.child.0.id());
        assert!(Command::new("sh").args(["-c", &command]).status().unwrap().success());
    }

    /// Its exit code, once it has ended, and what it wrote on its error stream.
    async fn ended(mut self) -> (Option<i32>, String) {
        let mut said = String::new();
        let read = tokio::time::timeout(PATIENCE, self.errors.read_to_string(&mut said)).await;
        read.expect("it ends in time").unwrap();
        (self.child.0.wait().unwrap().code(), said)
    }
}

type Socket = tokio_tungstenite::WebSocketStream<tokio_tungstenite::MaybeTlsStream<tokio::net::TcpStream>>;

/// One thing to say, of which the client knows whether it was acknowledged.
#[derive(Debug, Clone)]
struct Frame {
    room: usize,
    number: usize,
}

impl Frame {
    fn text(&self) -> String {
        format!("turn {} is so wonderful, thank you", self.number)
    }

    fn id(&self) -> String {
        format!("r{}-{}", self.room, self.number)
    }

    fn message(&self) -> Message {
        let frame = json!({
            "id": self.id(), "conversation": format!("room-{}", self.room), "sender": { "id": "ann" },
            "text": self.text(),
        });
        Message::text(frame.to_string())
    }
}

/// Sends frames until `left` remain unacknowledged or the socket dies; what was acknowledged leaves `frames`. A server that
/// goes down says when to come back; that is returned.
async fn speak(socket: &mut Socket, frames: &mut VecDeque<Frame>, left: usize) -> Option<u64> {
    let mut retry_ms = None;
    let mut sent = 0;
    while frames.len() > left {
        while sent < WINDOW.min(frames.len() - left) {
            if socket.send(frames[sent].message()).await.is_err() {
                return retry_ms;
            }
            sent += 1;
        }
        let Some(Ok(message)) = socket.next().await else { return retry_ms };
        let Message::Text(text) = message else { continue };
        let answer: Value = serde_json::from_str(&text).unwrap();
        if answer["type"] == "reconnect" {
            retry_ms = answer["retry_ms"].as_u64();
            continue;
        }
        assert_eq!((&answer["type"], &answer["id"]), (&json!("ack"), &json!(frames[0].id())), "{answer}");
        frames.pop_front();
        sent -= 1;
    }
    retry_ms
}

/// Sebastiano Vigna's splitmix64.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn seed() -> u64 {
    let given = std::env::var("UNDERTONE_TEST_SEED").ok().map(|text| text.parse().expect("a number"));
    let seed = given.unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos().into());
    println!("UNDERTONE_TEST_SEED={seed}");
    seed
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_moment_it_loses_nothing_and_doubles_nothing() {
    let server = Server::for_program().await;
    let mut state = seed();
    let all = (0..TURNS_PER_ROOM).flat_map(|number| (0..ROOMS).map(move |room| Frame { room, number }));
    let mut frames: VecDeque<Frame> = all.collect();
    let total = frames.len();
    for kill in 1..=KILLS {
        let program = Program::start(&server).await;
        let mut socket = program.socket().await;
        let after = random(&mut state) % KILL_AFTER_MICROS_MAX[kill % KILL_AFTER_MICROS_MAX.len()];
        let left = total - total * kill / (KILLS + 1);
        let _ = tokio::time::timeout(Duration::from_micros(after), async {
            speak(&mut socket, &mut frames, left).await;
            // All of this round is acknowledged: the kill falls into what follows.
            std::future::pending::<()>().await;
        })
        .await;
        println!("kill {kill} after {after} µs, {} of {total} acknowledged", total - frames.len());
        drop(program.child);
    }
    let program = Program::start(&server).await;
    let mut socket = program.socket().await;
    tokio::time::timeout(PATIENCE, speak(&mut socket, &mut frames, 0)).await.expect("every frame is acknowledged");
    assert!(frames.is_empty());

    expect_all_and_end(program, total).await;
}

/// Every turn was enriched and is in the history, and the program ends in order; what it said meanwhile.
async fn expect_all_and_end(program: Program, total: usize) -> String {
    expect_committed(&program, total).await;
    for room in 0..ROOMS {
        expect_history(&program, room, TURNS_PER_ROOM).await;
    }
    program.signal("TERM");
    let (code, said) = program.ended().await;
    assert_eq!(code, Some(0), "{said}");
    said
}

/// What a committed reader of the enriched turns sees: each turn once, in order, each folded once.
async fn expect_committed(program: &Program, total: usize) {
    let bootstrap = program.said["kafka"].clone();
    let kafka = Kafka { bootstrap, client_id: "kill-test".to_owned(), ..Kafka::default() };
    let codec = Codec::embedded();
    let mut tail = Tail::open(&kafka, topic::TURNS_ENRICHED, From::Beginning).await.unwrap();
    let mut seen: BTreeMap<String, Vec<Turn>> = BTreeMap::new();
    for _ in 0..total {
        let message = tokio::time::timeout(PATIENCE, tail.next()).await.expect("no turn is lost").unwrap();
        let turn: Turn = codec.decode(message.value.as_deref().unwrap()).unwrap();
        seen.entry(turn.conversation.clone()).or_default().push(turn);
    }
    for turns in seen.values() {
        assert_eq!(turns.len(), TURNS_PER_ROOM, "no turn is doubled");
        for (turn, number) in turns.iter().zip(0..) {
            let folded = turn.emotion.as_ref().and_then(|emotion| emotion.mood.as_ref()).map(|mood| mood.turns);
            assert!(turn.external_id.ends_with(&format!("-{number}")), "{number}: {turn:?}");
            assert_eq!((turn.position, folded), (Some(number + 1), Some(number + 1)), "{turn:?}");
        }
    }
    let sum = |offsets: BTreeMap<i32, i64>| offsets.values().sum::<i64>();
    while sum(tail.positions()) < sum(tail.ends().await.unwrap()) {
        // What is left are the marks of transactions, which pass without a word.
        let more = tokio::time::timeout(POLL, tail.next()).await;
        assert!(more.is_err(), "no turn is doubled");
    }
    let rejects = Admin::connect(&kafka).unwrap().offsets(topic::REJECTS).await.unwrap();
    assert!(rejects.values().all(|(low, high)| low == high), "no kill from outside counts against a turn: {rejects:?}");
}

/// What the history shows of a room: every turn once, positions dense.
async fn expect_history(program: &Program, room: usize, wanted: usize) {
    let path = format!("/v1/conversations/room-{room}/turns?order=asc&limit={}", wanted + 1);
    let begun = Instant::now();
    let mut looks = tokio::time::interval(POLL);
    let turns = loop {
        looks.tick().await;
        let (code, body) = program.get(&path).await;
        let page: Value = serde_json::from_str(&body).unwrap();
        match page["turns"].as_array() {
            Some(turns) if code == 200 && turns.len() >= wanted => break turns.clone(),
            _ => assert!(begun.elapsed() < PATIENCE, "the history is complete in time: {body}"),
        }
    };
    let positions: Vec<i64> = turns.iter().map(|turn| turn["position"].as_i64().unwrap()).collect();
    assert_eq!(positions, (1..=wanted as i64).collect::<Vec<_>>());
    for (turn, number) in turns.iter().zip(0..) {
        assert_eq!(turn["text"], Frame { room, number }.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_drains_even_with_open_sockets() {
    let server = Server::for_program().await;
    let program = Program::start(&server).await;
    let mut socket = program.socket().await;
    let mut frames: VecDeque<Frame> = (0..WINDOW).map(|number| Frame { room: 0, number }).collect();
    tokio::time::timeout(PATIENCE, speak(&mut socket, &mut frames, 0)).await.expect("acknowledged in time");
    let begun = Instant::now();
    program.signal("TERM");
    // The server says goodbye, with the answers given.
    let word = tokio::time::timeout(PATIENCE, socket.next()).await.expect("a word at the end");
    assert!(matches!(&word, Some(Ok(Message::Text(text))) if text.contains("retry_ms")), "{word:?}");
    let farewell = tokio::time::timeout(PATIENCE, socket.next()).await.expect("and the end");
    assert!(matches!(farewell, Some(Ok(Message::Close(Some(frame)))) if u16::from(frame.code) == 1001));
    drop(socket);
    let (code, said) = program.ended().await;
    assert_eq!(code, Some(0), "{said}");
    println!("from SIGTERM to the end: {} ms", begun.elapsed().as_millis());
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_under_load_loses_nothing_and_says_when_to_come_back() {
    let server = Server::for_program().await;
    let program = Program::start(&server).await;
    let address = format!("ws://{}/v1/stream?all=1", program.authority());
    let mut stream = tokio_tungstenite::connect_async(address).await.unwrap().0;
    let mut rooms = Vec::new();
    for room in 0..ROOMS {
        let frames: VecDeque<Frame> = (0..TURNS_PER_ROOM).map(|number| Frame { room, number }).collect();
        rooms.push((program.socket().await, frames));
    }
    let half = tokio::sync::Barrier::new(ROOMS + 1);
    let speaking = rooms.iter_mut().map(async |(socket, frames)| {
        speak(socket, frames, TURNS_PER_ROOM / 2).await;
        half.wait().await;
        // The signal comes while all of them go on.
        match speak(socket, frames, 0).await {
            Some(retry_ms) => retry_ms,
            None => farewell(socket).await["retry_ms"].as_u64().unwrap(),
        }
    });
    let signal = async {
        half.wait().await;
        program.signal("TERM");
    };
    let spoken = async { tokio::join!(futures_util::future::join_all(speaking), signal).0 };
    let retries = tokio::time::timeout(PATIENCE, spoken).await.expect("every socket ends");
    assert!(retries.iter().all(|retry_ms| (5_000..=10_000).contains(retry_ms)), "{retries:?}");
    assert!(farewell(&mut stream).await["resume"].is_string());
    let (code, said) = program.ended().await;
    assert_eq!(code, Some(0), "{said}");

    // What was acknowledged is not sent again, and is there all the same.
    let mut left: VecDeque<Frame> = rooms.into_iter().flat_map(|(_, frames)| frames).collect();
    println!("{} of {} frames were not acknowledged before the end", left.len(), ROOMS * TURNS_PER_ROOM);
    let program = Program::start(&server).await;
    let mut socket = program.socket().await;
    tokio::time::timeout(PATIENCE, speak(&mut socket, &mut left, 0)).await.expect("every frame is acknowledged");
    expect_committed(&program, ROOMS * TURNS_PER_ROOM).await;
    for room in 0..ROOMS {
        expect_history(&program, room, TURNS_PER_ROOM).await;
    }
}

/// The typed word of a server that goes down.
async fn farewell(socket: &mut Socket) -> Value {
    loop {
        let next = tokio::time::timeout(PATIENCE, socket.next()).await.expect("a word at the end");
        if let Message::Text(text) = next.expect("before the end").expect("in order")
            && let word = serde_json::from_str::<Value>(&text).unwrap()
            && word["type"] == "reconnect"
        {
            return word;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn second_signal_ends_at_once() {
    let server = Server::for_program().await;
    let mut variables = on(server.apache());
    variables.push(("UNDERTONE__TELEGRAM__BOTS__B__WEBHOOK_SECRET", "s"));
    let program = Program::run(server.folder(), &["up"], &variables).await;
    // A call whose body does not come holds up the drain, so that there is something to cut short.
    let mut held = tokio::net::TcpStream::connect(program.authority()).await.unwrap();
    let head = format!(
        "POST /telegram/b/webhook HTTP/1.1\r\nHost: {}\r\nX-Telegram-Bot-Api-Secret-Token: s\r\n\
         Content-Length: 9\r\nExpect: 100-continue\r\n\r\n",
        program.authority()
    );
    held.write_all(head.as_bytes()).await.unwrap();
    let mut waits_for_the_body = [0; 12];
    held.read_exact(&mut waits_for_the_body).await.unwrap();
    assert_eq!(&waits_for_the_body, b"HTTP/1.1 100");
    program.signal("TERM");
    program.signal("INT");
    let (code, said) = program.ended().await;
    assert_eq!(code, Some(130), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn role_that_fails_ends_the_process_with_the_reason() {
    let (server, dir) = (Server::for_program().await, tempfile::tempdir().unwrap());
    let log = match server.apache() {
        Some(_) => None,
        None => Some(Program::run(server.folder(), &["run", "broker"], &[]).await),
    };
    let roles = ["run", "ingest", "processors", "history", "api"];
    let bootstrap = log.as_ref().map_or(server.kafka.bootstrap.as_str(), |log| &log.said["kafka"]);
    let variables = on(Some(bootstrap));
    let work = Program::run(dir.path(), &roles, &variables).await;
    let mut socket = work.socket().await;
    let mut frames: VecDeque<Frame> = (0..WINDOW).map(|number| Frame { room: 0, number }).collect();
    tokio::time::timeout(PATIENCE, speak(&mut socket, &mut frames, 0)).await.expect("acknowledged in time");
    expect_history(&work, 0, WINDOW).await;
    drop(socket);
    work.signal("TERM");
    let (code, said) = work.ended().await;
    assert_eq!(code, Some(0), "{said}");
    // The contexts are gone, and the log says that there were some: folding on would begin them anew.
    std::fs::remove_file(dir.path().join("contexts.sqlite")).unwrap();
    let mut again = command(dir.path());
    again.args(roles).envs(variables.iter().copied());
    let (code, said) = failing(again).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("role processors failed") && said.contains("undertone contexts rebuild"), "{said}");
    if let Some(log) = log {
        log.signal("TERM");
        let (code, said) = log.ended().await;
        assert_eq!(code, Some(0), "{said}");
    }
}

/// What concerns the embedded broker alone.
mod embedded {
    use super::*;

    mod disk;

    #[tokio::test(flavor = "multi_thread")]
    async fn start_that_fails_says_the_mend_and_exits_with_one() {
        let dir = tempfile::tempdir().unwrap();
        let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = taken.local_addr().unwrap().to_string();
        for (variable, value, mend) in [
            ("UNDERTONE__HTTP__LISTEN", port.as_str(), "[http] listen"),
            ("UNDERTONE__BROKER__LISTEN", port.as_str(), "[broker]"),
            ("UNDERTONE__MODELS__DIR", "/nonexistent", "[models] dir"),
            ("UNDERTONE__HTTP__LISTNE", "", "did you mean http.listen?"),
        ] {
            let mut command = command(dir.path());
            command.arg("up").env(variable, value);
            let (code, said) = failing(command).await;
            assert_eq!(code, Some(1), "{variable}: {said}");
            assert!(said.contains(mend), "{variable}: {said}");
        }
    }
}
