//! The broker's contract, as the unmodified rdkafka client sees it.
//!
//! Everything here but what is in `embedded` also holds for Apache Kafka: with `UNDERTONE_TEST_KAFKA` set to the
//! address of one it is checked there (`make test-kafka` does that).

mod administration;
mod embedded;
mod groups;
mod records;
mod support;
mod transactions;
