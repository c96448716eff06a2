//! Opening a partition: what the last checkpoint says, then a scan of what was appended behind it.
//!
//! A checkpoint is a file with the state that only the batches tell (producers, aborted transactions) up to a position;
//! the segments up to it are synced before it is written. Behind it every batch is read and checked; at the first that
//! is not whole the segment is cut off, because a write that was torn by the end of the process was acknowledged to
//! nobody. Segments behind a cut are set aside as `.cut`, so that the log stays without holes. Damage in front of the
//! checkpoint is not looked for: readers notice it by the batch's checksum, and by offsets that do not follow each other.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::index::{self, Index, Summary};
use super::producers::{Aborted, Producers};
use super::segment::{self, Walk};
use super::{Active, Closed, Partition, View, Writer};
use crate::batch;
use crate::clock::not_after;
use crate::settings::TopicSettings;
use crate::sync::{self, Syncer};

const CHECKPOINT: &str = "checkpoint";
/// A checkpoint that does not cover everything is this old at most: what is damaged in front of it is told to who reads it,
/// what is not whole behind it is cut off.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(10);

#[derive(Debug, Default, Serialize, Deserialize)]
struct Checkpoint {
    /// The segment that was appended to, and how much of it this checkpoint covers.
    segment: i64,
    position: u64,
    end: i64,
    compacted_to: i64,
    producers: Producers,
    aborted: Vec<Aborted>,
}

/// What opening a partition did.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Recovered {
    pub(crate) scanned_bytes: u64,
    pub(crate) cut_bytes: u64,
}

/// A partition's log while it is being opened.
struct Opening {
    dir: PathBuf,
    end: i64,
    producers: Producers,
    aborted: Vec<Aborted>,
    /// Nothing was ever compacted away.
    dense: bool,
    done: Recovered,
}

impl Partition {
    /// Opens the partition in `dir`, which is made if it is not there. Offsets below `start` were deleted.
    pub(crate) fn open(
        dir: PathBuf,
        settings: TopicSettings,
        syncer: Arc<Syncer>,
        start: i64,
        now_ms: i64,
    ) -> io::Result<(Partition, Recovered)> {
        std::fs::create_dir_all(&dir)?;
        let mut bases = segment::list(&dir)?;
        if bases.is_empty() {
            bases.push(start);
        }
        let checkpoint = read_checkpoint(&dir)?.filter(|checkpoint| bases.contains(&checkpoint.segment));
        let covered = |checkpoint: &Checkpoint| {
            let file = std::fs::metadata(segment::log_path(&dir, checkpoint.segment));
            file.is_ok_and(|file| file.len() >= checkpoint.position)
        };
        let checkpoint = checkpoint.filter(covered).unwrap_or(Checkpoint {
            segment: bases[0],
            end: bases[0],
            ..Checkpoint::default()
        });
        let mut opening = Opening {
            dir: dir.clone(),
            end: checkpoint.end,
            producers: checkpoint.producers,
            aborted: checkpoint.aborted,
            dense: !settings.compact && checkpoint.compacted_to == 0,
            done: Recovered::default(),
        };
        let first = bases[0];
        let mut closed = Vec::new();
        let mut active = None;
        let mut behind = Vec::new();
        for base in bases {
            if base < checkpoint.segment {
                closed.push(opening.closed(base)?);
            } else {
                behind.push(base);
            }
        }
        for (i, base) in behind.iter().copied().enumerate() {
            let from = if base == checkpoint.segment { checkpoint.position } else { 0 };
            let (scanned, whole) = opening.scan(base, from, behind.get(i + 1).copied(), now_ms)?;
            if syncer.acknowledges() {
                // What readers see from now on must not be lost by a power cut; a crash may have left it unsynced.
                sync::to_disk(&scanned.file)?;
            }
            if let Some(before) = active.replace(scanned) {
                closed.push(opening.close(&before)?);
            }
            if !whole {
                set_aside(&dir, &behind[i + 1..])?;
                break;
            }
        }
        let active: Active = active.expect("there is at least one segment at or behind the checkpoint");
        syncer.mark(&active.file);
        syncer.mark(&Arc::new(std::fs::File::open(&dir)?));
        let done = opening.done;
        let start = start.max(first).min(opening.end);
        opening.aborted.retain(|aborted| aborted.last >= start);
        let stable = opening.producers.first_open().unwrap_or(opening.end);
        let view = View {
            start,
            end: opening.end,
            visible: opening.end,
            first_open: opening.producers.first_open(),
            stable,
            dense: opening.dense,
            closed: closed.into(),
            active,
            aborted: opening.aborted,
            waiters: Vec::new(),
        };
        let writer = Writer {
            settings,
            producers: opening.producers,
            closed_files: Vec::new(),
            // So that the next checkpoint is not put off by yet another scan's worth of bytes.
            bytes_since_checkpoint: done.scanned_bytes,
            checkpointed: Instant::now(),
            compacted_to: checkpoint.compacted_to,
            failing: false,
        };
        let partition = Partition {
            dir,
            syncer,
            writer: Mutex::new(writer),
            view: Arc::new(Mutex::new(view)),
            layout: RwLock::new(()),
            rewriting: Mutex::new(()),
        };
        Ok((partition, done))
    }

