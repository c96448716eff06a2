//! How turns come to several processes that serve streams: each tails the topic, or one process tails it and a Redis hands
//! turns on, by sharded publish-subscribe (a channel a conversation) or by streams (one a partition).
//!
//! Every part is a process of its own, so that the kernel says what it costs: the readers, each with the hub of the program
//! and somebody who follows a share of the conversations; the publisher, where there is one; the broker; the Redis, which
//! says itself. Turns are those of all stages, with an embedding. Where every turn is followed, the hub reads and shows
//! every turn, as it would without looking who follows it: the difference to one in a hundred is what that look saves.

mod cpu;
mod load;
mod part;
mod redis;
mod table;

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::Outcome;
use crate::figures::progress;
use load::Load;
use part::Part;
use table::{Cell, Row, Table};

/// Conversations that the turns belong to.
const ROOMS: usize = 1000;
/// As many as the program makes by default.
const PARTITIONS: i32 = 8;
/// Longest wait for a part to start, or for the last turn to come.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Also measure both ways through this Redis, from 7.0 on; its keys `fanout:…` are removed.
    #[arg(long, value_name = "HOST:PORT")]
    redis: Option<String>,
    /// Numbers of processes that serve streams.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 4], value_parser = clap::value_parser!(u8).range(1..=16))]
    processes: Vec<u8>,
    /// Turns a second; 0 sends as many as go. The defaults are the mean and the peak of a million conversations a day.
    #[arg(long, value_delimiter = ',', default_values_t = [231, 2310, 0])]
    per_second: Vec<u32>,
    /// Per cent of the conversations that each process has followers of.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 100], value_parser = clap::value_parser!(u8).range(1..=100))]
    followed: Vec<u8>,
    /// How long each is measured, in seconds, beside a second of warm-up.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=600))]
    seconds: u16,
    /// How often each is measured.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// One of the processes of a measurement: it starts them itself.
    #[arg(long, hide = true)]
    part: Option<String>,
}

/// How turns come to a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Way {
    Tail,
    Channels,
    Streams,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Way::Tail => "tail",
            Way::Channels => "redis channels",
            Way::Streams => "redis streams",
        }
    }
}

/// Runs it; progress goes to the error stream.
///
/// # Errors
/// It could not be run, or a turn did not come.
pub fn run(options: &Options) -> anyhow::Result<Outcome> {
    if let Some(part) = &options.part {
        part::run(serde_json::from_str(part).context("read which part this is")?)?;
        return Ok(Outcome { text: String::new(), json: serde_json::Value::Null, passed: true });
    }
    let folder = tempfile::tempdir().context("make a temporary folder")?;
    let broker = Running::start(&Part::Broker { folder: folder.path().to_owned() })?;
    let load = Load::open(&broker.said)?;
    let mut table = Table::new(load.record_bytes()?);
    let ways: &[Way] = if options.redis.is_some() { &[Way::Tail, Way::Channels, Way::Streams] } else { &[Way::Tail] };
    for _ in 0..options.runs {
        for &per_second in &options.per_second {
            for &followed in &options.followed {
                for &processes in &options.processes {
                    for &way in ways {
                        let cell = Cell { way, processes, followed, per_second };
                        let row = measure(options, &broker, &load, cell)?;
                        progress(&format!("{} {}", cell.name(), row.name()));
                        table.note(cell, row);
                    }
                }
            }
        }
    }
    Ok(table.outcome())
}

