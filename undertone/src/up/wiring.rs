//! How each role is given what it needs: the settings translated, the clients connected, the task watched.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use api::Api;
use axum::Router;
use broker::{Broker, Rewriter};
use ingest::Ingest;
use opentelemetry::metrics::Meter;
use processors::TierPolicy;
use schemas::{Spans, Tier};
use store::Wait;
use store::history::{History, writer};
use store::log::{Admin, Kafka, Producer, ProducerLimits};
use store::registry::Registry;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::databases::Databases;
use super::eraser;
use super::roles::{Failed, Role, Tasks};
use super::watchdog;
use crate::admin::Facts;
use crate::config::{self, Config};
use crate::dreaming::Dreaming;
use crate::forget::Forgetting;
use crate::health::{Health, State};
use crate::memories::Remembering;
use crate::{locate, topics};

/// What every role is given.
pub(super) struct Given {
    pub(super) config: Config,
    pub(super) roles: Vec<Role>,
    pub(super) kafka: Kafka,
    pub(super) registry: Registry,
    pub(super) meter: Meter,
    pub(super) spans: Spans,
    pub(super) health: Health,
    pub(super) databases: Arc<Databases>,
    pub(super) failed: mpsc::Sender<Failed>,
    pub(super) readers: CancellationToken,
    pub(super) readers_done: Tasks,
    pub(super) listeners: CancellationToken,
    pub(super) listeners_done: Tasks,
    /// The models, once the processors of this process have loaded them.
    pub(super) loaded: processors::Loaded,
}

/// How the roles of this process reach the log.
pub(crate) fn kafka(config: &Config, broker: Option<&Broker>) -> Kafka {
    config.kafka.settings(broker.map_or_else(|| config.kafka.bootstrap.clone(), Broker::bootstrap))
}

impl Given {
    pub(super) fn plays(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }

    /// Runs a role's task among those that read the log.
    fn reader<E: std::fmt::Display>(&self, role: Role, work: impl Future<Output = Result<(), E>> + Send + 'static) {
        let (failed, readers) = (self.failed.clone(), self.readers.clone());
        self.health.set(role.name(), State::Ready);
        self.readers_done.spawn(async move {
            let reason = match work.await {
                Ok(()) if readers.is_cancelled() => return,
                Ok(()) => "it ended by itself; report this".to_owned(),
                Err(error) => error.to_string(),
            };
            let _ = failed.try_send(Failed { role: role.name(), reason });
        });
    }

    /// Reads the ids of the schemas, before anything is written or read.
    pub(super) async fn open_registry(&mut self) -> anyhow::Result<()> {
        if self.roles == [Role::Broker] {
            return Ok(());
        }
        self.registry = super::registry::open(&self.config, &self.databases, &self.meter).await?;
        if self.plays(Role::Ingest) {
            Box::pin(self.databases.note_unsealed(&self.config)).await?;
        }
        let registry = self.registry.clone();
        self.health.ask(super::registry::PART, move || {
            let what = "a record has a schema id that is not known yet, and the schema registry is away: see to it, or to \
                        [registry] url";
            registry.missed().map(|away| Wait { what, since: away.since, is_away: true })
        });
        Ok(())
    }

    /// Waits for the brokers, and sees to it that the topics are there.
    pub(super) async fn prepare_log(&self) -> anyhow::Result<()> {
        let admin = Admin::connect(&self.kafka).context("connect to the log (settings: [kafka])")?;
        let patience = Duration::from_secs(self.config.kafka.connect_seconds_max);
        watchdog::reach(&admin, &self.kafka.bootstrap, patience, &self.health).await?;
        let wanted = super::topics_wanted(&self.config);
        let existing = admin.topics().await.context("list the topics")?;
        let findings = topics::compare(&wanted, &existing, &self.kafka.bootstrap);
        topics::refuse(&findings)?;
        let missing = findings.iter().filter(|f| matches!(f.state, topics::State::Missing(_))).count();
        anyhow::ensure!(
            missing == 0 || self.config.kafka.create_topics,
            "{missing} topics are missing and [kafka] create_topics = false; create them with `undertone topics apply`"
        );
        for finding in &findings {
            if let topics::State::Differs(differences) = &finding.state {
                let differences: Vec<&str> = differences.iter().map(|difference| difference.what.as_str()).collect();
                tracing::warn!(topic = finding.name, differences = differences.join("; "), "topic is not as wanted");
            }
        }
        let created = topics::apply(&admin, &findings).await.context("create the missing topics")?;
        if !created.is_empty() {
            tracing::info!(created = created.len(), "topics created");
        }
        Ok(())
    }

    /// Has the log gone over for what was forgotten. A broker by itself knows no schemas but the embedded ones: where there are
    /// others, a process that has other roles too does it.
    pub(super) fn start_eraser(&self, rewriter: Rewriter) {
        if self.roles == [Role::Broker] && self.config.registry.settings().is_some() {
            return;
        }
        let codec = Arc::clone(self.registry.codec());
        let work = eraser::run(self.kafka.clone(), codec, rewriter, self.readers.clone());
        self.readers_done.spawn(async move {
            // Receipts say that it is pending then; the log itself is as good as before.
            if let Err(error) = work.await {
                let group = eraser::GROUP;
                tracing::error!(%error, group, "the log is not gone over for what was forgotten; delete the group, and restart");
            }
        });
    }

