//! Temporary folders of runs that keep nothing.
//!
//! A folder goes when its run ends. A run that was killed leaves it behind, under a name that tells its process; the
//! next run removes it if that process is gone. Where processes cannot be looked up (no `/proc`), nothing is removed.

use std::path::Path;

use anyhow::Context as _;
use tempfile::TempDir;

/// What the names of our folders begin with; the process id and a random text follow, each after a hyphen.
const PREFIX: &str = "undertone-run-";

/// A new folder; those of runs that were killed are removed first.
///
/// # Errors
/// It cannot be made.
pub(crate) fn folder() -> anyhow::Result<TempDir> {
    let parent = std::env::temp_dir();
    remove_stale(&parent, Path::new("/proc"));
    let prefix = format!("{PREFIX}{}-", std::process::id());
    let made = tempfile::Builder::new().prefix(&prefix).tempdir_in(&parent);
    made.with_context(|| format!("make a temporary folder in {}; set TMPDIR to a folder to write to", parent.display()))
}

/// Removes what processes that are gone have left. What cannot be removed, such as another user's, stays.
fn remove_stale(parent: &Path, processes: &Path) {
    // The folder of processes is not this system's if we are not in it.
    if !processes.join(std::process::id().to_string()).exists() {
        return;
    }
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let process = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split_once('-')?.0.parse::<u32>().ok());
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_folder && process.is_some_and(|process| !processes.join(process.to_string()).exists()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_folders_of_processes_that_are_gone_are_removed() {
        let (parent, processes) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let make = |name: &str| std::fs::create_dir_all(parent.path().join(name)).unwrap();
        let ours = std::process::id();
        let (gone, alive, other) = ("undertone-run-7-abc", format!("undertone-run-{ours}-abc"), "undertone-run-x-abc");
        [gone, &alive, other, "elsewhere-7-abc"].into_iter().for_each(make);
        remove_stale(parent.path(), processes.path());
        assert!(parent.path().join(gone).exists(), "without a list of processes nothing is removed");
        std::fs::create_dir(processes.path().join(ours.to_string())).unwrap();
        remove_stale(parent.path(), processes.path());
        assert!(!parent.path().join(gone).exists());
        for kept in [&alive, other, "elsewhere-7-abc"] {
            assert!(parent.path().join(kept).exists(), "{kept}");
        }
    }
}
