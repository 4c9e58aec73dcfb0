//! Who may send a request at all: keys, and web pages of other origins.
//!
//! A browser sends what any page asks it to, with the user's network position: without `--cors-origin` no request of a
//! foreign page is served, whatever its method and content type, so that no page can stop a worker on localhost.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::error::{ApiError, ErrorCode};
use super::openai;
use super::record;
use super::state::ServerState;

/// Paths that probes and the status page read, without a key; `/status` says more to those who bring one.
const OPEN: [&str; 5] = ["/health", "/ready", "/live", "/", "/status"];
/// Seconds a browser may remember that it may send requests.
const PREFLIGHT_MAX_AGE: HeaderValue = HeaderValue::from_static("600");

/// Lets a request pass or answers it.
pub async fn gate(State(state): State<Arc<ServerState>>, request: Request, next: Next) -> Response {
    let origin = request.headers().get(header::ORIGIN).cloned();
    let foreign = origin.as_ref().filter(|origin| !is_own(origin, request.headers()));
    let allowed = foreign.and_then(|origin| allowed(&state.cors_origins, origin));
    let path = request.uri().path().to_owned();
    if foreign.is_some() && allowed.is_none() && *request.method() != Method::GET {
        let error = ApiError::of(ErrorCode::Forbidden, "requests of this origin are not served");
        return refuse(&state, &path, error);
    }
    let mut response = if foreign.is_some() && *request.method() == Method::OPTIONS {
        preflight(request.headers())
    } else if OPEN.contains(&path.as_str())
        || state.api_keys.as_ref().is_none_or(|keys| keys.admit(request.headers()))
    {
        next.run(request).await
    } else {
        let error = ApiError {
            detail: Some("invalid_api_key"),
            ..ApiError::of(ErrorCode::Unauthorized, "expected a known key as Authorization: Bearer")
        };
        refuse(&state, &path, error)
    };
    if let Some(allowed) = allowed {
        response.headers_mut().insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
        response.headers_mut().append(header::VARY, HeaderValue::from_static("origin"));
    }
    response
}

fn refuse(state: &ServerState, path: &str, error: ApiError) -> Response {
    record::refused(&state.tally, None, &error);
    if openai::owns(path) { openai::refusal(&error) } else { error.into_response() }
}

/// Whether the page comes from this very server.
fn is_own(origin: &HeaderValue, headers: &HeaderMap) -> bool {
    let host = headers.get(header::HOST).map(HeaderValue::as_bytes);
    let authority = origin.to_str().ok().and_then(|origin| origin.split_once("://")).map(|(_, rest)| rest);
    authority.is_some() && authority.map(str::as_bytes) == host
}

/// What to answer a page of this origin, if it may send requests.
fn allowed(origins: &[String], origin: &HeaderValue) -> Option<HeaderValue> {
    if origins.iter().any(|allowed| allowed == "*") {
        return Some(HeaderValue::from_static("*"));
    }
    origins.iter().any(|allowed| allowed.as_bytes() == origin.as_bytes()).then(|| origin.clone())
}

fn preflight(headers: &HeaderMap) -> Response {
    let mut response = (StatusCode::NO_CONTENT, Body::empty()).into_response();
    let answers = response.headers_mut();
    answers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST"));
    answers.insert(header::ACCESS_CONTROL_MAX_AGE, PREFLIGHT_MAX_AGE);
    if let Some(wanted) = headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
        answers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, wanted.clone());
    }
    response
}
