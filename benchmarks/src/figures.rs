//! The report: each figure beside its aim and its peer, with the median and the spread of its runs.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use crate::Outcome;

/// What a figure should be.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Aim {
    AtLeast(f64),
    AtMost(f64),
    /// It stands there for comparison.
    None,
}

/// A figure of several runs.
#[derive(Debug)]
struct Figure {
    key: &'static str,
    aim: Aim,
    peer: String,
    runs: Vec<f64>,
}

/// All figures, in the order in which they came.
#[derive(Debug)]
pub(crate) struct Report {
    figures: Vec<Figure>,
}

/// The middle of some values; of an even number the lower one of the two.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len().saturating_sub(1) / 2).copied().unwrap_or(f64::NAN)
}

impl Figure {
    fn value(&self) -> f64 {
        median(&self.runs)
    }

    fn reached(&self) -> Option<bool> {
        match self.aim {
            Aim::AtLeast(least) => Some(self.value() >= least),
            Aim::AtMost(most) => Some(self.value() <= most),
            Aim::None => None,
        }
    }

    fn aim(&self) -> String {
        match self.aim {
            Aim::AtLeast(least) => format!("≥ {}", short(least)),
            Aim::AtMost(most) => format!("≤ {}", short(most)),
            Aim::None => String::new(),
        }
    }
}

impl Report {
    pub(crate) fn new() -> Report {
        Report { figures: Vec::new() }
    }

    /// Adds a figure with the values of its runs; `peer` says what stands beside it.
    pub(crate) fn add(&mut self, key: &'static str, aim: Aim, runs: &[f64], peer: impl Into<String>) {
        let figure = Figure { key, aim, peer: peer.into(), runs: runs.to_vec() };
        progress(&format!("{key} {} {}", short(figure.value()), figure.aim()));
        self.figures.push(figure);
    }

    pub(crate) fn outcome(&self) -> Outcome {
        Outcome { text: self.text(), json: self.json(), passed: true }
    }

    fn text(&self) -> String {
        let mut text = format!("{:<28} {:>10} {:>10}    {:<23} beside\n", "figure", "median", "aim", "least to most");
        for figure in &self.figures {
            let mark = match figure.reached() {
                Some(true) => "ok",
                Some(false) => "—",
                None => "",
            };
            let least = figure.runs.iter().copied().fold(f64::INFINITY, f64::min);
            let most = figure.runs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let spread = format!("{} to {}", short(least), short(most));
            let (value, aim) = (short(figure.value()), figure.aim());
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{:<28} {value:>10} {aim:>10} {mark:<2} {spread:<23} {}", figure.key, figure.peer);
        }
        text.push_str(
            "\nok: the aim is reached; —: it is not. Noise of other work on the machine is in every figure.\n",
        );
        text
    }

    fn json(&self) -> Value {
        let mut all = Map::new();
        let mut details = Vec::new();
        for figure in &self.figures {
            all.insert(figure.key.to_owned(), json!(figure.value()));
            let (least, most) = match figure.aim {
                Aim::AtLeast(least) => (Some(least), None),
                Aim::AtMost(most) => (None, Some(most)),
                Aim::None => (None, None),
            };
            details.push(json!({
                "key": figure.key, "value": figure.value(), "runs": figure.runs, "at_least": least, "at_most": most,
                "reached": figure.reached(), "beside": figure.peer,
            }));
        }
        all.insert("figures".to_owned(), Value::Array(details));
        Value::Object(all)
    }
}

/// Three digits that count, and no exponent.
pub(crate) fn short(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        medium if medium >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// Tells whoever waits.
#[expect(clippy::print_stderr, reason = "a person waits for minutes; the report itself goes to standard output")]
pub(crate) fn progress(line: &str) {
    eprintln!("bench: {line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_the_median_of_its_runs_beside_its_aim() {
        let mut report = Report::new();
        report.add("hop_p50_ms", Aim::AtMost(2.5), &[9.0, 2.0, 2.4], "plain loop");
        report.add("share_of_bare", Aim::AtLeast(0.9), &[0.8], "bare model");
        let outcome = report.outcome();
        assert_eq!(outcome.json["hop_p50_ms"], 2.4);
        assert_eq!(outcome.json["figures"][0]["reached"], true);
        assert_eq!(outcome.json["figures"][1]["reached"], false);
        assert!(outcome.text.contains("2.00 to 9.00") && outcome.text.contains("bare model"), "{}", outcome.text);
    }
}
