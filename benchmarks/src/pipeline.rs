//! Speed of the pipeline, from ingest to stream, beside its peers in the same run.

use crate::Outcome;

/// What to run.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {}

/// Runs it; progress goes to the error stream.
///
/// # Errors
/// It could not be run.
pub fn run(_options: &Options) -> anyhow::Result<Outcome> {
    anyhow::bail!("not there yet")
}
