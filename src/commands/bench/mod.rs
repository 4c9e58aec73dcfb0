//! `bench`: measures, never judges. Medians over repeats, as JSON.

mod batch;
mod load;
mod serve;

use std::io::Write;
use std::time::Instant;

use clap::{Args, Subcommand};
use serde_json::{Value as Json, json};
use worker_orcd_core::{
    Backend, DType, MemoryReport, PlanId, Program, ProgramBuilder, SampleRow, StepInputs, StepOutputs,
    StepShape, WeightId, WeightSpec, quant, rng::Rng,
};

use super::CommandError;
use super::args::{DeviceArgs, ModelArgs, OpenModel};
use crate::device;
use crate::engine::direct::{DirectOptions, DirectRun};
use crate::model::Recorder;

/// Flags of `bench`.
#[derive(Args, Debug)]
pub struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Time matrix products by format and number of tokens
    Ops(OpsArgs),
    /// Time single-token steps after a prompt
    Decode(ModelBenchArgs),
    /// Time whole prompts
    Prefill(ModelBenchArgs),
    /// Time many sequences at once through the engine
    Batch(batch::BatchBenchArgs),
    /// Time the way from the file to the first token
    Load(load::LoadBenchArgs),
    /// Time many streams at once against a running server
    Serve(serve::ServeBenchArgs),
}

#[derive(Args, Debug)]
struct OpsArgs {
    #[command(flatten)]
    device: DeviceArgs,
    /// Output features
    #[arg(long, env = "WORKER_ORCD_ROWS", default_value_t = 2048)]
    rows: usize,
    /// Input features
    #[arg(long, env = "WORKER_ORCD_COLS", default_value_t = 2048)]
    cols: usize,
    /// Numbers of tokens, separated by commas
    #[arg(long, env = "WORKER_ORCD_TOKENS", value_delimiter = ',', default_value = "1,16")]
    tokens: Vec<usize>,
    /// Repeats; the median is reported
    #[arg(long, env = "WORKER_ORCD_REPEATS", default_value_t = 5)]
    repeats: usize,
}

#[derive(Args, Debug)]
struct ModelBenchArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// Tokens already in the cache for decode, tokens of the prompt for prefill
    #[arg(long, env = "WORKER_ORCD_DEPTH", default_value_t = 128)]
    depth: usize,
    /// Steps per repeat
    #[arg(long, env = "WORKER_ORCD_STEPS", default_value_t = 16)]
    steps: usize,
    /// Tokens per prefill step
    #[arg(long, env = "WORKER_ORCD_CHUNK", default_value_t = 512)]
    chunk: usize,
    /// Repeats; the median is reported
    #[arg(long, env = "WORKER_ORCD_REPEATS", default_value_t = 5)]
    repeats: usize,
    /// For decode and prefill: where the time of a step or a prompt goes, by part, layers added up
    #[arg(long, env = "WORKER_ORCD_PROFILE")]
    profile: bool,
}

/// Runs the command.
///
/// # Errors
/// The model or the device.
pub fn run(args: &BenchArgs, out: &mut dyn Write) -> Result<(), CommandError> {
    let result = match &args.what {
        What::Ops(args) => ops(args)?,
        What::Decode(args) => decode(args)?,
        What::Prefill(args) => prefill(args)?,
        What::Batch(args) => batch::run(args)?,
        What::Load(args) => load::run(args)?,
        What::Serve(args) => return serve::run(args, out),
    };
    writeln!(out, "{result}")?;
    Ok(())
}

/// Smallest, middle and largest of the samples, in microseconds.
fn spread(mut samples: Vec<f64>) -> Json {
    samples.sort_by(f64::total_cmp);
    let at = |index: usize| samples.get(index).copied().unwrap_or(f64::NAN);
    json!({ "min_us": at(0), "median_us": median(&samples), "max_us": at(samples.len().saturating_sub(1)) })
}

