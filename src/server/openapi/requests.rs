//! Schemas of what the routes take. Only what a route checks is described; `null` counts as absent almost everywhere.

use serde_json::{Map, Value, json};

use crate::server::execute_request::{MAX_PROMPT_CHARS, MAX_STOPS};
use crate::server::openai::parameters::{MAX_CHOICES, MAX_TOP_LOGPROBS};
use crate::server::openai::refused::{NEUTRAL, Neutral};
use crate::server::openai::responses::STATEFUL;
use crate::server::state::ServerState;

const EFFORTS: [&str; 7] = ["none", "minimal", "low", "medium", "high", "xhigh", "max"];

/// Optional: `null` is as good as absent.
fn optional(schema: Value) -> Value {
    let Value::Object(mut schema) = schema else { return schema };
    match schema.get_mut("type") {
        Some(Value::String(kind)) => {
            let kind = std::mem::take(kind);
            schema.insert("type".into(), json!([kind, "null"]));
            Value::Object(schema)
        }
        _ => json!({ "anyOf": [schema, { "type": "null" }] }),
    }
}

fn switch() -> Value {
    optional(json!({ "type": "boolean" }))
}

fn text() -> Value {
    json!({ "type": "string" })
}

fn number(low: f64, high: f64) -> Value {
    optional(json!({ "type": "number", "minimum": low, "maximum": high }))
}

fn integer(low: u64, high: usize) -> Value {
    json!({ "type": "integer", "minimum": low, "maximum": high })
}

fn list(items: Value, least: usize, most: usize) -> Value {
    let mut schema = json!({ "type": "array", "minItems": least, "maxItems": most });
    schema["items"] = items;
    schema
}

fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

fn seed() -> Value {
    let whole = json!({ "type": "integer", "minimum": i64::MIN, "maximum": u64::MAX });
    json!({ "anyOf": [whole, { "type": "string", "pattern": "^[0-9]{1,20}$" }, { "type": "null" }] })
}

/// All of them, by name. Bounds are those of this worker.
pub(super) fn schemas(state: &ServerState) -> Vec<(&'static str, Value)> {
    let last_id =
        state.model().map_or(u32::MAX as usize, |model| model.tokenizer.vocab_size().saturating_sub(1));
    let bounds = Bounds { max_tokens: state.max_tokens_out, last_id };
    let mut schemas = vec![
        ("ExecuteRequest", execute(&bounds)),
        (
            "CancelRequest",
            json!({ "type": "object", "required": ["job_id"], "properties": { "job_id": { "type": "string", "minLength": 1 } } }),
        ),
        ("AbortRequest", abort()),
        ("DetokenizeRequest", detokenize(&bounds)),
        ("TokenizeRequest", tokenize()),
        ("PromptRequest", prompt()),
        ("CompletionRequest", completion(&bounds)),
        ("ChatRequest", chat(&bounds)),
        ("ResponseRequest", response(&bounds)),
    ];
    let names = state.model_name().into_iter().chain(state.served_names.iter().skip(1).map(String::as_str));
    let names: Vec<Value> = names.map(Value::from).chain([Value::Null]).collect();
    schemas.push(("ModelName", json!({ "enum": names })));
    schemas.extend(conversation());
    schemas.extend(items());
    schemas
}

struct Bounds {
    max_tokens: usize,
    last_id: usize,
}

fn execute(bounds: &Bounds) -> Value {
    json!({ "type": "object", "required": ["job_id", "prompt"], "properties": {
        "job_id": { "type": "string", "minLength": 1, "maxLength": 256 },
        "prompt": { "type": "string", "minLength": 1, "maxLength": MAX_PROMPT_CHARS },
        "max_tokens": optional(integer(1, bounds.max_tokens)),
        "temperature": number(0.0, 2.0),
        "top_p": number(0.0, 1.0),
        "top_k": optional(integer(0, bounds.last_id + 1)),
        "min_p": number(0.0, 1.0),
        "repetition_penalty": optional(json!({ "type": "number", "exclusiveMinimum": 0, "maximum": 2 })),
        "stop": optional(list(json!({ "type": "string", "minLength": 1 }), 0, MAX_STOPS)),
        "seed": { "anyOf": [
            { "type": "integer", "minimum": 0, "maximum": u64::MAX },
            { "type": "string", "pattern": "^[0-9]{1,20}$" }, { "type": "null" },
        ] },
    } })
}

