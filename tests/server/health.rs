//! `GET /health`, `/ready` and `/live` in every state of the worker.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use worker_orcd::engine::Health;

use crate::http::{get, post};
use crate::{Server, median};

#[test]
fn a_loading_server_says_so_and_then_serves() {
    let server = Server::start_loading(&[]);
    let (status, health) = get(server.addr, "/health");
    assert_eq!((status, &health["status"]), (503, &json!("loading")));
    assert_eq!((&health["model"], &health["vocab_size"]), (&Value::Null, &Value::Null));
    assert_eq!(get(server.addr, "/ready"), (503, json!({ "ready": false })));
    assert_eq!(get(server.addr, "/live"), (200, json!({ "live": true })));
    let refused = post(server.addr, "/execute", &json!({ "job_id": "a", "prompt": "x" }));
    assert_eq!(refused.status, 503);
    assert_eq!(refused.json()["code"], "LOADING");
    server.attach();
    assert_eq!(get(server.addr, "/ready"), (200, json!({ "ready": true })));
    assert_eq!(post(server.addr, "/execute", &json!({ "job_id": "a", "prompt": "x" })).status, 200);
}

#[test]
fn health_has_every_field() {
    let server = Server::start(&[]);
    let (status, mut health) = get(server.addr, "/health");
    assert_eq!(status, 200);
    assert!(health["uptime_seconds"].take().is_u64());
    let expected = json!({
        "status": "healthy",
        "fault": null,
        "worker_id": "w-test",
        "model": "echo",
        "resident": true,
        "quant_kind": "Q4_K_M",
        "vram_bytes_used": 1234,
        "vram_bytes": { "weights": 1000, "kv_cache": 200, "activations": 30, "workspace": 4 },
        "tokenizer_kind": "gguf-bpe",
        "vocab_size": 257,
        "context_length": crate::mock::CONTEXT,
        "uptime_seconds": null,
        "sm": "90",
        "cuda_driver_version": "13.0",
        "backend": "cuda",
        "device": "An H100",
        "oom_events": 0,
        "requests_running": 0,
        "requests_waiting": 0,
    });
    assert_eq!(health, expected);
}

#[test]
fn a_worker_in_trouble_shows_it() {
    let server = Server::start(&[]);
    for (state, status, word, ready) in
        [(Health::Degraded, 200, "degraded", 200), (Health::Unhealthy, 503, "unhealthy", 503)]
    {
        {
            let mut health = server.worker.health.lock().unwrap();
            health.health = state;
            health.oom_events += 1;
        }
        let (got, health) = get(server.addr, "/health");
        assert_eq!((got, &health["status"]), (status, &json!(word)));
        assert!(health["oom_events"].as_u64() > Some(0));
        assert_eq!(get(server.addr, "/ready").0, ready);
    }
}

#[test]
fn health_answers_at_once_while_the_worker_and_the_tokenizer_are_stuck() {
    let server = Server::start(&[]);
    let stuck = post(server.addr, "/execute", &json!({ "job_id": "hang-health", "prompt": "x" }));
    server.block_tokenizer(Duration::from_secs(2));
    let addr = server.addr;
    let tokenising: Vec<_> = (0..8)
        .map(|n| {
            std::thread::spawn(move || {
                post(addr, "/execute", &json!({ "job_id": n.to_string(), "prompt": "x" }))
            })
        })
        .collect();
    crate::wait_until(|| server.state.jobs.len() == 9);
    let times: Vec<Duration> = (0..50)
        .map(|_| {
            let began = Instant::now();
            assert_eq!(get(addr, "/health").0, 200);
            began.elapsed()
        })
        .collect();
    assert!(median(times.clone()) < Duration::from_millis(10), "{times:?}");
    for request in tokenising {
        assert_eq!(request.join().unwrap().status, 200);
    }
    drop(stuck);
}
