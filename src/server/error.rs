//! The one error shape of the worker's own API: `{code, message, retriable, field?}`, before the first byte as a
//! response with the code's status, after it as the stream's terminal `error` event.

use std::borrow::Cow;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::engine::EngineError;

/// What went wrong, as a client's program reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(into = "&'static str")]
pub enum ErrorCode {
    /// The request breaks a rule; `field` names where.
    InvalidRequest,
    /// The key is missing or wrong.
    Unauthorized,
    /// The request comes from a page that may not send it.
    Forbidden,
    /// No such path.
    NotFound,
    /// The path exists, the method does not.
    MethodNotAllowed,
    /// Ended by `/cancel`, or by the end of the drain time.
    Cancelled,
    /// The model is not in memory yet.
    Loading,
    /// Too little memory at start.
    InsufficientVram,
    /// The key/value cache ran out while this request ran.
    VramOom,
    /// The CUDA device failed.
    CudaError,
    /// `X-Deadline` or the worker's own limit passed.
    InferenceTimeout,
    /// The waiting queue is full.
    Busy,
    /// The worker drains.
    ShuttingDown,
    /// A fault of the worker.
    Internal,
}

impl From<ErrorCode> for &'static str {
    fn from(code: ErrorCode) -> Self {
        code.name()
    }
}

impl ErrorCode {
    /// The name on the wire and in logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::InvalidRequest => "INVALID_REQUEST",
            Self::Unauthorized => "UNAUTHORIZED",
            Self::Forbidden => "FORBIDDEN",
            Self::NotFound => "NOT_FOUND",
            Self::MethodNotAllowed => "METHOD_NOT_ALLOWED",
            Self::Cancelled => "CANCELLED",
            Self::Loading => "LOADING",
            Self::InsufficientVram => "INSUFFICIENT_VRAM",
            Self::VramOom => "VRAM_OOM",
            Self::CudaError => "CUDA_ERROR",
            Self::InferenceTimeout => "INFERENCE_TIMEOUT",
            Self::Busy => "BUSY",
            Self::ShuttingDown => "SHUTTING_DOWN",
            Self::Internal => "INTERNAL",
        }
    }

    /// HTTP status before the first byte. 499 is the field's number for a request ended by its client.
    pub fn status(self) -> StatusCode {
        match self {
            Self::InvalidRequest => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::Cancelled => StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
            Self::Busy => StatusCode::TOO_MANY_REQUESTS,
            Self::Loading | Self::InsufficientVram | Self::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
            Self::VramOom | Self::CudaError | Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::InferenceTimeout => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// Whether the same request may succeed later, here or on another worker.
    pub const fn retriable(self) -> bool {
        match self {
            Self::InvalidRequest
            | Self::Unauthorized
            | Self::Forbidden
            | Self::NotFound
            | Self::MethodNotAllowed
            | Self::Cancelled
            | Self::Internal => false,
            Self::Loading
            | Self::InsufficientVram
            | Self::VramOom
            | Self::CudaError
            | Self::InferenceTimeout
            | Self::Busy
            | Self::ShuttingDown => true,
        }
    }

    /// Seconds a client should wait before it tries again.
    pub const fn retry_after_s(self) -> Option<u16> {
        match self {
            Self::Busy | Self::ShuttingDown => Some(1),
            Self::Loading => Some(5),
            _ => None,
        }
    }
}

/// An error as it goes over the wire.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// For programs.
    pub code: ErrorCode,
    /// For people. Never holds a prompt or generated text.
    pub message: String,
    /// Whether trying again makes sense.
    pub retriable: bool,
    /// The request's field at fault.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<Cow<'static, str>>,
    /// A finer word than `code`, for the wire of [`super::openai`].
    #[serde(skip)]
    pub detail: Option<&'static str>,
    /// Status in place of the code's own.
    #[serde(skip)]
    pub status: Option<StatusCode>,
}

impl ApiError {
    /// An error with the code's own status.
    pub fn of(code: ErrorCode, message: impl Into<String>) -> Self {
        let retriable = code.retriable();
        Self { code, message: message.into(), retriable, field: None, detail: None, status: None }
    }

