//! The fuzzer's corpus, without a fuzzer: every committed input, and seeded changes of it, through every target. Inputs that
//! once failed stand in the corpus, so they fail here again if they do.
#![expect(clippy::print_stdout, reason = "the seed of a run that failed must be told")]

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use tests::fuzz::TARGETS;

/// Changed inputs for each target: a short run, beside the long ones of a fuzzer.
const CHANGES: usize = 2_000;
/// Longest changed input, in bytes.
const BYTES_MAX: usize = 8 * 1024;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus")
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = folder().join(target);
    let files = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    // The order of a folder is the system's; a seed must mean the same everywhere.
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

#[test]
fn every_target_takes_the_committed_corpus() {
    for (name, target) in TARGETS {
        let inputs = corpus(name);
        assert!(inputs.len() > 4, "{name} has a corpus of {}", inputs.len());
        inputs.iter().for_each(|input| target(input));
    }
}

#[test]
fn every_target_takes_changes_of_its_corpus() {
    let given = std::env::var("UNDERTONE_TEST_SEED").ok().map(|text| text.parse().expect("a number"));
    let seed = given.unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos().into());
    println!("UNDERTONE_TEST_SEED={seed}");
    for (name, target) in TARGETS {
        let inputs = corpus(name);
        let mut state = seed;
        for number in 0..CHANGES {
            let input = changed(&inputs, &mut state);
            let failed = std::panic::catch_unwind(|| target(&input)).is_err();
            assert!(!failed, "{name}, change {number} of seed {seed}: {input:?}");
        }
    }
}

/// A few changes, as fuzzers make them: bytes flipped, inserted, taken out, doubled, set to extremes, or another input's.
fn changed(inputs: &[Vec<u8>], state: &mut u64) -> Vec<u8> {
    let mut below = |bound: usize| (random(state) % bound.max(1) as u64) as usize;
    let mut input = inputs[below(inputs.len())].clone();
    for _ in 0..=below(4) {
        let (from, length) = (below(input.len()), 1 + below(8));
        let to = (from + length).min(input.len());
        match below(6) {
            0 if !input.is_empty() => input[from] ^= 1 << below(8),
            1 => input.insert(from, below(256) as u8),
            2 => drop(input.drain(from..to)),
            3 => {
                let doubled = input[from..to].to_vec();
                input.splice(from..from, doubled);
            }
            4 => input[from..to].fill([0x00, 0x7f, 0x80, 0xff][below(4)]),
            _ => {
                let other = &inputs[below(inputs.len())];
                input.truncate(from);
                input.extend_from_slice(&other[below(other.len())..]);
            }
        }
        input.truncate(BYTES_MAX);
    }
    input
}

/// Sebastiano Vigna's splitmix64.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
