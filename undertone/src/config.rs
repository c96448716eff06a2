//! The settings: their types, and what must hold between them.
//!
//! The defaults live in `config/default.toml`, which is compiled in and documents every key; [`load`] lays one file and
//! the environment over it. This module reads no clock and opens no port; it touches the disk only to read the file
//! that it was given, the files that hold secrets, and certificates.

mod dreams;
mod kafka;
mod load;
mod redis;
mod registry;
mod scylla;
mod secret;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use secrecy::SecretString;
use serde::Deserialize;

pub use dreams::{Dreams, DreamsBy, Generator};
pub use kafka::{Kafka, Protocol};
pub use load::{DEFAULT, Error, load, table};
pub use redis::{Redis, RedisKind};
pub use registry::{Registry, RegistryKind};
pub use scylla::Scylla;
pub use secret::masked;

/// CQL's longest time to live is twenty years, in days.
const RETENTION_DAYS_MAX: u32 = 7300;

/// All settings, complete.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where state lives.
    pub data: Data,
    /// The one HTTP listener.
    pub http: Http,
    /// The embedded broker.
    pub broker: Broker,
    /// The log's client, and whose brokers it talks to.
    pub kafka: Kafka,
    /// Bounds of intake.
    pub ingest: Ingest,
    /// Bounds of the read side.
    pub api: Api,
    /// Telegram.
    pub telegram: Telegram,
    /// The model stages.
    pub processors: Processors,
    /// What words are meant to do.
    pub dialogue: Dialogue,
    /// The inputs at fault.
    pub rejects: Rejects,
    /// The store of contexts.
    pub context: Context,
    /// The store of turns.
    pub history: History,
    /// What is remembered of them.
    pub memory: Memory,
    /// What is told of what was forgotten.
    pub privacy: Privacy,
    /// The CQL server, for what is kept there.
    pub scylla: Scylla,
    /// A cache.
    pub redis: Redis,
    /// Whose ids schemas have.
    pub registry: Registry,
    /// Who dreams, and what is never said.
    pub dreams: Dreams,
    /// An endpoint that writes.
    pub generator: Generator,
    /// Where models are.
    pub models: Models,
    /// How a stop goes.
    pub shutdown: Shutdown,
    /// The log of the program, not of the turns.
    pub log: Log,
    /// Traces.
    pub telemetry: Telemetry,
}

/// `[data]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// The folder under which all state lives.
    pub dir: PathBuf,
}

/// `[http]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Http {
    /// Address of the listener.
    pub listen: SocketAddr,
    /// Whether an address that other machines reach is wanted.
    pub allow_remote: bool,
    /// Host names, beside the loopback ones, under which clients reach the listener.
    pub hosts_allowed: Vec<String>,
    /// Most connections that are served at a time, without WebSockets.
    pub connections_max: usize,
    /// Longest time that a connection may take to bring the head of a request, in seconds.
    pub header_read_seconds_max: u64,
}

/// `[broker]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Broker {
    /// Address of the listener.
    pub listen: SocketAddr,
    /// Whether an address that other machines reach is wanted.
    pub allow_remote: bool,
    /// The host that clients are told; empty: that of `listen`.
    pub advertised_host: String,
    /// Where the log lives; empty: under the data folder.
    pub dir: PathBuf,
    /// What an acknowledgement promises.
    pub fsync: Fsync,
    /// Longest time between two syncs, in milliseconds.
    pub fsync_interval_ms: u64,
    /// Shortest session time-out that a group member may ask for, in seconds.
    pub session_seconds_min: u64,
    /// Most connections at a time.
    pub connections_max: usize,
    /// How long the offsets of a group are kept that is not used, in days.
    pub group_offsets_days: u64,
}

/// What an acknowledgement of the embedded broker promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fsync {
    /// It survives kill -9.
    Interval,
    /// It survives a power cut.
    Acknowledge,
}

/// `[ingest]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ingest {
    /// Largest body of a webhook call, in bytes.
    pub body_bytes_max: usize,
    /// Patience with the log, in milliseconds.
    pub acknowledge_ms_max: u64,
    /// Bytes that intake holds for the log at a time.
    pub in_flight_bytes_max: usize,
    /// Intake stops below this much free disk, in bytes.
    pub disk_free_bytes_min: u64,
    /// Most open sockets that bring turns.
    pub sockets_max: u32,
    /// Origins beside our own whose pages may open such sockets.
    pub origins_allowed: Vec<String>,
}

