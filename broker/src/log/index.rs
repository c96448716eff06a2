//! The sparse index of a segment: where a batch begins, about every [`SPACING_BYTES`].
//!
//! The index of the segment that is appended to is in memory; that of a closed one is a file beside it, read when a
//! reader needs it. It can always be made anew from the segment; a damaged file is noticed by its checksum.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// Distance of two entries in the segment; a reader scans at most this much before it finds its batch.
pub(crate) const SPACING_BYTES: u64 = 32 * 1024;
const MAGIC: &[u8; 8] = b"UTINDEX1";
const HEADER_BYTES: usize = 48;
const ENTRY_BYTES: usize = 24;

/// A batch's place, and the largest timestamp before it in the segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) offset: i64,
    pub(crate) position: u64,
    pub(crate) max_timestamp_before_ms: i64,
}

/// What the index file says of its segment as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Summary {
    /// Bytes of the segment that the index covers.
    pub(crate) size: u64,
    pub(crate) max_timestamp_ms: i64,
    pub(crate) created_ms: i64,
}

/// The index of one segment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Index {
    entries: Vec<Entry>,
}

impl Index {
    /// Notes the batch with `offset` at `position`, if the last entry is far enough away.
    pub(crate) fn note(&mut self, offset: i64, position: u64, max_timestamp_before_ms: i64) {
        if self.entries.last().is_none_or(|last| position >= last.position + SPACING_BYTES) {
            self.entries.push(Entry { offset, position, max_timestamp_before_ms });
        }
    }

    /// Where to begin the search for the batch with `offset`.
    pub(crate) fn position_of_offset(&self, offset: i64) -> u64 {
        let after = self.entries.partition_point(|entry| entry.offset <= offset);
        after.checked_sub(1).map_or(0, |i| self.entries[i].position)
    }

    /// Where to begin the search for the first record at or after a time.
    pub(crate) fn position_of_time(&self, timestamp_ms: i64) -> u64 {
        let after = self.entries.partition_point(|entry| entry.max_timestamp_before_ms < timestamp_ms);
        after.checked_sub(1).map_or(0, |i| self.entries[i].position)
    }

    /// Writes the index file; returns it, for the caller to have it synced.
    pub(crate) fn write(&self, path: &Path, summary: Summary) -> io::Result<Arc<File>> {
        use std::io::Write as _;
        let mut body = Vec::with_capacity(self.entries.len() * ENTRY_BYTES);
        for entry in &self.entries {
            body.extend(entry.offset.to_be_bytes());
            body.extend(entry.position.to_be_bytes());
            body.extend(entry.max_timestamp_before_ms.to_be_bytes());
        }
        let mut out = Vec::with_capacity(HEADER_BYTES + body.len());
        out.extend(MAGIC);
        out.extend(summary.size.to_be_bytes());
        out.extend(summary.max_timestamp_ms.to_be_bytes());
        out.extend(summary.created_ms.to_be_bytes());
        out.extend((self.entries.len() as u64).to_be_bytes());
        out.extend(crc32c::crc32c(&body).to_be_bytes());
        out.extend(crc32c::crc32c(&out).to_be_bytes());
        out.extend(body);
        let mut file = File::create(path)?;
        file.write_all(&out)?;
        Ok(Arc::new(file))
    }

    /// Reads an index file; `None` if it is missing or damaged.
    pub(crate) fn read(path: &Path) -> io::Result<Option<Index>> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let Some((_, count, checksum)) = parse_header(&bytes) else { return Ok(None) };
        let body = &bytes[HEADER_BYTES..];
        if body.len() as u64 != count.saturating_mul(ENTRY_BYTES as u64) || crc32c::crc32c(body) != checksum {
            return Ok(None);
        }
        let entry = |bytes: &[u8]| Entry {
            offset: u64_at(bytes, 0) as i64,
            position: u64_at(bytes, 8),
            max_timestamp_before_ms: u64_at(bytes, 16) as i64,
        };
        Ok(Some(Index { entries: body.chunks_exact(ENTRY_BYTES).map(entry).collect() }))
    }
}

/// Reads only what an index file says of its segment; `None` if it is missing or damaged.
pub(crate) fn read_summary(path: &Path) -> io::Result<Option<Summary>> {
    use std::os::unix::fs::FileExt as _;
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut header = [0_u8; HEADER_BYTES];
    match file.read_exact_at(&mut header, 0) {
        Ok(()) => Ok(parse_header(&header).map(|(summary, ..)| summary)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

/// Summary, number of entries, and their checksum.
fn parse_header(bytes: &[u8]) -> Option<(Summary, u64, u32)> {
    if bytes.len() < HEADER_BYTES || &bytes[..8] != MAGIC || crc32c::crc32c(&bytes[..44]) != u32_at(bytes, 44) {
        return None;
    }
    let summary = Summary {
        size: u64_at(bytes, 8),
        max_timestamp_ms: u64_at(bytes, 16) as i64,
        created_ms: u64_at(bytes, 24) as i64,
    };
    Some((summary, u64_at(bytes, 32), u32_at(bytes, 40)))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("the slice has 8 bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("the slice has 4 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_survives_its_file_and_damage_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("i.index");
        let mut index = Index::default();
        for i in 0..100_i64 {
            index.note(i * 10, i as u64 * SPACING_BYTES / 2, i);
        }
        assert_eq!(index.entries.len(), 50);
        let summary = Summary { size: 123, max_timestamp_ms: 99, created_ms: 5 };
        index.write(&path, summary).unwrap();
        assert_eq!(Index::read(&path).unwrap().unwrap(), index);
        assert_eq!(read_summary(&path).unwrap(), Some(summary));

        let bytes = std::fs::read(&path).unwrap();
        for damaged in [&bytes[..20], &bytes[..bytes.len() - 1], b""] {
            std::fs::write(&path, damaged).unwrap();
            assert_eq!(Index::read(&path).unwrap(), None);
        }
        std::fs::remove_file(&path).unwrap();
        assert_eq!(read_summary(&path).unwrap(), None);
    }

    #[test]
    fn searches_begin_at_or_before_the_target() {
        let mut index = Index::default();
        for i in 0..4_i64 {
            index.note(i * 10, i as u64 * SPACING_BYTES, [-1, 5, 5, 9][i as usize]);
        }
        let at = |i: u64| i * SPACING_BYTES;
        for (offset, entry) in [(-1, 0), (0, 0), (9, 0), (10, 1), (35, 3)] {
            assert_eq!(index.position_of_offset(offset), at(entry), "offset {offset}");
        }
        for (time, entry) in [(0, 0), (5, 0), (6, 2), (9, 2), (10, 3)] {
            assert_eq!(index.position_of_time(time), at(entry), "time {time}");
        }
        assert_eq!(Index::default().position_of_offset(5), 0);
    }
}