fn median(sorted: &[f64]) -> f64 {
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn timed(
    repeats: usize,
    mut run: impl FnMut() -> Result<(), CommandError>,
) -> Result<Vec<f64>, CommandError> {
    run()?;
    let mut samples = vec![];
    for _ in 0..repeats.max(1) {
        let start = Instant::now();
        run()?;
        samples.push(start.elapsed().as_secs_f64() * 1e6);
    }
    Ok(samples)
}

fn ops(args: &OpsArgs) -> Result<Json, CommandError> {
    let mut results = vec![];
    let mut name = String::new();
    for dtype in DType::ALL {
        for &tokens in &args.tokens {
            let mut backend = device::open(args.device.backend, args.device.gpu_device)?;
            name.clone_from(&backend.caps().device);
            results.push(linear(backend.as_mut(), dtype, tokens, args)?);
        }
    }
    Ok(json!({ "bench": "ops", "backend": args.device.backend.name(), "device": name, "results": results }))
}

fn linear(
    backend: &mut dyn Backend,
    dtype: DType,
    tokens: usize,
    args: &OpsArgs,
) -> Result<Json, CommandError> {
    let (rows, cols) = (args.rows, args.cols);
    let specs =
        [WeightSpec::matrix("table", DType::F32, 16, cols), WeightSpec::matrix("weight", dtype, rows, cols)];
    let mut rng = Rng::seeded(1);
    for spec in &specs {
        let mut bytes = vec![];
        for _ in 0..spec.rows {
            quant::random_row(spec.dtype, cols, 1.0, &mut rng, &mut bytes);
        }
        backend.upload(spec, &mut bytes.chunks(1 << 20))?;
    }
    let shape = StepShape { tokens, rows: 1, sequences: 1 };
    let mut builder = ProgramBuilder::new("linear", shape, &specs);
    let x = builder.embed("x", WeightId(0))?;
    let y = builder.linear("y", x, WeightId(1), None)?;
    builder.output(y);
    let program = builder.finish();
    let plans = backend.compile(std::slice::from_ref(&program))?;
    let plan = plans.first().copied().unwrap_or(PlanId(0));
    let samples = timed(args.repeats, || run_once(backend, plan, &program, tokens))?;
    let bytes = specs[1].bytes().unwrap_or(0);
    let mut sorted = samples.clone();
    sorted.sort_by(f64::total_cmp);
    let rate = bytes as f64 / median(&sorted) / 1e3;
    Ok(json!({
        "op": "linear", "dtype": dtype.name(), "tokens": tokens, "rows": rows, "cols": cols,
        "weight_bytes": bytes, "time": spread(samples), "gigabytes_per_second": rate,
    }))
}

fn run_once(
    backend: &mut dyn Backend,
    plan: PlanId,
    program: &Program,
    tokens: usize,
) -> Result<(), CommandError> {
    let ids: Vec<u32> = (0..tokens as u32).map(|id| id % 16).collect();
    let zeros = vec![0; tokens];
    let inputs = StepInputs {
        tokens: &ids,
        positions: &zeros,
        sequences: &zeros,
        slots: &[],
        block_tables: &[],
        out_rows: &[0],
        sampling: &[SampleRow::GREEDY],
        penalty_tokens: &[],
    };
    backend.submit(plan, &inputs)?;
    Ok(backend.wait(&mut StepOutputs::for_program(program))?)
}

/// A prompt of ids spread over the vocabulary.
fn prompt(open: &OpenModel, tokens: usize) -> Vec<u32> {
    let vocab = open.model.vocab_size() as u64;
    (0..tokens as u64).map(|index| (index.wrapping_mul(0x9e37_79b9_7f4a_7c15) % vocab) as u32).collect()
}

fn prepare(args: &ModelBenchArgs, chunk: usize) -> Result<(OpenModel, DirectRun), CommandError> {
    let open = args.model.open()?;
    let context = args.depth + args.steps * (args.repeats + 2);
    if context > open.model.context_length() {
        return Err(CommandError::Usage(format!(
            "depth and steps need {context} positions, the context has {}",
            open.model.context_length()
        )));
    }
    let backend = args.device.load(&open, args.model.chunk_bytes)?;
    let options = DirectOptions { context, chunk, rows: 1, element: args.device.kv.into(), tapped: false };
    let run = DirectRun::new(backend, &open.model, &options)?;
    Ok((open, run))
}

fn decode(args: &ModelBenchArgs) -> Result<Json, CommandError> {
    let (open, mut run) = prepare(args, 1)?;
    let tokens = prompt(&open, args.depth + args.steps * (args.repeats + 2));
    let mut position = 0;
    while position < args.depth {
        run.step(&tokens[position..=position], position, &[0])?;
        position += 1;
    }
    let samples = timed(args.repeats, || {
        for _ in 0..args.steps {
            run.step(&tokens[position..=position], position, &[0])?;
            position += 1;
        }
        Ok(())
    })?;
    let mut result = model_result("decode", args, &run, samples, args.steps);
    if args.profile {
        result["profile"] = profile(&mut run, &tokens[position..=position], position, 1)?;
    }
    Ok(result)
}

/// Time of the steps that take `tokens` from `start` on in chunks, by part of a layer: the labels without their layer
/// numbers, in order of first appearance.
fn profile(run: &mut DirectRun, tokens: &[u32], start: usize, chunk: usize) -> Result<Json, CommandError> {
    // The first profiled step pays for what only profiling needs.
    run.profile(&tokens[..chunk.min(tokens.len())], start)?;
    let mut parts: Vec<(String, usize, f64)> = vec![];
    for (index, tokens) in tokens.chunks(chunk).enumerate() {
        for entry in &run.profile(tokens, start + index * chunk)?.entries {
            let part = entry.label.split('+').map(of_layer).collect::<Vec<_>>().join("+");
            match parts.iter_mut().find(|(name, _, _)| *name == part) {
                Some((_, count, time_us)) => (*count, *time_us) = (*count + 1, *time_us + entry.time_us),
                None => parts.push((part, 1, entry.time_us)),
            }
        }
    }
    let total: f64 = parts.iter().map(|(_, _, time_us)| time_us).sum();
    let rows: Vec<Json> = parts
        .iter()
        .map(|(part, count, time_us)| json!({ "part": part, "launches": count, "time_us": time_us }))
        .collect();
    Ok(json!({ "total_us": total, "parts": rows }))
}

/// A label without its layer's number.
fn of_layer(label: &str) -> String {
    label.split('.').filter(|part| part.parse::<u32>().is_err()).collect::<Vec<_>>().join(".")
}

fn prefill(args: &ModelBenchArgs) -> Result<Json, CommandError> {
    let chunk = args.chunk.clamp(1, args.depth.max(1));
    let (open, mut run) = prepare(args, chunk)?;
    let tokens = prompt(&open, args.depth);
    let samples = timed(args.repeats, || Ok(run.last_logits(&tokens).map(drop)?))?;
    let mut result = model_result("prefill", args, &run, samples, args.depth);
    if args.profile {
        result["profile"] = profile(&mut run, &tokens, 0, chunk)?;
    }
    Ok(result)
}

fn model_result(
    bench: &str,
    args: &ModelBenchArgs,
    run: &DirectRun,
    samples: Vec<f64>,
    tokens: usize,
) -> Json {
    let mut sorted = samples.clone();
    sorted.sort_by(f64::total_cmp);
    let memory: MemoryReport = run.backend().memory();
    json!({
        "bench": bench, "backend": args.device.backend.name(), "device": run.backend().caps().device,
        "model": args.model.model, "depth": args.depth, "tokens": tokens, "time": spread(samples),
        "tokens_per_second": tokens as f64 / median(&sorted) * 1e6,
        "device_bytes": memory.total_bytes(),
    })
}
