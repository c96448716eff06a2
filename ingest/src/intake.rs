//! Appends what the sources parsed to the log, and says when it is durable there.
//!
//! Promises: an input that is said to be taken stands in the log (acks=all, idempotent producer); every wait is
//! bounded; a record carries the CloudEvents, correlation and trace headers of its input. An input that was not
//! acknowledged in time may still arrive: sent again it has the same id, and the first processor drops the repeat. What
//! is held at a time is bounded ([`Room`]).
//!
//! Left out: deduplication, and any look at how far the processors are behind; the log is there to hold that.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use schemas::seal::Key;
use schemas::{Codec, EncodeError, Envelope, Feedback, Reject, Span, SpanKind, Spans, TraceParent, Turn, topic};
use store::keys::Keys;
use store::log::{AppendError, Place, Producer, Record};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::disk::Disk;
use crate::meters::Meters;
use crate::room::{Held, Room};
use crate::seldom::Seldom;

/// What can be appended.
#[derive(Debug)]
pub(crate) enum Input {
    Turn(Box<Turn>),
    Feedback(Box<Feedback>),
    Reject(Box<Reject>),
}

/// What travels beside an input, as its sender gave it.
#[derive(Debug, Default)]
pub(crate) struct Beside {
    /// The id of the input unless given.
    pub(crate) correlation_id: Option<String>,
    /// A new trace unless given.
    pub(crate) trace: Option<TraceParent>,
    /// When the input began to be read; of one whose time is not known, when it is appended.
    pub(crate) begun: Option<SystemTime>,
}

/// Why an input was not taken: always a reason of ours, so it may be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    Late,
    QueueFull,
    DiskNearlyFull,
    Unreachable,
    KeysAway,
    Refused,
    Draining,
}

impl Refusal {
    /// A stable word, what is wrong, and the mend.
    pub(crate) fn told(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Refusal::Late => ("log_late", "the log did not acknowledge in time", "send it again later"),
            Refusal::QueueFull => ("queue_full", "the queue in front of the log is full", "send it again later"),
            Refusal::DiskNearlyFull => {
                ("disk_nearly_full", "the disk is nearly full", "send it again when the operator has made room")
            }
            Refusal::Unreachable => ("log_unreachable", "the log cannot be reached", "send it again later"),
            Refusal::KeysAway => ("keys_away", "the store of keys does not answer", "send it again later"),
            Refusal::Refused => (
                "log_refuses",
                "the log does not take the record",
                "send it again later; the operator finds the reason in the server's log",
            ),
            Refusal::Draining => ("going_down", "the server is going down", "send it again, to another one or later"),
        }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (_, detail, mend) = self.told();
        write!(f, "{detail}: {mend}")
    }
}

/// The way into the log that all sources share.
pub(crate) struct Intake {
    pub(crate) producer: Producer,
    pub(crate) codec: Arc<Codec>,
    /// What turns are sealed by, where they are.
    pub(crate) keys: Option<Keys>,
    pub(crate) disk: Disk,
    pub(crate) acknowledge_within: Duration,
    pub(crate) meters: Meters,
    pub(crate) spans: Spans,
    pub(crate) room: Room,
    /// What an operator is told at most once a minute.
    pub(crate) seldom: Seldom,
    pub(crate) draining: CancellationToken,
    /// Set when the producer is beyond repair.
    pub(crate) broken: CancellationToken,
    /// Whether the last append failed, so that an outage is logged once and not once for every input.
    pub(crate) failing: AtomicBool,
}

impl Intake {
    /// Why nothing is taken now, if so: known before an input is read.
    pub(crate) async fn closed(&self) -> Option<Refusal> {
        if self.draining.is_cancelled() {
            return Some(Refusal::Draining);
        }
        self.disk_refusal().await
    }

    /// Whether nothing is taken now for want of disk.
    pub(crate) async fn disk_refusal(&self) -> Option<Refusal> {
        self.disk.nearly_full(Instant::now()).await.then_some(Refusal::DiskNearlyFull)
    }

    /// Appends an input; returns after the broker's acknowledgement. The room that it was given is held until the log
    /// has reported, also where that is too late for the caller.
    pub(crate) async fn append(
        &self,
        source: &'static str,
        input: &Input,
        sealed_by: Option<&Key>,
        beside: Beside,
        held: Held,
    ) -> Result<Place, Refusal> {
        let started = Instant::now();
        let (random, caller, begun) = (Uuid::new_v4(), beside.trace, beside.begun);
        let envelope = envelope(source, input, beside, random, &self.spans);
        let watched = self.spans.watched(envelope.trace).map(|place| (place, SystemTime::now()));
        let record = record(&self.codec, input, &envelope, sealed_by).map_err(|error| {
            tracing::error!(%error, source, "encode input");
            Refusal::Refused
        })?;
        let producer = self.producer.clone();
        let mut appending = Box::pin(async move {
            let appended = producer.append(record).await;
            drop(held);
            appended
        });
        let appended = tokio::time::timeout(self.acknowledge_within, &mut appending).await;
        let place = match appended {
            Ok(Ok(place)) => place,
            Ok(Err(error)) => {
                if let Some((place, appending)) = watched {
                    self.trace(source, place, caller, [begun.unwrap_or(appending), appending], Err("refused"));
                }
                return Err(self.refusal(&error));
            }
            Err(_elapsed) => {
                if let Some((place, appending)) = watched {
                    self.trace(source, place, caller, [begun.unwrap_or(appending), appending], Err("late"));
                }
                tokio::spawn(appending);
                self.note_failure("no acknowledgement in time");
                return Err(Refusal::Late);
            }
        };
        if self.failing.swap(false, Ordering::Relaxed) {
            tracing::info!("log acknowledges again");
        }
        self.meters.acknowledged(source, started.elapsed());
        if let Some((here, appending)) = watched {
            self.trace(source, here, caller, [begun.unwrap_or(appending), appending], Ok((place, &envelope)));
        }
        let trace_id = envelope.trace.map(|trace| trace.trace_hex());
        let (id, correlation_id) = (&envelope.id, &envelope.correlation_id);
        let Place { partition, offset } = place;
        tracing::debug!(source, id, correlation_id, trace_id, partition, offset, "input appended");
        Ok(place)
    }

