//! The second detector where most texts are: whatlang's method and its profiles for Latin and Cyrillic letters.
//!
//! Promises: for a text in these letters the language and the confidence that the crate `whatlang` gives (a test compares
//! them), at a fraction of its cost: one table finds a trigram's rank in all languages, where the crate looks up all
//! trigrams of each language. Leaves out: other scripts, for which the crate is asked.

mod order;

use std::cmp::{Ordering, Reverse};
use std::sync::LazyLock;

use crate::wide::wide;

/// A line a language: code, script, alphabet, and its 300 most frequent trigrams, the most frequent first, without
/// anything between them. From whatlang 0.18.0 (MIT; see `NOTICE`), in its order.
const FILE: &str = include_str!("profiles.tsv");
/// Trigrams of a profile, and the distance of one that a text lacks (`MAX_TRIGRAM_DISTANCE` there).
const RANKS: usize = 300;
/// Trigrams of a text that are looked at, the most frequent first (`TEXT_TRIGRAMS_SIZE` there).
const TRIGRAMS_MAX: usize = 600;
/// Languages of a script that the tables can hold.
const LANGUAGES_MAX: usize = 20;
/// The one ASCII character that is neither a letter nor says nothing.
const DELETE: char = '\u{7F}';

static LATIN: LazyLock<Profiles> = LazyLock::new(|| Profiles::read("latin"));
static CYRILLIC: LazyLock<Profiles> = LazyLock::new(|| Profiles::read("cyrillic"));

/// What the detector answers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Guess {
    /// ISO 639-3 code.
    pub(super) code: &'static str,
    /// 0 to 1, of unknown meaning.
    pub(super) confidence: f64,
}

/// The language of a text of Latin or Cyrillic letters; the error is that it has others, or as many of the one as of the
/// other.
pub(super) fn detect(text: &str) -> Result<Option<Guess>, OtherScript> {
    if text.is_ascii() && !text.contains(DELETE) {
        return Ok(LATIN.detect_ascii(text));
    }
    let (mut latin, mut cyrillic) = (0, 0);
    for c in text.chars().filter(|c| !is_stop(*c)) {
        match script(c).ok_or(OtherScript)? {
            Script::Latin => latin += 1,
            Script::Cyrillic => cyrillic += 1,
            Script::None => {}
        }
    }
    let lower = text.chars().flat_map(char::to_lowercase);
    match latin.cmp(&cyrillic) {
        Ordering::Greater => Ok(Some(LATIN.detect(lower, text.len()))),
        Ordering::Less => Ok(Some(CYRILLIC.detect(lower, text.len()))),
        Ordering::Equal if latin == 0 => Ok(None),
        Ordering::Equal => Err(OtherScript),
    }
}

/// A text that these profiles cannot judge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OtherScript;

enum Script {
    Latin,
    Cyrillic,
    /// Of no script: punctuation, symbols, emoji.
    None,
}

/// The script of a character, if it is one of these; as whatlang has them.
fn script(c: char) -> Option<Script> {
    match u32::from(c) {
        0x41..=0x5A | 0x61..=0x7A | 0x80..=0x2AF | 0x1D00..=0x1D2A | 0x1D2C..=0x1D77 | 0x1D79..=0x1DBF => {
            Some(Script::Latin)
        }
        0x1E00..=0x1EFF | 0x2100..=0x214F => Some(Script::Latin),
        0x400..=0x484 | 0x487..=0x52F => Some(Script::Cyrillic),
        0x7F | 0x300..=0x36F | 0x2000..=0x20FF | 0x2150..=0x2BFF | 0xFE00..=0xFE0F | 0x1F000..=0x1FAFF => {
            Some(Script::None)
        }
        _ => None,
    }
}

/// A character that says nothing of a language: white space, ASCII punctuation and digits.
fn is_stop(c: char) -> bool {
    matches!(c, '\0'..='\u{40}' | '\u{5B}'..='\u{60}' | '\u{7B}'..='\u{7E}')
}

/// The profiles of one script, turned round: from what a text holds to the languages that have it.
struct Profiles {
    codes: Vec<&'static str>,
    /// A bit for each language.
    all: u32,
    /// By character, a bit for each language whose alphabet has it.
    alphabets: Vec<u32>,
    /// Open addressing, at most half full: a trigram and its row, or zeros; no trigram is 0.
    slots: Vec<(u64, u16)>,
    /// By the code of a trigram of ASCII letters, its row.
    ascii: Vec<u16>,
    /// For each trigram its rank in each language; the first row is that of all trigrams that no language has.
    rows: Vec<Row>,
}

