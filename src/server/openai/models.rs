//! `GET /v1/models`: the one model, under every name it answers to.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::error;
use crate::server::error::{ApiError, ErrorCode};
use crate::server::state::ServerState;

/// `GET /v1/models`. A worker that still loads has none to offer yet.
pub async fn models(State(state): State<Arc<ServerState>>) -> Response {
    let Some(first) = state.model().and(state.model_name()) else {
        return error::refusal(&ApiError::of(ErrorCode::Loading, "the model is still loading"));
    };
    let more = state.served_names.iter().skip(1).map(String::as_str);
    let data: Vec<Value> = std::iter::once(first).chain(more).map(|name| entry(&state, name)).collect();
    Json(json!({ "object": "list", "data": data })).into_response()
}

/// `GET /v1/models/{name}`; names may hold slashes.
pub async fn model(State(state): State<Arc<ServerState>>, Path(name): Path<String>) -> Response {
    if state.model().is_none() {
        return error::refusal(&ApiError::of(ErrorCode::Loading, "the model is still loading"));
    }
    if state.answers_to(&name) {
        return Json(entry(&state, &name)).into_response();
    }
    let missing =
        ApiError { detail: Some("model_not_found"), ..ApiError::of(ErrorCode::NotFound, "no such model") };
    error::refusal(&missing)
}

fn entry(state: &ServerState, name: &str) -> Value {
    json!({
        "id": name,
        "object": "model",
        "created": state.created,
        "owned_by": "worker-orcd",
        "root": state.model().map(|model| &model.card.name),
        "parent": null,
        "max_model_len": state.model().and_then(|model| model.card.context_length),
    })
}
