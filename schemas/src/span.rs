//! Spans: what each step of a turn's way reports of itself, under the trace that travels in the turn's headers.
//!
//! A span's own id is the one that its step writes into the headers, so that the next step, in whatever process, hangs
//! itself below it. Only turns whose trace is sampled are reported, and with nowhere to report to none is: then a step
//! costs one comparison. Leaves out the queue and the export, which the program brings as a function.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::SystemTime;

use uuid::Uuid;

use crate::TraceParent;

/// One step of one turn.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// What was done, from a closed set: `intake`, `append`, `infer emotion` …
    pub name: Cow<'static, str>,
    /// Which way it faces.
    pub kind: SpanKind,
    /// Its trace, its own id and the trace's flags.
    pub place: TraceParent,
    /// The id of the span that it belongs under; of a root there is none.
    pub parent: Option<[u8; 8]>,
    /// When it began.
    pub started: SystemTime,
    /// When it was done.
    pub ended: SystemTime,
    /// What else is known: ids and numbers, never a word of a message.
    pub attributes: Vec<(&'static str, Attribute)>,
    /// What went wrong, as a stable word.
    pub fault: Option<&'static str>,
}

/// Which way a span faces, in OpenTelemetry's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpanKind {
    /// Work within a process.
    Internal,
    /// Answers a caller.
    Server,
    /// Hands something to the log.
    Producer,
    /// Takes something from the log.
    Consumer,
}

/// The value of an attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attribute {
    /// A word or an id.
    Text(Cow<'static, str>),
    /// A count or an offset.
    Number(i64),
}

impl From<&'static str> for Attribute {
    fn from(text: &'static str) -> Attribute {
        Attribute::Text(Cow::Borrowed(text))
    }
}

impl From<String> for Attribute {
    fn from(text: String) -> Attribute {
        Attribute::Text(Cow::Owned(text))
    }
}

impl From<i64> for Attribute {
    fn from(number: i64) -> Attribute {
        Attribute::Number(number)
    }
}

impl Span {
    /// A span within the process, from `started` to `ended`, under `parent` if it has one.
    pub fn new(
        name: impl Into<Cow<'static, str>>,
        place: TraceParent,
        parent: Option<TraceParent>,
        started: SystemTime,
        ended: SystemTime,
    ) -> Span {
        Span {
            name: name.into(),
            kind: SpanKind::Internal,
            place,
            parent: parent.map(|parent| parent.parent_id),
            started,
            ended,
            attributes: Vec::new(),
            fault: None,
        }
    }

    /// The same, facing another way.
    #[must_use]
    pub fn facing(self, kind: SpanKind) -> Span {
        Span { kind, ..self }
    }

    /// The same with an attribute more.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<Attribute>) -> Span {
        self.attributes.push((name, value.into()));
        self
    }
}

/// Where spans are reported to, and which traces are worth it. Cheap to clone.
#[derive(Clone, Default)]
pub struct Spans(Option<Arc<Inner>>);

struct Inner {
    threshold: u64,
    report: Box<dyn Fn(Span) + Send + Sync>,
}

/// Random bits at the end of a trace id by which it is sampled (W3C Trace Context level 2, section 3.2.2.3).
const RANDOM_BITS: u32 = 56;

impl Spans {
    /// Nothing is reported, and no new trace is sampled.
    pub fn off() -> Spans {
        Spans(None)
    }

    /// Reports to `report`, which must not wait. Of the traces that begin here `ratio`, from 0 to 1, are sampled; those
    /// that callers began are if they say so.
    pub fn to(ratio: f64, report: impl Fn(Span) + Send + Sync + 'static) -> Spans {
        let threshold = (ratio.clamp(0.0, 1.0) * (1_u64 << RANDOM_BITS) as f64) as u64;
        Spans(Some(Arc::new(Inner { threshold, report: Box::new(report) })))
    }

    /// A new trace, sampled or not by the ratio. `random` is a random UUID.
    pub fn root(&self, random: Uuid) -> TraceParent {
        let root = TraceParent::root(random);
        let mut end = [0; 8];
        end[1..].copy_from_slice(&root.trace_id[9..]);
        let sampled = self.0.as_ref().is_some_and(|inner| u64::from_be_bytes(end) < inner.threshold);
        TraceParent { flags: u8::from(sampled), ..root }
    }

    /// The trace, if its steps are to be reported.
    pub fn watched(&self, trace: Option<TraceParent>) -> Option<TraceParent> {
        self.0.as_ref().and(trace).filter(TraceParent::is_sampled)
    }

    /// Reports a span; it is dropped where it finds no room.
    pub fn report(&self, span: Span) {
        if let Some(inner) = &self.0 {
            (inner.report)(span);
        }
    }
}

impl std::fmt::Debug for Spans {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Spans(on)" } else { "Spans(off)" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratio_of_the_new_traces_is_sampled_and_none_while_it_is_off() {
        // Trace ids are UUIDs here: their fixed bits must not bend the ratio.
        let ids: Vec<Uuid> = (0..4000_u128).map(|n| Uuid::new_v5(&Uuid::nil(), &n.to_be_bytes())).collect();
        let sampled = |spans: &Spans| ids.iter().filter(|id| spans.root(**id).is_sampled()).count();
        assert_eq!(sampled(&Spans::off()), 0);
        assert_eq!(sampled(&Spans::to(0.0, |_| {})), 0);
        assert_eq!(sampled(&Spans::to(1.0, |_| {})), 4000);
        let quarter = sampled(&Spans::to(0.25, |_| {}));
        assert!((900..1100).contains(&quarter), "{quarter} of 4000");
    }

    #[test]
    fn only_sampled_traces_are_watched_and_only_while_it_is_on() {
        let sampled = TraceParent::root(Uuid::from_u128(7));
        let other = TraceParent { flags: 0, ..sampled };
        assert_eq!(Spans::off().watched(Some(sampled)), None);
        let on = Spans::to(0.0, |_| {});
        assert_eq!(on.watched(Some(sampled)), Some(sampled), "a caller's trace is followed whatever the ratio");
        assert_eq!((on.watched(Some(other)), on.watched(None)), (None, None));
    }
}