    pub(super) async fn open_history(&self) -> anyhow::Result<Option<History>> {
        if !self.plays(Role::History) && !self.plays(Role::Api) {
            return Ok(None);
        }
        self.databases.history(&self.config).await.map(Some)
    }

    pub(super) fn start_history(&self, history: History) -> anyhow::Result<()> {
        if !self.plays(Role::History) {
            return Ok(());
        }
        let mut settings = writer::Config::new(self.kafka.clone());
        settings.registry = self.registry.clone();
        settings.group = self.config.history.group.clone();
        settings.session_timeout = Duration::from_secs(self.config.kafka.session_seconds_max);
        let waiting = Arc::clone(&settings.waiting);
        let rejects =
            Producer::connect(&self.kafka, &ProducerLimits::default()).context("connect the history writer")?;
        let (meter, spans, stop) = (self.meter.clone(), self.spans.clone(), self.readers.clone());
        self.reader(Role::History, async move { writer::run(settings, history, rejects, &meter, spans, stop).await });
        self.health.ask(Role::History.name(), move || waiting.wait());
        Ok(())
    }

    /// The processors' settings, with the models found.
    ///
    /// # Errors
    /// The models or the ONNX Runtime library are not found.
    fn processors_settings(&self) -> anyhow::Result<processors::Config> {
        let config = &self.config.processors;
        Ok(processors::Config {
            group: config.group.clone(),
            instance: self.config.kafka.instance.clone(),
            stages: config.stages.clone(),
            tier: match config.tier {
                config::Tier::Full => TierPolicy::Fixed(Tier::Full),
                config::Tier::Fast => TierPolicy::Fixed(Tier::Fast),
                config::Tier::Auto => TierPolicy::Degrade { lag_ms_max: config.lag_seconds_max as i64 * 1000 },
            },
            models: locate::models(&self.config.models.dir)?,
            onnxruntime: locate::onnxruntime(&self.config.models.onnxruntime)?,
            options: self.config.options(),
            dialogue: self.config.dialogue.wanted(),
            limits: processors::Limits {
                batch_turns_max: config.batch_turns_max,
                session_timeout: Duration::from_secs(self.config.kafka.session_seconds_max),
                transaction_timeout: Duration::from_secs(config.transaction_seconds_max),
                rejects: processors::RejectsBound {
                    window_turns: config.rejects_window_turns,
                    share_max: config.rejects_share_max,
                },
                ..processors::Limits::default()
            },
            loaded: Arc::clone(&self.loaded),
        })
    }

    pub(super) async fn start_processors(&self) -> anyhow::Result<()> {
        if !self.plays(Role::Processors) {
            return Ok(());
        }
        let settings = self.processors_settings()?;
        let contexts = self.databases.cached_contexts(&self.config, &self.meter).await?;
        let waiting = Arc::<store::Waiting>::default();
        let around = processors::Surroundings {
            kafka: self.kafka.clone(),
            contexts,
            registry: self.registry.clone(),
            meter: self.meter.clone(),
            spans: self.spans.clone(),
            waiting: Arc::clone(&waiting),
            shutdown: self.readers.clone(),
        };
        self.reader(Role::Processors, processors::run(settings, around));
        self.health.ask(Role::Processors.name(), move || waiting.wait());
        Ok(())
    }

    /// What the processors of this process read, for the lag.
    fn processors_reader(&self) -> anyhow::Result<Option<watchdog::Reader>> {
        if !self.plays(Role::Processors) {
            return Ok(None);
        }
        let plan = processors::plan(processors::stages::ORDER, &self.config.processors.stages)?;
        let first = processors::stages::ORDER[plan.run.start];
        let group = processors::group(&self.config.processors.group, first);
        Ok(Some(watchdog::Reader { role: Role::Processors.name(), group, topic: plan.input }))
    }

    pub(super) async fn start_api(&self, history: History) -> anyhow::Result<Option<Router>> {
        if !self.plays(Role::Api) {
            return Ok(None);
        }
        let (registry, stop) = (self.registry.clone(), self.listeners.clone());
        let (settings, spans) = (self.api_settings(), self.spans.clone());
        let memory = &self.config.memory;
        let (codec, loaded) = (self.registry.clone(), Arc::clone(&self.loaded));
        let (scope, bytes_max) = (memory.scope, memory.cache_bytes_max);
        let forgetting = Forgetting::new(&self.config, self.kafka.clone(), history.clone(), self.registry.clone());
        let memories = Remembering::new(history.clone(), codec, loaded, scope, bytes_max, Some(forgetting));
        let shelf = self.databases.shelf(&self.config, &self.meter).await?;
        let past = api::Past { history, shelf, memories: Some(Arc::new(memories)) };
        let api = Api::start(settings, &self.kafka, past, registry, &self.meter, spans, stop.clone());
        let api = api.await.context("start the read side")?;
        api.dream_by(Arc::new(Dreaming::new(self.config.clone())));
        self.health.set(Role::Api.name(), State::Ready);
        let (router, failed) = (api.router(), self.failed.clone());
        self.listeners_done.spawn(async move {
            tokio::select! {
                failure = api.failed() => {
                    let _ = failed.try_send(Failed { role: Role::Api.name(), reason: failure.to_string() });
                }
                () = stop.cancelled() => {}
            }
        });
        Ok(Some(router))
    }

