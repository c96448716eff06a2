//! Who answered how many questions for pages.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use opentelemetry::KeyValue;
use opentelemetry::metrics::Meter;

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Newest,
    /// The newest page of a conversation that is known not to be known.
    Unknown,
    Fixed,
    List,
}

/// Who answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum From {
    Memory,
    /// Another reader, who asked for the same at the same time.
    Shared,
    Redis,
    Store,
}

const KINDS: [&str; 4] = ["newest", "unknown", "fixed", "list"];
const SOURCES: [&str; 4] = ["memory", "shared", "redis", "store"];

/// Questions by kind and by who answered them.
#[derive(Debug, Default)]
pub struct Tally([[AtomicU64; 4]; 4]);

impl Tally {
    pub(crate) fn add(&self, kind: Kind, from: From) {
        self.0[kind as usize][from as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Questions of a kind (`newest`, `unknown`, `fixed`, `list`) that a source (`memory`, `shared`, `redis`, `store`)
    /// answered; an unknown name counts nothing.
    pub fn count(&self, kind: &str, source: &str) -> u64 {
        let at = |names: &[&str; 4], name: &str| names.iter().position(|known| *known == name);
        match (at(&KINDS, kind), at(&SOURCES, source)) {
            (Some(kind), Some(source)) => self.0[kind][source].load(Ordering::Relaxed),
            _ => 0,
        }
    }

    /// Tells the metrics, together with how much is kept.
    pub(crate) fn tell(self: &Arc<Tally>, meter: &Meter, bytes: impl Fn() -> u64 + Send + Sync + 'static) {
        let tally = Arc::clone(self);
        meter
            .u64_observable_counter("undertone.pages.reads")
            .with_description("Pages that were asked for, by kind and by who answered")
            .with_callback(move |observer| {
                for kind in KINDS {
                    for source in SOURCES {
                        let labels = [KeyValue::new("kind", kind), KeyValue::new("source", source)];
                        observer.observe(tally.count(kind, source), &labels);
                    }
                }
            })
            .build();
        meter
            .u64_observable_gauge("undertone.pages.bytes")
            .with_unit("By")
            .with_description("Pages that are kept in memory")
            .with_callback(move |observer| observer.observe(bytes(), &[]))
            .build();
    }
}
