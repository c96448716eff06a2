//! Traces by OTLP: a bounded queue that the roles report spans into, and a task that exports them.
//!
//! Promises: reporting never waits; what finds no room, or is not taken by the collector, is dropped and counted; a
//! collector that is away costs nobody anything but its spans. Leaves out TLS, which a collector on this machine needs
//! not; retries are the exporter's own, within one deadline.

use std::time::Duration;

use anyhow::Context as _;
use opentelemetry::metrics::{Counter, Meter};
use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue, Value};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use schemas::{Attribute, Span, Spans, TraceParent, span};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::config::Telemetry;

/// Most spans of one export.
const BATCH_SPANS_MAX: usize = 512;
/// Longest time that a span waits for others to be exported with.
const EXPORT_EVERY: Duration = Duration::from_secs(1);
/// How long the last exports of a process may take, so that a collector that is away holds up no end.
const FAREWELL_WITHIN: Duration = Duration::from_secs(2);
/// The path of traces under a collector's address (OTLP specification, "OTLP/HTTP Request").
const TRACES_PATH: &str = "/v1/traces";

/// Exports what the roles report.
#[derive(Debug)]
pub struct Exporter {
    exporter: SpanExporter,
    queue: mpsc::Receiver<Span>,
    within: Duration,
    counts: Counts,
    failing: bool,
}

#[derive(Debug, Clone)]
struct Counts {
    exported: Counter<u64>,
    dropped: Counter<u64>,
}

/// Where roles report to, and what exports it, if an endpoint is set. `instance` tells this process from others.
///
/// # Errors
/// The endpoint is none.
pub fn start(settings: &Telemetry, instance: &str, meter: &Meter) -> anyhow::Result<(Spans, Option<Exporter>)> {
    if settings.otlp_endpoint.is_empty() {
        return Ok((Spans::off(), None));
    }
    let within = Duration::from_millis(settings.export_ms_max);
    let exporter = SpanExporter::builder().with_http().with_protocol(Protocol::HttpBinary);
    let exporter = exporter.with_endpoint(url(&settings.otlp_endpoint)).with_timeout(within).build();
    let mut exporter = exporter.context("make the exporter of traces (setting: [telemetry] otlp_endpoint)")?;
    let about = [
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("service.instance.id", instance.to_owned()),
    ];
    exporter.set_resource(&Resource::builder().with_service_name("undertone").with_attributes(about).build());
    let counts = Counts {
        exported: meter
            .u64_counter("undertone.telemetry.spans.exported")
            .with_description("Spans that the collector took.")
            .build(),
        dropped: meter
            .u64_counter("undertone.telemetry.spans.dropped")
            .with_description("Spans that were not exported: the queue was full, or the collector did not take them.")
            .build(),
    };
    let (queued, queue) = mpsc::channel(settings.queue_spans_max);
    let dropped = counts.dropped.clone();
    let spans = Spans::to(settings.sampling_ratio, move |span| {
        if queued.try_send(span).is_err() {
            dropped.add(1, &[KeyValue::new("reason", "queue_full")]);
        }
    });
    Ok((spans, Some(Exporter { exporter, queue, within, counts, failing: false })))
}

/// Where traces go: the endpoint's own path if it has one, the specified one otherwise.
fn url(endpoint: &str) -> String {
    let endpoint = endpoint.trim_end_matches('/');
    let (_, rest) = endpoint.split_once("://").unwrap_or_default();
    if rest.contains('/') { endpoint.to_owned() } else { format!("{endpoint}{TRACES_PATH}") }
}

/// Whether spans can be sent there.
pub(crate) fn is_endpoint(endpoint: &str) -> bool {
    let Some(rest) = endpoint.strip_prefix("http://") else { return false };
    let authority = rest.split('/').next().unwrap_or_default();
    !authority.is_empty() && authority.parse::<axum::http::uri::Authority>().is_ok() && !rest.contains(['?', '#', ' '])
}

