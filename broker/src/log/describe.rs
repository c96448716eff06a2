//! What administrators ask of a partition: its size, its producers, its newest record.

use std::io;
use std::sync::PoisonError;

use super::{Partition, segment};
use crate::batch;

/// A producer as a partition remembers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KnownProducer {
    pub(crate) id: i64,
    pub(crate) epoch: i16,
    /// -1 if it has sent nothing in this epoch.
    pub(crate) last_sequence: i32,
    pub(crate) last_append_ms: i64,
    /// First offset of its open transaction.
    pub(crate) open_from: Option<i64>,
}

impl Partition {
    /// Bytes of all segments.
    pub(crate) fn bytes(&self) -> u64 {
        let view = self.view();
        view.active.size + view.closed.iter().map(|segment| segment.size).sum::<u64>()
    }

    /// Whether the topic's clean-up policy lets records be deleted for other reasons than their key.
    pub(crate) fn deletes(&self) -> bool {
        self.writer().settings.delete
    }

    /// Producers that it remembers. For I/O threads.
    pub(crate) fn producers(&self) -> Vec<KnownProducer> {
        self.writer().producers.list()
    }

    /// Offset and timestamp of the first record with the largest timestamp. For I/O threads; reads the headers of those
    /// segments that may hold it.
    pub(crate) fn find_newest(&self, committed_only: bool) -> io::Result<Option<(i64, i64)>> {
        let (start, limit, closed, active) = {
            let view = self.view();
            let limit = if committed_only { view.stable } else { view.end };
            let closed: Vec<_> = view.closed.iter().map(|s| (s.base, s.size, s.max_timestamp_ms)).collect();
            (view.start, limit, closed, (view.active.file.clone(), view.active.size))
        };
        let mut newest = None;
        for (base, size, max_timestamp_ms) in closed {
            if newest.is_some_and(|(_, timestamp_ms)| timestamp_ms >= max_timestamp_ms) {
                continue;
            }
            let opened = {
                let _layout = self.layout.read().unwrap_or_else(PoisonError::into_inner);
                self.open_closed(base)
            };
            match opened {
                Ok((file, _)) => newest = newest_in(&file, size, start..limit, newest)?,
                // Retention took it meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        newest_in(&active.0, active.1, start..limit, newest)
    }
}

/// The newest record of a segment if it is newer than what was found before.
fn newest_in(
    file: &std::fs::File,
    size: u64,
    range: std::ops::Range<i64>,
    before: Option<(i64, i64)>,
) -> io::Result<Option<(i64, i64)>> {
    let mut newest = before;
    let mut walk = segment::Walk::new(file, 0, size);
    while let Some((at, header)) = walk.next()? {
        let newer = newest.is_none_or(|(_, timestamp_ms)| header.max_timestamp_ms > timestamp_ms);
        let within = header.last_offset() >= range.start && header.base_offset < range.end;
        if header.is_control() || !newer || !within {
            continue;
        }
        for record in batch::records(walk.batch(at, &header)?, &header)? {
            let newer = newest.is_none_or(|(_, timestamp_ms)| record.timestamp_ms > timestamp_ms);
            if newer && range.contains(&record.offset) {
                newest = Some((record.offset, record.timestamp_ms));
            }
        }
    }
    Ok(newest)
}
