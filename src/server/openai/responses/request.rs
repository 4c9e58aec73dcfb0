//! The fields of a response's request, and what the response says of them again.

use serde_json::{Map, Value, json};

use super::super::parameters::{MAX_TOP_LOGPROBS, Parameters};
use super::super::prompt::{AnswerFormat, Chat, reasoning_effort};
use super::super::refused;
use super::super::reply::unix_seconds;
use super::super::tools::{ToolUse, tool};
use super::input;
use crate::server::body::Fields;
use crate::server::error::ApiError;
use crate::server::state::{LoadedModel, ServerState};
use crate::text::chat::ReasoningEffort;

/// Most pairs of `metadata`, and most characters of a key and of a value.
const MAX_METADATA: (usize, usize, usize) = (16, 64, 512);
/// What `include` may ask for. Reasoning is never encrypted: its text is part of the items already.
pub const INCLUDABLE: [&str; 2] = ["message.output_text.logprobs", "reasoning.encrypted_content"];

/// What would need a store of responses, or a server that runs tools of its own; as [`refused`] has them.
pub const STATEFUL: refused::Neutral = &[
    ("background", &["false"]),
    ("context_management", &["[]"]),
    ("conversation", &[]),
    ("n", &["1"]),
    ("previous_response_id", &[]),
    ("prompt", &[]),
    ("truncation", &["\"disabled\""]),
];

/// A request whose fields are within their bounds.
#[derive(Debug)]
pub(super) struct ResponseRequest {
    /// How to generate.
    pub(super) parameters: Parameters,
    /// What to answer.
    pub(super) chat: Chat,
    /// The response's members that do not change.
    pub(super) echo: Echo,
}

impl ResponseRequest {
    /// Takes the fields.
    ///
    /// # Errors
    ///
    /// 400 that names the first field at fault; 404 for another model's name.
    pub(super) fn take(
        fields: &mut Fields,
        state: &ServerState,
        model: &LoadedModel,
    ) -> Result<Self, ApiError> {
        refused::check_all(fields, STATEFUL)?;
        stream_options(fields)?;
        let mut parameters = Parameters::take(fields, state, &model.tokenizer, &["max_output_tokens"])?;
        parameters.sampling.logprobs = logprobs(fields)?;
        let echo = Echo::take(fields, &parameters)?;
        let instructions = fields.optional_string("instructions")?;
        let input = fields.present("input").ok_or_else(|| ApiError::invalid("input", "required"))?;
        let conversation = input::conversation(&input, instructions.as_deref())?;
        let effort = effort(fields)?;
        let tool_use = tool_use(fields)?;
        let chat = Chat::of(model, "input", conversation, input)?
            .answered(format(fields)?, tool_use, effort)
            .with_flat_tools();
        Ok(Self { parameters, chat, echo })
    }
}

fn stream_options(fields: &mut Fields) -> Result<(), ApiError> {
    let Some(options) = fields.object("stream_options")? else { return Ok(()) };
    match Fields::from(options).switch("include_obfuscation") {
        Ok(None | Some(false)) => Ok(()),
        _ => Err(refused::unsupported("stream_options.include_obfuscation")),
    }
}

/// `include` and `top_logprobs`: how many alternatives to report, if any report is wanted.
fn logprobs(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    let included = fields.strings("include", 64)?;
    if included.iter().any(|part| !INCLUDABLE.contains(&part.as_str())) {
        return Err(ApiError {
            detail: Some("unsupported_value"),
            ..ApiError::invalid("include", format_args!("expected some of {}", INCLUDABLE.join(", ")))
        });
    }
    let top = fields.integer("top_logprobs", 0, MAX_TOP_LOGPROBS)?.unwrap_or(0) as usize;
    Ok((top > 0 || included.iter().any(|part| part == INCLUDABLE[0])).then_some(top))
}

fn effort(fields: &mut Fields) -> Result<Option<ReasoningEffort>, ApiError> {
    let Some(reasoning) = fields.object("reasoning")? else { return Ok(None) };
    let summary = reasoning.get("summary").or_else(|| reasoning.get("generate_summary"));
    // The model's words are shown as they are; `auto` leaves it to the server.
    if summary.is_some_and(|summary| !summary.is_null() && summary != "auto") {
        return Err(refused::unsupported("reasoning.summary"));
    }
    match reasoning.get("effort") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(name)) => reasoning_effort(name, "reasoning.effort").map(Some),
        Some(_) => Err(ApiError::invalid("reasoning.effort", "expected a string")),
    }
}

/// `text.format`: here the schema's members stand beside the type.
fn format(fields: &mut Fields) -> Result<AnswerFormat, ApiError> {
    let Some(text) = fields.object("text")? else { return Ok(AnswerFormat::Text) };
    if text.get("verbosity").is_some_and(|verbosity| !verbosity.is_null() && verbosity != "medium") {
        return Err(refused::unsupported("text.verbosity"));
    }
    match text.get("format") {
        None | Some(Value::Null) => Ok(AnswerFormat::Text),
        Some(format) => AnswerFormat::of(format.get("type").and_then(Value::as_str), format, "text.format"),
    }
}

