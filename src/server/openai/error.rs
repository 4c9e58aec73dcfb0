//! Errors as OpenAI's clients read them: `{"error": {message, type, param, code}}`, the number being the status.

use axum::Json;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::server::error::{ApiError, ErrorCode};

/// The error's object, for a response and for a stream.
pub fn body(error: &ApiError) -> Value {
    json!({ "error": {
        "message": error.message,
        "type": kind(error.code),
        "param": error.field,
        "code": error.detail.unwrap_or_else(|| code(error.code)),
    } })
}

/// The error as a response, with the time to wait where waiting helps.
pub fn refusal(error: &ApiError) -> Response {
    let mut response = (error.status(), Json(body(error))).into_response();
    if let Some(seconds) = error.code.retry_after_s() {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

const fn kind(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::InvalidRequest
        | ErrorCode::MethodNotAllowed
        | ErrorCode::NotFound
        | ErrorCode::Cancelled => "invalid_request_error",
        ErrorCode::Unauthorized => "authentication_error",
        ErrorCode::Forbidden => "permission_error",
        ErrorCode::Busy => "rate_limit_error",
        ErrorCode::Loading | ErrorCode::ShuttingDown | ErrorCode::InsufficientVram => {
            "service_unavailable_error"
        }
        ErrorCode::InferenceTimeout => "timeout_error",
        ErrorCode::VramOom | ErrorCode::CudaError | ErrorCode::Internal => "server_error",
    }
}

const fn code(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::InvalidRequest => "invalid_value",
        ErrorCode::Unauthorized => "invalid_api_key",
        ErrorCode::Forbidden => "forbidden",
        ErrorCode::NotFound => "not_found",
        ErrorCode::MethodNotAllowed => "method_not_allowed",
        ErrorCode::Cancelled => "cancelled",
        ErrorCode::Loading => "loading",
        ErrorCode::InsufficientVram => "insufficient_vram",
        ErrorCode::VramOom => "vram_oom",
        ErrorCode::CudaError => "device_error",
        ErrorCode::InferenceTimeout => "timeout",
        ErrorCode::Busy => "queue_full",
        ErrorCode::ShuttingDown => "shutting_down",
        ErrorCode::Internal => "internal_error",
    }
}
