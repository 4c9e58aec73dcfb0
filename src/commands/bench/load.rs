//! `bench load`: from the file to the first token, by phase, again and again with everything warm.

use std::time::Instant;

use clap::Args;
use serde_json::{Map, Value as Json, json};

use super::median;
use super::roof::Roof;
use crate::commands::CommandError;
use crate::commands::args::{DeviceArgs, ModelArgs};
use crate::device;
use crate::engine::{Engine, EngineConfig, Job, Sampling, TokenEvent, memory_plan};

/// Flags of `bench load`.
#[derive(Args, Debug)]
pub(super) struct LoadBenchArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// Repeats; the median is reported. One load before them warms the page cache and the kernel cache
    #[arg(long, env = "WORKER_ORCD_REPEATS", default_value_t = 5)]
    repeats: usize,
}

/// One load.
struct Loaded {
    phases: Vec<(&'static str, f64)>,
    total_ms: f64,
    data_bytes: u64,
    device_bytes: u64,
    planned_bytes: u64,
}

/// What lies between two moments, by name.
struct Clock {
    start: Instant,
    last: Instant,
    phases: Vec<(&'static str, f64)>,
}

impl Clock {
    fn start() -> Self {
        let now = Instant::now();
        Self { start: now, last: now, phases: vec![] }
    }

    fn phase(&mut self, name: &'static str) {
        let now = Instant::now();
        self.phases.push((name, (now - self.last).as_secs_f64() * 1e3));
        self.last = now;
    }
}

pub(super) fn run(args: &LoadBenchArgs) -> Result<Json, CommandError> {
    let mut backend = device::open(args.device.backend, args.device.gpu_device)?;
    let roof = Roof::measured(backend.as_mut())?;
    let name = backend.caps().device.clone();
    drop(backend);
    let first = load(args)?;
    let loads = (0..args.repeats.max(1)).map(|_| load(args)).collect::<Result<Vec<_>, _>>()?;
    let mut phases = Map::new();
    for (index, (phase, _)) in first.phases.iter().enumerate() {
        let times = loads.iter().filter_map(|load| load.phases.get(index)).map(|(_, ms)| *ms);
        phases.insert((*phase).to_owned(), spread(times.collect()).0);
    }
    let (total, total_ms) = spread(loads.iter().map(|load| load.total_ms).collect());
    let bytes = first.data_bytes as f64;
    let upload_ms = phases.get("upload").and_then(|upload| upload["median_ms"].as_f64());
    let rate = upload_ms.map(|ms| bytes / ms * 1e3);
    let limit = roof.bandwidth.upload_bytes_per_second;
    let limit_ms = limit.map(|limit| bytes / limit * 1e3);
    Ok(json!({
        "bench": "load", "backend": args.device.backend.name(), "device": name, "model": args.model.model,
        "data_bytes": first.data_bytes, "bandwidth": roof.report(), "phases": phases, "total": total,
        "first_total_ms": first.total_ms, "limit_ms": limit_ms,
        "fraction_of_limit": limit_ms.map(|limit_ms| limit_ms / total_ms),
        "upload_gigabytes_per_second": rate.map(|rate| rate / 1e9),
        "upload_fraction_of_limit": rate.zip(limit).map(|(rate, limit)| rate / limit),
        "device_bytes": first.device_bytes, "planned_bytes": first.planned_bytes,
    }))
}

/// Smallest, middle and largest in milliseconds, and the middle one.
fn spread(mut samples_ms: Vec<f64>) -> (Json, f64) {
    samples_ms.sort_by(f64::total_cmp);
    let middle = median(&samples_ms);
    (json!({ "min_ms": samples_ms.first(), "median_ms": middle, "max_ms": samples_ms.last() }), middle)
}

fn load(args: &LoadBenchArgs) -> Result<Loaded, CommandError> {
    let mut clock = Clock::start();
    let open = args.model.open()?;
    clock.phase("open_file");
    let mut backend = device::open(args.device.backend, args.device.gpu_device)?;
    clock.phase("open_device");
    open.model.upload(&open.gguf, backend.as_mut(), args.model.chunk_bytes, &mut |_| {})?;
    clock.phase("upload");
    let config = EngineConfig::for_model(&open.model, None);
    let footprint = device::footprint(args.device.backend);
    let planned = memory_plan(open.model.specs(), &open.model, &config, footprint.as_ref())?.report;
    let engine = Engine::start(backend, &open.model, config)?;
    clock.phase("start_engine");
    first_token(&engine)?;
    clock.phase("first_token");
    let total_ms = clock.start.elapsed().as_secs_f64() * 1e3;
    let device_bytes = engine.memory().total_bytes();
    // The device is given back before the next load asks for its memory.
    engine.shutdown();
    engine.join();
    Ok(Loaded {
        phases: clock.phases,
        total_ms,
        data_bytes: open.gguf.data_bytes(),
        device_bytes,
        planned_bytes: planned.total_bytes(),
    })
}

fn first_token(engine: &Engine) -> Result<(), CommandError> {
    let mut stream = engine.submit(Job {
        id: "bench".into(),
        prompt: vec![1, 2, 3],
        max_tokens: 1,
        stop_ids: vec![],
        sampling: Sampling::greedy(),
        deadline: None,
        cache_salt: None,
    })?;
    while let Some(event) = stream.events.blocking_recv() {
        match event {
            TokenEvent::Token { .. } => break,
            TokenEvent::Failed { error } => return Err(error.into()),
            TokenEvent::Finished { .. } => {}
        }
    }
    Ok(())
}
