//! `GET /metrics`: what a scraper reads.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use serde_json::json;
use worker_orcd::engine::EngineStats;

use crate::http::{post, request};
use crate::{Server, check_stream, median, wait_until};

/// All samples by name and labels, without `model_name`.
fn scrape(server: &Server) -> HashMap<String, f64> {
    let reply = request(server.addr, "GET", "/metrics", &[], b"");
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let text = reply.text();
    let mut typed: Vec<&str> = vec![];
    let mut samples = HashMap::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let name = rest.split(' ').next().unwrap();
            assert!(!typed.contains(&name), "{name} is declared twice");
            typed.push(name);
        } else if !line.starts_with('#') {
            let (name, value) = line.rsplit_once(' ').unwrap();
            let family = name.split('{').next().unwrap();
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| family.strip_suffix(end));
            assert!(typed.contains(&family) || base.is_some_and(|base| typed.contains(&base)), "{line}");
            let name = name.replace("model_name=\"echo\",", "").replace("{model_name=\"echo\"}", "");
            assert!(samples.insert(name, value.parse().unwrap()).is_none(), "{line} comes twice");
        }
    }
    samples
}

#[test]
fn the_engine_s_figures_have_our_names_and_those_that_schedulers_read() {
    let server = Server::start(&[]);
    *server.worker.stats.lock().unwrap() = EngineStats {
        running: 3,
        waiting: 5,
        kv_blocks_used: 25,
        kv_blocks_total: 100,
        prompt_tokens: 1000,
        generated_tokens: 2000,
        prefix_cache_queries: 900,
        prefix_cache_hits: 300,
        preemptions: 7,
        rejected: 4,
        ..EngineStats::default()
    };
    let samples = scrape(&server);
    for (name, expected) in [
        ("worker_requests_running", 3.0),
        ("worker_requests_waiting", 5.0),
        ("worker_vram_bytes{purpose=\"weights\"}", 1000.0),
        ("worker_vram_bytes{purpose=\"kv_cache\"}", 200.0),
        ("worker_tokens_generated_total", 2000.0),
        ("worker_time_to_first_token_seconds_bucket{le=\"0.5\"}", 2.0),
        ("worker_inter_token_latency_seconds_count", 4.0),
        ("vllm:num_requests_running", 3.0),
        ("vllm:num_requests_waiting", 5.0),
        ("vllm:kv_cache_usage_perc", 0.25),
        ("vllm:gpu_cache_usage_perc", 0.25),
        ("vllm:cache_config_info{block_size=\"16\",num_gpu_blocks=\"100\"}", 1.0),
        ("vllm:prompt_tokens_total", 1000.0),
        ("vllm:generation_tokens_total", 2000.0),
        ("vllm:prefix_cache_queries_total", 900.0),
        ("vllm:prefix_cache_hits_total", 300.0),
        ("vllm:num_preemptions_total", 7.0),
        ("vllm:admission_rejections_total", 4.0),
        ("vllm:time_to_first_token_seconds_bucket{le=\"+Inf\"}", 4.0),
        ("vllm:inter_token_latency_seconds_sum", 3.5),
        ("vllm:request_time_per_output_token_seconds_count", 4.0),
        ("worker_request_time_per_output_token_seconds_sum", 3.5),
        ("vllm:request_queue_time_seconds_bucket{le=\"1\"}", 3.0),
        ("vllm:e2e_request_latency_seconds_count", 0.0),
    ] {
        assert_eq!(samples.get(name), Some(&expected), "{name}");
    }
    assert!(samples["worker_uptime_seconds"] >= 0.0);
}

#[test]
fn every_request_is_counted_once_by_its_end() {
    let server = Server::start(&[]);
    let execute = |body: serde_json::Value| post(server.addr, "/execute", &body);
    check_stream(&execute(json!({ "job_id": "a", "prompt": "abc" })).events());
    check_stream(&execute(json!({ "job_id": "b", "prompt": "abc", "stop": ["b"] })).events());
    check_stream(&execute(json!({ "job_id": "oom-c", "prompt": "abc" })).events());
    assert_eq!(execute(json!({ "job_id": "full-d", "prompt": "abc" })).status, 429);
    assert_eq!(execute(json!({ "job_id": "e", "prompt": "abc", "top_p": 2 })).status, 400);
    let mut gone = execute(json!({ "job_id": "hang-f", "prompt": "abc" }));
    gone.next_event();
    drop(gone);
    wait_until(|| server.state.jobs.is_empty());
    let samples = scrape(&server);
    for (outcome, expected) in [
        ("length", 1.0),
        ("stop", 1.0),
        ("error", 1.0),
        ("rejected", 1.0),
        ("invalid", 1.0),
        ("disconnected", 1.0),
        ("cancelled", 0.0),
        ("timeout", 0.0),
        ("tool_calls", 0.0),
    ] {
        assert_eq!(
            samples.get(&format!("worker_requests_total{{outcome=\"{outcome}\"}}")),
            Some(&expected),
            "{outcome}"
        );
    }
    assert_eq!(samples.get("worker_inference_duration_ms_count"), Some(&4.0));
    assert_eq!(samples.get("vllm:request_success_total{finished_reason=\"abort\"}"), Some(&1.0));
    assert_eq!(samples.get("vllm:request_success_total{finished_reason=\"stop\"}"), Some(&1.0));
}

#[test]
fn a_loading_worker_has_figures_and_answers_at_once() {
    let server = Server::start_loading(&[]);
    let times: Vec<Duration> = (0..20)
        .map(|_| {
            let began = Instant::now();
            assert!(scrape(&server).contains_key("worker_uptime_seconds"));
            began.elapsed()
        })
        .collect();
    assert!(median(times.clone()) < Duration::from_millis(10), "{times:?}");
}
