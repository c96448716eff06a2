//! The report: a line for each way, number of processes, share and rate, and what follows for a million conversations a day.

use std::fmt::Write as _;

use serde_json::json;

use super::Way;
use crate::Outcome;
use crate::figures::{median, short};

/// One line of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cell {
    pub(super) way: Way,
    pub(super) processes: u8,
    /// Per cent of the conversations.
    pub(super) followed: u8,
    /// 0: as many as go.
    pub(super) per_second: u32,
}

/// What one run of it came to.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Row {
    /// Turns a second, all of them.
    pub(super) per_second: f64,
    /// Processor time of each reader, for each turn of the topic, in microseconds.
    pub(super) reader_us: f64,
    /// That of publisher and Redis.
    pub(super) shared_us: f64,
    /// That of the broker, the writing of the turn included.
    pub(super) broker_us: f64,
    /// From the turn's writing to the follower: of the slowest reader.
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
}

impl Cell {
    pub(super) fn name(&self) -> String {
        let rate =
            if self.per_second == 0 { "as many as go".to_owned() } else { format!("{} a second", self.per_second) };
        format!("{}, {} processes, {} % followed, {rate}:", self.way.name(), self.processes, self.followed)
    }
}

impl Row {
    pub(super) fn name(&self) -> String {
        format!(
            "{} us a reader, {} us publisher and Redis, {} us broker, p50 {} p99 {} ms",
            short(self.reader_us),
            short(self.shared_us),
            short(self.broker_us),
            short(self.p50_ms),
            short(self.p99_ms)
        )
    }
}

/// All lines.
pub(super) struct Table {
    record_bytes: usize,
    rows: Vec<(Cell, Vec<Row>)>,
}

impl Table {
    pub(super) fn new(record_bytes: usize) -> Table {
        Table { record_bytes, rows: Vec::new() }
    }

    pub(super) fn note(&mut self, cell: Cell, row: Row) {
        match self.rows.iter_mut().find(|(known, _)| *known == cell) {
            Some((_, rows)) => rows.push(row),
            None => self.rows.push((cell, vec![row])),
        }
    }

    pub(super) fn outcome(&self) -> Outcome {
        let head = [
            "way",
            "processes",
            "followed",
            "turns/s",
            "us/turn each",
            "shared",
            "broker",
            "all together",
            "p50 ms",
            "p99 ms",
        ];
        let mut text = format!("records of {} bytes with key and headers\n", self.record_bytes);
        let line = |text: &mut String, cells: &[String]| {
            // Writing to a string cannot fail.
            let _ = write!(text, "{:<15}", cells[0]);
            for cell in &cells[1..] {
                let _ = write!(text, " {cell:>12}");
            }
            text.push('\n');
        };
        line(&mut text, &head.map(str::to_owned));
        let mut lines = Vec::new();
        for (cell, rows) in &self.rows {
            let of = |get: fn(&Row) -> f64| median(&rows.iter().map(get).collect::<Vec<f64>>());
            let (reader, shared, broker) = (of(|row| row.reader_us), of(|row| row.shared_us), of(|row| row.broker_us));
            let all = reader * f64::from(cell.processes) + shared + broker;
            let (rate, p50, p99) = (of(|row| row.per_second), of(|row| row.p50_ms), of(|row| row.p99_ms));
            let mut cells =
                vec![cell.way.name().to_owned(), cell.processes.to_string(), format!("{} %", cell.followed)];
            cells.extend([rate, reader, shared, broker, all, p50, p99].map(short));
            line(&mut text, &cells);
            lines.push(json!({
                "way": cell.way, "processes": cell.processes, "followed_percent": cell.followed,
                "asked_per_second": cell.per_second, "turns_per_s": rate, "reader_us": reader, "shared_us": shared,
                "broker_us": broker, "all_us": all, "p50_ms": p50, "p99_ms": p99, "runs": rows.len(),
            }));
        }
        text.push_str("\nus/turn: processor time for each turn of the topic; shared: the publisher and the Redis.\n");
        Outcome { text, json: json!({ "record_bytes": self.record_bytes, "rows": lines }), passed: true }
    }
}
