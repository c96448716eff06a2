//! The view as plain lines, for pipes and logs: a block a process, without colour or cursor movement.

use super::view::{Known, Process, View};
use crate::watch::lines::plain;

/// All processes; the last line has its end.
pub fn text(view: &View) -> String {
    view.processes.iter().flat_map(lines).map(|line| line + "\n").collect()
}

/// The lines of one process; what it says of itself may hold anything, and no terminal obeys it.
pub fn lines(process: &Process) -> Vec<String> {
    let mut lines = vec![head(process)];
    lines.extend(process.reasons.iter().map(|reason| format!("  ! {}", plain(reason))));
    if let Some(known) = &process.known
        && process.state != "down"
    {
        lines.extend(body(known));
    }
    lines
}

fn head(process: &Process) -> String {
    let mut head = format!("{} {}", plain(&process.url), plain(&process.state));
    if let Some(known) = &process.known {
        head += &format!("  instance {}  roles {}", plain(&known.instance), plain(&known.roles.join(" ")));
    }
    if process.restarts > 0 {
        head += &format!("  restarts {}", process.restarts);
    }
    head
}

fn body(known: &Known) -> Vec<String> {
    let mut lines = Vec::new();
    let rates: Vec<String> = known.turns_per_s.iter().map(|rate| format!("{} {:.1}", rate.step, rate.per_s)).collect();
    if !rates.is_empty() {
        lines.push(format!("  turns/s  {}", rates.join("  ")));
    }
    for latency in &known.latencies {
        let ms = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |ms| format!("{ms:.1}"));
        lines.push(format!(
            "  {:<17} p50 {:>7} ms  p99 {:>7} ms",
            latency.what,
            ms(latency.p50_ms),
            ms(latency.p99_ms)
        ));
    }
    for lag in &known.lag {
        let all: i64 = lag.partitions.iter().map(|part| part.messages).sum();
        let behind = lag.partitions.iter().filter(|part| part.messages > 0);
        let behind: Vec<String> =
            behind.map(|part| format!("{}:{} ({:.1} s)", part.partition, part.messages, part.seconds)).collect();
        lines.push(format!("  lag {:<13} {all}  {}", plain(&lag.role), behind.join(" ")).trim_end().to_owned());
    }
    let tier = known.tier.map_or_else(String::new, |tier| format!("tier {tier}  "));
    let memory = known.memory_bytes as f64 / f64::from(1 << 20);
    lines.push(format!("  {tier}rejects {}  aborts {}  memory {memory:.0} MiB", known.rejects, known.aborts));
    lines
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::top::view::tests::scrape;

    #[test]
    fn block_of_a_process_has_all_its_figures_and_a_dead_one_its_reason() {
        let mut view = View::new(&["http://one".to_owned(), "http://other".to_owned()]);
        let begun = Instant::now();
        view.apply(vec![Ok(scrape(begun, 1, 0)), Err("refused \u{1b}[2J".to_owned())]);
        view.apply(vec![Ok(scrape(begun + Duration::from_secs(1), 1, 250)), Err("refused \u{1b}[2J".to_owned())]);
        let wanted = "http://one ready  instance 0  roles processors history\n\
                      \x20 turns/s  processors 250.0\n\
                      \x20 intake to commit  p50     5.0 ms  p99     9.9 ms\n\
                      \x20 lag processors    12  1:12 (3.5 s)\n\
                      \x20 tier fast  rejects 2  aborts 0  memory 100 MiB\n\
                      http://other down\n\
                      \x20 ! refused  [2J\n";
        assert_eq!(text(&view), wanted);
    }
}
