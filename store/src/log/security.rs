//! How the brokers are known and how we make ourselves known to them: TLS and SASL, as settings of librdkafka; and what a
//! refusal means in words of the settings.
//!
//! Promises: with TLS the brokers' certificate must lead to a known authority and name the host that was connected to.
//! A password is shown nowhere. Left out: Kerberos and OAuth, which `[kafka.properties]` can ask for where librdkafka
//! was built with them.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

use super::LogError;
use super::client::Logged;

/// News of a client that are looked through after one question at most.
const NEWS_MAX: usize = 256;
/// What librdkafka's log calls a lost connection.
const LOST: &str = "FAIL";
/// How OpenSSL tells what the other side says of our part of TLS.
const ALERT: &str = "SSL alert number";

/// How a connection to the brokers is made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Security {
    /// `None`: in the clear.
    pub tls: Option<Tls>,
    /// `None`: nobody asks who we are.
    pub sasl: Option<Sasl>,
}

/// TLS, with the brokers' host names verified.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tls {
    /// The authorities that are trusted, as PEM; `None`: those of the system.
    pub ca: Option<PathBuf>,
    /// Who we are, for brokers that ask for a certificate.
    pub identity: Option<Identity>,
}

/// A client's certificate.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    /// The certificate with those between it and the authority, as PEM.
    pub certificate: PathBuf,
    /// Its private key, as PEM.
    pub key: PathBuf,
    /// The password of the key's file, where it has one.
    pub key_password: Option<String>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity")
            .field("certificate", &self.certificate)
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

/// A login.
#[derive(Clone, PartialEq, Eq)]
pub struct Sasl {
    /// How the password is shown to the brokers.
    pub mechanism: Mechanism,
    /// The user's name.
    pub user: String,
    /// Its password.
    pub password: String,
}

impl std::fmt::Debug for Sasl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sasl").field("mechanism", &self.mechanism).field("user", &self.user).finish_non_exhaustive()
    }
}

/// A mechanism of SASL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mechanism {
    /// The password as it is.
    Plain,
    /// Proofs by SHA-256, of both sides.
    ScramSha256,
    /// Proofs by SHA-512, of both sides.
    ScramSha512,
}

impl Mechanism {
    /// Its registered name.
    pub fn name(self) -> &'static str {
        match self {
            Mechanism::Plain => "PLAIN",
            Mechanism::ScramSha256 => "SCRAM-SHA-256",
            Mechanism::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}

impl Security {
    /// What Kafka calls this.
    pub fn protocol(&self) -> &'static str {
        match (&self.tls, &self.sasl) {
            (None, None) => "plaintext",
            (Some(_), None) => "ssl",
            (None, Some(_)) => "sasl_plaintext",
            (Some(_), Some(_)) => "sasl_ssl",
        }
    }

    /// The settings of a client.
    pub(super) fn set(&self, config: &mut ClientConfig) {
        config.set("security.protocol", self.protocol());
        if let Some(tls) = &self.tls {
            config.set("ssl.endpoint.identification.algorithm", "https");
            if let Some(ca) = &tls.ca {
                config.set("ssl.ca.location", ca.to_string_lossy());
            }
            if let Some(identity) = &tls.identity {
                config
                    .set("ssl.certificate.location", identity.certificate.to_string_lossy())
                    .set("ssl.key.location", identity.key.to_string_lossy());
                if let Some(password) = &identity.key_password {
                    config.set("ssl.key.password", password);
                }
            }
        }
        if let Some(sasl) = &self.sasl {
            config
                .set("sasl.mechanism", sasl.mechanism.name())
                .set("sasl.username", &sasl.user)
                .set("sasl.password", &sasl.password);
        }
    }
}

/// Keeps what a client was told of its connections since a question was last answered. librdkafka goes on trying after a
/// refusal as after a broker that is away, and the question itself only times out.
#[derive(Debug, Default)]
pub(super) struct Heard {
    /// The refusal, or else the last lost connection.
    last: Mutex<Option<(Code, String)>>,
    /// Lines and errors so far.
    news: AtomicUsize,
}

impl Heard {
    fn last(&self) -> MutexGuard<'_, Option<(Code, String)>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientContext for Heard {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        self.news.fetch_add(1, Ordering::Relaxed);
        // A lost connection is no error to librdkafka, and yet may say why the question was not answered.
        if facility == LOST {
            let reason = line.split_once("]: ").map_or(line, |(_thread, reason)| reason);
            self.error(KafkaError::Global(Code::BrokerTransportFailure), reason);
        } else if !matches!(level, RDKafkaLogLevel::Info | RDKafkaLogLevel::Notice) {
            Logged.log(level, facility, line);
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.news.fetch_add(1, Ordering::Relaxed);
        let Some(code) = error.rdkafka_error_code() else { return };
        let mut heard = self.last();
        // That no broker is left follows from what was heard before, and a refusal says more than a lost connection.
        let refused = heard.as_ref().is_some_and(|(code, reason)| is_refusal(*code, reason));
        if code != Code::AllBrokersDown && (is_refusal(code, reason) || !refused) {
            *heard = Some((code, reason.to_owned()));
        }
        Logged.error(error, reason);
    }
}

