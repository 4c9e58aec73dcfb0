//! `devices`: every device a backend of this build can open.

use std::io::Write;

use clap::Args;
use serde_json::json;

use super::CommandError;
use crate::device;

/// Flags of `devices`.
#[derive(Args, Debug)]
pub struct DevicesArgs {
    /// Print one JSON object on stdout
    #[arg(long, env = "WORKER_ORCD_JSON")]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// Standard output is closed.
pub fn run(args: &DevicesArgs, out: &mut dyn Write) -> Result<(), CommandError> {
    let (devices, absent) = device::enumerate();
    if args.json {
        let devices: Vec<_> = devices
            .iter()
            .map(|d| {
                json!({
                    "backend": d.backend.name(), "index": d.index, "description": d.description,
                    "total_memory_bytes": d.total_memory_bytes,
                })
            })
            .collect();
        let absent: Vec<_> = absent
            .iter()
            .map(|(choice, error)| json!({ "backend": choice.name(), "reason": error.to_string() }))
            .collect();
        writeln!(out, "{}", json!({ "devices": devices, "absent": absent }))?;
        return Ok(());
    }
    for device in devices {
        writeln!(
            out,
            "--backend {:<9} --gpu-device {}  {}",
            device.backend.name(),
            device.index,
            device.description
        )?;
    }
    for (choice, error) in absent {
        writeln!(out, "--backend {:<9} not available: {error}", choice.name())?;
    }
    Ok(())
}