/// `[api]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Api {
    /// Most open streams.
    pub streams_max: usize,
    /// Most conversations that one WebSocket follows.
    pub conversations_per_socket_max: usize,
    /// Most recent turns held in memory for readers that come back.
    pub hub_turns_max: usize,
    /// Most bytes of them.
    pub hub_bytes_max: usize,
    /// Most bytes of pages in front of the history; 0: none are held.
    pub pages_bytes_max: usize,
    /// How long a newest page is believed of which the log says nothing, in milliseconds.
    pub pages_newest_ms_max: u64,
    /// How long a list is believed although turns came, in milliseconds.
    pub pages_list_ms_max: u64,
    /// How long a page at a fixed place is believed, in milliseconds.
    pub pages_fixed_ms_max: u64,
}

/// `[telegram]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Telegram {
    /// Bots by the name in their webhook's path.
    pub bots: BTreeMap<String, Bot>,
}

/// `[telegram.bots.NAME]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bot {
    /// The secret token that Telegram sends with every update.
    pub webhook_secret: SecretString,
}

/// `[processors]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Processors {
    /// Consumer group.
    pub group: String,
    /// Contiguous run of stages; empty: all.
    pub stages: Vec<String>,
    /// Which models serve.
    pub tier: Tier,
    /// Lag over which `auto` takes the fast tier, in seconds.
    pub lag_seconds_max: u64,
    /// Most turns in one batch.
    pub batch_turns_max: usize,
    /// Longest open transaction, in seconds.
    pub transaction_seconds_max: u64,
    /// Share of rejects among the last turns over which the role stops.
    pub rejects_share_max: f64,
    /// How many last turns are looked at; 0: none, and the role never stops for it.
    pub rejects_window_turns: usize,
}

/// `[dialogue]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dialogue {
    /// Sets of intents: names of shipped ones, or files of examples.
    pub intents: Vec<String>,
    /// Domains whose values are looked for.
    pub slots: Vec<String>,
    /// Tasks whose next actions are told.
    pub tasks: BTreeMap<String, DialogueTask>,
}

/// `[dialogue.tasks.NAME]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DialogueTask {
    /// Its actions: label and template.
    pub actions: BTreeMap<String, String>,
}

impl Dialogue {
    /// As the processors read it.
    pub fn wanted(&self) -> processors::model::wanted::Wanted {
        let tasks = self.tasks.iter().map(|(name, task)| (name.clone(), task.actions.clone())).collect();
        processors::model::wanted::Wanted { intents: self.intents.clone(), slots: self.slots.clone(), tasks }
    }
}

/// `[rejects]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rejects {
    /// Tries after which an input at fault is not driven in again.
    pub attempts_max: i32,
}

/// Which models serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// Full, and fast while the lag is over its bound.
    Auto,
    /// Transformer encoder.
    Full,
    /// N-gram and static embedding.
    Fast,
}

/// `[context]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    /// Where contexts live.
    pub kind: StoreKind,
    /// The file; empty: under the data folder.
    pub path: PathBuf,
    /// Whether no other machine processes turns of this Kafka.
    pub only_machine: bool,
    /// What stands in front of them.
    pub cache: Cache,
}

/// What stands in front of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cache {
    /// Nothing.
    None,
    /// The Redis of `[redis]`.
    Redis,
}

/// Where something is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoreKind {
    /// One file on this machine.
    Sqlite,
    /// The CQL server of `[scylla]`.
    Scylla,
}

/// `[history]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct History {
    /// Where turns are kept.
    pub kind: StoreKind,
    /// The file; empty: under the data folder.
    pub path: PathBuf,
    /// How long turns are kept on a CQL server, in days; 0: for ever.
    pub retention_days: u32,
    /// Consumer group of the writer.
    pub group: String,
    /// What stands between the pages in memory and the store.
    pub cache: Cache,
}

/// `[memory]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// Different content words from which a turn is worth keeping.
    pub keep_words_min: usize,
    /// Most rooms of a palace.
    pub rooms_max: usize,
    /// Most memories of a conversation.
    pub conversation_max: usize,
    /// What recall looks through.
    pub scope: Scope,
    /// Most bytes of memories that are held ready.
    pub cache_bytes_max: usize,
}

