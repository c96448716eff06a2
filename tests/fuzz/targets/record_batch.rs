//! libFuzzer around `tests::fuzz::record_batch`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tests::fuzz::record_batch(bytes));
