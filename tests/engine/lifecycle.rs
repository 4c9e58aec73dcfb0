//! Queueing, cancelling, failing, draining: what happens to a job beside its tokens.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use worker_orcd::engine::{
    Engine, EngineConfig, EngineError, FinishReason, Health, Job, KvBudget, Sampling, StartError, TokenEvent,
};

use super::fake::{Controls, FakeBackend, FakeModel, POISON_TOKEN, oracle};
use super::{assert_nothing_held, job, listen, next_event, prompt, wait_until};

fn model() -> FakeModel {
    FakeModel { windows: vec![None, Some(8)], context: 128 }
}

fn config() -> EngineConfig {
    EngineConfig { max_batch: 4, max_queue: 8, block_size: 4, prefill_chunk: 16, ..EngineConfig::default() }
}

fn start(config: EngineConfig) -> (Engine, Arc<Controls>) {
    let (backend, controls) = FakeBackend::for_model(&model());
    (Engine::start(backend, &model(), config).unwrap(), controls)
}

#[test]
fn stop_ids_length_and_the_contexts_end_finish_a_job() {
    let (engine, _) = start(config());
    let plain = job("plain", &prompt(5, 0), 10);
    let expected = oracle(&model(), &plain);
    let heard = listen(engine.submit(plain.clone()).unwrap());
    assert_eq!((heard.end, heard.tokens.len()), (Ok(FinishReason::Length), 10));
    let stop = expected[4];
    let first = expected.iter().position(|&id| id == stop).unwrap();
    let heard = listen(engine.submit(Job { stop_ids: vec![stop], ..plain }).unwrap());
    assert_eq!((heard.end, heard.tokens.as_slice()), (Ok(FinishReason::Stop), &expected[..first]));
    let heard = listen(engine.submit(job("long", &prompt(120, 0), 1000)).unwrap());
    assert_eq!((heard.end, heard.tokens.len()), (Ok(FinishReason::Length), 8));
    let heard = listen(engine.submit(job("last place", &prompt(127, 0), 5)).unwrap());
    assert_eq!((heard.end, heard.tokens.len()), (Ok(FinishReason::Length), 1));
    let stats = engine.stats();
    assert_eq!((stats.finished_length, stats.finished_stop), (3, 1));
    assert_eq!(stats.generated_tokens, (10 + first + 8 + 1) as u64);
    assert_nothing_held(&engine);
}

#[test]
fn handles_cross_threads() {
    const fn shared_between_threads<T: Clone + Send + Sync + 'static>() {}
    const { shared_between_threads::<Engine>() };
    let (engine, _) = start(EngineConfig { max_queue: 64, ..config() });
    let submit = |salt: usize| {
        let engine = engine.clone();
        std::thread::spawn(move || {
            let job = job(salt, &prompt(1 + salt, salt), 10);
            listen(engine.submit(job.clone()).unwrap()).tokens == oracle(&model(), &job)
        })
    };
    let threads: Vec<_> = (0..16).map(submit).collect();
    assert!(threads.into_iter().all(|thread| thread.join().unwrap()));
}

#[test]
fn jobs_that_cannot_run_are_refused() {
    let (engine, _) = start(config());
    let too_long = EngineError::PromptTooLong { prompt_tokens: 128, context: 128 };
    assert_eq!(engine.submit(job("a", &prompt(128, 0), 1)).unwrap_err(), too_long);
    for broken in [job("b", &[], 1), job("c", &[1], 0), job("d", &[97], 1)] {
        assert!(matches!(engine.submit(broken).unwrap_err(), EngineError::InvalidJob { .. }));
    }
    for sampling in [
        Sampling { top_p: 1.5, ..Sampling::greedy() },
        Sampling { repetition_penalty: 0.0, ..Sampling::greedy() },
        Sampling { temperature: f32::NAN, ..Sampling::greedy() },
    ] {
        let broken = Job { sampling, ..job("e", &[1], 1) };
        assert!(matches!(engine.submit(broken).unwrap_err(), EngineError::InvalidJob { .. }));
    }
    assert_eq!(engine.stats().submitted, 0);
    let (backend, _) = FakeBackend::for_model(&model());
    let refused = Engine::start(backend, &model(), EngineConfig { max_batch: 0, ..config() });
    assert!(matches!(refused, Err(StartError::Setting { field: "max_batch", .. })));
}

