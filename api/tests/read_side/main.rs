//! The read side over real sockets, in front of an embedded log and history: what clients are promised.

mod dreams;
mod guard;
mod memories;
mod pages;
mod registry;
mod resume;
#[path = "../../src/sample.rs"]
mod sample;
mod site;
mod streams;
