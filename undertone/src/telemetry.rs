//! What the program says of itself: its log, by one subscriber for the process, and its metrics and traces, by one
//! registry and one exporter for each pipeline.
//!
//! The log never holds message text or secrets; crates keep to that where they write. The subscriber is the one thing
//! that is global, and only `main` sets it.

pub mod traces;

use std::io::IsTerminal as _;
use std::path::Path;
use std::sync::{Arc, Mutex};

use anyhow::Context as _;
use opentelemetry::metrics::{Meter, MeterProvider as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::{Aggregation, Instrument, InstrumentKind, SdkMeterProvider, Stream};
use prometheus::{Registry, TextEncoder};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::config::{Log, LogFormat};

/// Sets the process's subscriber: to the error stream, or to a file where the terminal is drawn on.
///
/// # Errors
/// The filter cannot be read, the file cannot be opened, or there is a subscriber already.
pub fn start_log(log: &Log, file: Option<&Path>) -> anyhow::Result<()> {
    let filter = filter(&log.level).map_err(|said| anyhow::anyhow!(said))?;
    let Some(path) = file else {
        let terminal = std::io::stderr().is_terminal();
        return install(log.format, terminal, filter, std::io::stderr);
    };
    let opened = std::fs::OpenOptions::new().create(true).append(true).open(path);
    let opened = opened.with_context(|| format!("open the log file {}", path.display()))?;
    install(log.format, false, filter, Mutex::new(Arc::new(opened)))
}

/// Reads `[log] level`. A bare word must be a level: the filter's own grammar would take a misspelt one for a module.
///
/// # Errors
/// What is wrong, with the mend.
pub fn filter(level: &str) -> Result<EnvFilter, String> {
    let refused = || format!("[log] level = \"{level}\": give error, warn, info, debug, trace, or module=level,…");
    let named = |level: &str| !level.trim().is_empty() && level.trim().parse::<LevelFilter>().is_ok();
    let good = |item: &str| match item.rsplit_once('=') {
        Some((module, level)) => !module.trim().is_empty() && named(level),
        None => named(item),
    };
    // Filters by span hold commas and equal signs of their own; their grammar knows them.
    if !level.contains('[') && !level.split(',').all(good) {
        return Err(refused());
    }
    // A server that is away is told by us; the driver says so at each try, twice.
    let quiet = if level.contains("scylla") { "" } else { ",scylla=error" };
    EnvFilter::try_new(format!("{level}{quiet}")).map_err(|_| refused())
}

fn install<W>(format: LogFormat, terminal: bool, filter: EnvFilter, writer: W) -> anyhow::Result<()>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    let readable = format == LogFormat::Terminal || (format == LogFormat::Auto && terminal);
    let set = if readable {
        builder.with_ansi(terminal).with_target(false).try_init()
    } else {
        builder.json().flatten_event(true).with_current_span(true).with_span_list(false).try_init()
    };
    set.map_err(|e| anyhow::anyhow!("set the log's subscriber: {e}"))
}

/// Bounds of the buckets of every latency, in seconds: a turn takes milliseconds, a backlog minutes.
const LATENCY_BOUNDS_S: [f64; 17] =
    [0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 10.0, 60.0, 600.0];

/// Histograms of seconds get bounds that fit; the SDK's own begin at five.
fn latency_view(instrument: &Instrument) -> Option<Stream> {
    if instrument.kind() != InstrumentKind::Histogram || instrument.unit() != "s" {
        return None;
    }
    let buckets = Aggregation::ExplicitBucketHistogram { boundaries: LATENCY_BOUNDS_S.to_vec(), record_min_max: false };
    Stream::builder().with_aggregation(buckets).build().ok()
}

/// The metrics of one pipeline.
#[derive(Debug, Clone)]
pub struct Metrics {
    provider: SdkMeterProvider,
    registry: Registry,
}

impl Metrics {
    /// Metrics of their own: two pipelines in one process do not meet.
    pub fn new() -> Metrics {
        let registry = Registry::new();
        let exporter = opentelemetry_prometheus::exporter().with_registry(registry.clone()).scope_info_enabled(false);
        let exporter = exporter.build().expect("a new registry takes its first collector");
        let provider = SdkMeterProvider::builder()
            .with_resource(Resource::builder().with_service_name("undertone").build())
            .with_reader(exporter)
            .with_view(latency_view)
            .build();
        observe_memory(&provider.meter("undertone"));
        Metrics { provider, registry }
    }

    /// What roles count with.
    pub fn meter(&self) -> Meter {
        self.provider.meter("undertone")
    }

    /// The current figures in Prometheus' text format.
    ///
    /// # Errors
    /// Two instruments of one name and different kinds: a fault of the program.
    pub fn text(&self) -> Result<String, prometheus::Error> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

/// Tells the process's resident memory whenever it is asked for (proc(5), `statm`: pages, of which the second number is
/// resident); elsewhere than on Linux there is no such figure.
fn observe_memory(meter: &Meter) {
    let gauge = meter
        .u64_observable_gauge("process.resident.memory")
        .with_unit("By")
        .with_description("Resident memory of the process, of all its pipelines together.");
    gauge
        .with_callback(|observer| {
            let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
            let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
            if let Some(pages) = pages {
                observer.observe(pages * rustix::param::page_size() as u64, &[]);
            }
        })
        .build();
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::KeyValue;

    use super::*;

    #[test]
    fn misspelt_levels_are_refused_with_the_mend() {
        for good in ["info", "WARN", "off", "info,store=debug", "[span]=info"] {
            assert!(filter(good).is_ok(), "{good}");
        }
        for bad in ["bogus", "", "inof,,=", "info,", "store=inof", "=info"] {
            assert!(filter(bad).unwrap_err().contains("[log] level"), "{bad}");
        }
    }

    #[test]
    fn two_pipelines_count_apart() {
        let (one, other) = (Metrics::new(), Metrics::new());
        one.meter().u64_counter("undertone.test").build().add(3, &[KeyValue::new("kind", "a")]);
        let histogram = one.meter().f64_histogram("undertone.latency").with_unit("s").build();
        histogram.record(0.25, &[]);
        let text = one.text().unwrap();
        assert!(text.contains("undertone_test_total{kind=\"a\"} 3"), "{text}");
        assert!(text.contains("undertone_latency_seconds_sum 0.25"), "{text}");
        assert!(text.contains("undertone_latency_seconds_bucket{le=\"0.25\"} 1"), "{text}");
        assert!(text.contains("service_name=\"undertone\""), "{text}");
        assert!(!other.text().unwrap().contains("undertone_test"));
    }
}
