//! The program's start: reads the command line, runs one command, and turns its outcome into an exit code.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    undertone::cli::main(undertone::cli::Cli::parse())
}
