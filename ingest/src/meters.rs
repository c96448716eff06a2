//! What intake counts. All labels come from closed sets: never an id, a bot's name, or a word of a message.

use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Histogram, Meter, UpDownCounter};
use schemas::Reason;

/// Upper bounds of the histogram's buckets, in seconds: an embedded broker answers within the first few, and the last
/// is the longest wait that the defaults allow.
const BUCKETS_SECONDS: [f64; 14] = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0];

/// What became of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// A turn in the log.
    Turn,
    /// A reaction in the log.
    Feedback,
    /// A reject in the log.
    Reject,
    /// Well-formed, and of no use but its number.
    Counted,
    /// A frame at fault; its sender was told.
    Invalid,
    /// A call without the right secret, or a socket of a foreign page.
    Unauthorized,
    /// A call for a bot that is not configured.
    UnknownBot,
    /// Larger than intake reads, or slower.
    TooLarge,
    /// Not taken for a reason of ours.
    Unavailable,
}

impl Outcome {
    fn name(self) -> &'static str {
        match self {
            Outcome::Turn => "turn",
            Outcome::Feedback => "feedback",
            Outcome::Reject => "reject",
            Outcome::Counted => "counted",
            Outcome::Invalid => "invalid",
            Outcome::Unauthorized => "unauthorized",
            Outcome::UnknownBot => "unknown_bot",
            Outcome::TooLarge => "too_large",
            Outcome::Unavailable => "unavailable",
        }
    }
}

/// The instruments.
#[derive(Debug, Clone)]
pub(crate) struct Meters {
    inputs: Counter<u64>,
    rejects: Counter<u64>,
    acknowledgement: Histogram<f64>,
    sockets: UpDownCounter<i64>,
}

impl Meters {
    pub(crate) fn new(meter: &Meter) -> Meters {
        let inputs = meter
            .u64_counter("undertone.ingest.inputs")
            .with_description("Updates and frames by source, kind and outcome")
            .build();
        let rejects =
            meter.u64_counter("undertone.rejects").with_description("Inputs at fault, by role and reason.").build();
        for reason in Reason::ALL {
            rejects.add(0, &[KeyValue::new("role", "ingest"), KeyValue::new("reason", reason.name())]);
        }
        let acknowledgement = meter
            .f64_histogram("undertone.ingest.acknowledgement.duration")
            .with_unit("s")
            .with_boundaries(BUCKETS_SECONDS.to_vec())
            .with_description("From the input's arrival to the broker's acknowledgement of its record")
            .build();
        let sockets = meter
            .i64_up_down_counter("undertone.ingest.sockets")
            .with_description("Open sockets that send turns")
            .build();
        Meters { inputs, rejects, acknowledgement, sockets }
    }

    /// `kind` must come from a closed set.
    pub(crate) fn input(&self, source: &'static str, kind: &'static str, outcome: Outcome) {
        let outcome = KeyValue::new("outcome", outcome.name());
        self.inputs.add(1, &[KeyValue::new("source", source), KeyValue::new("kind", kind), outcome]);
    }

    /// A reject that stands in the log; `reason` is a word of `schemas::Reason`.
    pub(crate) fn rejected(&self, reason: &str) {
        let reason = KeyValue::new("reason", reason.to_owned());
        self.rejects.add(1, &[KeyValue::new("role", "ingest"), reason]);
    }

    pub(crate) fn acknowledged(&self, source: &'static str, after: Duration) {
        self.acknowledgement.record(after.as_secs_f64(), &[KeyValue::new("source", source)]);
    }

    pub(crate) fn socket_opened(&self) {
        self.sockets.add(1, &[]);
    }

    pub(crate) fn socket_closed(&self) {
        self.sockets.add(-1, &[]);
    }
}