/// What recall looks through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// The conversation that is asked about.
    Conversation,
    /// What a person said to the same bot.
    Person,
}

/// `[privacy]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Privacy {
    /// How long backups are kept, in days; 0: there are none.
    pub backups_days: u32,
    /// Whether the words in topics are encrypted by a key of the conversation.
    pub crypto_shred: bool,
}

/// `[models]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Models {
    /// Folder of the models; empty: look for it.
    pub dir: PathBuf,
    /// The ONNX Runtime library; empty: look for it.
    pub onnxruntime: PathBuf,
    /// Whether valence, arousal and dominance have a model of their own.
    pub vad: bool,
    /// When the transformer is loaded.
    pub load: Load,
    /// Whether the density matrix of what was said lately is measured.
    pub density: bool,
}

/// `[models] load`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Load {
    /// At the start.
    Start,
    /// With the first text of the full tier.
    Lazy,
}

/// `[shutdown]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shutdown {
    /// Longest clean stop, in seconds.
    pub drain_seconds_max: u64,
    /// How far apart clients are told to come back, in milliseconds.
    pub reconnect_spread_ms: u64,
}

/// `[log]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    /// How lines look.
    pub format: LogFormat,
    /// A level, or a filter by module.
    pub level: String,
}

/// `[telemetry]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Telemetry {
    /// Where traces are exported to; empty: nowhere.
    pub otlp_endpoint: String,
    /// Share of the new traces that is exported.
    pub sampling_ratio: f64,
    /// Most spans that wait to be exported.
    pub queue_spans_max: usize,
    /// Longest export, in milliseconds.
    pub export_ms_max: u64,
}

/// How lines of the log look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people where the error stream is a terminal, JSON elsewhere.
    Auto,
    /// One object a line.
    Json,
    /// For people.
    Terminal,
}

impl Config {
    /// The defaults on free ports, with everything under `dir`: what tests and `--ephemeral` start from.
    pub fn at(dir: &Path) -> Config {
        let mut config = load(None, []).expect("the compiled-in defaults load: a test reads them");
        config.data.dir = dir.to_owned();
        let free = SocketAddr::from(([127, 0, 0, 1], 0));
        config.http.listen = free;
        config.broker.listen = free;
        config
    }

    /// Whether the log is the broker in this program.
    pub fn is_embedded(&self) -> bool {
        self.kafka.bootstrap.is_empty()
    }

    /// Where the embedded broker keeps the log.
    pub fn broker_dir(&self) -> PathBuf {
        or_under(&self.broker.dir, &self.data.dir, "broker")
    }

    /// How models run.
    pub fn options(&self) -> processors::Options {
        processors::Options {
            vad: self.models.vad,
            lazy: self.models.load == Load::Lazy,
            density: self.models.density,
            keep_words_min: self.memory.keep_words_min,
            rooms_max: self.memory.rooms_max,
            ..processors::Options::default()
        }
    }

    /// The file of the contexts.
    pub fn context_path(&self) -> PathBuf {
        or_under(&self.context.path, &self.data.dir, "contexts.sqlite")
    }

    /// The file of the history.
    pub fn history_path(&self) -> PathBuf {
        or_under(&self.history.path, &self.data.dir, "history.sqlite")
    }

    /// The file of the keys of sealed turns.
    pub fn keys_path(&self) -> PathBuf {
        self.history_path().with_file_name("keys.sqlite")
    }