impl Exporter {
    /// Exports until `stop`, then what is left.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut batch = Vec::new();
        let mut ticks = tokio::time::interval(EXPORT_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let room = BATCH_SPANS_MAX - batch.len();
            tokio::select! {
                count = self.queue.recv_many(&mut batch, room) => {
                    if count == 0 {
                        break;
                    }
                    if batch.len() == BATCH_SPANS_MAX {
                        self.export(std::mem::take(&mut batch)).await;
                    }
                }
                _ = ticks.tick(), if !batch.is_empty() => self.export(std::mem::take(&mut batch)).await,
                () = stop.cancelled() => break,
            }
        }
        let farewell = async {
            loop {
                while batch.len() < BATCH_SPANS_MAX
                    && let Ok(span) = self.queue.try_recv()
                {
                    batch.push(span);
                }
                if batch.is_empty() {
                    break;
                }
                self.export(std::mem::take(&mut batch)).await;
            }
        };
        if tokio::time::timeout(FAREWELL_WITHIN, farewell).await.is_err() {
            tracing::warn!("spans were left at the end: the collector does not take them in time");
        }
    }

    async fn export(&mut self, batch: Vec<Span>) {
        let count = batch.len() as u64;
        let scope = InstrumentationScope::builder("undertone").build();
        let batch = batch.into_iter().map(|span| data(span, &scope)).collect();
        let taken = match tokio::time::timeout(self.within, self.exporter.export(batch)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_elapsed) => Err("no answer in time".to_owned()),
        };
        match taken {
            Ok(()) => {
                self.counts.exported.add(count, &[]);
                if std::mem::take(&mut self.failing) {
                    tracing::info!("the collector takes spans again");
                }
            }
            Err(error) => {
                self.counts.dropped.add(count, &[KeyValue::new("reason", "export_failed")]);
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!(error, "the collector takes no spans: they are dropped and counted");
                }
            }
        }
    }
}

/// A span as the exporter wants it.
fn data(span: Span, scope: &InstrumentationScope) -> SpanData {
    let TraceParent { trace_id, parent_id, flags } = span.place;
    let (trace_id, span_id) = (TraceId::from_bytes(trace_id), SpanId::from_bytes(parent_id));
    let attributes = span.attributes.into_iter().map(|(name, value)| KeyValue::new(name, value_of(value)));
    SpanData {
        span_context: SpanContext::new(trace_id, span_id, TraceFlags::new(flags), false, TraceState::NONE),
        parent_span_id: span.parent.map_or(SpanId::INVALID, SpanId::from_bytes),
        parent_span_is_remote: span.kind != span::SpanKind::Internal,
        span_kind: match span.kind {
            span::SpanKind::Internal => SpanKind::Internal,
            span::SpanKind::Server => SpanKind::Server,
            span::SpanKind::Producer => SpanKind::Producer,
            span::SpanKind::Consumer => SpanKind::Consumer,
        },
        name: span.name,
        start_time: span.started,
        // The clock of the machine may be set back in between.
        end_time: span.ended.max(span.started),
        attributes: attributes.collect(),
        dropped_attributes_count: 0,
        events: Default::default(),
        links: Default::default(),
        status: span.fault.map_or(Status::Unset, Status::error),
        instrumentation_scope: scope.clone(),
    }
}

fn value_of(attribute: Attribute) -> Value {
    match attribute {
        Attribute::Text(text) => Value::String(text.into()),
        Attribute::Number(number) => Value::I64(number),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Metrics;

    #[test]
    fn endpoints_are_addresses_of_plain_http() {
        for good in ["http://127.0.0.1:4318", "http://collector:4318/", "http://[::1]:4318/v1/traces"] {
            assert!(is_endpoint(good), "{good}");
        }
        for bad in ["collector:4318", "https://collector:4318", "http://", "http:// a", "grpc://collector:4317"] {
            assert!(!is_endpoint(bad), "{bad}");
        }
        assert_eq!(url("http://collector:4318/"), "http://collector:4318/v1/traces");
        assert_eq!(url("http://collector:4318/otlp/v1/traces"), "http://collector:4318/otlp/v1/traces");
    }

    #[tokio::test]
    async fn full_queue_drops_and_counts_and_holds_nobody_up() {
        let metrics = Metrics::new();
        let settings = Telemetry {
            otlp_endpoint: "http://127.0.0.1:9".to_owned(),
            sampling_ratio: 1.0,
            queue_spans_max: 2,
            export_ms_max: 100,
        };
        let (spans, exporter) = start(&settings, "0", &metrics.meter()).unwrap();
        let place = spans.root(uuid::Uuid::from_u128(7));
        let now = std::time::SystemTime::UNIX_EPOCH;
        for _ in 0..5 {
            spans.report(Span::new("step", place, None, now, now));
        }
        let dropped = "undertone_telemetry_spans_dropped_total{reason=\"queue_full\"} 3";
        assert!(metrics.text().unwrap().contains(dropped), "{}", metrics.text().unwrap());
        // Nobody listens there: what was queued is dropped too, and the end comes all the same.
        drop(spans);
        exporter.unwrap().run(CancellationToken::new()).await;
        let dropped = "undertone_telemetry_spans_dropped_total{reason=\"export_failed\"} 2";
        assert!(metrics.text().unwrap().contains(dropped), "{}", metrics.text().unwrap());
    }
}
