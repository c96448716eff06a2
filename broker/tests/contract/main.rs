//! The broker's contract, as the unmodified rdkafka client sees it, and, for what other clients ask, byte by byte.
//!
//! Everything here but what is in `embedded` also holds for Apache Kafka: with `UNDERTONE_TEST_KAFKA` set to the
//! address of one it is checked there (`make test-kafka` does that).

mod administration;
mod embedded;
mod groups;
mod records;
mod support;
mod tools;
mod topic_ids;
mod transactions;
mod versions;
mod wire;
