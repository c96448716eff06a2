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
enum Kind {
    Space,
    Drop,
    Symbol,
    Word,
}

fn kind(c: char) -> Kind {
    match u32::from(c) {
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
    /// All chunks, one after the other.
    characters: Vec<char>,
    /// Where each chunk ends.
    ends: Vec<usize>,
}

impl Normalised {
    /// Normalises a text: lower case, apostrophes made alike, invisible characters dropped, long runs cut.
    pub fn of(text: &str) -> Normalised {
        let mut out = Normalised { characters: Vec::with_capacity(text.len().min(CHARACTERS_MAX)), ends: Vec::new() };
        let (mut run, mut repeated, mut count) = (None, 0, 0);
        for c in text.chars().flat_map(char::to_lowercase) {
            let c = if matches!(c, '\u{2018}' | '\u{2019}' | '\u{02BC}' | '\u{FF07}') { '\'' } else { c };
            match kind(c) {
                Kind::Drop => continue,
                Kind::Space => {
                    out.end_chunk();
                    run = None;
                }
                Kind::Symbol | Kind::Word => {
                    repeated = if run == Some(c) { repeated + 1 } else { 1 };
                    if repeated > RUN_MAX {
                        continue;
                    }
                    run = Some(c);
                    out.characters.push(c);
                }
            }
            count += 1;
            if count == CHARACTERS_MAX {
                break;
            }
        }
        out.end_chunk();
        out
    }

    /// Whether nothing is left of the text.
    pub fn is_empty(&self) -> bool {
        self.characters.is_empty()
    }

    fn end_chunk(&mut self) {
        if self.characters.len() > self.ends.last().copied().unwrap_or(0) {
            self.ends.push(self.characters.len());
        }
    }

    fn chunks(&self) -> impl Iterator<Item = &[char]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, end)| &self.characters[start..*end])
    }

    /// The buckets of all features, in rising order, each with how often it was met.
    pub fn buckets(&self) -> Vec<(u32, u32)> {
        let mut met = Vec::with_capacity(self.characters.len() * 6);
        let mut before: Option<&[char]> = None;
        for chunk in self.chunks() {
            tokens(chunk, |token| {
                met.push(bucket(Hash::new('w').and_all(token)));
                if let Some(before) = before {
                    met.push(bucket(Hash::new('w').and_all(before).and(' ').and_all(token)));
                }
                before = Some(token);
            });
        }
        for chunk in self.chunks() {
            grams(chunk, &mut met);
        }
        met.sort_unstable();
        met.chunk_by(|a, b| a == b).map(|same| (same[0], same.len() as u32)).collect()
    }
}

/// Words (runs of word characters without the apostrophes at their ends) and symbols (runs of one character).
fn tokens<'a>(chunk: &'a [char], mut found: impl FnMut(&'a [char])) {
    let alike = |a: &char, b: &char| match kind(*a) {
        Kind::Word => kind(*b) == Kind::Word,
        _ => a == b,
    };
    for run in chunk.chunk_by(alike) {
        let token = if kind(run[0]) == Kind::Word { without_apostrophes(run) } else { run };
        if !token.is_empty() {
            found(token);
        }
    }
}

fn without_apostrophes(mut word: &[char]) -> &[char] {
    while let ['\'', rest @ ..] = word {
        word = rest;
    }
    while let [rest @ .., '\''] = word {
        word = rest;
    }
    word
}

/// All substrings of [`GRAM_MIN`] to [`GRAM_MAX`] characters of the chunk with a space before and after it.
fn grams(chunk: &[char], met: &mut Vec<u32>) {
    let padded = chunk.len() + 2;
    let at = |i: usize| if i == 0 || i == padded - 1 { ' ' } else { chunk[i - 1] };
    for start in 0..padded {
        let mut hash = Hash::new('c');
        for (length, i) in (1..=GRAM_MAX).zip(start..padded) {
            hash = hash.and(at(i));
            if length >= GRAM_MIN {
                met.push(bucket(hash));
            }
        }
    }
}

/// FNV-1a with 64 bits over UTF-8 (Fowler, Noll, Vo).
#[derive(Clone, Copy)]
struct Hash(u64);

impl Hash {
    fn new(prefix: char) -> Hash {
        Hash(0xCBF2_9CE4_8422_2325).and(prefix)
    }

    fn and(self, c: char) -> Hash {
        let mut utf8 = [0; 4];
        let bytes = c.encode_utf8(&mut utf8).bytes();
        Hash(bytes.fold(self.0, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)))
    }

    fn and_all(self, characters: &[char]) -> Hash {
        characters.iter().fold(self, |hash, c| hash.and(*c))
    }
}

/// The bucket of a hash: its halves folded by xor.
fn bucket(hash: Hash) -> u32 {
    ((hash.0 ^ (hash.0 >> 32)) & (BUCKETS as u64 - 1)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        let normalised = Normalised::of(text);
        let mut found = Vec::new();
        for chunk in normalised.chunks() {
            tokens(chunk, |token| found.push(token.iter().collect()));
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
    fn invisible_text_is_empty() {
        for text in ["", " \t\u{3000}", "\u{200B}\u{FEFF}", "\u{1F3FB} \u{FE0F}"] {
            assert!(Normalised::of(text).is_empty() && is_blank(text), "{text:?}");
            assert_eq!(Normalised::of(text).buckets(), []);
        }
    }

    #[test]
    fn work_is_bounded_for_any_text() {
        let text: String = (0..200_000).map(|i| char::from_u32(0x4E00 + i % 20_000).unwrap()).collect();
        assert_eq!(Normalised::of(&text).characters.len(), CHARACTERS_MAX);
        assert!(Normalised::of(&" ".repeat(100_000)).is_empty());
    }
}
