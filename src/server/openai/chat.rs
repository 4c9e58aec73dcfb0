//! `POST /v1/chat/completions`: the next message of a conversation.

use std::sync::{Arc, OnceLock};

use axum::extract::{Request, State};
use axum::response::Response;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::admission::{Admitted, Prompts, submit};
use super::answers::TokenReport;
use super::grammar::{Grammars, Schema};
use super::parameters::{MAX_TOP_LOGPROBS, Parameters};
use super::reply::{Head, Whole, Wire, json_of, reply};
use super::{error, messages, refused};
use crate::random;
use crate::server::body::Fields;
use crate::server::error::{ApiError, ErrorCode};
use crate::server::log::TextPrint;
use crate::server::off_thread::off_thread;
use crate::server::record::{self, Outcome};
use crate::server::state::{LoadedModel, ServerState};
use crate::text::chat::{
    ChatError, ChatFormat, Conversation, OutputEvent, OutputParser, ParserOptions, ReasoningEffort,
    RenderOptions, ResponseFormat,
};
use crate::text::{DecodeOptions, SpecialParsing, Tokenizer};

/// `POST /v1/chat/completions`.
pub async fn chat_completions(State(state): State<Arc<ServerState>>, request: Request) -> Response {
    let mut id = None;
    match answer(&state, request, &mut id).await {
        Ok(response) => response,
        Err(error) => {
            record::refused(&state.tally, id.as_deref(), &error);
            error::refusal(&error)
        }
    }
}

