//! `logits`: the last position's logits of a prompt, in full precision; with `--taps`, every value of the step.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;
use worker_orcd_core::OutputValue;

use super::CommandError;
use super::args::{DeviceArgs, ModelArgs, PromptArgs};
use crate::engine::direct::{DirectOptions, DirectRun};

/// Flags of `logits`.
#[derive(Args, Debug)]
pub struct LogitsArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    prompt: PromptArgs,
    /// Most tokens per step; the whole prompt at once when omitted
    #[arg(long, env = "WORKER_ORCD_CHUNK")]
    chunk: Option<usize>,
    /// Write every value of the step to this folder as .npy, named by its label
    #[arg(long, env = "WORKER_ORCD_TAPS", value_name = "DIR")]
    taps: Option<PathBuf>,
    /// Print one JSON object on stdout
    #[arg(long, env = "WORKER_ORCD_JSON")]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// The model, the device, or the folder.
pub fn run(args: &LogitsArgs, out: &mut dyn Write) -> Result<(), CommandError> {
    let open = args.model.open()?;
    let ids = args.prompt.ids(&args.model, &open)?;
    let backend = args.device.load(&open, args.model.chunk_bytes)?;
    let whole = args.taps.is_some();
    let chunk = if whole { ids.len() } else { args.chunk.unwrap_or(ids.len()).clamp(1, ids.len()) };
    let options =
        DirectOptions { context: ids.len(), chunk, rows: 1, element: args.device.kv.into(), tapped: whole };
    let mut run = DirectRun::new(backend, &open.model, &options)?;
    let logits = match &args.taps {
        None => run.last_logits(&ids)?,
        Some(folder) => {
            std::fs::create_dir_all(folder)?;
            let values = run.step(&ids, 0, &[ids.len() as u32 - 1])?.to_vec();
            let program = run.program();
            for (id, value) in program.outputs().iter().zip(&values) {
                let info = program.value(*id);
                write_npy(&folder.join(format!("{}.npy", info.label)), value, info.width)?;
            }
            let activations = values.iter().rev().find_map(|value| match value {
                OutputValue::F32(values) => Some(values.clone()),
                OutputValue::U32(_) => None,
            });
            activations.unwrap_or_default()
        }
    };
    if args.json {
        writeln!(out, "{}", json!({ "token_ids": ids, "logits": logits }))?;
    } else {
        let mut ranked: Vec<(usize, f32)> = logits.iter().copied().enumerate().collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        for (id, logit) in ranked.iter().take(10) {
            writeln!(out, "{id:>8} {logit:.6}")?;
        }
    }
    Ok(())
}

/// NumPy's version 1.0 array file, `[rows, width]`.
fn write_npy(path: &Path, value: &OutputValue, width: usize) -> Result<(), CommandError> {
    let (kind, bytes): (&str, &[u8]) = match value {
        OutputValue::F32(values) => ("<f4", bytemuck::cast_slice(values)),
        OutputValue::U32(values) => ("<u4", bytemuck::cast_slice(values)),
    };
    let rows = bytes.len() / 4 / width.max(1);
    let mut header = format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': ({rows}, {width}), }}");
    // Magic, version and length take 10 bytes; the data starts at a multiple of 64, after a newline.
    while (10 + header.len() + 1) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
    file.write_all(b"\x93NUMPY\x01\x00")?;
    file.write_all(&(header.len() as u16).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    file.write_all(bytes)?;
    file.flush()?;
    Ok(())
}