fn abort() -> Value {
    json!({ "type": "object", "properties": { "abort_all": switch() }, "anyOf": [
        { "required": ["abort_all"], "properties": { "abort_all": { "enum": [true] } } },
        { "required": ["rid"], "properties": { "rid": text() } },
    ] })
}

fn detokenize(bounds: &Bounds) -> Value {
    let ids = json!({ "type": "array", "items": integer(0, bounds.last_id) });
    json!({ "type": "object", "required": ["tokens"], "properties": { "tokens": ids, "model": reference("ModelName") } })
}

fn tokenize() -> Value {
    let absent = json!({ "type": "null" });
    let form = |field: &str, others: &[&str], add: &str| {
        let mut properties = Map::new();
        properties.insert(field.into(), text());
        properties.insert(add.into(), switch());
        properties.insert("parse_special".into(), switch());
        properties.extend(others.iter().map(|&other| (other.to_owned(), absent.clone())));
        json!({ "required": [field], "properties": properties })
    };
    json!({
        "type": "object",
        "properties": { "model": reference("ModelName"), "return_token_strs": switch() },
        "anyOf": [
            form("prompt", &["content", "messages"], "add_special_tokens"),
            form("content", &["messages"], "add_special"),
            reference("PromptRequest"),
        ],
    })
}

/// Fields that make the prompt of a conversation.
fn prompt_fields() -> Map<String, Value> {
    fields(json!({
        "model": reference("ModelName"),
        "messages": reference("Messages"),
        "tools": optional(list(reference("Tool"), 0, 128)),
        "tool_choice": { "anyOf": [
            { "enum": ["auto", "none", "required", null] },
            { "type": "object", "required": ["type", "function"], "properties": {
                "type": { "enum": ["function"] },
                "function": { "type": "object", "required": ["name"], "properties": { "name": text() } } } },
        ] },
        "parallel_tool_calls": switch(),
        "reasoning_effort": optional(json!({ "enum": EFFORTS })),
        "chat_template_kwargs": optional(json!({ "type": "object" })),
        "add_generation_prompt": switch(),
        "chat_template": { "type": "null" },
    }))
}

