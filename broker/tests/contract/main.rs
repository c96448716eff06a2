//! The broker's contract, as the unmodified rdkafka client sees it.
//!
//! Every test here but those of `durability` and `limits` also holds for Apache Kafka: set `UNDERTONE_TEST_KAFKA` to the
//! bootstrap address of one and run them again.

mod support;
mod transactions;
