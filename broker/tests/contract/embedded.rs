//! What concerns the embedded broker alone: its folder, its process, its own limits. Everything else in this contract
//! holds for an Apache Kafka too.

mod durability;
mod hostile;
mod limits;
mod process;
mod raw;
