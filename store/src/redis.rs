//! A Redis that is asked for what can be had elsewhere: one node, a cluster, or a master that Sentinels name.
//!
//! Promises: a call takes no longer than [`Settings::call_timeout`] and never waits for a connection; after an error Redis
//! is left alone for [`Settings::rest`], then connected to anew, in the background. Callers go on without it meanwhile.
//!
//! Left out: TLS; anything that must not be lost.

mod shelf;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ::redis::aio::MultiplexedConnection;
use ::redis::cluster::ClusterClient;
use ::redis::cluster_async::ClusterConnection;
use ::redis::sentinel::{SentinelClientBuilder, SentinelServerType};
use ::redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo as _, RedisError,
    RedisResult, Script, ServerErrorKind, Value,
};
use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Gauge, Meter};

use crate::DatabaseError;
pub use shelf::{Found, Shelf};

/// How often a cluster's client follows a slot that moved within one call.
const REDIRECTIONS_MAX: u32 = 3;

/// What answers at the addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One Redis; the first address that can be connected to.
    Single,
    /// Nodes of a Redis Cluster; the others are learnt from them.
    Cluster,
    /// Sentinels, which know the master.
    Sentinel,
}

/// How to reach Redis.
#[derive(Clone)]
pub struct Settings {
    /// What answers at `nodes`.
    pub kind: Kind,
    /// host:port.
    pub nodes: Vec<String>,
    /// The name by which Sentinels know the master.
    pub master: String,
    /// Who we are; `None`: the default user.
    pub user: Option<String>,
    /// Its password; `None`: the server does not ask.
    pub password: Option<String>,
    /// In front of every key, so that several installations share a Redis.
    pub prefix: String,
    /// Longest call.
    pub call_timeout: Duration,
    /// Longest wait for a connection, in the background.
    pub connect_timeout: Duration,
    /// How long Redis is left alone after an error.
    pub rest: Duration,
    /// How long a key lives that nobody writes.
    pub time_to_live: Duration,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            kind: Kind::Single,
            nodes: vec!["127.0.0.1:6379".to_owned()],
            master: String::new(),
            user: None,
            password: None,
            prefix: "undertone".to_owned(),
            call_timeout: Duration::from_millis(100),
            connect_timeout: Duration::from_secs(1),
            rest: Duration::from_secs(1),
            time_to_live: Duration::from_secs(24 * 3600),
        }
    }
}

impl std::fmt::Debug for Settings {
    /// Without the password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings").field("kind", &self.kind).field("nodes", &self.nodes).finish_non_exhaustive()
    }
}

/// Handle on a Redis; clones share its connection.
#[derive(Debug, Clone)]
pub struct Redis(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: Settings,
    addresses: Vec<ConnectionAddr>,
    state: Mutex<State>,
    errors: Counter<u64>,
    away: Gauge<u64>,
}

/// What became of the connection.
enum State {
    /// It serves; the number tells it from those before it.
    Ready(Connection, u64),
    /// It is being made.
    Connecting(u64),
    /// There was an error; nothing is tried before this moment.
    Resting(Instant, u64),
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            State::Ready(..) => "Ready",
            State::Connecting(_) => "Connecting",
            State::Resting(..) => "Resting",
        })
    }
}

#[derive(Clone)]
enum Connection {
    Node(MultiplexedConnection),
    Cluster(ClusterConnection),
}

/// A script, and the name by which a Redis that has run it knows it.
#[derive(Debug)]
pub(crate) struct KnownScript {
    code: &'static str,
    hash: String,
}

impl KnownScript {
    /// Names it.
    pub(crate) fn new(code: &'static str) -> KnownScript {
        KnownScript { code, hash: Script::new(code).get_hash().to_owned() }
    }
}

/// Redis did not answer; what it has done of the call is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Away;

impl Redis {
    /// Tries to connect, once; a Redis that is away is tried again in the background, whenever it is asked for something.
    ///
    /// # Errors
    /// As [`check`].
    pub async fn connect(settings: Settings, meter: &Meter) -> Result<Redis, DatabaseError> {
        check(&settings)?;
        let addresses = addresses(&settings.nodes)?;
        let errors = meter.u64_counter("undertone.redis.errors").build();
        for kind in ["connect", "timeout", "server"] {
            errors.add(0, &[KeyValue::new("kind", kind)]);
        }
        let away = meter.u64_gauge("undertone.redis.away").build();
        let state = Mutex::new(State::Connecting(0));
        let redis = Redis(Arc::new(Inner { settings, addresses, state, errors, away }));
        redis.0.open(0).await;
        Ok(redis)
    }

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// Runs a script on the node that holds its keys.
    pub(crate) async fn run(&self, script: &KnownScript, call: impl Fn(&mut Cmd)) -> Result<Value, Away> {
        let Some((mut connection, number)) = self.connection() else { return Err(Away) };
        let run = async {
            let mut known = ::redis::cmd("EVALSHA");
            call(known.arg(script.hash.as_str()));
            match connection.ask(&known).await {
                // A Redis that was restarted, or the node that has the keys now. EVAL leaves the script there.
                Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                    let mut unknown = ::redis::cmd("EVAL");
                    call(unknown.arg(script.code));
                    connection.ask(&unknown).await
                }
                answered => answered,
            }
        };
        match tokio::time::timeout(self.0.settings.call_timeout, run).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(self.0.failed(number, if error.is_timeout() { "timeout" } else { "server" }, &error)),
            Err(late) => Err(self.0.failed(number, "timeout", &late)),
        }
    }

    /// The connection, where there is one. Where the rest is over another is made meanwhile.
    fn connection(&self) -> Option<(Connection, u64)> {
        let mut state = self.0.lock();
        match &*state {
            State::Ready(connection, number) => return Some((connection.clone(), *number)),
            State::Resting(until, number) if *until <= Instant::now() => {
                let number = number + 1;
                *state = State::Connecting(number);
                let inner = Arc::clone(&self.0);
                tokio::spawn(async move { inner.open(number).await });
            }
            State::Connecting(_) | State::Resting(..) => {}
        }
        None
    }
}

