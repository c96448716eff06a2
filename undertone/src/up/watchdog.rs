//! Looks after the log from outside the roles: whether it answers, and how far its readers are behind.
//!
//! Promises: a log that is dead or frozen makes the process unready within [`LOOK_EVERY`] and [`ANSWER_WITHIN`]
//! together; the measuring of lags, which may have to wait for an open transaction, neither delays nor causes that.
//! Leaves out whether appends succeed: intake tells each caller. Were that readiness, a process that no traffic reaches
//! any more would stay unready for want of an append that succeeds.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Gauge, Meter};
use store::log::{Admin, LogError};

use crate::health::{Health, State};
use crate::lag::{Ends, Lag, PartitionLag};
use crate::retention;

/// Time between two looks at whether the brokers answer.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long the brokers may take to answer one question before they count as gone.
const ANSWER_WITHIN: Duration = Duration::from_millis(1500);
/// Time between two measurements of the lags.
const MEASURE_EVERY: Duration = Duration::from_secs(2);
/// How long the measurement of one reader may take; the lags stay as they were if it takes longer.
const MEASURE_WITHIN: Duration = Duration::from_millis(1500);
/// How long the first one may take, which asks how old the backlog is; it is not asked again.
const RECALL_WITHIN: Duration = Duration::from_secs(10);
/// Time between two looks at the retention that is used.
const RETENTION_EVERY: Duration = Duration::from_secs(30);
/// Pause between two tries to reach the brokers at the start.
const RETRY: Duration = Duration::from_millis(250);

/// A reader of the log.
#[derive(Debug, Clone)]
pub(super) struct Reader {
    /// Its role.
    pub(super) role: &'static str,
    /// Its consumer group.
    pub(super) group: String,
    /// What it reads.
    pub(super) topic: String,
}

/// Waits until the brokers answer.
///
/// # Errors
/// They did not within `patience`, or they refuse us.
pub(super) async fn reach(admin: &Admin, bootstrap: &str, patience: Duration, health: &Health) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        match admin.reachable(ANSWER_WITHIN).await {
            Ok(()) => break,
            Err(error) if error.is_transient() && begun.elapsed() < patience => {
                health.set("kafka", State::Unwell(format!("no broker answers at {bootstrap}: {error}")));
                tracing::warn!(bootstrap, %error, "no broker answers; trying again");
                tokio::time::sleep(RETRY).await;
            }
            Err(error @ LogError::Unauthorized(_)) => anyhow::bail!("connect to the brokers at {bootstrap}: {error}"),
            Err(error) => {
                anyhow::bail!(
                    "no broker answers at {bootstrap}: {error}; start it, or mend [kafka] bootstrap and properties"
                )
            }
        }
    }
    health.set("kafka", State::Ready);
    Ok(())
}

/// A disk that the log lies on.
#[derive(Debug, Clone)]
pub(super) struct Disk {
    /// A folder on it.
    pub(super) folder: PathBuf,
    /// Below this much free space intake takes nothing.
    pub(super) free_bytes_min: u64,
}

/// Looks and measures for ever.
pub(super) async fn run(admin: Admin, readers: Vec<Reader>, disk: Option<Disk>, health: Health, meter: Meter) {
    let answers = AtomicBool::new(true);
    tokio::join!(
        room(disk, &health),
        look(&admin, &health, &meter, &answers),
        lags(&admin, &readers, &health, &meter, &answers),
        retentions(&admin, &readers, &health, &meter, &answers),
    );
}

/// Asks for ever whether the disk has room, and whether it can be written at all: a file system that met an error may
/// have become read-only. One that does not say how much room it has counts as having some: who writes finds out.
async fn room(disk: Option<Disk>, health: &Health) {
    let Some(Disk { folder, free_bytes_min }) = disk else { return };
    let mut ticks = ticks(LOOK_EVERY);
    loop {
        ticks.tick().await;
        let asked = folder.clone();
        let answers = tokio::task::spawn_blocking(move || (ingest::free_bytes(&asked), writable(&asked))).await;
        let state = match answers {
            Ok((_, Err(error))) => State::Away(format!(
                "no file can be made in {}: {error}; mend the file system, and start this process again: until then intake \
                 takes nothing",
                folder.display()
            )),
            Ok((Ok(free), Ok(()))) if free < free_bytes_min => State::Away(format!(
                "{free} bytes are free on the disk of {}, fewer than [ingest] disk_free_bytes_min = {free_bytes_min}: intake \
                 takes nothing until there is room",
                folder.display()
            )),
            _ => State::Ready,
        };
        health.set("disk", state);
    }
}

