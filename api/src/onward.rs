//! The end of a turn's trace: its delivery by the hub, and the first stream that was sent it.
//!
//! One `send` a turn, not one a stream: a turn that ten thousand streams follow has one way to be looked at, and the
//! others are counted. Only sampled turns have any of this.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use schemas::{Span, Spans, TraceParent};
use uuid::Uuid;

use crate::meters::Transport;

/// A turn that is first sent later than this was not waited for.
const LIVE_MAX: Duration = Duration::from_secs(30);

/// A sampled turn on its way from the hub to the streams.
#[derive(Debug)]
pub(crate) struct Onward {
    spans: Spans,
    /// The delivery's own place in the trace; what a client does with the turn belongs below it.
    pub(crate) place: TraceParent,
    begun: SystemTime,
    sent: AtomicBool,
}

impl Onward {
    /// A turn that the hub took up at `begun`, as the child of the step whose place came with it.
    pub(crate) fn new(spans: &Spans, parent: TraceParent, begun: SystemTime) -> Onward {
        let place = below(parent, b"deliver");
        Onward { spans: spans.clone(), place, begun, sent: AtomicBool::new(false) }
    }

    /// Notes that a stream was sent the turn; the first one is told.
    pub(crate) fn sent(&self, transport: Transport) {
        // What a reader that comes back is sent out of the ring is old news.
        let is_live = self.begun.elapsed().is_ok_and(|age| age < LIVE_MAX);
        if !self.sent.swap(true, Ordering::Relaxed) && is_live {
            let here = below(self.place, b"send");
            let span = Span::new("send", here, Some(self.place), self.begun, SystemTime::now());
            self.spans.report(span.with("undertone.transport", transport.name()));
        }
    }
}

/// The same step of the same turn has the same id, whenever it is asked for.
fn below(parent: TraceParent, step: &[u8]) -> TraceParent {
    parent.child(Uuid::new_v5(&Uuid::nil(), &[&parent.parent_id[..], step].concat()))
}