impl Inner {
    /// Makes a connection.
    async fn open(&self, number: u64) {
        let opened = tokio::time::timeout(self.settings.connect_timeout, self.opened()).await;
        let opened = match opened {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => {
                self.failed(number, "connect", &error);
                return;
            }
            Err(late) => {
                self.failed(number, "connect", &late);
                return;
            }
        };
        *self.lock() = State::Ready(opened, number);
        self.away.record(0, &[]);
        if number > 0 {
            tracing::info!(nodes = self.settings.nodes.join(","), "Redis serves again");
        }
    }

    async fn opened(&self) -> RedisResult<Connection> {
        let Settings { kind, user, password, master, connect_timeout, call_timeout, .. } = &self.settings;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(*connect_timeout))
            .set_response_timeout(Some(*call_timeout));
        match kind {
            Kind::Single => {
                let mut last = None;
                for address in &self.addresses {
                    let client = Client::open(self.login(address)?)?;
                    match client.get_multiplexed_async_connection_with_config(&config).await {
                        Ok(connection) => return Ok(Connection::Node(connection)),
                        Err(error) => last = Some(error),
                    }
                }
                Err(last.expect("there is an address"))
            }
            Kind::Cluster => {
                let nodes: Vec<ConnectionInfo> =
                    self.addresses.iter().map(|address| self.login(address)).collect::<RedisResult<_>>()?;
                let mut builder = ClusterClient::builder(nodes)
                    .connection_timeout(*connect_timeout)
                    .response_timeout(*call_timeout)
                    .retries(REDIRECTIONS_MAX);
                if let Some(user) = user {
                    builder = builder.username(user);
                }
                if let Some(password) = password {
                    builder = builder.password(password);
                }
                Ok(Connection::Cluster(builder.build()?.get_async_connection().await?))
            }
            Kind::Sentinel => {
                let addresses = self.addresses.iter().cloned();
                let mut builder = SentinelClientBuilder::new(addresses, master, SentinelServerType::Master)?;
                if let Some(user) = user {
                    builder = builder.set_client_to_redis_username(user);
                }
                if let Some(password) = password {
                    builder = builder.set_client_to_redis_password(password);
                }
                let mut client = builder.build()?;
                Ok(Connection::Node(client.get_async_connection_with_config(&config).await?))
            }
        }
    }

    fn login(&self, address: &ConnectionAddr) -> RedisResult<ConnectionInfo> {
        let info = address.clone().into_connection_info()?;
        let mut login = info.redis_settings().clone();
        if let Some(user) = &self.settings.user {
            login = login.set_username(user);
        }
        if let Some(password) = &self.settings.password {
            login = login.set_password(password);
        }
        Ok(info.set_redis_settings(login))
    }

    /// Leaves Redis alone for a while, if the connection is still the one that failed.
    fn failed(&self, number: u64, kind: &'static str, error: &dyn std::fmt::Display) -> Away {
        self.errors.add(1, &[KeyValue::new("kind", kind)]);
        let mut state = self.lock();
        let (State::Ready(_, current) | State::Connecting(current) | State::Resting(_, current)) = &*state;
        if *current == number && !matches!(*state, State::Resting(..)) {
            let was_ready = matches!(*state, State::Ready(..));
            *state = State::Resting(Instant::now() + self.settings.rest, number);
            drop(state);
            self.away.record(1, &[]);
            if was_ready || number == 0 {
                let nodes = self.settings.nodes.join(",");
                tracing::warn!(nodes, kind, %error, "Redis does not serve; going on without it");
            }
        }
        Away
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connection {
    async fn ask(&mut self, command: &Cmd) -> Result<Value, RedisError> {
        match self {
            Connection::Node(node) => command.query_async(node).await,
            Connection::Cluster(cluster) => command.query_async(cluster).await,
        }
    }
}

/// The address that `host:port` says.
fn address(node: &str) -> Result<ConnectionAddr, DatabaseError> {
    let parts = node.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
    match parts {
        Some((host, port)) if !host.is_empty() => Ok(ConnectionAddr::Tcp(host.to_owned(), port)),
        _ => Err(DatabaseError::Other(format!("'{node}' is no address of a Redis: give host:port"))),
    }
}

/// Whether this can reach a Redis.
///
/// # Errors
/// It cannot, with what is missing.
pub fn check(settings: &Settings) -> Result<(), DatabaseError> {
    addresses(&settings.nodes)?;
    if settings.kind == Kind::Sentinel && settings.master.is_empty() {
        return Err(DatabaseError::Other("Sentinels are asked for a master by its name: give it".to_owned()));
    }
    // Braces would send the keys to another node of a cluster.
    if settings.prefix.is_empty() || settings.prefix.contains(['{', '}']) {
        let prefix = &settings.prefix;
        return Err(DatabaseError::Other(format!("'{prefix}' is no prefix for keys: give a name without braces")));
    }
    Ok(())
}

fn addresses(nodes: &[String]) -> Result<Vec<ConnectionAddr>, DatabaseError> {
    if nodes.is_empty() {
        return Err(DatabaseError::Other("there is no address of a Redis: give host:port".to_owned()));
    }
    nodes.iter().map(|node| address(node)).collect()
}
