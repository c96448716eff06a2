//! `[registry]`: which ids schemas have.

use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;

use super::{Error, conflict};

/// A record waits for the registry on the thread that also tells the group that the reader is alive, which has to be
/// within five minutes.
const AWAY_SECONDS_MAX: u64 = 240;

/// `[registry]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Registry {
    /// Whose ids.
    pub kind: RegistryKind,
    /// Addresses, tried in turn.
    pub url: Vec<String>,
    /// Who we are; empty: the registry does not ask.
    pub user: String,
    /// Its password.
    pub password: SecretString,
    /// Longest wait for an answer, in milliseconds.
    pub request_ms_max: u64,
    /// How often a question is asked before the registry counts as away.
    pub tries_max: u32,
    /// Patience with a registry that is away, in seconds.
    pub away_seconds_max: u64,
}

/// Whose ids schemas have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RegistryKind {
    /// Those that are compiled in.
    Embedded,
    /// Those of a registry outside.
    Confluent,
}

impl Registry {
    /// How the store reaches it; `None` if the ids are compiled in.
    pub fn settings(&self) -> Option<store::registry::Settings> {
        if self.kind == RegistryKind::Embedded {
            return None;
        }
        let login = (!self.user.is_empty()).then(|| (self.user.clone(), self.password.expose_secret().to_owned()));
        Some(store::registry::Settings {
            urls: self.url.clone(),
            login,
            request_timeout: Duration::from_millis(self.request_ms_max),
            tries_max: self.tries_max,
            away_max: Duration::from_secs(self.away_seconds_max),
        })
    }

    /// What must hold between its settings.
    pub(super) fn check(&self) -> Result<(), Error> {
        let is_outside = self.kind == RegistryKind::Confluent;
        if is_outside == self.url.is_empty() {
            let (what, mend) = match is_outside {
                true => {
                    ("kind = \"confluent\" has no url", "give its address, such as url = [\"http://10.0.0.1:8081\"]")
                }
                false => {
                    ("url is set, and kind = \"embedded\" asks nobody", "set kind = \"confluent\", or leave url out")
                }
            };
            return conflict(format!("[registry] {what}"), mend.to_owned());
        }
        for url in &self.url {
            let rest = url.strip_prefix("http://").unwrap_or_default();
            // A password in an address would stand in logs and answers.
            if rest.is_empty() || rest.starts_with('/') || rest.contains(['@', '?', '#', ' ']) {
                let shown = url.rsplit_once('@').map_or(url.as_str(), |(_, behind)| behind);
                return conflict(
                    format!("[registry] url has \"{shown}\", which is no address of plain HTTP"),
                    "give http://HOST:PORT/PATH; user and password have settings of their own, and TLS is spoken by a \
                     proxy near by"
                        .to_owned(),
                );
            }
        }
        if self.user.is_empty() != self.password.expose_secret().is_empty() {
            return conflict(
                "[registry] has one of user and password only".to_owned(),
                "give both, or neither where the registry does not ask".to_owned(),
            );
        }
        for (key, value) in [("request_ms_max", self.request_ms_max), ("tries_max", u64::from(self.tries_max))] {
            if value == 0 {
                return conflict(format!("[registry] {key} = 0 is too small"), "give 1 or more".to_owned());
            }
        }
        if self.away_seconds_max > AWAY_SECONDS_MAX {
            return conflict(
                format!("[registry] away_seconds_max = {} is too large", self.away_seconds_max),
                format!("give up to {AWAY_SECONDS_MAX}: a reader that waits for longer loses its partitions"),
            );
        }
        Ok(())
    }
}
