//! A partition: append-only segments of record batches, byte for byte as clients sent them.
//!
//! Two locks keep file I/O away from who must not wait. `writer` is held while appending, only on I/O threads. `view`
//! is what readers and waiters need (offsets, segments), locked for moments, never across I/O. A third, `layout`, keeps
//! files from being replaced or removed between the look-up of a segment and its opening.
//!
//! Promises: offsets are dense and grow; a batch is visible to readers only after its write succeeded, and, where an
//! acknowledgement promises the disk, only after it is on the disk; a failed write leaves nothing behind; a batch that is
//! damaged on the disk is an error to who reads it and never handed out. Syncing is the business of [`crate::sync`].

mod compact;
mod describe;
mod index;
mod producers;
mod recovery;
mod replace;
mod segment;

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::Instant;

use bytes::Bytes;
use kafka_protocol::error::ResponseError;
use tokio::sync::Notify;

use crate::batch::{self, Header, Marker};
use crate::settings::TopicSettings;
use crate::sync::Syncer;
pub(crate) use describe::KnownProducer;
use index::{Index, Summary};
pub(crate) use producers::Aborted;
use producers::{Producers, Verdict};
pub use replace::{Replace, Rewriter};
use segment::Order;

/// Beyond this, dead waiters are swept out before a new one is added.
const WAITERS_SWEEP: usize = 64;

/// One partition of a topic.
pub(crate) struct Partition {
    dir: PathBuf,
    syncer: Arc<Syncer>,
    writer: Mutex<Writer>,
    view: Arc<Mutex<View>>,
    layout: RwLock<()>,
    /// Held while segments are written anew.
    rewriting: Mutex<()>,
}

struct Writer {
    settings: TopicSettings,
    producers: Producers,
    /// Closed segments and index files since the last checkpoint; they are synced before the next one.
    closed_files: Vec<Arc<File>>,
    bytes_since_checkpoint: u64,
    checkpointed: Instant,
    /// Below it, only the newest record of each key is left.
    compacted_to: i64,
    /// An append failed and none has succeeded since.
    failing: bool,
}

struct View {
    start: i64,
    /// Where the next batch goes.
    end: i64,
    /// Up to here readers may see; behind it lies what waits for the disk.
    visible: i64,
    /// First offset of the oldest transaction that is not decided.
    first_open: Option<i64>,
    /// Last stable offset: below it every transaction is decided, and everything is visible.
    stable: i64,
    /// Nothing was ever compacted away: every offset from `start` on stands in a batch.
    dense: bool,
    closed: VecDeque<Closed>,
    active: Active,
    aborted: Vec<Aborted>,
    waiters: Vec<Waiter>,
}

/// A reader that waits for more.
struct Waiter {
    notify: Weak<Notify>,
    /// It sees what is below the last stable offset, and nothing else is news to it.
    committed_only: bool,
}

impl View {
    fn offsets(&self) -> Offsets {
        Offsets { start: self.start, end: self.visible, stable: self.stable }
    }

    /// Lets readers see what is below `end`, and wakes those to whom something is new.
    fn show(&mut self, end: i64) {
        self.visible = self.visible.max(end);
        let stable = self.first_open.map_or(self.visible, |first| first.min(self.visible));
        let stable_moved = stable != self.stable;
        self.stable = stable;
        self.waiters.retain(|waiter| {
            if waiter.committed_only && !stable_moved {
                return true;
            }
            if let Some(waiter) = waiter.notify.upgrade() {
                waiter.notify_one();
            }
            false
        });
    }
}

/// A segment that nothing is appended to any more.
#[derive(Debug, Clone, Copy)]
struct Closed {
    base: i64,
    size: u64,
    max_timestamp_ms: i64,
}

/// The segment at the end.
struct Active {
    base: i64,
    file: Arc<File>,
    size: u64,
    index: Index,
    max_timestamp_ms: i64,
    created_ms: i64,
}

/// Offsets of a partition at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Offsets {
    pub(crate) start: i64,
    pub(crate) end: i64,
    pub(crate) stable: i64,
}

