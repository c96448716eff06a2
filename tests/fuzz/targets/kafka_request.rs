//! libFuzzer around `tests::fuzz::kafka_request`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tests::fuzz::kafka_request(bytes));
