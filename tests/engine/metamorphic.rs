//! What a job says does not depend on batching, chunking, preemption, arrival or who samples.

use proptest::prelude::*;
use worker_orcd::engine::{
    Engine, EngineConfig, FinishReason, Job, KvBudget, Sampling, TokenEvent, TokenLogprobs,
};

use super::fake::{FakeBackend, FakeModel, StepRecord, VOCAB, oracle};
use super::{assert_nothing_held, job, listen, next_event, prompt, wait_until};

fn model() -> FakeModel {
    FakeModel { windows: vec![None, Some(6)], context: 96 }
}

fn config() -> EngineConfig {
    EngineConfig { max_batch: 6, block_size: 4, prefill_chunk: 16, ..EngineConfig::default() }
}

fn jobs() -> Vec<Job> {
    let samplings = [
        Sampling::greedy(),
        Sampling { temperature: 0.9, seed: 1 << 40, ..Sampling::greedy() },
        Sampling { temperature: 1.3, top_k: 20, top_p: 0.9, seed: 5, ..Sampling::greedy() },
        Sampling { temperature: 0.7, min_p: 0.05, repetition_penalty: 1.3, seed: 6, ..Sampling::greedy() },
    ];
    let lengths = [1, 30, 7, 64, 4, 16, 17, 50];
    let make = |(index, &length): (usize, &usize)| Job {
        sampling: samplings[index % samplings.len()].clone(),
        ..job(index, &prompt(length, index), 12 + index)
    };
    lengths.iter().enumerate().map(make).collect()
}

/// Runs all jobs at once; every token is compared with the cacheless oracle.
fn run_together(model: &FakeModel, config: EngineConfig, jobs: &[Job]) -> (Vec<StepRecord>, u64) {
    let (backend, controls) = FakeBackend::for_model(model);
    let engine = Engine::start(backend, model, config).unwrap();
    controls.close();
    let streams: Vec<_> = jobs.iter().map(|job| engine.submit(job.clone()).unwrap()).collect();
    controls.open();
    for (stream, job) in streams.into_iter().zip(jobs) {
        let heard = listen(stream);
        assert_eq!(heard.end, Ok(FinishReason::Length), "job {}", job.id);
        assert_eq!(heard.tokens, oracle(model, job), "job {}", job.id);
    }
    assert_nothing_held(&engine);
    let preemptions = engine.stats().preemptions;
    let steps = controls.steps.lock().unwrap().clone();
    (steps, preemptions)
}

#[test]
fn a_batch_is_its_singles() {
    for host_sampling in [false, true] {
        for max_batch in [1, 3, 6] {
            let config = EngineConfig { max_batch, host_sampling, ..config() };
            let (steps, _) = run_together(&model(), config, &jobs());
            assert_eq!(steps.iter().map(|step| step.sequences).max(), Some(max_batch));
            assert!(steps.iter().all(|step| step.sampled != host_sampling));
        }
    }
}

#[test]
fn chunks_are_the_whole_prompt() {
    for prefill_chunk in [1, 2, 5, 16, 33, 500] {
        let config = EngineConfig { max_batch: 2, prefill_chunk, ..config() };
        let (steps, _) = run_together(&model(), config, &jobs());
        let largest = steps.iter().map(|step| step.tokens).max().unwrap_or(0);
        assert!(largest <= prefill_chunk.max(2), "{largest} tokens in a step");
    }
}

#[test]
fn preempted_is_uninterrupted() {
    let config = EngineConfig { kv_budget: KvBudget::Blocks(22), ..config() };
    let (_, preemptions) = run_together(&model(), config, &jobs());
    assert!(preemptions >= 2, "{preemptions} preemptions");
}

#[test]
fn window_groups_hold_their_window() {
    let long = vec![job("long", &prompt(40, 0), 50), job("short", &prompt(3, 1), 90)];
    for prefill_chunk in [1, 16] {
        let (steps, _) = run_together(&model(), EngineConfig { prefill_chunk, ..config() }, &long);
        // 5 positions behind and a chunk: at most this many blocks of 4, straddling one more.
        let most = (5 + prefill_chunk.max(6)).div_ceil(4) + 1;
        assert!(steps.iter().all(|step| step.held <= most));
        assert!(steps.last().is_some_and(|step| step.held <= 3), "decoding sees 6 positions");
    }
}

