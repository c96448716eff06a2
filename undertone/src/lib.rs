//! The program: command line, configuration, wiring of roles, telemetry, admin endpoints.

pub mod admin;
pub mod config;
pub mod health;
pub mod lag;
pub mod telemetry;
pub mod watch;
