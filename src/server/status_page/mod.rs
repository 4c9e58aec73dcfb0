//! `GET /`: a page that shows the worker to people, and `GET /status`: what it polls.
//!
//! The page is one document without outside parts. Its policy lets nothing run or load but its own script and style,
//! which carry the response's nonce, and lets it talk to this very server only.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use super::health;
use super::record::OUTCOMES;
use super::state::{LoadedModel, ServerState};
use crate::engine::Histogram;
use crate::random;

const PAGE: &str = include_str!("page.html");
const SCRIPT: &str = include_str!("page.js");
/// Where the page names its nonce, and where its script belongs.
const NONCE: &str = "__NONCE__";
const SCRIPT_PLACE: &str = "__SCRIPT__";

/// `GET /`: the page, also while the worker loads or drains.
pub async fn page() -> Response {
    let nonce = random::uuid().replace('-', "");
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; \
         img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let body = PAGE.replace(NONCE, &nonce).replace(SCRIPT_PLACE, SCRIPT);
    let mut response = (StatusCode::OK, body).into_response();
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    // A nonce of letters and digits makes a valid header.
    if let Ok(policy) = HeaderValue::from_str(&policy) {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    response
}

/// `GET /status`: what `/health` says, always with 200, and the figures of this moment. Without a key where one is
/// asked for, `locked` is true and the figures are `null`.
pub async fn status(State(state): State<Arc<ServerState>>, headers: HeaderMap) -> Json<Value> {
    let (_, mut report) = health::report(&state);
    let locked = state.api_keys.as_ref().is_some_and(|keys| !keys.admit(&headers));
    report["version"] = env!("CARGO_PKG_VERSION").into();
    report["locked"] = locked.into();
    report["stats"] = state.model().filter(|_| !locked).map_or(Value::Null, |model| figures(&state, model));
    Json(report)
}

fn figures(state: &ServerState, model: &LoadedModel) -> Value {
    let (stats, histograms) = (model.worker.stats(), model.worker.histograms());
    let requests: Map<String, Value> = OUTCOMES
        .into_iter()
        .map(|outcome| (outcome.name().to_owned(), state.tally.of(outcome).into()))
        .collect();
    let sums = |histogram: &Histogram| json!({ "sum": histogram.sum, "count": histogram.count() });
    json!({
        "tokens_generated": stats.generated_tokens,
        "prompt_tokens": stats.prompt_tokens,
        "prefix_cache_queries": stats.prefix_cache_queries,
        "prefix_cache_hits": stats.prefix_cache_hits,
        "kv_blocks_used": stats.kv_blocks_used,
        "kv_blocks_total": stats.kv_blocks_total,
        "preemptions": stats.preemptions,
        "requests": requests,
        "time_to_first_token": sums(&histograms.time_to_first_token),
        "inter_token_latency": sums(&histograms.inter_token_latency),
    })
}
