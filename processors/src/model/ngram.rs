//! Hashed n-grams of a text: the features of the n-gram model, exactly as `models/emotion/FORMAT.md` defines them.
//!
//! Promises: a pure function of the text, for any Unicode; the work is bounded by [`CHARACTERS_MAX`]. Leaves out: weights
//! (`expression.rs`).

/// Buckets of the hash.
pub const BUCKETS: usize = 1 << 18;
/// Characters that are read of a text.
pub const CHARACTERS_MAX: usize = 4096;
/// A character that repeats more often in a row counts this often.
const RUN_MAX: usize = 3;
const GRAM_MIN: usize = 2;
const GRAM_MAX: usize = 5;

/// What a character counts as; of overlapping ranges the first kind holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Space,
    Drop,
    Symbol,
    Word,
}

#[inline]
pub(super) fn kind(c: char) -> Kind {
    if c.is_ascii() { ASCII[c as usize] } else { kind_of(c) }
}

/// The kinds of ASCII characters, which most texts are made of.
static ASCII: [Kind; 128] = {
    let mut kinds = [Kind::Drop; 128];
    let mut c = 0;
    while c < 128 {
        kinds[c] = kind_of(c as u8 as char);
        c += 1;
    }
    kinds
};

const fn kind_of(c: char) -> Kind {
    match c as u32 {
        0x09..=0x0D | 0x20 | 0x85 | 0xA0 | 0x1680 | 0x2000..=0x200A | 0x2028 | 0x2029 | 0x202F | 0x205F | 0x3000 => {
            Kind::Space
        }
        0x200B..=0x200F
        | 0x202A..=0x202E
        | 0x2060..=0x2064
        | 0x2066..=0x2069
        | 0xFE00..=0xFE0F
        | 0xFEFF
        | 0x1F3FB..=0x1F3FF => Kind::Drop,
        0x00..=0x26
        | 0x28..=0x2F
        | 0x3A..=0x40
        | 0x5B..=0x60
        | 0x7B..=0xA9
        | 0xAB..=0xB4
        | 0xB6..=0xB9
        | 0xBB..=0xBF
        | 0xD7
        | 0xF7
        | 0x2010..=0x2BFF
        | 0x3001..=0x303F
        | 0xFF01..=0xFF0F
        | 0x1F000..=0x1FAFF => Kind::Symbol,
        _ => Kind::Word,
    }
}

/// Whether a text has nothing in it but white space and invisible characters.
pub fn is_blank(text: &str) -> bool {
    text.chars().all(|c| matches!(kind(c), Kind::Space | Kind::Drop))
}

/// A text as the features see it: chunks between spaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Normalised {
    /// All chunks, one space before each and one at the end.
    text: String,
    /// Where each chunk ends.
    ends: Vec<usize>,
}

impl Normalised {
    /// Normalises a text: lower case, apostrophes made alike, invisible characters dropped, long runs cut.
    pub fn of(text: &str) -> Normalised {
        let length = text.len().min(CHARACTERS_MAX);
        let mut out = Normalised { text: String::with_capacity(length + 2), ends: Vec::with_capacity(length / 4 + 1) };
        out.text.push(' ');
        let mut reading = Reading { run: ' ', repeated: 0, count: 0 };
        for c in text.chars() {
            if c.is_ascii() {
                out.take(c.to_ascii_lowercase(), &mut reading);
            } else {
                c.to_lowercase().for_each(|c| out.take(c, &mut reading));
            }
            if reading.count >= CHARACTERS_MAX {
                break;
            }
        }
        out.end_chunk();
        out
    }

    #[inline]
    fn take(&mut self, c: char, reading: &mut Reading) {
        if reading.count >= CHARACTERS_MAX {
            return;
        }
        let c = if matches!(c, '\u{2018}' | '\u{2019}' | '\u{02BC}' | '\u{FF07}') { '\'' } else { c };
        match kind(c) {
            Kind::Drop => return,
            Kind::Space => {
                self.end_chunk();
                reading.run = ' ';
            }
            Kind::Symbol | Kind::Word => {
                reading.repeated = if reading.run == c { reading.repeated + 1 } else { 1 };
                if reading.repeated > RUN_MAX {
                    return;
                }
                reading.run = c;
                self.text.push(c);
            }
        }
        reading.count += 1;
    }