    fn api_settings(&self) -> api::Config {
        let config = &self.config.api;
        api::Config {
            sockets_max: config.streams_max,
            conversations_per_socket_max: config.conversations_per_socket_max,
            hub_turns_max: config.hub_turns_max,
            hub_bytes_max: config.hub_bytes_max,
            pages_bytes_max: config.pages_bytes_max,
            pages_newest_max: Duration::from_millis(config.pages_newest_ms_max),
            pages_list_max: Duration::from_millis(config.pages_list_ms_max),
            pages_fixed_max: Duration::from_millis(config.pages_fixed_ms_max),
            hosts_allowed: self.config.http.hosts_allowed.clone(),
            registry_elsewhere: self.config.registry.settings().map(|settings| settings.urls.join(", ")),
            reconnect_spread: Duration::from_millis(self.config.shutdown.reconnect_spread_ms),
            ..api::Config::default()
        }
    }

    pub(super) fn start_ingest(&self) -> anyhow::Result<Option<Ingest>> {
        if !self.plays(Role::Ingest) {
            return Ok(None);
        }
        let config = &self.config;
        let bots = config.telegram.bots.iter();
        let settings = ingest::Config {
            bots: bots
                .map(|(name, b)| (name.clone(), ingest::Bot { webhook_secret: b.webhook_secret.clone() }))
                .collect(),
            body_bytes_max: config.ingest.body_bytes_max,
            acknowledge_within: Duration::from_millis(config.ingest.acknowledge_ms_max),
            in_flight_bytes_max: config.ingest.in_flight_bytes_max,
            reconnect_spread: Duration::from_millis(config.shutdown.reconnect_spread_ms),
            disk_free_bytes_min: config.ingest.disk_free_bytes_min,
            data_dir: config.is_embedded().then(|| config.broker_dir()),
            origins_allowed: config.ingest.origins_allowed.clone(),
            websocket: ingest::WebSocketLimits {
                sockets_max: config.ingest.sockets_max,
                ..ingest::WebSocketLimits::default()
            },
            ..ingest::Config::default()
        };
        let producer = Producer::connect(&self.kafka, &settings.producer_limits()).context("connect the intake")?;
        let ingest = Ingest::new(settings, producer, self.registry.clone(), &self.meter, self.spans.clone());
        self.health.set(Role::Ingest.name(), State::Ready);
        let (watched, failed) = (ingest.clone(), self.failed.clone());
        tokio::spawn(async move {
            watched.broken().await;
            let reason = "its producer is beyond repair; the log of the program says why".to_owned();
            let _ = failed.try_send(Failed { role: Role::Ingest.name(), reason });
        });
        Ok(Some(ingest))
    }

    pub(super) fn start_watchdog(&self) -> anyhow::Result<()> {
        let admin = Admin::connect(&self.kafka).context("connect the lag reporter")?;
        let mut readers = Vec::new();
        if self.plays(Role::History) {
            let topic = schemas::topic::TURNS_ENRICHED.to_owned();
            readers.push(watchdog::Reader { role: "history", group: self.config.history.group.clone(), topic });
        }
        readers.extend(self.processors_reader()?);
        let disk = self.config.is_embedded().then(|| watchdog::Disk {
            folder: self.config.broker_dir(),
            free_bytes_min: self.config.ingest.disk_free_bytes_min,
        });
        let work = Box::pin(watchdog::run(admin, readers, disk, self.health.clone(), self.meter.clone()));
        let (databases, meter) = (Arc::clone(&self.databases), self.meter.clone());
        let look = Box::pin(async move { databases.look(&meter).await });
        let stop = self.readers.clone();
        self.readers_done.spawn(async move {
            stop.run_until_cancelled(async { tokio::join!(work, look) }).await;
        });
        Ok(())
    }

    pub(super) fn facts(&self, http: SocketAddr) -> Facts {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let stages = match &self.config.processors.stages {
            _ if !self.plays(Role::Processors) => Vec::new(),
            all if all.is_empty() => processors::stages::ORDER.iter().map(|stage| (*stage).to_owned()).collect(),
            some => some.clone(),
        };
        Facts {
            version: env!("CARGO_PKG_VERSION"),
            roles: self.roles.iter().map(|role| role.name()).collect(),
            http: http.to_string(),
            kafka: self.kafka.bootstrap.clone(),
            broker_embedded: self.plays(Role::Broker),
            instance: self.config.kafka.instance.clone(),
            stages,
            started_at: now.as_millis() as i64,
        }
    }
}
