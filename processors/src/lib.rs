//! The model stages, the chain that runs them, and the exactly-once shell around them.

pub mod stage;

pub use stage::{AnyStage, Failure, Stage};