    /// Writes a checkpoint if at least `after_bytes` were appended since the last, or some, and it is [`CHECKPOINT_EVERY`]
    /// old. For I/O threads.
    pub(crate) fn checkpoint(&self, after_bytes: u64) -> io::Result<()> {
        let (checkpoint, files, index, summary) = {
            let mut writer = self.writer();
            let old = writer.bytes_since_checkpoint > 0 && writer.checkpointed.elapsed() >= CHECKPOINT_EVERY;
            if writer.bytes_since_checkpoint < after_bytes.max(1) && writer.closed_files.is_empty() && !old {
                return Ok(());
            }
            writer.bytes_since_checkpoint = 0;
            writer.checkpointed = Instant::now();
            let mut files = std::mem::take(&mut writer.closed_files);
            let view = self.view();
            let active = &view.active;
            files.push(active.file.clone());
            let checkpoint = Checkpoint {
                segment: active.base,
                position: active.size,
                end: view.end,
                compacted_to: writer.compacted_to,
                producers: writer.producers.clone(),
                aborted: view.aborted.clone(),
            };
            let summary =
                Summary { size: active.size, max_timestamp_ms: active.max_timestamp_ms, created_ms: active.created_ms };
            (checkpoint, files, active.index.clone(), summary)
        };
        let written = self.write_checkpoint(&checkpoint, &files, &index, summary);
        if written.is_err() {
            // The next one syncs these files again.
            self.writer().closed_files.extend(files);
        }
        written
    }

    fn write_checkpoint(
        &self,
        checkpoint: &Checkpoint,
        files: &[Arc<std::fs::File>],
        index: &Index,
        summary: Summary,
    ) -> io::Result<()> {
        let _layout = self.layout.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        if self.view().active.base == checkpoint.segment {
            // A segment closed meanwhile has a better index already.
            let index_file = index.write(&segment::index_path(&self.dir, checkpoint.segment), summary)?;
            sync::to_disk(&index_file)?;
        }
        for file in files {
            sync::to_disk(file)?;
        }
        let body = serde_json::to_vec(checkpoint)?;
        let mut bytes = format!("{:08x}\n", crc32c::crc32c(&body)).into_bytes();
        bytes.extend(body);
        crate::metadata::replace_file(&self.dir.join(CHECKPOINT), &bytes)
    }
}

impl Opening {
    /// A segment in front of the checkpoint; its index is made anew if it is missing or of another size.
    fn closed(&mut self, base: i64) -> io::Result<Closed> {
        let size = std::fs::metadata(segment::log_path(&self.dir, base))?.len();
        let summary = index::read_summary(&segment::index_path(&self.dir, base))?;
        if let Some(summary) = summary.filter(|summary| summary.size == size) {
            return Ok(Closed { base, size, max_timestamp_ms: summary.max_timestamp_ms });
        }
        let active = Active { size, ..self.index(base, size)? };
        self.close(&active)
    }

    /// Walks over a segment for its index alone.
    fn index(&mut self, base: i64, end: u64) -> io::Result<Active> {
        let file = segment::open(&self.dir, base)?;
        let created_ms = modified_ms(&file)?;
        let (mut index, mut max_timestamp_ms) = (Index::default(), -1);
        let mut walk = Walk::new(&file, 0, end);
        while let Some((at, header)) = walk.next()? {
            index.note(header.base_offset, at, max_timestamp_ms);
            max_timestamp_ms = max_timestamp_ms.max(header.max_timestamp_ms);
        }
        let size = walk.position();
        self.done.scanned_bytes += size;
        if let Err(error) = walk.whole() {
            // It stays as long as it is: readers are told where they come upon the damage, and read on behind it.
            tracing::error!(dir = %self.dir.display(), segment = base, %error, "a segment cannot be read to its end");
        }
        Ok(Active { base, file: Arc::new(file), size, index, max_timestamp_ms, created_ms })
    }

