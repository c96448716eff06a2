//! Words that never come out of a dream, and the list of self-harm words, matched by how a text reads rather than by how
//! it is written.
//!
//! A text is reduced to what a reader takes it for: compatibility forms and accents are taken off, characters that look
//! like Latin letters become those letters (Unicode TS 39), invisible ones vanish, figures and signs that stand for
//! letters join them, and letters that look alike in some typeface (i, l, 1) are one class, in the list as in the text.
//! Then every listed word is looked for with its inflections, with letters drawn out, broken by punctuation or spelled
//! letter by letter. Promises: [`BlockList::admit`] is the only way to an [`Admitted`] text, and it reads the text whole,
//! as it will be shown, so that no cut into tokens or lines hides a word. A false alarm costs another draw; a miss is a
//! fault. Leaves out: meaning. A word that is not listed, and an insult without bad words, pass.

use std::collections::HashMap;
use std::sync::LazyLock;

use unicode_categories::UnicodeCategories;
use unicode_normalization_alignments::UnicodeNormalization;

/// Letters of one listed word at most; a longer one is refused when the list is read.
pub const LETTERS_MAX: usize = 40;
/// Words of one listed phrase at most.
pub const PHRASE_MAX: usize = 8;
/// Lists longer than this are refused.
pub const ENTRIES_MAX: usize = 10_000;
/// Endings after which a word is still the listed one. Longer ones stand on their own in a list.
const ENDINGS: [&str; 30] = [
    "", "s", "es", "ed", "d", "er", "ers", "ing", "ings", "in", "y", "ies", "ied", "ier", "iest", "ily", "ly", "ish",
    "est", "ness", "able", "or", "ors", "ful", "less", "ism", "ist", "ists", "al", "like",
];

/// What the ending begins with after a letter that was left off.
const VOWELS: [char; 5] = ['a', 'e', 'i', 'o', 'y'];

/// Characters that look like letters.
static LOOKS: LazyLock<HashMap<char, &'static str>> = LazyLock::new(|| {
    let rows = include_str!("confusables.tsv").lines().filter(|line| !line.starts_with('#'));
    rows.filter_map(|row| row.split_once('\t')).filter_map(|(c, l)| Some((c.chars().next()?, l))).collect()
});

/// A text that the list admitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admitted(String);

impl Admitted {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Why a list cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    /// An entry without a letter.
    #[error("entry {0:?} holds no letter: take it out, or write the word that it stands for")]
    Empty(String),
    /// An entry that is too long.
    #[error("entry {0:?} is longer than {LETTERS_MAX} letters a word or {PHRASE_MAX} words: list its telling part")]
    Long(String),
    /// Too many entries.
    #[error("{0} entries are more than {ENTRIES_MAX}: split the list over several deployments or shorten it")]
    Many(usize),
}

/// How far a listed word reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// The word and its inflections.
    Word,
    /// `word*`: any ending.
    Beginning,
    /// `*word*`: anywhere within a word.
    Within,
}

/// A letter and how often it stands there in a row.
type Run = (char, usize);

#[derive(Debug, Clone)]
struct Pattern {
    /// The letters of the word itself, then of its inflections: whole, because an ending's first letter may stand in one
    /// run with the word's last ("l" and "i" are one class).
    forms: Vec<Vec<Run>>,
    reach: Reach,
}

/// A list of words and phrases.
#[derive(Debug, Clone, Default)]
pub struct BlockList {
    phrases: Vec<Vec<Pattern>>,
    /// Indices into `phrases` by the class of their first letter; those that may begin anywhere are under `None`.
    begins: HashMap<Option<char>, Vec<usize>>,
}

