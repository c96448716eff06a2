//! Confluent's protocol of a schema registry, over HTTP: the questions that we have, and what an answer means.
//!
//! Every question has a time-out and a bounded number of tries over all addresses; answers are bounded in bytes. What an
//! address says about a question (a schema that is not there, one that does not fit) is an answer and is not tried again
//! elsewhere; silence, 429 and 5xx are.
//! Source: docs.confluent.io, Schema Registry API reference.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Meter};
use reqwest::{Method, StatusCode};
use schemas::{Kind, SchemaError, topic};
use serde_json::{Value, json};

use super::{Away, PAUSES, Settings};
use crate::{DatabaseError, Pauses};

const MEDIA_TYPE: &str = "application/vnd.schemaregistry.v1+json";
/// Largest answer that is read: a schema, many times over.
const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Characters of an answer that an error repeats.
const TOLD_CHARS_MAX: usize = 600;
/// For so long after a question that went unanswered, who cannot wait is told at once.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// The protocol's codes for a subject, a version and a schema that are not there, and for a level that is not set.
const NOT_THERE: [i64; 4] = [40401, 40402, 40403, 40408];

/// Why a question has no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RegistryError {
    /// No address answers: it may go by itself.
    #[error("no schema registry answers at {addresses}: {reason}; is it running, and is [registry] url right?")]
    Away {
        /// Where it was looked for.
        addresses: String,
        /// What the last one said.
        reason: String,
    },
    /// What answers is no registry.
    #[error(
        "what answers at {address} is no schema registry: {problem}; see to [registry] url: it ends with the path of \
         Confluent's API (on Apicurio Registry /apis/ccompat/v7)"
    )]
    Foreign {
        /// Where it was looked for.
        address: String,
        /// What it said.
        problem: String,
    },
    /// It asks for a user and a password, or for others.
    #[error("the schema registry at {address} does not let us in (HTTP {status}): see to [registry] user and password")]
    Login {
        /// Who answered.
        address: String,
        /// 401 or 403.
        status: u16,
    },
    /// Another refusal.
    #[error("the schema registry at {address} refuses (HTTP {status}): {message}")]
    Refused {
        /// Who answered.
        address: String,
        /// Of HTTP.
        status: u16,
        /// What it said.
        message: String,
    },
    /// A schema does not go together with those that are registered.
    #[error("{subject}: the schema registry refuses the schema as incompatible: {message}")]
    Incompatible {
        /// Under which subject.
        subject: String,
        /// What it said.
        message: String,
    },
    /// Schemas of this release are not registered.
    #[error(
        "the schema registry at {address} does not have the schemas of this release for {subjects}: register them with \
         `undertone topics apply`"
    )]
    Unregistered {
        /// Who answered.
        address: String,
        /// Which subjects.
        subjects: String,
    },
    /// A schema of it cannot be read.
    #[error("the schema registry has a schema of no use: {0}")]
    Schema(String),
    /// The keys of sealed turns cannot be asked for.
    #[error("the store of keys does not serve: {0}")]
    Keys(DatabaseError),
}

impl RegistryError {
    /// Whether it may go by itself.
    pub fn is_away(&self) -> bool {
        match self {
            RegistryError::Away { .. } => true,
            RegistryError::Keys(error) => error.is_transient(),
            _ => false,
        }
    }
}

impl From<SchemaError> for RegistryError {
    fn from(error: SchemaError) -> RegistryError {
        RegistryError::Schema(error.to_string())
    }
}

/// A schema that is registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The id in the wire format.
    pub id: u32,
    /// The version within its subject.
    pub version: u32,
}

/// A question that went unanswered, the last one.
#[derive(Debug)]
struct Silence {
    since: SystemTime,
    asked: Instant,
    error: RegistryError,
}

/// Asks a registry.
#[derive(Debug)]
pub struct Client {
    http: reqwest::Client,
    settings: Settings,
    /// The address that answered last.
    answering: AtomicUsize,
    away: Mutex<Option<Silence>>,
    requests: Counter<u64>,
}

impl Client {
    /// A client; nothing is asked yet.
    ///
    /// # Errors
    /// There is no address, or the client cannot be made.
    pub fn new(settings: &Settings, meter: &Meter) -> Result<Client, RegistryError> {
        let unusable = |reason: String| RegistryError::Away { addresses: settings.urls.join(", "), reason };
        if settings.urls.is_empty() {
            return Err(unusable("no address is given".to_owned()));
        }
        // Nothing but the settings says where the password goes: neither the environment's proxies nor a redirect.
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(settings.request_timeout)
            .build()
            .map_err(|error| unusable(told(&error)))?;
        let requests = meter
            .u64_counter("undertone.registry.requests")
            .with_description("Questions to the schema registry, by outcome.")
            .build();
        for outcome in ["answered", "refused", "away"] {
            requests.add(0, &[KeyValue::new("outcome", outcome)]);
        }
        let answering = AtomicUsize::new(0);
        Ok(Client { http, settings: settings.clone(), answering, away: Mutex::default(), requests })
    }