/// One run of one cell of the table.
fn measure(options: &Options, broker: &Running, load: &Load, cell: Cell) -> anyhow::Result<Row> {
    let (kafka, redis) = (broker.said.clone(), options.redis.clone().unwrap_or_default());
    if cell.way != Way::Tail {
        redis::forget(&redis)?;
    }
    let count = ROOMS * usize::from(cell.followed) / 100;
    let mut readers = Vec::new();
    for number in 0..usize::from(cell.processes) {
        let first = number * count;
        let part =
            Part::Reader { kafka: kafka.clone(), redis: redis.clone(), way: cell.way, rooms: (first, first + count) };
        readers.push(Running::start(&part)?);
    }
    let publisher = match cell.way {
        Way::Tail => None,
        way => Some(Running::start(&Part::Publisher { kafka, redis: redis.clone(), way })?),
    };
    let cpu = |readers: &[Running]| -> anyhow::Result<[f64; 4]> {
        let mut sums = [0.0; 4];
        for reader in readers {
            sums[0] += cpu::of_process(reader.child.id())?;
        }
        sums[1] = publisher.as_ref().map_or(Ok(0.0), |publisher| cpu::of_process(publisher.child.id()))?;
        sums[2] = cpu::of_process(broker.child.id())?;
        sums[3] = if cell.way == Way::Tail { 0.0 } else { redis::cpu_seconds(&redis)? };
        Ok(sums)
    };
    let come = |readers: &mut [Running], turns: u64| -> anyhow::Result<()> {
        // Every room is said to in turn.
        let expected = turns * count as u64 / ROOMS as u64;
        let begun = Instant::now();
        for reader in readers {
            while reader.count()? < expected {
                anyhow::ensure!(begun.elapsed() < PATIENCE, "{}: turns did not come", cell.name());
                std::thread::sleep(LOOK_EVERY);
            }
        }
        Ok(())
    };
    // Whole rounds of the rooms, so that each reader gets its share exactly.
    let rounds = |seconds: u32| (u64::from(cell.per_second * seconds) / ROOMS as u64).max(1) * ROOMS as u64;
    let warm_up = load.send(rounds(1), cell.per_second, false)?;
    come(&mut readers, warm_up)?;
    let before = cpu(&readers)?;
    let begun = Instant::now();
    let turns = match cell.per_second {
        0 => load.send(load::BURST, 0, true)?,
        per_second => load.send(rounds(u32::from(options.seconds)), per_second, true)?,
    };
    come(&mut readers, warm_up + turns)?;
    let (took, after) = (begun.elapsed(), cpu(&readers)?);
    let mut row = Row { per_second: turns as f64 / took.as_secs_f64(), ..Row::default() };
    let per_turn = |which: usize| (after[which] - before[which]) * 1e6 / turns as f64;
    row.reader_us = per_turn(0) / f64::from(cell.processes);
    row.shared_us = per_turn(1) + per_turn(3);
    row.broker_us = per_turn(2);
    for reader in readers {
        let [p50, p99] = reader.end()?;
        row.p50_ms = row.p50_ms.max(p50);
        row.p99_ms = row.p99_ms.max(p99);
    }
    Ok(row)
}

/// A part that runs, until it is dropped.
struct Running {
    child: Child,
    to: Option<ChildStdin>,
    from: BufReader<ChildStdout>,
    /// What it said when it was ready.
    said: String,
}

impl Running {
    fn start(part: &Part) -> anyhow::Result<Running> {
        let mut child = Command::new(std::env::current_exe().context("find the program")?)
            .args(["bench", "fanout", "--part", &serde_json::to_string(part).context("name the part")?])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start a part")?;
        let to = child.stdin.take();
        let from = BufReader::new(child.stdout.take().context("the output is a pipe")?);
        let mut running = Running { child, to, from, said: String::new() };
        running.said = running.line()?;
        Ok(running)
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        anyhow::ensure!(self.from.read_line(&mut line)? > 0, "a part ended: its error stream says why");
        Ok(line.trim().to_owned())
    }

    /// How many followed turns have come.
    fn count(&mut self) -> anyhow::Result<u64> {
        self.to.as_mut().context("it was ended")?.write_all(b"count\n").context("ask a reader")?;
        self.line()?.parse().context("a reader says a number")
    }

    /// Ends a reader; its latencies.
    fn end(mut self) -> anyhow::Result<[f64; 2]> {
        drop(self.to.take());
        serde_json::from_str(&self.line()?).context("a reader says its latencies")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
