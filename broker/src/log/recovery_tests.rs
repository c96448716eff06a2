//! Opening partitions again: after torn writes, with and without checkpoints, and what is not scanned.

use std::sync::Arc;

use super::super::Offsets;
use super::*;
use crate::Fsync;
use crate::batch::testing::{TRANSACTIONAL_ATTRIBUTE, batch, plain};
use crate::batch::{HEADER_BYTES, Header, Marker};
use crate::settings::Given;

fn syncer() -> Arc<Syncer> {
    let every = std::time::Duration::from_secs(3600);
    let (syncer, thread) = Syncer::start(Fsync::Interval { every }, |_| ()).unwrap();
    syncer.close();
    thread.join().unwrap();
    syncer
}

fn open(dir: &Path, settings: &[(&str, &str)]) -> (Partition, Recovered) {
    let given: Given = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Partition::open(dir.to_owned(), TopicSettings::new(&given).unwrap(), syncer(), 0, 5_000).unwrap()
}

fn values(partition: &Partition) -> Vec<(i64, String)> {
    let mut all = Vec::new();
    let mut at = partition.offsets().start;
    loop {
        let read = partition.read(at, false, 1 << 20).unwrap();
        let mut rest = &read.records[..];
        if rest.is_empty() {
            return all;
        }
        while let Some(header) = Header::parse(rest) {
            if !header.is_control() {
                for record in batch::records(rest, &header).unwrap() {
                    let value = record.value.unwrap_or_default();
                    all.push((record.offset, String::from_utf8(value.to_vec()).unwrap()));
                }
            }
            at = header.last_offset() + 1;
            rest = &rest[header.bytes..];
        }
    }
}

#[test]
fn a_write_torn_at_any_byte_costs_only_itself() {
    let dir = tempfile::tempdir().unwrap();
    let (partition, _) = open(dir.path(), &[]);
    partition.append(&plain(&["a", "b"]), 5_000).unwrap();
    let path = segment::log_path(dir.path(), 0);
    let kept = std::fs::metadata(&path).unwrap().len();
    partition.append(&plain(&["c", "d", "e"]), 5_000).unwrap();
    drop(partition);
    let whole = std::fs::read(&path).unwrap();
    for torn in kept as usize..whole.len() {
        std::fs::write(&path, &whole[..torn]).unwrap();
        let (partition, done) = open(dir.path(), &[]);
        assert_eq!(done.cut_bytes, torn as u64 - kept);
        assert_eq!(partition.append(&plain(&["next"]), 5_000).unwrap(), 2);
        assert_eq!(values(&partition).len(), 3);
    }
    for flipped in kept as usize + HEADER_BYTES..whole.len() {
        let mut damaged = whole.clone();
        damaged[flipped] ^= 1;
        std::fs::write(&path, &damaged).unwrap();
        assert_eq!(open(dir.path(), &[]).0.offsets().end, 2);
    }
}

#[test]
fn only_what_is_behind_the_checkpoint_is_scanned() {
    let dir = tempfile::tempdir().unwrap();
    let settings = [("segment.bytes", "1000")];
    let (partition, _) = open(dir.path(), &settings);
    for i in 0..100 {
        partition.append(&plain(&[&format!("value {i}")]), 5_000).unwrap();
    }
    partition.checkpoint(1).unwrap();
    let tail = plain(&["behind the checkpoint"]);
    partition.append(&tail, 5_000).unwrap();
    let before = values(&partition);
    drop(partition);
    let (partition, done) = open(dir.path(), &settings);
    assert_eq!(done, Recovered { scanned_bytes: tail.len() as u64, cut_bytes: 0 });
    assert_eq!(values(&partition), before);
    assert!(segment::list(dir.path()).unwrap().len() > 5, "there were segments to leave alone");

    drop(partition);
    std::fs::write(dir.path().join(CHECKPOINT), b"damaged").unwrap();
    let (partition, done) = open(dir.path(), &settings);
    assert!(done.scanned_bytes > 5_000, "without a checkpoint everything is read");
    assert_eq!(values(&partition), before);
}

