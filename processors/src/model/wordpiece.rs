//! WordPiece: a text as ids of a vocabulary's pieces, as BERT cuts it (Devlin et al. 2019).
//!
//! Promises: the ids of the crate `tokenizers` for the same file and any text (a test compares them), at a fraction of its
//! cost, because nothing is kept of where a piece stood; work is bounded by the tokens asked for. A file that asks for
//! another way of cutting is refused. Leaves out: training, offsets, decoding.

mod file;
mod pieces;

use std::fmt;

use unicode_categories::UnicodeCategories;
use unicode_normalization_alignments::UnicodeNormalization;

use super::card::Family;
use crate::stage::Failure;
use file::Described;
use pieces::{Hashes, NO_HASHES, Pieces};

/// A word of more characters is unknown, as the files ask for.
const WORD_CHARS_MAX: usize = 100;
/// Stands before a piece that continues a word.
const CONTINUING: &str = "##";
const UNKNOWN: &str = "[UNK]";
const BEGIN: &str = "[CLS]";
const END: &str = "[SEP]";

/// A vocabulary, ready to cut texts with.
pub struct WordPiece {
    pieces: Pieces,
    /// Texts that stand for themselves wherever they occur, with their ids; all begin with a bracket.
    specials: Vec<(String, u32)>,
    unknown: u32,
    begin: u32,
    end: u32,
}

impl fmt::Debug for WordPiece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WordPiece").field("pieces", &self.pieces.ends.len()).finish_non_exhaustive()
    }
}

impl WordPiece {
    /// Reads a family's tokenizer file, in the format of the crate `tokenizers`.
    ///
    /// # Errors
    /// [`Failure::Model`]: the file is damaged, or asks for something else than BERT's lower-casing WordPiece.
    pub fn open(family: &Family, file: &'static str) -> Result<WordPiece, Failure> {
        let bytes = family.read(file)?;
        let described: Described = serde_json::from_slice(&bytes).map_err(|e| family.failure(file, e))?;
        let refused =
            || family.failure(file, "is not a tokenizer that this program can run: BERT's lower-casing WordPiece");
        described.is_known().then_some(()).ok_or_else(refused)?;
        let Described { model, added_tokens, post_processor, .. } = described;
        let pieces = Pieces::new(model.vocab.0).ok_or_else(refused)?;
        let special = |name: &str| {
            let found = added_tokens.iter().find(|token| token.content == name).map(|token| token.id);
            found.ok_or_else(|| family.failure(file, format!("has no token {name}")))
        };
        let end = |name: &str| {
            let found = post_processor.special_tokens.get(name);
            found.and_then(|token| token.ids.first().copied()).ok_or_else(refused)
        };
        let (unknown, begin, end) = (special(UNKNOWN)?, end(BEGIN)?, end(END)?);
        let specials = added_tokens.into_iter().map(|token| (token.content, token.id)).collect();
        Ok(WordPiece { pieces, specials, unknown, begin, end })
    }

    /// The id of the unknown token.
    pub fn unknown(&self) -> u32 {
        self.unknown
    }

    /// One more than the highest id.
    pub fn ids(&self) -> usize {
        let specials = self.specials.iter().map(|(_, id)| *id as usize + 1);
        specials.chain([self.pieces.ends.len()]).max().unwrap_or(0)
    }

    /// The first `tokens_max` ids of a text.
    pub fn tokens(&self, text: &str, tokens_max: usize) -> Vec<u32> {
        let mut cut = Cut { out: Vec::with_capacity((text.len() / 3 + 4).min(tokens_max)), tokens_max };
        self.cut(text, &mut cut);
        cut.out
    }

    /// The first `tokens_max` ids of a text, with the tokens that begin and end a text among them.
    pub fn tokens_between_ends(&self, text: &str, tokens_max: usize) -> Vec<u32> {
        let tokens_max = tokens_max.max(2);
        let mut out = Vec::with_capacity((text.len() / 3 + 4).min(tokens_max));
        out.push(self.begin);
        let mut cut = Cut { out, tokens_max: tokens_max - 1 };
        self.cut(text, &mut cut);
        cut.out.push(self.end);
        cut.out
    }

    /// Special tokens stand for themselves; the text between them is cut.
    fn cut(&self, mut text: &str, cut: &mut Cut) {
        let mut searched = 0;
        while let Some(place) = text[searched..].find('[') {
            let place = searched + place;
            let special = self.specials.iter().find(|(content, _)| text[place..].starts_with(content));
            let Some((content, id)) = special else {
                searched = place + 1;
                continue;
            };
            self.plain(&text[..place], cut);
            cut.push(*id);
            (text, searched) = (&text[place + content.len()..], 0);
        }
        self.plain(text, cut);
    }