impl ConsumerContext for Heard {}

/// A client that asks, and hears why it is not answered.
///
/// # Errors
/// A setting is wrong.
pub(super) fn asking(config: &ClientConfig) -> Result<BaseConsumer<Heard>, LogError> {
    let mut config = config.clone();
    config.set("log.connection.close", "true").set_log_level(RDKafkaLogLevel::Info);
    config.create_with_context(Heard::default()).map_err(|error| super::error::classify(&error))
}

/// Asks, and explains an answer that did not come by what was heard of the connections.
pub(super) fn ask<T>(
    consumer: &BaseConsumer<Heard>,
    question: impl FnOnce(&BaseConsumer<Heard>) -> Result<T, KafkaError>,
) -> Result<T, LogError> {
    let answer = question(consumer);
    for _ in 0..NEWS_MAX {
        // It is assigned nothing, so that only news come, one at a time.
        let before = consumer.context().news.load(Ordering::Relaxed);
        if consumer.poll(Duration::ZERO).is_none() && consumer.context().news.load(Ordering::Relaxed) == before {
            break;
        }
    }
    let mut heard = consumer.context().last();
    match answer {
        Ok(answer) => {
            *heard = None;
            Ok(answer)
        }
        Err(error) => Err(explained(super::error::classify(&error), heard.as_ref())),
    }
}

/// Whether this is no matter of brokers that are away. From TLS 1.3 on they refuse a certificate of ours when the
/// handshake is over for us, so that what is left of it is an alert on a lost connection.
fn is_refusal(code: Code, reason: &str) -> bool {
    matches!(code, Code::Authentication | Code::SaslAuthenticationFailed | Code::SSL) || reason.contains(ALERT)
}

fn explained(error: LogError, heard: Option<&(Code, String)>) -> LogError {
    match (error, heard) {
        (LogError::Transient(_), Some((code, reason))) if is_refusal(*code, reason) => {
            LogError::Unauthorized(format!("{reason}; {}", mend(*code, reason)))
        }
        (LogError::Transient(text), Some((_, reason))) => {
            // A listener of another kind is not told from brokers that are going away; it may hang up before all is sent.
            let kind =
                ["Disconnected", "SSL handshake", "SSL transport error"].iter().any(|word| reason.contains(word));
            let mend = if kind { "; is [kafka] security_protocol that of the listener?" } else { "" };
            LogError::Transient(format!("{text}: {reason}{mend}"))
        }
        (error, _) => error,
    }
}

/// Which settings a refusal is about.
fn mend(code: Code, reason: &str) -> &'static str {
    if reason.contains(ALERT) {
        return "mend [kafka] certificate_file and key_file: the brokers ask for a certificate that they know";
    }
    if code != Code::SSL {
        return "mend [kafka] user, password or sasl_mechanism";
    }
    if reason.contains("certificate verify failed") || reason.contains("Failed to verify") {
        return "mend [kafka] ca_file, or give [kafka] bootstrap the host that the brokers' certificate names";
    }
    "mend [kafka] security_protocol: the listener may speak another"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_password_is_shown() {
        let security = Security {
            tls: Some(Tls {
                ca: None,
                identity: Some(Identity {
                    certificate: "me.pem".into(),
                    key: "key.pem".into(),
                    key_password: Some("hidden".to_owned()),
                }),
            }),
            sasl: Some(Sasl { mechanism: Mechanism::Plain, user: "ann".to_owned(), password: "hidden".to_owned() }),
        };
        let shown = format!("{security:?}");
        assert!(shown.contains("ann") && !shown.contains("hidden"), "{shown}");
    }

    #[test]
    fn a_refusal_outlives_the_lost_connections_around_it_and_names_the_setting() {
        let heard = Heard::default();
        heard.error(KafkaError::Global(Code::BrokerTransportFailure), "connection refused");
        let told =
            |heard: &Heard| explained(LogError::Transient("timed out".to_owned()), heard.last().as_ref()).to_string();
        assert!(told(&heard).contains("timed out: connection refused"), "{}", told(&heard));
        heard.error(KafkaError::Global(Code::Authentication), "wrong password");
        heard.error(KafkaError::Global(Code::BrokerTransportFailure), "connection refused");
        heard.error(KafkaError::Global(Code::AllBrokersDown), "1/1 brokers are down");
        assert!(told(&heard).contains("wrong password") && told(&heard).contains("[kafka] user"), "{}", told(&heard));
        let other = explained(LogError::UnknownTopic("t".to_owned()), heard.last().as_ref());
        assert_eq!(
            other,
            LogError::UnknownTopic("t".to_owned()),
            "what the brokers answered is no matter of connections"
        );
    }
}
