//! What only the first processor does: it numbers the turns of a conversation and drops those that came before.

use schemas::slice::Sequence;
use uuid::Uuid;

/// Name of its slice in the contexts.
pub const SLICE: &str = "sequence";
/// How many ids a conversation remembers: the promise of deduplication. A turn that is repeated later than this many
/// turns after the first is taken for a new one.
pub const IDS_MAX: usize = 256;
const ID_BYTES: usize = 16;
/// Positions from here on are damage: clients read them as JSON numbers, which are exact up to here (RFC 8259, section 6).
const POSITIONS_END: i64 = 1 << 53;

/// What is wrong with a slice that was read from a store, if it is none that this stage wrote.
pub fn problem(slice: &Sequence) -> Option<String> {
    let sound = (0..POSITIONS_END).contains(&slice.position) && slice.recent.len().is_multiple_of(ID_BYTES);
    (!sound).then(|| {
        let (position, bytes) = (slice.position, slice.recent.len());
        format!("position {position} with {bytes} bytes of ids is damage: run `undertone contexts rebuild`")
    })
}

/// The position of a turn that was not seen before, or `None` for a repeated one.
pub fn number(slice: &mut Sequence, id: Uuid) -> Option<i64> {
    if slice.recent.chunks_exact(ID_BYTES).any(|seen| seen == id.as_bytes()) {
        return None;
    }
    let surplus = (slice.recent.len() + ID_BYTES).saturating_sub(IDS_MAX * ID_BYTES);
    slice.recent.drain(..surplus);
    slice.recent.extend_from_slice(id.as_bytes());
    slice.position += 1;
    Some(slice.position)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_stage_cannot_have_written_is_named() {
        let slice = |position, bytes| Sequence { position, recent: vec![1; bytes] };
        assert_eq!(problem(&slice(7, 5 * ID_BYTES)), None);
        for damaged in [slice(-1, 0), slice(POSITIONS_END, ID_BYTES), slice(7, ID_BYTES + 8)] {
            assert!(problem(&damaged).is_some_and(|problem| problem.contains("contexts rebuild")), "{damaged:?}");
        }
    }

    #[test]
    fn positions_are_dense_and_repeats_within_the_window_are_dropped() {
        let mut slice = Sequence::default();
        let id = |n: usize| Uuid::from_u128(n as u128);
        for n in 1..=300 {
            assert_eq!(number(&mut slice, id(n)), Some(n as i64));
            assert_eq!(number(&mut slice, id(n)), None);
        }
        assert_eq!(slice.recent.len(), IDS_MAX * ID_BYTES);
        assert_eq!(number(&mut slice, id(300 - IDS_MAX + 1)), None, "the oldest of the window is still known");
        assert_eq!(number(&mut slice, id(300 - IDS_MAX)), Some(301), "the one before it is forgotten");
    }
}
