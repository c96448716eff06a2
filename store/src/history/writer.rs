//! The history role: reads enriched turns from the log and keeps them.
//!
//! Promises: a turn is committed in the log only after it is kept; after a crash some are read again, which changes
//! nothing. The history knows how far it has been written: one that was restored from a backup is read up to the present
//! by itself, as far as the log reaches back. A record that is no enriched turn goes to the rejects with its raw bytes before the role goes on. When the
//! disk is full, another process holds the file, or the log or the server is away, it tries again until that is over, and
//! says so in [`Config::waiting`].

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Histogram, Meter};
use schemas::erasure::ERASURE;
use schemas::{Codec, Envelope, Header, Reason, Reject, Span, SpanKind, Spans, TraceParent, Turn, topic};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{History, HistoryError, Kept, Memory, PAGE_MAX, Page, Row};
use crate::erasures::Erasures;
use crate::log::{Admin, AppendError, GroupReader, Joining, Kafka, LogError, Message, Producer, Record};
use crate::registry::{Registry, RegistryError};
use crate::{Pauses, Waiting};

/// Settings of the role.
#[derive(Debug, Clone)]
pub struct Config {
    /// The log.
    pub kafka: Kafka,
    /// The ids of schemas.
    pub registry: Registry,
    /// Consumer group; one for each history.
    pub group: String,
    /// The group gives a silent writer's partitions away after this time.
    pub session_timeout: Duration,
    /// Turns that are kept in one transaction.
    pub batch_turns_max: usize,
    /// How long to wait for a batch before looking whether to stop.
    pub batch_wait: Duration,
    /// Tells what the role waits for.
    pub waiting: Arc<Waiting>,
}

/// First and longest pause between two tries; the doubling has jitter.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// What [`Config::waiting`] says while something is away.
const LOG_AWAY: &str = "for the log, which is away (settings: [kafka])";
const STORE_AWAY: &str = "for the history's store, which is away or full (settings: [history])";

impl Config {
    /// Settings that suit one history beside a log, with the ids that are compiled in.
    pub fn new(kafka: Kafka) -> Config {
        Config {
            kafka,
            registry: Registry::embedded(),
            group: "undertone.history".to_owned(),
            session_timeout: Duration::from_secs(10),
            batch_turns_max: 500,
            batch_wait: Duration::from_secs(1),
            waiting: Arc::default(),
        }
    }
}

