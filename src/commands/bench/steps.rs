//! `bench decode` and `bench prefill`: one sequence through the device without a scheduler.

use clap::Args;
use serde_json::{Value as Json, json};
use worker_orcd_core::{BackendError, Program, StepShape};

use super::profile::Profiler;
use super::roof::Roof;
use super::work::{StepTokens, Work, Workload};
use super::{prompt, rates, spread, timed};
use crate::commands::args::{DeviceArgs, ModelArgs, OpenModel};
use crate::commands::{CommandError, progress};
use crate::device;
use crate::engine::direct::{DirectOptions, DirectRun};
use crate::model::{KvGroupSpec, Model, Recorder, StepHead};

/// Flags of both.
#[derive(Args, Debug)]
pub(super) struct ModelBenchArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// Tokens already in the cache for decode, tokens of the prompt for prefill
    #[arg(long, env = "WORKER_ORCD_DEPTH", default_value_t = 128)]
    depth: usize,
    /// Steps per repeat of decode; every repeat begins at the same depth
    #[arg(long, env = "WORKER_ORCD_STEPS", default_value_t = 16)]
    steps: usize,
    /// Tokens per prefill step
    #[arg(long, env = "WORKER_ORCD_CHUNK", default_value_t = 512)]
    chunk: usize,
    /// Repeats; the median is reported
    #[arg(long, env = "WORKER_ORCD_REPEATS", default_value_t = 5)]
    repeats: usize,
    /// 10¹² operations (additions and multiplications) that the device does in a second at best; with it, the limit of a
    /// prompt is that of its arithmetic where this is the lower
    #[arg(long, env = "WORKER_ORCD_TERA_OPERATIONS")]
    tera_operations: Option<f64>,
    /// Where the time of a step or a prompt goes, by part, layers added up: time, bytes, bandwidth, gaps
    #[arg(long, env = "WORKER_ORCD_PROFILE")]
    profile: bool,
}

/// A model whose steps end with the choice of a token on the device, as they do in the engine: reading logits back is
/// no part of a step there.
struct Choosing<'m>(&'m Model);

impl Recorder for Choosing<'_> {
    fn vocab_size(&self) -> usize {
        self.0.vocab_size()
    }

    fn context_length(&self) -> usize {
        self.0.context_length()
    }

    fn kv_groups(&self) -> Vec<KvGroupSpec> {
        self.0.kv_groups()
    }

    fn record(&self, shape: StepShape, _: StepHead) -> Result<Program, BackendError> {
        self.0.record(shape, StepHead::Sample { max_penalty_tokens: 0 })
    }
}

/// A model on a device, and what the device allows.
struct Prepared {
    open: OpenModel,
    run: DirectRun,
    roof: Roof,
}

impl Prepared {
    fn new(args: &ModelBenchArgs, context: usize, chunk: usize, chooses: bool) -> Result<Self, CommandError> {
        let open = args.model.open()?;
        if context > open.model.context_length() {
            return Err(CommandError::Usage(format!(
                "depth and steps need {context} positions, the context has {}",
                open.model.context_length()
            )));
        }
        let mut backend = device::open(args.device.backend, args.device.gpu_device)?;
        let mut roof = Roof::measured(backend.as_mut())?;
        roof.operations_per_second = args.tera_operations.map(|tera| tera * 1e12);
        progress::upload(&open, backend.as_mut(), args.model.chunk_bytes)?;
        let options =
            DirectOptions { context, chunk, rows: 1, element: args.device.kv.into(), tapped: false };
        let choosing = Choosing(&open.model);
        let recorder: &dyn Recorder = if chooses { &choosing } else { &open.model };
        let run = DirectRun::new(backend, recorder, &options)?;
        Ok(Self { open, run, roof })
    }

