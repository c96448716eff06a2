//! What the model stages cost, by tier: turns a second of each stage on real texts (the GoEmotions texts of the golden
//! file, 15 tokens on average), one by one and as a backlog of 256 on all cores that the process may use.
//!
//! Shows inference alone: every iteration has a new stage, so that nothing is remembered. On a quiet machine repeated
//! runs differ by about 5 %; a machine that also builds makes them meaningless.

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;

use benchmarks::texts;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use processors::stages::{Emotions, Encode};
use processors::{Models, Options, Stage};
use schemas::{Tier, Turn};

const BACKLOG: usize = 256;

fn turn(text: &str, tier: Tier) -> Turn {
    Turn { tier: Some(tier), ..Turn::message("bench", "bench", "", "", text, 0) }
}

fn stages(criterion: &mut Criterion) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let library = root.join(".cache/onnxruntime/libonnxruntime.so");
    let models = Models::open(&root.join("models"), &library, &Options::default());
    let models = models.unwrap_or_else(|e| panic!("{e}"));
    let texts = texts::real(&root.join("models"), BACKLOG).expect("the golden file is in the repository");
    let mut group = criterion.benchmark_group("stages");
    group.throughput(Throughput::Elements(texts.len() as u64)).sample_size(10);
    for tier in [Tier::Full, Tier::Fast] {
        let fresh: Vec<Turn> = texts.iter().map(|text| turn(text, tier)).collect();
        let mut encoded = fresh.clone();
        Encode::new(Arc::clone(&models)).infer(&mut encoded).expect("the models run");
        let mut bench = |name: &str, input: &[Turn], size: usize, run: &dyn Fn(&mut [Turn])| {
            let name = format!("{name}/{}/{}", tier.name(), if size == 1 { "one by one" } else { "backlog" });
            group.bench_function(name, |bencher| {
                let work = |mut turns: Vec<Turn>| {
                    turns.chunks_mut(size).for_each(run);
                    black_box(turns)
                };
                bencher.iter_batched(|| input.to_vec(), work, BatchSize::LargeInput);
            });
        };
        for size in [1, BACKLOG] {
            bench("encode", &fresh, size, &|turns| {
                Encode::new(Arc::clone(&models)).infer(turns).expect("the models run");
            });
            bench("emotion", &encoded, size, &|turns| {
                Emotions::new(Arc::clone(&models)).infer(turns).expect("the models run");
            });
        }
    }
    group.finish();
}

criterion_group!(benches, stages);
criterion_main!(benches);