    /// Whether nothing is left of the text.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    fn end_chunk(&mut self) {
        if !self.text.ends_with(' ') {
            self.ends.push(self.text.len());
            self.text.push(' ');
        }
    }

    /// The chunks, each with the space before and the one after it.
    fn padded(&self) -> impl Iterator<Item = &str> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, end)| &self.text[start..=*end])
    }

    /// The buckets of all features, in rising order, each with how often it was met.
    pub fn buckets(&self) -> Vec<(u32, u32)> {
        let met = sort(self.all());
        met.chunk_by(|a, b| a == b).map(|same| (same[0], same.len() as u32)).collect()
    }

    /// The buckets, each as often as it was met, in no order that matters.
    fn all(&self) -> Vec<u32> {
        let mut met = Met(Vec::with_capacity(self.text.len() * FEATURES_MAX));
        let mut before: Option<Hash> = None;
        for padded in self.padded() {
            tokens(bare(padded), |token| {
                let word = Hash::new(b'w').and_all(token);
                met.take(word);
                if let Some(before) = before {
                    met.take(before.and(b' ').and_all(token));
                }
                before = Some(word);
            });
            if padded.is_ascii() {
                ascii_grams(padded.as_bytes(), |gram| met.take(gram));
            } else {
                grams(padded, |gram| met.take(gram));
            }
        }
        met.0
    }
}

/// Passes of the sort.
const PASSES: usize = 2;
/// Bits of a bucket that a pass looks at.
const DIGIT_BITS: usize = BUCKETS.trailing_zeros() as usize / PASSES;
const DIGITS: usize = 1 << DIGIT_BITS;
/// Fewer buckets than this are sorted by comparing them.
const FEW: usize = 64;

/// Sorts numbers below [`BUCKETS`]: by their lowest bits first, which takes no comparison to be foreseen.
fn sort(mut buckets: Vec<u32>) -> Vec<u32> {
    if buckets.len() < FEW {
        buckets.sort_unstable();
        return buckets;
    }
    let digit = |bucket: u32, pass: usize| bucket as usize >> (pass * DIGIT_BITS) & (DIGITS - 1);
    let mut places = [[0u32; DIGITS]; PASSES];
    for bucket in &buckets {
        for (pass, places) in places.iter_mut().enumerate() {
            places[digit(*bucket, pass)] += 1;
        }
    }
    let mut sorted = vec![0; buckets.len()];
    for (pass, places) in places.iter_mut().enumerate() {
        let mut before = 0;
        for place in &mut *places {
            before += std::mem::replace(place, before);
        }
        for bucket in &buckets {
            let place = &mut places[digit(*bucket, pass)];
            sorted[*place as usize] = *bucket;
            *place += 1;
        }
        std::mem::swap(&mut buckets, &mut sorted);
    }
    buckets
}

/// Where the reading of a text stands.
struct Reading {
    run: char,
    repeated: usize,
    count: usize,
}

/// Features that a character, or the space after a chunk, can begin at most: grams of each length, a word and a pair.
const FEATURES_MAX: usize = GRAM_MAX - GRAM_MIN + 3;

/// Buckets that were met.
struct Met(Vec<u32>);

impl Met {
    fn take(&mut self, hash: Hash) {
        self.0.push(bucket(hash));
    }
}

/// A chunk without the space before and the one after it.
fn bare(padded: &str) -> &str {
    &padded[1..padded.len() - 1]
}

/// Words (runs of word characters without the apostrophes at their ends) and symbols (runs of one character).
fn tokens<'a>(mut chunk: &'a str, mut found: impl FnMut(&'a str)) {
    while let Some(first) = chunk.chars().next() {
        let is_word = kind(first) == Kind::Word;
        let ends = |c: char| if is_word { kind(c) != Kind::Word } else { c != first };
        let (run, rest) = chunk.split_at(chunk.find(ends).unwrap_or(chunk.len()));
        let token = if is_word { run.trim_matches('\'') } else { run };
        if !token.is_empty() {
            found(token);
        }
        chunk = rest;
    }
}