impl Offsets {
    /// The first offset that such a reader may not see yet.
    pub(crate) fn limit(&self, committed_only: bool) -> i64 {
        if committed_only { self.stable } else { self.end }
    }
}

/// Why a batch was not appended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AppendError {
    /// The batch is at fault.
    #[error("batch refused: {0}")]
    Refused(ResponseError),
    /// The disk is at fault; nothing was appended.
    #[error("append to segment")]
    Storage(#[from] io::Error),
}

/// What a fetch gets from a partition.
pub(crate) struct Read {
    pub(crate) records: Bytes,
    /// For `read_committed`: the aborted transactions that touch the records.
    pub(crate) aborted: Vec<Aborted>,
}

impl Partition {
    pub(crate) fn offsets(&self) -> Offsets {
        self.view().offsets()
    }

    /// The offsets; `waiter` is told when the one changes that such a reader waits for.
    pub(crate) fn watch(&self, waiter: &Arc<Notify>, committed_only: bool) -> Offsets {
        let mut view = self.view();
        if view.waiters.len() >= WAITERS_SWEEP {
            view.waiters.retain(|waiter| waiter.notify.strong_count() > 0);
        }
        // A reader looks again when another of its partitions changes; it waits here once all the same.
        if !view.waiters.iter().any(|known| std::ptr::eq(known.notify.as_ptr(), Arc::as_ptr(waiter))) {
            view.waiters.push(Waiter { notify: Arc::downgrade(waiter), committed_only });
        }
        view.offsets()
    }

    /// Bytes from the batch with `offset` to the end, about; `u64::MAX` if it is not in the segment at the end.
    pub(crate) fn bytes_behind(&self, offset: i64) -> u64 {
        let view = self.view();
        if offset < view.active.base {
            return u64::MAX;
        }
        view.active.size.saturating_sub(view.active.index.position_of_offset(offset))
    }

    pub(crate) fn set_settings(&self, settings: &TopicSettings) {
        let mut writer = self.writer();
        writer.settings = settings.clone();
        // What is being compacted may have holes from here on; without compaction none come.
        self.view().dense &= !settings.compact;
    }

    /// Appends one batch of a client; returns its base offset. For I/O threads.
    pub(crate) fn append(&self, batch: &[u8], now_ms: i64) -> Result<i64, AppendError> {
        let refuse = |error| Err(AppendError::Refused(error));
        let Some(header) = Header::parse(batch) else { return refuse(ResponseError::CorruptMessage) };
        // A request carries one batch for a partition, as the protocol asks since version 3 of Produce.
        if header.bytes != batch.len() || !batch::checksum_holds(batch, &header) {
            return refuse(ResponseError::CorruptMessage);
        }
        if header.is_control() || header.records < 1 || header.last_offset_delta != header.records - 1 {
            return refuse(ResponseError::InvalidRecord);
        }
        let mut writer = self.writer();
        if header.bytes > writer.settings.message_bytes_max {
            return refuse(ResponseError::MessageTooLarge);
        }
        if writer.settings.compact {
            let records = batch::records(batch, &header).map_err(|error| {
                let too_large = error.kind() == io::ErrorKind::FileTooLarge;
                AppendError::Refused(if too_large {
                    ResponseError::MessageTooLarge
                } else {
                    ResponseError::CorruptMessage
                })
            })?;
            if records.iter().any(|record| record.key.is_none()) {
                return refuse(ResponseError::InvalidRecord);
            }
        }
        match writer.producers.check(&header) {
            Err(error) => return refuse(error),
            Ok(Verdict::Duplicate(offset)) => return Ok(offset),
            Ok(Verdict::Append) => {}
        }
        let offset = self.view().end;
        let mut bytes = batch.to_vec();
        batch::place(&mut bytes, offset);
        let header = Header { base_offset: offset, ..header };
        self.write(&mut writer, &bytes, &header, now_ms)?;
        writer.producers.appended(&header, now_ms);
        self.publish(&writer, &header, None);
        Ok(offset)
    }

