//! What it costs to write and read a turn, beside JSON of the same turn as the peer. Shows microseconds a turn on one
//! core; runs differ by some 5 % on a quiet machine, the ratio to JSON by less.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use schemas::{Codec, Turn};

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
    group.finish();
}

criterion_group!(benches, codec);
criterion_main!(benches);
