//! `generate`: one prompt in, text out.

use std::io::Write;

use clap::Args;
use serde_json::json;

use super::CommandError;
use super::args::{DeviceArgs, ModelArgs, PromptArgs};
use super::session::{SamplingArgs, Session};

/// Flags of `generate`.
#[derive(Args, Debug)]
pub struct GenerateArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    prompt: PromptArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Print one JSON object on stdout
    #[arg(long, env = "WORKER_ORCD_JSON")]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// The model, the device, or the engine.
pub fn run(args: &GenerateArgs, out: &mut dyn Write) -> Result<(), CommandError> {
    args.sampling.sampling()?;
    let session = Session::open(&args.model, &args.device)?;
    let prompt = args.prompt.ids(&args.model, &session.open)?;
    let generated = session.generate(prompt.clone(), &args.sampling, &mut |piece| {
        if !args.json {
            out.write_all(piece.as_bytes())?;
            out.flush()?;
        }
        Ok(())
    })?;
    if args.json {
        let line = json!({
            "prompt_token_ids": prompt,
            "token_ids": generated.token_ids,
            "text": generated.text,
            "finish_reason": generated.finish_reason,
        });
        writeln!(out, "{line}")?;
    } else if session.tokenizer.is_none() {
        writeln!(out, "{:?}", generated.token_ids)?;
    } else {
        writeln!(out)?;
    }
    Ok(())
}
