//! Thousands of open WebSockets to a process that plays `api` alone: what each takes in memory, idle and following, and
//! what a frame costs in processor time. The pipeline in front of it is a process of its own, and so are the clients: all
//! on one machine, so a socket here takes two files and a port of it.
//!
//! Memory and times are the kernel's, of the `api` process alone; latencies are of a machine that does all of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures_util::{SinkExt as _, StreamExt as _};
use schemas::Codec;
use schemas::topic::TURNS_RECEIVED;
use store::log::{Kafka, Producer, ProducerLimits};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

use super::load::{record, texts, turn};
use super::program::{Launch, Program};
use crate::figures::{Aim, Report, progress};
use crate::latency::Latencies;
use crate::spent::{Spent, spent};
use crate::{Outcome, Undertone};

/// Sockets that are opened at a time; the listener's queue is longer.
const OPENED_AT_A_TIME: usize = 64;
/// Files that the clients and the process need beside a socket each.
const FILES_BESIDE: u64 = 200;
/// Memory is looked at when nothing has happened for so long.
const QUIET: Duration = Duration::from_secs(3);
/// The wait between two pings, and two of them are waited for where the cost of open sockets is measured.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// How long a step may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// What the clients keep for reading; they are thousands in one process.
const CLIENT_BUFFER: usize = 4096;
/// How a turn begins, and what is in the answer to `follow`.
const TURN: &str = r#"{"type":"turn""#;
const FOLLOWING: &str = r#""type":"following""#;
/// What all sockets follow in the end.
const EVERYBODY: &str = "everybody";

/// What to run.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Sockets; each takes an open file of this process and one of the one that is measured (`ulimit -n`).
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(10..=25_000))]
    sockets: u32,
    /// Turns a second while each socket follows a conversation of its own.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    rate: u64,
    /// How long these are sent, in seconds.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Turns that go to all sockets, one after the other.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=1000))]
    fan_outs: u64,
}

/// What the clients follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Following {
    Nothing,
    /// Each a conversation of its own.
    Own,
    /// That one and the one of all.
    Everybody,
}

/// Runs it; progress goes to the error stream.
///
/// # Errors
/// It could not be run, or a frame did not come.
pub fn run(options: &Options, undertone: &Undertone) -> anyhow::Result<Outcome> {
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    let needed = u64::from(options.sockets) + FILES_BESIDE;
    anyhow::ensure!(files >= needed, "{needed} open files are needed and {files} allowed: raise `ulimit -n`");
    let folder = tempfile::tempdir().context("make a temporary folder")?;
    let launch = |arguments, variables| Launch { arguments, variables, core: None };
    let variables = [("UNDERTONE__PROCESSORS__TIER", "fast"), ("UNDERTONE__CONTEXT__ONLY_MACHINE", "true")];
    let pipeline =
        Program::start(&undertone.path, folder.path(), &launch(&["run", "broker", "processors"][..], &variables[..]))?;
    let streams = (options.sockets + 1).to_string();
    let variables = [
        ("UNDERTONE__KAFKA__BOOTSTRAP", pipeline.kafka()),
        ("UNDERTONE__API__STREAMS_MAX", streams.as_str()),
        ("UNDERTONE__HTTP__CONNECTIONS_MAX", streams.as_str()),
        ("UNDERTONE__CONTEXT__ONLY_MACHINE", "true"),
    ];
    let api = Program::start(&undertone.path, folder.path(), &launch(&["run", "api"][..], &variables[..]))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let outcome = runtime.block_on(measure(options, undertone, &pipeline, &api));
    runtime.shutdown_background();
    outcome
}