/// `tools` and `tool_choice`: here a function's members stand beside its type.
fn tool_use(fields: &mut Fields) -> Result<ToolUse, ApiError> {
    let function = |item: Value, index: usize| {
        let place = format!("tools[{index}]");
        let Value::Object(mut function) = item else {
            return Err(ApiError::invalid(place, "expected an object"));
        };
        if function.remove("type").is_none_or(|kind| kind != "function") {
            return Err(ApiError {
                detail: Some("unsupported_value"),
                ..ApiError::invalid(format!("{place}.type"), "expected function")
            });
        }
        tool(json!({ "type": "function", "function": function }), &place)
    };
    ToolUse::read(fields, function, |choice| choice.get("name").cloned())
}

/// The members of a response that do not change while it is made.
#[derive(Clone, Debug)]
pub(super) struct Echo {
    object: Map<String, Value>,
    /// The end of the response's id, from which the ids of its items are made.
    pub(super) suffix: String,
}

impl Echo {
    /// Notes what the fields say, and takes those that only this is done with.
    fn take(fields: &mut Fields, parameters: &Parameters) -> Result<Self, ApiError> {
        let metadata = metadata(fields)?;
        let max_tool_calls = fields.integer("max_tool_calls", 1, u64::from(u32::MAX))?;
        let [prompt_cache_key, safety_identifier, user] =
            ["prompt_cache_key", "safety_identifier", "user"].map(|field| fields.optional_string(field));
        let reasoning = fields.get("reasoning");
        let part = |of: Option<&Value>, name: &str| of.and_then(|of| of.get(name)).cloned();
        let tools: Vec<Value> = match fields.get("tools") {
            Some(Value::Array(tools)) => tools.iter().map(shown_tool).collect(),
            _ => vec![],
        };
        let format = part(fields.get("text"), "format").filter(|format| !format.is_null());
        let object = json!({
            "id": null,
            "object": "response",
            "created_at": null,
            "status": "in_progress",
            "background": false,
            "error": null,
            "incomplete_details": null,
            "instructions": fields.get("instructions"),
            "max_output_tokens": parameters.max_tokens,
            "max_tool_calls": max_tool_calls,
            "metadata": metadata,
            "model": null,
            "output": [],
            "parallel_tool_calls": fields.get("parallel_tool_calls").is_none_or(|several| *several != false),
            "previous_response_id": null,
            "prompt_cache_key": prompt_cache_key?,
            "reasoning": { "effort": part(reasoning, "effort"), "summary": null },
            "safety_identifier": safety_identifier?,
            "service_tier": "default",
            "store": false,
            "temperature": parameters.sampling.temperature,
            "text": { "format": format.unwrap_or_else(|| json!({ "type": "text" })), "verbosity": "medium" },
            "tool_choice": fields.get("tool_choice").cloned().unwrap_or_else(|| json!("auto")),
            "tools": tools,
            "top_logprobs": parameters.sampling.logprobs.unwrap_or(0),
            "top_p": parameters.sampling.top_p,
            "truncation": "disabled",
            "usage": null,
            "user": user?,
        });
        let Value::Object(object) = object else { return Err(ApiError::invalid("input", "required")) };
        Ok(Self { object, suffix: String::new() })
    }

    /// Names the response and its model.
    pub(super) fn begin(&mut self, id: &str, state: &ServerState) {
        self.suffix = id.strip_prefix("resp_").unwrap_or(id).into();
        self.object.insert("id".into(), id.into());
        self.object.insert("created_at".into(), unix_seconds().into());
        self.object.insert("model".into(), state.model_name().into());
    }

    /// The response with these members changed.
    pub(super) fn response(&self, changed: Value) -> Value {
        let mut object = self.object.clone();
        if let Value::Object(changed) = changed {
            object.extend(changed);
        }
        Value::Object(object)
    }
}

/// A tool as responses show it: every member is there.
fn shown_tool(tool: &Value) -> Value {
    let part = |name: &str| tool.get(name).cloned().unwrap_or(Value::Null);
    json!({
        "type": "function", "name": part("name"), "description": part("description"),
        "parameters": part("parameters"), "strict": tool.get("strict").is_some_and(|strict| *strict == true),
    })
}

fn metadata(fields: &mut Fields) -> Result<Map<String, Value>, ApiError> {
    let metadata = fields.object("metadata")?.unwrap_or_default();
    let (most, key_chars, value_chars) = MAX_METADATA;
    let fits = |(key, value): (&String, &Value)| {
        let value = value.as_str().is_some_and(|value| value.chars().count() <= value_chars);
        value && key.chars().count() <= key_chars
    };
    if metadata.len() > most || !metadata.iter().all(fits) {
        return Err(ApiError::invalid(
            "metadata",
            format_args!(
                "expected at most {most} strings of {value_chars} characters, with keys of {key_chars}"
            ),
        ));
    }
    Ok(metadata)
}