    /// What a turn is sealed by, where turns are.
    pub(crate) async fn key(&self, turn: &Turn) -> Result<Option<Key>, Refusal> {
        let Some(keys) = &self.keys else { return Ok(None) };
        let person = turn.person().unwrap_or_default();
        let key = keys.current(&turn.conversation, &person, turn.received_at);
        let why = match tokio::time::timeout(self.acknowledge_within, key).await {
            Ok(Ok(key)) => return Ok(Some(key)),
            Ok(Err(error)) => error.to_string(),
            Err(_elapsed) => "no answer in time".to_owned(),
        };
        self.note_failure(&format!("the store of keys: {why}"));
        Err(Refusal::KeysAway)
    }

    /// Reports the two spans of an input: its intake, under the caller's, and below that the append, whose id travels in
    /// the record's headers.
    fn trace(
        &self,
        source: &'static str,
        append: TraceParent,
        caller: Option<TraceParent>,
        [begun, appending]: [SystemTime; 2],
        appended: Result<(Place, &Envelope), &'static str>,
    ) {
        let now = SystemTime::now();
        let intake = append.child(Uuid::new_v5(&Uuid::nil(), &append.parent_id));
        let mut outer = Span::new("intake", intake, caller, begun, now).facing(SpanKind::Server);
        let mut inner = Span::new("append", append, Some(intake), appending, now).facing(SpanKind::Producer);
        outer = outer.with("undertone.source", source);
        inner = inner.with("messaging.system", "kafka");
        match appended {
            Ok((Place { partition, offset }, envelope)) => {
                inner = inner
                    .with("messaging.destination.partition.id", partition.to_string())
                    .with("messaging.kafka.offset", offset);
                outer = outer
                    .with("undertone.id", envelope.id.clone())
                    .with("undertone.correlation_id", envelope.correlation_id.clone());
            }
            Err(fault) => (outer.fault, inner.fault) = (Some(fault), Some(fault)),
        }
        self.spans.report(inner);
        self.spans.report(outer);
    }

    /// There is no room: the log takes less than comes in.
    pub(crate) fn full(&self) -> Refusal {
        self.note_failure("as much is on its way as may be");
        Refusal::QueueFull
    }

    fn refusal(&self, error: &AppendError) -> Refusal {
        match error {
            AppendError::Full => {
                self.note_failure("queue full");
                Refusal::QueueFull
            }
            AppendError::Unavailable(why) => {
                self.note_failure(why);
                Refusal::Unreachable
            }
            // A fault of ours or of the set-up: the sender can only come again, a person must act.
            AppendError::TooLarge { .. } | AppendError::Refused(_) => {
                tracing::error!(%error, "log refuses a record");
                Refusal::Refused
            }
            AppendError::Fatal(_) => {
                if !self.broken.is_cancelled() {
                    tracing::error!(%error, "producer is beyond repair");
                }
                self.broken.cancel();
                Refusal::Refused
            }
        }
    }

    fn note_failure(&self, reason: &str) {
        if !self.failing.swap(true, Ordering::Relaxed) {
            tracing::warn!(reason, "log does not take inputs: their senders are told to come again");
        }
    }
}

pub(crate) fn envelope(source: &'static str, input: &Input, beside: Beside, random: Uuid, spans: &Spans) -> Envelope {
    let (id, kind, time) = match input {
        Input::Turn(turn) => (turn.id, "dev.undertone.turn.received.v1", turn.received_at),
        Input::Feedback(feedback) => (feedback.id, "dev.undertone.feedback.v1", feedback.received_at),
        Input::Reject(reject) => (reject.id, "dev.undertone.reject.v1", reject.at),
    };
    let id = id.to_string();
    Envelope {
        correlation_id: beside.correlation_id.unwrap_or_else(|| id.clone()),
        id,
        source: format!("/ingest/{source}"),
        kind: kind.to_owned(),
        time,
        trace: Some(beside.trace.map_or_else(|| spans.root(random), |trace| trace.child(random))),
    }
}

pub(crate) fn record(
    codec: &Codec,
    input: &Input,
    envelope: &Envelope,
    sealed_by: Option<&Key>,
) -> Result<Record, EncodeError> {
    let (topic, key, value) = match input {
        Input::Turn(turn) => {
            let value = sealed_by.map_or_else(|| codec.encode(&**turn), |key| codec.seal(turn, key))?;
            (topic::TURNS_RECEIVED, Some(turn.conversation.as_bytes()), value)
        }
        Input::Feedback(feedback) => {
            (topic::FEEDBACK, Some(feedback.conversation.as_bytes()), codec.encode(&**feedback)?)
        }
        Input::Reject(reject) => (topic::REJECTS, reject.key.as_deref(), codec.encode(&**reject)?),
    };
    let headers = envelope.headers().into_iter().map(|(name, value)| (name.to_owned(), value.into_bytes()));
    Ok(Record {
        topic: topic.to_owned(),
        partition: None,
        key: key.map(<[u8]>::to_vec),
        value: Some(value),
        headers: headers.collect(),
        timestamp: envelope.time,
    })
}
