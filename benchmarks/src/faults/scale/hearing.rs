//! Streams that follow everything, and how old turns are when they come out of them: since the intake took them, to the
//! millisecond.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use futures_util::{SinkExt as _, StreamExt as _};
use serde::Deserialize;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;

use crate::latency::Latencies;

/// How long a stream may take to open.
const OPEN_MAX: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct Ages {
    /// While processes come and go, seen by the stream that is always there.
    changing: Latencies,
    /// While nothing changes, seen by all.
    steady: Latencies,
}

#[derive(Debug)]
pub(super) struct Hearing {
    ages: Arc<Mutex<Ages>>,
    is_steady: Arc<AtomicBool>,
    always: JoinSet<anyhow::Result<()>>,
    others: JoinSet<anyhow::Result<()>>,
}

#[derive(Deserialize)]
struct Event {
    turn: Option<Heard>,
}

#[derive(Deserialize)]
struct Heard {
    received_at: u64,
}

impl Hearing {
    pub(super) fn new() -> Hearing {
        let ages = Ages { changing: Latencies::new(), steady: Latencies::new() };
        Hearing {
            ages: Arc::new(Mutex::new(ages)),
            is_steady: Arc::default(),
            always: JoinSet::new(),
            others: JoinSet::new(),
        }
    }

    pub(super) fn is_open(&self) -> bool {
        !self.always.is_empty()
    }

    /// Opens the stream that stays to the end.
    pub(super) async fn always(&mut self, address: &str) -> anyhow::Result<()> {
        let listening = self.listen(address).await?;
        self.always.spawn(listening);
        Ok(())
    }

    /// Opens others, spread over these addresses beside the first one.
    pub(super) async fn open(&mut self, addresses: &[String], count: usize) -> anyhow::Result<()> {
        for number in 1..=count {
            let listening = self.listen(&addresses[number % addresses.len()]).await?;
            self.others.spawn(listening);
        }
        Ok(())
    }

    /// From now on nothing changes; the ages since the last such moment.
    pub(super) fn measure(&mut self) -> Latencies {
        let mut ages = lock(&self.ages);
        self.is_steady.store(true, Ordering::Relaxed);
        ages.steady = Latencies::new();
        std::mem::replace(&mut ages.changing, Latencies::new())
    }

    /// The end of that; the ages meanwhile.
    pub(super) fn settle(&mut self) -> Latencies {
        let mut ages = lock(&self.ages);
        self.is_steady.store(false, Ordering::Relaxed);
        std::mem::replace(&mut ages.steady, Latencies::new())
    }

    /// Closes all but the first.
    ///
    /// # Errors
    /// A stream has ended by itself.
    pub(super) async fn close(&mut self) -> anyhow::Result<()> {
        for streams in [&mut self.always, &mut self.others] {
            if let Some(ended) = streams.try_join_next() {
                ended.context("a stream ended abnormally")??;
                anyhow::bail!("a stream ended");
            }
        }
        self.others.shutdown().await;
        Ok(())
    }

    async fn listen(&self, address: &str) -> anyhow::Result<impl Future<Output = anyhow::Result<()>> + use<>> {
        let connected = tokio_tungstenite::connect_async(format!("ws://{address}/v1/stream"));
        let (mut socket, _) = tokio::time::timeout(OPEN_MAX, connected).await.context("open a stream")??;
        socket.send(Message::text(r#"{"type":"follow","all":true}"#)).await.context("follow everything")?;
        let (ages, is_steady) = (Arc::clone(&self.ages), Arc::clone(&self.is_steady));
        Ok(async move {
            while let Some(message) = socket.next().await {
                let Message::Text(text) = message.context("read a stream")? else { continue };
                let event: Event = serde_json::from_str(&text).context("read an event")?;
                let Some(turn) = event.turn else { continue };
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                let age = now.saturating_sub(Duration::from_millis(turn.received_at));
                let mut ages = lock(&ages);
                if is_steady.load(Ordering::Relaxed) { ages.steady.note(age) } else { ages.changing.note(age) }
            }
            anyhow::bail!("a stream was closed")
        })
    }
}

fn lock(ages: &Mutex<Ages>) -> std::sync::MutexGuard<'_, Ages> {
    ages.lock().unwrap_or_else(PoisonError::into_inner)
}
