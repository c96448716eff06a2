//! `[scylla]`: the CQL server.

use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;

use super::kafka::holds;
use super::{Error, conflict};

/// `[scylla]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scylla {
    /// host:port,host:port of some of the nodes.
    pub nodes: String,
    /// The keyspace.
    pub keyspace: String,
    /// Replication of a keyspace that is created, as CQL writes it.
    pub replication: String,
    /// The data centre whose nodes are asked; empty: the only one.
    pub datacenter: String,
    /// Who we are; empty: the server does not ask.
    pub user: String,
    /// Its password.
    pub password: SecretString,
    /// Whether the nodes speak TLS.
    pub tls: bool,
    /// Authorities that are trusted, as PEM; empty: the system's.
    pub ca_file: PathBuf,
    /// Our certificate, as PEM; empty: none.
    pub certificate_file: PathBuf,
    /// Its private key, as PEM.
    pub key_file: PathBuf,
    /// Requests under way at a time.
    pub requests_max: usize,
    /// Requests that wait.
    pub requests_waiting_max: usize,
    /// Longest request, in milliseconds.
    pub request_ms_max: u64,
    /// Patience with a server out of reach at the start, in seconds.
    pub connect_seconds_max: u64,
}

impl Scylla {
    /// How the store reaches it.
    pub fn settings(&self) -> store::cql::Scylla {
        let named = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let file = |path: &Path| (!path.as_os_str().is_empty()).then(|| path.to_owned());
        store::cql::Scylla {
            nodes: self.nodes.split(',').map(|node| node.trim().to_owned()).filter(|node| !node.is_empty()).collect(),
            keyspace: self.keyspace.clone(),
            login: named(&self.user).map(|user| (user, self.password.expose_secret().to_owned())),
            tls: self.tls.then(|| store::cql::Tls {
                ca: file(&self.ca_file),
                identity: file(&self.certificate_file).map(|certificate| (certificate, self.key_file.clone())),
            }),
            datacenter: named(&self.datacenter),
            replication: self.replication.clone(),
            requests_max: self.requests_max,
            requests_waiting_max: self.requests_waiting_max,
            request_timeout: Duration::from_millis(self.request_ms_max),
        }
    }

    /// What must hold where it is used.
    pub(super) fn check(&self) -> Result<(), Error> {
        let settings = self.settings();
        let is_address = |node: &String| {
            node.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
        };
        if settings.nodes.is_empty() || !settings.nodes.iter().all(is_address) {
            return conflict(
                format!("[scylla] nodes = \"{}\" is no list of addresses", self.nodes),
                "give host:port,host:port of some nodes".to_owned(),
            );
        }
        store::cql::check_name(&settings.keyspace).or_else(|error| {
            conflict(format!("[scylla] keyspace: {error}"), "the name stands in statements as it is".to_owned())
        })?;
        if self.user.is_empty() != self.password.expose_secret().is_empty() {
            return conflict(
                "[scylla] has one of user and password only".to_owned(),
                "give both, or neither where the server does not ask".to_owned(),
            );
        }
        self.check_tls()?;
        if !self.replication.trim().starts_with('{') || self.replication.contains(';') {
            return conflict(
                format!("[scylla] replication = \"{}\" is not what CQL calls a map", self.replication),
                "write it as in {'class': 'NetworkTopologyStrategy', 'replication_factor': 3}".to_owned(),
            );
        }
        for (key, value) in [("requests_max", self.requests_max as u64), ("request_ms_max", self.request_ms_max)] {
            if value == 0 {
                return conflict(format!("[scylla] {key} = 0 is too small"), "give 1 or more".to_owned());
            }
        }
        Ok(())
    }

    fn check_tls(&self) -> Result<(), Error> {
        let files =
            [("ca_file", &self.ca_file), ("certificate_file", &self.certificate_file), ("key_file", &self.key_file)];
        let set = |path: &Path| !path.as_os_str().is_empty();
        if let Some((key, _)) = files.iter().find(|(_, path)| !self.tls && set(path)) {
            return conflict(
                format!("[scylla] {key} is set, but tls = false has no use for it"),
                "set tls = true, or take the key away".to_owned(),
            );
        }
        if set(&self.certificate_file) != set(&self.key_file) {
            return conflict(
                "[scylla] has one of certificate_file and key_file only".to_owned(),
                "give both, or neither where the server asks for no certificate".to_owned(),
            );
        }
        holds("[scylla] ca_file", &self.ca_file, "CERTIFICATE")?;
        holds("[scylla] certificate_file", &self.certificate_file, "CERTIFICATE")?;
        holds("[scylla] key_file", &self.key_file, "PRIVATE KEY")
    }
}