#[test]
fn the_queue_is_bounded() {
    let (engine, controls) = start(EngineConfig { max_batch: 1, max_queue: 3, ..config() });
    controls.close();
    let mut streams = vec![engine.submit(job("running", &prompt(3, 0), 5)).unwrap()];
    wait_until(&engine, "admission", |stats| stats.running == 1);
    for index in 0..3 {
        streams.push(engine.submit(job(index, &prompt(3, index), 5)).unwrap());
    }
    for _ in 0..2 {
        assert_eq!(engine.submit(job("no", &[1], 5)).unwrap_err(), EngineError::QueueFull { waiting: 3 });
    }
    assert_eq!(engine.stats().rejected, 2);
    // A place in the queue comes back however its holder leaves.
    for index in 0..3 {
        engine.cancel(&index.to_string());
    }
    controls.open();
    let ends: Vec<_> = streams.into_iter().map(|stream| listen(stream).end).collect();
    let cancelled = Err(EngineError::Cancelled);
    assert_eq!(ends, [Ok(FinishReason::Length), cancelled.clone(), cancelled.clone(), cancelled]);
    let usable: Vec<_> = (0..3).map(|index| engine.submit(job(index, &[1], 1))).collect();
    assert!(usable.into_iter().all(|stream| listen(stream.unwrap()).end.is_ok()));
    assert_nothing_held(&engine);
}

#[test]
fn cancelling_frees_everything_whatever_the_job_is_doing() {
    let (engine, controls) = start(EngineConfig { max_batch: 2, ..config() });
    controls.close();
    let prefilling = engine.submit(job("prefilling", &prompt(100, 0), 5)).unwrap();
    let second = engine.submit(job("second", &prompt(2, 0), 5)).unwrap();
    let waiting = engine.submit(job("waiting", &prompt(2, 0), 5)).unwrap();
    wait_until(&engine, "admission", |stats| stats.running >= 1);
    for id in ["waiting", "prefilling", "nobody", "prefilling"] {
        engine.cancel(id);
    }
    controls.open();
    assert_eq!(listen(prefilling).end, Err(EngineError::Cancelled));
    assert_eq!(listen(waiting).end, Err(EngineError::Cancelled));
    assert_eq!(listen(second).end, Ok(FinishReason::Length));
    assert_eq!(engine.stats().cancelled, 2);
    controls.step_delay_us.store(5000, Ordering::Relaxed);
    let mut decoding = engine.submit(job("decoding", &prompt(2, 0), 120)).unwrap();
    assert!(matches!(next_event(&mut decoding), Some(TokenEvent::Token { .. })));
    engine.cancel("decoding");
    let heard = loop {
        match next_event(&mut decoding) {
            Some(TokenEvent::Token { index, .. }) => assert!(index < 100, "goes on after the cancellation"),
            other => break other,
        }
    };
    assert_eq!(heard, Some(TokenEvent::Failed { error: EngineError::Cancelled }));
    assert_nothing_held(&engine);
}

#[test]
fn a_dropped_listener_cancels() {
    let (engine, controls) = start(config());
    controls.step_delay_us.store(3000, Ordering::Relaxed);
    let mut stream = engine.submit(job("a", &prompt(9, 0), 110)).unwrap();
    next_event(&mut stream);
    drop(stream);
    drop(engine.submit(job("b", &prompt(9, 0), 110)).unwrap());
    let stats = wait_until(&engine, "both gone", |stats| stats.cancelled == 2);
    assert_eq!((stats.running, stats.waiting, stats.kv_blocks_used), (0, 0, 0));
    assert!(stats.generated_tokens < 110, "{stats:?}");
}

