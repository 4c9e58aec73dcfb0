//! The HTTP face: routes, wire types, validation, streams, and the life of the server from loading to drained.
//!
//! A route reads its body field by field ([`body`]), takes the job's name ([`registry`]), tokenises off the server's
//! threads, submits to the [`worker`] and follows the tokens as text ([`generation`]). Errors have one shape
//! ([`error`]). Nothing here waits for the device.

pub mod body;
pub mod control;
pub mod error;
pub mod execute;
pub mod execute_request;
pub mod generation;
pub mod health;
pub mod lifetime;
pub mod log;
pub mod registry;
pub mod sse;
pub mod state;
pub mod worker;

use std::sync::Arc;

use axum::Router;
use axum::routing::{get, post};

use error::{ApiError, ErrorCode};
pub use lifetime::{serve, termination};
pub use state::ServerState;

/// All routes.
pub fn router(state: Arc<ServerState>) -> Router {
    Router::new()
        .route("/execute", post(execute::execute))
        .route("/cancel", post(control::cancel))
        .route("/shutdown", post(control::shutdown))
        .route("/health", get(health::health))
        .route("/ready", get(health::ready))
        .route("/live", get(health::live))
        .fallback(|| async { ApiError::of(ErrorCode::NotFound, "no such path") })
        .method_not_allowed_fallback(|| async {
            ApiError::of(ErrorCode::MethodNotAllowed, "the path exists, but not for this method")
        })
        .with_state(state)
}
