//! The same request says the same, run after run, alone and among others, whatever the chunk: 256 sampled tokens of the
//! bundled model. CUDA does it in full; slower backends with fewer runs and tokens.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a failed step of a test is a failed test"
)]

#[path = "support/models.rs"]
#[allow(dead_code, reason = "shared with the golden tests, which use more of it")]
mod models;

use models::{TestModel, backends, open_device, root};
use worker_orcd::config::BackendChoice;
use worker_orcd::engine::{Engine, EngineConfig, Job, JobStream, Sampling, TokenEvent};
use worker_orcd::model::ModelOptions;

fn job(index: usize, tokens: usize) -> Job {
    let sampling =
        Sampling { temperature: 0.9, top_p: 0.95, seed: 1000 + index as u64, ..Sampling::greedy() };
    Job {
        id: format!("job-{index}"),
        prompt: (0..40 + 3 * index as u32).map(|i| (i * 61 + index as u32) % 4000).collect(),
        max_tokens: tokens,
        stop_ids: vec![],
        sampling,
        deadline: None,
        cache_salt: None,
    }
}

fn listen(mut stream: JobStream) -> Vec<u32> {
    let mut ids = vec![];
    loop {
        match stream.events.blocking_recv().expect("a terminal event") {
            TokenEvent::Token { id, .. } => ids.push(id),
            TokenEvent::Finished { .. } => return ids,
            TokenEvent::Failed { error } => panic!("{error}"),
        }
    }
}

#[test]
fn repeats_batches_and_chunks_say_the_same_on_every_backend() {
    let path = root().join("models/haiku-moe/haiku-moe-mxfp4.gguf");
    let test = TestModel::open(&path, ModelOptions { context: Some(512), ..ModelOptions::default() });
    for choice in backends() {
        let (runs, tokens, batches): (usize, usize, &[usize]) = match choice {
            BackendChoice::Cuda => (5, 256, &[2, 4, 7, 16]),
            BackendChoice::Reference => (2, 48, &[3]),
            BackendChoice::Wgpu => (2, 24, &[3]),
        };
        for chunk in [512, 9] {
            let Some(backend) = open_device(choice) else { break };
            let config = EngineConfig {
                context: 512,
                max_batch: 16,
                prefill_chunk: chunk,
                prefix_cache: false,
                ..EngineConfig::default()
            };
            let engine = Engine::start(test.load(backend), &test.model, config).unwrap();
            let alone = listen(engine.submit(job(0, tokens)).unwrap());
            assert_eq!(alone.len(), tokens);
            for run in 1..runs {
                let again = listen(engine.submit(job(0, tokens)).unwrap());
                assert_eq!(alone, again, "{} run {run}, chunk {chunk}", choice.name());
            }
            for &batch in batches {
                let streams: Vec<JobStream> =
                    (0..batch).map(|index| engine.submit(job(index, tokens)).unwrap()).collect();
                let together: Vec<Vec<u32>> = streams.into_iter().map(listen).collect();
                assert_eq!(alone, together[0], "{} in a batch of {batch}, chunk {chunk}", choice.name());
            }
        }
    }
}
