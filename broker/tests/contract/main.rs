//! The broker's contract, as the unmodified rdkafka client sees it.
//!
//! Every test here but those of `durability` and `limits`, and that of the broker's own settings, also holds for Apache
//! Kafka: set `UNDERTONE_TEST_KAFKA` to the bootstrap address of one and run them again.

mod administration;
mod durability;
mod groups;
mod limits;
mod records;
mod support;
mod transactions;
