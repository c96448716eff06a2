//! `[kafka]`: whose brokers, over what kind of connection, and who we are there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use store::log::{Identity, Mechanism, Sasl, Security, Tls};

use super::{Error, conflict, load};

/// `[kafka]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kafka {
    /// host:port,host:port; empty: the embedded broker.
    pub bootstrap: String,
    /// What the brokers' listener speaks.
    pub security_protocol: Protocol,
    /// Authorities that are trusted, as PEM; empty: the system's.
    pub ca_file: PathBuf,
    /// Our certificate, as PEM; empty: none.
    pub certificate_file: PathBuf,
    /// Its private key, as PEM.
    pub key_file: PathBuf,
    /// The password of the key's file; empty: none.
    pub key_password: SecretString,
    /// How we log in; empty: not at all.
    pub sasl_mechanism: String,
    /// Who we are.
    pub user: String,
    /// Its password.
    pub password: SecretString,
    /// Stable name of this process.
    pub instance: String,
    /// Partitions of topics created here.
    pub partitions: i32,
    /// Copies of each partition of topics created here.
    pub replication: i32,
    /// Whether missing topics are created at the start.
    pub create_topics: bool,
    /// Longest silence of a member of a group, in seconds.
    pub session_seconds_max: u64,
    /// Patience with brokers out of reach at the start, in seconds.
    pub connect_seconds_max: u64,
    /// Further settings of librdkafka; secrets among them.
    pub properties: BTreeMap<String, SecretString>,
}

/// What a listener of the brokers speaks, in Kafka's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// In the clear, without a login.
    #[serde(alias = "PLAINTEXT")]
    Plaintext,
    /// TLS.
    #[serde(alias = "SSL")]
    Ssl,
    /// A login in the clear.
    #[serde(alias = "SASL_PLAINTEXT")]
    SaslPlaintext,
    /// A login within TLS.
    #[serde(alias = "SASL_SSL")]
    SaslSsl,
}

impl Protocol {
    fn has_tls(self) -> bool {
        matches!(self, Protocol::Ssl | Protocol::SaslSsl)
    }

    fn has_login(self) -> bool {
        matches!(self, Protocol::SaslPlaintext | Protocol::SaslSsl)
    }
}

impl Kafka {
    /// How the log's client reaches brokers at `bootstrap`, which are the configured ones or the embedded.
    pub fn settings(&self, bootstrap: String) -> store::log::Kafka {
        let properties = self.properties.iter();
        store::log::Kafka {
            bootstrap,
            client_id: format!("undertone-{}", self.instance),
            security: self.security(),
            properties: properties.map(|(name, value)| (name.clone(), value.expose_secret().to_owned())).collect(),
        }
    }

    fn security(&self) -> Security {
        let named = |path: &Path| (!path.as_os_str().is_empty()).then(|| path.to_owned());
        let secret = |secret: &SecretString| secret.expose_secret().to_owned();
        let identity = named(&self.certificate_file).map(|certificate| Identity {
            certificate,
            key: self.key_file.clone(),
            key_password: Some(secret(&self.key_password)).filter(|password| !password.is_empty()),
        });
        let tls = Tls { ca: named(&self.ca_file), identity };
        let sasl = mechanism(&self.sasl_mechanism);
        let sasl = sasl.map(|mechanism| Sasl { mechanism, user: self.user.clone(), password: secret(&self.password) });
        Security {
            tls: self.security_protocol.has_tls().then_some(tls),
            sasl: sasl.filter(|_| self.security_protocol.has_login()),
        }
    }