    /// What samples in microseconds say that are of `tokens` tokens each, beside the limit: `work` makes `of` of them.
    fn result(
        &self,
        args: &ModelBenchArgs,
        samples: Vec<f64>,
        tokens: usize,
        (work, of): (&Work, usize),
    ) -> Json {
        let mut result = json!({
            "bench": "", "backend": args.device.backend.name(), "device": self.run.backend().caps().device,
            "model": args.model.model, "depth": args.depth, "tokens": tokens,
            "bandwidth": self.roof.report(),
        });
        let per_second = samples.iter().map(|time_us| tokens as f64 / time_us * 1e6).collect();
        let median = rates(&mut result, per_second);
        result["time"] = spread(samples);
        result["device_bytes"] = json!(self.run.backend().memory().total_bytes());
        self.roof.judge(&mut result, work, of, median);
        result
    }
}

/// Microseconds per `tokens` tokens at the median rate of a result.
fn time_us(result: &Json, tokens: usize) -> f64 {
    tokens as f64 / result["tokens_per_second"].as_f64().unwrap_or(f64::NAN) * 1e6
}

/// Single tokens, one after another.
pub(super) fn decode(args: &ModelBenchArgs) -> Result<Json, CommandError> {
    let steps = args.steps.max(1);
    let context = args.depth + steps;
    let mut prepared = Prepared::new(args, context, 1, true)?;
    let tokens = prompt(&prepared.open, context);
    let run = &mut prepared.run;
    let mut through = |positions: std::ops::Range<usize>| -> Result<(), CommandError> {
        for (position, token) in tokens.iter().enumerate().take(positions.end).skip(positions.start) {
            run.step(std::slice::from_ref(token), position, &[0])?;
        }
        Ok(())
    };
    through(0..args.depth)?;
    let samples = timed(args.repeats, || through(args.depth..context))?;
    let program = prepared.run.program().clone();
    let workload =
        Workload { program: &program, specs: prepared.open.model.specs(), element: args.device.kv.into() };
    // Depths differ by a few tokens within a repeat: the mean step stands for all.
    let all: Work = (args.depth..context).map(|depth| workload.step(&StepTokens::decode(1, depth))).sum();
    let mut result = prepared.result(args, samples, steps, (&all.part_of(steps), 1));
    result["bench"] = json!("decode");
    if args.profile {
        let last = context - 1;
        let mut profiler = Profiler::new(workload, args.repeats);
        profiler.add(&mut prepared.run, &tokens[last..], StepTokens::decode(1, last))?;
        result["profile"] = profiler.report(&prepared.roof, time_us(&result, 1));
    }
    Ok(result)
}

/// Whole prompts.
pub(super) fn prefill(args: &ModelBenchArgs) -> Result<Json, CommandError> {
    let depth = args.depth.max(1);
    let chunk = args.chunk.clamp(1, depth);
    let mut prepared = Prepared::new(args, depth, chunk, false)?;
    let tokens = prompt(&prepared.open, depth);
    let samples = timed(args.repeats, || Ok(prepared.run.last_logits(&tokens).map(drop)?))?;
    let program = prepared.run.program().clone();
    let workload =
        Workload { program: &program, specs: prepared.open.model.specs(), element: args.device.kv.into() };
    let chunks = || {
        tokens.chunks(chunk).enumerate().map(|(index, part)| {
            let start = index * chunk;
            let rows = usize::from(start + part.len() == depth);
            (part, StepTokens { sequences: 1, per_sequence: part.len(), start, rows })
        })
    };
    let work: Work = chunks().map(|(_, step)| workload.step(&step)).sum();
    let mut result = prepared.result(args, samples, depth, (&work, depth));
    result["bench"] = json!("prefill");
    result["chunk"] = json!(chunk);
    if args.profile {
        let mut profiler = Profiler::new(workload, args.repeats);
        for (part, step) in chunks() {
            profiler.add(&mut prepared.run, part, step)?;
        }
        result["profile"] = profiler.report(&prepared.roof, time_us(&result, depth));
    }
    Ok(result)
}