async fn answer(
    state: &ServerState,
    request: Request,
    id: &mut Option<String>,
) -> Result<Response, ApiError> {
    let Admitted { model, mut fields, id, mut job, deadline } =
        Admitted::read(state, request, "chatcmpl-", id).await?;
    let tokenizer = &model.tokenizer;
    let max_tokens = ["max_completion_tokens", "max_tokens"];
    let mut parameters = Parameters::take(&mut fields, state, tokenizer, &max_tokens)?;
    parameters.sampling.logprobs = logprobs(&mut fields)?;
    if fields.switch("skip_special_tokens")? == Some(false) {
        return Err(refused::unsupported("skip_special_tokens"));
    }
    let single_call = fields.switch("parallel_tool_calls")? == Some(false);
    let format = AnswerFormat::take(&mut fields)?;
    let chat = Chat::take(&mut fields, model, format)?;
    let tool_names: Vec<String> = chat.options.tools.iter().map(|tool| tool.name.clone()).collect();
    let format = Arc::clone(&chat.format);
    let work = {
        let (tokenizer, grammars) = (Arc::clone(tokenizer), Arc::clone(&model.grammars));
        move || {
            let schema = chat.schema(&tokenizer, &grammars)?;
            Ok((chat.opened(&tokenizer), schema, chat.prompts(&tokenizer)?))
        }
    };
    let (opened, schema, prompts) = off_thread(&mut job, deadline, work).await?;
    parameters.schema = schema;

    let head = Head::begin(state, &id);
    let parser = |_| {
        let options = ParserOptions {
            tool_names: tool_names.clone(),
            call_id_prefix: format!("call_{}_", &random::uuid()[..8]),
            decode: DecodeOptions { stops: parameters.stop.clone(), ..DecodeOptions::default() },
        };
        let mut parser = OutputParser::for_model(tokenizer, &format, options);
        for &id in &opened {
            parser.push(id);
        }
        parser
    };
    let mut answers = submit(state, model, (id, job, deadline), &prompts, &parameters, parser)?;
    if single_call {
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

/// `response_format`: text, or JSON that keeps to a schema.
#[derive(Clone, Debug)]
pub enum AnswerFormat {
    /// Anything.
    Text,
    /// What the schema allows.
    Json {
        /// The schema.
        schema: Value,
        /// What models that know of schemas are shown.
        shown: Option<ResponseFormat>,
    },
}

impl AnswerFormat {
    /// Takes the field.
    ///
    /// # Errors
    ///
    /// 400 for another format, or a schema that is no object.
    pub fn take(fields: &mut Fields) -> Result<Self, ApiError> {
        let Some(format) = fields.object("response_format")? else { return Ok(Self::Text) };
        match format.get("type").and_then(Value::as_str) {
            Some("text") => Ok(Self::Text),
            Some("json_object") => Ok(Self::Json { schema: json!({ "type": "object" }), shown: None }),
            Some("json_schema") => {
                let described = format.get("json_schema").unwrap_or(&Value::Null);
                let text = |field: &str| described.get(field).and_then(Value::as_str).map(str::to_owned);
                let schema = described.get("schema").filter(|schema| schema.is_object()).cloned();
                let rule = "expected json_schema: {name, schema} with an object for schema";
                let schema = schema.ok_or_else(|| ApiError::invalid("response_format", rule))?;
                let (name, description) =
                    (text("name").unwrap_or_else(|| "answer".into()), text("description"));
                let shown = Some(ResponseFormat { name, description, schema: schema.clone() });
                Ok(Self::Json { schema, shown })
            }
            _ => Err(ApiError {
                detail: Some("unsupported_value"),
                ..ApiError::invalid("response_format", "expected type text, json_object or json_schema")
            }),
        }
    }
}

/// What is rendered into a prompt.
#[derive(Debug)]
pub struct Chat {
    /// How the model is prompted.
    pub format: Arc<ChatFormat>,
    /// The messages.
    pub conversation: Conversation,
    /// Everything else the prompt depends on.
    pub options: RenderOptions,
    answer: AnswerFormat,
    messages: Value,
}

impl Chat {
    /// Takes the fields that make the prompt.
    ///
    /// # Errors
    ///
    /// 400 that names the place at fault, also for a model that nobody told how conversations look.
    pub fn take(fields: &mut Fields, model: &LoadedModel, answer: AnswerFormat) -> Result<Self, ApiError> {
        let no_template =
            "this model has no usable chat template; its operator can name one with --chat-template";
        let format = model.chat.as_ref().ok_or_else(|| ApiError::invalid("messages", no_template))?;
        let messages = fields.present("messages").ok_or_else(|| ApiError::invalid("messages", "required"))?;
        let conversation = messages::conversation(&messages)?;
        let options = RenderOptions {
            tools: messages::tools(fields)?,
            reasoning_effort: reasoning_effort(fields)?,
            add_generation_prompt: fields.switch("add_generation_prompt")?.unwrap_or(true),
            template_variables: fields.object("chat_template_kwargs")?.unwrap_or_default(),
            response_format: match &answer {
                AnswerFormat::Json { shown, .. } => shown.clone(),
                AnswerFormat::Text => None,
            },
            ..RenderOptions::default()
        };
        if matches!(answer, AnswerFormat::Json { .. }) && !options.tools.is_empty() {
            let rule = "JSON is not promised where the model may call tools instead";
            return Err(ApiError {
                detail: Some("unsupported_value"),
                ..ApiError::invalid("response_format", rule)
            });
        }
        if fields.get("chat_template").is_some() {
            return Err(refused::unsupported("chat_template"));
        }
        Ok(Self { format: Arc::clone(format), conversation, options, answer, messages })
    }

    /// The one prompt. Takes the processor's time.
    ///
    /// # Errors
    ///
    /// 400 for a conversation that the model's template refuses.
    pub fn prompts(&self, tokenizer: &Tokenizer) -> Result<Prompts, ApiError> {
        let mut ids =
            self.format.render(&self.conversation, &self.options).map_err(|error| unrendered(&error))?;
        if ids.is_empty() {
            return Err(ApiError::invalid("messages", "the model's chat template makes no prompt of them"));
        }
        ids.extend(self.opened(tokenizer));
        Ok(Prompts { ids: vec![ids], print: TextPrint::of(&self.messages.to_string()) })
    }

    /// What the prompt says of the answer already. A model that answers in harmony is brought straight to its final
    /// message when that must keep to a schema: what it might write before could not be held to anything.
    pub fn opened(&self, tokenizer: &Tokenizer) -> Vec<u32> {
        match (&self.answer, self.format.harmony_markers()) {
            (AnswerFormat::Json { .. }, Some(markers)) => {
                let name = tokenizer.encode("final", SpecialParsing::Plain);
                [&[markers.channel], &name[..], &[markers.message]].concat()
            }
            _ => vec![],
        }
    }

    /// The rules the answer keeps to. Takes the processor's time.
    ///
    /// # Errors
    ///
    /// 400 for a schema that cannot be enforced.
    pub fn schema(
        &self,
        tokenizer: &Arc<Tokenizer>,
        grammars: &OnceLock<Result<Arc<Grammars>, String>>,
    ) -> Result<Option<Schema>, ApiError> {
        let AnswerFormat::Json { schema, .. } = &self.answer else { return Ok(None) };
        let grammars = grammars.get_or_init(|| Grammars::of(tokenizer).map(Arc::new)).as_ref();
        let grammars = grammars.map_err(|reason| ApiError::invalid("response_format", reason))?;
        let end_ids = match self.format.harmony_markers() {
            Some(markers) => vec![markers.done],
            None => tokenizer.stop_ids().to_vec(),
        };
        grammars.compile(schema.clone(), end_ids).map(Some)
    }
}

/// A conversation without a prompt: most templates have a shape of conversation in mind, and say so by failing.
pub fn unrendered(error: &ChatError) -> ApiError {
    match error {
        ChatError::Gguf(_) | ChatError::Read { .. } => ApiError::of(ErrorCode::Internal, error.to_string()),
        _ => ApiError::invalid("messages", error),
    }
}

fn reasoning_effort(fields: &mut Fields) -> Result<Option<ReasoningEffort>, ApiError> {
    let Some(name) = fields.optional_string("reasoning_effort")? else { return Ok(None) };
    let rule = "expected none, minimal, low, medium, high, xhigh or max";
    ReasoningEffort::parse(&name).map(Some).ok_or_else(|| ApiError::invalid("reasoning_effort", rule))
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
