//! `[redis]`: a cache.

use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use store::redis::{Kind, Settings};

use super::{Error, conflict};

/// `[redis]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Redis {
    /// What answers at `nodes`.
    pub kind: RedisKind,
    /// host:port,host:port.
    pub nodes: String,
    /// The name by which Sentinels know the master.
    pub master: String,
    /// Who we are; empty: the default user.
    pub user: String,
    /// Its password; empty: the server does not ask.
    pub password: SecretString,
    /// In front of every key.
    pub prefix: String,
    /// Longest call, in milliseconds.
    pub call_ms_max: u64,
    /// Longest wait for a connection, in milliseconds.
    pub connect_ms_max: u64,
    /// How long Redis is left alone after an error, in milliseconds.
    pub rest_ms: u64,
    /// How long a key lives that nobody writes, in seconds.
    pub time_to_live_seconds: u64,
}

/// What answers at the addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RedisKind {
    /// One Redis.
    Single,
    /// Nodes of a Redis Cluster.
    Cluster,
    /// Sentinels.
    Sentinel,
}

impl Redis {
    /// How the store reaches it.
    pub fn settings(&self) -> Settings {
        let named = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Settings {
            kind: match self.kind {
                RedisKind::Single => Kind::Single,
                RedisKind::Cluster => Kind::Cluster,
                RedisKind::Sentinel => Kind::Sentinel,
            },
            nodes: self.nodes.split(',').map(|node| node.trim().to_owned()).filter(|node| !node.is_empty()).collect(),
            master: self.master.clone(),
            user: named(&self.user),
            password: named(self.password.expose_secret()),
            prefix: self.prefix.clone(),
            call_timeout: Duration::from_millis(self.call_ms_max),
            connect_timeout: Duration::from_millis(self.connect_ms_max),
            rest: Duration::from_millis(self.rest_ms),
            time_to_live: Duration::from_secs(self.time_to_live_seconds),
        }
    }

    /// What must hold where it is used.
    pub(super) fn check(&self) -> Result<(), Error> {
        store::redis::check(&self.settings())
            .or_else(|error| conflict(format!("[redis]: {error}"), "see [redis] in default.toml".to_owned()))?;
        if !self.user.is_empty() && self.password.expose_secret().is_empty() {
            return conflict(
                "[redis] has a user without a password".to_owned(),
                "give password or password_file".to_owned(),
            );
        }
        let bounds = [
            ("call_ms_max", self.call_ms_max),
            ("connect_ms_max", self.connect_ms_max),
            ("time_to_live_seconds", self.time_to_live_seconds),
        ];
        for (key, value) in bounds {
            if value == 0 {
                return conflict(format!("[redis] {key} = 0 is too small"), "give 1 or more".to_owned());
            }
        }
        Ok(())
    }
}
