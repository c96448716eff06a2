//! libFuzzer around `tests::fuzz::avro`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tests::fuzz::avro(bytes));
