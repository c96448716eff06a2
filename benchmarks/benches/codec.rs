//! What it costs to write and read a turn, beside JSON of the same turn as the peer, and to seal and open it. Shows microseconds a turn on one
//! core; runs differ by some 5 % on a quiet machine, the ratio to JSON by less.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use schemas::seal::{Held, Key, Ring};
use schemas::{Codec, Turn};
use store::Durability;
use store::keys::Keys;

fn codec(c: &mut Criterion) {
    let codec = Codec::embedded();
    let json = include_str!("../../schemas/avro/examples/turn.json");
    let mut turn: Turn = serde_json::from_str(json).expect("the example is a turn");
    if let Some(encoding) = &mut turn.encoding {
        encoding.embedding = schemas::Embedding::quantise(&[0.05; 384]);
    }
    let bytes = codec.encode(&turn).expect("the example fits its schema");
    let json = serde_json::to_vec(&turn).expect("a turn is JSON");

    let mut group = c.benchmark_group("turn");
    group.throughput(Throughput::Elements(1));
    let mut out = Vec::with_capacity(4096);
    group.bench_function("encode avro", |b| {
        b.iter(|| {
            out.clear();
            codec.encode_into(black_box(&turn), &mut out)
        });
    });
    group.bench_function("encode json", |b| {
        b.iter(|| {
            out.clear();
            serde_json::to_writer(&mut out, black_box(&turn))
        });
    });
    group.bench_function("decode avro", |b| b.iter(|| codec.decode::<Turn>(black_box(&bytes))));
    // What the hub reads of a turn that nobody follows.
    group.bench_function("decode head avro", |b| b.iter(|| codec.decode_head(black_box(&bytes))));
    group.bench_function("decode json", |b| b.iter(|| serde_json::from_slice::<Turn>(black_box(&json))));
    // A turn whose words are encrypted by a key of the conversation.
    let key = Key::random();
    let sealed = codec.seal(&turn, &key).expect("the example fits its schema");
    codec.hold(Arc::new(One(key.clone())));
    group.bench_function("seal avro", |b| b.iter(|| codec.seal(black_box(&turn), &key)));
    group.bench_function("decode sealed avro", |b| b.iter(|| codec.decode::<Turn>(black_box(&sealed))));
    group.finish();
}

/// The one key there is.
#[derive(Debug)]
struct One(Key);

impl Ring for One {
    fn find(&self, _: uuid::Uuid) -> Held {
        Held::Key(self.0.clone())
    }
}

/// What intake asks for before it seals a turn: the key of its place, out of memory for a moment, then in the file.
fn keys(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("start a runtime");
    let folder = tempfile::tempdir().expect("make a folder");
    let path = folder.path().join("keys.sqlite");
    let keys = runtime.block_on(Keys::open(&path, Durability::Power)).expect("open the keys");
    let mut group = c.benchmark_group("key of a place");
    group.bench_function("in memory", |b| b.iter(|| runtime.block_on(keys.current("room", "ann", 0))));
    runtime.block_on(keys.current("hall", "ann", 0)).expect("make a key");
    group.bench_function("in the file", |b| {
        b.iter_batched(
            || runtime.block_on(Keys::open(&path, Durability::Power)).expect("open the keys"),
            |fresh| runtime.block_on(fresh.current("hall", "ann", 0)),
            BatchSize::PerIteration,
        );
    });
    let mut number = 0;
    group.bench_function("made", |b| {
        b.iter(|| {
            number += 1;
            runtime.block_on(keys.current(&number.to_string(), "ann", 0))
        });
    });
    group.finish();
}

criterion_group!(benches, codec, keys);
criterion_main!(benches);
