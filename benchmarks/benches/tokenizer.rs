//! What it costs to cut a text into the pieces of a vocabulary, beside the crate `tokenizers` on the same file and texts
//! (the real texts of the golden file, 15 tokens on average). Shows texts a second on one core; runs differ by some 5 % on
//! a quiet machine, the ratio of the two by less.

use std::hint::black_box;
use std::path::Path;

use benchmarks::texts;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use processors::model::card::Family;
use processors::model::wordpiece::WordPiece;
use tokenizers::Tokenizer;

const TOKENS_MAX: usize = 512;

fn tokenizer(criterion: &mut Criterion) {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models");
    let family = Family::open(&models, "static").unwrap_or_else(|e| panic!("{e}"));
    let ours = WordPiece::open(&family, "tokenizer.json").unwrap_or_else(|e| panic!("{e}"));
    let reference = Tokenizer::from_file(models.join("static/tokenizer.json")).expect("the file is a tokenizer");
    let texts = texts::real(&models, usize::MAX).expect("the golden file is in the repository");
    let mut group = criterion.benchmark_group("tokenizer");
    group.throughput(Throughput::Elements(texts.len() as u64)).sample_size(20);
    group.bench_function("wordpiece", |b| {
        b.iter(|| texts.iter().map(|text| black_box(ours.tokens(text, TOKENS_MAX)).len()).sum::<usize>());
    });
    group.bench_function("crate tokenizers", |b| {
        let tokens = |text: &String| reference.encode_fast(text.as_str(), false).map_or(0, |found| found.len());
        b.iter(|| texts.iter().map(tokens).sum::<usize>());
    });
    group.finish();
}

criterion_group!(benches, tokenizer);
criterion_main!(benches);