#[test]
fn producers_and_transactions_are_known_again() {
    for with_checkpoint in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let (partition, _) = open(dir.path(), &[]);
        let record = [(Some("k"), Some("v"))];
        partition.append(&batch(&record, (1, 0, 0), 0), 5_000).unwrap();
        partition.append(&batch(&record, (2, 0, 0), TRANSACTIONAL_ATTRIBUTE), 5_000).unwrap();
        partition.end_transaction((2, 0), Marker::Abort, 5_000).unwrap();
        partition.append(&batch(&record, (3, 0, 0), TRANSACTIONAL_ATTRIBUTE), 5_000).unwrap();
        if with_checkpoint {
            partition.checkpoint(1).unwrap();
        }
        drop(partition);
        let (partition, _) = open(dir.path(), &[]);
        assert_eq!(partition.offsets().stable, 3, "the last transaction is open");
        assert_eq!(partition.append(&batch(&record, (1, 0, 0), 0), 5_000).unwrap(), 0, "a repeated batch is known");
        let read = partition.read(0, true, 1 << 20).unwrap();
        assert_eq!(read.aborted, [Aborted { producer_id: 2, first: 1, last: 2 }]);
        partition.end_transaction((3, 0), Marker::Commit, 5_000).unwrap();
        assert_eq!(partition.offsets().stable, 5);
    }
}

#[test]
fn compaction_survives_reopening_and_never_scans_what_it_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let settings = [("cleanup.policy", "compact"), ("segment.bytes", "600"), ("min.cleanable.dirty.ratio", "0")];
    let (partition, _) = open(dir.path(), &settings);
    for i in 0..60 {
        let (key, value) = (format!("k{}", i % 3), format!("v{i}"));
        partition.append(&batch(&[(Some(&key), Some(&value))], (-1, -1, -1), 0), 5_000).unwrap();
    }
    let before = values(&partition).len();
    // Also with a map of only two keys, which takes many rounds.
    let dropped: u64 = (0..60).map(|_| partition.compact(5_000, 2).unwrap()).sum();
    assert!(dropped > 0);
    let after = values(&partition);
    assert!(after.len() < before / 2, "{} of {before}", after.len());
    for key in 57..60 {
        assert!(after.contains(&(key, format!("v{key}"))), "{after:?}");
    }
    partition.checkpoint(1).unwrap();
    drop(partition);
    assert_eq!(values(&open(dir.path(), &settings).0), after);
    std::fs::remove_file(dir.path().join(CHECKPOINT)).unwrap();
    assert_eq!(values(&open(dir.path(), &settings).0), after);
}

#[test]
fn a_replaced_value_is_in_no_file_and_all_else_stays() {
    let dir = tempfile::tempdir().unwrap();
    let settings = [("segment.bytes", "600")];
    let (partition, _) = open(dir.path(), &settings);
    for i in 0..40 {
        let (key, value) = (format!("k{}", i % 4), format!("secret {i:02}"));
        partition
            .append(&batch(&[(Some(&key), Some(&value)), (Some("other"), Some("kept"))], (-1, -1, -1), 0), 5_000)
            .unwrap();
    }
    // In a transaction that is open, in the active segment.
    partition.append(&batch(&[(Some("k1"), Some("secret of 7"))], (7, 0, 0), TRANSACTIONAL_ATTRIBUTE), 5_000).unwrap();
    let expected: Vec<(i64, String)> = values(&partition)
        .into_iter()
        .map(|(offset, value)| match value.starts_with("secret") && (offset / 2 % 4 == 1 || offset == 80) {
            true => (offset, "gone".to_owned()),
            false => (offset, value),
        })
        .collect();
    let gone = |key: Option<&[u8]>, value: &[u8]| (key == Some(b"k1") && value != b"gone").then(|| b"gone".to_vec());
    assert_eq!(partition.replace(5_000, &gone).unwrap(), 11);
    assert_eq!(values(&partition), expected);
    assert_eq!(partition.replace(5_000, &gone).unwrap(), 0, "nothing is left to replace");
    for file in std::fs::read_dir(dir.path()).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        for word in ["secret 01", "secret 05", "secret 37", "secret of 7"] {
            assert!(!bytes.windows(word.len()).any(|part| part == word.as_bytes()), "{word:?}");
        }
    }
    partition.end_transaction((7, 0), Marker::Commit, 5_000).unwrap();
    partition.append(&plain(&["and on"]), 5_000).unwrap();
    let after = values(&partition);
    partition.checkpoint(1).unwrap();
    drop(partition);
    let (partition, _) = open(dir.path(), &settings);
    assert_eq!(values(&partition), after);
    assert_eq!(partition.offsets().stable, 83);
    drop(partition);
    std::fs::remove_file(dir.path().join(CHECKPOINT)).unwrap();
    assert_eq!(values(&open(dir.path(), &settings).0), after, "also where it is scanned anew");
}

