//! Compaction: of the closed segments below the last stable offset, keeps the newest record of each key.
//!
//! Done as Apache Kafka's cleaner does: a bounded map from key hash to newest offset over what was not compacted yet,
//! then every older segment is written anew without what the map supersedes, aborted records included. Readers go on
//! with the old file until the new one takes its name. Offsets do not change. Control batches stay.

use std::collections::HashMap;
use std::fs::File;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::{self, Write as _};
use std::sync::PoisonError;

use super::index::{Index, Summary};
use super::producers::Aborted;
use super::segment::{self, Walk};
use super::{Closed, Partition};
use crate::batch::{self, Header, Record};
use crate::sync;

/// The newest offset of each key, in offsets `..upto`.
struct Newest {
    offsets: HashMap<u128, i64>,
    upto: i64,
}

/// What there is to compact.
struct Work {
    /// With the offset at which the next segment begins, ascending.
    segments: Vec<(Closed, i64)>,
    /// Below it, compaction has been before.
    from: i64,
    tombstones_before_ms: i64,
}

/// What decides whether a record stays.
struct Rules<'a> {
    newest: &'a Newest,
    aborted: &'a [Aborted],
    /// Deletions (keys without value) older than this have been seen by every reader that keeps up.
    tombstones_before_ms: i64,
}

impl Partition {
    /// Compacts what the topic's settings ask for; returns the number of records dropped. The map holds at most
    /// `keys_max` keys (about 40 bytes each); what is beyond them waits for the next call. For I/O threads.
    pub(crate) fn compact(&self, now_ms: i64, keys_max: usize) -> io::Result<u64> {
        let _alone = self.rewriting.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(work) = self.compactable(now_ms)? else { return Ok(0) };
        let aborted = self.view().aborted.clone();
        let newest = self.newest(&work, &aborted, keys_max)?;
        let rules = Rules { newest: &newest, aborted: &aborted, tombstones_before_ms: work.tombstones_before_ms };
        let mut dropped = 0;
        for (segment, _) in work.segments.iter().filter(|(segment, _)| segment.base < newest.upto) {
            dropped += self.write_anew(*segment, |bytes, header, dropped| rules.apply(bytes, header, dropped))?;
        }
        let mut writer = self.writer();
        writer.compacted_to = newest.upto;
        // So that the next checkpoint, which says so, comes with this round.
        writer.bytes_since_checkpoint = u64::MAX / 2;
        drop(writer);
        // Their records are gone, so no reader needs to be told of them.
        self.view().aborted.retain(|aborted| aborted.last >= newest.upto);
        Ok(dropped)
    }

    /// The closed segments below the last stable offset, if enough of them is new.
    fn compactable(&self, now_ms: i64) -> io::Result<Option<Work>> {
        let mut writer = self.writer();
        if !writer.settings.compact {
            return Ok(None);
        }
        let old = {
            let view = self.view();
            view.active.size > 0 && now_ms - view.active.created_ms > writer.settings.segment_ms
        };
        if old {
            self.roll(&mut writer, now_ms)?;
        }
        let view = self.view();
        let end = |i: usize| view.closed.get(i + 1).map_or(view.active.base, |segment| segment.base);
        let segments = view.closed.iter().enumerate().map(|(i, segment)| (*segment, end(i)));
        let segments: Vec<(Closed, i64)> = segments.take_while(|(_, end)| *end <= view.stable).collect();
        let from = writer.compacted_to;
        let bytes = |from: i64| segments.iter().filter(|(_, end)| *end > from).map(|(s, _)| s.size).sum::<u64>() as f64;
        let (new, all) = (bytes(from), bytes(0));
        let worth_it = new > 0.0 && new / all >= writer.settings.dirty_ratio_min;
        let tombstones_before_ms = now_ms - writer.settings.delete_retention_ms;
        Ok(worth_it.then_some(Work { segments, from, tombstones_before_ms }))
    }

    fn newest(&self, work: &Work, aborted: &[Aborted], keys_max: usize) -> io::Result<Newest> {
        let mut newest = Newest { offsets: HashMap::new(), upto: work.from };
        for (segment, end) in work.segments.iter().filter(|(_, end)| *end > work.from) {
            let file = File::open(segment::log_path(&self.dir, segment.base))?;
            let mut walk = Walk::new(&file, 0, segment.size);
            while let Some((at, header)) = walk.next()? {
                if header.last_offset() < work.from {
                    continue;
                }
                if newest.offsets.len() >= keys_max {
                    return Ok(newest);
                }
                if !header.is_control() {
                    for record in records(walk.batch(at, &header)?, &header)?.unwrap_or_default() {
                        if let Some(key) = record.key.filter(|_| !is_aborted(&header, record.offset, aborted)) {
                            newest.offsets.insert(hash(&key), record.offset);
                        }
                    }
                }
                newest.upto = header.last_offset() + 1;
            }
            walk.whole()?;
            newest.upto = *end;
        }
        Ok(newest)
    }

