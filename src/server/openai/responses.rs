//! `POST /v1/responses`: the same answers as chat completions, as items. Nothing is stored: a conversation goes on by
//! sending its items back, reasoning included.

mod input;
mod items;
mod request;
mod stream;

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};

use super::admission::{Admitted, answered, submit};
use super::error;
use crate::server::error::ApiError;
use crate::server::off_thread::off_thread;
use crate::server::sse;
use crate::server::state::ServerState;
use request::ResponseRequest;
pub use request::{INCLUDABLE, STATEFUL};
use stream::ResponseStream;

/// `POST /v1/responses`.
pub async fn responses(State(state): State<Arc<ServerState>>, request: Request) -> Response {
    answered(&state, request, "resp_", |admitted| answer(&state, admitted)).await
}

async fn answer(state: &ServerState, admitted: Admitted<'_>) -> Result<Response, ApiError> {
    let Admitted { model, mut fields, id, mut job, deadline } = admitted;
    let tokenizer = &model.tokenizer;
    let ResponseRequest { mut parameters, chat, mut echo } =
        ResponseRequest::take(&mut fields, state, model)?;
    let work = {
        let (tokenizer, grammars) = (Arc::clone(tokenizer), Arc::clone(&model.grammars));
        move || {
            let grammar = chat.grammar(&tokenizer, &grammars)?;
            Ok((grammar, chat.prompts()?, chat))
        }
    };
    let (grammar, prompts, chat) = off_thread(&mut job, deadline, work).await?;
    parameters.constrain(grammar)?;
    echo.begin(&id, state);

    let parser = chat.parsers(tokenizer, &parameters.stop, parameters.grammar.is_some());
    let mut answers = submit(state, model, (id, job, deadline), &prompts, &parameters, parser)?;
    if chat.single_call {
        answers.end_at_first_call();
    }
    let events = ResponseStream::of(answers, echo, Arc::clone(tokenizer));
    if parameters.stream {
        return Ok(sse::response(events));
    }
    Ok(match events.whole().await {
        Ok(response) => Json(response).into_response(),
        Err(error) => error::refusal(&error),
    })
}
