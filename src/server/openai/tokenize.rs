//! `POST /tokenize`, `/detokenize` and `/apply-template`: what the model would see, and what it would say.
//!
//! The fields are those of the two servers whose clients send them: `prompt` and `add_special_tokens`, or `content` and
//! `add_special`. The text of special tokens is text unless `parse_special` asks otherwise.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::admission::MAX_BODY_BYTES;
use super::error;
use super::parameters::{named_model, token_ids};
use super::prompt::{AnswerFormat, Chat};
use crate::server::body::Fields;
use crate::server::error::{ApiError, ErrorCode};
use crate::server::off_thread::spawn;
use crate::server::state::{LoadedModel, ServerState};
use crate::text::SpecialParsing;

/// `POST /tokenize`: `{tokens, count, max_model_len, token_strs?}` of a text or of a conversation's prompt.
pub async fn tokenize(State(state): State<Arc<ServerState>>, request: Request) -> Response {
    respond(tokens(&state, request).await)
}

/// `POST /detokenize`: `{prompt, content}`, both the text of `tokens`, special ones as their spelling.
pub async fn detokenize(State(state): State<Arc<ServerState>>, request: Request) -> Response {
    respond(text(&state, request).await)
}

/// `POST /apply-template`: `{prompt}`, the prompt that a conversation becomes.
pub async fn apply_template(State(state): State<Arc<ServerState>>, request: Request) -> Response {
    respond(prompt(&state, request).await)
}

fn respond(answer: Result<Value, ApiError>) -> Response {
    match answer {
        Ok(body) => Json(body).into_response(),
        Err(error) => error::refusal(&error),
    }
}

async fn read(state: &ServerState, request: Request) -> Result<(&LoadedModel, Fields), ApiError> {
    let model =
        state.model().ok_or_else(|| ApiError::of(ErrorCode::Loading, "the model is still loading"))?;
    let (parts, body) = request.into_parts();
    let mut fields = Fields::read(&parts.headers, body, MAX_BODY_BYTES).await?;
    named_model(&mut fields, state)?;
    Ok((model, fields))
}

async fn tokens(state: &ServerState, request: Request) -> Result<Value, ApiError> {
    let (model, mut fields) = read(state, request).await?;
    let tokenizer = Arc::clone(&model.tokenizer);
    let with_strings = fields.switch("return_token_strs")?.unwrap_or(false);
    let ids = if fields.get("messages").is_some() {
        let chat = Chat::take(&mut fields, model, AnswerFormat::Text)?;
        spawn(move || Ok(chat.prompts()?.ids.concat())).await?
    } else {
        let (field, add_field) = if fields.get("content").is_some() {
            ("content", "add_special")
        } else {
            ("prompt", "add_special_tokens")
        };
        let text = fields.string(field)?;
        // Each family of clients has its own default.
        let add_special = fields.switch(add_field)?.unwrap_or(field == "prompt");
        let parse = fields.switch("parse_special")?.unwrap_or(false);
        let special = if parse { SpecialParsing::Parse } else { SpecialParsing::Plain };
        let tokenizer = Arc::clone(&tokenizer);
        spawn(move || {
            Ok(if add_special {
                tokenizer.encode_prompt(&text, special)
            } else {
                tokenizer.encode(&text, special)
            })
        })
        .await?
    };
    let spelled = |id: &u32| String::from_utf8_lossy(tokenizer.literal_bytes(*id)).into_owned();
    let strings: Option<Vec<String>> = with_strings.then(|| ids.iter().map(spelled).collect());
    Ok(json!({
        "count": ids.len(),
        "max_model_len": model.card.context_length,
        "tokens": ids,
        "token_strs": strings,
    }))
}

async fn text(state: &ServerState, request: Request) -> Result<Value, ApiError> {
    let (model, mut fields) = read(state, request).await?;
    let last = model.tokenizer.vocab_size().saturating_sub(1);
    let ids = fields
        .present("tokens")
        .and_then(|value| token_ids(&value, model.tokenizer.vocab_size()))
        .ok_or_else(|| {
            ApiError::invalid("tokens", format_args!("expected a list of ids from 0 to {last}"))
        })?;
    let bytes: Vec<u8> = ids.iter().flat_map(|&id| model.tokenizer.literal_bytes(id)).copied().collect();
    let text = String::from_utf8_lossy(&bytes);
    Ok(json!({ "prompt": text, "content": text }))
}

async fn prompt(state: &ServerState, request: Request) -> Result<Value, ApiError> {
    let (model, mut fields) = read(state, request).await?;
    let chat = Chat::take(&mut fields, model, AnswerFormat::Text)?;
    Ok(json!({ "prompt": spawn(move || chat.text()).await? }))
}
