//! `bench batch`: many sequences at once through the engine, the aggregate rate while all of them decode.

use std::time::Instant;

use clap::Args;
use serde_json::{Value as Json, json};

use super::{prompt, spread};
use crate::commands::CommandError;
use crate::commands::args::{DeviceArgs, ModelArgs};
use crate::engine::{Engine, EngineConfig, Job, JobStream, Sampling, TokenEvent};
use crate::model::Recorder;

/// Flags of `bench batch`.
#[derive(Args, Debug)]
pub(super) struct BatchBenchArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// Numbers of sequences, separated by commas
    #[arg(long, env = "WORKER_ORCD_BATCH", value_delimiter = ',', default_value = "1,8,16")]
    batch: Vec<usize>,
    /// Prompt tokens of each sequence
    #[arg(long, env = "WORKER_ORCD_DEPTH", default_value_t = 128)]
    depth: usize,
    /// Tokens each sequence generates
    #[arg(long, env = "WORKER_ORCD_STEPS", default_value_t = 64)]
    steps: usize,
    /// Repeats; the median is reported
    #[arg(long, env = "WORKER_ORCD_REPEATS", default_value_t = 3)]
    repeats: usize,
}

/// When a sequence said each of its tokens.
type Times = Vec<Instant>;

pub(super) fn run(args: &BatchBenchArgs) -> Result<Json, CommandError> {
    let open = args.model.open()?;
    let backend = args.device.load(&open, args.model.chunk_bytes)?;
    let device = backend.caps().device.clone();
    let most = args.batch.iter().copied().max().unwrap_or(1).max(1);
    let positions = (args.depth + args.steps + 1) * most;
    let config = EngineConfig {
        max_batch: most,
        max_queue: most,
        kv_element: args.device.kv.into(),
        kv_budget: crate::engine::KvBudget::Blocks(positions.div_ceil(16) + most),
        prefix_cache: false,
        ..EngineConfig::for_model(&open.model, None)
    };
    let engine = Engine::start(backend, &open.model, config)?;
    let ids = prompt(&open, args.depth + most);
    let mut results = vec![];
    for &batch in &args.batch {
        let mut rates = vec![];
        let mut first_tokens_us = vec![];
        for _ in 0..=args.repeats {
            let start = Instant::now();
            let times = together(&engine, &ids, batch, args)?;
            rates.push(rate(&times));
            let last_first = times.iter().filter_map(|times| times.first()).max();
            first_tokens_us.extend(last_first.map(|first| (*first - start).as_secs_f64() * 1e6));
        }
        // The first round is warm-up.
        let mut rates = rates.split_off(1.min(rates.len()));
        rates.sort_by(f64::total_cmp);
        results.push(json!({
            "batch": batch, "tokens_per_second": super::median(&rates),
            "min_tokens_per_second": rates.first(), "max_tokens_per_second": rates.last(),
            "all_first_tokens": spread(first_tokens_us.split_off(1.min(first_tokens_us.len()))),
        }));
    }
    Ok(json!({
        "bench": "batch", "backend": args.device.backend.name(), "device": device, "model": args.model.model,
        "depth": args.depth, "steps": args.steps, "vocab_size": open.model.vocab_size(), "results": results,
    }))
}

fn together(
    engine: &Engine,
    ids: &[u32],
    batch: usize,
    args: &BatchBenchArgs,
) -> Result<Vec<Times>, CommandError> {
    let streams = (0..batch)
        .map(|index| {
            let job = Job {
                id: format!("bench-{index}"),
                prompt: ids.get(index..index + args.depth).unwrap_or_default().to_vec(),
                max_tokens: args.steps,
                stop_ids: vec![],
                sampling: Sampling::greedy(),
                deadline: None,
                cache_salt: None,
            };
            engine.submit(job)
        })
        .collect::<Result<Vec<_>, _>>()?;
    std::thread::scope(|scope| {
        let handles: Vec<_> = streams.into_iter().map(|stream| scope.spawn(|| listen(stream))).collect();
        let panicked = || CommandError::Usage("a listener panicked".into());
        handles.into_iter().map(|handle| handle.join().unwrap_or_else(|_| Err(panicked()))).collect()
    })
}

fn listen(mut stream: JobStream) -> Result<Times, CommandError> {
    let mut times = vec![];
    loop {
        match stream.events.blocking_recv() {
            Some(TokenEvent::Token { .. }) => times.push(Instant::now()),
            Some(TokenEvent::Failed { error }) => return Err(error.into()),
            Some(TokenEvent::Finished { .. }) | None => return Ok(times),
        }
    }
}

/// Tokens per second of all sequences between the last one's first token and the first one's end.
fn rate(sequences: &[Times]) -> f64 {
    let from = sequences.iter().filter_map(|times| times.first()).max();
    let to = sequences.iter().filter_map(|times| times.last()).min();
    let (Some(from), Some(to)) = (from, to) else { return f64::NAN };
    let counted = |times: &Times| times.iter().filter(|time| *time > from && *time <= to).count();
    let tokens: usize = sequences.iter().map(counted).sum();
    tokens as f64 / (*to - *from).as_secs_f64()
}
