//! `kernels`: fills the cache of compiled CUDA kernels ahead of the first start. Needs NVRTC, but no GPU.

use std::io::Write;
use std::time::Instant;

use clap::Args;
use serde_json::json;

use super::CommandError;
use crate::device;

/// Flags of `kernels`.
#[derive(Args, Debug)]
pub struct KernelsArgs {
    /// Compile what is not in the cache yet
    #[arg(long, env = "WORKER_ORCD_BUILD", required = true)]
    build: bool,
    /// Architectures, separated by commas, e.g. sm_90a; every one that is checked when omitted
    #[arg(long, env = "WORKER_ORCD_ARCH", value_delimiter = ',')]
    arch: Vec<String>,
    /// Print one JSON object on stdout
    #[arg(long, env = "WORKER_ORCD_JSON")]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// No compiler, an unknown architecture, or a kernel that does not compile.
pub fn run(args: &KernelsArgs, out: &mut dyn Write) -> Result<(), CommandError> {
    debug_assert!(args.build, "clap requires it");
    let start = Instant::now();
    let report = device::build_kernels(&args.arch)?;
    let seconds = start.elapsed().as_secs_f64();
    if args.json {
        let line = json!({
            "compiled": report.compiled, "cached": report.cached, "folder": report.folder, "seconds": seconds,
        });
        writeln!(out, "{line}")?;
    } else {
        let folder =
            report.folder.map_or("no folder to keep them in".into(), |folder| folder.display().to_string());
        writeln!(out, "{} compiled, {} cached in {folder} ({seconds:.1} s)", report.compiled, report.cached)?;
    }
    Ok(())
}