    /// 400 that names the field.
    pub fn invalid(field: impl Into<Cow<'static, str>>, rule: impl std::fmt::Display) -> Self {
        let field = field.into();
        let message = format!("{field}: {rule}");
        Self { field: Some(field), ..Self::of(ErrorCode::InvalidRequest, message) }
    }

    /// 400 for a prompt that does not fit.
    pub fn prompt_too_long(rule: impl std::fmt::Display) -> Self {
        Self { detail: Some("context_length_exceeded"), ..Self::invalid("prompt", rule) }
    }

    /// Ended because the drain time is over: cancelled, but worth sending to another worker.
    pub fn drained() -> Self {
        Self { retriable: true, ..Self::of(ErrorCode::Cancelled, "cancelled: the worker is shutting down") }
    }

    /// The engine's error in the words of the wire. `backend` decides the name of a device's failure.
    pub fn from_engine(error: &EngineError, backend: &str) -> Self {
        let code = match error {
            EngineError::QueueFull { .. } => ErrorCode::Busy,
            EngineError::ShuttingDown => ErrorCode::ShuttingDown,
            EngineError::PromptTooLong { .. } => return Self::prompt_too_long(error),
            EngineError::KvExhausted => ErrorCode::VramOom,
            EngineError::Cancelled => ErrorCode::Cancelled,
            EngineError::DeadlineExceeded => ErrorCode::InferenceTimeout,
            EngineError::Device { .. } if backend == "cuda" => ErrorCode::CudaError,
            EngineError::InvalidJob { .. }
            | EngineError::Constraint { .. }
            | EngineError::NonFiniteLogits
            | EngineError::Device { .. } => ErrorCode::Internal,
        };
        Self::of(code, error.to_string())
    }

    /// The status of the response.
    pub fn status(&self) -> StatusCode {
        self.status.unwrap_or_else(|| self.code.status())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let retry_after_s = self.code.retry_after_s();
        let mut response = (self.status(), Json(self)).into_response();
        if let Some(seconds) = retry_after_s {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engine_errors_have_their_statuses() {
        let device = EngineError::Device { reason: "lost".into() };
        for (error, backend, code, status) in [
            (EngineError::QueueFull { waiting: 64 }, "cuda", ErrorCode::Busy, 429),
            (EngineError::ShuttingDown, "cuda", ErrorCode::ShuttingDown, 503),
            (
                EngineError::PromptTooLong { prompt_tokens: 9, context: 8 },
                "cuda",
                ErrorCode::InvalidRequest,
                400,
            ),
            (EngineError::InvalidJob { reason: "x" }, "cuda", ErrorCode::Internal, 500),
            (EngineError::KvExhausted, "cuda", ErrorCode::VramOom, 500),
            (EngineError::Cancelled, "cuda", ErrorCode::Cancelled, 499),
            (EngineError::DeadlineExceeded, "cuda", ErrorCode::InferenceTimeout, 504),
            (EngineError::NonFiniteLogits, "cuda", ErrorCode::Internal, 500),
            (device.clone(), "cuda", ErrorCode::CudaError, 500),
            (device, "wgpu", ErrorCode::Internal, 500),
        ] {
            let api = ApiError::from_engine(&error, backend);
            assert_eq!((api.code, api.status().as_u16()), (code, status), "{error}");
        }
    }

    #[test]
    fn the_wire_form_has_the_contract_s_names() {
        let json = serde_json::to_value(ApiError::invalid("top_p", "expected 0 to 1")).unwrap();
        let expected = serde_json::json!({
            "code": "INVALID_REQUEST", "message": "top_p: expected 0 to 1", "retriable": false, "field": "top_p"
        });
        assert_eq!(json, expected);
        let json = serde_json::to_value(ApiError::of(ErrorCode::VramOom, "x")).unwrap();
        assert_eq!(json, serde_json::json!({"code": "VRAM_OOM", "message": "x", "retriable": true}));
    }
}
