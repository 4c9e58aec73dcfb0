//! Schemas of what the routes answer.

use serde_json::{Map, Value, json};

/// An object of exactly these members, all of them present.
fn object(members: Value) -> Value {
    let names: Vec<String> = members.as_object().into_iter().flat_map(Map::keys).cloned().collect();
    let mut schema = json!({ "type": "object", "required": names, "additionalProperties": false });
    schema["properties"] = members;
    schema
}

/// An object of these members, those named being optional.
fn object_but(members: Value, optional: &[&str]) -> Value {
    let mut schema = object(members);
    if let Some(required) = schema["required"].as_array_mut() {
        required.retain(|name| !optional.iter().any(|optional| name == optional));
    }
    schema
}

fn a(kind: &str) -> Value {
    json!({ "type": kind })
}

fn or_null(kind: &str) -> Value {
    json!({ "type": [kind, "null"] })
}

fn list(items: Value) -> Value {
    let mut schema = a("array");
    schema["items"] = items;
    schema
}

fn one_of(values: &[&str]) -> Value {
    json!({ "enum": values })
}

fn count() -> Value {
    json!({ "type": "integer", "minimum": 0 })
}

/// A schema, or `null`.
fn nullable(schema: Value) -> Value {
    json!({ "anyOf": Value::from(vec![schema, a("null")]) })
}

/// All of them, by name.
pub(super) fn schemas() -> Vec<(&'static str, Value)> {
    let mut schemas = vec![
        ("Live", object(json!({ "live": { "enum": [true] } }))),
        ("Ready", object(json!({ "ready": a("boolean") }))),
        ("Health", health()),
        ("Metrics", json!({ "type": "string", "description": "Prometheus' text format, version 0.0.4." })),
        ("Document", json!({ "type": "object", "required": ["openapi", "paths"] })),
        ("Nothing", object(json!({}))),
        ("Cancelling", object(json!({ "job_id": a("string") }))),
        ("Draining", object(json!({ "status": one_of(&["draining"]) }))),
        ("Text", object(json!({ "prompt": a("string"), "content": a("string") }))),
        ("Prompt", object(json!({ "prompt": a("string") }))),
    ];
    schemas.extend(information());
    schemas.extend(errors());
    schemas.extend(completions());
    schemas.extend(events());
    schemas.push(("Response", response()));
    schemas
}

fn health() -> Value {
    let status = one_of(&["healthy", "degraded", "unhealthy", "loading", "draining"]);
    let bytes = object(
        json!({ "weights": count(), "kv_cache": count(), "activations": count(), "workspace": count() }),
    );
    object(json!({
        "status": status,
        "fault": or_null("string"),
        "worker_id": a("string"),
        "model": or_null("string"),
        "resident": a("boolean"),
        "quant_kind": or_null("string"),
        "vram_bytes_used": count(),
        "vram_bytes": bytes,
        "tokenizer_kind": { "enum": ["hf-json", "gguf-bpe", null] },
        "vocab_size": or_null("integer"),
        "context_length": or_null("integer"),
        "uptime_seconds": count(),
        "sm": or_null("string"),
        "cuda_driver_version": or_null("string"),
        "backend": or_null("string"),
        "device": or_null("string"),
        "oom_events": count(),
        "requests_running": count(),
        "requests_waiting": count(),
    }))
}