/// All substrings of [`GRAM_MIN`] to [`GRAM_MAX`] characters of a chunk with a space before and after it.
fn grams(padded: &str, mut found: impl FnMut(Hash)) {
    for (start, _) in padded.char_indices() {
        let mut hash = Hash::new(b'c');
        for (length, c) in (1..=GRAM_MAX).zip(padded[start..].chars()) {
            hash = hash.and_all(c.encode_utf8(&mut [0; 4]));
            if length >= GRAM_MIN {
                found(hash);
            }
        }
    }
}

/// As [`grams`], where a character is a byte: the lengths are known beforehand but at the end.
fn ascii_grams(padded: &[u8], mut found: impl FnMut(Hash)) {
    let mut from = |gram: &[u8]| {
        let mut hash = Hash::new(b'c');
        for (place, byte) in gram.iter().enumerate() {
            hash = hash.and(*byte);
            if place + 1 >= GRAM_MIN {
                found(hash);
            }
        }
    };
    for gram in padded.windows(GRAM_MAX) {
        from(gram);
    }
    for start in (padded.len() + 1).saturating_sub(GRAM_MAX)..padded.len() {
        from(&padded[start..]);
    }
}

/// FNV-1a with 64 bits over UTF-8 (Fowler, Noll, Vo).
#[derive(Clone, Copy)]
pub(super) struct Hash(u64);

impl Hash {
    pub(super) const fn new(prefix: u8) -> Hash {
        Hash(0xCBF2_9CE4_8422_2325).and(prefix)
    }

    pub(super) const fn and(self, byte: u8) -> Hash {
        Hash((self.0 ^ byte as u64).wrapping_mul(0x0100_0000_01B3))
    }

    pub(super) fn and_all(self, text: &str) -> Hash {
        text.bytes().fold(self, Hash::and)
    }
}

/// The bucket of a hash: its halves folded by xor.
pub(super) fn bucket(hash: Hash) -> u32 {
    ((hash.0 ^ (hash.0 >> 32)) & (BUCKETS as u64 - 1)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        let normalised = Normalised::of(text);
        let mut found = Vec::new();
        for padded in normalised.padded() {
            tokens(bare(padded), |token| found.push(token.to_owned()));
        }
        found
    }

    #[test]
    fn tokens_follow_the_format() {
        assert_eq!(words("Don’t  'shout'!!! OK"), ["don't", "shout", "!!!", "ok"]);
        assert_eq!(words("soooooo 😭😭😭😭😭 a\u{200B}a\u{FE0F}aaa"), ["sooo", "😭😭😭", "aaa"]);
        assert_eq!(words("x?!?y ''' \u{3000}"), ["x", "?", "!", "?", "y"]);
        assert_eq!(words("İSTANBUL"), ["i\u{307}stanbul"]);
    }

    #[test]
    fn many_buckets_are_sorted_as_few_are() {
        let mut expected: Vec<u32> = (0..500u32).map(|i| i.wrapping_mul(2_654_435_761) % BUCKETS as u32).collect();
        expected.extend_from_within(..40);
        let sorted = sort(expected.clone());
        expected.sort_unstable();
        assert_eq!(sorted, expected);
    }

    #[test]
    fn invisible_text_is_empty() {
        for text in ["", " \t\u{3000}", "\u{200B}\u{FEFF}", "\u{1F3FB} \u{FE0F}"] {
            assert!(Normalised::of(text).is_empty() && is_blank(text), "{text:?}");
            assert_eq!(Normalised::of(text).buckets(), []);
        }
    }

    #[test]
    fn work_is_bounded_for_any_text() {
        let text: String = (0..200_000).map(|i| char::from_u32(0x4E00 + i % 20_000).unwrap()).collect();
        assert_eq!(
            Normalised::of(&text).padded().map(|padded| bare(padded).chars().count()).sum::<usize>(),
            CHARACTERS_MAX
        );
        assert!(Normalised::of(&" ".repeat(100_000)).is_empty());
    }
}
