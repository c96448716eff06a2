//! Segment files: names, and walking over the batches in one.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};

use crate::batch::{self, HEADER_BYTES, Header};

/// Bytes read at once when walking over headers.
const CHUNK_BYTES: usize = 64 * 1024;

pub(crate) fn log_path(dir: &Path, base_offset: i64) -> PathBuf {
    dir.join(format!("{base_offset:020}.log"))
}

pub(crate) fn index_path(dir: &Path, base_offset: i64) -> PathBuf {
    dir.join(format!("{base_offset:020}.index"))
}

/// Opens or creates a segment for appending.
pub(crate) fn open(dir: &Path, base_offset: i64) -> io::Result<File> {
    OpenOptions::new().create(true).truncate(false).read(true).write(true).open(log_path(dir, base_offset))
}

/// Base offsets of the segments in a folder, ascending.
pub(crate) fn list(dir: &Path) -> io::Result<Vec<i64>> {
    let mut bases = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name();
        let base: Option<i64> =
            name.to_str().and_then(|name| name.strip_suffix(".log")).and_then(|base| base.parse().ok());
        bases.extend(base);
    }
    bases.sort_unstable();
    Ok(bases)
}

/// Goes over the batches of a segment from a position on, as far as they are whole.
pub(crate) struct Walk<'f> {
    file: &'f File,
    next: u64,
    end: u64,
    chunk: Vec<u8>,
    chunk_at: u64,
}

impl<'f> Walk<'f> {
    /// Walks over `from..end`; `from` must be where a batch begins.
    pub(crate) fn new(file: &'f File, from: u64, end: u64) -> Walk<'f> {
        Walk { file, next: from, end, chunk: Vec::new(), chunk_at: from }
    }

    /// Position and header of the next batch; `None` where there is no whole one.
    pub(crate) fn next(&mut self) -> io::Result<Option<(u64, Header)>> {
        let at = self.next;
        if at + HEADER_BYTES as u64 > self.end {
            return Ok(None);
        }
        let Some(header) = Header::parse(self.bytes(at, HEADER_BYTES)?) else { return Ok(None) };
        if at + header.bytes as u64 > self.end {
            return Ok(None);
        }
        self.next = at + header.bytes as u64;
        Ok(Some((at, header)))
    }

    /// The whole batch that [`Walk::next`] found at `at`.
    pub(crate) fn batch(&mut self, at: u64, header: &Header) -> io::Result<&[u8]> {
        self.bytes(at, header.bytes)
    }

    /// Where the next batch would begin.
    pub(crate) fn position(&self) -> u64 {
        self.next
    }

    /// An error if it ended before its end: what stands there is no whole batch.
    pub(crate) fn whole(&self) -> io::Result<()> {
        if self.next == self.end { Ok(()) } else { Err(damaged(self.next)) }
    }

    fn bytes(&mut self, at: u64, length: usize) -> io::Result<&[u8]> {
        let have = self.chunk_at + self.chunk.len() as u64;
        if at < self.chunk_at || at + length as u64 > have {
            let want = (self.end - at).min(CHUNK_BYTES.max(length) as u64) as usize;
            self.chunk.resize(want, 0);
            self.chunk_at = at;
            self.file.read_exact_at(&mut self.chunk, at)?;
        }
        let from = (at - self.chunk_at) as usize;
        Ok(&self.chunk[from..from + length])
    }
}

/// How the offsets of a segment's batches must follow each other: a batch's checksum does not cover its offset.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Order {
    /// Nothing was compacted away: each batch begins where the one before it ends.
    pub(crate) dense: bool,
    /// Where the next segment begins, or the log ends.
    pub(crate) ceiling: i64,
}

impl Order {
    /// Whether a batch may stand behind the one whose last offset is `before`.
    fn allows(self, header: &Header, before: Option<i64>) -> bool {
        let follows = match before {
            Some(before) if self.dense => header.base_offset == before + 1,
            Some(before) => header.base_offset > before,
            None => true,
        };
        follows && header.last_offset_delta >= 0 && header.last_offset() < self.ceiling
    }
}

/// Whole batches from the one that holds `offset` on, below the offset `limit`, up to `max_bytes` but at least one;
/// their checksums and their order are looked at. `from` is where to begin the search, `end` the size of the segment. Empty
/// if there are none, which is damage where the segment must hold the offset.
pub(crate) fn read(
    file: &File,
    (from, end): (u64, u64),
    offset: i64,
    limit: i64,
    order: Order,
    max_bytes: usize,
) -> io::Result<Bytes> {
    let mut walk = Walk::new(file, from, end);
    let mut before = None;
    let (at, first) = loop {
        match walk.next()? {
            Some((at, header)) if !order.allows(&header, before) => return Err(damaged(at)),
            Some((_, header)) if header.last_offset() < offset => before = Some(header.last_offset()),
            Some((at, header)) if order.dense && header.base_offset > offset => return Err(damaged(at)),
            Some((at, header)) if header.base_offset < limit => break (at, header),
            Some(_) => return Ok(Bytes::new()),
            None => {
                walk.whole()?;
                return if order.dense { Err(damaged(end)) } else { Ok(Bytes::new()) };
            }
        }
    };
    let want = (end - at).min(max_bytes.max(first.bytes) as u64) as usize;
    let mut bytes = BytesMut::zeroed(want);
    file.read_exact_at(&mut bytes, at)?;
    let mut whole = 0;
    while let Some(header) = Header::parse(&bytes[whole..]) {
        if whole + header.bytes > bytes.len() || header.base_offset >= limit {
            break;
        }
        if !batch::checksum_holds(&bytes[whole..], &header) || !order.allows(&header, before) {
            // What is whole in front of it is handed out first.
            if whole == 0 {
                return Err(damaged(at));
            }
            break;
        }
        before = Some(header.last_offset());
        whole += header.bytes;
    }
    bytes.truncate(whole);
    Ok(bytes.freeze())
}

/// The error of reading what is no batch, or not the one that was written.
pub(crate) fn damaged(at: u64) -> io::Error {
    let told = format!(
        "segment is damaged at byte {at}: the disk did not keep what was written; delete the records up to behind the \
         damage, or restore the data directory from a backup"
    );
    io::Error::new(io::ErrorKind::InvalidData, told)
}