    /// What must hold between these settings.
    pub(super) fn check(&self) -> Result<(), Error> {
        let protocol = self.security_protocol;
        let set = [
            ("ca_file", protocol.has_tls(), !self.ca_file.as_os_str().is_empty()),
            ("certificate_file", protocol.has_tls(), !self.certificate_file.as_os_str().is_empty()),
            ("key_file", protocol.has_tls(), !self.key_file.as_os_str().is_empty()),
            ("key_password", protocol.has_tls(), !self.key_password.expose_secret().is_empty()),
            ("sasl_mechanism", protocol.has_login(), !self.sasl_mechanism.is_empty()),
            ("user", protocol.has_login(), !self.user.is_empty()),
            ("password", protocol.has_login(), !self.password.expose_secret().is_empty()),
        ];
        if self.bootstrap.is_empty() && (protocol != Protocol::Plaintext || set.iter().any(|(_, _, set)| *set)) {
            return conflict(
                "[kafka] has settings for TLS or a login, but no bootstrap: the embedded broker has neither".to_owned(),
                "name the brokers in bootstrap, or take those settings away".to_owned(),
            );
        }
        if let Some((key, ..)) = set.iter().find(|(_, used, set)| *set && !used) {
            return conflict(
                format!("[kafka] {key} is set, but a connection by security_protocol = \"{}\" has no use for it", {
                    self.security().protocol()
                }),
                "give the protocol of the brokers' listener (ssl, sasl_plaintext, sasl_ssl), or take the key away"
                    .to_owned(),
            );
        }
        if protocol.has_login() {
            self.check_login()?;
        }
        if protocol.has_tls() { self.check_files() } else { Ok(()) }
    }

    fn check_login(&self) -> Result<(), Error> {
        if mechanism(&self.sasl_mechanism).is_none() {
            return conflict(
                format!("[kafka] sasl_mechanism = \"{}\" is none that is known here", self.sasl_mechanism),
                "give PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512, as the brokers' listener is set up".to_owned(),
            );
        }
        for (key, missing) in [("user", self.user.is_empty()), ("password", self.password.expose_secret().is_empty())] {
            if missing {
                return conflict(
                    format!("[kafka] sasl_mechanism = \"{}\" wants a {key}", self.sasl_mechanism),
                    "give user, and password or password_file".to_owned(),
                );
            }
        }
        Ok(())
    }

    fn check_files(&self) -> Result<(), Error> {
        if self.certificate_file.as_os_str().is_empty() != self.key_file.as_os_str().is_empty() {
            return conflict(
                "[kafka] has one of certificate_file and key_file only".to_owned(),
                "give both, or neither where the brokers ask for no certificate".to_owned(),
            );
        }
        holds("[kafka] ca_file", &self.ca_file, "CERTIFICATE")?;
        holds("[kafka] certificate_file", &self.certificate_file, "CERTIFICATE")?;
        holds("[kafka] key_file", &self.key_file, "PRIVATE KEY")
    }
}

fn mechanism(name: &str) -> Option<Mechanism> {
    [Mechanism::Plain, Mechanism::ScramSha256, Mechanism::ScramSha512].into_iter().find(|known| known.name() == name)
}

