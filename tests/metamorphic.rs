//! What a sequence says does not depend on how it was computed: alone or in a batch, whole or in chunks, uninterrupted
//! or preempted and computed again, from its first token or behind a cached prefix. Bitwise, on every backend, through the real engine and a model of every part.

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

use models::{TestModel, backends, open_device};
use worker_orcd::commands::forge::forge;
use worker_orcd::config::BackendChoice;
use worker_orcd::engine::{Engine, EngineConfig, Job, JobStream, KvBudget, Sampling, TokenEvent};
use worker_orcd::model::ModelOptions;

/// Every generated id with the bits of its log-probability and of the alternatives'.
type Said = Vec<(u32, Vec<(u32, u32)>)>;

const NEW_TOKENS: usize = 6;

fn config() -> EngineConfig {
    EngineConfig { max_batch: 4, context: 96, prefill_chunk: 64, ..EngineConfig::default() }
}

fn job(index: usize) -> Job {
    let length = [5, 37, 1, 18][index];
    let sampling = Sampling {
        temperature: if index.is_multiple_of(2) { 0.0 } else { 0.8 },
        seed: index as u64,
        logprobs: Some(20),
        ..Sampling::greedy()
    };
    Job {
        id: format!("job-{index}"),
        prompt: (0..length as u32).map(|i| (i * 89 + index as u32 * 7) % 900).collect(),
        max_tokens: NEW_TOKENS,
        stop_ids: vec![],
        sampling,
        deadline: None,
        cache_salt: None,
    }
}

fn listen(mut stream: JobStream) -> Said {
    let mut said = vec![];
    loop {
        match stream.events.blocking_recv().expect("a terminal event") {
            TokenEvent::Token { id, logprobs, .. } => {
                let logprobs = logprobs.expect("asked for");
                let mut bits = vec![(id, logprobs.chosen.to_bits())];
                bits.extend(logprobs.top.iter().map(|(id, value)| (*id, value.to_bits())));
                said.push((id, bits));
            }
            TokenEvent::Finished { .. } => return said,
            TokenEvent::Failed { error } => panic!("{error}"),
        }
    }
}

fn engine(test: &TestModel, choice: BackendChoice, config: EngineConfig) -> Engine {
    let backend = test.load(open_device(choice).unwrap());
    Engine::start(backend, &test.model, config).unwrap()
}

fn one_by_one(engine: &Engine) -> Vec<Said> {
    (0..4).map(|index| listen(engine.submit(job(index)).unwrap())).collect()
}

fn together(engine: &Engine) -> Vec<Said> {
    let streams: Vec<JobStream> = (0..4).map(|index| engine.submit(job(index)).unwrap()).collect();
    streams.into_iter().map(listen).collect()
}

#[test]
fn batches_chunks_preemption_and_cached_prefixes_change_no_bit_on_any_backend() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    forge("tiny-gpt-oss", 3, &path).unwrap();
    let test = TestModel::open(&path, ModelOptions { context: Some(96), ..ModelOptions::default() });
    for choice in backends() {
        if open_device(choice).is_none() {
            continue;
        }
        let name = choice.name();
        let alone = one_by_one(&engine(&test, choice, EngineConfig { max_batch: 1, ..config() }));
        assert!(alone.iter().all(|said| said.len() == NEW_TOKENS));
        assert_eq!(alone, together(&engine(&test, choice, config())), "{name}: a batch changes bits");
        let chunked = EngineConfig { prefill_chunk: 7, ..config() };
        assert_eq!(alone, together(&engine(&test, choice, chunked)), "{name}: chunks change bits");
        let cached = engine(&test, choice, EngineConfig { block_size: 4, ..config() });
        assert_eq!(alone, together(&cached), "{name}: small blocks change bits");
        assert_eq!(alone, together(&cached), "{name}: a cached prefix changes bits");
        // All but what follows the last full block: 4 of 5, 36 of 37, 0 of 1, 16 of 18.
        assert_eq!(cached.stats().prefix_cache_hits, 56, "{name}");
        // Room for the longest sequence and a little: the others are thrown out and computed again.
        let tight = EngineConfig { kv_budget: KvBudget::Blocks(12), block_size: 4, ..config() };
        let tight = engine(&test, choice, tight);
        assert_eq!(alone, together(&tight), "{name}: preemption changes bits");
        assert!(tight.stats().preemptions > 0, "{name}: the cache was not tight enough to preempt");
    }
}
