//! Registering the schemas of this release: a step of a deployment, never of a process that runs.
//!
//! What is found and what is done about it are apart, so that both can be shown first. Registering twice changes nothing:
//! the same schema has the same id. A subject that is new gets every version that was ever committed, in order; one that
//! is there, those behind the newest that it has. Compatibility is FULL_TRANSITIVE for each subject: any version reads
//! what any other wrote, which is what lets readers and writers be deployed in any order.

use schemas::{latest, versions};

use super::Subject;
use super::client::{Client, Place, RegistryError};

/// The level that each subject gets.
pub const LEVEL: &str = "FULL_TRANSITIVE";

/// A subject, and how it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Which.
    pub subject: Subject,
    /// The newest schema of this release there.
    pub state: State,
    /// The compatibility level that holds for it; `None` if the registry tells none.
    pub level: Option<String>,
}

/// How the newest schema of this release stands under its subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// It is registered.
    Registered(Place),
    /// It is not, and may be.
    Missing,
    /// It is not, and the registry would refuse it: what it says, if it says anything.
    Incompatible(String),
}

impl Finding {
    /// Whether there is something to be done.
    pub fn is_open(&self) -> bool {
        !matches!(self.state, State::Registered(_)) || self.level.as_deref() != Some(LEVEL)
    }
}

/// Lays the schemas of this release beside those that are registered; changes nothing.
///
/// # Errors
/// The registry is away, or refuses us.
pub async fn compare(client: &Client, subjects: &[Subject]) -> Result<Vec<Finding>, RegistryError> {
    let mut findings = Vec::with_capacity(subjects.len());
    for subject in subjects {
        let newest = latest(subject.kind).text;
        let state = match client.look_up(&subject.name, newest).await? {
            Some(place) => State::Registered(place),
            None => match client.objection(&subject.name, newest).await? {
                None => State::Missing,
                Some(objection) => State::Incompatible(objection),
            },
        };
        findings.push(Finding { subject: subject.clone(), state, level: client.level(&subject.name).await? });
    }
    Ok(findings)
}

/// Registers what is missing under a subject, and sets its level; returns where the newest schema stands.
///
/// # Errors
/// [`RegistryError::Incompatible`] if the registry refuses a schema; it is away, or refuses us.
pub async fn apply(client: &Client, finding: &Finding) -> Result<Place, RegistryError> {
    let Subject { name, kind } = &finding.subject;
    let is_new = client.versions(name).await?.is_empty();
    let mut open = Vec::new();
    for version in versions(*kind).rev() {
        if !is_new && client.look_up(name, version.text).await?.is_some() {
            break;
        }
        open.insert(0, version.text);
    }
    // The first version has nothing to be compatible with, and some registries forget the level of a subject that is
    // not there yet; all others are registered under it.
    if is_new && !open.is_empty() {
        client.register(name, open.remove(0)).await?;
    }
    if finding.level.as_deref() != Some(LEVEL) || is_new {
        client.set_level(name, LEVEL).await?;
    }
    for text in open {
        client.register(name, text).await?;
    }
    let place = client.look_up(name, latest(*kind).text).await?;
    place.ok_or_else(|| RegistryError::Unregistered { address: client.address(), subjects: name.clone() })
}