async fn measure(
    options: &Options,
    undertone: &Undertone,
    pipeline: &Program,
    api: &Program,
) -> anyhow::Result<Outcome> {
    let look = || spent(api.id());
    let count = options.sockets as usize;
    let mut report = Report::new();
    let kafka =
        Kafka { bootstrap: pipeline.kafka().to_owned(), client_id: "undertone-bench".to_owned(), ..Kafka::default() };
    let speaker = Speaker {
        codec: Codec::embedded(),
        producer: Producer::connect(&kafka, &ProducerLimits::default())?,
        texts: texts(&undertone.models, (options.rate * options.seconds + options.fan_outs) as usize + 1)?,
    };
    // What is made once, with the first turn, is no socket's.
    speaker.say("nobody", 0).await?;
    tokio::time::sleep(QUIET).await;
    let empty = look()?;
    let mut clients = Clients::new();
    clients.open(api.http(), count).await?;
    tokio::time::sleep(QUIET).await;
    let idle = look()?;
    let of_each = |before: Spent, after: Spent| (after.rss_mb - before.rss_mb) * 1024.0 / count as f64;
    let sockets = format!("{count} sockets");
    report.add("api_rss_mb", Aim::None, &[empty.rss_mb], "resident memory of `api` without a client");
    report.add("idle_socket_kib", Aim::None, &[of_each(empty, idle)], format!("{sockets} that follow nothing"));
    tokio::time::sleep(HEARTBEAT * 2).await;
    let beaten = look()?;
    let open_us = 1e6 * (beaten.cpu_s - idle.cpu_s) / (HEARTBEAT * 2).as_secs_f64() / count as f64;
    report.add("open_socket_cpu_us_per_s", Aim::None, &[open_us], "a ping each 15 s, nothing else");

    clients.follow(Following::Own).await?;
    tokio::time::sleep(QUIET).await;
    let following = look()?;
    report.add(
        "following_socket_kib",
        Aim::None,
        &[of_each(empty, following)],
        "each follows a conversation of its own",
    );

    let (before, begun) = (look()?, clients.heard());
    let turns = options.rate * options.seconds;
    speaker.say_on_time(options, count).await?;
    clients.have_heard(begun + turns).await?;
    let own = look()?;
    let turn_us = 1e6 * (own.cpu_s - before.cpu_s) / turns as f64;
    let beside = format!("{} turns a second, each to one of {sockets}", options.rate);
    report.add("turn_to_one_cpu_us", Aim::None, &[turn_us], beside);
    let frame = clients.bytes.load(Ordering::Relaxed) as f64 / clients.heard().max(1) as f64;
    report.add("frame_bytes", Aim::None, &[frame], "of these turns, as JSON");
    report.add("busy_socket_kib", Aim::None, &[of_each(empty, own)], "after these");

    clients.follow(Following::Everybody).await?;
    tokio::time::sleep(QUIET).await;
    let (before, mut latencies) = (look()?, Latencies::new());
    for number in 0..options.fan_outs {
        let (heard, said) = (clients.heard(), Instant::now());
        speaker.say(EVERYBODY, (turns + number) as usize).await?;
        clients.have_heard(heard + u64::from(options.sockets)).await?;
        latencies.note(said.elapsed());
    }
    let all = look()?;
    let frames = options.fan_outs as f64 * f64::from(options.sockets);
    let beside = format!("a turn to {sockets}, {} times", options.fan_outs);
    report.add("frame_cpu_us", Aim::None, &[1e6 * (all.cpu_s - before.cpu_s) / frames], &*beside);
    report.add(
        "fan_out_p50_ms",
        Aim::None,
        &[latencies.quantile_ms(0.5)],
        "from its saying to the last socket, clients here too",
    );
    report.add("fan_out_max_ms", Aim::None, &[latencies.max_ms()], "the slowest of these");
    report.add("following_all_socket_kib", Aim::None, &[of_each(empty, all)], "after these");
    Ok(report.outcome())
}

/// Says turns to the intake's topic, as an intake would.
struct Speaker {
    codec: Codec,
    producer: Producer,
    texts: Vec<String>,
}

impl Speaker {
    async fn say(&self, conversation: &str, number: usize) -> anyhow::Result<()> {
        let said = turn(conversation, number, &self.texts[number % self.texts.len()]);
        let records = vec![record(&self.codec, TURNS_RECEIVED, &said)?];
        for result in self.producer.append_all(records).await {
            result.context("say a turn")?;
        }
        Ok(())
    }

    /// A turn to one socket after the other.
    async fn say_on_time(&self, options: &Options, count: usize) -> anyhow::Result<()> {
        let mut ticks = tokio::time::interval(Duration::from_secs_f64(1.0 / options.rate as f64));
        for number in 0..(options.rate * options.seconds) as usize {
            ticks.tick().await;
            self.say(&own(number % count), number).await?;
        }
        Ok(())
    }
}

