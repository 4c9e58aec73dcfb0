//! `perplexity`: llama-perplexity's method. The text is cut into windows; in each, the second half counts, every token
//! predicted from those before it in the window; BOS replaces the first token if the model adds one.

use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use serde_json::json;
use worker_orcd_core::OutputValue;

use super::CommandError;
use super::args::{DeviceArgs, ModelArgs};
use crate::engine::direct::{DirectOptions, DirectRun};
use crate::text::SpecialParsing;

/// Flags of `perplexity`.
#[derive(Args, Debug)]
pub struct PerplexityArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// UTF-8 text to measure on
    #[arg(long, env = "WORKER_ORCD_TEXT", value_name = "FILE")]
    text: PathBuf,
    /// Tokens per window; --context when that is given, else 512
    #[arg(long, env = "WORKER_ORCD_WINDOW")]
    window: Option<usize>,
    /// Windows to measure; all when omitted
    #[arg(long, env = "WORKER_ORCD_CHUNKS")]
    chunks: Option<usize>,
    /// Print one JSON object on stdout
    #[arg(long, env = "WORKER_ORCD_JSON")]
    json: bool,
}

/// llama-perplexity's own default.
const DEFAULT_WINDOW: usize = 512;

/// Most tokens per step: bounds the logits held at once.
const STEP_TOKENS: usize = 128;

/// Runs the command.
///
/// # Errors
/// The model, the device, or the text.
pub fn run(args: &PerplexityArgs, out: &mut dyn Write) -> Result<(), CommandError> {
    let start = Instant::now();
    let open = args.model.open()?;
    let tokenizer = args.model.tokenizer(&open.gguf)?;
    let text = std::fs::read_to_string(&args.text)?;
    let ids = tokenizer.encode_prompt(&text, SpecialParsing::Plain);
    let window = args.window.or(args.model.context).unwrap_or(DEFAULT_WINDOW);
    let chunks = args.chunks.unwrap_or(usize::MAX).min(ids.len() / window.max(1));
    if window < 4 || chunks == 0 {
        return Err(CommandError::Usage(format!(
            "{} tokens of text do not fill one window of {window} (at least 4)",
            ids.len()
        )));
    }
    let backend = args.device.load(&open, args.model.chunk_bytes)?;
    let step = STEP_TOKENS.min(window);
    let options = DirectOptions {
        context: window,
        chunk: step,
        rows: step,
        element: args.device.kv.into(),
        tapped: false,
    };
    let mut run = DirectRun::new(backend, &open.model, &options)?;
    let bos = tokenizer.bos_id().filter(|_| tokenizer.add_bos());
    let mut sum = 0.0;
    let mut count = 0_usize;
    for (index, tokens) in ids.chunks_exact(window).take(chunks).enumerate() {
        let mut tokens = tokens.to_vec();
        if let (Some(bos), Some(first)) = (bos, tokens.first_mut()) {
            *first = bos;
        }
        let (loss, scored) = window_loss(&mut run, &tokens)?;
        sum += loss;
        count += scored;
        tracing::info!(event = "perplexity", window = index + 1, so_far = (sum / count as f64).exp());
    }
    let perplexity = (sum / count as f64).exp();
    let seconds = start.elapsed().as_secs_f64();
    if args.json {
        let line = json!({
            "perplexity": perplexity, "chunks": chunks, "context": window, "tokens": count, "seconds": seconds,
        });
        writeln!(out, "{line}")?;
    } else {
        writeln!(
            out,
            "perplexity {perplexity:.4} over {count} tokens of {chunks} windows of {window} ({seconds:.1} s)"
        )?;
    }
    Ok(())
}

/// Negative log-likelihood of the second half of a window, and how many tokens it has.
fn window_loss(run: &mut DirectRun, tokens: &[u32]) -> Result<(f64, usize), CommandError> {
    let first = tokens.len() / 2;
    let (mut loss, mut scored) = (0.0, 0);
    let step = run.program().shape().tokens;
    for start in (0..tokens.len()).step_by(step) {
        let part = &tokens[start..(start + step).min(tokens.len())];
        // Position p predicts token p + 1.
        let predicts = |row: &u32| (first..tokens.len() - 1).contains(&(start + *row as usize));
        let rows: Vec<u32> = (0..part.len() as u32).filter(predicts).collect();
        let values = run.step(part, start, &rows)?;
        let Some(OutputValue::F32(logits)) = values.first() else { continue };
        let width = logits.len() / rows.len().max(1);
        for (row, logits) in rows.iter().zip(logits.chunks_exact(width.max(1))) {
            let target = tokens[start + *row as usize + 1];
            loss -= log_probability(logits, target as usize);
            scored += 1;
        }
    }
    Ok((loss, scored))
}

fn log_probability(logits: &[f32], target: usize) -> f64 {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - most).exp()).sum();
    f64::from(logits[target] - most) - sum.ln()
}