    /// Ends a transaction here, if it is open here. For I/O threads.
    pub(crate) fn end_transaction(&self, producer: (i64, i16), marker: Marker, now_ms: i64) -> io::Result<()> {
        let mut writer = self.writer();
        if !writer.producers.has_open(producer.0) {
            return Ok(());
        }
        let offset = self.view().end;
        let bytes = batch::marker(marker, producer.0, producer.1, offset, now_ms);
        let header = Header::parse(&bytes).expect("the broker's own batch is whole");
        self.write(&mut writer, &bytes, &header, now_ms)?;
        let aborted = writer.producers.ended(&header, Some(marker), now_ms);
        self.publish(&writer, &header, aborted);
        Ok(())
    }

    /// Writes a batch at the end, in a new segment if it is time for one.
    fn write(&self, writer: &mut Writer, bytes: &[u8], header: &Header, now_ms: i64) -> io::Result<()> {
        let written = self.try_write(writer, bytes, now_ms);
        match &written {
            Err(error) if !writer.failing => {
                tracing::warn!(dir = %self.dir.display(), %error, "append failed, producers are refused until it succeeds");
            }
            Ok(()) if writer.failing => tracing::info!(dir = %self.dir.display(), "appends succeed again"),
            _ => {}
        }
        writer.failing = written.is_err();
        written?;
        writer.bytes_since_checkpoint += header.bytes as u64;
        Ok(())
    }

    fn try_write(&self, writer: &mut Writer, bytes: &[u8], now_ms: i64) -> io::Result<()> {
        let (size, created_ms) = {
            let view = self.view();
            (view.active.size, view.active.created_ms)
        };
        let full = size + bytes.len() as u64 > writer.settings.segment_bytes;
        if size > 0 && (full || now_ms - created_ms > writer.settings.segment_ms) {
            self.roll(writer, now_ms)?;
        }
        let (file, size) = {
            let view = self.view();
            (view.active.file.clone(), view.active.size)
        };
        if let Err(error) = file.write_all_at(bytes, size) {
            // What was written is no batch; recovery would cut it off as well.
            let _ = file.set_len(size);
            return Err(error);
        }
        self.syncer.mark(&file);
        Ok(())
    }

    /// Makes a written batch visible, now or when it is on the disk.
    fn publish(&self, writer: &Writer, header: &Header, aborted: Option<Aborted>) {
        let mut view = self.view();
        let active = &mut view.active;
        active.index.note(header.base_offset, active.size, active.max_timestamp_ms);
        active.size += header.bytes as u64;
        active.max_timestamp_ms = active.max_timestamp_ms.max(header.max_timestamp_ms);
        let end = header.last_offset() + 1;
        view.end = end;
        view.first_open = writer.producers.first_open();
        view.aborted.extend(aborted);
        if self.syncer.acknowledges() {
            let view = Arc::downgrade(&self.view);
            self.syncer.afterwards(Box::new(move || {
                if let Some(view) = view.upgrade() {
                    lock(&view).show(end);
                }
            }));
        } else {
            view.show(end);
        }
    }

    /// Closes the active segment and begins another.
    fn roll(&self, writer: &mut Writer, now_ms: i64) -> io::Result<()> {
        let (base, size, index, max_timestamp_ms, created_ms, end, file) = {
            let view = self.view();
            let a = &view.active;
            (a.base, a.size, a.index.clone(), a.max_timestamp_ms, a.created_ms, view.end, a.file.clone())
        };
        let path = segment::index_path(&self.dir, base);
        let index_file = index.write(&path, Summary { size, max_timestamp_ms, created_ms })?;
        let next = Arc::new(segment::open(&self.dir, end)?);
        let folder = Arc::new(File::open(&self.dir)?);
        for file in [&index_file, &next, &folder] {
            self.syncer.mark(file);
        }
        writer.closed_files.extend([file, index_file, folder]);
        let mut view = self.view();
        view.closed.push_back(Closed { base, size, max_timestamp_ms });
        view.active = Active {
            base: end,
            file: next,
            size: 0,
            index: Index::default(),
            max_timestamp_ms: -1,
            created_ms: now_ms,
        };
        Ok(())
    }

