//! The ids of schemas: those that are compiled in, or those of a schema registry outside, any that speaks Confluent's
//! protocol.
//!
//! Promises: a process registers nothing by itself, it only looks up ([`subjects`] is the step of a deployment that
//! registers). What a registry has of our subjects is read once, at the start; from then on it is asked only about an id
//! that is not known, and each answer is kept for the life of the process. So processes that run go on while it is away,
//! and a record with an unknown id waits for it: that the registry is away never makes a record one at fault.
//!
//! Left out: a copy of the ids on the disk. A registry that was set up anew counts anew, and a process that started on an
//! old copy would write under ids that stand for something else; a start that waits is the lesser harm.

mod client;
pub mod subjects;

use std::collections::{BTreeSet, HashMap};
use std::future::ready;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use futures_util::future::BoxFuture;
use opentelemetry::metrics::Meter;
use schemas::{Codec, Entry, Ids, Kind, Payload, SchemaError, latest, topic};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::Pauses;
use crate::keys::Keys;

pub use client::{Client, RegistryError};

/// First and longest pause between two tries to reach a registry that is away.
pub const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));
/// How long to go on asking for keys while their store is away, where there is no registry to say.
const KEYS_AWAY_MAX: Duration = Duration::from_secs(60);
/// Ids that are remembered as unknown to the registry, and for how long: a stream of nonsense is no storm of questions,
/// and what is registered late is found.
const ABSENT_MAX: usize = 1024;
const ABSENT_FOR: Duration = Duration::from_secs(30);

/// How to reach a registry outside.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Addresses, tried in turn: http://HOST:PORT/PATH.
    pub urls: Vec<String>,
    /// User and password, if it asks for them.
    pub login: Option<(String, String)>,
    /// How long an answer may take.
    pub request_timeout: Duration,
    /// How often a question is asked before the registry counts as away.
    pub tries_max: u32,
    /// How long to go on asking about an id while the registry is away.
    pub away_max: Duration,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            urls: Vec::new(),
            login: None,
            request_timeout: Duration::from_secs(5),
            tries_max: 3,
            away_max: Duration::from_secs(60),
        }
    }
}

/// What a registry knows values under.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// Its name, by the topic's name.
    pub name: String,
    /// What it describes.
    pub kind: Kind,
}

impl Subject {
    /// The subject of a topic's values, if it is one of ours.
    pub fn of(topic: &str) -> Option<Subject> {
        Some(Subject { name: topic::subject(topic), kind: topic::kind(topic)? })
    }
}

/// Since when a registry is away, and what was seen of it last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Away {
    /// When the first question went unanswered.
    pub since: SystemTime,
    /// What became of the last one: [`RegistryError::Away`] in words.
    pub reason: String,
}

/// Reads and writes values by the ids of a registry, and opens those that are sealed. Cheap to clone; clones share what they
/// know.
#[derive(Debug, Clone)]
pub struct Registry {
    codec: Arc<Codec>,
    outside: Option<Arc<Outside>>,
    keys: Option<Keys>,
}

/// What must be known before some values can be read.
#[derive(Debug, Default)]
struct Missing {
    schemas: BTreeSet<u32>,
    keys: BTreeSet<Uuid>,
}

#[derive(Debug)]
struct Outside {
    client: Client,
    away_max: Duration,
    absent: Mutex<HashMap<(Kind, u32), Instant>>,
    /// How many wait for an answer.
    waiting: AtomicUsize,
}