    fn plain(&self, text: &str, cut: &mut Cut) {
        let mut word = Word { bytes: Vec::with_capacity(32), chars: 0, hashes: NO_HASHES };
        if text.is_ascii() {
            for byte in text.bytes() {
                match ASCII[usize::from(byte)] {
                    Ascii::Word(lower) => word.push_byte(lower),
                    Ascii::Space => self.end(&mut word, cut),
                    Ascii::Punctuation => self.alone(char::from(byte), &mut word, cut),
                    Ascii::Dropped => {}
                }
                if cut.is_full() {
                    return;
                }
            }
        } else {
            // The order of `tokenizers`: clean, set Chinese characters apart, take accents off, lower-case.
            let spaced = text.chars().filter(|c| !is_dropped(*c)).flat_map(|c| {
                let edge = is_chinese(c).then_some(' ');
                edge.into_iter().chain([c]).chain(edge)
            });
            let bare = spaced.nfd().map(|(c, _)| c).filter(|c| c.is_ascii() || !c.is_mark_nonspacing());
            for c in bare.flat_map(char::to_lowercase) {
                if c.is_whitespace() {
                    self.end(&mut word, cut);
                } else if is_punctuation(c) {
                    self.alone(c, &mut word, cut);
                } else {
                    word.push(c);
                }
                if cut.is_full() {
                    return;
                }
            }
        }
        self.end(&mut word, cut);
    }

    /// A character that is a word by itself.
    fn alone(&self, c: char, word: &mut Word, cut: &mut Cut) {
        self.end(word, cut);
        word.push(c);
        self.end(word, cut);
    }

    /// Cuts the word that ends here: the longest piece that it begins with, then the longest that continues it; all of it
    /// is unknown where one is missing.
    fn end(&self, word: &mut Word, cut: &mut Cut) {
        if word.bytes.is_empty() {
            return;
        }
        let whole = cut.out.len();
        let (mut rest, mut first) = (word.bytes.as_slice(), true);
        while !rest.is_empty() {
            let found =
                if word.chars > WORD_CHARS_MAX { None } else { self.pieces.longest(rest, first, &mut word.hashes) };
            let Some((id, length)) = found else {
                cut.out.truncate(whole);
                cut.push(self.unknown);
                break;
            };
            // Beyond the bound too, as long as the word may still turn out unknown: it is a word of bounded length.
            cut.out.push(id);
            (rest, first) = (&rest[length..], false);
        }
        cut.out.truncate(cut.tokens_max);
        word.bytes.clear();
        word.chars = 0;
    }
}

/// The ids so far.
struct Cut {
    out: Vec<u32>,
    tokens_max: usize,
}

impl Cut {
    fn push(&mut self, id: u32) {
        if !self.is_full() {
            self.out.push(id);
        }
    }

    fn is_full(&self) -> bool {
        self.out.len() >= self.tokens_max
    }
}

/// The word that is being read. Beyond the length that can be known only its characters count.
struct Word {
    bytes: Vec<u8>,
    chars: usize,
    hashes: Hashes,
}

impl Word {
    fn push_byte(&mut self, byte: u8) {
        self.chars += 1;
        if self.chars <= WORD_CHARS_MAX {
            self.bytes.push(byte);
        }
    }

    fn push(&mut self, c: char) {
        self.chars += 1;
        if self.chars <= WORD_CHARS_MAX {
            self.bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
        }
    }
}

/// What becomes of an ASCII character.
#[derive(Clone, Copy)]
enum Ascii {
    /// Part of a word, in lower case.
    Word(u8),
    Space,
    Punctuation,
    Dropped,
}

static ASCII: [Ascii; 256] = {
    let mut table = [Ascii::Dropped; 256];
    let mut byte = 0;
    while byte < 128 {
        let c = byte as u8;
        table[byte] = match c {
            b'\t' | b'\n' | b'\r' | b' ' => Ascii::Space,
            _ if c.is_ascii_control() => Ascii::Dropped,
            _ if c.is_ascii_punctuation() => Ascii::Punctuation,
            _ => Ascii::Word(c.to_ascii_lowercase()),
        };
        byte += 1;
    }
    table
};

fn is_dropped(c: char) -> bool {
    match c {
        '\t' | '\n' | '\r' => false,
        _ if c.is_ascii() => c.is_ascii_control(),
        _ => c == '\u{FFFD}' || c.is_other(),
    }
}

fn is_punctuation(c: char) -> bool {
    if c.is_ascii() { c.is_ascii_punctuation() } else { c.is_punctuation() }
}

fn is_chinese(c: char) -> bool {
    matches!(
        u32::from(c),
        0x4E00..=0x9FFF
            | 0x3400..=0x4DBF
            | 0x20000..=0x2A6DF
            | 0x2A700..=0x2B73F
            | 0x2B740..=0x2B81F
            | 0x2B920..=0x2CEAF
            | 0xF900..=0xFAFF
            | 0x2F800..=0x2FA1F
    )
}

#[cfg(test)]
mod tests;