/// Refuses a file that cannot be read, or that holds nothing of this kind as PEM; an empty path is no file.
pub(super) fn holds(key: &str, path: &Path, kind: &str) -> Result<(), Error> {
    if path.as_os_str().is_empty() {
        return Ok(());
    }
    let text = load::read(path).map_err(|error| match error {
        Error::File { path, problem } => Error::File { path, problem: format!("{problem} (it is named by {key})") },
        other => other,
    })?;
    let begins = |line: &str| line.starts_with("-----BEGIN ") && line.trim_end().ends_with(&format!("{kind}-----"));
    if text.lines().any(begins) {
        return Ok(());
    }
    conflict(
        format!("{key} = \"{}\" holds no {} in PEM", path.display(), kind.to_lowercase()),
        format!("give a file with a block that begins with -----BEGIN … {kind}-----"),
    )
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;

    fn check(change: impl FnOnce(&mut Kafka)) -> Result<(), String> {
        let mut config = Config::at(Path::new("unused"));
        config.kafka.bootstrap = "kafka:9093".to_owned();
        change(&mut config.kafka);
        config.check().map_err(|error| error.to_string())
    }

    fn refused(change: impl FnOnce(&mut Kafka), said: &[&str]) {
        let error = check(change).unwrap_err();
        assert!(said.iter().all(|said| error.contains(said)), "{error}");
    }

    fn logs_in(kafka: &mut Kafka) {
        kafka.security_protocol = Protocol::SaslPlaintext;
        kafka.sasl_mechanism = "SCRAM-SHA-512".to_owned();
        kafka.user = "ann".to_owned();
        kafka.password = "secret".into();
    }

    #[test]
    fn a_login_needs_a_known_mechanism_a_user_and_a_password() {
        check(logs_in).unwrap();
        let without = |change: fn(&mut Kafka)| {
            move |kafka: &mut Kafka| {
                logs_in(kafka);
                change(kafka);
            }
        };
        refused(without(|kafka| kafka.sasl_mechanism.clear()), &["sasl_mechanism = \"\"", "SCRAM-SHA-256"]);
        refused(without(|kafka| kafka.sasl_mechanism = "plain".to_owned()), &["\"plain\"", "give PLAIN"]);
        refused(without(|kafka| kafka.user.clear()), &["wants a user", "password_file"]);
        refused(without(|kafka| kafka.password = "".into()), &["wants a password", "password_file"]);
    }

    #[test]
    fn what_the_protocol_has_no_use_for_is_refused() {
        refused(|kafka| kafka.user = "ann".to_owned(), &["user is set", "\"plaintext\"", "sasl_ssl"]);
        refused(|kafka| kafka.ca_file = "ca.pem".into(), &["ca_file is set", "ssl"]);
        let ssl = |kafka: &mut Kafka| {
            logs_in(kafka);
            kafka.security_protocol = Protocol::Ssl;
        };
        refused(ssl, &["sasl_mechanism is set", "\"ssl\""]);
        let embedded = |kafka: &mut Kafka| {
            kafka.bootstrap.clear();
            kafka.security_protocol = Protocol::Ssl;
        };
        refused(embedded, &["embedded broker has neither", "bootstrap"]);
    }

    #[test]
    fn files_of_certificates_are_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let certificate = write("certificate.pem", "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n");
        let key = write("key.pem", "-----BEGIN RSA PRIVATE KEY-----\nAA==\n-----END RSA PRIVATE KEY-----\n");
        let tls = |ca: &Path, certificate: &Path, key: &Path| {
            let (ca, certificate, key) = (ca.to_owned(), certificate.to_owned(), key.to_owned());
            move |kafka: &mut Kafka| {
                kafka.security_protocol = Protocol::Ssl;
                (kafka.ca_file, kafka.certificate_file, kafka.key_file) = (ca, certificate, key);
            }
        };
        let none = Path::new("");
        check(tls(none, none, none)).unwrap();
        check(tls(&certificate, &certificate, &key)).unwrap();
        refused(tls(&folder.path().join("gone.pem"), none, none), &["gone.pem", "named by [kafka] ca_file"]);
        refused(tls(&key, none, none), &["ca_file", "holds no certificate", "BEGIN"]);
        refused(tls(none, &certificate, none), &["one of certificate_file and key_file", "give both"]);
        refused(tls(none, &certificate, &certificate), &["key_file", "holds no private key"]);
    }

    #[test]
    fn the_store_is_told_what_the_protocol_uses() {
        let mut config = Config::at(Path::new("unused"));
        let kafka = &mut config.kafka;
        logs_in(kafka);
        assert_eq!(kafka.security().protocol(), "sasl_plaintext");
        kafka.security_protocol = Protocol::SaslSsl;
        kafka.ca_file = "ca.pem".into();
        let security = kafka.security();
        assert_eq!(security.protocol(), "sasl_ssl");
        assert_eq!(security.tls.unwrap(), Tls { ca: Some("ca.pem".into()), identity: None });
        let sasl = security.sasl.unwrap();
        assert_eq!(
            (sasl.mechanism, sasl.user.as_str(), sasl.password.as_str()),
            (Mechanism::ScramSha512, "ann", "secret")
        );
    }
}
