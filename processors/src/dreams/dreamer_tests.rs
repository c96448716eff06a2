//! The shipped decoder, held against what Python made of the same graph, and its dreams.

use serde::Deserialize;

use super::*;
use crate::stages::tests::models;

#[derive(Deserialize)]
struct Line {
    line: String,
    pieces: Vec<u32>,
    bits: f64,
}

fn dreamer(list: &str) -> Dreamer {
    let (models, library) = models().places();
    Dreamer::open(models, library, 1, BlockList::parse(list).unwrap()).unwrap()
}

#[test]
fn lines_are_cut_and_weighed_as_in_python() {
    let dreamer = dreamer("");
    let golden = std::fs::read_to_string(models().places().0.join("golden/dreams.jsonl")).unwrap();
    let lines: Vec<Line> = golden.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.len() > 60);
    for Line { line, pieces, bits } in lines {
        assert_eq!(dreamer.pieces(&line), pieces, "{line:?}");
        let found = dreamer.bits(&line).unwrap()[0];
        // Sums of int8 products are exact, floats between them are not the same on every processor.
        assert!((found - bits).abs() <= 1e-3 * bits, "{line:?}: {found} bits, Python has {bits}");
    }
}

#[test]
fn the_same_seed_gives_the_same_verse_whatever_else_was_dreamt() {
    let dreamer = dreamer("");
    let wishes = Wishes { steering: vec!["emotion joy".to_owned()], about: vec!["garden".to_owned()] };
    let of = |seed, number| dreamer.dream(&wishes, seed, number).unwrap().unwrap();
    let (first, other) = (of(1, 0), of(1, 1));
    assert_eq!(of(1, 0), first);
    assert!(first != other && of(2, 0) != first);
    for text in [first.as_str(), other.as_str()] {
        assert!(
            (1..=4).contains(&text.lines().count()) && text.chars().all(|c| c == '\n' || !c.is_control()),
            "{text}"
        );
    }
    for label in schemas::GoEmotions::LABELS {
        assert!(dreamer.steers(&format!("emotion {label}")), "{label}");
    }
    assert!(!dreamer.steers("emotion boredom"));
}

#[test]
fn common_words_that_are_listed_do_not_come_out() {
    let dreamer = dreamer("the\nand\nof");
    for number in 0..5 {
        let dream = dreamer.dream(&Wishes::default(), 1, number).unwrap();
        let text = dream.as_ref().map(|dream| dream.as_str().to_lowercase()).unwrap_or_default();
        assert!(text.split(|c: char| !c.is_alphabetic()).all(|word| !["the", "and", "of"].contains(&word)), "{text}");
    }
}
