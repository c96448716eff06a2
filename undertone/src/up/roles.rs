//! The roles of one process: what each needs, in which order they start, and in which they end.
//!
//! Start: the listener (it answers "starting"), the broker, the topics, the stores, the roles that read the log, the
//! roles that are called. End: the other way round, so that nobody writes to what has gone.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use broker::Broker;
use ingest::Ingest;
use store::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::databases::Databases;
use super::http::{self, Limits};
use super::wiring::{Given, kafka};
use crate::admin;
use crate::config::{Config, Fsync};
use crate::health::Health;
use crate::telemetry::{Metrics, traces};

/// A part that a process can play.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, clap::ValueEnum)]
pub enum Role {
    /// The embedded Kafka-protocol broker.
    Broker,
    /// Webhooks and sockets that take turns in.
    Ingest,
    /// The model stages.
    Processors,
    /// The writer of the history.
    History,
    /// Live streams and the read API.
    Api,
}

impl Role {
    /// All of them.
    pub const ALL: [Role; 5] = [Role::Broker, Role::Ingest, Role::Processors, Role::History, Role::Api];

    /// The word on the command line, in logs and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Role::Broker => "broker",
            Role::Ingest => "ingest",
            Role::Processors => "processors",
            Role::History => "history",
            Role::Api => "api",
        }
    }
}

/// A role that cannot go on, and why.
#[derive(Debug, Clone, thiserror::Error)]
#[error("role {role} failed: {reason}")]
pub struct Failed {
    /// Name of the role, or `http`.
    pub role: &'static str,
    /// What happened, and how to mend it.
    pub reason: String,
}

/// Which roles to start, in order; none asked for: all, and the broker only if the log is embedded.
pub(super) fn wanted(config: &Config, asked: &[Role]) -> anyhow::Result<Vec<Role>> {
    let mut roles = asked.to_vec();
    if roles.is_empty() {
        roles.extend(Role::ALL);
        roles.retain(|role| *role != Role::Broker || config.is_embedded());
    }
    roles.sort_unstable();
    roles.dedup();
    let broker = roles.contains(&Role::Broker);
    anyhow::ensure!(
        !broker || config.is_embedded(),
        "role broker is asked for, but [kafka] bootstrap = \"{}\" names another log; empty it, or leave the role out",
        config.kafka.bootstrap
    );
    anyhow::ensure!(
        broker || !config.is_embedded(),
        "these roles need a log: add the role broker, or name the brokers in [kafka] bootstrap"
    );
    if roles.contains(&Role::Processors) {
        config.check_only_machine()?;
    }
    Ok(roles)
}

/// Tasks that are waited for at the end.
#[derive(Debug, Default)]
pub(super) struct Tasks(Mutex<JoinSet<()>>);

impl Tasks {
    /// Runs one more.
    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).spawn(work);
    }

    /// Waits for all of them; returns whether none of them panicked.
    async fn wait(self) -> bool {
        let mut tasks = self.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut well = true;
        while let Some(ended) = tasks.join_next().await {
            well &= ended.is_ok();
        }
        well
    }
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").field("http", &self.http).field("kafka", &self.kafka).finish_non_exhaustive()
    }
}

/// What runs, and how to end it.
pub(super) struct Parts {
    pub(super) http: SocketAddr,
    pub(super) kafka: String,
    broker: Option<Broker>,
    ingest: Option<Ingest>,
    /// Ends the roles that read the log.
    readers: CancellationToken,
    readers_done: Tasks,
    /// Ends the streams and the listener.
    listeners: CancellationToken,
    listeners_done: Tasks,
}

