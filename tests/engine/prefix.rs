//! Prefix caching: what is found, what it is worth, and that nobody can tell by the tokens.

use std::sync::Arc;

use proptest::prelude::*;
use worker_orcd::engine::{Engine, EngineConfig, EngineError, FinishReason, Job, KvBudget, Sampling, Usage};

use super::fake::{Controls, FakeBackend, FakeModel, oracle};
use super::{assert_nothing_held, job, listen, listen_with_usage, next_event, prompt, wait_until};

fn model() -> FakeModel {
    FakeModel { windows: vec![None, Some(6)], context: 128 }
}

fn config() -> EngineConfig {
    EngineConfig { max_batch: 4, block_size: 4, prefill_chunk: 16, ..EngineConfig::default() }
}

fn start(config: EngineConfig) -> (Engine, Arc<Controls>) {
    let (backend, controls) = FakeBackend::for_model(&model());
    (Engine::start(backend, &model(), config).unwrap(), controls)
}

/// Runs `job` to its end, which is right; what it cost.
fn run(engine: &Engine, job: &Job) -> Usage {
    let stream = engine.submit(job.clone()).unwrap();
    let told = stream.cached_tokens.clone();
    let (heard, usage) = listen_with_usage(stream);
    assert_eq!(
        (heard.end, heard.tokens),
        (Ok(FinishReason::Length), oracle(&model(), job)),
        "job {}",
        job.id
    );
    let usage = usage.unwrap();
    assert_eq!(told.get(), Some(&usage.cached_tokens), "job {}", job.id);
    usage
}

/// `shared` ids every prompt begins with, then `own` ids that follow from `salt`.
fn branching(shared: usize, own: usize, salt: usize) -> Vec<u32> {
    let mut ids = prompt(shared, 0);
    ids.extend(prompt(own, salt + 1));
    ids
}

#[test]
fn a_repeated_prompt_is_computed_from_its_last_block_on() {
    let (engine, controls) = start(config());
    let first = job("first", &prompt(41, 0), 5);
    assert_eq!(run(&engine, &first).cached_tokens, 0);
    let computed = engine.stats().prefill_tokens;
    assert_eq!(computed, 41);
    controls.steps.lock().unwrap().clear();
    assert_eq!(run(&engine, &first).cached_tokens, 40);
    assert_eq!(controls.steps.lock().unwrap()[0].tokens, 1, "one token is left to compute");
    assert_eq!(engine.stats().prefill_tokens, computed + 1);
    // Forty ids fill ten blocks, and the last id is computed all the same.
    assert_eq!(run(&engine, &job("shorter", &prompt(40, 0), 5)).cached_tokens, 36);
    let stats = engine.stats();
    assert_eq!((stats.prompt_tokens, stats.prefix_cache_queries, stats.prefix_cache_hits), (122, 122, 76));
    assert!(stats.kv_blocks_cached >= 10);
    assert_nothing_held(&engine);
}

#[test]
fn branches_share_their_stem_and_a_conversation_goes_on_where_it_was() {
    let (engine, _) = start(config());
    let stem = branching(24, 6, 0);
    let answer = oracle(&model(), &job("a", &stem, 9));
    assert_eq!(run(&engine, &job("a", &stem, 9)).cached_tokens, 0);
    let turn: Vec<u32> = stem.iter().chain(&answer).copied().chain(prompt(7, 9)).collect();
    // Thirty of the prompt and nine of the answer, of which the last was never computed: nine full blocks.
    assert_eq!(run(&engine, &job("next turn", &turn, 3)).cached_tokens, 36);
    assert_eq!(run(&engine, &job("b", &branching(24, 30, 1), 9)).cached_tokens, 24);
    assert_eq!(run(&engine, &job("early", &branching(11, 30, 2), 9)).cached_tokens, 8);
    assert_eq!(run(&engine, &job("other", &prompt(30, 5), 9)).cached_tokens, 0);
    assert_nothing_held(&engine);
}

