//! `bench batch`: many sequences at once through the engine, the aggregate rate while all of them decode.

use std::time::Instant;

use clap::Args;
use serde_json::{Value as Json, json};
use worker_orcd_core::StepShape;

use super::roof::Roof;
use super::work::{StepTokens, Workload};
use super::{prompt, rates, spread};
use crate::commands::args::{DeviceArgs, ModelArgs};
use crate::commands::{CommandError, progress};
use crate::device;
use crate::engine::{Engine, EngineConfig, Job, JobStream, KvBudget, Sampling, TokenEvent};
use crate::model::{Recorder, StepHead};

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
    /// Prompt tokens of each sequence, separated by commas; every batch is measured at every depth
    #[arg(long, env = "WORKER_ORCD_DEPTH", value_delimiter = ',', default_value = "128")]
    depth: Vec<usize>,
    /// Leave out batches that need more cached positions than this, all sequences together
    #[arg(long, env = "WORKER_ORCD_POSITIONS")]
    positions: Option<usize>,
    /// Tokens each sequence generates while all of them do
    #[arg(long, env = "WORKER_ORCD_STEPS", default_value_t = 64)]
    steps: usize,
    /// Repeats; the median is reported
    #[arg(long, env = "WORKER_ORCD_REPEATS", default_value_t = 5)]
    repeats: usize,
}

/// When a sequence said each of its tokens.
type Times = Vec<Instant>;

/// So many sequences, with prompts so long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Load {
    batch: usize,
    depth: usize,
    /// Tokens of each sequence: those it says before the last one begins, and those that count.
    tokens: usize,
}

impl Load {
    /// Prompts enter in chunks, one after another, while sequences that have begun go on: the first must not end before
    /// the last begins.
    fn new(batch: usize, depth: usize, steps: usize, chunk: usize) -> Self {
        let steps_of_prompts = (batch * depth).div_ceil(chunk.saturating_sub(batch).max(1));
        Self { batch, depth, tokens: steps + steps_of_prompts + 1 }
    }

    /// Cached positions of all sequences.
    const fn positions(&self) -> usize {
        self.batch * (self.depth + self.tokens)
    }
}

pub(super) fn run(args: &BatchBenchArgs) -> Result<Json, CommandError> {
    let open = args.model.open()?;
    let defaults = EngineConfig::for_model(&open.model, None);
    let (steps, chunk) = (args.steps.max(1), defaults.prefill_chunk);
    let all = args.batch.iter().flat_map(|&batch| {
        args.depth.iter().map(move |&depth| Load::new(batch.max(1), depth.max(1), steps, chunk))
    });
    let fits = |load: &Load| args.positions.is_none_or(|most| load.positions() <= most);
    let (loads, left_out): (Vec<Load>, Vec<Load>) = all.partition(fits);
    let longest = loads.iter().map(|load| load.depth + load.tokens).max().unwrap_or(0);
    if longest > open.model.context_length() {
        return Err(CommandError::Usage(format!(
            "depth and steps need {longest} positions of a sequence, the context has {}",
            open.model.context_length()
        )));
    }
    let most = |of: fn(&Load) -> usize| loads.iter().map(of).max().unwrap_or(1);
    let most_sequences = most(|load| load.batch);
    let config = EngineConfig {
        max_batch: most_sequences,
        max_queue: most_sequences,
        kv_element: args.device.kv.into(),
        kv_budget: KvBudget::Blocks(most(|load| load.positions().div_ceil(16) + load.batch)),
        prefix_cache: false,
        ..defaults
    };
    let mut backend = device::open(args.device.backend, args.device.gpu_device)?;
    let roof = Roof::measured(backend.as_mut())?;
    progress::upload(&open, backend.as_mut(), args.model.chunk_bytes)?;
    let name = backend.caps().device.clone();
    let single = StepShape { tokens: 1, rows: 1, sequences: 1 };
    let program = open.model.record(single, StepHead::Sample { max_penalty_tokens: 0 })?;
    let workload = Workload { program: &program, specs: open.model.specs(), element: args.device.kv.into() };
    let engine = Engine::start(backend, &open.model, config)?;
    let ids = prompt(&open, most(|load| load.depth) + most_sequences);
    let mut results = vec![];
    for load in &loads {
        results.push(measure(&engine, &ids, load, args.repeats, &roof, &workload)?);
    }
    let left_out: Vec<Json> =
        left_out.iter().map(|load| json!({ "batch": load.batch, "depth": load.depth })).collect();
    Ok(json!({
        "bench": "batch", "backend": args.device.backend.name(), "device": name, "model": args.model.model,
        "steps": args.steps, "repeats": args.repeats.max(1), "vocab_size": open.model.vocab_size(),
        "bandwidth": roof.report(), "device_bytes": engine.memory().total_bytes(), "results": results,
        "left_out": left_out,
    }))
}

