//! A Redis that goes wrong: what is done to it from outside.

use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use redis::AsyncConnectionConfig;
use redis::aio::MultiplexedConnection;

/// Longest wait for a Redis that was started again.
const BACK_MAX: Duration = Duration::from_secs(10);
/// Pause between two tries to reach it.
const ASK_AGAIN: Duration = Duration::from_millis(20);

/// What happens to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mishap {
    /// It forgets everything.
    Flush,
    /// It answers nobody for a while, and then all at once.
    Silence(Duration),
    /// It is killed, and started again, empty. Where nobody can start it, it is flushed.
    Kill(Duration),
    /// It becomes what it was a good while ago, as when a replica that lags takes over.
    BringBack,
}

/// The Redis of a run.
#[derive(Debug)]
pub(super) struct Cache {
    address: String,
    /// Kills and starts it; `{}` stands for which.
    command: Option<String>,
    snapshot: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Cache {
    pub(super) fn new(address: &str, command: Option<&str>) -> Cache {
        Cache { address: address.to_owned(), command: command.map(str::to_owned), snapshot: Vec::new() }
    }

    /// A connection, once it answers.
    async fn connection(&self) -> anyhow::Result<MultiplexedConnection> {
        let client = redis::Client::open(format!("redis://{}/", self.address)).context("read the address")?;
        // It may be silent, by our own doing.
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(BACK_MAX));
        let tries = async {
            loop {
                match client.get_multiplexed_async_connection_with_config(&config).await {
                    Ok(connection) => return connection,
                    Err(_) => tokio::time::sleep(ASK_AGAIN).await,
                }
            }
        };
        tokio::time::timeout(BACK_MAX, tries).await.with_context(|| format!("no Redis answers at {}", self.address))
    }

    pub(super) async fn flush(&self) -> anyhow::Result<()> {
        let mut connection = self.connection().await?;
        redis::cmd("FLUSHALL").exec_async(&mut connection).await.context("flush Redis")?;
        redis::cmd("SCRIPT").arg("FLUSH").exec_async(&mut connection).await.context("flush Redis' scripts")
    }

    /// For so long; comes back at once.
    pub(super) async fn silence(&self, time: Duration) -> anyhow::Result<()> {
        let mut connection = self.connection().await?;
        let pause = redis::cmd("CLIENT").arg("PAUSE").arg(time.as_millis() as u64).arg("ALL").to_owned();
        pause.exec_async(&mut connection).await.context("pause Redis")
    }

    /// Comes back when it is up again.
    pub(super) async fn kill(&self, away: Duration) -> anyhow::Result<()> {
        let Some(command) = &self.command else { return self.flush().await };
        for (verb, pause) in [("kill", away), ("start", Duration::ZERO)] {
            let line = if command.contains("{}") { command.replace("{}", verb) } else { format!("{command} {verb}") };
            let mut shell = std::process::Command::new("sh");
            shell.args(["-c", &line]).stdin(Stdio::null()).stdout(Stdio::null());
            let status = tokio::task::spawn_blocking(move || shell.status()).await?;
            anyhow::ensure!(status.with_context(|| format!("run `{line}`"))?.success(), "`{line}` failed");
            tokio::time::sleep(pause).await;
        }
        self.connection().await.map(|_| ())
    }

    /// Notes what it holds.
    pub(super) async fn remember(&mut self) -> anyhow::Result<()> {
        let mut connection = self.connection().await?;
        let keys: Vec<Vec<u8>> = redis::cmd("KEYS").arg("*").query_async(&mut connection).await.context("list keys")?;
        self.snapshot.clear();
        for key in keys {
            let dump = redis::cmd("DUMP").arg(&key).query_async(&mut connection).await;
            let bytes: Option<Vec<u8>> = dump.context("copy a key")?;
            self.snapshot.extend(bytes.map(|bytes| (key, bytes)));
        }
        Ok(())
    }

    /// It holds that and nothing else, from one moment to the next.
    pub(super) async fn bring_back(&mut self) -> anyhow::Result<()> {
        let mut connection = self.connection().await?;
        let mut at_once = redis::pipe();
        at_once.atomic().cmd("FLUSHALL").ignore();
        for (key, bytes) in std::mem::take(&mut self.snapshot) {
            at_once.cmd("RESTORE").arg(key).arg(0).arg(bytes).ignore();
        }
        at_once.exec_async(&mut connection).await.context("bring old keys back")
    }
}
