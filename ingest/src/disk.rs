//! Whether the disk under the log has room left. Intake stops before it is full, because a broker that cannot write
//! loses more than a caller that is told to come again.
//!
//! The answer is kept for a second, so that a busy intake asks the file system once a second. A disk that cannot be
//! asked counts as having room: the broker's own answer is the authority.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// How long an answer is believed.
const BELIEVED_FOR: Duration = Duration::from_secs(1);

/// Watches the disk that holds one folder.
#[derive(Debug)]
pub(crate) struct Disk {
    folder: Option<PathBuf>,
    free_bytes_min: u64,
    last: Mutex<Option<(Instant, bool)>>,
}

impl Disk {
    /// Watches nothing, and has room for ever, if there is no folder (the log lies on other machines).
    pub(crate) fn new(folder: Option<PathBuf>, free_bytes_min: u64) -> Disk {
        Disk { folder, free_bytes_min, last: Mutex::new(None) }
    }

    /// Whether less than the bound is free.
    pub(crate) async fn nearly_full(&self, now: Instant) -> bool {
        let Some(folder) = &self.folder else { return false };
        let last = *self.lock();
        if let Some((asked, full)) = last
            && now.saturating_duration_since(asked) < BELIEVED_FOR
        {
            return full;
        }
        let folder = folder.clone();
        // A file system may take its time to answer; that must not hold up the other calls.
        let free = tokio::task::spawn_blocking(move || free_bytes(&folder)).await;
        let full = match free {
            Ok(Ok(free)) => free < self.free_bytes_min,
            Ok(Err(_)) | Err(_) => false,
        };
        let before = self.lock().replace((now, full)).is_some_and(|(_, full)| full);
        match (before, full) {
            (false, true) => {
                tracing::warn!(
                    free_bytes_min = self.free_bytes_min,
                    "disk nearly full: intake stops until there is room"
                );
            }
            (true, false) => tracing::info!("disk has room again: intake goes on"),
            _ => {}
        }
        full
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<(Instant, bool)>> {
        // The value is whole whatever happened to a thread that held it.
        self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Bytes that an unprivileged process may still write on the disk that holds a folder.
///
/// # Errors
/// The file system does not say.
pub fn free_bytes(folder: &Path) -> std::io::Result<u64> {
    let disk = rustix::fs::statvfs(folder)?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_disk_is_nearly_full_by_the_bound_and_asked_once_a_second() {
        let folder = tempfile::tempdir().unwrap();
        let now = Instant::now();
        assert!(!Disk::new(None, u64::MAX).nearly_full(now).await);
        assert!(!Disk::new(Some(folder.path().to_owned()), 0).nearly_full(now).await);

        let mut disk = Disk::new(Some(folder.path().to_owned()), u64::MAX);
        assert!(disk.nearly_full(now).await);
        disk.free_bytes_min = 0;
        assert!(disk.nearly_full(now + Duration::from_millis(999)).await, "the answer is kept");
        assert!(!disk.nearly_full(now + Duration::from_secs(1)).await, "and asked for again");
    }

    #[tokio::test]
    async fn a_disk_that_cannot_be_asked_counts_as_having_room() {
        let disk = Disk::new(Some(PathBuf::from("no/such/folder")), u64::MAX);
        assert!(!disk.nearly_full(Instant::now()).await);
    }
}