fn measure(
    engine: &Engine,
    ids: &[u32],
    load: &Load,
    repeats: usize,
    roof: &Roof,
    workload: &Workload<'_>,
) -> Result<Json, CommandError> {
    let (mut per_second, mut first_tokens_us, mut depths) = (vec![], vec![], vec![]);
    // The first round is warm-up.
    for round in 0..=repeats.max(1) {
        let start = Instant::now();
        let times = together(engine, ids, load)?;
        if round == 0 {
            continue;
        }
        let (rate, said) = together_rate(&times);
        per_second.push(rate);
        depths.push(load.depth as f64 + said);
        let last_first = times.iter().filter_map(|times| times.first()).max();
        first_tokens_us.extend(last_first.map(|first| (*first - start).as_secs_f64() * 1e6));
    }
    let depth = depths.iter().sum::<f64>() / depths.len() as f64;
    let mut result = json!({ "batch": load.batch, "depth": load.depth, "mean_depth": depth });
    let median = rates(&mut result, per_second);
    result["all_first_tokens"] = spread(first_tokens_us);
    let work = workload.step(&StepTokens::decode(load.batch, depth.round() as usize));
    roof.judge(&mut result, &work, load.batch, median);
    Ok(result)
}

fn together(engine: &Engine, ids: &[u32], load: &Load) -> Result<Vec<Times>, CommandError> {
    let streams = (0..load.batch)
        .map(|index| {
            let job = Job {
                id: format!("bench-{index}"),
                prompt: ids.get(index..index + load.depth).unwrap_or_default().to_vec(),
                max_tokens: load.tokens,
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

/// Between the last sequence's first token and the first one's end: tokens per second of all sequences, and how many
/// tokens of its answer a sequence had in the cache in the mean.
fn together_rate(sequences: &[Times]) -> (f64, f64) {
    let from = sequences.iter().filter_map(|times| times.first()).max();
    let to = sequences.iter().filter_map(|times| times.last()).min();
    let (Some(from), Some(to)) = (from, to) else { return (f64::NAN, 0.0) };
    let until = |end: &Instant| -> usize {
        sequences.iter().map(|times| times.iter().filter(|time| *time <= end).count()).sum()
    };
    let (before, after) = (until(from), until(to));
    let said = (before + after) as f64 / 2.0 / sequences.len().max(1) as f64;
    // The step that makes a sequence's second token finds its prompt in the cache, and no more.
    let cached = (said - 1.5).max(0.0);
    (after.saturating_sub(before) as f64 / to.saturating_duration_since(*from).as_secs_f64(), cached)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_rate_is_that_of_the_time_all_sequences_share() {
        let start = Instant::now();
        let at =
            |times: &[u64]| -> Times { times.iter().map(|ms| start + Duration::from_millis(*ms)).collect() };
        // Together from 30 to 60 ms: three tokens each after the first that counts as the beginning.
        let sequences = [at(&[10, 20, 30, 40, 50, 60]), at(&[30, 40, 50, 60, 70])];
        let (rate, cached) = together_rate(&sequences);
        assert!((rate - 200.0).abs() < 1e-6, "{rate}");
        // Steps in between begin with 2, 3, 4 and 0, 1, 2 tokens of the answers in the cache.
        assert!((cached - 2.0).abs() < 1e-9, "{cached}");
        assert!(together_rate(&[]).0.is_nan());
    }

    #[test]
    fn the_first_sequence_is_still_there_when_the_last_begins() {
        let load = Load::new(64, 3500, 64, 512);
        // 448 prompt tokens a step beside 64 running sequences.
        assert_eq!(load.tokens, 64 + 500 + 1);
        assert_eq!(load.positions(), 64 * (3500 + 565));
        assert_eq!(Load::new(1, 64, 64, 512).tokens, 66);
        assert_eq!(Load::new(600, 10, 5, 512).tokens, 5 + 6000 + 1, "one at a time at worst");
    }
}
