//! libFuzzer around `tests::fuzz::reject`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tests::fuzz::reject(bytes));
