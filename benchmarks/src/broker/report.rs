//! What the rounds came to: medians and spread, ratios, and whether the aims are met.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::Options;
use super::load::Round;
use crate::Outcome;

/// At least this share of the other broker's records a second, produced and consumed.
const THROUGHPUT_RATIO_MIN: f64 = 0.95;
/// At most this share of the other broker's latency, at the 99th percentile.
const LATENCY_RATIO_MAX: f64 = 0.5;
/// Memory of the embedded broker stays below this, in MiB.
const MEMORY_MIB_MAX: f64 = 64.0;

/// The middle of the rounds, and how far they lie apart.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

impl Spread {
    /// `values` holds at least one.
    fn of(values: impl IntoIterator<Item = f64>) -> Spread {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 };
        Spread { median, least: sorted[0], most: sorted[sorted.len() - 1] }
    }

    fn json(self) -> Value {
        json!({"median": self.median, "min": self.least, "max": self.most})
    }
}

/// What a ratio is to reach.
#[derive(Debug, Clone, Copy)]
enum Aim {
    AtLeast(f64),
    AtMost(f64),
}

impl Aim {
    fn is_met(self, ratio: f64) -> bool {
        match self {
            Aim::AtLeast(least) => ratio >= least,
            Aim::AtMost(most) => ratio <= most,
        }
    }

    fn words(self) -> String {
        match self {
            Aim::AtLeast(least) => format!("at least {least}"),
            Aim::AtMost(most) => format!("at most {most}"),
        }
    }
}

/// Something that is measured in a round.
struct Measure {
    key: &'static str,
    ratio_key: &'static str,
    label: &'static str,
    of: fn(&Round) -> f64,
    aim: Option<Aim>,
}

const fn measure(
    (key, ratio_key, label): (&'static str, &'static str, &'static str),
    of: fn(&Round) -> f64,
    aim: Option<Aim>,
) -> Measure {
    Measure { key, ratio_key, label, of, aim }
}

const MEASURES: [Measure; 6] = [
    measure(
        ("produced_per_s", "produced_ratio", "produced, records/s"),
        |round| round.produced_per_s,
        Some(Aim::AtLeast(THROUGHPUT_RATIO_MIN)),
    ),
    measure(
        ("consumed_per_s", "consumed_ratio", "consumed, records/s"),
        |round| round.consumed_per_s,
        Some(Aim::AtLeast(THROUGHPUT_RATIO_MIN)),
    ),
    measure(("latency_p50_ms", "latency_p50_ratio", "latency p50, ms"), |round| round.p50_ms, None),
    measure(
        ("latency_p99_ms", "latency_p99_ratio", "latency p99, ms"),
        |round| round.p99_ms,
        Some(Aim::AtMost(LATENCY_RATIO_MAX)),
    ),
    measure(("latency_p999_ms", "latency_p999_ratio", "latency p99.9, ms"), |round| round.p999_ms, None),
    measure(("latency_max_ms", "latency_max_ratio", "latency max, ms"), |round| round.max_ms, None),
];

/// The report; `other` holds the rounds of the broker that was compared with, each beside the one of the same number.
pub(super) fn report(
    options: &Options,
    own: &[Round],
    other: Option<&[Round]>,
    peak_memory_bytes: Option<u64>,
) -> Outcome {
    let rss_mb = peak_memory_bytes.map(|bytes| bytes as f64 / f64::from(1 << 20));
    let mut text = format!(
        "300-byte records, {} produced and consumed a round; latency from produce to consume at {} a second, from the \
         moment each record was due; {} rounds: median (least to most)\n\n{:<22}{:>36}",
        options.records, options.rate, options.rounds, "", "embedded"
    );
    if other.is_some() {
        let _ = write!(text, "{:>36}{:>28}", "Apache Kafka", "embedded / Apache Kafka");
    }
    text.push('\n');
    let mut json = json!({
        "rounds": options.rounds, "records": options.records, "rate": options.rate, "seconds": options.seconds,
        "rss_mb": rss_mb, "embedded": {},
    });
    let mut met = rss_mb.is_none_or(|mib| mib < MEMORY_MIB_MAX);
    for Measure { key, ratio_key, label, of, aim } in &MEASURES {
        let spread = Spread::of(own.iter().map(of));
        json["embedded"][key] = spread.json();
        let _ = write!(text, "{label:<22}{:>36}", cell(spread));
        if let Some(other) = other {
            let spread = Spread::of(other.iter().map(of));
            json["apache"][key] = spread.json();
            // Rounds beside each other had the same machine; so the ratio is that of each pair.
            let ratio = Spread::of(own.iter().zip(other).map(|(own, other)| of(own) / of(other)));
            json[ratio_key] = json!(ratio.median);
            let _ = write!(text, "{:>36}{:>28}", cell(spread), cell(ratio));
            if let Some(aim) = aim {
                let reached = aim.is_met(ratio.median);
                met &= reached;
                let _ = write!(text, "   aim: {}{}", aim.words(), if reached { "" } else { ", MISSED" });
            }
        }
        text.push('\n');
    }
    if let Some(mib) = rss_mb {
        let missed = if mib < MEMORY_MIB_MAX { "" } else { ", MISSED" };
        let _ = writeln!(text, "{:<22}{mib:>36.1}   aim: below {MEMORY_MIB_MAX}{missed}", "peak memory, MiB");
    }
    json["aims_met"] = json!(met);
    Outcome { text, json, passed: met }
}

fn cell(spread: Spread) -> String {
    let digits = if spread.median >= 100.0 { 0 } else { 2 };
    let Spread { median, least, most } = spread;
    format!("{median:.digits$} ({least:.digits$} to {most:.digits$})")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(scale: f64) -> Round {
        Round {
            produced_per_s: 1000.0 * scale,
            consumed_per_s: 500.0 * scale,
            p50_ms: scale,
            p99_ms: 2.0 * scale,
            p999_ms: 3.0 * scale,
            max_ms: 4.0 * scale,
        }
    }

    fn options() -> Options {
        Options { against: None, rounds: 3, warm_up: 0, records: 1000, rate: 10, seconds: 1 }
    }

    #[test]
    fn ratios_are_medians_of_rounds_beside_each_other() {
        let own = [round(1.0), round(3.0), round(2.0)];
        let other = [round(1.0), round(1.0), round(4.0)];
        let outcome = report(&options(), &own, Some(&other), Some(32 << 20));
        assert_eq!(outcome.json["produced_ratio"], 1.0);
        assert_eq!(outcome.json["embedded"]["latency_p99_ms"]["median"], 4.0);
        assert_eq!(outcome.json["rss_mb"], 32.0);
    }

    #[test]
    fn each_aim_that_is_missed_fails_the_run() {
        let (half, one) = ([round(0.4)], [round(1.0)]);
        let latency_is_half = [Round { p99_ms: 0.8, ..round(1.0) }];
        let good = [Round { p99_ms: 0.8, ..round(2.0) }];
        let pass =
            |own: &[Round], other: &[Round], mib: u64| report(&options(), own, Some(other), Some(mib << 20)).passed;
        assert!(pass(&good, &one, 63));
        assert!(pass(&latency_is_half, &one, 63));
        assert!(!pass(&good, &one, 64), "memory");
        assert!(!pass(&half, &one, 63), "throughput");
        assert!(!pass(&one, &one, 63), "latency");
        assert!(report(&options(), &one, None, None).passed, "alone there is nothing to miss");
    }
}
