//! `GET /health`, `/live` and `/ready`: answered from cached state, whatever the device does.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::{Value, json};

use super::state::{ServerState, Status};

/// `GET /health`: 200 while requests are taken, else 503 with the same body.
pub async fn health(State(state): State<Arc<ServerState>>) -> (StatusCode, Json<Value>) {
    let (status, report) = report(&state);
    (code(status.serves()), Json(report))
}

/// The body of `/health`. What is not known yet, or not known for this backend, is `null`.
pub fn report(state: &ServerState) -> (Status, Value) {
    let model = state.model();
    let card = model.map(|model| &model.card);
    let now = model.map(|model| model.worker.health());
    let now = now.as_ref();
    let status = state.status(now);
    let memory = now.map(|now| now.memory).unwrap_or_default();
    let report = json!({
        "status": status,
        "fault": now.and_then(|now| now.fault.as_deref()),
        "worker_id": state.worker_id,
        "model": card.map(|card| &card.name),
        "resident": now.is_some_and(|now| now.resident),
        "quant_kind": card.map(|card| &card.quant_kind),
        "vram_bytes_used": memory.total_bytes(),
        "vram_bytes": {
            "weights": memory.weights_bytes,
            "kv_cache": memory.kv_cache_bytes,
            "activations": memory.activations_bytes,
            "workspace": memory.workspace_bytes,
        },
        "tokenizer_kind": model.map(|model| model.tokenizer.kind().as_str()),
        "vocab_size": model.map(|model| model.tokenizer.vocab_size()),
        "context_length": card.and_then(|card| card.context_length),
        "uptime_seconds": state.uptime().as_secs(),
        "sm": card.and_then(|card| card.sm.as_deref()),
        "cuda_driver_version": card.and_then(|card| card.cuda_driver_version.as_deref()),
        "backend": card.map(|card| &card.backend),
        "device": card.map(|card| &card.device),
        "oom_events": now.map_or(0, |now| now.oom_events),
        "requests_running": now.map_or(0, |now| now.running),
        "requests_waiting": now.map_or(0, |now| now.waiting),
    });
    (status, report)
}

/// `GET /ready`: whether a request sent now would be taken.
pub async fn ready(State(state): State<Arc<ServerState>>) -> (StatusCode, Json<Value>) {
    let now = state.model().map(|model| model.worker.health());
    let ready = state.status(now.as_ref()).serves();
    (code(ready), Json(json!({ "ready": ready })))
}

/// `GET /live`: the process answers, also while it loads or drains.
pub async fn live() -> Json<Value> {
    Json(json!({ "live": true }))
}

const fn code(serves: bool) -> StatusCode {
    if serves { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}
