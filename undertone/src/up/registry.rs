//! The schema registry that the settings name: for the roles, and for the commands that work beside them.

use std::time::Instant;

use anyhow::Context as _;
use opentelemetry::metrics::Meter;
use store::Pauses;
use store::registry::{PAUSES, Registry, Subject};

use super::databases::Databases;
use crate::config::Config;
use crate::health::{Health, State};

/// The part of the process's health that speaks of it.
pub(super) const PART: &str = "registry";

/// The subjects of the topics that the settings want.
pub(crate) fn subjects(config: &Config) -> Vec<Subject> {
    super::topics_wanted(config).iter().filter_map(|topic| Subject::of(&topic.name)).collect()
}

/// Reads the ids, and opens the keys of sealed turns. A registry that is away is waited for, as the log and the databases are: the supervisor sees a process
/// that is not ready, and gets it back with the reason when it has been patient for long enough.
pub(crate) async fn open(config: &Config, databases: &Databases, meter: &Meter) -> anyhow::Result<Registry> {
    let registry = read(config, databases.health(), meter).await?;
    Ok(match Box::pin(databases.keys(config)).await? {
        Some(keys) => registry.opening(keys),
        None => registry,
    })
}

async fn read(config: &Config, health: &Health, meter: &Meter) -> anyhow::Result<Registry> {
    let Some(settings) = config.registry.settings() else { return Ok(Registry::embedded()) };
    let subjects = subjects(config);
    let (begun, mut pauses) = (Instant::now(), Pauses::between(PAUSES));
    // One that takes the connection and says nothing takes its time until a try has failed.
    health.set(PART, State::Unwell(format!("no schema registry has answered yet at {}", settings.urls.join(", "))));
    loop {
        match Registry::open(&settings, &subjects, meter).await {
            Ok(registry) => {
                health.set(PART, State::Ready);
                return Ok(registry);
            }
            Err(error) if error.is_away() && begun.elapsed() < settings.away_max => {
                tracing::warn!(url = settings.urls.join(","), %error, "waiting for the schema registry");
                health.set(PART, State::Unwell(error.to_string()));
                tokio::time::sleep(pauses.next_pause()).await;
            }
            Err(error) => return Err(error).context("read the ids of the schemas (settings: [registry])"),
        }
    }
}
