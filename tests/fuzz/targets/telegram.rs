//! libFuzzer around `tests::fuzz::telegram`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tests::fuzz::telegram(bytes));
