//! The program: command line, configuration, wiring of roles, telemetry, admin endpoints.
//!
//! [`up`] is the heart: it starts the roles of a process from values alone, so that two pipelines fit in one process.
//! [`cli`] is the one place that touches what is global: arguments, signals, standard output, the log's subscriber.

#![warn(clippy::unwrap_used)]

pub mod up;
pub mod config;
pub mod cli;
pub mod admin;
pub mod health;
pub mod lag;
pub mod retention;
pub mod telemetry;
pub mod topics;
pub mod rejects;
pub mod locate;
mod forget;
mod memories;
mod temporary;
mod keyboard;
pub mod watch;
pub mod top;
pub mod demo;
pub mod capacity;
pub mod synesthesia;
pub mod dreaming;