fn fields(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

fn prompt() -> Value {
    json!({ "type": "object", "required": ["messages"], "properties": prompt_fields() })
}

/// Fields that all routes of generation share.
fn sampling(bounds: &Bounds) -> Map<String, Value> {
    let stop = json!({ "type": "string", "minLength": 1, "maxLength": 1024 });
    let bias = json!({
        "type": "object", "maxProperties": 1024, "propertyNames": { "pattern": "^[0-9]{1,10}$" },
        "additionalProperties": { "type": "number", "minimum": -100, "maximum": 100 },
    });
    let mut fields = neutral(NEUTRAL);
    fields.extend(self::fields(json!({
        "model": reference("ModelName"),
        "stop": { "anyOf": [stop, list(stop.clone(), 0, 16), { "type": "null" }] },
        "temperature": number(0.0, 2.0),
        "top_p": number(0.0, 1.0),
        "min_p": number(0.0, 1.0),
        "top_k": optional(json!({ "type": "integer", "minimum": -1, "maximum": u32::MAX })),
        "repetition_penalty": optional(json!({ "type": "number", "exclusiveMinimum": 0, "maximum": 2 })),
        "frequency_penalty": number(-2.0, 2.0),
        "presence_penalty": number(-2.0, 2.0),
        "logit_bias": optional(bias),
        "seed": seed(),
        "stream": switch(),
        "stop_token_ids": optional(list(integer(0, bounds.last_id), 0, 1024)),
        "ignore_eos": switch(),
        "n": optional(integer(1, MAX_CHOICES)),
        "cache_salt": optional(json!({ "type": "string", "minLength": 1, "maxLength": 1024 })),
    })));
    fields
}

fn streamed(fields: &mut Map<String, Value>) {
    let options = json!({ "type": "object", "properties": { "include_usage": switch(), "continuous_usage_stats": { "enum": [false, null] } } });
    fields.insert("stream_options".into(), optional(options));
}

/// Fields of which only neutral values are taken.
fn neutral(list: Neutral) -> Map<String, Value> {
    let mut fields = Map::new();
    for (field, values) in list {
        let values = values.iter().filter_map(|value| serde_json::from_str::<Value>(value).ok());
        let values: Vec<Value> = values.chain([Value::Null]).collect();
        fields.insert((*field).to_owned(), json!({ "enum": values }));
    }
    fields
}

fn completion(bounds: &Bounds) -> Value {
    let ids = json!({ "type": "array", "items": integer(0, bounds.last_id), "minItems": 1 });
    let mut properties = sampling(bounds);
    streamed(&mut properties);
    properties.extend(fields(json!({
        "prompt": { "anyOf": [text(), list(text(), 1, 64), ids, list(ids.clone(), 1, 64)] },
        "max_tokens": optional(integer(1, bounds.max_tokens)),
        "logprobs": optional(integer(0, MAX_TOP_LOGPROBS as usize)),
        "skip_special_tokens": switch(),
        "response_format": { "enum": [{ "type": "text" }, [], null] },
        "tools": { "enum": [[], { "type": "text" }, null] },
    })));
    json!({ "type": "object", "required": ["prompt"], "properties": properties })
}

fn chat(bounds: &Bounds) -> Value {
    let mut properties = sampling(bounds);
    streamed(&mut properties);
    properties.extend(prompt_fields());
    let schema =
        json!({ "type": "object", "required": ["schema"], "properties": { "schema": { "type": "object" } } });
    properties.extend(fields(json!({
        "max_completion_tokens": optional(integer(1, bounds.max_tokens)),
        "max_tokens": optional(integer(1, bounds.max_tokens)),
        "logprobs": switch(),
        "top_logprobs": optional(integer(0, MAX_TOP_LOGPROBS as usize)),
        "skip_special_tokens": { "enum": [true, null] },
        "response_format": { "anyOf": [
            { "type": "object", "required": ["type"], "properties": { "type": { "enum": ["text", "json_object"] } } },
            { "type": "object", "required": ["type", "json_schema"],
              "properties": { "type": { "enum": ["json_schema"] }, "json_schema": schema } },
            { "type": "null" },
        ] },
    })));
    json!({ "type": "object", "required": ["messages"], "properties": properties })
}

/// A text, or a list of parts that are texts.
fn content() -> Value {
    json!({ "anyOf": [text(), { "type": "array", "items": reference("Part") }] })
}

fn conversation() -> [(&'static str, Value); 5] {
    let kind = json!({ "enum": ["text", "input_text", "output_text"] });
    let part = json!({ "type": "object", "required": ["type"], "anyOf": [
        { "required": ["text"], "properties": { "type": kind, "text": text() } },
        { "required": ["refusal"], "properties": { "type": { "enum": ["refusal"] }, "refusal": text() } },
    ] });
    let function = json!({ "type": "object", "required": ["name", "arguments"], "properties": { "name": text(), "arguments": text() } });
    let call = json!({ "type": "object", "required": ["id", "function"], "properties": { "id": text(), "function": function } });
    let shared = json!({
        "name": optional(text()),
        "tool_call_id": optional(text()),
        "reasoning_content": optional(text()),
        "function_call": { "type": "null" },
        "audio": { "type": "null" },
    });
    let message = json!({ "type": "object", "required": ["role"], "properties": shared, "anyOf": [
        { "properties": { "role": { "enum": ["assistant"] }, "content": optional(content()),
            "tool_calls": optional(list(call, 0, 128)) } },
        { "required": ["content"], "properties": {
            "role": { "enum": ["system", "developer", "user", "tool", "function"] }, "content": content(),
            "tool_calls": optional(json!({ "type": "array", "maxItems": 0 })) } },
    ] });
    let tool = json!({ "type": "object", "required": ["function"], "properties": {
        "type": { "enum": ["function"] },
        "function": { "type": "object", "required": ["name"], "properties": function_members() } } });
    [
        ("Part", part),
        ("Message", message),
        ("Messages", list(reference("Message"), 1, 8192)),
        ("Tool", tool),
        ("FlatTool", flat_tool()),
    ]
}

fn function_members() -> Map<String, Value> {
    fields(json!({
        "name": { "type": "string", "pattern": "^[a-zA-Z0-9_.-]{1,128}$" },
        "description": optional(text()),
        "parameters": optional(json!({ "type": "object" })),
        "strict": switch(),
    }))
}

fn flat_tool() -> Value {
    let mut members = function_members();
    members.insert("type".into(), json!({ "enum": ["function"] }));
    json!({ "type": "object", "required": ["type", "name"], "properties": members })
}

fn items() -> [(&'static str, Value); 1] {
    let parts = |kind: &str| {
        let part = json!({ "type": "object", "required": ["type", "text"], "properties": { "type": { "enum": [kind] }, "text": text() } });
        optional(json!({ "type": "array", "items": part }))
    };
    let item = json!({ "type": "object", "anyOf": [
        { "required": ["role", "content"], "properties": { "type": { "enum": ["message", null] },
            "role": { "enum": ["system", "developer", "user", "assistant"] }, "content": content() } },
        { "required": ["type"], "properties": { "type": { "enum": ["reasoning"] },
            "summary": parts("summary_text"), "content": parts("reasoning_text") } },
        { "required": ["type", "call_id", "name", "arguments"], "properties": { "type": { "enum": ["function_call"] },
            "call_id": text(), "name": text(), "arguments": text() } },
        { "required": ["type", "call_id", "output"], "properties": { "type": { "enum": ["function_call_output"] },
            "call_id": text(), "output": content() } },
    ] });
    [("Item", item)]
}

fn response(bounds: &Bounds) -> Value {
    let mut properties = sampling(bounds);
    properties.extend(neutral(STATEFUL));
    let format = json!({ "anyOf": [
        { "type": "object", "required": ["type"], "properties": { "type": { "enum": ["text", "json_object"] } } },
        { "type": "object", "required": ["type", "schema"],
          "properties": { "type": { "enum": ["json_schema"] }, "schema": { "type": "object" } } },
        { "type": "null" },
    ] });
    let metadata = json!({
        "type": "object", "maxProperties": 16, "propertyNames": { "maxLength": 64 },
        "additionalProperties": { "type": "string", "maxLength": 512 },
    });
    properties.extend(fields(json!({
        "input": { "anyOf": [text(), list(reference("Item"), 1, 8192)] },
        "instructions": optional(text()),
        "max_output_tokens": optional(integer(1, bounds.max_tokens)),
        "max_tool_calls": optional(integer(1, u32::MAX as usize)),
        "metadata": optional(metadata),
        "parallel_tool_calls": switch(),
        "reasoning": optional(json!({ "type": "object", "properties": {
            "effort": optional(json!({ "enum": EFFORTS })), "summary": { "enum": ["auto", null] } } })),
        "text": optional(json!({ "type": "object", "properties": {
            "format": format, "verbosity": { "enum": ["medium", null] } } })),
        "tools": optional(list(reference("FlatTool"), 0, 128)),
        "tool_choice": { "anyOf": [
            { "enum": ["auto", "none", "required", null] },
            { "type": "object", "required": ["type", "name"],
              "properties": { "type": { "enum": ["function"] }, "name": text() } },
        ] },
        "include": optional(list(json!({ "enum": super::super::openai::responses::INCLUDABLE }), 0, 64)),
        "top_logprobs": optional(integer(0, MAX_TOP_LOGPROBS as usize)),
        "stream_options": optional(json!({ "type": "object", "properties": {
            "include_obfuscation": { "enum": [false, null] } } })),
        "prompt_cache_key": optional(text()),
        "safety_identifier": optional(text()),
        "user": optional(text()),
    })));
    json!({ "type": "object", "required": ["input"], "properties": properties })
}
