//! The HTTP face: routes, wire types, validation, streams, and the life of the server from loading to drained.
//!
//! A route reads its body field by field ([`body`]), takes the job's name ([`registry`]), tokenises off the server's
//! threads, submits to the [`worker`] and follows the tokens as text ([`generation`]). Errors have one shape
//! ([`error`]). Nothing here waits for the device.

pub mod api_keys;
pub mod body;
pub mod callback;
pub mod control;
pub mod error;
pub mod execute;
pub mod execute_request;
pub mod exposition;
pub mod following;
pub mod gate;
pub mod generation;
pub mod health;
pub mod info;
pub mod lifetime;
pub mod log;
pub mod metrics;
pub mod off_thread;
pub mod openai;
pub mod openapi;
pub mod record;
pub mod registry;
pub mod span_export;
pub mod sse;
pub mod state;
pub mod status_page;
pub mod supervisor;
pub mod tls;
pub mod trace;
pub mod worker;

use std::sync::Arc;

use axum::Router;
use axum::http::Uri;
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};

use error::{ApiError, ErrorCode};
pub use lifetime::{serve, termination};
pub use state::ServerState;

/// All routes.
pub fn router(state: Arc<ServerState>) -> Router {
    Router::new()
        .route("/", get(status_page::page))
        .route("/status", get(status_page::status))
        .route("/execute", post(execute::execute))
        .route("/cancel", post(control::cancel))
        .route("/shutdown", post(control::shutdown))
        .route("/health", get(health::health))
        .route("/ready", get(health::ready))
        .route("/live", get(health::live))
        .route("/metrics", get(metrics::metrics))
        .route("/openapi.json", get(openapi::openapi))
        .route("/server_info", get(info::server_info))
        .route("/get_server_info", get(info::server_info))
        .route("/model_info", get(info::model_info))
        .route("/get_model_info", get(info::model_info))
        .route("/abort_request", post(control::abort_request))
        .route("/tokenize", post(openai::tokenize::tokenize))
        .route("/detokenize", post(openai::tokenize::detokenize))
        .route("/apply-template", post(openai::tokenize::apply_template))
        .route("/v1/models", get(openai::models::models))
        .route("/v1/models/{*name}", get(openai::models::model))
        .route("/v1/completions", post(openai::completions::completions))
        .route("/v1/chat/completions", post(openai::chat::chat_completions))
        .route("/v1/responses", post(openai::responses::responses))
        .fallback(|uri: Uri| async move { refusal(&uri, ErrorCode::NotFound, "no such path") })
        .method_not_allowed_fallback(|uri: Uri| async move {
            refusal(&uri, ErrorCode::MethodNotAllowed, "the path exists, but not for this method")
        })
        .layer(from_fn_with_state(Arc::clone(&state), gate::gate))
        .layer(from_fn_with_state(Arc::clone(&state), trace::follow))
        .with_state(state)
}

/// An error in the shape of the wire that the path belongs to.
fn refusal(uri: &Uri, code: ErrorCode, message: &str) -> Response {
    let error = ApiError::of(code, message);
    if openai::owns(uri.path()) { openai::refusal(&error) } else { error.into_response() }
}
