//! Faults of a store that lies in a file: its lock is held, it goes back in time.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use rusqlite::Connection;

/// How long a copy waits for a lock.
const BUSY_MAX: Duration = Duration::from_secs(20);
/// What SQLite keeps beside a file; it belongs to that file and to no other.
const BESIDE: [&str; 2] = ["-wal", "-shm"];

/// Copies the file as it is now, whole, whoever writes to it meanwhile.
pub(super) fn copy(file: &Path, to: &Path) -> anyhow::Result<()> {
    let _ = std::fs::remove_file(to);
    let connection = open(file)?;
    connection.execute("VACUUM INTO ?1", [to.to_string_lossy()]).context("copy a store")?;
    Ok(())
}

/// Puts a copy in the place of the file. Nobody may have it open.
pub(super) fn replace(file: &Path, copy: &Path) -> anyhow::Result<()> {
    for beside in BESIDE {
        let mut name = file.as_os_str().to_owned();
        name.push(beside);
        match std::fs::remove_file(PathBuf::from(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error).context("restore a store"),
            _ => {}
        }
    }
    std::fs::copy(copy, file).context("restore a store")?;
    Ok(())
}

/// Holds the lock for writing on a thread of its own.
pub(super) fn hold(file: &Path, held: Duration) -> anyhow::Result<std::thread::JoinHandle<()>> {
    let connection = open(file)?;
    connection.execute_batch("BEGIN IMMEDIATE").context("lock a store")?;
    Ok(std::thread::spawn(move || {
        std::thread::sleep(held);
        // Closed, the transaction is rolled back: nothing was changed.
        drop(connection);
    }))
}

fn open(file: &Path) -> anyhow::Result<Connection> {
    let connection = Connection::open(file).with_context(|| format!("open {}", file.display()))?;
    connection.busy_timeout(BUSY_MAX)?;
    Ok(connection)
}