type Row = [i16; LANGUAGES_MAX];
/// Stands for the rank in a language that lacks the trigram.
const LACKING: i16 = i16::MAX;

impl Profiles {
    fn read(script: &str) -> Profiles {
        let mut profiles = Profiles {
            codes: Vec::new(),
            all: 0,
            alphabets: Vec::new(),
            slots: Vec::new(),
            ascii: Vec::new(),
            rows: Vec::new(),
        };
        let mut ranks = Vec::new();
        for line in FILE.lines() {
            let mut fields = line.split('\t');
            let mut field = || fields.next().expect("a line has four fields: a test reads them all");
            let [code, of, alphabet, trigrams] = [field(), field(), field(), field()];
            if of != script {
                continue;
            }
            let language = profiles.codes.len();
            profiles.codes.push(code);
            for c in alphabet.chars() {
                let characters = profiles.alphabets.len().max(c as usize + 1);
                profiles.alphabets.resize(characters, 0);
                profiles.alphabets[c as usize] |= 1 << language;
            }
            let characters: Vec<char> = trigrams.chars().collect();
            let (trigrams, _) = characters.as_chunks::<3>();
            ranks.extend(trigrams.iter().zip(0i16..).map(|(trigram, rank)| (*trigram, language, rank)));
        }
        debug_assert!(profiles.codes.len() <= LANGUAGES_MAX, "the tables hold {LANGUAGES_MAX} languages");
        profiles.all = (1 << profiles.codes.len()) - 1;
        profiles.index(ranks);
        profiles
    }

    fn index(&mut self, mut ranks: Vec<([char; 3], usize, i16)>) {
        ranks.sort_unstable();
        let trigrams = ranks.chunk_by(|a, b| a.0 == b.0).count();
        self.slots = vec![(0, 0); (trigrams * 2).next_power_of_two()];
        self.ascii = vec![0; order::ASCII_CODES];
        self.rows = vec![[LACKING; LANGUAGES_MAX]];
        for same in ranks.chunk_by(|a, b| a.0 == b.0) {
            let (trigram, row) = (same[0].0, self.rows.len() as u16);
            let mut ranks = [LACKING; LANGUAGES_MAX];
            same.iter().for_each(|(_, language, rank)| ranks[*language] = *rank);
            self.rows.push(ranks);
            let slot = self.slot(packed(trigram));
            self.slots[slot] = (packed(trigram), row);
            if let Some(code) = order::ascii_code(trigram) {
                self.ascii[code] = row;
            }
        }
    }

    /// The slot of a trigram, or the empty one where it would be.
    fn slot(&self, trigram: u64) -> usize {
        // Fibonacci hashing (Knuth, volume 3, section 6.4).
        let bits = self.slots.len().trailing_zeros();
        let mut slot = (trigram.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (64 - bits)) as usize;
        while self.slots[slot].0 != trigram && self.slots[slot].0 != 0 {
            slot = (slot + 1) & (self.slots.len() - 1);
        }
        slot
    }

    /// The language of a text in lower case that holds a letter.
    fn detect(&self, text: impl Iterator<Item = char>, length: usize) -> Guess {
        let mut letters = Letters::default();
        let mut met = Vec::with_capacity(length + 1);
        let (mut before, mut middle) = (' ', ' ');
        for (place, c) in text.chain([' ']).enumerate() {
            let after = if is_stop(c) { ' ' } else { c };
            if place > 0 && !(middle == ' ' && (before == ' ' || after == ' ')) {
                met.push(packed([before, middle, after]));
            }
            (before, middle) = (middle, after);
            if after != ' ' {
                letters.count(self, c);
            }
        }
        let mut rows: Vec<u16> =
            order::general(met).into_iter().map(|trigram| self.slots[self.slot(trigram)].1).collect();
        rows.truncate(TRIGRAMS_MAX);
        self.best(&letters, &rows)
    }