#[test]
fn deadlines_end_waiting_and_running_jobs() {
    let (engine, controls) = start(EngineConfig { max_batch: 1, ..config() });
    controls.step_delay_us.store(2000, Ordering::Relaxed);
    let soon = Some(Instant::now() + Duration::from_millis(40));
    let running = engine.submit(Job { deadline: soon, ..job("running", &prompt(3, 0), 120) }).unwrap();
    let waiting = engine.submit(Job { deadline: soon, ..job("waiting", &prompt(3, 0), 120) }).unwrap();
    let patient = engine.submit(job("patient", &prompt(3, 0), 2)).unwrap();
    assert_eq!(listen(running).end, Err(EngineError::DeadlineExceeded));
    assert_eq!(listen(waiting).end, Err(EngineError::DeadlineExceeded));
    assert_eq!(listen(patient).end, Ok(FinishReason::Length));
    assert_eq!(engine.stats().deadlines_exceeded, 2);
    assert_nothing_held(&engine);
}

#[test]
fn an_exhausted_cache_fails_one_job_and_the_worker_goes_on() {
    // Ten blocks of 4 in the full group.
    let (engine, _) = start(EngineConfig { kv_budget: KvBudget::Blocks(10), ..config() });
    assert_eq!(engine.health(), Health::Ready);
    let growing = job("grows", &prompt(30, 1), 90);
    let heard = listen(engine.submit(growing.clone()).unwrap());
    assert_eq!(heard.end, Err(EngineError::KvExhausted));
    // 40 positions are cached and one more token is known.
    assert_eq!(heard.tokens, oracle(&model(), &growing)[..11]);
    assert_eq!(engine.health(), Health::Degraded);
    let heard = listen(engine.submit(job("never fits", &prompt(41, 1), 1)).unwrap());
    assert_eq!((heard.end, heard.tokens.len()), (Err(EngineError::KvExhausted), 0));
    assert_eq!(engine.stats().kv_exhaustions, 2);
    assert_nothing_held(&engine);
    assert!(listen(engine.submit(job("fits", &prompt(30, 2), 11)).unwrap()).end.is_ok());
    assert_eq!(engine.health(), Health::Ready);
}

#[test]
fn unusable_logits_fail_their_own_job_only() {
    for host_sampling in [false, true] {
        let (engine, controls) = start(EngineConfig { host_sampling, ..config() });
        controls.close();
        let good = job("good", &prompt(5, 0), 20);
        let good_stream = engine.submit(good.clone()).unwrap();
        let bad = engine.submit(job("bad", &[1, POISON_TOKEN], 20)).unwrap();
        controls.open();
        assert_eq!(listen(bad).end, Err(EngineError::NonFiniteLogits));
        assert_eq!(listen(good_stream).tokens, oracle(&model(), &good));
        assert_eq!((engine.stats().non_finite, engine.stats().failed), (1, 0));
        assert_nothing_held(&engine);
    }
}

#[test]
fn a_lost_device_fails_everything_and_stays_lost() {
    let (engine, controls) = start(EngineConfig { max_batch: 1, ..config() });
    controls.close();
    let streams = [0, 1].map(|index| engine.submit(job(index, &prompt(5, 0), 20)).unwrap());
    controls.fail_next_step.store(true, Ordering::Relaxed);
    controls.open();
    let reason = "device lost: fell off the bus".to_owned();
    for stream in streams {
        assert_eq!(listen(stream).end, Err(EngineError::Device { reason: reason.clone() }));
    }
    assert_eq!((engine.health(), engine.fault()), (Health::Unhealthy, Some(reason.as_str())));
    assert_eq!(engine.submit(job("late", &[1], 1)).unwrap_err(), EngineError::Device { reason });
    assert_nothing_held(&engine);
    engine.shutdown();
    engine.join();
}

#[test]
fn a_refused_step_fails_its_own_jobs_only() {
    let (engine, controls) = start(config());
    controls.refuse_next_step.store(true, Ordering::Relaxed);
    let refused = listen(engine.submit(job("refused", &prompt(5, 0), 20)).unwrap());
    let reason = "step input sampling: out of range".to_owned();
    assert_eq!(refused.end, Err(EngineError::Device { reason }));
    assert_nothing_held(&engine);
    assert_eq!((engine.health(), engine.fault()), (Health::Ready, None));
    let next = job("next", &prompt(5, 1), 20);
    assert_eq!(listen(engine.submit(next.clone()).unwrap()).tokens, oracle(&model(), &next));
}

