//! What a process tells of itself: its `/status` and its `/metrics`, asked over one plain connection each.
//!
//! Reads Prometheus' text format as far as the program writes it. Bounded in time and in bytes; whatever goes wrong is
//! a text for the screen.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Longest wait for one answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// Largest answer that is read.
const ANSWER_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// Where to ask: `host:port`, out of `http://host:port`.
///
/// # Errors
/// It is no such address; says how to write it.
pub fn authority(url: &str) -> Result<String, String> {
    let refused = || format!("\"{url}\" is no address of Undertone; give http://HOST:PORT");
    let rest = url.strip_prefix("http://").unwrap_or(url).trim_end_matches('/');
    let authority: axum::http::uri::Authority = rest.parse().map_err(|_| refused())?;
    if authority.host().is_empty() || authority.as_str().contains('@') {
        return Err(refused());
    }
    Ok(format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(80)))
}

/// What `/status` says, as far as it is shown.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct Status {
    /// `ready` or `unready`.
    pub status: String,
    /// Why it is not ready.
    #[serde(default)]
    pub reasons: Vec<Reason>,
    /// What a person should look at.
    #[serde(default)]
    pub warnings: Vec<Reason>,
    /// The roles that it plays.
    #[serde(default)]
    pub roles: Vec<String>,
    /// Its name among those that share the work.
    #[serde(default)]
    pub instance: String,
    /// When it started, in milliseconds since the Unix epoch.
    #[serde(default)]
    pub started_at: i64,
    /// How far its readers are behind.
    #[serde(default)]
    pub lag: Vec<Lag>,
}

/// A part and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Reason {
    /// The role, or `kafka`.
    pub part: String,
    /// What is wrong, and how to mend it.
    pub reason: String,
}

/// How far a reader is behind.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Lag {
    /// The role that reads.
    pub role: String,
    /// By partition; a release before this one does not tell it.
    #[serde(default)]
    pub partitions: Vec<PartitionLag>,
}

/// How far a reader is behind on one partition.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub struct PartitionLag {
    /// The partition.
    pub partition: i32,
    /// Records not yet read.
    pub messages: i64,
    /// Age of the oldest of them.
    pub seconds: f64,
}

/// The figures of a process at one moment: each series by its name and labels as they are written.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Figures(BTreeMap<String, Vec<(String, f64)>>);

impl Figures {
    /// Reads Prometheus' text format; lines that are none of it are passed over.
    pub fn parse(text: &str) -> Figures {
        let mut figures: BTreeMap<String, Vec<(String, f64)>> = BTreeMap::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((series, value)) = line.rsplit_once(' ') else { continue };
            let Ok(value) = value.parse() else { continue };
            let (name, labels) = match series.split_once('{') {
                Some((name, labels)) => (name, labels.trim_end_matches('}')),
                None => (series, ""),
            };
            figures.entry(name.to_owned()).or_default().push((labels.to_owned(), value));
        }
        Figures(figures)
    }

    /// The sum of a metric's series whose labels hold all of `labels`, each written `name="value"`.
    pub fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        let series = self.0.get(name).into_iter().flatten();
        series.filter(|(found, _)| labels.iter().all(|label| found.contains(label))).map(|(_, value)| value).sum()
    }

    /// Whether there is such a metric.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// The buckets of a histogram, all its series together: upper bounds and how many lie at or below them.
    pub fn buckets(&self, name: &str) -> Vec<(f64, f64)> {
        let mut buckets: Vec<(f64, f64)> = Vec::new();
        for (labels, value) in self.0.get(&format!("{name}_bucket")).into_iter().flatten() {
            let bound = labels.split(',').find_map(|label| label.strip_prefix("le=\"")?.strip_suffix('"'));
            let Some(bound) = bound.and_then(|bound| bound.parse::<f64>().ok()) else { continue };
            match buckets.iter_mut().find(|(known, _)| *known == bound) {
                Some((_, count)) => *count += value,
                None => buckets.push((bound, *value)),
            }
        }
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        buckets
    }
}

/// A process at one moment.
#[derive(Debug, Clone)]
pub struct Scrape {
    /// When it was asked.
    pub at: Instant,
    /// What it says of itself.
    pub status: Status,
    /// What it counts.
    pub figures: Figures,
}

/// Asks a process at `host:port`.
///
/// # Errors
/// Why there is no answer, in words for a person.
pub async fn scrape(authority: &str) -> Result<Scrape, String> {
    let (status, figures) = tokio::try_join!(get(authority, "/status"), get(authority, "/metrics"))?;
    let status = serde_json::from_str(&status).map_err(|_| "what answers there is no Undertone".to_owned())?;
    Ok(Scrape { at: Instant::now(), status, figures: Figures::parse(&figures) })
}

async fn get(authority: &str, path: &str) -> Result<String, String> {
    let exchange = async {
        let mut socket = TcpStream::connect(authority).await?;
        // HTTP/1.0: the answer comes in one piece and ends with the connection.
        socket.write_all(format!("GET {path} HTTP/1.0\r\nHost: {authority}\r\n\r\n").as_bytes()).await?;
        let mut answer = Vec::new();
        socket.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = tokio::time::timeout(ANSWER_WITHIN, exchange).await.map_err(|_| "no answer in time".to_owned())?;
    let answer = String::from_utf8(answer.map_err(|error| error.to_string())?);
    let answer = answer.map_err(|_| "what answers there is no Undertone".to_owned())?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("what answers there is no Undertone")?;
    match head.split(' ').nth(1) {
        Some("200") => Ok(body.to_owned()),
        Some(code) => Err(format!("{path} is answered with {code}")),
        None => Err("what answers there is no Undertone".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_summed_by_labels_and_buckets_over_series() {
        let text = "# HELP x y\nturns_total{outcome=\"enriched\",tier=\"full\"} 3\nturns_total{outcome=\"repeated\"} 1\n\
                    broken line\nlatency_seconds_bucket{a=\"1\",le=\"0.5\"} 2\nlatency_seconds_bucket{a=\"2\",le=\"0.5\"} 1\n\
                    latency_seconds_bucket{a=\"1\",le=\"+Inf\"} 4\nmemory 7e6\n";
        let figures = Figures::parse(text);
        assert_eq!(figures.sum("turns_total", &["outcome=\"enriched\""]), 3.0);
        assert_eq!(figures.sum("turns_total", &[]), 4.0);
        assert_eq!(figures.sum("nothing", &[]), 0.0);
        assert_eq!(figures.sum("memory", &[]), 7e6);
        assert_eq!(figures.buckets("latency_seconds"), [(0.5, 3.0), (f64::INFINITY, 4.0)]);
    }

    #[test]
    fn addresses_are_read_or_refused_with_the_mend() {
        assert_eq!(authority("http://127.0.0.1:8080/").unwrap(), "127.0.0.1:8080");
        assert_eq!(authority("http://[::1]:81").unwrap(), "[::1]:81");
        assert_eq!(authority("undertone.example").unwrap(), "undertone.example:80");
        for bad in ["", "http://", "https://example.org", "http://a b", "ftp://x", "http://user@host:1", "http://h:1/p"]
        {
            assert!(authority(bad).unwrap_err().contains("http://HOST:PORT"), "{bad}");
        }
    }
}
