//! What a process has cost, by the kernel's books.

use anyhow::Context as _;

/// What a process has cost so far.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spent {
    /// Time of processors, its threads together, in seconds.
    pub(crate) cpu_s: f64,
    /// Resident memory, in MiB.
    pub(crate) rss_mb: f64,
}

/// Asks the kernel.
pub(crate) fn spent(pid: u32) -> anyhow::Result<Spent> {
    let path = format!("/proc/{pid}/stat");
    let stat = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let (user, system) = ticks(&stat).with_context(|| format!("read the times in {path}"))?;
    let path = format!("/proc/{pid}/statm");
    let statm = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).context("read the memory")?;
    Ok(Spent {
        cpu_s: (user + system) as f64 / rustix::param::clock_ticks_per_second() as f64,
        rss_mb: (pages * rustix::param::page_size() as u64) as f64 / f64::from(1 << 20),
    })
}

/// Times in user and in system mode: the fields 14 and 15 of `man 5 proc_pid_stat`. The second field, in brackets, may hold
/// anything.
fn ticks(stat: &str) -> Option<(u64, u64)> {
    let (_, behind) = stat.rsplit_once(") ")?;
    let mut fields = behind.split(' ').skip(11);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_behind_a_name_with_brackets_and_blanks() {
        let stat = "7 (a) b) S 1 2 3 4 5 6 7 8 9 10 1234 56 0 0 20 0";
        assert_eq!(ticks(stat), Some((1234, 56)));
    }

    #[test]
    fn this_process_has_memory() {
        assert!(spent(std::process::id()).unwrap().rss_mb > 0.1);
    }
}
