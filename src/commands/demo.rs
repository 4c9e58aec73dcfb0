//! `demo`: the bundled model on the best backend present, streaming a haiku.

use std::borrow::Cow;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use super::CommandError;
use super::args::{DeviceArgs, KvChoice, OpenModel};
use super::session::{SamplingArgs, Session};
use crate::config::BackendChoice;
use crate::device;
use crate::gguf::Gguf;
use crate::model::{Model, ModelOptions};
use crate::text::{SpecialParsing, Tokenizer};

/// The bundled model. It is part of the binary, so that an installed one works without any file beside it.
static BUNDLED: &[u8] = include_bytes!("../../models/haiku-moe/haiku-moe-mxfp4.gguf");

/// A raw prompt of the kind the bundled model was trained on.
const PROMPT: &str = "Write a haiku about GPU computing";

/// Flags of `demo`.
#[derive(Args, Debug)]
pub struct DemoArgs {
    /// What to ask
    #[arg(long, env = "WORKER_ORCD_PROMPT", default_value = PROMPT)]
    prompt: String,
    /// Where to run; the best backend present when omitted: cuda, else wgpu, else reference
    #[arg(long, env = "WORKER_ORCD_BACKEND", value_enum)]
    backend: Option<BackendChoice>,
    /// Index of the GPU
    #[arg(long, env = "WORKER_ORCD_GPU_DEVICE", default_value_t = 0)]
    gpu_device: usize,
    /// GGUF file to use instead of the bundled model
    #[arg(long, env = "WORKER_ORCD_MODEL", value_name = "FILE")]
    model: Option<PathBuf>,
    /// Seed of the draws
    #[arg(long, env = "WORKER_ORCD_SEED", default_value_t = 42)]
    seed: u64,
    /// 0 = greedy, up to 2
    #[arg(long, env = "WORKER_ORCD_TEMPERATURE", default_value_t = 0.7)]
    temperature: f32,
    /// Most tokens to generate
    #[arg(long, env = "WORKER_ORCD_MAX_TOKENS", default_value_t = 160)]
    max_tokens: usize,
}

/// Runs the command.
///
/// # Errors
/// The device, or the engine.
pub fn run(args: &DemoArgs, out: &mut dyn Write, notes: &mut dyn Write) -> Result<(), CommandError> {
    let backend = args.backend.unwrap_or_else(device::best);
    if backend == BackendChoice::Reference && args.backend.is_none() {
        writeln!(
            notes,
            "no CUDA and no Vulkan, Metal or DX12 adapter found: running on the reference interpreter"
        )?;
    }
    let gguf = match &args.model {
        Some(path) => Gguf::open(path)?,
        None => Gguf::from_bytes("haiku-moe (bundled)", Cow::Borrowed(BUNDLED))?,
    };
    let model = Model::new(&gguf, ModelOptions::default())?;
    let open = OpenModel { gguf, model };
    let device = DeviceArgs { backend, gpu_device: args.gpu_device, kv: KvChoice::F16 };
    let loaded = device.load(&open, 1 << 20)?;
    let name = format!("{} on {}", open.model.config().name, loaded.caps().device);
    let tokenizer = Arc::new(Tokenizer::load(&open.gguf, None)?);
    let prompt = tokenizer.encode_prompt(&args.prompt, SpecialParsing::Plain);
    let prompt_tokens = prompt.len();
    let session = Session::start(open, loaded, Some(tokenizer), &device)?;
    let sampling = SamplingArgs {
        max_tokens: Some(args.max_tokens),
        temperature: args.temperature,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        seed: Some(args.seed),
        stop: vec![],
    };
    let generated = session.generate(prompt, &sampling, &mut |piece| {
        out.write_all(piece.as_bytes())?;
        out.flush()?;
        Ok(())
    })?;
    let decode = generated.usage.decode_time.as_secs_f64();
    let rate = if decode > 0.0 { generated.token_ids.len().saturating_sub(1) as f64 / decode } else { 0.0 };
    writeln!(
        out,
        "\n[{name} ({}): {prompt_tokens} prompt tokens, {} generated, first after {:.0} ms, {rate:.1} tokens/s]",
        backend.name(),
        generated.token_ids.len(),
        (generated.usage.queue_time + generated.usage.prefill_time).as_secs_f64() * 1e3,
    )?;
    Ok(())
}
