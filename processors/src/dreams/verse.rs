//! From pieces to lines: the decoder's vocabulary, and case, which its pieces leave out.
//!
//! Promises: [`unfold`] is the inverse of the folding that training used (models/train/dream_text.py), and total: pieces that
//! training never put together still give a text. Leaves out: which pieces come (the sampler).

use unicode_categories::UnicodeCategories;

/// The next letter is a capital where it would not be one, and the other way round.
const FLIP: char = '\u{1}';
/// All letters up to the next other character are capitals.
const CAPITALS: char = '\u{2}';

/// A folded line as it is shown: its first letter is a capital unless a mark says otherwise.
pub fn unfold(folded: &str) -> String {
    let (mut out, mut flip, mut capitals, mut first) = (String::with_capacity(folded.len()), false, false, true);
    for c in folded.strip_prefix(' ').unwrap_or(folded).chars() {
        match c {
            FLIP => flip = true,
            CAPITALS => capitals = true,
            'a'..='z' => {
                out.push(if capitals || flip != first { c.to_ascii_uppercase() } else { c });
                flip = false;
                first = false;
            }
            c => {
                (capitals, flip) = (false, false);
                // A control character is never shown: the vocabulary holds all bytes.
                if !c.is_control() {
                    out.push(c);
                }
            }
        }
    }
    out
}

/// A line as the vocabulary knows it; the inverse of [`unfold`] on lines without control characters.
pub fn fold(line: &str) -> String {
    let (mut out, mut first, mut rest) = (String::from(" "), true, line);
    while let Some(start) = rest.find(|c: char| c.is_ascii_alphabetic()) {
        let (before, from) = rest.split_at(start);
        let end = from.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(from.len());
        let (word, after) = from.split_at(end);
        out.push_str(before);
        if word.len() > 1 && word.bytes().all(|b| b.is_ascii_uppercase()) {
            out.push(CAPITALS);
            out.push_str(&word.to_ascii_lowercase());
        } else {
            for (at, c) in word.chars().enumerate() {
                if c.is_ascii_uppercase() != (first && at == 0) {
                    out.push(FLIP);
                }
                out.push(c.to_ascii_lowercase());
            }
        }
        (first, rest) = (false, after);
    }
    out.push_str(rest);
    out
}

/// The words, runs of signs and runs of space that pieces never reach across.
pub fn words(folded: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut rest = folded;
    while !rest.is_empty() {
        let (word, after) = rest.split_at(word(rest).or_else(|| signs(rest)).unwrap_or_else(|| space(rest)));
        found.push(word);
        rest = after;
    }
    found
}

const APOSTROPHES: [char; 2] = ['\'', '\u{2019}'];

/// Length of a word at the start, with the space and the mark before it and apostrophes between its letters.
fn word(text: &str) -> Option<usize> {
    let bare = text.strip_prefix(' ').unwrap_or(text);
    let bare = bare.strip_prefix([FLIP, CAPITALS]).unwrap_or(bare);
    let mut rest = bare.trim_start_matches(UnicodeCategories::is_letter);
    if rest.len() == bare.len() {
        return None;
    }
    loop {
        let more = rest.strip_prefix(APOSTROPHES).map(|r| (r, r.trim_start_matches(UnicodeCategories::is_letter)));
        match more {
            Some((from, to)) if to.len() < from.len() => rest = to,
            _ => return Some(text.len() - rest.len()),
        }
    }
}

fn signs(text: &str) -> Option<usize> {
    let bare = text.strip_prefix(' ').unwrap_or(text);
    let rest = bare.trim_start_matches(|c: char| !c.is_whitespace() && !c.is_letter() && c != FLIP && c != CAPITALS);
    (rest.len() < bare.len()).then(|| text.len() - rest.len())
}

/// Length of the space at the start, or of the one character that is left.
fn space(text: &str) -> usize {
    match text.len() - text.trim_start().len() {
        0 => text.chars().next().map_or(0, char::len_utf8),
        length => length,
    }
}

/// A piece of the vocabulary as its bytes: byte-level BPE writes each byte as a printable character.
pub fn bytes(piece: &str) -> Option<Vec<u8>> {
    piece.chars().map(byte).collect()
}

/// The byte that a character of a piece stands for: printable ones for themselves, the others counted from U+0100 on.
fn byte(c: char) -> Option<u8> {
    let own = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let code = u32::from(c);
    match u8::try_from(code) {
        Ok(b) if own(b) => Some(b),
        Ok(_) => None,
        Err(_) => (0..=u8::MAX).filter(|b| !own(*b)).nth(usize::try_from(code.checked_sub(0x100)?).ok()?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_comes_back() {
        for (folded, line) in [
            (" and in the woods \u{1}i dwelt", "And in the woods I dwelt"),
            (" \u{1}and in", "and in"),
            (" \"and slaughter", "\"And slaughter"),
            (" \u{2}lxxiii. \u{2}the \u{1}mc\u{1}donald", "LXXIII. THE McDonald"),
            ("", ""),
            (" 12 \u{1}", "12 "),
        ] {
            assert_eq!(unfold(folded), line);
            assert_eq!(unfold(&fold(line)), line);
        }
    }

    #[test]
    fn words_are_cut_as_in_training() {
        let found = words(" th' unconquer'd o'er-arching \u{1}heav'n,  'tis \u{1}i! 12 é\u{1}x");
        let expected = [
            " th",
            "'",
            " unconquer'd",
            " o'er",
            "-",
            "arching",
            " \u{1}heav'n",
            ",",
            "  ",
            "'",
            "tis",
            " \u{1}i",
            "!",
            " 12",
            " é",
            "\u{1}x",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn pieces_are_bytes() {
        assert_eq!(bytes("Ġāi").as_deref(), Some(&b" \x01i"[..]));
        assert_eq!(bytes("Ã©").as_deref(), Some("é".as_bytes()));
        assert_eq!((0..=u8::MAX).filter(|b| !matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff)).count(), 68);
        assert_eq!(bytes("\u{200b}"), None);
    }
}
