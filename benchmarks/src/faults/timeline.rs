//! What happened, when and to whom; and the drawing of it.

use std::collections::BTreeMap;
use std::time::Duration;

use super::cache::Mishap;
use super::plan::{Fault, Store, Target};

/// Columns of the drawing.
const WIDTH: usize = 72;

/// A line of the drawing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    /// A process.
    Process(Target),
    /// A store.
    Store(Store),
    /// The Redis.
    Cache,
}

/// Something that happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mark {
    /// A process ended by itself.
    Ended,
    /// It was started again as planned, or joined.
    Started,
    /// It was told to leave.
    Left,
    /// It was frozen.
    Frozen,
    /// It came back.
    Thawed,
    /// A store was slow.
    Slow,
    /// A store refused.
    Refused,
    /// A store forgot its last writes.
    Forgot,
    /// A store was restored from a backup.
    Restored,
    /// The contexts were rebuilt.
    Rebuilt,
    /// A process was killed. The last, because it is what the drawing is about.
    Killed,
}

impl Mark {
    fn drawn(self) -> char {
        match self {
            Mark::Killed => 'x',
            Mark::Ended => '!',
            Mark::Started => '+',
            Mark::Left => '-',
            Mark::Frozen => 'z',
            Mark::Thawed => 'w',
            Mark::Slow => 's',
            Mark::Refused => 'r',
            Mark::Forgot => 'f',
            Mark::Restored => 'b',
            Mark::Rebuilt => 'R',
        }
    }
}

/// What the drawing's letters mean.
const LEGEND: &str = "x killed, z frozen and w woken, + joined and - left, ! ended by itself \
                      (not counted below where the fault asks for it); \
                      s slow, r refusing, f forgetful, b restored from a backup, R rebuilt";

/// The marks of a run.
#[derive(Debug, Clone, Default)]
pub struct Timeline {
    marks: Vec<(Duration, Lane, Mark)>,
}

impl Timeline {
    /// Notes a mark at a time since the start.
    pub fn mark(&mut self, at: Duration, lane: Lane, mark: Mark) {
        self.marks.push((at, lane, mark));
    }

    /// The drawing: a line for each lane, time from left to right.
    pub fn draw(&self, names: &BTreeMap<Lane, String>) -> String {
        let end = self.marks.iter().map(|(at, ..)| *at).max().unwrap_or_default().max(Duration::from_secs(1));
        let column = |at: Duration| ((at.as_secs_f64() / end.as_secs_f64()) * (WIDTH - 1) as f64) as usize;
        let width = names.values().map(String::len).max().unwrap_or(0);
        let mut drawing =
            format!("{:width$}  0 s{:>right$}\n", "", format!("{:.0} s", end.as_secs_f64()), right = WIDTH - 3);
        for (lane, name) in names {
            let mut cells = vec![None::<Mark>; WIDTH];
            for (at, _, mark) in self.marks.iter().filter(|(_, marked, _)| marked == lane) {
                let cell = &mut cells[column(*at).min(WIDTH - 1)];
                *cell = (*cell).max(Some(*mark));
            }
            let line: String = cells.into_iter().map(|cell| cell.map_or('.', Mark::drawn)).collect();
            drawing += &format!("{name:width$}  {line}\n");
        }
        drawing + &format!("{:width$}  {LEGEND}\n", "")
    }
}

/// The class of a fault in reports.
pub fn name(fault: &Fault) -> &'static str {
    match fault {
        Fault::Kill { .. } => "kill",
        Fault::KillAll { .. } => "kill_all",
        Fault::Stop { again: None, .. } => "stop",
        Fault::Stop { .. } => "stop_twice",
        Fault::StopInDoubt { .. } => "stop_in_doubt",
        Fault::Add => "add",
        Fault::Remove => "remove",
        Fault::Slow { .. } => "store_slow",
        Fault::Refuse { .. } => "store_refuses",
        Fault::Forget { .. } => "store_forgets",
        Fault::Restore { .. } => "store_restored",
        Fault::Cache { mishap: Mishap::Flush } => "cache_flushed",
        Fault::Cache { mishap: Mishap::Silence(_) } => "cache_silent",
        Fault::Cache { mishap: Mishap::Kill(_) } => "cache_killed",
        Fault::Cache { mishap: Mishap::BringBack } => "cache_brought_back",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kill_is_drawn_where_it_happened_and_is_not_hidden_by_what_else_happened_there() {
        let mut timeline = Timeline::default();
        let lane = Lane::Process(Target::Broker);
        timeline.mark(Duration::from_secs(10), lane, Mark::Killed);
        timeline.mark(Duration::from_secs(10), lane, Mark::Ended);
        timeline.mark(Duration::from_secs(20), Lane::Store(Store::History), Mark::Slow);
        let names = BTreeMap::from([(lane, "broker".to_owned()), (Lane::Store(Store::History), "history".to_owned())]);
        let drawing = timeline.draw(&names);
        let line = drawing.lines().nth(1).unwrap();
        assert_eq!(line.find('x'), Some("history  ".len() + (WIDTH - 1) / 2), "{drawing}");
        assert!(drawing.lines().nth(2).unwrap().ends_with('s'), "{drawing}");
    }
}
