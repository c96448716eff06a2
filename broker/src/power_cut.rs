//! A power cut, for tests: what would be left of a folder if the machine lost its power now.
//!
//! Every sync of the crate goes through [`crate::sync::to_disk`], which tells this module. A file keeps as many bytes as
//! it had when it was last synced, and a folder the names that it had; what was never synced is gone. That is harsher
//! than any file system, so what is promised by it is promised everywhere. Files are appended to and never changed in
//! place, so that the first bytes of a file are what was synced. What was removed does not come back here.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{File, Metadata};
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

/// Inode numbers are used again after a file is gone; the time of birth tells two files apart.
type Id = (u64, u64, SystemTime);

/// A file, and what a sync of it covers.
pub(crate) type Seen = (Id, Synced);

#[derive(Debug, Clone)]
pub(crate) enum Synced {
    Bytes(u64),
    Names(BTreeSet<OsString>),
}

static SYNCED: Mutex<BTreeMap<Id, Synced>> = Mutex::new(BTreeMap::new());

fn id(metadata: &Metadata) -> io::Result<Id> {
    Ok((metadata.dev(), metadata.ino(), metadata.created()?))
}

/// What a sync that begins now covers at least.
pub(crate) fn before_sync(file: &File) -> io::Result<Seen> {
    let metadata = file.metadata()?;
    let covered = if metadata.is_dir() {
        let names = std::fs::read_dir(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        Synced::Names(names.map(|entry| entry.map(|entry| entry.file_name())).collect::<io::Result<_>>()?)
    } else {
        Synced::Bytes(metadata.len())
    };
    Ok((id(&metadata)?, covered))
}

/// The sync succeeded.
pub(crate) fn after_sync(seen: io::Result<Seen>) {
    let (id, covered) = seen.expect("a test can look at its own files");
    SYNCED.lock().unwrap_or_else(PoisonError::into_inner).insert(id, covered);
}

fn synced(metadata: &Metadata) -> io::Result<Option<Synced>> {
    let known = SYNCED.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(known.get(&id(metadata)?).cloned())
}

/// Copies what a power cut would leave of `from` to `to`. Others may go on writing.
pub(crate) fn copy_survivors(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::create_dir_all(to)?;
    let Some(Synced::Names(names)) = synced(&std::fs::metadata(from)?)? else { return Ok(()) };
    for name in names {
        let file = match File::open(from.join(&name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            file => file?,
        };
        let metadata = file.metadata()?;
        if metadata.is_dir() {
            copy_survivors(&from.join(&name), &to.join(&name))?;
        } else {
            let Some(Synced::Bytes(bytes)) = synced(&metadata)? else {
                File::create(to.join(&name))?;
                continue;
            };
            let mut kept = Vec::new();
            file.take(bytes).read_to_end(&mut kept)?;
            File::create(to.join(&name))?.write_all(&kept)?;
        }
    }
    Ok(())
}
