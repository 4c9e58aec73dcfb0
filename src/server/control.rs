//! `POST /cancel` and `POST /shutdown`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;

use super::body::Fields;
use super::error::ApiError;
use super::registry::StopCause;
use super::state::ServerState;

/// A body that holds one name.
const MAX_BODY_BYTES: usize = 64 << 10;

/// What both answer when they have understood.
type Accepted = (StatusCode, Json<serde_json::Value>);

/// `POST /cancel {job_id}`: ends the job's stream with `CANCELLED`. 202 whether or not the job lives, any number of
/// times.
///
/// # Errors
///
/// 400 for a body without a `job_id`.
pub async fn cancel(State(state): State<Arc<ServerState>>, request: Request) -> Result<Accepted, ApiError> {
    let (parts, body) = request.into_parts();
    let job_id = Fields::read(&parts.headers, body, MAX_BODY_BYTES).await?.string("job_id")?;
    if job_id.is_empty() {
        return Err(ApiError::invalid("job_id", "expected at least one character"));
    }
    if state.jobs.stop(&job_id, StopCause::Cancelled)
        && let Some(model) = state.model()
    {
        model.worker.cancel(&job_id);
    }
    Ok((StatusCode::ACCEPTED, Json(serde_json::json!({ "job_id": job_id }))))
}

/// `POST /shutdown`: drains and ends the process, as SIGTERM does.
pub async fn shutdown(State(state): State<Arc<ServerState>>) -> Accepted {
    state.request_shutdown();
    (StatusCode::ACCEPTED, Json(serde_json::json!({ "status": "draining" })))
}