fn information() -> [(&'static str, Value); 5] {
    let model = object(json!({
        "id": a("string"),
        "object": one_of(&["model"]),
        "created": count(),
        "owned_by": a("string"),
        "root": or_null("string"),
        "parent": a("null"),
        "max_model_len": or_null("integer"),
    }));
    let server = object(json!({
        "version": a("string"),
        "worker_id": a("string"),
        "served_model_name": or_null("string"),
        "model_path": a("string"),
        "backend": or_null("string"),
        "context_length": or_null("integer"),
        "max_total_tokens": or_null("integer"),
        "max_tokens_out": count(),
        "uptime_seconds": count(),
        "dp_size": count(),
        "tp_size": count(),
    }));
    let information = object(json!({
        "model_path": a("string"),
        "tokenizer_path": a("string"),
        "served_model_name": or_null("string"),
        "is_generation": a("boolean"),
        "name": or_null("string"),
        "quant_kind": or_null("string"),
        "context_length": or_null("integer"),
        "tokenizer_kind": or_null("string"),
        "vocab_size": or_null("integer"),
        "chat_format": { "enum": ["harmony", "template", null] },
    }));
    let tokens = object(json!({
        "count": count(),
        "max_model_len": or_null("integer"),
        "tokens": list(count()),
        "token_strs": nullable(list(a("string"))),
    }));
    let models = object(json!({
        "object": one_of(&["list"]), "data": list(json!({ "$ref": "#/components/schemas/Model" })),
    }));
    [
        ("Model", model),
        ("Models", models),
        ("ServerInfo", server),
        ("ModelInfo", information),
        ("Tokens", tokens),
    ]
}

fn errors() -> [(&'static str, Value); 2] {
    let error = object(json!({
        "message": a("string"), "type": a("string"), "param": or_null("string"), "code": a("string"),
    }));
    let own = json!({
        "code": a("string"), "message": a("string"), "retriable": a("boolean"), "field": a("string"),
    });
    [("OpenAiError", object(json!({ "error": error }))), ("WorkerError", object_but(own, &["field"]))]
}

fn usage() -> Value {
    object(json!({
        "prompt_tokens": count(),
        "completion_tokens": count(),
        "total_tokens": count(),
        "prompt_tokens_details": object(json!({ "cached_tokens": count() })),
        "completion_tokens_details": object(json!({ "reasoning_tokens": count() })),
    }))
}

/// A token with its log-probability; `top` adds the alternatives.
fn logprob(top: bool) -> Value {
    let mut members = json!({ "token": a("string"), "logprob": a("number"), "bytes": list(count()) });
    if top {
        members["top_logprobs"] = list(logprob(false));
    }
    object(members)
}

fn completions() -> [(&'static str, Value); 2] {
    let whole = |kind: &str, choice: Value| {
        object(json!({
            "id": a("string"),
            "object": one_of(&[kind]),
            "created": count(),
            "model": a("string"),
            "system_fingerprint": a("string"),
            "choices": list(choice),
            "usage": usage(),
        }))
    };
    let finish_reason = one_of(&["stop", "length", "tool_calls"]);
    let parallel = object(json!({
        "tokens": list(a("string")),
        "token_logprobs": list(a("number")),
        "top_logprobs": list(json!({ "type": "object", "additionalProperties": a("number") })),
        "text_offset": list(count()),
    }));
    let text = object(json!({
        "index": count(), "text": a("string"), "logprobs": nullable(parallel), "finish_reason": finish_reason,
    }));
    let call = object(json!({
        "id": a("string"),
        "type": one_of(&["function"]),
        "function": object(json!({ "name": a("string"), "arguments": a("string") })),
    }));
    let message = json!({
        "role": one_of(&["assistant"]),
        "content": or_null("string"),
        "refusal": a("null"),
        "reasoning_content": a("string"),
        "tool_calls": list(call),
    });
    let reported = object(json!({ "content": list(logprob(true)), "refusal": a("null") }));
    let answer = object(json!({
        "index": count(),
        "message": object_but(message, &["reasoning_content", "tool_calls"]),
        "logprobs": nullable(reported),
        "finish_reason": finish_reason,
    }));
    [("Completion", whole("text_completion", text)), ("ChatCompletion", whole("chat.completion", answer))]
}

/// Server-sent events, each with JSON as its data; the last of a stream of chunks is `[DONE]`.
fn events() -> [(&'static str, Value); 3] {
    let event = |names: &[&str]| {
        json!({ "type": "object", "required": ["data"], "properties": {
            "event": one_of(names),
            "data": { "type": "string", "contentMediaType": "application/json" },
        } })
    };
    [
        ("ExecuteEvent", event(&["started", "token", "metrics", "end", "error"])),
        ("ChunkEvent", event(&["message"])),
        (
            "ResponseEvent",
            event(&[
                "response.created",
                "response.in_progress",
                "response.output_item.added",
                "response.content_part.added",
                "response.output_text.delta",
                "response.output_text.done",
                "response.reasoning_text.delta",
                "response.reasoning_text.done",
                "response.function_call_arguments.delta",
                "response.function_call_arguments.done",
                "response.content_part.done",
                "response.output_item.done",
                "response.completed",
                "response.incomplete",
                "response.failed",
            ]),
        ),
    ]
}

fn response() -> Value {
    let status = one_of(&["completed", "incomplete"]);
    let part = object(json!({
        "type": one_of(&["output_text"]),
        "text": a("string"),
        "annotations": { "type": "array", "maxItems": 0 },
        "logprobs": list(logprob(true)),
    }));
    let message = object(json!({
        "id": a("string"), "type": one_of(&["message"]), "role": one_of(&["assistant"]), "status": status,
        "content": list(part),
    }));
    let thought = object(json!({ "type": one_of(&["reasoning_text"]), "text": a("string") }));
    let reasoning = object(json!({
        "id": a("string"), "type": one_of(&["reasoning"]), "status": status, "summary": list(a("object")),
        "content": list(thought), "encrypted_content": a("null"),
    }));
    let call = object(json!({
        "id": a("string"), "type": one_of(&["function_call"]), "status": status, "call_id": a("string"),
        "name": a("string"), "arguments": a("string"),
    }));
    let usage = object(json!({
        "input_tokens": count(),
        "input_tokens_details": object(json!({ "cached_tokens": count() })),
        "output_tokens": count(),
        "output_tokens_details": object(json!({ "reasoning_tokens": count() })),
        "total_tokens": count(),
    }));
    object(json!({
        "id": a("string"),
        "object": one_of(&["response"]),
        "created_at": count(),
        "status": status,
        "background": { "enum": [false] },
        "error": a("null"),
        "incomplete_details": nullable(object(json!({ "reason": one_of(&["max_output_tokens"]) }))),
        "instructions": or_null("string"),
        "max_output_tokens": or_null("integer"),
        "max_tool_calls": or_null("integer"),
        "metadata": { "type": "object", "additionalProperties": a("string") },
        "model": or_null("string"),
        "output": list(json!({ "anyOf": [message, reasoning, call] })),
        "parallel_tool_calls": a("boolean"),
        "previous_response_id": a("null"),
        "prompt_cache_key": or_null("string"),
        "reasoning": object(json!({ "effort": or_null("string"), "summary": a("null") })),
        "safety_identifier": or_null("string"),
        "service_tier": one_of(&["default"]),
        "store": { "enum": [false] },
        "temperature": a("number"),
        "text": object(json!({ "format": a("object"), "verbosity": one_of(&["medium"]) })),
        "tool_choice": { "type": ["string", "object"] },
        "tools": list(a("object")),
        "top_logprobs": count(),
        "top_p": a("number"),
        "truncation": one_of(&["disabled"]),
        "usage": usage,
        "user": or_null("string"),
    }))
}