    /// Batches from `offset` on; empty if there are none yet. For I/O threads.
    pub(crate) fn read(&self, offset: i64, committed_only: bool, max_bytes: usize) -> io::Result<Read> {
        let mut at = offset;
        loop {
            let Some((source, limit)) = self.locate(at, committed_only)? else {
                return Ok(Read { records: Bytes::new(), aborted: Vec::new() });
            };
            let extent = (source.from, source.size);
            let records = segment::read(&source.file, extent, at, limit, source.order, max_bytes)?;
            if !records.is_empty() {
                let aborted = if committed_only { self.aborted_in(&records, offset) } else { Vec::new() };
                return Ok(Read { records, aborted });
            }
            // Compaction may have left nothing from here to the end of the segment.
            let Some(next) = source.next_base else { return Ok(Read { records, aborted: Vec::new() }) };
            at = next;
        }
    }

    fn aborted_in(&self, records: &[u8], offset: i64) -> Vec<Aborted> {
        let mut end = offset;
        let mut rest = records;
        while let Some(header) = Header::parse(rest) {
            end = header.last_offset() + 1;
            rest = &rest[header.bytes..];
        }
        let view = self.view();
        view.aborted.iter().filter(|aborted| aborted.last >= offset && aborted.first < end).copied().collect()
    }

    /// The segment that holds `offset` and the reader's limit; `None` if the reader is at its limit.
    fn locate(&self, offset: i64, committed_only: bool) -> io::Result<Option<(Source, i64)>> {
        let _layout = self.layout.read().unwrap_or_else(PoisonError::into_inner);
        let (base, size, next_base, dense, limit) = {
            let view = self.view();
            let limit = view.offsets().limit(committed_only);
            if offset >= limit {
                return Ok(None);
            }
            if offset >= view.active.base {
                let a = &view.active;
                let from = a.index.position_of_offset(offset);
                let order = Order { dense: view.dense, ceiling: view.end };
                return Ok(Some((Source { file: a.file.clone(), from, size: a.size, next_base: None, order }, limit)));
            }
            let i = view.closed.partition_point(|segment| segment.base <= offset).saturating_sub(1);
            let Some(segment) = view.closed.get(i) else { return Ok(None) };
            let next = view.closed.get(i + 1).map_or(view.active.base, |segment| segment.base);
            (segment.base, segment.size, next, view.dense, limit)
        };
        let (file, index) = self.open_closed(base)?;
        let from = index.position_of_offset(offset);
        let order = Order { dense, ceiling: next_base };
        Ok(Some((Source { file: Arc::new(file), from, size, next_base: Some(next_base), order }, limit)))
    }

    /// A closed segment with its index; without one the search begins at its beginning. `layout` must be held.
    fn open_closed(&self, base: i64) -> io::Result<(File, Index)> {
        let file = File::open(segment::log_path(&self.dir, base))?;
        Ok((file, Index::read(&segment::index_path(&self.dir, base))?.unwrap_or_default()))
    }

    /// Offset and timestamp of the first record at or after a time. For I/O threads.
    pub(crate) fn find_time(&self, timestamp_ms: i64, committed_only: bool) -> io::Result<Option<(i64, i64)>> {
        let (start, limit, bases, active) = {
            let view = self.view();
            let limit = view.offsets().limit(committed_only);
            let closed = view.closed.iter().filter(|segment| segment.max_timestamp_ms >= timestamp_ms);
            let bases: Vec<i64> = closed.map(|segment| segment.base).collect();
            let a = &view.active;
            (view.start, limit, bases, (a.file.clone(), a.index.position_of_time(timestamp_ms), a.size))
        };
        for base in bases {
            let (file, index, size) = {
                let _layout = self.layout.read().unwrap_or_else(PoisonError::into_inner);
                let segment = self.view().closed.iter().find(|segment| segment.base == base).copied();
                // It may have been deleted meanwhile.
                let Some(segment) = segment else { continue };
                let (file, index) = self.open_closed(base)?;
                (file, index, segment.size)
            };
            let from = index.position_of_time(timestamp_ms);
            if let Some(found) = find_time(&file, from, size, timestamp_ms, start..limit)? {
                return Ok(Some(found));
            }
        }
        let (file, from, size) = active;
        find_time(&file, from, size, timestamp_ms, start..limit)
    }