#[test]
fn times_are_found_across_segments() {
    let dir = tempfile::tempdir().unwrap();
    let (partition, _) = open(dir.path(), &[("segment.bytes", "500")]);
    for i in 0..50_i64 {
        let bytes = plain(&["v"]);
        let header = Header::parse(&bytes).unwrap();
        let at_ms = 10_000 + i * 100;
        let header = Header { base_timestamp_ms: at_ms, max_timestamp_ms: at_ms, ..header };
        partition.append(&batch::encode(&header, &bytes[HEADER_BYTES..]), 5_000).unwrap();
    }
    for (time_ms, expected) in
        [(0, Some((0, 10_000))), (12_050, Some((21, 12_100))), (14_900, Some((49, 14_900))), (14_901, None)]
    {
        assert_eq!(partition.find_time(time_ms, false).unwrap(), expected, "{time_ms}");
    }
}

#[test]
fn deleted_records_take_their_segments_along() {
    let dir = tempfile::tempdir().unwrap();
    let (partition, _) = open(dir.path(), &[("segment.bytes", "500")]);
    for i in 0..50 {
        partition.append(&plain(&[&format!("{i}")]), 5_000).unwrap();
    }
    let before = segment::list(dir.path()).unwrap().len();
    assert_eq!(partition.delete_before(30).unwrap(), 30);
    assert!(segment::list(dir.path()).unwrap().len() < before);
    assert_eq!(values(&partition).first(), Some(&(30, "30".to_owned())));
    assert_eq!(partition.delete_before(1_000).unwrap(), 50, "not beyond the end");
    assert_eq!(partition.append(&plain(&["next"]), 5_000).unwrap(), 50);
}

#[test]
fn damage_in_front_of_the_checkpoint_is_an_error_to_who_reads_it() {
    let settings = [("segment.bytes", "600")];
    let appended = |dir: &Path, settings: &[(&str, &str)]| {
        let (partition, _) = open(dir, settings);
        for i in 0..20 {
            let (key, value) = (format!("k{}", i % 3), format!("value {i:04}"));
            partition.append(&batch(&[(Some(&key), Some(&value))], (-1, -1, -1), 0), 5_000).unwrap();
        }
        partition.checkpoint(1).unwrap();
        drop(partition);
        segment::list(dir).unwrap()[1]
    };
    let error = |partition: &Partition, offset: i64| {
        let read = partition.read(offset, false, 1 << 20).map(|read| read.records.len());
        read.expect_err("it is damaged").kind()
    };
    // A byte of a record, the length of a batch, and the end of the file.
    for damage in ["record", "length", "end"] {
        let dir = tempfile::tempdir().unwrap();
        let second = appended(dir.path(), &settings);
        let path = segment::log_path(dir.path(), second);
        let mut bytes = std::fs::read(&path).unwrap();
        let first_batch = Header::parse(&bytes).unwrap().bytes;
        match damage {
            "record" => bytes[first_batch + HEADER_BYTES + 3] ^= 1,
            "length" => bytes[first_batch + 8] = 0x7f,
            _ => bytes.truncate(first_batch + 10),
        }
        std::fs::write(&path, bytes).unwrap();
        let (partition, done) = open(dir.path(), &settings);
        assert_eq!(done.cut_bytes, 0, "{damage}: it is not taken for a torn end");
        assert_eq!(partition.offsets().end, 20);
        assert!(!partition.read(second, false, 1 << 20).unwrap().records.is_empty(), "what is in front of it");
        assert_eq!(error(&partition, second + 1), io::ErrorKind::InvalidData, "{damage}");
        assert_eq!(partition.append(&plain(&["next"]), 5_000).unwrap(), 20);
        assert_eq!(partition.delete_before(second + 8).unwrap(), second + 8, "the mend");
        assert!(!partition.read(second + 8, false, 1 << 20).unwrap().records.is_empty());
    }
    let compacted = [("segment.bytes", "600"), ("cleanup.policy", "compact"), ("min.cleanable.dirty.ratio", "0")];
    let dir = tempfile::tempdir().unwrap();
    let path = segment::log_path(dir.path(), appended(dir.path(), &compacted));
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[HEADER_BYTES + 3] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let (partition, _) = open(dir.path(), &compacted);
    assert!(partition.compact(5_000, 1_000).is_err(), "it drops nothing that it cannot read");
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
}