    fn close(&self, active: &Active) -> io::Result<Closed> {
        let Active { base, size, max_timestamp_ms, created_ms, .. } = *active;
        let path = segment::index_path(&self.dir, base);
        active.index.write(&path, Summary { size, max_timestamp_ms, created_ms })?;
        Ok(Closed { base, size, max_timestamp_ms })
    }

    /// Reads and checks a segment from `from` on and cuts off what is not whole; says whether there was nothing to cut.
    /// The segment behind it begins at `next`.
    fn scan(&mut self, base: i64, from: u64, next: Option<i64>, now_ms: i64) -> io::Result<(Active, bool)> {
        let path = segment::index_path(&self.dir, base);
        let known = index::read_summary(&path)?.filter(|summary| summary.size == from);
        let known = match known {
            Some(summary) if from > 0 => Index::read(&path)?.map(|index| (index, summary)),
            _ => None,
        };
        let mut active = match known {
            Some((index, summary)) => Active {
                base,
                file: Arc::new(segment::open(&self.dir, base)?),
                size: from,
                index,
                max_timestamp_ms: summary.max_timestamp_ms,
                created_ms: not_after(summary.created_ms, now_ms),
            },
            None => self.index(base, from)?,
        };
        let size = active.file.metadata()?.len();
        if size == 0 {
            active.created_ms = now_ms;
        }
        self.end = self.end.max(base);
        let file = active.file.clone();
        let mut walk = Walk::new(&file, from, size);
        let mut whole_to = from;
        while let Some((at, header)) = walk.next()? {
            let bytes = walk.batch(at, &header)?;
            // A checksum does not cover the offset. Only what was closed may have been compacted.
            let follows = match next {
                Some(_) if !self.dense => header.base_offset >= self.end,
                _ => header.base_offset == self.end,
            };
            let follows = follows && next.is_none_or(|next| header.last_offset() < next);
            if !follows || header.last_offset_delta < 0 || !batch::checksum_holds(bytes, &header) {
                break;
            }
            if header.is_control() {
                let marker = batch::marker_of(bytes, &header);
                self.aborted.extend(self.producers.ended(&header, marker, now_ms));
            } else {
                self.producers.appended(&header, now_ms);
            }
            active.index.note(header.base_offset, at, active.max_timestamp_ms);
            active.max_timestamp_ms = active.max_timestamp_ms.max(header.max_timestamp_ms);
            self.end = header.last_offset() + 1;
            whole_to = at + header.bytes as u64;
        }
        active.size = whole_to;
        self.done.scanned_bytes += whole_to - from;
        if whole_to == size {
            return Ok((active, true));
        }
        let cut_bytes = size - whole_to;
        tracing::warn!(dir = %self.dir.display(), segment = base, cut_bytes, "cut off a torn end of the log");
        self.done.cut_bytes += cut_bytes;
        active.file.set_len(whole_to)?;
        Ok((active, false))
    }
}

fn set_aside(dir: &Path, bases: &[i64]) -> io::Result<()> {
    for base in bases {
        let path = segment::log_path(dir, *base);
        tracing::warn!(path = %path.display(), "set aside a segment behind a damaged one");
        std::fs::rename(&path, path.with_extension("log.cut"))?;
    }
    Ok(())
}

fn modified_ms(file: &std::fs::File) -> io::Result<i64> {
    let since = file.metadata()?.modified()?.duration_since(std::time::UNIX_EPOCH);
    Ok(since.map_or(0, |since| since.as_millis() as i64))
}

/// `None` if there is no checkpoint or it is damaged: then everything is scanned.
fn read_checkpoint(dir: &Path) -> io::Result<Option<Checkpoint>> {
    let bytes = match std::fs::read(dir.join(CHECKPOINT)) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let Some((checksum, body)) = bytes.split_at_checked(9) else { return Ok(None) };
    if checksum != format!("{:08x}\n", crc32c::crc32c(body)).as_bytes() {
        return Ok(None);
    }
    Ok(serde_json::from_slice(body).ok())
}

#[cfg(test)]
#[path = "recovery_tests.rs"]
mod tests;