    /// The address that answered last.
    pub fn address(&self) -> String {
        self.settings.urls[self.answering.load(Ordering::Relaxed) % self.settings.urls.len()].clone()
    }

    /// Whether the last question went unanswered, and since when that is so.
    pub fn away(&self) -> Option<Away> {
        self.silence().as_ref().map(|silence| Away { since: silence.since, reason: silence.error.to_string() })
    }

    /// Refuses for a moment after a question went unanswered.
    pub(super) fn is_worth_asking(&self) -> Result<(), RegistryError> {
        match &*self.silence() {
            Some(silence) if silence.asked.elapsed() < ASK_AGAIN_AFTER => Err(silence.error.clone()),
            _ => Ok(()),
        }
    }

    fn silence(&self) -> std::sync::MutexGuard<'_, Option<Silence>> {
        self.away.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a schema stands under a subject; `None` if it does not, or there is no such subject.
    ///
    /// # Errors
    /// As all questions: [`RegistryError`].
    pub async fn look_up(&self, subject: &str, schema: &str) -> Result<Option<Place>, RegistryError> {
        let body = json!({ "schema": schema });
        let Some(found) = self.ask(Method::POST, &format!("/subjects/{subject}"), Some(&body)).await? else {
            return Ok(None);
        };
        Ok(Some(Place { id: self.number(&found, "id")?, version: self.number(&found, "version")? }))
    }

