//! Replacing values: what must not be in the log any more is taken out of its files, and all else stays in its place.
//!
//! Promises: offsets, keys, headers, times, producers and transactions are as before; when it returns, no file of the partition
//! holds a replaced value, and that is on the disk. Records that are appended meanwhile may be missed. A segment without
//! anything to replace is read and not written. Leaves out: which values, which is the caller's to say.

use std::fs::File;
use std::io;
use std::sync::{Arc, PoisonError, Weak};

use super::segment::{self, Walk};
use super::{Closed, Partition};
use crate::batch::{self, Header};
use crate::node::{Node, now_ms};
use crate::sync;

/// What a value becomes, by the record's key and the value; `None` if it stays.
pub type Replace = dyn Fn(Option<&[u8]>, &[u8]) -> Option<Vec<u8>> + Send + Sync;

/// Replaces values in the log of a running broker; see [`crate::Broker::rewriter`].
#[derive(Clone)]
pub struct Rewriter {
    pub(crate) node: Weak<Node>,
    pub(crate) runtime: tokio::runtime::Handle,
}

impl std::fmt::Debug for Rewriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rewriter").finish_non_exhaustive()
    }
}

impl Rewriter {
    /// Replaces values in all records that a topic holds; returns how many. It reads the whole topic, on an I/O thread of the
    /// broker. No such topic is nothing to replace.
    ///
    /// # Errors
    /// A segment is damaged, or cannot be read or written: some values may be replaced. The broker ends.
    pub async fn replace(&self, topic: &str, with: Arc<Replace>) -> io::Result<u64> {
        let ends = || io::Error::new(io::ErrorKind::Interrupted, "the broker ends");
        let node = self.node.upgrade().ok_or_else(ends)?;
        let Some(topic) = node.topic(topic) else { return Ok(0) };
        let work = move || {
            let mut replaced = 0;
            for partition in &topic.partitions {
                if node.closing.is_cancelled() {
                    return Err(ends());
                }
                replaced += partition.replace(now_ms(), &*with)?;
            }
            Ok(replaced)
        };
        self.runtime.spawn_blocking(work).await.map_err(io::Error::other)?
    }
}

impl Partition {
    /// Replaces values in all records; returns how many. For I/O threads.
    pub(crate) fn replace(&self, now_ms: i64, with: &Replace) -> io::Result<u64> {
        let _alone = self.rewriting.lock().unwrap_or_else(PoisonError::into_inner);
        let (file, size) = {
            let view = self.view();
            (Arc::clone(&view.active.file), view.active.size)
        };
        if has_any(&file, size, with)? {
            self.roll(&mut self.writer(), now_ms)?;
        }
        let closed: Vec<Closed> = self.view().closed.iter().copied().collect();
        let mut replaced = 0;
        for segment in closed {
            let file = match File::open(segment::log_path(&self.dir, segment.base)) {
                // Retention was faster.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                opened => opened?,
            };
            if has_any(&file, segment.size, with)? {
                replaced += self.write_anew(segment, |bytes, header, count| replaced_in(bytes, header, with, count))?;
            }
        }
        if replaced > 0 {
            sync::to_disk(&File::open(&self.dir)?)?;
        }
        Ok(replaced)
    }
}

/// Whether a segment has a value to replace.
fn has_any(file: &File, size: u64, with: &Replace) -> io::Result<bool> {
    let mut walk = Walk::new(file, 0, size);
    while let Some((at, header)) = walk.next()? {
        if replaced_in(walk.batch(at, &header)?, &header, with, &mut 0)?.is_some() {
            return Ok(true);
        }
    }
    walk.whole()?;
    Ok(false)
}

/// The batch with its values replaced; `None` if all stay.
fn replaced_in(bytes: &[u8], header: &Header, with: &Replace, count: &mut u64) -> io::Result<Option<Vec<u8>>> {
    if header.is_control() {
        return Ok(None);
    }
    let mut records = batch::records(bytes, header)?;
    let before = *count;
    for record in &mut records {
        let value = record.value.as_deref().unwrap_or_default();
        if let Some(value) = with(record.key.as_deref(), value) {
            record.value = Some(value.into());
            *count += 1;
        }
    }
    Ok((*count > before).then(|| batch::with_records(header, &records)))
}
