//! What the engine tells of itself, and what a step costs the host.

use std::time::Duration;

use worker_orcd::engine::{Engine, EngineConfig, FinishReason, Histogram};

use super::fake::{FakeBackend, FakeModel, oracle};
use super::{assert_nothing_held, job, listen, prompt, wait_until};

fn model() -> FakeModel {
    FakeModel { windows: vec![None, Some(8)], context: 128 }
}

fn config() -> EngineConfig {
    EngineConfig { max_batch: 4, max_queue: 64, block_size: 4, prefill_chunk: 16, ..EngineConfig::default() }
}

#[test]
fn every_plan_runs_before_the_first_request_and_writes_nothing() {
    let (backend, controls) = FakeBackend::for_model(&model());
    let config = config();
    let plans = 2 * config.step_shapes().len() as u32;
    let engine = Engine::start(backend, &model(), config).unwrap();
    assert_eq!(*controls.warmed.lock().unwrap(), (0..plans).collect::<Vec<u32>>());
    assert!(controls.steps.lock().unwrap().is_empty());
    assert_eq!((engine.stats().steps, engine.stats().kv_blocks_cached), (0, 0));
    let first = job("first", &prompt(20, 0), 10);
    assert_eq!(listen(engine.submit(first.clone()).unwrap()).tokens, oracle(&model(), &first));
    let (backend, controls) = FakeBackend::for_model(&model());
    let cold = Engine::start(backend, &model(), EngineConfig { warm_up: false, ..self::config() }).unwrap();
    assert!(controls.warmed.lock().unwrap().is_empty());
    assert_eq!(cold.stats().steps, 0);
}

#[test]
fn distributions_count_what_happened() {
    let (backend, controls) = FakeBackend::for_model(&model());
    let engine = Engine::start(backend, &model(), EngineConfig { max_batch: 2, ..config() }).unwrap();
    controls.step_delay_us.store(2000, std::sync::atomic::Ordering::Relaxed);
    controls.close();
    let streams: Vec<_> = (0..4).map(|index| engine.submit(job(index, &[1, 2], 5)).unwrap()).collect();
    let cancelled = engine.submit(job("cancelled", &[3], 100)).unwrap();
    wait_until(&engine, "admission", |stats| stats.running >= 1);
    engine.cancel("cancelled");
    controls.open();
    assert!(streams.into_iter().all(|stream| listen(stream).end == Ok(FinishReason::Length)));
    listen(cancelled).end.unwrap_err();
    assert_nothing_held(&engine);
    let (stats, figures) = (engine.stats(), engine.histograms());
    assert_eq!((stats.finished_length, stats.cancelled, stats.prompt_tokens), (4, 1, 8));
    let counts = |histogram: &Histogram| histogram.count();
    assert_eq!(counts(&figures.queue_time), 4, "the cancelled one was never admitted");
    assert_eq!(counts(&figures.time_to_first_token), 4);
    assert_eq!(counts(&figures.prefill_time), 4);
    assert_eq!(counts(&figures.inter_token_latency), 4 * 4);
    assert_eq!((counts(&figures.decode_time), counts(&figures.request_time)), (4, 4));
    // The same four gaps of each of the four, as means.
    assert_eq!(counts(&figures.time_per_output_token), 4);
    assert!((figures.time_per_output_token.sum - figures.decode_time.sum / 4.0).abs() < 1e-9);
    assert_eq!((counts(&figures.step_duration), counts(&figures.batch_size)), (stats.steps, stats.steps));
    assert_eq!(figures.batch_size.sum as usize, 4 * 5, "every token is one sequence of one step");
    let parts = figures.queue_time.sum + figures.prefill_time.sum + figures.decode_time.sum;
    // Sums of the same clock readings, added in another order.
    assert!((figures.request_time.sum - parts).abs() < 1e-9);
    assert!(figures.time_to_first_token.sum >= figures.queue_time.sum);
    // Each gap holds one step of the fake, which sleeps 2 ms.
    assert!(figures.inter_token_latency.sum >= 16.0 * 0.002);
    // Two of four waited for the others' five steps.
    assert!(figures.queue_time.sum >= 2.0 * 5.0 * 0.002);
    assert_eq!(figures.queue_time.counts.len(), figures.queue_time.bounds.len() + 1);
    assert!(stats.kv_cache_usage() == 0.0 && stats.kv_blocks_total > 0);
}

/// Prints what the host does between two steps of an instant device; asserts nothing of it, machines differ. With debug
/// assertions most of it is the check of the block pools.
#[test]
fn host_time_per_step() {
    for batch in [1, 4, 16, 64].repeat(2) {
        let model = FakeModel { windows: vec![Some(1)], context: 600 };
        let (backend, controls) = FakeBackend::for_model(&model);
        let config =
            EngineConfig { max_batch: batch, max_queue: 64, context: 600, ..EngineConfig::default() };
        let engine = Engine::start(backend, &model, config).unwrap();
        controls.close();
        let streams: Vec<_> =
            (0..batch).map(|index| engine.submit(job(index, &prompt(8, index), 500)).unwrap()).collect();
        controls.open();
        for stream in streams {
            assert_eq!(listen(stream).end, Ok(FinishReason::Length));
        }
        let stats = engine.stats();
        let host = Duration::from_nanos(stats.host_time_ns / stats.steps.max(1));
        println!("host time per step, {batch} sequences: {host:?} over {} steps", stats.steps);
    }
}
