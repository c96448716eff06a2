//! Words of self-harm in what people say: a list, looked for word by word, and nothing more.
//!
//! Promises: [`stands_in`] is a pure function of the text, whatever its case, apostrophes and signs, and however a letter is
//! drawn out. It is no diagnosis and no measure of danger: it misses what is said in other words, and it finds the name of
//! a film. How often, `models/dreams` says. Leaves out: what follows from it (the stages and whoever makes dreams).

use std::sync::LazyLock;

use foldhash::HashMap;

/// Turns that carry the flag: the one with the words, and those after it.
pub const FLAGGED_TURNS: i32 = 20;

/// Phrases by their first word.
static PHRASES: LazyLock<HashMap<String, Vec<Vec<String>>>> = LazyLock::new(|| {
    let mut phrases: HashMap<String, Vec<Vec<String>>> = HashMap::default();
    for line in include_str!("self_harm.txt").lines().filter(|line| !line.starts_with('#')) {
        let mut words = words(runs(line));
        if let Some(first) = words.next() {
            phrases.entry(first).or_default().push(words.collect());
        }
    }
    phrases
});

/// Whether a word or phrase of the list stands in the text.
pub fn stands_in(text: &str) -> bool {
    let (mut rest, mut word) = (runs(text), String::new());
    while let Some(run) = rest.next() {
        word.clear();
        plain(run, &mut word);
        let begun = PHRASES.get(word.as_str()).into_iter().flatten();
        if begun.into_iter().any(|phrase| phrase.iter().cloned().eq(words(rest.clone()).take(phrase.len()))) {
            return true;
        }
    }
    false
}

/// Runs of letters, figures and apostrophes.
fn runs(text: &str) -> impl Iterator<Item = &str> + Clone {
    text.split(|c: char| !c.is_alphanumeric() && !is_apostrophe(c))
}

/// The words of runs.
fn words<'t>(runs: impl Iterator<Item = &'t str>) -> impl Iterator<Item = String> {
    let word = |run: &str| {
        let mut word = String::with_capacity(run.len());
        plain(run, &mut word);
        word
    };
    runs.map(word).filter(|word| !word.is_empty())
}

/// Appends a run in lower case, without apostrophes; a letter three times or more in a row is written once.
fn plain(run: &str, out: &mut String) {
    let mut letters = run.chars().filter(|c| !is_apostrophe(*c)).flat_map(char::to_lowercase).peekable();
    while let Some(c) = letters.next() {
        let mut times = 1;
        while letters.next_if_eq(&c).is_some() {
            times += 1;
        }
        out.extend(std::iter::repeat_n(c, if times == 2 { 2 } else { 1 }));
    }
}

fn is_apostrophe(c: char) -> bool {
    matches!(c, '\'' | '’' | '‘' | 'ʼ' | '`' | '´')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Found and all, of the sentences of this label.
    fn counted(label: &str) -> (usize, usize) {
        let rows = include_str!("self_harm_cases.tsv").lines().filter_map(|line| line.split_once('\t'));
        let texts: Vec<&str> = rows.filter(|(l, _)| *l == label).map(|(_, text)| text).collect();
        (texts.iter().filter(|text| stands_in(text)).count(), texts.len())
    }

    #[test]
    fn spelling_does_not_hide_the_words() {
        for text in [
            "I WANT TO DIE",
            "want… to – die!",
            "I don’t want to live",
            "i dont want to live",
            "wanna dieeee",
            "self-harm",
        ] {
            assert!(stands_in(text), "{text}");
        }
        for text in ["", "want to", "to die", "I want to dine", "suicides", "kill it myself"] {
            assert!(!stands_in(text), "{text}");
        }
    }

    /// The card gives these counts. Whoever changes the list sees here what that does.
    #[test]
    fn misses_and_false_alarms_are_those_of_the_card() {
        assert_eq!(counted("about"), (20, 36));
        assert_eq!(counted("other"), (14, 36));
    }
}
