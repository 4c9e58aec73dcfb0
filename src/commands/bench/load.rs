//! `bench load`: from the file to the first token, by phase.

use std::time::Instant;

use clap::Args;
use serde_json::{Value as Json, json};

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
}

pub(super) fn run(args: &LoadBenchArgs) -> Result<Json, CommandError> {
    let start = Instant::now();
    let mut phases = vec![];
    let mut last = start;
    let mut phase = |name: &str| {
        let now = Instant::now();
        phases.push((name.to_owned(), (now - last).as_secs_f64() * 1e3));
        last = now;
    };
    let open = args.model.open()?;
    phase("open_file_ms");
    let mut backend = device::open(args.device.backend, args.device.gpu_device)?;
    phase("open_device_ms");
    open.model.upload(&open.gguf, backend.as_mut(), args.model.chunk_bytes, &mut |_| {})?;
    phase("upload_ms");
    let config = EngineConfig::for_model(&open.model, None);
    let footprint = device::footprint(args.device.backend);
    let planned = memory_plan(open.model.specs(), &open.model, &config, footprint.as_ref())?.report;
    let name = backend.caps().device.clone();
    let engine = Engine::start(backend, &open.model, config)?;
    phase("start_engine_ms");
    let job = Job {
        id: "bench".into(),
        prompt: vec![1, 2, 3],
        max_tokens: 1,
        stop_ids: vec![],
        sampling: Sampling::greedy(),
        deadline: None,
        cache_salt: None,
    };
    let mut stream = engine.submit(job)?;
    while let Some(event) = stream.events.blocking_recv() {
        match event {
            TokenEvent::Token { .. } => break,
            TokenEvent::Failed { error } => return Err(error.into()),
            TokenEvent::Finished { .. } => {}
        }
    }
    phase("first_token_ms");
    let memory = engine.memory();
    let bytes = open.gguf.data_bytes();
    let upload_ms = phases.iter().find(|(name, _)| name == "upload_ms").map_or(f64::NAN, |(_, ms)| *ms);
    Ok(json!({
        "bench": "load", "backend": args.device.backend.name(), "device": name, "model": args.model.model,
        "data_bytes": bytes, "phases": phases.iter().cloned().collect::<std::collections::BTreeMap<_, _>>(),
        "total_ms": start.elapsed().as_secs_f64() * 1e3,
        "upload_gigabytes_per_second": bytes as f64 / upload_ms / 1e6,
        "device_bytes": memory.total_bytes(), "planned_bytes": planned.total_bytes(),
    }))
}
