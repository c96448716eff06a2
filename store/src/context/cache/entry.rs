//! An entry of the cache: the newest version of each slice of a conversation.
//!
//! A byte for the layout, then for each slice the length of its stage's name (1 byte), the name, partition (4), offset (8),
//! the length of its bytes (4), and the bytes; numbers are big-endian. What cannot be read is not there.

use schemas::Stamp;

use super::super::{Version, Write};

/// The layout that this release reads and writes; another one is a miss.
const LAYOUT: u8 = 1;

/// An entry of one conversation's writes.
pub(super) fn write(slices: &[&Write]) -> Vec<u8> {
    let size = |slice: &&Write| 17 + slice.stage.len() + slice.current.bytes.len();
    let mut entry = Vec::with_capacity(1 + slices.iter().map(size).sum::<usize>());
    entry.push(LAYOUT);
    for Write { stage, current: Version { stamp, bytes }, .. } in slices {
        debug_assert!(stage.len() <= usize::from(u8::MAX), "names of stages are short");
        entry.push(stage.len() as u8);
        entry.extend(stage.as_bytes());
        entry.extend(stamp.partition.to_be_bytes());
        entry.extend(stamp.offset.to_be_bytes());
        entry.extend((bytes.len() as u32).to_be_bytes());
        entry.extend(bytes);
    }
    entry
}

/// The slices of the asked stages; `None` unless all of them are there, of that partition, and from before the offset.
pub(super) fn read(entry: &[u8], partition: i32, below: i64, stages: &[&str]) -> Option<Vec<(String, Version)>> {
    let (layout, mut rest) = entry.split_first()?;
    let mut found = Vec::with_capacity(stages.len());
    while *layout == LAYOUT && !rest.is_empty() {
        let length = usize::from(take(&mut rest, 1)?[0]);
        let stage = std::str::from_utf8(take(&mut rest, length)?).ok()?;
        let of = i32::from_be_bytes(take(&mut rest, 4)?.try_into().ok()?);
        let offset = i64::from_be_bytes(take(&mut rest, 8)?.try_into().ok()?);
        let length = u32::from_be_bytes(take(&mut rest, 4)?.try_into().ok()?);
        let bytes = take(&mut rest, length as usize)?.to_vec();
        if stages.contains(&stage) {
            (of == partition && offset < below).then_some(())?;
            found.push((stage.to_owned(), Version { stamp: Stamp { partition: of, offset }, bytes }));
        }
    }
    (found.len() == stages.len()).then_some(found)
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(count)?;
    *rest = left;
    Some(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(stage: &str, offset: i64, bytes: &[u8]) -> Write {
        let current = Version { stamp: Stamp { partition: 3, offset }, bytes: bytes.to_vec() };
        Write { conversation: "c".to_owned(), stage: stage.to_owned(), current, previous: None }
    }

    #[test]
    fn an_entry_serves_those_who_ask_for_what_it_holds() {
        let (one, two) = (slice("encode", 7, &[]), slice("emotion", 8, &[0, 1, 255]));
        let entry = write(&[&one, &two]);
        let all = read(&entry, 3, 9, &["emotion", "encode"]).unwrap();
        assert_eq!(all, [("encode".to_owned(), one.current), ("emotion".to_owned(), two.current.clone())]);
        assert_eq!(read(&entry, 3, 9, &["emotion"]).unwrap(), [("emotion".to_owned(), two.current)]);
        assert_eq!(read(&entry, 3, 9, &["emotion", "memory"]), None, "a stage that came later");
        assert_eq!(read(&entry, 3, 8, &["emotion"]), None, "folded behind the offset");
        assert_eq!(read(&entry, 4, 9, &["emotion"]), None, "of another partition");
    }

    #[test]
    fn what_is_cut_off_or_of_another_layout_is_not_there() {
        let entry = write(&[&slice("encode", 7, &[1, 2, 3])]);
        for length in 0..entry.len() {
            assert_eq!(read(&entry[..length], 3, 9, &["encode"]), None, "{length}");
        }
        let other = [&[LAYOUT + 1], &entry[1..]].concat();
        assert_eq!(read(&other, 3, 9, &["encode"]), None);
    }
}
