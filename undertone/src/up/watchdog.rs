//! Looks after the log from outside the roles: whether it answers, and how far its readers are behind.

use std::time::{Duration, Instant};

use opentelemetry::KeyValue;
use opentelemetry::metrics::Meter;
use store::log::{Admin, LogError};

use crate::health::{Health, State};
use crate::lag::{Ends, Lag};

/// Time between two measurements.
const EVERY: Duration = Duration::from_secs(2);
/// How long the brokers may take to answer one question.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// Pause between two tries to reach the brokers at the start.
const RETRY: Duration = Duration::from_millis(250);

/// A reader of the log.
#[derive(Debug, Clone)]
pub(super) struct Reader {
    /// Its role.
    pub(super) role: &'static str,
    /// Its consumer group.
    pub(super) group: String,
    /// What it reads.
    pub(super) topic: String,
}

/// Waits until the brokers answer.
///
/// # Errors
/// They did not within `patience`, or they refuse us.
pub(super) async fn reach(admin: &Admin, bootstrap: &str, patience: Duration, health: &Health) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        match admin.reachable(ANSWER_WITHIN).await {
            Ok(()) => break,
            Err(error) if error.is_transient() && begun.elapsed() < patience => {
                health.set("kafka", State::Unwell(format!("no broker answers at {bootstrap}: {error}")));
                tracing::warn!(bootstrap, %error, "no broker answers; trying again");
                tokio::time::sleep(RETRY).await;
            }
            Err(error) => {
                anyhow::bail!(
                    "no broker answers at {bootstrap}: {error}; start it, or mend [kafka] bootstrap and properties"
                )
            }
        }
    }
    health.set("kafka", State::Ready);
    Ok(())
}

/// Measures for ever.
pub(super) async fn run(admin: Admin, readers: Vec<Reader>, health: Health, meter: Meter, zero: Instant) {
    let messages = meter.i64_gauge("undertone.lag.messages").with_description("Records that a reader has not read yet");
    let messages = messages.build();
    let seconds = meter.f64_gauge("undertone.lag").with_unit("s");
    let seconds = seconds.with_description("Age of the oldest record that a reader has not read yet").build();
    let mut ends: Vec<Ends> = readers.iter().map(|_| Ends::default()).collect();
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let mut lags = Vec::with_capacity(readers.len());
        let mut fault = None;
        for (reader, ends) in readers.iter().zip(&mut ends) {
            match measure(&admin, reader, ends, zero).await {
                Ok(lag) => {
                    let labels = [KeyValue::new("role", lag.role), KeyValue::new("topic", lag.topic.clone())];
                    messages.record(lag.messages, &labels);
                    seconds.record(lag.seconds, &labels);
                    lags.push(lag);
                }
                Err(error) => fault = Some(error),
            }
        }
        if readers.is_empty() {
            fault = admin.reachable(ANSWER_WITHIN).await.err();
        }
        match fault {
            None => {
                health.set_lag(lags);
                health.set("kafka", State::Ready);
            }
            Some(error) => health.set("kafka", State::Unwell(error.to_string())),
        }
    }
}

async fn measure(admin: &Admin, reader: &Reader, ends: &mut Ends, zero: Instant) -> Result<Lag, LogError> {
    let offsets = admin.offsets(&reader.topic).await?;
    let highs = offsets.iter().map(|(partition, (_, high))| (*partition, *high)).collect();
    let lows = offsets.iter().map(|(partition, (low, _))| (*partition, *low)).collect();
    ends.observe(&highs, zero.elapsed());
    let committed = admin.committed(&reader.group, &reader.topic).await?;
    let (messages, seconds) = ends.behind(&committed, &lows, zero.elapsed());
    Ok(Lag { role: reader.role, topic: reader.topic.clone(), messages, seconds })
}