/// The conversation that one client alone follows.
fn own(client: usize) -> String {
    format!("of-{client}")
}

struct Clients {
    following: watch::Sender<Following>,
    /// Turns that came, over all.
    turns: Arc<AtomicU64>,
    /// Bytes of these.
    bytes: Arc<AtomicU64>,
    /// Clients to which the last command was acknowledged.
    told: Arc<AtomicU64>,
    tasks: JoinSet<anyhow::Result<()>>,
}

impl Clients {
    fn new() -> Clients {
        Clients {
            following: watch::Sender::new(Following::Nothing),
            turns: Arc::default(),
            bytes: Arc::default(),
            told: Arc::default(),
            tasks: JoinSet::new(),
        }
    }

    async fn open(&mut self, address: &str, count: usize) -> anyhow::Result<()> {
        let config = WebSocketConfig::default().read_buffer_size(CLIENT_BUFFER).write_buffer_size(0);
        for first in (0..count).step_by(OPENED_AT_A_TIME) {
            let opened = (first..count.min(first + OPENED_AT_A_TIME)).map(async |client| {
                let stream = TcpStream::connect(address).await.context("connect")?;
                let url = format!("ws://{address}/v1/stream");
                let opened = tokio_tungstenite::client_async_with_config(url, stream, Some(config)).await;
                anyhow::Ok((client, opened.with_context(|| format!("open socket {client}"))?.0))
            });
            for (client, socket) in futures_util::future::try_join_all(opened).await? {
                let (turns, bytes, told) = (Arc::clone(&self.turns), Arc::clone(&self.bytes), Arc::clone(&self.told));
                self.tasks.spawn(listen(client, socket, self.following.subscribe(), [turns, bytes, told]));
            }
        }
        progress(&format!("{count} sockets are open"));
        Ok(())
    }

    /// All of them follow, acknowledged.
    async fn follow(&mut self, what: Following) -> anyhow::Result<()> {
        self.told.store(0, Ordering::Relaxed);
        self.following.send_replace(what);
        let all = self.tasks.len() as u64;
        let told = Arc::clone(&self.told);
        self.until(|| told.load(Ordering::Relaxed) >= all).await.context("follow")
    }

    /// Turns that have come.
    fn heard(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }

    async fn have_heard(&mut self, turns: u64) -> anyhow::Result<()> {
        let heard = Arc::clone(&self.turns);
        let come = self.until(|| heard.load(Ordering::Relaxed) >= turns).await;
        come.with_context(|| format!("{} of {turns} turns came", self.heard()))
    }

    async fn until(&mut self, holds: impl Fn() -> bool) -> anyhow::Result<()> {
        let begun = Instant::now();
        while !holds() {
            anyhow::ensure!(begun.elapsed() < PATIENCE, "not within {} s", PATIENCE.as_secs());
            if let Some(ended) = self.tasks.try_join_next() {
                ended.context("a client ended abnormally")??;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }
}

/// One client.
async fn listen(
    client: usize,
    mut socket: tokio_tungstenite::WebSocketStream<TcpStream>,
    mut following: watch::Receiver<Following>,
    [turns, bytes, told]: [Arc<AtomicU64>; 3],
) -> anyhow::Result<()> {
    loop {
        tokio::select! {
            changed = following.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                let conversation = match *following.borrow_and_update() {
                    Following::Nothing => continue,
                    Following::Own => own(client),
                    Following::Everybody => EVERYBODY.to_owned(),
                };
                let follow = serde_json::json!({ "type": "follow", "conversations": [conversation] });
                socket.send(Message::text(follow.to_string())).await.context("follow")?;
            }
            message = socket.next() => match message.context("a socket was closed")?.context("read a socket")? {
                Message::Text(text) if text.starts_with(TURN) => {
                    bytes.fetch_add(text.len() as u64, Ordering::Relaxed);
                    turns.fetch_add(1, Ordering::Relaxed);
                }
                Message::Text(text) if text.contains(FOLLOWING) => {
                    told.fetch_add(1, Ordering::Relaxed);
                }
                Message::Text(text) => anyhow::bail!("a frame of an unknown kind: {text}"),
                // Pings are answered by the library.
                _ => {}
            },
        }
    }
}
