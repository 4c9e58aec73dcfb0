//! `completions` and `man`: what a shell and a reader need to know of the command line, from the command line itself.

use std::io::Write;
use std::path::PathBuf;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Cli, CommandError};

/// The binary's name.
const NAME: &str = "worker-orcd";

/// Flags of `completions`.
#[derive(Args, Debug)]
pub struct CompletionsArgs {
    /// For which shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Flags of `man`.
#[derive(Args, Debug)]
pub struct ManArgs {
    /// Folder to write one page per command to; without it the main page goes to stdout
    #[arg(long, env = "WORKER_ORCD_OUT", value_name = "FOLDER")]
    out: Option<PathBuf>,
}

/// Writes the shell's script.
///
/// # Errors
/// `out`.
pub fn completions(args: &CompletionsArgs, out: &mut dyn Write) -> Result<(), CommandError> {
    // The generator cannot tell of a pipe that is closed.
    let mut script = vec![];
    clap_complete::generate(args.shell, &mut Cli::command(), NAME, &mut script);
    Ok(out.write_all(&script)?)
}

/// Writes the manual.
///
/// # Errors
/// `out`, or the folder.
pub fn man(args: &ManArgs, out: &mut dyn Write) -> Result<(), CommandError> {
    match &args.out {
        Some(folder) => {
            std::fs::create_dir_all(folder)?;
            Ok(clap_mangen::generate_to(Cli::command(), folder)?)
        }
        None => Ok(clap_mangen::Man::new(Cli::command()).render(out)?),
    }
}