    /// Writes one closed segment anew, each batch as `apply` says: another one, none if that is empty, or the same. It counts
    /// the records that it changes; if there are any, the new file takes the old one's name. Returns their number.
    pub(super) fn write_anew(
        &self,
        segment: Closed,
        apply: impl Fn(&[u8], &Header, &mut u64) -> io::Result<Option<Vec<u8>>>,
    ) -> io::Result<u64> {
        let path = segment::log_path(&self.dir, segment.base);
        let file = File::open(&path)?;
        let temporary = path.with_extension("compacting");
        let mut out = io::BufWriter::new(File::create(&temporary)?);
        let (mut size, mut changed, mut max_timestamp_ms) = (0_u64, 0_u64, -1);
        let mut index = Index::default();
        let mut walk = Walk::new(&file, 0, segment.size);
        while let Some((at, header)) = walk.next()? {
            let bytes = walk.batch(at, &header)?;
            if !batch::checksum_holds(bytes, &header) {
                return Err(segment::damaged(at));
            }
            let rewritten = apply(bytes, &header, &mut changed)?;
            let bytes = rewritten.as_deref().unwrap_or(bytes);
            if !bytes.is_empty() {
                index.note(header.base_offset, size, max_timestamp_ms);
                max_timestamp_ms = max_timestamp_ms.max(header.max_timestamp_ms);
                out.write_all(bytes)?;
                size += bytes.len() as u64;
            }
        }
        // What cannot be read must not be taken for what nobody needs.
        walk.whole()?;
        let out = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        if changed == 0 {
            std::fs::remove_file(&temporary)?;
            return Ok(0);
        }
        sync::to_disk(&out)?;
        let _layout = self.layout.write().unwrap_or_else(PoisonError::into_inner);
        let Some(at) = self.view().closed.iter().position(|other| other.base == segment.base) else {
            // Retention was faster.
            std::fs::remove_file(&temporary)?;
            return Ok(changed);
        };
        // The first segment stays even if it is empty: its name says where the log begins.
        if size == 0 && at > 0 {
            std::fs::remove_file(&temporary)?;
            self.view().closed.remove(at);
            self.remove_segment(segment.base)?;
            return Ok(changed);
        }
        let index_path = segment::index_path(&self.dir, segment.base);
        // Never an old index beside the new log, wherever the process ends.
        let _ = std::fs::remove_file(&index_path);
        std::fs::rename(&temporary, &path)?;
        let created_ms = segment.max_timestamp_ms;
        index.write(&index_path, Summary { size, max_timestamp_ms, created_ms })?;
        self.view().closed[at] = Closed { base: segment.base, size, max_timestamp_ms };
        Ok(changed)
    }
}

impl Rules<'_> {
    /// The batch without the records that go; `None` if all stay, empty if none does.
    fn apply(&self, bytes: &[u8], header: &Header, dropped: &mut u64) -> io::Result<Option<Vec<u8>>> {
        if header.is_control() {
            return Ok(None);
        }
        let Some(mut records) = records(bytes, header)? else { return Ok(None) };
        let before = records.len();
        records.retain(|record| self.keeps(header, record));
        *dropped += (before - records.len()) as u64;
        Ok(match records.len() {
            0 => Some(Vec::new()),
            after if after == before => None,
            _ => Some(batch::with_records(header, &records)),
        })
    }

    fn keeps(&self, header: &Header, record: &Record) -> bool {
        if record.offset >= self.newest.upto {
            return true;
        }
        if is_aborted(header, record.offset, self.aborted) {
            return false;
        }
        // Keyless records are refused in compacted topics, but a topic may have become one later.
        let Some(key) = &record.key else { return true };
        let superseded = self.newest.offsets.get(&hash(key)).is_some_and(|newest| *newest > record.offset);
        let spent = record.value.is_none() && record.timestamp_ms < self.tombstones_before_ms;
        !superseded && !spent
    }
}

/// The records of a batch; `None` if it unpacks to more than memory is there for, so that it stays as it is. Such a
/// batch can only be in a topic that was not compacted when it came.
fn records(batch: &[u8], header: &Header) -> io::Result<Option<Vec<Record>>> {
    match batch::records(batch, header) {
        Err(error) if error.kind() == io::ErrorKind::FileTooLarge => Ok(None),
        records => records.map(Some),
    }
}

fn is_aborted(header: &Header, offset: i64, aborted: &[Aborted]) -> bool {
    let covers = |a: &Aborted| a.producer_id == header.producer_id && (a.first..=a.last).contains(&offset);
    header.is_transactional() && aborted.iter().any(covers)
}

/// 128 bits, so that two keys of one topic do not meet by chance.
fn hash(key: &[u8]) -> u128 {
    let half = |seed: u8| {
        let mut hasher = DefaultHasher::new();
        seed.hash(&mut hasher);
        key.hash(&mut hasher);
        hasher.finish()
    };
    (u128::from(half(0)) << 64) | u128::from(half(1))
}
