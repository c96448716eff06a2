//! The trigrams of a text in the order in which they are ranked: the most frequent first, and of equally frequent ones the
//! higher first. Leaves out: what ranks mean.

use std::cmp::Reverse;

/// Bits of a character's code.
const BITS: usize = 5;
/// Codes of trigrams of ASCII letters and spaces.
pub(super) const ASCII_CODES: usize = 1 << (3 * BITS);

/// The code of a character in the order of the characters: 0 for a space and all that counts as one, 1 to 26 for a letter
/// in either case.
const CODES: [u8; 128] = {
    let mut codes = [0; 128];
    let mut letter = 0;
    while letter < 26 {
        codes[b'a' as usize + letter] = letter as u8 + 1;
        codes[b'A' as usize + letter] = letter as u8 + 1;
        letter += 1;
    }
    codes
};

/// The code of a trigram of ASCII letters and spaces; it is in the order of the characters.
pub(super) fn ascii_code(trigram: [char; 3]) -> Option<usize> {
    trigram.iter().try_fold(0, |code, c| match c {
        ' ' | 'a'..='z' => Some(code << BITS | usize::from(CODES[*c as usize])),
        _ => None,
    })
}

/// The trigrams of an ASCII text, met one after the other; a set of bits takes the place of a sort.
pub(super) struct Ascii {
    met: [u64; ASCII_CODES / 64],
    /// A bit for each word of `met` that has one.
    words: [u64; ASCII_CODES / 64 / 64],
    /// Codes that were met before, once for each time.
    again: Vec<u16>,
    /// Codes of the last three characters.
    last: usize,
    started: bool,
}

impl Ascii {
    pub(super) fn new() -> Ascii {
        let (met, words) = ([0; ASCII_CODES / 64], [0; ASCII_CODES / 64 / 64]);
        Ascii { met, words, again: Vec::new(), last: 0, started: false }
    }

    /// Reads a character, and says whether it is a letter.
    pub(super) fn push(&mut self, byte: u8) -> bool {
        const MIDDLE: usize = (1 << BITS) - 1;
        let code = usize::from(CODES[usize::from(byte & 0x7F)]);
        self.last = (self.last << BITS | code) & (ASCII_CODES - 1);
        let middle = self.last >> BITS & MIDDLE;
        let spaces = middle == 0 && (self.last >> (2 * BITS) == 0 || code == 0);
        if self.started && !spaces {
            let (word, bit) = (self.last / 64, 1 << (self.last % 64));
            if self.met[word] & bit != 0 {
                self.again.push(self.last as u16);
            }
            self.met[word] |= bit;
            self.words[word / 64] |= 1 << (word % 64);
        }
        self.started = true;
        code != 0
    }

    /// All trigrams, in order.
    pub(super) fn each(&mut self, mut found: impl FnMut(usize)) {
        self.again.sort_unstable_by_key(|code| Reverse(*code));
        let mut repeated: Vec<(Reverse<usize>, u16)> = Vec::new();
        for same in self.again.chunk_by(|a, b| a == b) {
            repeated.push((Reverse(same.len()), same[0]));
            self.met[usize::from(same[0]) / 64] &= !(1 << (same[0] % 64));
        }
        repeated.sort_by_key(|(times, _)| *times);
        repeated.into_iter().for_each(|(_, code)| found(usize::from(code)));
        for upper in (0..self.words.len()).rev() {
            for word in Bits(self.words[upper]).map(|bit| upper * 64 + bit) {
                Bits(self.met[word]).for_each(|bit| found(word * 64 + bit));
            }
        }
    }
}

/// The bits of a word, the highest first.
struct Bits(u64);

impl Iterator for Bits {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let highest = self.0.checked_ilog2()?;
        self.0 ^= 1 << highest;
        Some(highest as usize)
    }
}

/// The same for trigrams of any characters, by sorting.
pub(super) fn general(mut met: Vec<u64>) -> Vec<u64> {
    met.sort_unstable_by_key(|trigram| Reverse(*trigram));
    let counted = met.chunk_by(|a, b| a == b).map(|same| (Reverse(same.len()), same[0]));
    let mut counted: Vec<(Reverse<usize>, u64)> = counted.collect();
    counted.sort_by_key(|(count, _)| *count);
    counted.into_iter().map(|(_, trigram)| trigram).collect()
}