#[test]
fn a_long_prompt_stalls_nobody() {
    let (backend, controls) = FakeBackend::for_model(&model());
    let engine = Engine::start(backend, &model(), EngineConfig { prefill_chunk: 6, ..config() }).unwrap();
    controls.close();
    let talking = engine.submit(job("talking", &prompt(2, 0), 60)).unwrap();
    let long = engine.submit(job("long", &prompt(90, 1), 1)).unwrap();
    controls.open();
    assert_eq!(listen(long).end, Ok(FinishReason::Length));
    assert_eq!(listen(talking).end, Ok(FinishReason::Length));
    let steps = controls.steps.lock().unwrap().clone();
    let mixed: Vec<&StepRecord> = steps.iter().filter(|step| step.sequences == 2).collect();
    assert!(mixed.len() >= 90 / 5);
    assert!(mixed.iter().all(|step| step.rows >= 1 && step.tokens <= 6));
}

#[test]
fn reports_do_not_change_the_tokens() {
    let (backend, controls) = FakeBackend::for_model(&model());
    let engine = Engine::start(backend, &model(), config()).unwrap();
    let plain = Job {
        sampling: Sampling { temperature: 1.0, seed: 9, ..Sampling::greedy() },
        ..job("a", &[4, 5], 20)
    };
    let expected = oracle(&model(), &plain);
    let sampling = Sampling { logprobs: Some(3), ..plain.sampling.clone() };
    let mut stream = engine.submit(Job { sampling, ..plain.clone() }).unwrap();
    for &expected_id in &expected {
        let Some(TokenEvent::Token { id, logprobs: Some(TokenLogprobs { chosen, top }), .. }) =
            next_event(&mut stream)
        else {
            panic!("no report")
        };
        assert_eq!((id, top.len()), (expected_id, 3));
        assert!(top.windows(2).all(|pair| pair[0].1 >= pair[1].1) && chosen <= top[0].1);
    }
    assert!(controls.steps.lock().unwrap().iter().all(|step| !step.sampled));
    assert_eq!(listen(engine.submit(plain).unwrap()).tokens, expected);
    assert!(controls.steps.lock().unwrap().last().is_some_and(|step| step.sampled));
}

#[test]
fn long_histories_are_penalised_by_the_host() {
    let config = EngineConfig { max_penalty_tokens: 20, ..config() };
    let penalised = Sampling { temperature: 0.5, repetition_penalty: 1.9, ..Sampling::greedy() };
    let jobs = [Job { sampling: penalised, ..job("a", &prompt(16, 0), 60) }];
    let (steps, _) = run_together(&model(), config, &jobs);
    assert!(steps.first().is_some_and(|step| step.sampled), "few ids: the device");
    assert!(steps.last().is_some_and(|step| !step.sampled), "many ids: the host");
}

fn any_job() -> impl Strategy<Value = (Vec<u32>, usize, Sampling)> {
    let sampling =
        (0..3_usize, 0_u64..50, 0..2_usize, 0..2_usize).prop_map(|(heat, seed, penalty, report)| Sampling {
            temperature: [0.0, 0.6, 1.5][heat],
            repetition_penalty: [1.0, 1.2][penalty],
            logprobs: [None, Some(1)][report],
            seed,
            ..Sampling::greedy()
        });
    (prop::collection::vec(0..VOCAB as u32 - 1, 1..40), 1..25_usize, sampling)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// Jobs arrive while others run; the cache is tight; some leave early. The rest says what it would say alone.
    #[test]
    fn arrival_decides_nothing(
        specs in prop::collection::vec((any_job(), 0..4_usize, prop::bool::weighted(0.15)), 1..14),
        max_batch in 1..6_usize,
        prefill_chunk in 1..40_usize,
        blocks in 17..60_usize,
        window in 1..20_usize,
        block_size in 1..3_usize,
    ) {
        let model = FakeModel { windows: vec![Some(window), None], context: 80 };
        let config = EngineConfig {
            max_batch,
            prefill_chunk,
            block_size: block_size * 4,
            kv_budget: KvBudget::Blocks(blocks),
            max_penalty_tokens: 30,
            ..EngineConfig::default()
        };
        let (backend, _controls) = FakeBackend::for_model(&model);
        let engine = Engine::start(backend, &model, config).unwrap();
        let mut listeners = vec![];
        for (index, ((prompt, max_tokens, sampling), steps_before, leaves)) in specs.into_iter().enumerate() {
            let until = engine.stats().steps + steps_before as u64;
            wait_until(&engine, "steps", |stats| stats.steps >= until || stats.running + stats.waiting == 0);
            let job = Job { sampling, ..job(index, &prompt, max_tokens) };
            let stream = engine.submit(job.clone()).unwrap();
            if leaves {
                engine.cancel(&job.id);
            } else {
                listeners.push((job, stream));
            }
        }
        for (job, stream) in listeners {
            let heard = listen(stream);
            prop_assert_eq!(heard.end, Ok(FinishReason::Length));
            prop_assert_eq!(heard.tokens, oracle(&model, &job));
        }
        assert_nothing_held(&engine);
    }
}