/// Counts among those who wait for as long as it lives.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn begin(waiting: &'a AtomicUsize) -> Waiting<'a> {
        waiting.fetch_add(1, Ordering::Relaxed);
        Waiting(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Registry {
    /// The ids that are compiled in.
    pub fn embedded() -> Registry {
        Registry { codec: Arc::new(Codec::embedded()), outside: None, keys: None }
    }

    /// The ids of a registry outside: looks up the newest schema of each subject, and reads all that it has of them.
    ///
    /// # Errors
    /// It is away ([`RegistryError::is_away`]: try again), a schema is not registered, or it refuses us.
    pub async fn open(settings: &Settings, subjects: &[Subject], meter: &Meter) -> Result<Registry, RegistryError> {
        let client = Client::new(settings, meter)?;
        let (mut ids, mut missing) = (Ids::default(), Vec::new());
        for subject in subjects {
            let newest = latest(subject.kind).text;
            let Some(found) = client.look_up(&subject.name, newest).await? else {
                missing.push(subject.name.clone());
                continue;
            };
            ids.written.entry(subject.kind).or_insert(found.id);
            ids.read.push(Entry { id: found.id, kind: subject.kind, text: newest.to_owned() });
            for version in client.versions(&subject.name).await? {
                if version != found.version
                    && let Some((id, text)) = client.version(&subject.name, version).await?
                {
                    ids.read.push(Entry { id, kind: subject.kind, text });
                }
            }
        }
        if !missing.is_empty() {
            return Err(RegistryError::Unregistered { address: client.address(), subjects: missing.join(", ") });
        }
        let codec = Arc::new(Codec::with_ids(&ids)?);
        let (absent, waiting) = (Mutex::default(), AtomicUsize::new(0));
        let outside = Outside { client, away_max: settings.away_max, absent, waiting };
        Ok(Registry { codec, outside: Some(Arc::new(outside)), keys: None })
    }

    /// The same, with the keys of sealed turns.
    pub fn opening(self, keys: Keys) -> Registry {
        self.codec.hold(keys.ring());
        Registry { keys: Some(keys), ..self }
    }

    /// The keys of sealed turns, where turns are sealed.
    pub fn keys(&self) -> Option<&Keys> {
        self.keys.as_ref()
    }

    /// Reads and writes values by the ids that are known.
    pub fn codec(&self) -> &Arc<Codec> {
        &self.codec
    }

    /// Whether the registry did not answer the last question.
    pub fn away(&self) -> Option<Away> {
        self.outside.as_ref()?.client.away()
    }

    /// Whether a record waits for a registry that is away, and since when that is. Without one nothing is amiss: what runs
    /// goes on.
    pub fn missed(&self) -> Option<Away> {
        let waiting = self.outside.as_ref()?.waiting.load(Ordering::Relaxed);
        self.away().filter(|_| waiting > 0)
    }

    /// Sees to it that the codec knows all schemas and keys that these values name, as far as the registry and the store of
    /// keys do. Waits while one is away, for [`Settings::away_max`] at most, or until `stop`: then some may stay unknown, and
    /// the values must not be read.
    ///
    /// # Errors
    /// The registry or the keys stayed away, or refuse us: a fault of ours, not of the values.
    pub fn know<'a, 'v, T: Payload>(
        &'a self,
        values: impl IntoIterator<Item = &'v [u8]>,
        stop: &'a CancellationToken,
    ) -> BoxFuture<'a, Result<(), RegistryError>> {
        let Some(missing) = self.missing::<T>(values) else { return Box::pin(ready(Ok(()))) };
        Box::pin(async move {
            let away_max = self.outside.as_ref().map_or(KEYS_AWAY_MAX, |outside| outside.away_max);
            let (begun, mut pauses) = (Instant::now(), Pauses::between(PAUSES));
            let _waiting = self.outside.as_ref().map(|outside| Waiting::begin(&outside.waiting));
            while let Err(error) = self.learn::<T>(&missing).await {
                let pause = pauses.next_pause();
                if begun.elapsed() + pause > away_max || stop.is_cancelled() {
                    return Err(error);
                }
                let pause_ms = pause.as_millis() as u64;
                tracing::warn!(?missing, %error, pause_ms, "a schema id or a key is not known; asking again");
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = stop.cancelled() => return Err(error),
                }
            }
            Ok(())
        })
    }

    /// As [`Registry::know`], for who cannot wait: asks once, and not at all for a moment after the registry did not
    /// answer.
    ///
    /// # Errors
    /// The registry or the store of keys is away, or refuses us.
    pub fn know_now<'a, 'v, T: Payload>(
        &'a self,
        values: impl IntoIterator<Item = &'v [u8]>,
    ) -> BoxFuture<'a, Result<(), RegistryError>> {
        let Some(missing) = self.missing::<T>(values) else { return Box::pin(ready(Ok(()))) };
        Box::pin(async move {
            if let Some(outside) = self.outside.as_ref().filter(|_| !missing.schemas.is_empty()) {
                outside.client.is_worth_asking()?;
            }
            self.learn::<T>(&missing).await
        })
    }

    /// Asks for what is missing.
    async fn learn<T: Payload>(&self, missing: &Missing) -> Result<(), RegistryError> {
        if let Some(outside) = &self.outside {
            for id in &missing.schemas {
                outside.learn(&self.codec, T::KIND, *id).await?;
            }
        }
        if let Some(keys) = &self.keys {
            keys.learn(missing.keys.iter().copied()).await.map_err(RegistryError::Keys)?;
        }
        Ok(())
    }

    /// What these values name of which nothing is known; `None` if there is nothing.
    fn missing<'v, T: Payload>(&self, values: impl IntoIterator<Item = &'v [u8]>) -> Option<Missing> {
        if self.outside.is_none() && self.keys.is_none() {
            return None;
        }
        let mut missing = Missing::default();
        for value in values {
            missing.schemas.extend(self.outside.as_ref().and_then(|_| self.codec.unknown::<T>(value)));
            missing.keys.extend(self.codec.locked(value));
        }
        (!missing.schemas.is_empty() || !missing.keys.is_empty()).then_some(missing)
    }
}

impl Outside {
    /// Asks what an id of a kind stands for; that it stands for nothing is an answer too.
    async fn learn(&self, codec: &Codec, kind: Kind, id: u32) -> Result<(), RegistryError> {
        if self.absent().get(&(kind, id)).is_some_and(|until| Instant::now() < *until) {
            return Ok(());
        }
        let learnt = match self.client.by_id(kind, id).await? {
            Some(text) => codec.learn(kind, id, &text),
            None => Err(SchemaError::Unreadable { id, problem: "the registry does not have it".to_owned() }),
        };
        match learnt {
            Ok(()) => tracing::info!(schema_id = id, kind = kind.name(), "schema learnt from the registry"),
            Err(error) => {
                tracing::warn!(schema_id = id, kind = kind.name(), %error, "no schema stands behind an id");
                let mut absent = self.absent();
                let now = Instant::now();
                if absent.len() >= ABSENT_MAX {
                    absent.retain(|_, until| now < *until);
                }
                if absent.len() < ABSENT_MAX {
                    absent.insert((kind, id), now + ABSENT_FOR);
                }
            }
        }
        Ok(())
    }

    fn absent(&self) -> std::sync::MutexGuard<'_, HashMap<(Kind, u32), Instant>> {
        self.absent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