    /// What must hold between settings; each value alone is checked by its type.
    ///
    /// # Errors
    /// [`Error::Conflict`] with the mend.
    pub fn check(&self) -> Result<(), Error> {
        let loopback = |listen: SocketAddr, allowed: bool, section: &str, why: &str| {
            if listen.ip().is_loopback() || allowed {
                return Ok(());
            }
            let mend = format!(
                "use 127.0.0.1, or set [{section}] allow_remote = true behind something that asks for credentials"
            );
            conflict(format!("[{section}] listen = \"{listen}\" is reached by other machines, and {why}"), mend)
        };
        loopback(self.http.listen, self.http.allow_remote, "http", "there are no accounts yet")?;
        let open = "the embedded broker asks nobody for a password";
        loopback(self.broker.listen, self.broker.allow_remote, "broker", open)?;
        let positive = [
            ("kafka", "partitions", i64::from(self.kafka.partitions)),
            ("kafka", "replication", i64::from(self.kafka.replication)),
            ("broker", "fsync_interval_ms", self.broker.fsync_interval_ms as i64),
            ("broker", "connections_max", self.broker.connections_max as i64),
            ("broker", "group_offsets_days", self.broker.group_offsets_days as i64),
            ("ingest", "body_bytes_max", self.ingest.body_bytes_max as i64),
            ("ingest", "acknowledge_ms_max", self.ingest.acknowledge_ms_max as i64),
            ("ingest", "in_flight_bytes_max", self.ingest.in_flight_bytes_max as i64),
            ("http", "connections_max", self.http.connections_max as i64),
            ("http", "header_read_seconds_max", self.http.header_read_seconds_max as i64),
            ("ingest", "sockets_max", i64::from(self.ingest.sockets_max)),
            ("api", "streams_max", self.api.streams_max as i64),
            ("api", "conversations_per_socket_max", self.api.conversations_per_socket_max as i64),
            ("api", "hub_turns_max", self.api.hub_turns_max as i64),
            ("api", "hub_bytes_max", self.api.hub_bytes_max as i64),
            ("api", "pages_newest_ms_max", self.api.pages_newest_ms_max as i64),
            ("api", "pages_list_ms_max", self.api.pages_list_ms_max as i64),
            ("api", "pages_fixed_ms_max", self.api.pages_fixed_ms_max as i64),
            ("processors", "batch_turns_max", self.processors.batch_turns_max as i64),
            ("processors", "transaction_seconds_max", self.processors.transaction_seconds_max as i64),
            ("kafka", "session_seconds_max", self.kafka.session_seconds_max as i64),
            ("broker", "session_seconds_min", self.broker.session_seconds_min as i64),
            ("telemetry", "queue_spans_max", self.telemetry.queue_spans_max as i64),
            ("telemetry", "export_ms_max", self.telemetry.export_ms_max as i64),
            ("rejects", "attempts_max", i64::from(self.rejects.attempts_max)),
            ("memory", "conversation_max", i64::try_from(self.memory.conversation_max).unwrap_or(i64::MAX)),
            ("memory", "cache_bytes_max", i64::try_from(self.memory.cache_bytes_max).unwrap_or(i64::MAX)),
        ];
        for (section, key, value) in positive {
            if value < 1 {
                return conflict(format!("[{section}] {key} = {value} is too small"), "give 1 or more".to_owned());
            }
        }
        let rooms = self.memory.rooms_max;
        if !(1..=processors::stages::ROOMS_MAX).contains(&rooms) {
            let mend = format!("give a number from 1 to {}", processors::stages::ROOMS_MAX);
            return conflict(format!("[memory] rooms_max = {rooms} is out of bounds"), mend);
        }
        for (section, key, share) in [
            ("processors", "rejects_share_max", self.processors.rejects_share_max),
            ("telemetry", "sampling_ratio", self.telemetry.sampling_ratio),
        ] {
            if !(0.0..=1.0).contains(&share) {
                let fault = format!("[{section}] {key} = {share} is no share");
                return conflict(fault, "give a number from 0 to 1".to_owned());
            }
        }
        let endpoint = &self.telemetry.otlp_endpoint;
        if !endpoint.is_empty() && !crate::telemetry::traces::is_endpoint(endpoint) {
            return conflict(
                format!("[telemetry] otlp_endpoint = \"{endpoint}\" is no address of plain HTTP"),
                "give http://HOST:PORT of a collector near by (TLS is the collector's to speak further on)".to_owned(),
            );
        }
        for (section, key, text) in [
            ("kafka", "instance", &self.kafka.instance),
            ("processors", "group", &self.processors.group),
            ("history", "group", &self.history.group),
        ] {
            if text.is_empty() {
                return conflict(format!("[{section}] {key} is empty"), "give it a name".to_owned());
            }
        }
        processors::plan(processors::stages::ORDER, &self.processors.stages)
            .map_err(|error| Error::Value(error.to_string()))?;
        crate::telemetry::filter(&self.log.level).map_err(Error::Value)?;
        let days = self.history.retention_days;
        if days > RETENTION_DAYS_MAX || days > 0 && self.history.kind == StoreKind::Sqlite {
            return conflict(
                format!("[history] retention_days = {days} cannot be kept"),
                format!("with kind = \"scylla\" give up to {RETENTION_DAYS_MAX}; a file keeps turns for ever: give 0"),
            );
        }
        if [self.history.kind, self.context.kind].contains(&StoreKind::Scylla) {
            self.scylla.check()?;
        }
        if [self.context.cache, self.history.cache].contains(&Cache::Redis) {
            self.redis.check()?;
        }
        if self.history.cache == Cache::Redis && self.api.pages_bytes_max == 0 {
            return conflict(
                "[history] cache = \"redis\" stands behind pages in memory, and [api] pages_bytes_max = 0".to_owned(),
                "give pages_bytes_max, or cache = \"none\"".to_owned(),
            );
        }
        if self.privacy.crypto_shred && self.is_embedded() {
            return conflict(
                "[privacy] crypto_shred = true, and the log is the embedded broker's, which takes the words out itself"
                    .to_owned(),
                "set crypto_shred = false, or name an outside Kafka in [kafka] bootstrap".to_owned(),
            );
        }
        self.registry.check()?;
        self.generator.check(&self.dreams)?;
        self.kafka.check()?;
        self.check_names()?;
        self.check_bots()
    }

