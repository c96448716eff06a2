//! The fast tier's whole chain on one core: infer and fold, a turn each of as many distinct real texts as the golden file
//! has, 15 tokens on average, in a hundred conversations; and the fold alone, on turns that are inferred already.
//!
//! Shows turns a second and core, without contexts and log. Every iteration has new stages, so that nothing is remembered;
//! it folds into open slices. On a quiet machine runs differ by about 5 %; beside other work the tables of the models fall
//! out of the caches, and it is half as fast.

use std::collections::HashMap;
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;

use benchmarks::texts;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use processors::{Chain, Models, Options, stages};
use schemas::{Codec, Stamp, Tier, Turn};

const CONVERSATIONS: usize = 100;
const BATCH: usize = 256;

fn turn((index, text): (usize, &String)) -> Turn {
    let conversation = format!("room-{}", index % CONVERSATIONS);
    let at = 1_700_000_000_000 + index as i64 * 1000;
    Turn { tier: Some(Tier::Fast), ..Turn::message("bench", &conversation, "ann", &index.to_string(), text, at) }
}

fn fold(chain: &Chain, turns: &mut [Turn]) {
    let mut conversations = HashMap::new();
    for (turn, offset) in turns.iter_mut().zip(0..) {
        let conversation = conversations.entry(turn.conversation.clone()).or_insert_with(|| {
            chain.open(&turn.conversation, HashMap::new()).expect("a new conversation has no slice to misread")
        });
        chain.fold(conversation, turn, Stamp { partition: 0, offset }).expect("the stages fold");
    }
}

fn chain(criterion: &mut Criterion) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let library = root.join(".cache/onnxruntime/libonnxruntime.so");
    let models = Models::open(&root.join("models"), &library, &Options { cores: 1, ..Options::default() })
        .unwrap_or_else(|e| panic!("{e}"));
    let codec = Arc::new(Codec::embedded());
    let new = || Chain::new(stages::all(&models), true, Arc::clone(&codec));
    let texts = texts::real(&root.join("models"), usize::MAX).expect("the golden file is in the repository");
    let turns: Vec<Turn> = texts.iter().enumerate().map(turn).collect();
    let mut inferred = turns.clone();
    new().infer(&mut inferred).expect("the models run");

    let mut group = criterion.benchmark_group("chain/fast, 1 core");
    group.throughput(Throughput::Elements(turns.len() as u64)).sample_size(20);
    group.bench_function("infer and fold", |b| {
        let work = |(chain, mut turns): (Chain, Vec<Turn>)| {
            turns.chunks_mut(BATCH).for_each(|batch| chain.infer(batch).expect("the models run"));
            fold(&chain, &mut turns);
            black_box(turns)
        };
        b.iter_batched(|| (new(), turns.clone()), work, BatchSize::LargeInput);
    });
    group.bench_function("fold", |b| {
        let work = |(chain, mut turns): (Chain, Vec<Turn>)| {
            fold(&chain, &mut turns);
            black_box(turns)
        };
        b.iter_batched(|| (new(), inferred.clone()), work, BatchSize::LargeInput);
    });
    group.finish();
}

criterion_group!(benches, chain);
criterion_main!(benches);
