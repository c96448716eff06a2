//! The databases that the settings name, opened: for the roles, and for the commands that work beside them.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use opentelemetry::KeyValue;
use opentelemetry::metrics::Meter;
use store::context::Contexts;
use store::cql::Keyspace;
use store::history::History;
use store::keys::Keys;
use store::redis::{Redis, Shelf};
use store::{Durability, Pauses};
use tokio::sync::OnceCell;
use tokio::time::MissedTickBehavior;

use crate::config::{Cache, Config, Fsync, StoreKind};
use crate::health::{Health, State};

/// The part of health, and the label, of the CQL server.
const SCYLLA: &str = "scylla";
/// Time between two looks at whether it answers.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long it may take to answer one question before it counts as away.
const ANSWER_WITHIN: Duration = Duration::from_millis(1500);
/// First and longest pause between two tries to reach the CQL server at the start.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));

/// What the stores must survive: as much as the log's acknowledgement does, or they fall behind it.
pub(crate) fn durability(config: &Config) -> Durability {
    match (config.is_embedded(), config.broker.fsync) {
        (true, Fsync::Interval) => Durability::Kill,
        _ => Durability::Power,
    }
}

/// The databases of a process; what is on the CQL server, or in Redis, shares its connections.
pub(crate) struct Databases {
    health: Health,
    keyspace: OnceCell<Keyspace>,
    redis: OnceCell<Redis>,
}

impl Databases {
    /// None is open yet.
    pub(crate) fn new(health: Health) -> Databases {
        Databases { health, keyspace: OnceCell::new(), redis: OnceCell::new() }
    }

    /// Opens the history.
    pub(crate) async fn history(&self, config: &Config) -> anyhow::Result<History> {
        let history = match config.history.kind {
            StoreKind::Sqlite => History::open_with(&config.history_path(), durability(config)).await,
            StoreKind::Scylla => {
                let days = NonZeroU32::new(config.history.retention_days);
                History::on_scylla(self.scylla(config).await?, days).await
            }
        };
        let history = history.context("open the history (settings: [history])")?;
        Ok(history.remembering(config.memory.conversation_max))
    }

    /// The health of the process.
    pub(super) fn health(&self) -> &Health {
        &self.health
    }

    /// Opens the keys of sealed turns, if turns are sealed: where the history is.
    pub(crate) async fn keys(&self, config: &Config) -> anyhow::Result<Option<Keys>> {
        const OPEN: &str = "open the keys of sealed turns (settings: [privacy], [history])";
        let path = config.keys_path();
        let is_there = path.exists();
        match (config.history.kind, config.privacy.crypto_shred) {
            (StoreKind::Sqlite, true) => {
                if !is_there {
                    let path = path.display();
                    tracing::warn!(%path, "a new store of keys: if turns were sealed before, put that store back instead");
                }
                // More depends on a key than on a turn.
                Keys::open(&path, Durability::Power).await.map(Some).context(OPEN)
            }
            (StoreKind::Scylla, true) => Keys::on_scylla(self.scylla(config).await?).await.map(Some).context(OPEN),
            (_, false) => Ok(None),
        }
    }

    /// Notes, where an intake that does not seal begins beside keys, that there is something from now on that they do not seal.
    pub(super) async fn note_unsealed(&self, config: &Config) -> anyhow::Result<()> {
        let path = config.keys_path();
        if config.privacy.crypto_shred || config.history.kind != StoreKind::Sqlite || !path.exists() {
            return Ok(());
        }
        tracing::warn!(path = %path.display(), "turns are not sealed any more, and those that were cannot be read");
        let keys = Keys::open(&path, Durability::Power).await.context("open the keys of sealed turns")?;
        keys.lapse().await.context("note that turns are not sealed any more")
    }

    /// Opens the contexts.
    pub(crate) async fn contexts(&self, config: &Config) -> anyhow::Result<Contexts> {
        let contexts = match config.context.kind {
            StoreKind::Sqlite => Contexts::open_with(&config.context_path(), durability(config)).await,
            StoreKind::Scylla => Contexts::on_scylla(self.scylla(config).await?).await,
        };
        contexts.context("open the contexts (settings: [context])")
    }

    /// Opens the contexts, if they are in a file that is here.
    pub(crate) async fn contexts_here(&self, config: &Config) -> anyhow::Result<Option<Contexts>> {
        let is_here = config.context.kind == StoreKind::Sqlite && config.context_path().exists();
        Ok(if is_here { Some(self.contexts(config).await?) } else { None })
    }

    /// Opens the contexts, behind their cache where there is one.
    pub(crate) async fn cached_contexts(&self, config: &Config, meter: &Meter) -> anyhow::Result<Contexts> {
        let contexts = self.contexts(config).await?;
        match config.context.cache {
            Cache::None => Ok(contexts),
            Cache::Redis => Ok(contexts.cached(self.redis(config, meter).await?, meter)),
        }
    }

    /// What the pages of several processes share, where it is wanted.
    pub(crate) async fn shelf(&self, config: &Config, meter: &Meter) -> anyhow::Result<Option<Shelf>> {
        match config.history.cache {
            Cache::None => Ok(None),
            Cache::Redis => Ok(Some(Shelf::on(self.redis(config, meter).await?))),
        }
    }

    /// Looks for ever whether the servers answer; a file needs no look.
    pub(crate) async fn look(&self, meter: &Meter) {
        let Some(keyspace) = self.keyspace.get() else { return };
        let up = super::watchdog::dependency_up(meter);
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let answer = keyspace.look(ANSWER_WITHIN).await;
            up.record(u64::from(answer.is_ok()), &[KeyValue::new("dependency", SCYLLA)]);
            let away = |error| State::Away(format!("the CQL server is away: {error}; see to it, or to [scylla] nodes"));
            self.health.set(SCYLLA, answer.map_or_else(away, |()| State::Ready));
        }
    }

    async fn redis(&self, config: &Config, meter: &Meter) -> anyhow::Result<Redis> {
        let connect = async || Redis::connect(config.redis.settings(), meter).await;
        let redis = self.redis.get_or_try_init(connect).await.context("reach Redis (settings: [redis])")?;
        Ok(redis.clone())
    }

    async fn scylla(&self, config: &Config) -> anyhow::Result<Keyspace> {
        Ok(self.keyspace.get_or_try_init(|| connect_scylla(config, &self.health)).await?.clone())
    }
}

/// Connects to the CQL server, and tries again while it is away.
async fn connect_scylla(config: &Config, health: &Health) -> anyhow::Result<Keyspace> {
    let settings = config.scylla.settings();
    let patience = Duration::from_secs(config.scylla.connect_seconds_max);
    let (begun, mut pauses) = (Instant::now(), Pauses::between(PAUSES));
    // One that takes the connection and says nothing takes its time until a try has failed.
    health.set(SCYLLA, State::Unwell(format!("no CQL server has answered yet at {}", settings.nodes.join(", "))));
    loop {
        match Keyspace::connect(&settings).await {
            Ok(keyspace) => {
                health.set(SCYLLA, State::Ready);
                return Ok(keyspace);
            }
            Err(error) if error.is_transient() && begun.elapsed() < patience => {
                health.set(SCYLLA, State::Unwell(error.to_string()));
                tracing::warn!(nodes = settings.nodes.join(","), %error, "no CQL server answers; trying again");
                tokio::time::sleep(pauses.next_pause()).await;
            }
            Err(error) => {
                let nodes = settings.nodes.join(", ");
                return Err(error)
                    .with_context(|| format!("connect to the CQL server at {nodes} (settings: [scylla])"));
            }
        }
    }
}