/// Makes a file without a name, which is gone when it is closed.
fn writable(folder: &Path) -> std::io::Result<()> {
    tempfile::tempfile_in(folder).map(drop)
}

/// The gauge of all that a process depends on.
pub(crate) fn dependency_up(meter: &Meter) -> Gauge<u64> {
    let up = meter.u64_gauge("undertone.dependency.up");
    up.with_description("Whether a dependency answers: 1, or 0 while it is away").build()
}

/// Asks for ever whether the brokers answer.
async fn look(admin: &Admin, health: &Health, meter: &Meter, answers: &AtomicBool) {
    let (up, mut ticks) = (dependency_up(meter), ticks(LOOK_EVERY));
    loop {
        ticks.tick().await;
        let answer = admin.reachable(ANSWER_WITHIN).await;
        answers.store(answer.is_ok(), Ordering::Relaxed);
        up.record(u64::from(answer.is_ok()), &[KeyValue::new("dependency", "kafka")]);
        health.set("kafka", state_of(answer.err()));
    }
}

/// Measures for ever; not while the brokers do not answer, so that no calls pile up.
async fn lags(admin: &Admin, readers: &[Reader], health: &Health, meter: &Meter, answers: &AtomicBool) {
    let messages = meter.i64_gauge("undertone.lag.messages").with_description("Records that a reader has not read yet");
    let messages = messages.build();
    let seconds = meter.f64_gauge("undertone.lag").with_unit("s").with_description(
        "Age of the oldest record that a reader has not read yet; of what is older than this process exact to a tenth",
    );
    let seconds = seconds.build();
    let by_partition = meter.f64_gauge("undertone.lag.partition").with_unit("s").with_description(
        "By partition, the age of the oldest record that a reader has not read yet; as for undertone_lag",
    );
    let by_partition = by_partition.build();
    let unstable = meter
        .f64_gauge("undertone.log.last.stable.offset.age")
        .with_unit("s")
        .with_description("By partition, how long an open transaction has held back its readers; 0: none does");
    let unstable = unstable.build();
    let mut known: Vec<Known> = readers.iter().map(|_| Known::default()).collect();
    let clock = Clock::start();
    let mut ticks = ticks(MEASURE_EVERY);
    loop {
        ticks.tick().await;
        if !answers.load(Ordering::Relaxed) {
            continue;
        }
        let mut lags = Vec::with_capacity(readers.len());
        let mut fault = None;
        for (reader, known) in readers.iter().zip(&mut known) {
            let within = if known.recalled { MEASURE_WITHIN } else { RECALL_WITHIN };
            match tokio::time::timeout(within, measure(admin, reader, known, clock)).await {
                Ok(Ok((lag, held_back))) => {
                    for (gauge, partitions) in [(&by_partition, &lag.partitions), (&unstable, &held_back)] {
                        for part in partitions {
                            let partition = KeyValue::new("partition", i64::from(part.partition));
                            let topic = KeyValue::new("topic", lag.topic.clone());
                            gauge.record(part.seconds, &[KeyValue::new("role", lag.role), topic, partition]);
                        }
                    }
                    let labels = [KeyValue::new("role", lag.role), KeyValue::new("topic", lag.topic.clone())];
                    messages.record(lag.messages, &labels);
                    seconds.record(lag.seconds, &labels);
                    lags.push(lag);
                }
                // It goes by itself: an open transaction, a group that moves. A log that is gone is found by the look.
                Ok(Err(error)) if error.is_transient() => tracing::debug!(%error, role = reader.role, "measure lag"),
                Err(_elapsed) => tracing::debug!(role = reader.role, "measure lag: not in time"),
                Ok(Err(error)) => fault = Some(error),
            }
        }
        if lags.len() == readers.len() {
            health.set_lag(lags);
        }
        health.set("lag", state_of(fault));
    }
}