    /// A name that is written otherwise than clients send it would silently allow nobody.
    fn check_names(&self) -> Result<(), Error> {
        if let Some(host) = self.http.hosts_allowed.iter().find(|h| h.is_empty() || h.contains(['/', ':', '*', ' '])) {
            return conflict(
                format!("[http] hosts_allowed has \"{host}\", which is no host name"),
                "give names such as undertone.example.org, without scheme, port and path".to_owned(),
            );
        }
        let whole = |origin: &str| {
            let host = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
            host.is_some_and(|host| !host.is_empty() && !host.contains(['/', '*', ' ']))
        };
        if let Some(origin) = self.ingest.origins_allowed.iter().find(|origin| !whole(origin)) {
            return conflict(
                format!("[ingest] origins_allowed has \"{origin}\", which is no origin"),
                "give origins such as https://app.example.org, with the port if it is not the usual one".to_owned(),
            );
        }
        Ok(())
    }

    fn check_bots(&self) -> Result<(), Error> {
        use secrecy::ExposeSecret;
        // Telegram's rules for setWebhook's secret_token.
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        for (name, bot) in &self.telegram.bots {
            let secret = bot.webhook_secret.expose_secret();
            if secret.is_empty() || secret.len() > 256 || !secret.bytes().all(allowed) {
                return conflict(
                    format!("[telegram.bots.{name}] webhook_secret is not a secret token of Telegram"),
                    "give 1 to 256 characters of A-Z, a-z, 0-9, _ and -".to_owned(),
                );
            }
            if name.is_empty() || !name.bytes().all(allowed) {
                return conflict(
                    format!("[telegram.bots.{name}] is no name for a webhook's path"),
                    "use A-Z, a-z, 0-9, _ and -".to_owned(),
                );
            }
        }
        Ok(())
    }

    /// Refuses what would split contexts silently: contexts on this machine, turns processed by others too.
    ///
    /// # Errors
    /// [`Error::Conflict`] with the mend.
    pub fn check_only_machine(&self) -> Result<(), Error> {
        if self.is_embedded() || self.context.only_machine || self.context.kind == StoreKind::Scylla {
            return Ok(());
        }
        conflict(
            "[kafka] bootstrap names an outside Kafka, and [context] kind = \"sqlite\" keeps contexts on this machine \
             only: a second machine would split them"
                .to_owned(),
            "set [context] only_machine = true if no other machine processes turns of this Kafka, or kind = \"scylla\""
                .to_owned(),
        )
    }
}

fn or_under(path: &Path, dir: &Path, name: &str) -> PathBuf {
    if path.as_os_str().is_empty() { dir.join(name) } else { path.to_owned() }
}

fn conflict(what: String, mend: String) -> Result<(), Error> {
    Err(Error::Conflict { what, mend })
}