#[test]
fn where_acknowledgements_wait_for_the_disk_readers_do_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let (syncer, thread) = Syncer::start(Fsync::Acknowledge, |_| ()).unwrap();
    // Without its thread, nothing is synced but by hand.
    syncer.close();
    thread.join().unwrap();
    let settings = TopicSettings::new(&Given::new()).unwrap();
    let (partition, _) = Partition::open(dir.path().to_owned(), settings, syncer.clone(), 0, 5_000).unwrap();
    let waiter = Arc::new(tokio::sync::Notify::new());
    partition.watch(&waiter, false);
    partition.append(&plain(&["a", "b"]), 5_000).unwrap();
    let seen = |partition: &Partition| (partition.offsets().end, values(partition).len());
    assert_eq!(seen(&partition), (0, 0), "it is in the file, and not on the disk");
    assert_eq!(partition.find_time(0, false).unwrap(), None);
    assert_eq!(partition.delete_before(2).unwrap(), 0, "what nobody has seen cannot be deleted");
    syncer.sync_now().unwrap();
    assert_eq!(seen(&partition), (2, 2));
    partition.append(&batch(&[(Some("k"), Some("c"))], (1, 0, 0), TRANSACTIONAL_ATTRIBUTE), 5_000).unwrap();
    syncer.sync_now().unwrap();
    partition.end_transaction((1, 0), Marker::Commit, 5_000).unwrap();
    assert_eq!(partition.offsets(), Offsets { start: 0, end: 3, stable: 2 }, "the marker waits as well");
    syncer.sync_now().unwrap();
    assert_eq!(partition.offsets(), Offsets { start: 0, end: 4, stable: 4 });
}

#[test]
fn an_offset_that_the_disk_changed_is_noticed_though_no_checksum_covers_it() {
    let appended = |dir: &Path, with_checkpoint: bool| {
        let (partition, _) = open(dir, &[("segment.bytes", "600")]);
        for i in 0..20 {
            partition.append(&plain(&[&format!("{i} one"), &format!("{i} two")]), 5_000).unwrap();
        }
        if with_checkpoint {
            partition.checkpoint(1).unwrap();
        }
        segment::list(dir).unwrap()[1]
    };
    // The second batch of the second segment says that it begins elsewhere.
    type Change = (&'static str, fn(i64) -> i64);
    let changes: [Change; 5] = [
        ("beyond the end", |offset| offset | 0x41 << 56),
        ("further on", |offset| offset + 10),
        ("one further", |offset| offset + 1),
        ("one before", |offset| offset - 1),
        ("at the beginning", |_| 0),
    ];
    for (change, changed) in changes {
        for with_checkpoint in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let second = appended(dir.path(), with_checkpoint);
            let path = segment::log_path(dir.path(), second);
            let mut bytes = std::fs::read(&path).unwrap();
            let at = Header::parse(&bytes).unwrap().bytes;
            let offset = Header::parse(&bytes[at..]).unwrap().base_offset;
            bytes[at..at + 8].copy_from_slice(&changed(offset).to_be_bytes());
            std::fs::write(&path, &bytes).unwrap();
            let (partition, done) = open(dir.path(), &[("segment.bytes", "600")]);
            let (mut next, mut read) = (0, Vec::new());
            let error = loop {
                match partition.read(next, false, 1) {
                    Ok(found) if found.records.is_empty() => break None,
                    Ok(found) => {
                        let header = Header::parse(&found.records).unwrap();
                        read.push((header.base_offset, header.last_offset()));
                        next = header.last_offset() + 1;
                    }
                    Err(error) => break Some(error.kind()),
                }
            };
            let wanted: Vec<(i64, i64)> = (0..offset).step_by(2).map(|base| (base, base + 1)).collect();
            assert_eq!(read, wanted, "{change}, {with_checkpoint}: what is in front of it, and nothing else");
            if with_checkpoint {
                assert_eq!((error, done.cut_bytes), (Some(io::ErrorKind::InvalidData), 0), "{change}");
                assert_eq!(partition.offsets().end, 40, "{change}");
            } else {
                assert_eq!((error, partition.offsets().end), (None, offset), "{change}: it is cut off");
                assert!(done.cut_bytes > 0);
            }
        }
    }
}

#[test]
fn a_segment_that_is_gone_is_told_to_who_reads_it() {
    let dir = tempfile::tempdir().unwrap();
    let (partition, _) = open(dir.path(), &[("segment.bytes", "600")]);
    for i in 0..20 {
        partition.append(&plain(&[&format!("value {i:04}")]), 5_000).unwrap();
    }
    partition.checkpoint(1).unwrap();
    drop(partition);
    let bases = segment::list(dir.path()).unwrap();
    std::fs::remove_file(segment::log_path(dir.path(), bases[1])).unwrap();
    let (partition, _) = open(dir.path(), &[("segment.bytes", "600")]);
    assert!(!partition.read(bases[1] - 1, false, 1 << 20).unwrap().records.is_empty());
    assert_eq!(partition.read(bases[1], false, 1 << 20).map(drop).unwrap_err().kind(), io::ErrorKind::InvalidData);
    assert!(!partition.read(bases[2], false, 1 << 20).unwrap().records.is_empty());
}
