//! Words of self-harm in what people say: a list, looked for word by word, and nothing more.
//!
//! Promises: [`stands_in`] is a pure function of the text, whatever its case, apostrophes and signs, and however a letter is
//! drawn out. It is no diagnosis and no measure of danger: it misses what is said in other words, and it finds the name of
//! a film. How often, `models/dreams` says. Leaves out: what follows from it (the stages and whoever makes dreams).

use std::collections::HashMap;
use std::sync::LazyLock;

/// Turns that carry the flag: the one with the words, and those after it.
pub const FLAGGED_TURNS: i32 = 20;

/// Phrases by their first word.
static PHRASES: LazyLock<HashMap<String, Vec<Vec<String>>>> = LazyLock::new(|| {
    let mut phrases: HashMap<String, Vec<Vec<String>>> = HashMap::new();
    for line in include_str!("self_harm.txt").lines().filter(|line| !line.starts_with('#')) {
        let mut words = words(line);
        if let Some(first) = words.next() {
            phrases.entry(first).or_default().push(words.collect());
        }
    }
    phrases
});

/// Whether a word or phrase of the list stands in the text.
pub fn stands_in(text: &str) -> bool {
    let mut rest = words(text);
    while let Some(word) = rest.next() {
        let begun = PHRASES.get(&word).into_iter().flatten();
        if begun.into_iter().any(|phrase| phrase.iter().cloned().eq(rest.clone().take(phrase.len()))) {
            return true;
        }
    }
    false
}

/// Words in lower case, without apostrophes; a letter three times or more in a row is written once.
fn words(text: &str) -> impl Iterator<Item = String> + Clone + '_ {
    let is_apart = |c: char| !c.is_alphanumeric() && !is_apostrophe(c);
    text.split(is_apart).filter_map(|word| {
        let mut out = String::with_capacity(word.len());
        let mut letters = word.chars().filter(|c| !is_apostrophe(*c)).flat_map(char::to_lowercase).peekable();
        while let Some(c) = letters.next() {
            let mut times = 1;
            while letters.next_if_eq(&c).is_some() {
                times += 1;
            }
            out.extend(std::iter::repeat_n(c, if times == 2 { 2 } else { 1 }));
        }
        (!out.is_empty()).then_some(out)
    })
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