    /// Moves the start to `offset` (at most what is visible) and removes segments below it; returns the start.
    pub(crate) fn delete_before(&self, offset: i64) -> io::Result<i64> {
        let _layout = self.layout.write().unwrap_or_else(PoisonError::into_inner);
        let (start, removed) = {
            let mut view = self.view();
            view.start = view.start.max(offset.min(view.visible));
            let start = view.start;
            let mut removed = Vec::new();
            while let Some(segment) = view.closed.front().copied() {
                let next = view.closed.get(1).map_or(view.active.base, |segment| segment.base);
                if next > start {
                    break;
                }
                view.closed.pop_front();
                removed.push(segment.base);
            }
            view.aborted.retain(|aborted| aborted.last >= start);
            (start, removed)
        };
        for base in removed {
            self.remove_segment(base)?;
        }
        Ok(start)
    }

    /// Removes a segment's files; the log first, so that an index never stands for a log that is there in part.
    fn remove_segment(&self, base: i64) -> io::Result<()> {
        for path in [segment::log_path(&self.dir, base), segment::index_path(&self.dir, base)] {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// The start that the topic's retention asks for now, if it is beyond the present one. Rolls an active segment
    /// that has expired as a whole. For I/O threads.
    pub(crate) fn retention_start(&self, now_ms: i64) -> io::Result<Option<i64>> {
        let mut writer = self.writer();
        if !writer.settings.delete {
            return Ok(None);
        }
        let (ms, bytes) = (writer.settings.retention_ms, writer.settings.retention_bytes);
        let expired = |max_timestamp_ms: i64| ms >= 0 && max_timestamp_ms < now_ms - ms;
        let roll = {
            let view = self.view();
            view.active.size > 0 && view.stable == view.end && expired(view.active.max_timestamp_ms)
        };
        if roll {
            self.roll(&mut writer, now_ms)?;
        }
        let view = self.view();
        let mut size = view.active.size + view.closed.iter().map(|segment| segment.size).sum::<u64>();
        let mut start = None;
        for (i, segment) in view.closed.iter().enumerate() {
            let next = view.closed.get(i + 1).map_or(view.active.base, |segment| segment.base);
            size -= segment.size;
            let over = bytes >= 0 && size >= bytes as u64;
            if next > view.stable || !(over || expired(segment.max_timestamp_ms)) {
                break;
            }
            start = Some(next);
        }
        Ok(start.filter(|start| *start > view.start))
    }

    /// Forgets producers, see [`Producers::expire`].
    pub(crate) fn expire_producers(&self, before_ms: i64, most: usize) {
        self.writer().producers.expire(before_ms, most);
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn view(&self) -> MutexGuard<'_, View> {
        lock(&self.view)
    }
}

fn lock(view: &Mutex<View>) -> MutexGuard<'_, View> {
    view.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Source {
    file: Arc<File>,
    from: u64,
    size: u64,
    /// Base of the segment behind, unless this is the last.
    next_base: Option<i64>,
    order: Order,
}

fn find_time(
    file: &File,
    from: u64,
    size: u64,
    timestamp_ms: i64,
    range: std::ops::Range<i64>,
) -> io::Result<Option<(i64, i64)>> {
    let mut walk = segment::Walk::new(file, from, size);
    while let Some((at, header)) = walk.next()? {
        let below = header.max_timestamp_ms < timestamp_ms || header.last_offset() < range.start;
        if below || header.is_control() {
            continue;
        }
        let records = match batch::records(walk.batch(at, &header)?, &header) {
            // It is not unpacked for one record: its first one is the last that is surely not too late.
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                return Ok(Some((header.base_offset.max(range.start), header.max_timestamp_ms)));
            }
            records => records?,
        };
        let found = records.iter().find(|r| r.timestamp_ms >= timestamp_ms && range.contains(&r.offset));
        if let Some(record) = found {
            return Ok(Some((record.offset, record.timestamp_ms)));
        }
    }
    walk.whole()?;
    Ok(None)
}