    /// The versions of a subject, the oldest first, those that were deleted too: their records are still there. None if
    /// there is no such subject.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn versions(&self, subject: &str) -> Result<Vec<u32>, RegistryError> {
        let found = self.ask(Method::GET, &format!("/subjects/{subject}/versions?deleted=true"), None).await?;
        let Some(found) = found else { return Ok(Vec::new()) };
        serde_json::from_value(found).map_err(|error| self.foreign(error.to_string()))
    }

    /// The id and the text of a version.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn version(&self, subject: &str, version: u32) -> Result<Option<(u32, String)>, RegistryError> {
        let found =
            self.ask(Method::GET, &format!("/subjects/{subject}/versions/{version}?deleted=true"), None).await?;
        let Some(found) = found else { return Ok(None) };
        Ok(Some((self.number(&found, "id")?, self.text(&found, "schema")?)))
    }

    /// The text of a schema by its id; `None` if there is none, or it is registered under no subject of this kind.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn by_id(&self, kind: Kind, id: u32) -> Result<Option<String>, RegistryError> {
        let places = self.ask(Method::GET, &format!("/schemas/ids/{id}/versions?deleted=true"), None).await?;
        let places = places.unwrap_or_default();
        let subjects = places.as_array().into_iter().flatten().filter_map(|place| place["subject"].as_str());
        let mut kinds = subjects.filter_map(|subject| subject.strip_suffix("-value").and_then(topic::kind));
        if !kinds.any(|found| found == kind) {
            return Ok(None);
        }
        let found = self.ask(Method::GET, &format!("/schemas/ids/{id}"), None).await?;
        found.map(|found| self.text(&found, "schema")).transpose()
    }

    /// Registers a schema, and returns its id; the same schema has the same id again.
    ///
    /// # Errors
    /// [`RegistryError::Incompatible`], and the others.
    pub async fn register(&self, subject: &str, schema: &str) -> Result<u32, RegistryError> {
        let body = json!({ "schema": schema });
        let registered = self.ask(Method::POST, &format!("/subjects/{subject}/versions"), Some(&body)).await;
        let registered = registered.map_err(|error| match error {
            RegistryError::Refused { status: 409, message, .. } => {
                RegistryError::Incompatible { subject: subject.to_owned(), message }
            }
            error => error,
        })?;
        self.number(&registered.unwrap_or_default(), "id")
    }

    /// Whether the registry would take a schema, by the level that the subject has; what it says against it if not.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn objection(&self, subject: &str, schema: &str) -> Result<Option<String>, RegistryError> {
        let path = format!("/compatibility/subjects/{subject}/versions?verbose=true");
        let body = json!({ "schema": schema });
        // Nothing to be compatible with is no objection.
        let Some(answer) = self.ask(Method::POST, &path, Some(&body)).await? else { return Ok(None) };
        match answer["is_compatible"].as_bool() {
            Some(true) => Ok(None),
            Some(false) => {
                let messages = answer["messages"].as_array().into_iter().flatten().filter_map(Value::as_str);
                Ok(Some(messages.collect::<Vec<_>>().join("; ")))
            }
            None => Err(self.foreign(format!("{path} is answered without is_compatible"))),
        }
    }

    /// The compatibility level that holds for a subject: its own, or else the registry's.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn level(&self, subject: &str) -> Result<Option<String>, RegistryError> {
        let found = self.ask(Method::GET, &format!("/config/{subject}?defaultToGlobal=true"), None).await?;
        Ok(found.and_then(|found| found["compatibilityLevel"].as_str().map(str::to_owned)))
    }

    /// Sets the compatibility level of a subject.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn set_level(&self, subject: &str, level: &str) -> Result<(), RegistryError> {
        let body = json!({ "compatibility": level });
        let path = format!("/config/{subject}");
        let answer = match self.ask(Method::PUT, &path, Some(&body)).await {
            // Somebody else gives the subject its first level at this moment (seen on Apicurio Registry 3.3).
            Err(RegistryError::Refused { status: 409, .. }) => self.ask(Method::PUT, &path, Some(&body)).await,
            answer => answer,
        };
        match answer? {
            Some(_) => Ok(()),
            None => Err(self.foreign(format!("it has no /config/{subject}"))),
        }
    }

    /// Asks all addresses in turn, and all of them again, before the registry counts as away. `None`: it is not there.
    async fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Option<Value>, RegistryError> {
        let first = self.answering.load(Ordering::Relaxed);
        let (mut reason, mut pauses) = (String::new(), Pauses::between(PAUSES));
        for round in 0..self.settings.tries_max.max(1) {
            if round > 0 {
                tokio::time::sleep(pauses.next_pause()).await;
            }
            for place in 0..self.settings.urls.len() {
                let place = (first + place) % self.settings.urls.len();
                let address = self.settings.urls[place].trim_end_matches('/');
                match self.ask_at(address, method.clone(), path, body).await {
                    Err(RegistryError::Away { reason: said, .. }) => reason = said,
                    answer => {
                        self.answering.store(place, Ordering::Relaxed);
                        *self.silence() = None;
                        let outcome = if answer.is_ok() { "answered" } else { "refused" };
                        self.requests.add(1, &[KeyValue::new("outcome", outcome)]);
                        return answer;
                    }
                }
            }
        }
        self.requests.add(1, &[KeyValue::new("outcome", "away")]);
        let error = RegistryError::Away { addresses: self.settings.urls.join(", "), reason };
        let mut silence = self.silence();
        let since = silence.as_ref().map_or_else(SystemTime::now, |silence| silence.since);
        *silence = Some(Silence { since, asked: Instant::now(), error: error.clone() });
        Err(error)
    }

    async fn ask_at(
        &self,
        address: &str,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Option<Value>, RegistryError> {
        let away = |reason: String| RegistryError::Away { addresses: address.to_owned(), reason };
        let foreign = |problem: String| RegistryError::Foreign { address: address.to_owned(), problem };
        let mut request = self.http.request(method, format!("{address}{path}")).header("Accept", MEDIA_TYPE);
        if let Some((user, password)) = &self.settings.login {
            request = request.basic_auth(user, Some(password));
        }
        if let Some(body) = body {
            request = request.header("Content-Type", MEDIA_TYPE).body(body.to_string());
        }
        let mut response = request.send().await.map_err(|error| away(told(&error)))?;
        let status = response.status();
        if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
            return Err(away(format!("{address} answers HTTP {}", status.as_u16())));
        }
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| away(told(&error)))? {
            if bytes.len() + chunk.len() > ANSWER_BYTES_MAX {
                return Err(foreign(format!("an answer has more than {ANSWER_BYTES_MAX} bytes")));
            }
            bytes.extend_from_slice(&chunk);
        }
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            return Err(RegistryError::Login { address: address.to_owned(), status: status.as_u16() });
        }
        let answer = serde_json::from_slice::<Value>(&bytes);
        let answer = answer.map_err(|_| foreign(format!("HTTP {} without JSON in the body", status.as_u16())))?;
        if status.is_success() {
            return Ok(Some(answer));
        }
        let code = answer["error_code"].as_i64().ok_or_else(|| foreign(format!("HTTP {}", status.as_u16())))?;
        if status == StatusCode::NOT_FOUND && NOT_THERE.contains(&code) {
            return Ok(None);
        }
        let message: String = answer["message"].as_str().unwrap_or_default().chars().take(TOLD_CHARS_MAX).collect();
        Err(RegistryError::Refused { address: address.to_owned(), status: status.as_u16(), message })
    }

    fn number(&self, answer: &Value, field: &str) -> Result<u32, RegistryError> {
        let number = answer[field].as_u64().and_then(|number| u32::try_from(number).ok());
        number.ok_or_else(|| self.foreign(format!("an answer lacks the number {field}")))
    }

    fn text(&self, answer: &Value, field: &str) -> Result<String, RegistryError> {
        let text = answer[field].as_str().map(str::to_owned);
        text.ok_or_else(|| self.foreign(format!("an answer lacks the text {field}")))
    }

    fn foreign(&self, problem: String) -> RegistryError {
        RegistryError::Foreign { address: self.address(), problem }
    }
}

/// What went wrong, down to its cause: reqwest's own words leave that out.
fn told(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(below) = cause.source() {
        cause = below;
    }
    if error.is_timeout() { "no answer in time".to_owned() } else { cause.to_string() }
}
