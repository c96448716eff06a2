//! The pieces of a vocabulary, to be found by what a word begins with. Promises: the longest one, after one walk over the
//! word and a look-up a length. Leaves out: where words begin and end.

use super::CONTINUING;

/// The pieces in a hash table of their own: the hashes of all beginnings of a word come from one walk over it.
pub(super) struct Pieces {
    /// All pieces, one after the other, in the order of their ids, without the mark of those that continue.
    bytes: Vec<u8>,
    /// Where the piece of an id ends.
    pub(super) ends: Vec<u32>,
    /// Open addressing, at most half full: a tag of the piece above its id, or [`EMPTY`].
    slots: Vec<u32>,
    /// The longest piece, in bytes; at most [`PIECE_BYTES_MAX`].
    longest: usize,
}

const EMPTY: u32 = u32::MAX;
const ID_BITS: u32 = 20;
const ID: u32 = (1 << ID_BITS) - 1;
/// Longest piece that a vocabulary may hold, in bytes.
const PIECE_BYTES_MAX: usize = 64;

/// Hashes of the beginnings of a word.
pub(super) type Hashes = [u64; PIECE_BYTES_MAX];
pub(super) const NO_HASHES: Hashes = [0; PIECE_BYTES_MAX];

impl Pieces {
    /// `None` if a piece is too long, or has no place.
    pub(super) fn new(mut vocabulary: Vec<(String, u32)>) -> Option<Pieces> {
        // One less than fit: no slot that is taken equals an empty one.
        const IDS_MAX: u32 = (1 << ID_BITS) - 1;
        vocabulary.sort_unstable_by_key(|(_, id)| *id);
        let ids = vocabulary.last().map_or(0, |(_, id)| *id).checked_add(1).filter(|ids| *ids <= IDS_MAX)? as usize;
        let slots = vec![EMPTY; (ids * 2).next_power_of_two()];
        let mut pieces = Pieces { bytes: Vec::new(), ends: Vec::with_capacity(ids), slots, longest: 0 };
        for (piece, id) in vocabulary {
            let (bare, first) = piece.strip_prefix(CONTINUING).map_or((piece.as_str(), true), |bare| (bare, false));
            pieces.ends.resize(id as usize, pieces.bytes.len() as u32);
            pieces.bytes.extend_from_slice(bare.as_bytes());
            pieces.ends.push(pieces.bytes.len() as u32);
            pieces.longest = pieces.longest.max(bare.len());
            let hash = bare.bytes().fold(HASH, step);
            let mut slot = pieces.slot(hash, first);
            while pieces.slots[slot] != EMPTY {
                slot = (slot + 1) & (pieces.slots.len() - 1);
            }
            pieces.slots[slot] = tag(hash, first) | id;
        }
        (pieces.longest <= PIECE_BYTES_MAX).then_some(pieces)
    }

    fn slot(&self, hash: u64, first: bool) -> usize {
        ((hash >> 32) as usize + usize::from(first)) & (self.slots.len() - 1)
    }

    /// The longest piece that `word` begins with, and its length in bytes; `hashes` is room for the work.
    pub(super) fn longest(&self, word: &[u8], first: bool, hashes: &mut Hashes) -> Option<(u32, usize)> {
        let longest = word.len().min(self.longest);
        let mut hash = HASH;
        for (kept, byte) in hashes.iter_mut().zip(&word[..longest]) {
            hash = step(hash, *byte);
            *kept = hash;
        }
        // A piece is whole characters, so that a beginning that cuts a character cannot be one.
        for length in (1..=longest).rev() {
            if let Some(id) = self.find(hashes[length - 1], &word[..length], first) {
                return Some((id, length));
            }
        }
        None
    }

    fn find(&self, hash: u64, piece: &[u8], first: bool) -> Option<u32> {
        let wanted = tag(hash, first);
        let mut slot = self.slot(hash, first);
        loop {
            let found = self.slots[slot];
            if found == EMPTY {
                return None;
            }
            let id = found & ID;
            if found & !ID == wanted && self.piece(id) == piece {
                return Some(id);
            }
            slot = (slot + 1) & (self.slots.len() - 1);
        }
    }

    fn piece(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let begin = id.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.bytes[begin as usize..self.ends[id] as usize]
    }
}

/// FNV-1a with 64 bits (Fowler, Noll, Vo).
const HASH: u64 = 0xCBF2_9CE4_8422_2325;

fn step(hash: u64, byte: u8) -> u64 {
    (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
}

/// Part of the hash, with a bit for whether the piece begins a word: what begins one never equals what continues one.
fn tag(hash: u64, first: bool) -> u32 {
    ((hash as u32) << 1 | u32::from(first)) << ID_BITS
}