    /// As [`Profiles::detect`], for ASCII, in any case; `None` if there is no letter.
    fn detect_ascii(&self, text: &str) -> Option<Guess> {
        let mut letters = Letters::default();
        let mut order = order::Ascii::new();
        for byte in text.bytes().chain([b' ']) {
            if order.push(byte) {
                letters.count(self, char::from(byte.to_ascii_lowercase()));
            }
        }
        let mut rows = Vec::with_capacity(text.len() + 1);
        order.each(|code| rows.push(self.ascii[code]));
        rows.truncate(TRIGRAMS_MAX);
        (letters.all > 0).then(|| self.best(&letters, &rows))
    }

    /// The best of the languages by alphabet and trigrams together, and how far it is from the second.
    fn best(&self, letters: &Letters, rows: &[u16]) -> Guess {
        let count = f64::from(letters.all);
        // A letter outside the alphabet takes away what one inside it gives.
        let alphabet = letters.of.map(|inside| ((letters.common + inside) * 2).saturating_sub(letters.all));
        let similarity = similarity(&self.rows, rows);
        // The longer the text, the less the alphabet weighs: from 2/3 to 1/3 at 100 letters.
        let weight = (-(count / 300.0) + 2.0 / 3.0).clamp(1.0 / 3.0, 2.0 / 3.0);
        let score = |l: usize| f64::from(alphabet[l]) / count * weight + similarity[l] * (1.0 - weight);
        // Of equal scores the nearer alphabet comes first, then the earlier language.
        let mut order: [usize; LANGUAGES_MAX] = std::array::from_fn(|language| language);
        let order = &mut order[..self.codes.len()];
        order.sort_by_key(|language| Reverse(alphabet[*language]));
        let (mut first, mut second) = ((0, f64::MIN), f64::MIN);
        for language in order.iter().copied() {
            let score = score(language);
            if score > first.1 {
                second = first.1;
                first = (language, score);
            } else if score > second {
                second = score;
            }
        }
        Guess { code: self.codes[first.0], confidence: confidence(first.1, second, rows.len()) }
    }
}

/// The letters of a text.
#[derive(Default)]
struct Letters {
    all: u32,
    /// Those that all alphabets have.
    common: u32,
    /// The others, by language.
    of: [u32; LANGUAGES_MAX],
}

impl Letters {
    fn count(&mut self, profiles: &Profiles, c: char) {
        self.all += 1;
        match profiles.alphabets.get(c as usize).copied().unwrap_or(0) {
            all if all == profiles.all => self.common += 1,
            some => self.of.iter_mut().zip(0..).for_each(|(count, language)| *count += some >> language & 1),
        }
    }
}

/// How near each profile is to the text whose trigrams have these rows, 0 to 1: the distance of ranks of Cavnar and
/// Trenkle (1994).
fn similarity(profiles: &[Row], rows: &[u16]) -> [f64; LANGUAGES_MAX] {
    let near = nearness(profiles, rows).map(i64::from);
    let all = (RANKS * RANKS) as i64;
    let most = (rows.len() * RANKS) as i64;
    let missing = (RANKS.saturating_sub(rows.len()) * RANKS) as i64;
    near.map(|near| (most - (all - missing - near).clamp(0, all)).max(0) as f64 / most as f64)
}

wide! {
    /// By language, the sum over the text's trigrams of how much nearer each is than one that is lacking.
    fn nearness(profiles: &[Row], rows: &[u16]) -> [i32; LANGUAGES_MAX] {
        let mut near = [0; LANGUAGES_MAX];
        let mut place = 0;
        while place < rows.len() {
            let ranks = &profiles[usize::from(rows[place])];
            let mut language = 0;
            while language < LANGUAGES_MAX {
                let nearer = RANKS as i16 - (place as i16 - ranks[language]).abs();
                near[language] += i32::from(if ranks[language] == LACKING { 0 } else { nearer });
                language += 1;
            }
            place += 1;
        }
        near
    }
}

/// As whatlang has it: a lead above a hyperbola over the number of trigrams is sure.
fn confidence(first: f64, second: f64, count: usize) -> f64 {
    if first == 0.0 {
        return 0.0;
    }
    if second == 0.0 {
        return first;
    }
    let sure = 3.0 / count as f64 + 0.015;
    let lead = (first - second) / second;
    if lead > sure { 1.0 } else { lead / sure }
}

/// Three characters as one number, in the order of the characters.
fn packed([a, b, c]: [char; 3]) -> u64 {
    u64::from(a) << 42 | u64::from(b) << 21 | u64::from(c)
}