impl BlockList {
    /// Reads a list: one word or phrase a line, `#` begins a comment, `word*` takes any ending, `*word*` any place in a word.
    ///
    /// # Errors
    /// An entry that can never match, or a list out of bounds.
    pub fn parse(list: &str) -> Result<BlockList, ListError> {
        let entries: Vec<&str> =
            list.lines().map(|l| l.split('#').next().unwrap_or("").trim()).filter(|l| !l.is_empty()).collect();
        if entries.len() > ENTRIES_MAX {
            return Err(ListError::Many(entries.len()));
        }
        let mut read = BlockList::default();
        for entry in entries {
            let words: Vec<&str> = entry.split_whitespace().collect();
            let patterns = words.iter().map(|w| Pattern::of(w)).collect::<Option<Vec<_>>>();
            let patterns = patterns.ok_or_else(|| ListError::Empty(entry.to_owned()))?;
            if patterns.len() > PHRASE_MAX
                || patterns.iter().any(|p| p.forms[0].iter().map(|r| r.1).sum::<usize>() > LETTERS_MAX)
            {
                return Err(ListError::Long(entry.to_owned()));
            }
            let first = &patterns[0];
            let begin = (first.reach != Reach::Within).then(|| first.forms[0][0].0);
            read.begins.entry(begin).or_default().push(read.phrases.len());
            read.phrases.push(patterns);
        }
        Ok(read)
    }

    /// The text, if no listed word stands in it.
    pub fn admit(&self, text: String) -> Option<Admitted> {
        (!self.finds(text.as_str())).then_some(Admitted(text))
    }

    /// Whether a listed word or phrase stands in the text.
    pub fn finds(&self, text: &str) -> bool {
        readings(text).iter().any(|words| (0..words.len()).any(|at| self.found_at(words, at)))
    }

    fn found_at(&self, words: &[Vec<Run>], at: usize) -> bool {
        let first = words[at].first().map(|run| run.0);
        let begin = self.begins.get(&first).into_iter().flatten();
        let anywhere = self.begins.get(&None).into_iter().flatten();
        begin.chain(anywhere).any(|index| {
            let phrase = &self.phrases[*index];
            words.len() - at >= phrase.len()
                && phrase.iter().zip(&words[at..]).all(|(pattern, word)| pattern.matches(word))
        })
    }
}

impl Pattern {
    fn of(entry: &str) -> Option<Pattern> {
        let reach = match (entry.starts_with('*'), entry.ends_with('*')) {
            (true, _) => Reach::Within,
            (false, true) => Reach::Beginning,
            (false, false) => Reach::Word,
        };
        let letters = letters(entry.trim_matches('*'));
        if letters.is_empty() {
            return None;
        }
        let mut forms = vec![runs(&letters)];
        if reach == Reach::Word {
            forms.extend(ENDINGS.iter().skip(1).map(|ending| runs(&format!("{letters}{}", self::letters(ending)))));
            // The silent e goes before a vowel, y becomes i: both are left off before endings that begin with a vowel.
            if letters.chars().count() > 3 && letters.ends_with(['e', 'y']) {
                let short = &letters[..letters.len() - 1];
                let vowel = ENDINGS.iter().filter(|ending| ending.starts_with(VOWELS));
                forms.extend(vowel.map(|ending| runs(&format!("{short}{}", self::letters(ending)))));
            }
        }
        Some(Pattern { forms, reach })
    }

    fn matches(&self, word: &[Run]) -> bool {
        match self.reach {
            Reach::Word => self.forms.iter().any(|form| form.len() == word.len() && rest(form, word).is_some()),
            Reach::Beginning => rest(&self.forms[0], word).is_some(),
            Reach::Within => (0..word.len()).any(|at| rest(&self.forms[0], &word[at..]).is_some()),
        }
    }
}

/// What is left of the word after the pattern, each of whose letters may be drawn out; a run that reaches over the
/// pattern's end belongs to the pattern, as in a doubled consonant.
fn rest<'a>(pattern: &[Run], word: &'a [Run]) -> Option<&'a [Run]> {
    let fits = word.len() >= pattern.len() && pattern.iter().zip(word).all(|(p, w)| p.0 == w.0 && w.1 >= p.1);
    fits.then(|| &word[pattern.len()..])
}

fn runs(letters: &str) -> Vec<Run> {
    let mut found: Vec<Run> = Vec::new();
    for c in letters.chars() {
        match found.last_mut() {
            Some((last, count)) if *last == c => *count += 1,
            _ => found.push((c, 1)),
        }
    }
    found
}

