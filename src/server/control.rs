//! `POST /cancel`, `/abort_request` and `/shutdown`.

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
    stop(&state, &job_id);
    Ok((StatusCode::ACCEPTED, Json(serde_json::json!({ "job_id": job_id }))))
}

/// `POST /abort_request {rid}` or `{abort_all: true}`: `/cancel` as some routers call it, by an answer's id.
///
/// # Errors
///
/// 400 for a body that names nothing.
pub async fn abort_request(
    State(state): State<Arc<ServerState>>,
    request: Request,
) -> Result<Json<serde_json::Value>, ApiError> {
    let (parts, body) = request.into_parts();
    let mut fields = Fields::read(&parts.headers, body, MAX_BODY_BYTES).await?;
    if fields.switch("abort_all")? == Some(true) {
        for job_id in state.jobs.stop_all(StopCause::Cancelled) {
            stop(&state, &job_id);
        }
    } else {
        stop(&state, &fields.string("rid")?);
    }
    Ok(Json(serde_json::json!({})))
}

fn stop(state: &ServerState, job_id: &str) {
    if state.jobs.stop(job_id, StopCause::Cancelled)
        && let Some(model) = state.model()
    {
        model.worker.cancel(job_id);
    }
}

/// `POST /shutdown`: drains and ends the process, as SIGTERM does.
pub async fn shutdown(State(state): State<Arc<ServerState>>) -> Accepted {
    state.request_shutdown();
    (StatusCode::ACCEPTED, Json(serde_json::json!({ "status": "draining" })))
}
