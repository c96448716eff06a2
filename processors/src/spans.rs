//! The spans of a batch: one for each sampled turn, with the steps of its batch and its own folds below it.
//!
//! Steps are timed only while a batch holds a sampled turn, and told only after its commit: what was dropped and run
//! again is told once. The turn's span has the id that its record carries on.

use std::time::{SystemTime, UNIX_EPOCH};

use schemas::{Span, SpanKind, Spans, Stamp, TraceParent};
use uuid::Uuid;

use crate::batch::Place;

/// A batch in work.
pub(crate) struct Watch {
    spans: Spans,
    started: SystemTime,
    turns: Vec<Watched>,
    steps: Vec<Step>,
    /// When the step that goes on now began.
    mark: SystemTime,
}

struct Watched {
    turn: Uuid,
    /// Its span, with the id that goes on in the record's headers.
    place: TraceParent,
    parent: TraceParent,
    stamp: Stamp,
    correlation_id: String,
    folds: Vec<Step>,
}

struct Step {
    name: String,
    started: SystemTime,
    ended: SystemTime,
}

impl Default for Watch {
    /// Of a batch that nothing is told of.
    fn default() -> Watch {
        Watch { spans: Spans::off(), started: UNIX_EPOCH, turns: Vec::new(), steps: Vec::new(), mark: UNIX_EPOCH }
    }
}

impl Watch {
    /// A batch that begins now.
    pub(crate) fn begin(spans: &Spans) -> Watch {
        let now = SystemTime::now();
        Watch { spans: spans.clone(), started: now, turns: Vec::new(), steps: Vec::new(), mark: now }
    }

    /// Takes a turn in, if its trace is sampled.
    pub(crate) fn turn(&mut self, turn: Uuid, place: &Place, chain: &str) {
        if let Some(parent) = self.spans.watched(place.trace()) {
            let (stamp, correlation_id) = (place.stamp, place.correlation_id().to_owned());
            let place = place.trace_of(turn, chain).unwrap_or(parent);
            self.turns.push(Watched { turn, place, parent, stamp, correlation_id, folds: Vec::new() });
        }
    }

    /// The next step begins now; what lies before belongs to none.
    pub(crate) fn mark(&mut self) {
        if !self.turns.is_empty() {
            self.mark = SystemTime::now();
        }
    }

    /// A step of the whole batch, `name` and a word that says which, has ended; the next begins.
    pub(crate) fn step(&mut self, name: &str, which: &str) {
        if let Some(step) = self.ended(name, which) {
            self.steps.push(step);
        }
    }

    /// A stage has folded the turn from this place; the next begins.
    pub(crate) fn folded(&mut self, stamp: Stamp, stage: &str) {
        if self.turns.is_empty() {
            return;
        }
        let Some(at) = self.turns.iter().position(|turn| turn.stamp == stamp) else { return };
        let fold = self.ended("fold", stage);
        self.turns[at].folds.extend(fold);
    }

    fn ended(&mut self, name: &str, which: &str) -> Option<Step> {
        if self.turns.is_empty() {
            return None;
        }
        let now = SystemTime::now();
        let name = format!("{name} {which}").trim_end().to_owned();
        Some(Step { name, started: std::mem::replace(&mut self.mark, now), ended: now })
    }

    /// Tells everything, after the commit, which began at the last mark and was `done` then.
    pub(crate) fn report(mut self, chain: &str, input: &str, records: usize, done: SystemTime) {
        if self.turns.is_empty() {
            return;
        }
        self.steps.push(Step { name: "commit".to_owned(), started: self.mark, ended: done });
        for turn in self.turns {
            let Watched { place, parent, stamp, .. } = turn;
            // By number too: a batch of several partitions has steps of the same name.
            for (number, step) in self.steps.iter().chain(&turn.folds).enumerate() {
                let name = format!("{chain}/{number}/{}", step.name);
                let here = place.child(Uuid::new_v5(&turn.turn, name.as_bytes()));
                self.spans.report(Span::new(step.name.clone(), here, Some(place), step.started, step.ended));
            }
            let span = Span::new("process", place, Some(parent), self.started, done)
                .facing(SpanKind::Consumer)
                .with("messaging.system", "kafka")
                .with("messaging.destination.name", input.to_owned())
                .with("messaging.destination.partition.id", stamp.partition.to_string())
                .with("messaging.batch.message_count", records as i64)
                .with("undertone.chain", chain.to_owned())
                .with("undertone.received.offset", stamp.offset)
                .with("undertone.id", turn.turn.to_string())
                .with("undertone.correlation_id", turn.correlation_id);
            self.spans.report(span);
        }
    }
}