pub(super) async fn start(
    config: Config,
    roles: Vec<Role>,
    health: Health,
    failed: mpsc::Sender<Failed>,
) -> anyhow::Result<Parts> {
    prepare_folder(&config.data.dir)?;
    let metrics = Metrics::new();
    let meter = metrics.meter();
    let (listeners, listeners_done) = (CancellationToken::new(), Tasks::default());
    let admin = admin::Admin::new(health.clone(), metrics);
    let http = listen(&config, &admin, &listeners, &listeners_done).await?;
    let broker = match roles.contains(&Role::Broker) {
        true => Some(start_broker(&config).await?),
        false => None,
    };
    let kafka = kafka(&config, broker.as_ref());
    let (spans, exporter) = traces::start(&config.telemetry, &config.kafka.instance, &meter)?;
    if let Some(exporter) = exporter {
        listeners_done.spawn(exporter.run(listeners.clone()));
    }
    let readers = CancellationToken::new();
    // A start that is given up ends the readers that it has begun: those on threads of their own would stay members of
    // their groups for as long as this process lives.
    let begun = readers.clone().drop_guard();
    let mut given = Given {
        config,
        roles,
        kafka,
        registry: Registry::embedded(),
        meter,
        spans,
        databases: Arc::new(Databases::new(health.clone())),
        health,
        failed,
        readers,
        readers_done: Tasks::default(),
        listeners,
        listeners_done,
        loaded: Default::default(),
    };
    if given.plays(Role::Ingest) || given.plays(Role::Api) {
        given.health.set_serves();
    }
    given.open_registry().await?;
    given.prepare_log().await?;
    if let Some(rewriter) = broker.as_ref().and_then(Broker::rewriter) {
        given.start_eraser(rewriter);
    }
    let history = given.open_history().await?;
    if let Some(history) = &history {
        given.start_history(history.clone())?;
    }
    given.start_processors().await?;
    let mut router = Router::new();
    if let Some(history) = history
        && let Some(api) = given.start_api(history).await?
    {
        router = router.merge(api);
    }
    let ingest = given.start_ingest()?;
    if let Some(ingest) = &ingest {
        router = router.merge(ingest.router());
    }
    given.start_watchdog()?;
    given.health.set_started();
    admin.open(given.facts(http), router);
    begun.disarm();
    Ok(Parts {
        http,
        kafka: given.kafka.bootstrap,
        broker,
        ingest,
        readers: given.readers,
        readers_done: given.readers_done,
        listeners: given.listeners,
        listeners_done: given.listeners_done,
    })
}

impl Parts {
    /// Waits until the embedded broker cannot go on; for ever if there is none.
    pub(super) async fn broker_failed(&self) -> Failed {
        match &self.broker {
            Some(broker) => Failed { role: Role::Broker.name(), reason: broker.failed().await.to_string() },
            None => std::future::pending().await,
        }
    }

    /// Ends in order; returns whether everything was done in time.
    pub(super) async fn end(mut self, within: Duration) -> bool {
        let mut drained = true;
        if let Some(ingest) = self.ingest.take() {
            drained &= ingest.drain(within).await;
        }
        tracing::debug!(drained, "intake ended");
        self.readers.cancel();
        drained &= self.readers_done.wait().await;
        tracing::debug!(drained, "readers of the log ended");
        self.listeners.cancel();
        drained &= self.listeners_done.wait().await;
        tracing::debug!(drained, "listeners ended");
        if let Some(broker) = self.broker.take()
            && let Err(error) = broker.shutdown().await
        {
            tracing::error!(%error, "end the broker");
            drained = false;
        }
        drained
    }

    /// Ends at once: the log first, so that nothing more becomes durable.
    pub(super) fn crash(&mut self) {
        drop(self.broker.take());
    }

    /// Tells what has outlived the crash on threads of its own to end.
    pub(super) fn release(&self) {
        self.readers.cancel();
        self.listeners.cancel();
    }
}

fn prepare_folder(dir: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir)
        .with_context(|| format!("make the data folder {}; give another one with --data-dir", dir.display()))
}

async fn listen(
    config: &Config,
    admin: &admin::Admin,
    listeners: &CancellationToken,
    done: &Tasks,
) -> anyhow::Result<SocketAddr> {
    let listen = config.http.listen;
    let bound = TcpListener::bind(listen).await;
    let bound =
        bound.with_context(|| format!("listen on {listen}; free it, or set [http] listen (port 0: any free one)"))?;
    let address = bound.local_addr().context("ask for the address of the listener")?;
    let limits = Limits {
        connections_max: config.http.connections_max,
        header_read_within: Duration::from_secs(config.http.header_read_seconds_max),
    };
    done.spawn(http::serve(bound, admin.router(), limits, listeners.clone()));
    Ok(address)
}

async fn start_broker(config: &Config) -> anyhow::Result<Broker> {
    let mut settings = broker::Config::new(config.broker_dir());
    settings.listen = config.broker.listen;
    settings.allow_remote = config.broker.allow_remote;
    settings.advertised_host = Some(config.broker.advertised_host.clone()).filter(|host| !host.is_empty());
    settings.session_timeout_min = Duration::from_secs(config.broker.session_seconds_min);
    settings.fsync = match config.broker.fsync {
        Fsync::Interval => broker::Fsync::Interval { every: Duration::from_millis(config.broker.fsync_interval_ms) },
        Fsync::Acknowledge => broker::Fsync::Acknowledge,
    };
    settings.connections_max = config.broker.connections_max;
    settings.group_offsets_expiry = Duration::from_secs(config.broker.group_offsets_days.saturating_mul(24 * 3600));
    Broker::start(settings).await.context("start the broker (settings: [broker])")
}
