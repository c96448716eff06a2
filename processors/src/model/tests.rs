//! What the program makes of 10,000 real texts, held against what the training code made of them.

use std::io::{BufRead as _, BufReader};
use std::path::Path;

use flate2::Crc;
use flate2::read::GzDecoder;
use serde::Deserialize;

use super::card::Family;
use super::ngram::Normalised;
use super::wordpiece::WordPiece;

/// A line of `models/golden/texts.jsonl.gz`; `models/train/golden.py` says what the fields are.
#[derive(Deserialize)]
struct Line {
    text: String,
    encoder: u32,
    r#static: u32,
    ngram: u32,
}

fn crc(numbers: impl IntoIterator<Item = u32>) -> u32 {
    let mut crc = Crc::new();
    numbers.into_iter().for_each(|number| crc.update(&number.to_le_bytes()));
    crc.sum()
}

#[test]
fn tokens_and_features_of_real_texts_are_those_of_training() {
    let models = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../models"));
    let tokenizer = |family| WordPiece::open(&Family::open(models, family).unwrap(), "tokenizer.json").unwrap();
    let (encoder, fixed) = (tokenizer("encoder"), tokenizer("static"));
    let file = std::fs::File::open(models.join("golden/texts.jsonl.gz")).unwrap();
    let (mut texts, mut foreign, mut long) = (0, 0, 0);
    for line in BufReader::new(GzDecoder::new(file)).lines() {
        let line: Line = serde_json::from_str(&line.unwrap()).unwrap();
        let text = line.text.as_str();
        assert_eq!(crc(encoder.tokens_between_ends(text, super::encoder::TOKENS_MAX)), line.encoder, "{text:?}");
        assert_eq!(crc(fixed.tokens(text, super::embed::TOKENS_MAX)), line.r#static, "{text:?}");
        let buckets = Normalised::of(text).buckets();
        assert_eq!(crc(buckets.into_iter().flat_map(|(bucket, count)| [bucket, count])), line.ngram, "{text:?}");
        texts += 1;
        foreign += usize::from(text.chars().any(|c| c > '\u{24f}'));
        long += usize::from(text.len() >= 10_000);
    }
    assert_eq!(texts, 10_000);
    assert!(foreign > 1_000 && long >= 10, "{foreign} texts of other scripts or emoji, {long} long ones");
}
