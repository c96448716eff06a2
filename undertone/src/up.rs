//! A pipeline: the roles of one process, started, watched over and ended together.
//!
//! [`start`] takes everything that it needs as values and keeps it within [`Running`]: its own threads, its own
//! metrics, its own listeners. So two whole pipelines fit in one process. A role that fails ends the pipeline; there is
//! no half-alive one. [`Running::stop`] drains: what was acknowledged is in the log, what was begun is finished.
//! [`Running::kill`], like dropping it, ends as a crash does.

mod databases;
pub(crate) mod eraser;
mod http;
mod registry;
mod roles;
mod watchdog;
mod wiring;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::health::Health;
pub(crate) use databases::{Databases, durability};
pub(crate) use registry::{open as open_registry, subjects};
pub use roles::{Failed, Role};

/// How long the start waits for roles that are still getting ready, such as for a group to give them their partitions;
/// after that `/readyz` goes on telling what they wait for.
const SETTLE_WITHIN: Duration = Duration::from_secs(10);
/// Time between two looks at them.
const SETTLE_POLL: Duration = Duration::from_millis(5);
/// Failures that may wait to be told; the first ends the pipeline.
const FAILURES_MAX: usize = 16;

/// A running pipeline. Dropped, it ends as in a crash.
#[derive(Debug)]
pub struct Running {
    http: SocketAddr,
    kafka: String,
    data_dir: PathBuf,
    roles: Vec<Role>,
    health: Health,
    drain: Duration,
    started_in: Duration,
    failures: mpsc::Receiver<Failed>,
    parts: Option<roles::Parts>,
    runtime: Option<Runtime>,
}

/// What became of a pipeline that has been stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Whether everything was drained in time; otherwise it was cut off, as by a crash.
    pub drained: bool,
}

/// Starts these roles; returns when all of them have started.
///
/// # Errors
/// The settings do not go together, an address is taken, a file cannot be opened, the log cannot be reached; nothing is
/// left running.
pub async fn start(config: Config, roles: &[Role]) -> anyhow::Result<Running> {
    let begun = Instant::now();
    config.check()?;
    let roles = roles::wanted(&config, roles)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(std::thread::available_parallelism().map_or(2, |n| n.get().max(2)))
        .thread_name("undertone")
        .enable_all()
        .build()
        .context("start the pipeline's threads")?;
    let (failed, failures) = mpsc::channel(FAILURES_MAX);
    let drain = Duration::from_secs(config.shutdown.drain_seconds_max);
    let data_dir = config.data.dir.clone();
    let health = Health::default();
    let mut running = Running {
        http: config.http.listen,
        kafka: config.kafka.bootstrap.clone(),
        data_dir,
        roles: roles.clone(),
        health: health.clone(),
        drain,
        started_in: Duration::ZERO,
        failures,
        parts: None,
        runtime: None,
    };
    // Held by `running` before anything is awaited: giving up ends what was begun.
    let starting = runtime.spawn(roles::start(config, roles, health, failed));
    running.runtime = Some(runtime);
    let parts = starting.await.context("the start ended abnormally")??;
    running.http = parts.http;
    running.kafka = parts.kafka.clone();
    running.parts = Some(parts);
    running.settle().await?;
    running.started_in = begun.elapsed();
    Ok(running)
}

/// Runs these roles until `shutdown`, then drains.
///
/// # Errors
/// They do not start, or one of them fails.
pub async fn run(config: Config, roles: &[Role], shutdown: CancellationToken) -> anyhow::Result<Report> {
    let mut running = tokio::select! {
        running = start(config, roles) => running?,
        () = shutdown.cancelled() => return Ok(Report { drained: true }),
    };
    let failed = tokio::select! {
        failed = running.failed() => Some(failed),
        () = shutdown.cancelled() => None,
    };
    let report = running.stop().await;
    match failed {
        Some(failed) => Err(failed.into()),
        None => Ok(report),
    }
}

impl Running {
    /// Address of the HTTP listener; the port is the real one.
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    /// The HTTP listener as a URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.http)
    }

    /// What Kafka clients put into `bootstrap.servers`.
    pub fn kafka(&self) -> &str {
        &self.kafka
    }

    /// The folder of all state.
    pub fn data_dir(&self) -> &std::path::Path {
        &self.data_dir
    }

    /// The roles that run.
    pub fn roles(&self) -> &[Role] {
        &self.roles
    }

    /// How it is.
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// How long the start took.
    pub fn started_in(&self) -> Duration {
        self.started_in
    }

    /// Waits until every role is ready, or one of them fails.
    async fn settle(&mut self) -> Result<(), Failed> {
        let health = self.health.clone();
        let ready = tokio::time::timeout(SETTLE_WITHIN, async {
            while !health.reasons().is_empty() {
                tokio::time::sleep(SETTLE_POLL).await;
            }
        });
        tokio::select! {
            failed = self.failed() => Err(failed),
            _ = ready => Ok(()),
        }
    }

    /// Waits until a role fails; for ever if all is well. May be cancelled and asked again.
    pub async fn failed(&mut self) -> Failed {
        let broker = async {
            match &self.parts {
                Some(parts) => parts.broker_failed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(failed) = self.failures.recv() => failed,
            failed = broker => failed,
        }
    }

    /// Ends in order: takes no more, finishes what was begun, syncs the log. What is not done in time is cut off.
    pub async fn stop(mut self) -> Report {
        self.health.set_stopping();
        let (Some(parts), Some(runtime)) = (self.parts.take(), self.runtime.take()) else {
            return Report { drained: true };
        };
        let ending = runtime.spawn(parts.end(self.drain));
        let drained = tokio::time::timeout(self.drain, ending).await;
        let drained = matches!(drained, Ok(Ok(true)));
        runtime.shutdown_background();
        Report { drained }
    }

    /// Ends at once, as a crash does: nothing is finished, flushed or told.
    pub fn kill(self) {
        drop(self);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut parts = self.parts.take();
        if let Some(parts) = &mut parts {
            parts.crash();
        }
        // A runtime must not be dropped on a thread that runs one; its tasks end at their next await.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        if let Some(parts) = &parts {
            parts.release();
        }
    }
}

/// How clients of this machine reach the log that the settings name; the embedded one at its configured port.
pub(crate) fn kafka_of(config: &Config) -> store::log::Kafka {
    let mut kafka = wiring::kafka(config, None);
    if config.is_embedded() {
        kafka.bootstrap = config.broker.listen.to_string();
    }
    kafka
}

/// The topics that the settings want.
pub(crate) fn topics_wanted(config: &Config) -> Vec<store::log::TopicSpec> {
    let cuts = crate::topics::cuts(processors::stages::ORDER, &config.processors.stages);
    crate::topics::wanted(&cuts, config.kafka.partitions, config.kafka.replication)
}
