//! What a client sees of the program: readiness, pages of turns, turns that have come out. Plain HTTP, one connection a
//! question, as a probe asks.

use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::load::Frame;

/// Longest wait for an answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// An answer: its status, and its body.
async fn get(address: &str, path: &str) -> Option<(u16, String)> {
    let ask = async {
        let mut socket = TcpStream::connect(address).await.ok()?;
        let head = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        socket.write_all(head.as_bytes()).await.ok()?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some((status, body.to_owned()))
    };
    tokio::time::timeout(ANSWER_MAX, ask).await.ok()?
}

/// Why it is not ready without reserve; empty: it is.
pub(super) async fn reasons(address: &str) -> Option<Vec<String>> {
    let (_, body) = get(address, "/readyz").await?;
    let told: Value = serde_json::from_str(&body).ok()?;
    let reasons = told["reasons"].as_array()?.iter();
    let text = |reason: &Value, key: &str| reason[key].as_str().unwrap_or_default().to_owned();
    Some(reasons.map(|reason| format!("{}: {}", text(reason, "part"), text(reason, "reason"))).collect())
}

/// How many enriched turns its streams have seen.
pub(super) async fn turns(address: &str) -> Option<u64> {
    count(address, "undertone_api_hub_turns_total", "").await
}

/// What a counter stands at: the sum of its series whose labels contain this. None where it has none yet.
pub(super) async fn count(address: &str, metric: &str, label: &str) -> Option<u64> {
    let (_, text) = get(address, "/metrics").await?;
    let is_meant = |line: &&str| {
        let behind = line.strip_prefix(metric);
        behind.is_some_and(|behind| behind.starts_with(['{', ' ']) && behind.contains(label))
    };
    let values = text.lines().filter(is_meant).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    values.map(|value| value as u64).reduce(|sum, value| sum + value)
}

/// What was seen during an outage.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// From its beginning until readiness named something.
    pub(super) named_after: Option<Duration>,
    /// The longest that a page took.
    pub(super) slowest: Duration,
    degraded: bool,
    unready: bool,
    pages: u32,
    answered: u32,
    marked: u32,
}

impl Seen {
    /// Looks once, at this time since the beginning.
    pub(super) async fn look(&mut self, address: &str, since: Duration) {
        if let Some((_, body)) = get(address, "/readyz").await
            && let Ok(told) = serde_json::from_str::<Value>(&body)
        {
            let is_named = told["reasons"].as_array().is_some_and(|reasons| !reasons.is_empty());
            self.named_after = self.named_after.or(is_named.then_some(since));
            self.degraded |= told["status"] == "degraded";
            self.unready |= told["status"] == "unready";
        }
        let begun = Instant::now();
        let page = get(address, &format!("/v1/conversations/{}/turns?limit=5", Frame::room(0))).await;
        self.slowest = self.slowest.max(begun.elapsed());
        self.pages += 1;
        if let Some((200, body)) = page {
            self.answered += 1;
            self.marked += u32::from(body.contains(r#""degraded":true"#));
        }
    }

    /// The worst that readiness said.
    pub(super) fn worst(&self) -> &'static str {
        match (self.unready, self.degraded) {
            (true, _) => "unready",
            (_, true) => "degraded",
            _ => "ready",
        }
    }

    /// Share of pages that were answered.
    pub(super) fn pages_in_time(&self) -> f64 {
        share(self.answered, self.pages)
    }

    /// Share of those that were marked as degraded.
    pub(super) fn pages_marked(&self) -> f64 {
        share(self.marked, self.answered)
    }
}

/// In hundredths.
fn share(part: u32, whole: u32) -> f64 {
    (100.0 * f64::from(part) / f64::from(whole.max(1))).round() / 100.0
}