/// Looks for ever whether retention will take what a reader has not read.
async fn retentions(admin: &Admin, readers: &[Reader], health: &Health, meter: &Meter, answers: &AtomicBool) {
    let used = meter.f64_gauge("undertone.lag.retention.used").with_unit("1").with_description(
        "Share of the topic's retention that the oldest record which a reader has not read has used up, in steps",
    );
    let used = used.build();
    let mut ticks = ticks(RETENTION_EVERY);
    loop {
        ticks.tick().await;
        if !answers.load(Ordering::Relaxed) {
            continue;
        }
        for reader in readers {
            match retention_used(admin, reader).await {
                Ok(share) => {
                    used.record(
                        share,
                        &[KeyValue::new("role", reader.role), KeyValue::new("topic", reader.topic.clone())],
                    );
                    alarm(health, reader, share);
                }
                Err(error) => tracing::debug!(%error, role = reader.role, "measure the retention that is used"),
            }
        }
    }
}

async fn retention_used(admin: &Admin, reader: &Reader) -> Result<f64, LogError> {
    let topics = admin.topics().await?;
    let topic = topics.iter().find(|topic| topic.name == reader.topic);
    let retention_ms = topic.and_then(|topic| topic.config.get("retention.ms")?.parse().ok());
    // -1: for ever.
    let Some(retention_ms) = retention_ms.filter(|ms: &i64| *ms > 0) else { return Ok(0.0) };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = i64::try_from(now.as_millis()).unwrap_or(i64::MAX);
    retention::used(admin, &reader.group, &reader.topic, retention_ms, now).await
}

/// Says once that a person must act, and once that it is over.
fn alarm(health: &Health, reader: &Reader, share: f64) {
    let Reader { role, topic, .. } = reader;
    let alarming = share >= retention::ALARMING;
    let known = health.warnings().iter().any(|warning| warning.part == *role);
    match (alarming, known) {
        (true, false) => tracing::warn!(role, topic, share, "lag near the retention: records will be lost unread"),
        (false, true) => tracing::info!(role, topic, "lag is no longer near the retention"),
        _ => {}
    }
    let warning = alarming.then(|| {
        format!(
            "it has not read records of {topic} that have used {share} of the retention: add processes, or raise \
             retention.ms of the topic, before they are lost"
        )
    });
    health.warn(role, warning);
}

fn ticks(every: Duration) -> tokio::time::Interval {
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks
}

fn state_of(fault: Option<LogError>) -> State {
    fault.map_or(State::Ready, |fault| State::Unwell(fault.to_string()))
}

/// What is remembered of a reader's topic from one measurement to the next.
#[derive(Default)]
struct Known {
    /// The last stable offsets: how far it can be read.
    stable: Ends,
    /// The ends, records of open transactions included.
    newest: Ends,
    /// The brokers were asked where the ends were before this process.
    recalled: bool,
}

/// The time since the Unix epoch; it does not go back.
#[derive(Clone, Copy)]
struct Clock {
    began: Instant,
    at: Duration,
}

impl Clock {
    fn start() -> Clock {
        Clock { began: Instant::now(), at: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() }
    }

    fn now(self) -> Duration {
        self.at + self.began.elapsed()
    }
}

/// How far a reader is behind, and how long open transactions have held it back.
async fn measure(
    admin: &Admin,
    reader: &Reader,
    known: &mut Known,
    clock: Clock,
) -> Result<(Lag, Vec<PartitionLag>), LogError> {
    // The newest first: what is committed in between must not look held back.
    let newest = admin.newest(&reader.topic).await?;
    let offsets = admin.offsets(&reader.topic).await?;
    let stable = offsets.iter().map(|(partition, (_, stable))| (*partition, *stable)).collect();
    let lows = offsets.iter().map(|(partition, (low, _))| (*partition, *low)).collect();
    let now = clock.now();
    known.newest.observe(&newest, now);
    known.stable.observe(&stable, now);
    let held_back = known.newest.behind(&stable, &lows, now);
    let committed = admin.committed(&reader.group, &reader.topic).await?;
    if !std::mem::replace(&mut known.recalled, true) {
        known.stable.recall(admin, &reader.topic, &committed, &lows, now).await?;
    }
    let partitions = known.stable.behind(&committed, &lows, clock.now());
    Ok((Lag::of(reader.role, reader.topic.clone(), partitions), held_back))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_can_be_written_is_left_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        writable(folder.path()).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        writable(&folder.path().join("gone")).unwrap_err();
    }
}
