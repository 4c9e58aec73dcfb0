//! `POST /v1/chat/completions`: the next message of a conversation.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::admission::{Admitted, answered, submit};
use super::answers::TokenReport;
use super::parameters::{MAX_TOP_LOGPROBS, Parameters};
use super::prompt::{AnswerFormat, Chat};
use super::refused;
use super::reply::{Head, Whole, Wire, json_of, reply};
use crate::server::body::Fields;
use crate::server::error::ApiError;
use crate::server::off_thread::off_thread;
use crate::server::record::Outcome;
use crate::server::state::ServerState;
use crate::text::Tokenizer;
use crate::text::chat::OutputEvent;

/// `POST /v1/chat/completions`.
pub async fn chat_completions(State(state): State<Arc<ServerState>>, request: Request) -> Response {
    answered(&state, request, "chatcmpl-", |admitted| answer(&state, admitted)).await
}

async fn answer(state: &ServerState, admitted: Admitted<'_>) -> Result<Response, ApiError> {
    let Admitted { model, mut fields, id, mut job, deadline } = admitted;
    let tokenizer = &model.tokenizer;
    let max_tokens = ["max_completion_tokens", "max_tokens"];
    let mut parameters = Parameters::take(&mut fields, state, tokenizer, &max_tokens)?;
    parameters.sampling.logprobs = logprobs(&mut fields)?;
    if fields.switch("skip_special_tokens")? == Some(false) {
        return Err(refused::unsupported("skip_special_tokens"));
    }
    let format = AnswerFormat::take(&mut fields)?;
    let chat = Chat::take(&mut fields, model, format)?;
    let work = {
        let (tokenizer, grammars) = (Arc::clone(tokenizer), Arc::clone(&model.grammars));
        move || {
            let grammar = chat.grammar(&tokenizer, &grammars)?;
            Ok((grammar, chat.prompts()?, chat))
        }
    };
    let (grammar, prompts, chat) = off_thread(&mut job, deadline, work).await?;
    parameters.constrain(grammar)?;

    let head = Head::begin(state, &id);
    let parser = chat.parsers(tokenizer, &parameters.stop, parameters.grammar.is_some());
    let mut answers = submit(state, model, (id, job, deadline), &prompts, &parameters, parser)?;
    if chat.single_call {
        answers.end_at_first_call();
    }
    let with_logprobs = parameters.sampling.logprobs.is_some();
    let wire = ChatWire { tokenizer: Arc::clone(tokenizer), with_logprobs };
    Ok(reply(answers, wire, head, parameters.stream, parameters.include_usage).await)
}

/// `logprobs` and `top_logprobs`: how many alternatives to report, if any report is wanted.
fn logprobs(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    let wanted = fields.switch("logprobs")?.unwrap_or(false);
    let top = fields.integer("top_logprobs", 0, MAX_TOP_LOGPROBS)?;
    if top.is_some_and(|top| top > 0) && !wanted {
        return Err(ApiError::invalid("top_logprobs", "only with logprobs: true"));
    }
    Ok(wanted.then_some(top.unwrap_or(0) as usize))
}

/// An entry of `choices` with a piece of an answer.
#[derive(Serialize)]
struct Piece {
    index: usize,
    delta: Delta,
    logprobs: Value,
    finish_reason: Option<&'static str>,
}

/// What a piece adds.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Delta {
    Content(String),
    ReasoningContent(String),
    ToolCalls([Value; 1]),
}

/// Answers as `chat.completion` objects.
#[derive(Debug)]
struct ChatWire {
    tokenizer: Arc<Tokenizer>,
    with_logprobs: bool,
}

impl ChatWire {
    fn logprobs(&self, reports: &[TokenReport]) -> Value {
        if !self.with_logprobs || reports.is_empty() {
            return Value::Null;
        }
        let entry = |id: u32, logprob: f32| {
            let bytes = self.tokenizer.literal_bytes(id);
            json!({ "token": String::from_utf8_lossy(bytes), "logprob": logprob, "bytes": bytes })
        };
        let content = reports.iter().map(|report| {
            let mut token = entry(report.id, report.logprobs.chosen);
            token["top_logprobs"] =
                report.logprobs.top.iter().map(|&(id, logprob)| entry(id, logprob)).collect();
            token
        });
        json!({ "content": content.collect::<Vec<_>>(), "refusal": null })
    }
}

impl Wire for ChatWire {
    const CHUNK: &'static str = "chat.completion.chunk";
    const WHOLE: &'static str = "chat.completion";

    fn opening(&self, choice: usize) -> Option<Value> {
        let delta = json!({ "role": "assistant", "content": "" });
        Some(json!({ "index": choice, "delta": delta, "logprobs": null, "finish_reason": null }))
    }

    fn piece(&mut self, choice: usize, event: OutputEvent, reports: &[TokenReport]) -> Option<String> {
        let delta = match event {
            OutputEvent::ContentDelta(text) => Delta::Content(text),
            OutputEvent::ReasoningDelta(text) => Delta::ReasoningContent(text),
            OutputEvent::ToolCallStart { index, id, name } => Delta::ToolCalls([json!({
                "index": index, "id": id, "type": "function", "function": { "name": name, "arguments": "" }
            })]),
            OutputEvent::ToolCallArgumentsDelta { index, delta } => {
                Delta::ToolCalls([json!({ "index": index, "function": { "arguments": delta } })])
            }
            OutputEvent::ToolCallEnd { .. } | OutputEvent::Finished(_) => return None,
        };
        Some(json_of(&Piece { index: choice, delta, logprobs: self.logprobs(reports), finish_reason: None }))
    }

    fn ending(&self, choice: usize, outcome: Outcome) -> Value {
        json!({ "index": choice, "delta": {}, "logprobs": null, "finish_reason": outcome.name() })
    }

    fn whole(&self, choice: usize, whole: Whole) -> Value {
        let mut message = Map::new();
        message.insert("role".into(), "assistant".into());
        let is_call_alone = whole.content.is_empty() && !whole.calls.is_empty();
        message.insert("content".into(), if is_call_alone { Value::Null } else { whole.content.into() });
        message.insert("refusal".into(), Value::Null);
        if !whole.reasoning.is_empty() {
            message.insert("reasoning_content".into(), whole.reasoning.into());
        }
        if !whole.calls.is_empty() {
            let calls = whole.calls.iter().map(|call| {
                let function = json!({ "name": call.name, "arguments": call.arguments });
                json!({ "id": call.id, "type": "function", "function": function })
            });
            message.insert("tool_calls".into(), calls.collect());
        }
        let logprobs = self.logprobs(&whole.reports);
        let finish_reason = whole.outcome.map(Outcome::name);
        json!({ "index": choice, "message": message, "logprobs": logprobs, "finish_reason": finish_reason })
    }
}
