//! What a process has used of the processors, as the kernel counts it for each of its threads.

use anyhow::Context as _;

/// Seconds that the threads of a process which live now have run. Those that ended are not in it: the parts keep theirs.
pub(super) fn of_process(id: u32) -> anyhow::Result<f64> {
    let folder = format!("/proc/{id}/task");
    let mut nanoseconds = 0u64;
    for thread in std::fs::read_dir(&folder).with_context(|| format!("read {folder}"))? {
        let path = thread.context("read a thread's place")?.path().join("schedstat");
        // A thread may end while it is looked at.
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        let run = text.split_whitespace().next().and_then(|run| run.parse::<u64>().ok());
        nanoseconds += run.with_context(|| format!("{} says for how long it ran", path.display()))?;
    }
    Ok(nanoseconds as f64 / 1e9)
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_runs_is_counted() {
        let before = super::of_process(std::process::id()).unwrap();
        let begun = std::time::Instant::now();
        while begun.elapsed() < std::time::Duration::from_millis(30) {
            std::hint::spin_loop();
        }
        assert!(super::of_process(std::process::id()).unwrap() > before);
    }
}
