//! What only the first processor does: it numbers the turns of a conversation and drops those that came before.

use schemas::slice::Sequence;
use uuid::Uuid;

/// Name of its slice in the contexts.
pub const SLICE: &str = "sequence";
/// How many ids a conversation remembers: the promise of deduplication. A turn that is repeated later than this many
/// turns after the first is taken for a new one.
pub const IDS_MAX: usize = 256;
const ID_BYTES: usize = 16;

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