#[test]
fn a_residency_violation_is_noticed_while_idle() {
    let interval = Duration::from_millis(5);
    let (engine, controls) = start(EngineConfig { residency_interval: interval, ..config() });
    std::thread::sleep(interval * 4);
    assert_eq!((engine.health(), engine.is_resident()), (Health::Ready, true));
    controls.residency_violated.store(true, Ordering::Relaxed);
    let start = Instant::now();
    while engine.is_resident() || engine.fault().is_none() {
        assert!(start.elapsed() < super::PATIENCE);
        std::thread::sleep(interval);
    }
    assert_eq!(engine.health(), Health::Unhealthy);
    assert_eq!(engine.fault(), Some("residency violated: kv_cache is host memory"));
}

#[test]
fn draining_finishes_what_runs_and_takes_no_more() {
    let (engine, controls) = start(EngineConfig { max_batch: 1, ..config() });
    controls.close();
    let streams = [0, 1].map(|index| engine.submit(job(index, &prompt(5, 0), 20)).unwrap());
    engine.drain(Instant::now() + super::PATIENCE);
    assert_eq!(engine.health(), Health::Draining);
    assert_eq!(engine.submit(job("late", &[1], 1)).unwrap_err(), EngineError::ShuttingDown);
    controls.open();
    assert!(streams.into_iter().all(|stream| listen(stream).end == Ok(FinishReason::Length)));
    engine.join();
    engine.cancel("0");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
    runtime.block_on(engine.stopped());
}

#[test]
fn draining_cancels_at_its_deadline() {
    let (engine, controls) = start(config());
    controls.step_delay_us.store(3000, Ordering::Relaxed);
    let stream = engine.submit(job("a", &prompt(5, 0), 120)).unwrap();
    let begin = Instant::now();
    engine.drain(begin + Duration::from_millis(30));
    assert_eq!(listen(stream).end, Err(EngineError::Cancelled));
    engine.join();
    assert!(begin.elapsed() < Duration::from_secs(5));
}

#[test]
fn an_engine_nobody_holds_ends_its_jobs_and_stops() {
    let (engine, controls) = start(config());
    let stream = engine.submit(job("a", &prompt(5, 0), 20)).unwrap();
    drop(engine);
    assert_eq!(listen(stream).end, Ok(FinishReason::Length));
    let start = Instant::now();
    while Arc::strong_count(&controls) > 1 {
        assert!(start.elapsed() < super::PATIENCE, "the thread keeps its device");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_thousand_jobs_leave_no_trace() {
    let (engine, _) = start(EngineConfig { kv_budget: KvBudget::Blocks(24), max_queue: 64, ..config() });
    let baseline = engine.stats();
    let (mut streams, mut expected_tokens) = (std::collections::VecDeque::new(), 0);
    for index in 0..1000 {
        let length = 1 + index % 37;
        let sampling = Sampling { temperature: 0.8, seed: index as u64, ..Sampling::greedy() };
        let tokens = 1 + index % 11;
        expected_tokens += tokens as u64;
        let job = Job { sampling, ..job(index, &prompt(length, index), tokens) };
        streams.push_back(engine.submit(job).unwrap());
        if streams.len() == 60 {
            assert_eq!(listen(streams.pop_front().unwrap()).end, Ok(FinishReason::Length));
        }
    }
    for stream in streams {
        assert_eq!(listen(stream).end, Ok(FinishReason::Length));
    }
    let stats = engine.stats();
    let gauges = |stats: &worker_orcd::engine::EngineStats| {
        (stats.running, stats.waiting, stats.kv_blocks_used, stats.kv_blocks_total)
    };
    assert_eq!(gauges(&stats), gauges(&baseline));
    assert_eq!((stats.submitted, stats.finished_length), (1000, 1000));
    assert_eq!(stats.generated_tokens, expected_tokens);
}
