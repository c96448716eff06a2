//! What it costs to load and to save the contexts of a batch: 100 conversations of three slices of 300 bytes each, in a
//! SQLite file in a temporary folder.
//!
//! Shows slices a second through one caller that waits for each batch. The disk has its part: repeated runs differ by 10 %
//! on a quiet machine.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use schemas::Stamp;
use store::context::{Batch, Contexts, Start, Version, Write};

const CONVERSATIONS: i64 = 100;
const STAGES: [&str; 4] = ["sequence", "encode", "emotion", "dialogue"];
const SLICE_BYTES: usize = 300;

fn batch(epoch: store::context::Epoch, number: i64) -> Batch {
    let version = |number: i64| Version {
        stamp: Stamp { partition: 0, offset: number * CONVERSATIONS },
        bytes: vec![number as u8; SLICE_BYTES],
    };
    let write = |conversation: &str, stage: &str| Write {
        conversation: conversation.to_owned(),
        stage: stage.to_owned(),
        current: version(number),
        previous: (number > 0).then(|| version(number - 1)),
    };
    let writes = conversations().into_iter().flat_map(|c| STAGES.map(|stage| write(&c, stage))).collect();
    Batch { chain: "encode".to_owned(), partition: 0, epoch, watermark: (number + 1) * CONVERSATIONS, writes }
}

fn conversations() -> Vec<String> {
    (0..CONVERSATIONS).map(|i| format!("room-{i}")).collect()
}

fn context(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime starts");
    let dir = tempfile::tempdir().expect("there is a temporary folder");
    let contexts = runtime.block_on(Contexts::open(&dir.path().join("contexts.db"))).expect("the database opens");
    let epoch = runtime.block_on(contexts.assign("encode", 0)).expect("the partition is free").epoch;
    let mut number = 0;
    let mut group = criterion.benchmark_group("context");
    group.throughput(Throughput::Elements(CONVERSATIONS as u64 * STAGES.len() as u64)).sample_size(20);
    group.bench_function("save", |b| {
        b.iter(|| {
            runtime.block_on(contexts.save(batch(epoch, number))).expect("the database saves");
            number += 1;
        });
    });
    let (below, conversations) = (number * CONVERSATIONS, conversations());
    group.bench_function("load", |b| {
        b.iter(|| {
            let start = Start { partition: 0, epoch, offset: below, below, conversations: conversations.clone() };
            let found = runtime.block_on(contexts.load("encode", start, &STAGES)).expect("the database loads");
            assert_eq!(found.len(), conversations.len() * STAGES.len());
            black_box(found)
        });
    });
    group.finish();
}

criterion_group!(benches, context);
criterion_main!(benches);
