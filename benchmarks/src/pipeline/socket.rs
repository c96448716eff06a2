//! The whole program as a process of its own: updates posted to the webhook when they are due, and their enriched turns
//! read from the live stream, all stages in between. Also how long it takes to be ready, and its memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use futures_util::{SinkExt as _, StreamExt as _};
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, mpsc};
use tokio_tungstenite::tungstenite::Message;

use super::Given;
use super::load::texts;
use super::program::{Launch, Program};
use crate::figures::{Aim, Report, progress};
use crate::latency::{Latencies, Schedule, clock, sleep_until};

const PER_SECOND: u64 = 500;
const CHATS: u64 = 100;
const WARM_UP: Duration = Duration::from_secs(2);
/// Connections to the webhook: as many calls can be under way.
const CONNECTIONS: usize = 32;
/// Updates that wait for a connection; more means that the program stands still.
const WAITING_MAX: usize = 10_000;
/// How long the last turns may take.
const PATIENCE: Duration = Duration::from_secs(30);
const SECRET: &str = "bench-secret";
/// Longest answer of the webhook, in bytes.
const ANSWER_BYTES_MAX: usize = 4096;

/// From webhook to socket at 500 updates a second.
pub(super) fn socket(given: &Given<'_>, report: &mut Report) -> anyhow::Result<()> {
    let [mut ready, mut started, mut loaded] = [const { Vec::new() }; 3];
    let [mut p50, mut p99, mut tail, mut max] = [const { Vec::new() }; 4];
    for _ in 0..given.runs {
        let folder = tempfile::tempdir().context("make a temporary folder")?;
        let variables = [("UNDERTONE__TELEGRAM__BOTS__BENCH__WEBHOOK_SECRET", SECRET)];
        let launch = Launch { arguments: &["up"], variables: &variables, core: None };
        let program = Program::start(&given.undertone.path, folder.path(), &launch)?;
        ready.push(program.ready_in().as_secs_f64() * 1000.0);
        started.push(program.memory_mb(false)?);
        let latencies = run(given, program.http())?;
        loaded.push(program.memory_mb(true)?);
        p50.push(latencies.quantile_ms(0.5));
        p99.push(latencies.quantile_ms(0.99));
        tail.push(latencies.quantile_ms(0.999));
        max.push(latencies.max_ms());
        progress(&format!(
            "webhook to socket: p50 {:.1} p99 {:.1} ms",
            latencies.quantile_ms(0.5),
            latencies.quantile_ms(0.99)
        ));
    }
    let beside = "500 updates a second, all stages, one process";
    report.add("ready_ms", Aim::AtMost(400.0), &ready, "`up`, new folder, models loaded; from exec to ready");
    report.add("rss_mb", Aim::AtMost(200.0), &started, "resident memory of `up` when it is ready");
    report.add("rss_loaded_mb", Aim::None, &loaded, "the most that it was under the load below");
    report.add("webhook_to_socket_p50_ms", Aim::None, &p50, beside);
    report.add("webhook_to_socket_p99_ms", Aim::AtMost(25.0), &p99, beside);
    report.add("webhook_to_socket_p999_ms", Aim::None, &tail, beside);
    report.add("webhook_to_socket_max_ms", Aim::None, &max, beside);
    Ok(())
}

fn run(given: &Given<'_>, address: &str) -> anyhow::Result<Latencies> {
    let counted = Duration::from_secs(given.seconds);
    let updates = PER_SECOND * (WARM_UP + counted).as_secs();
    let texts = texts(&given.undertone.models, updates as usize)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")?;
    let schedule = Schedule { start: clock() + Duration::from_millis(500), per_second: PER_SECOND };
    let (due, waiting) = mpsc::channel(WAITING_MAX);
    let failed = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&failed);
    let clockwork = std::thread::spawn(move || {
        for n in 0..updates {
            sleep_until(schedule.due(n));
            if stopped.load(Ordering::Relaxed) || due.try_send(n).is_err() {
                return;
            }
        }
    });
    let latencies = runtime.block_on(async {
        let answered = AtomicU64::new(0);
        let waiting = Mutex::new(waiting);
        let callers: Vec<_> = (0..CONNECTIONS).map(|_| call(address, &waiting, &texts, &answered)).collect();
        let called = futures_util::future::try_join_all(callers);
        let read = read(address, schedule, updates);
        tokio::try_join!(async { called.await.map(drop) }, read).map(|((), latencies)| latencies)
    });
    failed.store(true, Ordering::Relaxed);
    clockwork.join().map_err(|_| anyhow::anyhow!("the clock panicked"))?;
    latencies
}

/// Posts updates over one connection, until there are no more.
async fn call(
    address: &str,
    waiting: &Mutex<mpsc::Receiver<u64>>,
    texts: &[String],
    answered: &AtomicU64,
) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(address).await.context("connect to the webhook")?;
    stream.set_nodelay(true)?;
    let mut answer = vec![0; ANSWER_BYTES_MAX];
    loop {
        let next = waiting.lock().await.recv().await;
        let Some(n) = next else { return Ok(()) };
        let body = serde_json::json!({
            "update_id": n,
            "message": {
                "message_id": n, "date": 1_700_000_000 + n / PER_SECOND,
                "chat": {"id": n % CHATS + 1, "type": "private", "first_name": "Ann"},
                "from": {"id": n % CHATS + 1, "is_bot": false, "first_name": "Ann"},
                "text": texts[n as usize],
            }
        })
        .to_string();
        let request = format!(
            "POST /telegram/bench/webhook HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n\
             X-Telegram-Bot-Api-Secret-Token: {SECRET}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.context("post an update")?;
        // Its answers are small and come in one piece, or in two.
        let mut length = 0;
        while !answer[..length].windows(4).any(|end| end == b"\r\n\r\n") {
            let read = stream.read(&mut answer[length..]).await.context("read an answer")?;
            anyhow::ensure!(read > 0, "the webhook closed the connection");
            length += read;
        }
        let line = String::from_utf8_lossy(&answer[..length.min(40)]).into_owned();
        anyhow::ensure!(line.starts_with("HTTP/1.1 200"), "the webhook answered {line}");
        answered.fetch_add(1, Ordering::Relaxed);
    }
}

#[derive(Deserialize)]
struct Event {
    turn: Option<Said>,
}

#[derive(Deserialize)]
struct Said {
    external_id: String,
}

/// Follows everything until the last update has come.
async fn read(address: &str, schedule: Schedule, updates: u64) -> anyhow::Result<Latencies> {
    let (mut socket, _) =
        tokio_tungstenite::connect_async(format!("ws://{address}/v1/stream")).await.context("open a stream")?;
    let follow = r#"{"type":"follow","all":true}"#;
    socket.send(Message::text(follow)).await.context("follow everything")?;
    let (mut latencies, mut seen) = (Latencies::new(), 0);
    while seen < updates {
        let next = tokio::time::timeout(PATIENCE, socket.next()).await;
        let next = next.with_context(|| format!("{seen} of {updates} turns came"))?;
        let text = match next.context("the stream ended")?.context("read the stream")? {
            Message::Text(text) => text,
            Message::Close(frame) => anyhow::bail!("the stream was closed after {seen} of {updates} turns: {frame:?}"),
            _ => continue,
        };
        let now = clock();
        let event: Event = serde_json::from_str(&text).context("read an event")?;
        let Some(turn) = event.turn else { continue };
        let due = schedule.due(turn.external_id.parse().context("updates are numbered")?);
        seen += 1;
        if due > schedule.start + WARM_UP {
            latencies.note(now.saturating_sub(due));
        }
    }
    Ok(latencies)
}
