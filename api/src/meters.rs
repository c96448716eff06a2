//! What the read side counts. Labels come from closed sets, never from ids.

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Histogram, Meter, UpDownCounter};

/// The instruments, made once for a process's API.
#[derive(Debug)]
pub(crate) struct Meters {
    /// Turns that the hub took from the log.
    pub(crate) hub_turns: Counter<u64>,
    /// Records of the enriched topic that are no turns with a position, by reason.
    hub_skipped: Counter<u64>,
    /// From intake to the hub, in seconds: the whole journey but the last hop.
    pub(crate) journey: Histogram<f64>,
    streams: UpDownCounter<i64>,
    sent: Counter<u64>,
    resumes: Counter<u64>,
    closed: Counter<u64>,
    requests: Counter<u64>,
}

/// How a client listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    WebSocket,
    Sse,
}

impl Transport {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Transport::WebSocket => "websocket",
            Transport::Sse => "sse",
        }
    }

    fn label(self) -> KeyValue {
        KeyValue::new("transport", self.name())
    }
}

/// Why a record of the enriched topic reaches nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Skip {
    Undecodable,
    NoPosition,
}

/// Why a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Closed {
    /// The client went.
    Client,
    /// The client reads more slowly than turns come.
    Slow,
    /// The client broke the protocol, or did not answer pings.
    Broken,
    /// The process is going down, or the hub has.
    Shutdown,
}

impl Meters {
    pub(crate) fn new(meter: &Meter) -> Meters {
        let counter = |name: &'static str, text: &'static str| meter.u64_counter(name).with_description(text).build();
        Meters {
            hub_turns: counter("undertone.api.hub.turns", "enriched turns taken from the log"),
            hub_skipped: counter("undertone.api.hub.skipped", "records of the enriched topic that were not shown"),
            journey: meter
                .f64_histogram("undertone.api.journey")
                .with_unit("s")
                .with_description("from intake to the hub that feeds the streams")
                .with_boundaries(vec![0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0])
                .build(),
            streams: meter
                .i64_up_down_counter("undertone.api.streams")
                .with_description("open streams by transport")
                .build(),
            sent: counter("undertone.api.turns.sent", "turns handed to streams, by transport"),
            resumes: counter("undertone.api.resumes", "resumed conversations and firehoses, by result"),
            closed: counter("undertone.api.streams.closed", "streams that ended, by transport and reason"),
            requests: counter("undertone.api.requests", "answered requests, by area and class of status"),
        }
    }

    pub(crate) fn skipped(&self, why: Skip) {
        let reason = match why {
            Skip::Undecodable => "undecodable",
            Skip::NoPosition => "no_position",
        };
        self.hub_skipped.add(1, &[KeyValue::new("reason", reason)]);
    }

    pub(crate) fn opened(&self, transport: Transport) {
        self.streams.add(1, &[transport.label()]);
    }

    pub(crate) fn closed(&self, transport: Transport, why: Closed) {
        let reason = match why {
            Closed::Client => "client",
            Closed::Slow => "slow",
            Closed::Broken => "broken",
            Closed::Shutdown => "shutdown",
        };
        self.streams.add(-1, &[transport.label()]);
        self.closed.add(1, &[transport.label(), KeyValue::new("reason", reason)]);
    }

    pub(crate) fn sent(&self, transport: Transport, turns: u64) {
        self.sent.add(turns, &[transport.label()]);
    }

    pub(crate) fn resumed(&self, recovered: bool) {
        self.resumes.add(1, &[KeyValue::new("recovered", recovered)]);
    }

    /// Counts an answer. The area is the first part of the path, out of a fixed set.
    pub(crate) fn answered(&self, path: &str, status: u16) {
        let area = if path.starts_with("/registry") {
            "registry"
        } else if path == "/v1/stream" || path.ends_with("/events") {
            "stream"
        } else if path.starts_with("/v1/") {
            "history"
        } else {
            "page"
        };
        let class = match status {
            100..=199 => "1xx",
            200..=299 => "2xx",
            300..=399 => "3xx",
            400..=499 => "4xx",
            _ => "5xx",
        };
        self.requests.add(1, &[KeyValue::new("area", area), KeyValue::new("status", class)]);
    }
}
