//! What the runner counts. Labels come from closed sets; nothing is emitted by id.

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Gauge, Histogram, Meter};
use schemas::{Reason, Tier, Turn};
use store::log::Record;

/// The runner's instruments.
pub(crate) struct Meters {
    turns: Counter<u64>,
    rejects: Counter<u64>,
    aborts: Counter<u64>,
    restarts: Counter<u64>,
    degraded: Gauge<u64>,
    switches: Counter<u64>,
    batch: Histogram<u64>,
    work: Histogram<f64>,
    latency: Histogram<f64>,
}

impl Meters {
    pub(crate) fn new(meter: &Meter) -> Meters {
        let seconds = |name: &'static str, what: &'static str| {
            let bounds = vec![0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0];
            meter.f64_histogram(name).with_unit("s").with_description(what).with_boundaries(bounds).build()
        };
        let rejects =
            meter.u64_counter("undertone.rejects").with_description("Inputs at fault, by role and reason.").build();
        for reason in Reason::ALL {
            rejects.add(0, &[KeyValue::new("role", "processors"), KeyValue::new("reason", reason.name())]);
        }
        Meters {
            turns: meter
                .u64_counter("undertone.processors.turns")
                .with_description("Turns by what became of them and by tier.")
                .build(),
            rejects,
            aborts: meter
                .u64_counter("undertone.processors.aborts")
                .with_description("Transactions that were aborted and run again.")
                .build(),
            restarts: meter
                .u64_counter("undertone.processors.restarts")
                .with_description("Clients of the log that were beyond repair and replaced.")
                .build(),
            degraded: meter
                .u64_gauge("undertone.processors.degraded")
                .with_description("1 while the lag is over its bound and new turns get the fast tier, else 0.")
                .build(),
            switches: meter
                .u64_counter("undertone.processors.tier.switches")
                .with_description("How often the tier of new turns changed, by the tier that it changed to.")
                .build(),
            batch: meter
                .u64_histogram("undertone.processors.batch.records")
                .with_description("Records of a committed transaction.")
                .with_boundaries(vec![1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0])
                .build(),
            work: seconds("undertone.processors.batch.duration", "From the first look at a batch to its commit."),
            latency: seconds("undertone.processors.latency", "From intake to the commit of the enriched turn."),
        }
    }

    pub(crate) fn enriched(&self, turn: &Turn) {
        let tier = turn.tier.map_or("none", Tier::name);
        self.turns.add(1, &[KeyValue::new("outcome", "enriched"), KeyValue::new("tier", tier)]);
    }

    pub(crate) fn repeated(&self) {
        self.turns.add(1, &[KeyValue::new("outcome", "repeated")]);
    }

    pub(crate) fn rejected(&self, reason: Reason) {
        self.rejects.add(1, &[KeyValue::new("role", "processors"), KeyValue::new("reason", reason.name())]);
    }

    /// Whether the lag costs the full tier now.
    pub(crate) fn degraded(&self, degraded: bool) {
        self.degraded.record(u64::from(degraded), &[]);
    }

    pub(crate) fn switched(&self, to: Tier) {
        self.switches.add(1, &[KeyValue::new("tier", to.name())]);
    }

    pub(crate) fn restarted(&self) {
        self.restarts.add(1, &[]);
    }

    pub(crate) fn aborted(&self) {
        self.aborts.add(1, &[]);
    }

    /// After a commit; times in milliseconds since the Unix epoch.
    pub(crate) fn committed(&self, records: &[Record], started: i64, done: i64) {
        self.batch.record(records.len() as u64, &[]);
        self.work.record((done - started).max(0) as f64 / 1000.0, &[]);
        for record in records {
            self.latency.record((done - record.timestamp).max(0) as f64 / 1000.0, &[]);
        }
    }
}
