//! The `worker-orcd` binary: parses the command line and runs one command.

use std::io::{self, Write};
use std::process::ExitCode;

use worker_orcd::commands::Cli;

fn main() -> ExitCode {
    match Cli::from_args(std::env::args_os()).and_then(Cli::run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Standard error may be closed; the exit code still tells.
            let _ = writeln!(io::stderr(), "error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