/// The classes of a text's letters, without anything between them.
fn letters(text: &str) -> String {
    folded(text).chars().filter(|c| c.is_alphabetic()).collect()
}

/// The text as it reads: Latin letters in classes, all else that is shown as it is.
fn folded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if let Some(look) = look(c) {
            out.extend(look.chars().map(class));
            continue;
        }
        for bare in std::iter::once(c).nfkd().map(|(c, _)| c) {
            // Marks sit on letters, format characters and the soft hyphen show nothing.
            if bare.is_mark() || bare.is_other_format() || ('\u{fe00}'..='\u{fe0f}').contains(&bare) {
                continue;
            }
            for small in bare.to_lowercase() {
                match look(small) {
                    Some(look) => out.extend(look.chars().map(class)),
                    None => out.push(class(small)),
                }
            }
        }
    }
    out
}

/// Of a character that looks like a Latin letter, or whose capital does.
fn look(c: char) -> Option<&'static str> {
    let of = |c: char| (!c.is_ascii()).then(|| LOOKS.get(&c).copied()).flatten();
    of(c).or_else(|| c.to_uppercase().next().filter(|upper| *upper != c).and_then(of))
}

/// Letters, figures and signs that are written for each other, as one letter.
fn class(c: char) -> char {
    match c {
        'l' | '1' | '!' | '|' => 'i',
        '0' => 'o',
        '3' => 'e',
        '4' | '@' => 'a',
        '5' | '$' => 's',
        '7' | '+' => 't',
        '8' => 'b',
        '9' => 'g',
        'v' => 'u',
        other => other,
    }
}

/// The text's words, read in every way that a reader may: broken at punctuation, with punctuation taken out, with figures
/// and signs for letters and without, and with letters that stand alone drawn together.
fn readings(text: &str) -> Vec<Vec<Vec<Run>>> {
    let folded = folded(text);
    let bare = plain(text);
    let mut readings: Vec<Vec<String>> = Vec::new();
    for form in [&folded, &bare] {
        let chunks: Vec<String> =
            form.split_whitespace().map(|chunk| chunk.chars().filter(|c| c.is_alphabetic()).collect()).collect();
        readings.push(chunks.iter().filter(|c: &&String| !c.is_empty()).cloned().collect());
        readings.push(
            form.split(|c: char| !c.is_alphabetic() && c != '\'' && c != '’')
                .map(|w| w.chars().filter(|c| c.is_alphabetic()).collect::<String>())
                .filter(|w| !w.is_empty())
                .collect(),
        );
        readings.push(drawn_together(&readings[readings.len() - 1]));
        readings.push(drawn_together(&chunks));
    }
    // "rn" is read as "m" in many a typeface, "vv" (here "uu") as "w".
    let joined: Vec<Vec<String>> =
        readings.iter().map(|words| words.iter().map(|w| w.replace("rn", "m").replace("uu", "w")).collect()).collect();
    readings.extend(joined);
    readings.sort_unstable();
    readings.dedup();
    readings.into_iter().map(|words| words.iter().map(|w| runs(w)).collect()).collect()
}

/// As [`folded`], but figures and signs stay what they are: "a$" is not "as".
fn plain(text: &str) -> String {
    let hidden: String = text
        .chars()
        .map(
            |c| if c.is_ascii() && !c.is_ascii_alphabetic() && !c.is_ascii_whitespace() && c != '\'' { ' ' } else { c },
        )
        .collect();
    folded(&hidden)
}

/// Runs of words of one letter, each run as one word.
fn drawn_together(words: &[String]) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    let mut alone = false;
    for word in words.iter().filter(|w| !w.is_empty()) {
        let single = word.chars().count() == 1;
        match out.last_mut() {
            Some(last) if single && alone => last.push_str(word),
            _ => out.push(word.clone()),
        }
        alone = single;
    }
    out
}

#[cfg(test)]
#[path = "blocked_tests.rs"]
mod tests;
