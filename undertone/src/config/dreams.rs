//! `[dreams]` and `[generator]`: who makes dreams, and what they never say.

use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;
use serde::Deserialize;

use super::{Error, conflict};

/// `[dreams]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dreams {
    /// Who makes them.
    pub generator: DreamsBy,
    /// File of words that never come out; empty: none.
    pub blocked_words: PathBuf,
}

/// Who makes dreams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DreamsBy {
    /// The decoder that ships.
    Builtin,
    /// The endpoint of `[generator]`.
    Openai,
}

/// `[generator]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Generator {
    /// Where the endpoint's API begins; empty: there is none.
    pub url: String,
    /// Which of its models.
    pub model: String,
    /// What it asks for; empty: nothing.
    pub api_key: SecretString,
    /// Longest wait for an answer, in milliseconds.
    pub request_ms_max: u64,
}

impl Generator {
    /// Longest wait for an answer.
    pub fn within(&self) -> Duration {
        Duration::from_millis(self.request_ms_max)
    }

    /// What must hold between the settings of both.
    pub(super) fn check(&self, dreams: &Dreams) -> Result<(), Error> {
        if dreams.generator == DreamsBy::Builtin && self.url.is_empty() {
            return Ok(());
        }
        let rest = self.url.strip_prefix("http://").unwrap_or_default();
        if rest.is_empty() || rest.starts_with('/') || rest.contains(['@', '?', '#', ' ']) {
            return conflict(
                "[generator] url is no address of plain HTTP".to_owned(),
                "give http://HOST:PORT/v1; the key has a setting of its own, and TLS is spoken by a proxy near by"
                    .to_owned(),
            );
        }
        if self.model.is_empty() || self.request_ms_max == 0 {
            return conflict(
                "[generator] has no model, or request_ms_max = 0".to_owned(),
                "name a model that the endpoint serves, and give it a second or more".to_owned(),
            );
        }
        Ok(())
    }
}