/// Why the role ended.
#[derive(Debug, thiserror::Error)]
pub enum WriterError {
    /// The log failed for good.
    #[error("read enriched turns: {0}")]
    Log(#[from] LogError),
    /// The history failed for good.
    #[error("keep turns: {0}")]
    History(#[from] HistoryError),
    /// A record that is no enriched turn could not be set aside; it was not passed over.
    #[error("set a record aside in {topic}: {0}", topic = topic::REJECTS)]
    Reject(#[from] AppendError),
    /// What a schema id stands for could not be found out in time.
    #[error("read enriched turns: {0}")]
    Registry(#[from] RegistryError),
}

impl WriterError {
    fn is_transient(&self) -> bool {
        match self {
            WriterError::Log(error) => error.is_transient(),
            WriterError::History(error) => error.is_transient(),
            WriterError::Reject(error) => error.is_transient(),
            WriterError::Registry(error) => error.is_away(),
        }
    }
}

/// How often it looks whether more was forgotten; besides it is told, by a turn in each conversation that was known then.
pub const LOOK_FOR_ERASURES_EVERY: Duration = Duration::from_millis(250);

/// Runs the role until `shutdown`; then what was read is kept and committed, and the group is left.
///
/// # Errors
/// [`WriterError`]: the role cannot go on without losing something.
pub async fn run(
    config: Config,
    history: History,
    rejects: Producer,
    meter: &Meter,
    spans: Spans,
    shutdown: CancellationToken,
) -> Result<(), WriterError> {
    let kept = Some(history.reached(topic::TURNS_ENRICHED).await?);
    let joining = Joining { session_timeout: config.session_timeout, kept };
    config.waiting.clear();
    let mut reader = GroupReader::join_with(&config.kafka, &config.group, topic::TURNS_ENRICHED, &joining)?;
    let mut writer = Writer {
        admin: Admin::connect(&config.kafka)?,
        listed: BTreeMap::new(),
        looked: Instant::now(),
        codec: Arc::clone(config.registry.codec()),
        meters: Meters::new(meter),
        spans,
        config,
        history,
        rejects,
        erasures: Erasures::default(),
    };
    let result = writer.run(&mut reader, &shutdown).await;
    reader.close().await;
    match result {
        // What could not be done in time was not committed, and is read again after the next start.
        Err(error) if shutdown.is_cancelled() && error.is_transient() => {
            tracing::warn!(%error, "stop with work left");
            Ok(())
        }
        result => result,
    }
}

struct Writer {
    config: Config,
    codec: Arc<Codec>,
    history: History,
    rejects: Producer,
    meters: Meters,
    spans: Spans,
    erasures: Erasures,
    /// Asks how far the list of these reaches.
    admin: Admin,
    /// How far it reached, and when it was asked.
    listed: BTreeMap<i32, i64>,
    looked: Instant,
}

impl Writer {
    async fn run(&mut self, reader: &mut GroupReader, shutdown: &CancellationToken) -> Result<(), WriterError> {
        let waiting = Arc::clone(&self.config.waiting);
        self.learn(&waiting, shutdown).await?;
        let mut patience = Patience::new(&waiting);
        loop {
            let batch = tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(()),
                batch = reader.batch(self.config.batch_turns_max, self.config.batch_wait) => batch,
            };
            let batch = match batch {
                Ok(batch) => batch,
                Err(error) if error.is_transient() => {
                    patience.wait(error.into(), shutdown).await?;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            self.keep(batch, reader.reached(), shutdown).await?;
            match reader.commit().await {
                Ok(()) => patience = Patience::new(&waiting),
                Err(error) if error.is_transient() => patience.wait(error.into(), shutdown).await?,
                Err(error) => return Err(error.into()),
            }
            if shutdown.is_cancelled() {
                return Ok(());
            }
        }
    }

    /// Keeps a batch. Cancelled only between two tries: then nothing was kept and nothing will be committed.
    async fn keep(
        &mut self,
        batch: Vec<Message>,
        reached: &BTreeMap<i32, i64>,
        shutdown: &CancellationToken,
    ) -> Result<(), WriterError> {
        if batch.is_empty() && reached.is_empty() {
            return Ok(());
        }
        let (started, begun) = (Instant::now(), SystemTime::now());
        let watched: Vec<TraceParent> =
            batch.iter().filter_map(|message| self.spans.watched(message.trace())).collect();
        let reached = Arc::new(reached.clone());
        let values = batch.iter().filter_map(|message| message.value.as_deref());
        self.config.registry.know::<Turn>(values, shutdown).await?;
        let waiting = Arc::clone(&self.config.waiting);
        if batch.iter().any(|message| self.says_so(message)) || self.has_news().await {
            self.learn(&waiting, shutdown).await?;
        }
        let Sorted { rows, memories, marks, rejects } = self.sort(batch);
        for reject in &rejects {
            self.set_aside(reject, shutdown).await?;
        }
        let kept = rows.len() as u64;
        let remembered = memories.len() as u64;
        let (rows, memories) = (Arc::from(rows), Arc::from(memories));
        let batch = Kept { rows, memories, topic: topic::TURNS_ENRICHED, reached };
        let mut patience = Patience::new(&waiting);
        while let Err(error) = self.history.keep(batch.clone()).await {
            if !error.is_transient() {
                return Err(error.into());
            }
            patience.wait(error.into(), shutdown).await?;
        }
        for (conversation, position) in marks {
            while let Err(error) = self.forget(&conversation, position).await {
                if !error.is_transient() {
                    return Err(error.into());
                }
                patience.wait(error.into(), shutdown).await?;
            }
        }
        for parent in watched {
            // The same turn gets the same span when it is read again.
            let here = parent.child(Uuid::new_v5(&Uuid::nil(), &[&parent.parent_id[..], b"history"].concat()));
            let span = Span::new("keep", here, Some(parent), begun, SystemTime::now())
                .facing(SpanKind::Consumer)
                .with("messaging.system", "kafka")
                .with("messaging.destination.name", topic::TURNS_ENRICHED)
                .with("messaging.batch.message_count", kept as i64);
            self.spans.report(span);
        }
        self.meters.turns.add(kept, &[]);
        self.meters.memories.add(remembered, &[]);
        self.meters.batch_turns.record(kept, &[]);
        self.meters.duration.record(started.elapsed().as_secs_f64(), &[]);
        Ok(())
    }

    /// Whether a turn says that something was forgotten. Few have the word in them, and they are read once more.
    fn says_so(&self, message: &Message) -> bool {
        let value = message.value.as_deref().unwrap_or_default();
        let has_word = value.windows(ERASURE.len()).any(|part| part == ERASURE.as_bytes());
        has_word && self.codec.decode::<Turn>(value).is_ok_and(|turn| turn.is_erasure())
    }

    /// Whether the list of what was forgotten has grown since it was read. Asked now and then, for conversations in which
    /// nothing says so: those that were not known when it was asked for. What is not answered is asked again.
    async fn has_news(&mut self) -> bool {
        if self.looked.elapsed() < LOOK_FOR_ERASURES_EVERY {
            return false;
        }
        self.looked = Instant::now();
        let Ok(extent) = self.admin.offsets(topic::ERASURES).await else { return false };
        let ends: BTreeMap<i32, i64> = extent.into_iter().map(|(partition, (_, end))| (partition, end)).collect();
        let has_news = self.listed != ends;
        self.listed = ends;
        has_news
    }

    /// Reads what was forgotten.
    async fn learn(&mut self, waiting: &Waiting, shutdown: &CancellationToken) -> Result<(), WriterError> {
        let mut patience = Patience::new(waiting);
        loop {
            match Erasures::read(&self.config.kafka, &self.codec).await {
                Ok(erasures) => {
                    self.erasures = erasures;
                    return Ok(());
                }
                Err(error) if error.is_transient() => patience.wait(error.into(), shutdown).await?,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Erases what this writer kept of a conversation before it knew that it was forgotten: that is in front of the turn
    /// that says so, and not far.
    async fn forget(&self, conversation: &str, position: i64) -> Result<(), HistoryError> {
        let before = self.history.turns(conversation, Page::Before(Some(position)), PAGE_MAX).await?;
        let covered = |row: &Row| self.codec.decode::<Turn>(&row.value).is_ok_and(|turn| self.erasures.covers(&turn));
        let positions: Vec<i64> = before.iter().filter(|row| covered(row)).map(|row| row.position).collect();
        if !positions.is_empty() {
            self.history.erase_turns(conversation, positions).await?;
        }
        Ok(())
    }

    /// Tells turns from what is none, and leaves out what was forgotten. Beside them, where turns say that something was.
    fn sort(&self, batch: Vec<Message>) -> Sorted {
        let mut sorted = Sorted::default();
        for message in batch {
            match read(&self.codec, message, &self.erasures) {
                Ok((_, _, Fate::Forgotten)) => {}
                Ok((row, memory, fate)) => {
                    if fate == Fate::Mark {
                        sorted.marks.push((row.conversation.clone(), row.position));
                    }
                    sorted.rows.push(row);
                    sorted.memories.extend(memory);
                }
                Err(reject) => sorted.rejects.push(*reject),
            }
        }
        sorted
    }

    async fn set_aside(&self, reject: &Reject, shutdown: &CancellationToken) -> Result<(), WriterError> {
        let header = |name: &str| reject.headers.iter().find(|header| header.name == name);
        let text = |name: &str| header(name).and_then(|header| std::str::from_utf8(&header.value).ok());
        let trace_id = text("traceparent").and_then(TraceParent::parse).map(|trace| trace.trace_hex());
        let correlation_id = text("correlationid");
        let value =
            self.codec.encode(reject).expect("a reject of a record fits its schema: its fields are the record's");
        tracing::error!(
            reason = reject.reason,
            partition = reject.partition,
            offset = reject.offset,
            correlation_id,
            trace_id,
            "set aside a record that is no enriched turn"
        );
        let labels = [KeyValue::new("role", "history"), KeyValue::new("reason", reject.reason.clone())];
        self.meters.rejects.add(1, &labels);
        let mut patience = Patience::new(&self.config.waiting);
        loop {
            match self.rejects.append(record(reject, value.clone())).await {
                Ok(_) => return Ok(()),
                Err(error) if error.is_transient() => patience.wait(error.into(), shutdown).await?,
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// A batch, sorted.
#[derive(Default)]
struct Sorted {
    rows: Vec<Row>,
    memories: Vec<Memory>,
    /// Where turns say that something in front of them was forgotten: conversation and position.
    marks: Vec<(String, i64)>,
    rejects: Vec<Reject>,
}

/// What becomes of a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is kept.
    Kept,
    /// It is kept, and says that something in front of it was forgotten.
    Mark,
    /// It was forgotten.
    Forgotten,
}

/// What is kept of an enriched turn, the memory of it if it is worth one, and whether it was forgotten; a reject if it is
/// none.
pub(super) fn read(
    codec: &Codec,
    message: Message,
    erasures: &Erasures,
) -> Result<(Row, Option<Memory>, Fate), Box<Reject>> {
    let decoded = codec.decode::<Turn>(message.value.as_deref().unwrap_or_default());
    let turn = match decoded {
        Ok(turn) => turn,
        Err(error) => {
            let reason = match error {
                schemas::DecodeError::UnknownSchema(_) => Reason::UnknownSchema,
                _ => Reason::Malformed,
            };
            return Err(reject(message, reason, error.to_string()));
        }
    };
    let Some(position) = turn.position.filter(|&position| position > 0) else {
        let detail = "an enriched turn has a position: only the processors may write this topic";
        return Err(reject(message, Reason::Invalid, detail.to_owned()));
    };
    if message.key.as_deref() != Some(turn.conversation.as_bytes()) {
        let detail = "the key is not the turn's conversation: only the processors may write this topic";
        return Err(reject(message, Reason::Invalid, detail.to_owned()));
    }
    let fate = match () {
        () if erasures.covers(&turn) => Fate::Forgotten,
        () if turn.is_erasure() => Fate::Mark,
        () => Fate::Kept,
    };
    let person = turn.person();
    let row = Row {
        conversation: turn.conversation.clone(),
        position,
        id: turn.id,
        at: turn.at,
        person: person.clone(),
        value: opened(codec, message.value.unwrap_or_default()),
    };
    Ok((row, memory(codec, turn, position, person), fate))
}

/// A value that could be read, without its seal: what is in the history is erased there.
fn opened(codec: &Codec, value: Vec<u8>) -> Vec<u8> {
    match codec.open(&value) {
        Ok((Cow::Owned(opened), _)) => opened,
        _ => value,
    }
}

/// What recall needs of a turn: the words, who said them, their vector and their place.
fn memory(codec: &Codec, turn: Turn, position: i64, person: Option<String>) -> Option<Memory> {
    let part = turn.memory.as_ref().filter(|part| part.keep)?;
    let (room, salience) = (part.locus.as_ref()?.room, part.salience);
    let turn = Turn {
        skipped: Vec::new(),
        emotion: None,
        personality: None,
        dialogue: None,
        coherence: None,
        synesthesia: None,
        flags: Vec::new(),
        ..turn
    };
    let value = codec.encode(&turn).expect("a turn that was read can be written: it is smaller than it was");
    Some(Memory { conversation: turn.conversation, position, person, room, salience, value })
}

fn reject(message: Message, reason: Reason, detail: String) -> Box<Reject> {
    let place = format!("{}/{}/{}", message.topic, message.partition, message.offset);
    Box::new(Reject {
        // The same record is set aside under the same id when it is read again.
        id: Uuid::new_v5(&Uuid::NAMESPACE_URL, place.as_bytes()),
        at: now_ms(),
        stage: "history".to_owned(),
        reason: reason.name().to_owned(),
        detail,
        attempt: 1,
        source: None,
        bot: None,
        topic: Some(message.topic.to_string()),
        partition: Some(message.partition),
        offset: Some(message.offset),
        key: message.key,
        headers: message.headers.into_iter().map(|(name, value)| Header { name, value }).collect(),
        raw: message.value.unwrap_or_default(),
    })
}

fn record(reject: &Reject, value: Vec<u8>) -> Record {
    let correlation = reject.headers.iter().find(|header| header.name == "correlationid");
    let envelope = Envelope {
        id: reject.id.to_string(),
        source: "/history".to_owned(),
        kind: "dev.undertone.reject.v1".to_owned(),
        time: reject.at,
        correlation_id: correlation
            .map_or_else(|| reject.id.to_string(), |header| String::from_utf8_lossy(&header.value).into_owned()),
        trace: None,
    };
    let headers = envelope.headers().into_iter();
    Record {
        topic: topic::REJECTS.to_owned(),
        partition: None,
        key: reject.key.clone(),
        value: Some(value),
        headers: headers.map(|(name, value)| (name.to_owned(), value.into_bytes())).collect(),
        timestamp: reject.at,
    }
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Pauses between tries.
struct Patience<'a> {
    waiting: &'a Waiting,
    pauses: Pauses,
    waited: bool,
}

impl Patience<'_> {
    fn new(waiting: &Waiting) -> Patience<'_> {
        Patience { waiting, pauses: Pauses::between(PAUSES), waited: false }
    }

    /// Waits before the next try. A shutdown ends the wait, and with it the work: what was not committed is read again.
    async fn wait(&mut self, error: WriterError, shutdown: &CancellationToken) -> Result<(), WriterError> {
        if shutdown.is_cancelled() {
            return Err(error);
        }
        self.waited = true;
        self.waiting.set_away(if matches!(error, WriterError::History(_)) { STORE_AWAY } else { LOG_AWAY });
        let pause = self.pauses.next_pause();
        tracing::warn!(%error, pause_ms = pause.as_millis() as u64, "try again");
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = shutdown.cancelled() => {}
        }
        Ok(())
    }
}

impl Drop for Patience<'_> {
    /// What was waited for is there; another wait around this one is not over by that.
    fn drop(&mut self) {
        if self.waited {
            self.waiting.clear();
        }
    }
}

struct Meters {
    turns: Counter<u64>,
    memories: Counter<u64>,
    rejects: Counter<u64>,
    batch_turns: Histogram<u64>,
    duration: Histogram<f64>,
}

impl Meters {
    fn new(meter: &Meter) -> Meters {
        let rejects =
            meter.u64_counter("undertone.rejects").with_description("Inputs at fault, by role and reason.").build();
        for reason in Reason::ALL {
            rejects.add(0, &[KeyValue::new("role", "history"), KeyValue::new("reason", reason.name())]);
        }
        Meters {
            turns: meter.u64_counter("undertone.history.turns").with_description("Turns kept.").build(),
            memories: meter
                .u64_counter("undertone.history.memories")
                .with_description("Memories kept; some may have faded since.")
                .build(),
            rejects,
            batch_turns: meter
                .u64_histogram("undertone.history.batch.turns")
                .with_description("Turns kept in one transaction.")
                .build(),
            duration: meter
                .f64_histogram("undertone.history.batch.duration")
                .with_unit("s")
                .with_description("From a batch that was read to a batch that is kept.")
                .build(),
        }
    }
}
