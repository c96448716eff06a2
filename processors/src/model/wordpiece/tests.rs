//! Held against the crate `tokenizers`, on the shipped files.

use std::path::Path;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokenizers::{Tokenizer, TruncationParams};

use super::file::Described;
use super::*;

fn models() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../models"))
}

#[expect(clippy::print_stdout, reason = "a failure is repeated from its seed")]
fn seeded() -> StdRng {
    let given = std::env::var("UNDERTONE_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = given.unwrap_or_else(rand::random);
    println!("seed {seed}");
    StdRng::seed_from_u64(seed)
}

/// Texts of the golden file, and texts of random characters, of any plane and of the planes that people write in.
fn texts() -> Vec<String> {
    let golden = std::fs::read_to_string(models().join("golden/emotion.jsonl")).unwrap();
    let text =
        |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["text"].as_str().unwrap().to_owned();
    let mut texts: Vec<String> = golden.lines().map(text).collect();
    let mut random = seeded();
    for _ in 0..3000 {
        let length = random.random_range(0..80);
        let plane = random.random_range(0..6);
        let character = |random: &mut StdRng| match plane {
            0 => random.random::<char>(),
            1 => char::from(random.random_range(0..128u8)),
            2 => random.random_range('\0'..'\u{600}'),
            3 => random.random_range('\u{2000}'..'\u{3100}'),
            4 => *b"[]CLSEPUNKMAD a#'".get(random.random_range(0..17)).map(|b| char::from(*b)).as_ref().unwrap(),
            _ => random.random_range('\u{300}'..'\u{370}'),
        };
        let mixed: String = (0..length)
            .map(|_| if random.random_bool(0.3) { random.random_range('a'..='z') } else { character(&mut random) })
            .collect();
        texts.push(mixed);
    }
    texts.extend(["x".repeat(100), "x".repeat(101), "é".repeat(100), "a".repeat(20_000), "a ".repeat(20_000)]);
    texts
}

#[test]
fn ids_are_those_of_the_reference_for_any_text() {
    for (family, tokens_max) in [("static", 512), ("encoder", 128)] {
        let ours = WordPiece::open(&Family::open(models(), family).unwrap(), "tokenizer.json").unwrap();
        let mut reference = Tokenizer::from_file(models().join(family).join("tokenizer.json")).unwrap();
        let truncation = TruncationParams { max_length: tokens_max, ..TruncationParams::default() };
        reference.with_padding(None).with_truncation(Some(truncation)).unwrap();
        assert_eq!(ours.ids(), reference.get_vocab_size(true));
        for text in texts() {
            let expected = reference.encode_fast(text.as_str(), false).unwrap();
            assert_eq!(ours.tokens(&text, tokens_max), expected.get_ids(), "{text:?}");
            let expected = reference.encode_fast(text.as_str(), true).unwrap();
            assert_eq!(ours.tokens_between_ends(&text, tokens_max), expected.get_ids(), "{text:?}");
        }
    }
}

#[test]
fn a_tokenizer_that_cuts_otherwise_is_refused() {
    let text = std::fs::read_to_string(models().join("static/tokenizer.json")).unwrap();
    for (from, to) in [
        ("\"lowercase\":true", "\"lowercase\":false"),
        ("\"BertPreTokenizer\"", "\"Whitespace\""),
        ("\"max_input_chars_per_word\":100", "\"max_input_chars_per_word\":50"),
    ] {
        let other = text.replace(from, to);
        assert_ne!(other, text, "{from} is not in the file");
        let described: Described = serde_json::from_str(&other).unwrap();
        assert!(!described.is_known(), "{to}");
    }
}
