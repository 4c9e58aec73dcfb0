//! The server on the real engine: its threads, queue and cache, above a device that computes hashes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use worker_orcd::engine::{Engine, EngineConfig, Job, KvBudget, Sampling};

use crate::http::{Reply, get, post};
use crate::{Server, check_stream, mock, wait_until};

#[path = "../engine/fake.rs"]
#[allow(dead_code, reason = "the engine's own tests use the rest")]
mod fake;

use fake::{Controls, FakeBackend, FakeModel, oracle};

/// Ids below 90, as bytes: the fake's vocabulary ends at 96.
const PROMPT: &str = "HELLO 123";

fn model() -> FakeModel {
    FakeModel { windows: vec![None, Some(8)], context: 128 }
}

fn start(config: &EngineConfig) -> (Server, Engine, Arc<Controls>) {
    let (backend, controls) = FakeBackend::for_model(&model());
    let config = EngineConfig { block_size: 4, prefill_chunk: 16, ..config.clone() };
    let engine = Engine::start(backend, &model(), config).unwrap();
    let server = Server::start_loading(&["--drain-timeout-sec", "1"]);
    let tokenizer = Arc::new(mock::byte_tokenizer());
    server.state.attach(mock::card(), tokenizer, None, Box::new(engine.clone())).unwrap();
    (server, engine, controls)
}

fn execute(server: &Server, job_id: &str, max_tokens: usize) -> Reply {
    let body = json!({ "job_id": job_id, "prompt": PROMPT, "max_tokens": max_tokens, "seed": 7 });
    post(server.addr, "/execute", &body)
}

/// What the fake says, as text.
fn expected(max_tokens: usize) -> String {
    let job = Job {
        id: String::new(),
        prompt: PROMPT.bytes().map(u32::from).collect(),
        max_tokens,
        stop_ids: vec![256],
        sampling: Sampling { temperature: 1.0, seed: 7, ..Sampling::greedy() },
        deadline: None,
        cache_salt: None,
    };
    oracle(&model(), &job).into_iter().map(|id| char::from(id as u8)).collect()
}

fn wait_idle(engine: &Engine) {
    wait_until(|| {
        let stats = engine.stats();
        (stats.running, stats.waiting, stats.kv_blocks_used) == (0, 0, 0)
    });
}

#[test]
fn concurrent_requests_stream_what_each_would_alone() {
    let (server, engine, _) = start(&EngineConfig { max_batch: 4, ..EngineConfig::default() });
    let streams: Vec<Reply> = (0..12).map(|n| execute(&server, &format!("r-{n}"), 20 + n)).collect();
    for (n, stream) in streams.into_iter().enumerate() {
        let events = stream.events();
        let (text, end) = check_stream(&events);
        assert_eq!(text, expected(20 + n), "{n}");
        assert_eq!((&end.data["tokens_out"], &end.data["finish_reason"]), (&json!(20 + n), &json!("length")));
        assert_eq!(events[events.len() - 2].data["prompt_tokens"], PROMPT.len());
    }
    wait_idle(&engine);
}

#[test]
fn a_cancelled_or_abandoned_request_frees_its_cache() {
    let (server, engine, controls) = start(&EngineConfig::default());
    controls.step_delay_us.store(20_000, std::sync::atomic::Ordering::Relaxed);
    let mut cancelled = execute(&server, "cancelled", 100);
    let mut abandoned = execute(&server, "abandoned", 100);
    for stream in [&mut cancelled, &mut abandoned] {
        (0..3).for_each(|_| drop(stream.next_event().unwrap()));
    }
    assert!(engine.stats().kv_blocks_used > 0);
    assert_eq!(post(server.addr, "/cancel", &json!({ "job_id": "cancelled" })).status, 202);
    assert_eq!(cancelled.events().last().unwrap().data["code"], "CANCELLED");
    drop(abandoned);
    wait_idle(&engine);
    assert_eq!(engine.stats().cancelled, 2);
}

#[test]
fn a_stuck_device_holds_up_nothing_but_tokens() {
    let (server, engine, controls) = start(&EngineConfig { max_queue: 1, ..EngineConfig::default() });
    controls.close();
    let running = execute(&server, "running", 5);
    wait_until(|| engine.stats().running == 1);
    let waiting = execute(&server, "waiting", 5);
    assert_eq!((running.status, waiting.status), (200, 200));
    let refused = execute(&server, "refused", 5);
    assert_eq!((refused.status, refused.header("retry-after")), (429, Some("1")));
    let began = Instant::now();
    let (status, health) = get(server.addr, "/health");
    assert_eq!((status, &health["requests_running"]), (200, &json!(1)));
    assert_eq!(post(server.addr, "/cancel", &json!({ "job_id": "running" })).status, 202);
    assert_eq!(running.events().last().unwrap().data["code"], "CANCELLED");
    // Generous beside the promised 10 and 100 ms: the device is stuck for ever.
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    controls.open();
    assert_eq!(check_stream(&waiting.events()).0, expected(5));
}

#[test]
fn an_exhausted_cache_degrades_the_worker_until_it_serves_again() {
    let (server, _engine, _) =
        start(&EngineConfig { kv_budget: KvBudget::Blocks(10), ..EngineConfig::default() });
    let (_, error) = check_stream(&execute(&server, "grows", 90).events());
    assert_eq!((&error.data["code"], &error.data["retriable"]), (&json!("VRAM_OOM"), &json!(true)));
    let (status, health) = get(server.addr, "/health");
    assert_eq!((status, &health["status"], &health["oom_events"]), (200, &json!("degraded"), &json!(1)));
    let (text, _) = check_stream(&execute(&server, "small", 5).events());
    assert_eq!(text, expected(5));
    assert_eq!(get(server.addr, "/health").1["status"], "healthy");
}

#[test]
fn a_failed_device_is_told_and_the_worker_unhealthy() {
    let (server, _engine, controls) = start(&EngineConfig::default());
    controls.fail_next_step.store(true, std::sync::atomic::Ordering::Relaxed);
    let (_, error) = check_stream(&execute(&server, "unlucky", 5).events());
    assert_eq!(error.data["code"], "CUDA_ERROR");
    let (status, health) = get(server.addr, "/health");
    assert_eq!((status, &health["status"]), (503, &json!("unhealthy")));
    assert!(health["fault"].is_string(), "{health}");
    let refused = execute(&server, "late", 5);
    assert_eq!(refused.status, 500);
    assert_eq!(refused.json()["code"], "CUDA_ERROR");
}

#[test]
fn a_drain_under_load_ends_every_stream_and_the_engine() {
    let (mut server, engine, controls) = start(&EngineConfig { max_batch: 4, ..EngineConfig::default() });
    controls.step_delay_us.store(10_000, std::sync::atomic::Ordering::Relaxed);
    let readers: Vec<_> = (0..12)
        .map(|n| {
            let stream = execute(&server, &format!("load-{n}"), 110);
            std::thread::spawn(move || stream.events())
        })
        .collect();
    let began = Instant::now();
    server.signal();
    let took = server.ended().duration_since(began);
    assert!(took < Duration::from_secs(2), "{took:?}");
    let lasts: Vec<Value> =
        readers.into_iter().map(|reader| check_stream(&reader.join().unwrap()).1.data).collect();
    for last in &lasts {
        let cancelled = last["code"] == "CANCELLED" && last["retriable"] == true;
        assert!(cancelled || last["finish_reason"] == "length", "{last}");
    }
    assert!(
        lasts.iter().any(|last| last["code"] == "CANCELLED"),
        "12 requests of over a second do not fit one"
    );
    engine.join();
}
