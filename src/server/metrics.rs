//! `GET /metrics`: figures of the engine and of the requests for Prometheus, under our names and under those that
//! schedulers, autoscalers and dashboards of other servers read (`vllm:*`).

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderName, header};

use super::exposition::{CONTENT_TYPE, Exposition};
use super::record::{OUTCOMES, Outcome, Tally};
use super::state::{LoadedModel, ServerState};
use crate::engine::{EngineHistograms, EngineStats};

/// `GET /metrics`. Answered from counters alone, also while the model loads.
pub async fn metrics(State(state): State<Arc<ServerState>>) -> ([(HeaderName, &'static str); 1], String) {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], exposed(&state))
}

fn exposed(state: &ServerState) -> String {
    let label = state.model_name().map(|name| ("model_name", name));
    let mut text = Exposition::labelled(label.as_slice());
    text.gauge("worker_uptime_seconds", "Time since the worker began.", state.uptime().as_secs_f64());
    text.gauge("worker_requests_live", "Requests whose answer is not complete.", state.jobs.len());
    requests(&mut text, &state.tally);
    if let Some(model) = state.model() {
        let (stats, histograms) = (model.worker.stats(), model.worker.histograms());
        memory(&mut text, model);
        engine(&mut text, &stats, &histograms);
        compatible(&mut text, model, &stats, &histograms, &state.tally);
    }
    text.finish()
}

fn requests(text: &mut Exposition, tally: &Tally) {
    let name = "worker_requests_total";
    text.family(name, "counter", "Requests by the way they ended.");
    for outcome in OUTCOMES {
        text.sample(name, &[("outcome", outcome.name())], tally.of(outcome));
    }
    let description = "Submission to end of requests that were not refused, in milliseconds.";
    text.histogram("worker_inference_duration_ms", description, &tally.durations(), 1000.0);
}

fn memory(text: &mut Exposition, model: &LoadedModel) {
    let health = model.worker.health();
    let name = "worker_vram_bytes";
    text.family(name, "gauge", "Device memory held, by purpose.");
    for (purpose, bytes) in [
        ("weights", health.memory.weights_bytes),
        ("kv_cache", health.memory.kv_cache_bytes),
        ("activations", health.memory.activations_bytes),
        ("workspace", health.memory.workspace_bytes),
    ] {
        text.sample(name, &[("purpose", purpose)], bytes);
    }
    text.gauge("worker_resident", "1 while all of it lies in device memory.", u8::from(health.resident));
}

fn engine(text: &mut Exposition, stats: &EngineStats, histograms: &EngineHistograms) {
    for (name, description, value) in [
        ("worker_requests_running", "Sequences in the batch.", stats.running),
        ("worker_requests_waiting", "Sequences that wait for a place in the batch.", stats.waiting),
        ("worker_kv_blocks_used", "Blocks of the key/value cache that are held.", stats.kv_blocks_used),
        ("worker_kv_blocks_total", "Blocks of the key/value cache.", stats.kv_blocks_total),
        ("worker_kv_blocks_cached", "Blocks that hold a prefix others can take.", stats.kv_blocks_cached),
    ] {
        text.gauge(name, description, value);
    }
    for (name, description, value) in [
        ("worker_tokens_generated_total", "Tokens generated.", stats.generated_tokens),
        ("worker_prompt_tokens_total", "Tokens of prompts admitted.", stats.prompt_tokens),
        ("worker_prefill_tokens_total", "Tokens computed of prompts.", stats.prefill_tokens),
        ("worker_prefix_cache_queries_total", "Prompt tokens looked up.", stats.prefix_cache_queries),
        ("worker_prefix_cache_hits_total", "Prompt tokens found cached.", stats.prefix_cache_hits),
        ("worker_preemptions_total", "Times a sequence lost its blocks.", stats.preemptions),
        ("worker_oom_events_total", "Sequences that failed for lack of cache.", stats.kv_exhaustions),
        ("worker_steps_total", "Steps of the engine.", stats.steps),
    ] {
        text.counter(name, description, value);
    }
    for (name, description, histogram) in [
        ("worker_time_to_first_token_seconds", "Submission to first token.", &histograms.time_to_first_token),
        ("worker_inter_token_latency_seconds", "Between two tokens.", &histograms.inter_token_latency),
        (
            "worker_request_time_per_output_token_seconds",
            "Time per token after the first, by request.",
            &histograms.time_per_output_token,
        ),
        ("worker_step_duration_seconds", "Steps of the device.", &histograms.step_duration),
        ("worker_batch_size", "Sequences in a step.", &histograms.batch_size),
    ] {
        text.histogram(name, description, histogram, 1.0);
    }
}

/// The same under the names of the Gateway API's model-server protocol and of the usual dashboards.
fn compatible(
    text: &mut Exposition,
    model: &LoadedModel,
    stats: &EngineStats,
    histograms: &EngineHistograms,
    tally: &Tally,
) {
    text.gauge("vllm:num_requests_running", "Sequences in the batch.", stats.running);
    text.gauge("vllm:num_requests_waiting", "Sequences that wait.", stats.waiting);
    for name in ["vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"] {
        text.gauge(name, "Share of the cache blocks that are held, 0 to 1.", stats.kv_cache_usage());
    }
    let name = "vllm:cache_config_info";
    text.family(name, "gauge", "Shape of the key/value cache.");
    let (block_size, blocks) = (model.card.kv_block_size.to_string(), stats.kv_blocks_total.to_string());
    text.sample(name, &[("block_size", &block_size), ("num_gpu_blocks", &blocks)], 1);
    for (name, description, value) in [
        ("vllm:prompt_tokens_total", "Tokens of prompts.", stats.prompt_tokens),
        ("vllm:generation_tokens_total", "Tokens generated.", stats.generated_tokens),
        ("vllm:prefix_cache_queries_total", "Prompt tokens looked up.", stats.prefix_cache_queries),
        ("vllm:prefix_cache_hits_total", "Prompt tokens found cached.", stats.prefix_cache_hits),
        ("vllm:num_preemptions_total", "Times a sequence lost its blocks.", stats.preemptions),
        ("vllm:admission_rejections_total", "Jobs refused, the queue being full.", stats.rejected),
    ] {
        text.counter(name, description, value);
    }
    let name = "vllm:request_success_total";
    text.family(name, "counter", "Requests that were not refused, by the way they ended.");
    let of = |outcomes: &[Outcome]| outcomes.iter().map(|&outcome| tally.of(outcome)).sum::<u64>();
    for (reason, outcomes) in [
        ("stop", &[Outcome::Stop, Outcome::ToolCalls][..]),
        ("length", &[Outcome::Length]),
        ("abort", &[Outcome::Cancelled, Outcome::Timeout, Outcome::Disconnected]),
        ("error", &[Outcome::Error]),
    ] {
        text.sample(name, &[("finished_reason", reason)], of(outcomes));
    }
    let durations = tally.durations();
    for (name, description, histogram) in [
        ("vllm:time_to_first_token_seconds", "Submission to first token.", &histograms.time_to_first_token),
        ("vllm:inter_token_latency_seconds", "Between two tokens.", &histograms.inter_token_latency),
        (
            "vllm:request_time_per_output_token_seconds",
            "Time per token after the first, by request.",
            &histograms.time_per_output_token,
        ),
        ("vllm:request_queue_time_seconds", "Submission to admission.", &histograms.queue_time),
        ("vllm:request_prefill_time_seconds", "Admission to first token.", &histograms.prefill_time),
        ("vllm:request_decode_time_seconds", "First token to end.", &histograms.decode_time),
        ("vllm:e2e_request_latency_seconds", "Submission to end.", &durations),
    ] {
        text.histogram(name, description, histogram, 1.0);
    }
}