#[test]
fn blocks_of_a_running_sequence_are_shared() {
    let (engine, controls) = start(config());
    let long = job("long", &branching(32, 3, 0), 60);
    controls.step_delay_us.store(1000, std::sync::atomic::Ordering::Relaxed);
    let mut stream = engine.submit(long.clone()).unwrap();
    next_event(&mut stream);
    let held = engine.stats().kv_blocks_used;
    let short = job("short", &branching(32, 3, 1), 2);
    assert_eq!(run(&engine, &short).cached_tokens, 32);
    assert!(held > 0);
    drop(stream);
    assert_nothing_held(&engine);
    controls.step_delay_us.store(0, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(run(&engine, &long).cached_tokens, 32);
}

#[test]
fn salts_keep_tenants_apart() {
    let (engine, _) = start(config());
    let salted = |salt: Option<&str>| Job {
        cache_salt: salt.map(str::to_owned),
        ..job(format!("{salt:?}"), &prompt(33, 0), 3)
    };
    for salt in [None, Some("a"), Some("b"), Some("")] {
        assert_eq!(run(&engine, &salted(salt)).cached_tokens, 0, "{salt:?} sees somebody else's blocks");
        assert_eq!(run(&engine, &salted(salt)).cached_tokens, 32, "{salt:?} sees not its own");
    }
}

#[test]
fn switched_off_it_neither_looks_nor_keeps() {
    let (engine, _) = start(EngineConfig { prefix_cache: false, ..config() });
    for _ in 0..2 {
        assert_eq!(run(&engine, &job("a", &prompt(33, 0), 3)).cached_tokens, 0);
    }
    let stats = engine.stats();
    assert_eq!((stats.prompt_tokens, stats.prefix_cache_queries, stats.prefix_cache_hits), (66, 0, 0));
    assert_eq!((stats.kv_blocks_cached, stats.prefill_tokens), (0, 66));
}

#[test]
fn kept_blocks_make_room_before_anybody_is_preempted() {
    // Twelve blocks of 4 for a context of 128: every job pushes out most of what the one before left.
    let (engine, _) = start(EngineConfig { kv_budget: KvBudget::Blocks(12), ..config() });
    for index in 0..6 {
        run(&engine, &job(index, &prompt(30, index), 12));
    }
    let stats = engine.stats();
    assert_eq!((stats.preemptions, stats.kv_exhaustions), (0, 0));
    assert_eq!(run(&engine, &job("again", &prompt(30, 5), 12)).cached_tokens, 28);
    assert_eq!(run(&engine, &job("long ago", &prompt(30, 0), 12)).cached_tokens, 0);
    assert_nothing_held(&engine);
}

#[test]
fn a_preempted_sequence_resumes_from_what_is_left_of_it() {
    let (engine, controls) = start(EngineConfig { kv_budget: KvBudget::Blocks(20), ..config() });
    controls.close();
    let jobs = [job(0, &prompt(30, 0), 20), job(1, &prompt(30, 1), 20)];
    let streams = jobs.clone().map(|job| engine.submit(job).unwrap());
    controls.open();
    for (stream, job) in streams.into_iter().zip(&jobs) {
        let (heard, usage) = listen_with_usage(stream);
        assert_eq!(heard.tokens, oracle(&model(), job));
        assert_eq!(usage.unwrap().cached_tokens, 0, "its own blocks are no hit of its prompt");
    }
    let stats = engine.stats();
    assert!(stats.preemptions >= 1, "the cache was not tight");
    assert!(stats.prefill_tokens < 60 + 40, "{} computed: nothing was left", stats.prefill_tokens);
    assert_nothing_held(&engine);
}

/// Prompts that branch off a few stems, at block edges and beside them.
fn any_prompt() -> impl Strategy<Value = Vec<u32>> {
    (0..3_usize, 0..40_usize, 1..20_usize, 0..4_usize).prop_map(|(stem, shared, own, salt)| {
        let mut ids = prompt(shared, stem);
        ids.extend(prompt(own, 10 + salt));
        ids
    })
}

#[derive(Clone, Debug)]
struct Visit {
    prompt: Vec<u32>,
    max_tokens: usize,
    seed: u64,
    salt: Option<bool>,
    steps_before: u64,
    leaves_after: Option<u64>,
}

fn any_visit() -> impl Strategy<Value = Visit> {
    let leaves = prop::option::weighted(0.25, 0..6_u64);
    let salt = prop::option::weighted(0.2, any::<bool>());
    (any_prompt(), 1..25_usize, 0..9_u64, salt, 0..8_u64, leaves).prop_map(
        |(prompt, max_tokens, seed, salt, steps_before, leaves_after)| Visit {
            prompt,
            max_tokens,
            seed,
            salt,
            steps_before,
            leaves_after,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    /// Shared beginnings, a cache so tight that blocks are pushed out and sequences preempted, listeners that leave:
    /// the others say what they say without a cache. The step loop checks the pools after every step.
    #[test]
    fn nobody_can_tell_a_hit_by_its_tokens(
        visits in prop::collection::vec(any_visit(), 1..24),
        max_batch in 1..6_usize,
        prefill_chunk in 1..40_usize,
        blocks in 21..70_usize,
        windows in prop::sample::select(vec![
            vec![None], vec![Some(1)], vec![Some(7), None], vec![None, Some(5), Some(16)], vec![None, Some(40)],
        ]),
        block_size in prop::sample::select(vec![4_usize, 8]),
    ) {
        let model = FakeModel { windows, context: 84 };
        let kv_budget = KvBudget::Blocks(blocks);
        let config = EngineConfig { max_batch, prefill_chunk, block_size, kv_budget, ..EngineConfig::default() };
        let (backend, _controls) = FakeBackend::for_model(&model);
        let engine = Engine::start(backend, &model, config).unwrap();
        let pass = |steps: u64| {
            let until = engine.stats().steps + steps;
            wait_until(&engine, "steps", |s| s.steps >= until || s.running + s.waiting == 0);
        };
        let mut listeners = vec![];
        for (index, visit) in visits.into_iter().enumerate() {
            pass(visit.steps_before);
            let sampling = Sampling { temperature: 0.8, seed: visit.seed, ..Sampling::greedy() };
            let job = Job {
                sampling,
                cache_salt: visit.salt.map(|salt| salt.to_string()),
                ..job(index, &visit.prompt, visit.max_tokens)
            };
            let stream = engine.submit(job.clone()).unwrap();
            match visit.leaves_after {
                Some(steps) if index % 2 == 0 => {
                    pass(steps);
                    drop(stream);
                }
                Some(steps) => {
                    pass(steps);
                    engine.cancel(&job.id);
                    let heard = listen(stream);
                    prop_assert!(matches!(heard.end, Err(EngineError::Cancelled) | Ok(FinishReason::Length)));
                    prop_assert!(oracle(&model, &job).starts_with(&heard.tokens));
                }
                None => listeners.push((job, stream)),
            }
        }
        for (job, stream) in listeners {
            let (heard, usage) = listen_with_usage(stream);
            prop_assert_eq!(heard.end, Ok(FinishReason::Length));
            prop_assert_eq!(heard.tokens, oracle(&model, &job));
            let cached = usage.unwrap().cached_tokens;
            prop_assert!(cached < job.prompt.len() && cached % block_size == 0);
        }
        assert_nothing_held(&engine);
        prop_assert_eq!(engine.fault(), None);
    }
}
