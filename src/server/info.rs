//! `GET /server_info` and `/model_info`: what routers ask a worker when it is registered.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::state::ServerState;

/// `GET /server_info`, also as `/get_server_info`.
pub async fn server_info(State(state): State<Arc<ServerState>>) -> Json<Value> {
    let card = state.model().map(|model| &model.card);
    let stats = state.model().map(|model| model.worker.stats());
    let blocks = stats.map(|stats| stats.kv_blocks_total as usize);
    Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "worker_id": state.worker_id,
        "served_model_name": state.model_name(),
        "model_path": state.model_path,
        "backend": card.map(|card| &card.backend),
        "context_length": card.and_then(|card| card.context_length),
        "max_total_tokens": card.zip(blocks).map(|(card, blocks)| card.kv_block_size * blocks),
        "max_tokens_out": state.max_tokens_out,
        "uptime_seconds": state.uptime().as_secs(),
        "dp_size": 1,
        "tp_size": 1,
    }))
}

/// `GET /model_info`, also as `/get_model_info`.
pub async fn model_info(State(state): State<Arc<ServerState>>) -> Json<Value> {
    let model = state.model();
    let card = model.map(|model| &model.card);
    Json(json!({
        "model_path": state.model_path,
        "tokenizer_path": state.model_path,
        "served_model_name": state.model_name(),
        "is_generation": true,
        "name": card.map(|card| &card.name),
        "quant_kind": card.map(|card| &card.quant_kind),
        "context_length": card.and_then(|card| card.context_length),
        "tokenizer_kind": model.map(|model| model.tokenizer.kind().as_str()),
        "vocab_size": model.map(|model| model.tokenizer.vocab_size()),
        "chat_format": model.and_then(|model| Some(model.chat.as_ref()?.name())),
    }))
}
