//! `GET /health`, `/live` and `/ready`: answered from cached state, whatever the device does.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;

use super::state::{ServerState, Status};
use super::worker::VramBytes;

/// The body of `/health`. What is not known yet, or not known for this backend, is `null`.
#[derive(Debug, Serialize)]
pub struct HealthReport<'a> {
    status: Status,
    worker_id: &'a str,
    model: Option<&'a str>,
    resident: bool,
    quant_kind: Option<&'a str>,
    vram_bytes_used: u64,
    vram_bytes: VramBytes,
    tokenizer_kind: Option<&'a str>,
    vocab_size: Option<usize>,
    context_length: Option<usize>,
    uptime_seconds: u64,
    sm: Option<&'a str>,
    cuda_driver_version: Option<&'a str>,
    backend: Option<&'a str>,
    oom_events: u64,
    requests_running: usize,
    requests_waiting: usize,
}

/// `GET /health`: 200 while requests are taken, else 503 with the same body.
pub async fn health(State(state): State<Arc<ServerState>>) -> (StatusCode, Json<serde_json::Value>) {
    let model = state.model();
    let now = model.map(|model| model.worker.health());
    let status = state.status(now.as_ref());
    let card = model.map(|model| &model.card);
    let vram_bytes = now.as_ref().map(|now| now.vram).unwrap_or_default();
    let report = HealthReport {
        status,
        worker_id: &state.worker_id,
        model: card.map(|card| card.name.as_str()),
        resident: now.as_ref().is_some_and(|now| now.resident),
        quant_kind: card.map(|card| card.quant_kind.as_str()),
        vram_bytes_used: vram_bytes.total(),
        vram_bytes,
        tokenizer_kind: model.map(|model| model.text.kind()),
        vocab_size: model.map(|model| model.vocab_size),
        context_length: card.and_then(|card| card.context_length),
        uptime_seconds: state.uptime().as_secs(),
        sm: card.and_then(|card| card.sm.as_deref()),
        cuda_driver_version: card.and_then(|card| card.cuda_driver_version.as_deref()),
        backend: card.map(|card| card.backend.as_str()),
        oom_events: now.as_ref().map_or(0, |now| now.oom_events),
        requests_running: now.as_ref().map_or(0, |now| now.running),
        requests_waiting: now.as_ref().map_or(0, |now| now.waiting),
    };
    (code(status.serves()), Json(serde_json::json!(report)))
}

/// `GET /ready`: whether a request sent now would be taken.
pub async fn ready(State(state): State<Arc<ServerState>>) -> (StatusCode, Json<serde_json::Value>) {
    let now = state.model().map(|model| model.worker.health());
    let ready = state.status(now.as_ref()).serves();
    (code(ready), Json(serde_json::json!({ "ready": ready })))
}

/// `GET /live`: the process answers, also while it loads or drains.
pub async fn live() -> Json<serde_json::Value> {
    Json(serde_json::json!({ "live": true }))
}

const fn code(serves: bool) -> StatusCode {
    if serves { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}
