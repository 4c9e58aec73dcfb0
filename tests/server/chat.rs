//! `POST /v1/chat/completions`: conversations, reasoning and tool calls over the wire.

use serde_json::{Value, json};

use crate::http::{Reply, post};
use crate::{Server, mock};

/// Contents one after the other: the echo then says them again.
pub(crate) const TEMPLATE: &str = "{% for m in messages %}{{ m.content }}{% endfor %}";
/// The same for a model that calls tools between tags.
pub(crate) const TOOL_TEMPLATE: &str = "{% for m in messages %}{{ m.content }}{% endfor %}{# <tool_call> #}";

pub(crate) fn plain(flags: &[&str]) -> Server {
    Server::start_chat(flags, mock::byte_tokenizer(), Some(TEMPLATE))
}

pub(crate) fn chat(server: &Server, body: &Value) -> Reply {
    post(server.addr, "/v1/chat/completions", body)
}

pub(crate) fn user(text: &str) -> Value {
    json!([{ "role": "user", "content": text }])
}

pub(crate) fn refused(server: &Server, body: &Value, param: &str) -> Value {
    let reply = chat(server, body);
    let (status, error) = (reply.status, reply.json());
    assert_eq!((status, &error["error"]["param"]), (400, &json!(param)), "{body}: {error}");
    error["error"]["code"].clone()
}

pub(crate) fn weather() -> Value {
    let parameters = json!({ "type": "object", "properties": { "city": { "type": "string" } } });
    json!([{ "type": "function", "function": { "name": "weather", "parameters": parameters } }])
}

/// What a client's program makes of a stream's deltas: content, reasoning, calls and the finish reason.
pub(crate) fn gathered(chunks: &[Value]) -> (String, String, Vec<(String, String, String)>, Value) {
    let (mut content, mut reasoning, mut calls, mut reason) =
        (String::new(), String::new(), vec![], Value::Null);
    for chunk in chunks {
        let choice = &chunk["choices"][0];
        let delta = &choice["delta"];
        content += delta["content"].as_str().unwrap_or_default();
        reasoning += delta["reasoning_content"].as_str().unwrap_or_default();
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            if call.get("id").is_some() {
                assert_eq!(
                    (call["index"].as_u64(), &call["type"]),
                    (Some(calls.len() as u64), &json!("function"))
                );
                calls.push((text(&call["id"]), text(&call["function"]["name"]), String::new()));
            }
            let index = call["index"].as_u64().unwrap() as usize;
            calls[index].2 += &text(&call["function"]["arguments"]);
        }
        if !choice["finish_reason"].is_null() {
            assert!(reason.is_null(), "one end only");
            reason = choice["finish_reason"].clone();
        }
    }
    (content, reasoning, calls, reason)
}

#[test]
fn a_whole_answer_has_every_field() {
    let server = plain(&[]);
    let reply = chat(&server, &json!({ "model": "echo", "messages": user("hello") }));
    assert_eq!(reply.status, 200);
    let body = reply.json();
    assert!(body["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!((&body["object"], &body["model"]), (&json!("chat.completion"), &json!("echo")));
    let message = json!({ "role": "assistant", "content": "hello", "refusal": null });
    let choice = json!({ "index": 0, "message": message, "logprobs": null, "finish_reason": "length" });
    assert_eq!(body["choices"], json!([choice]));
    assert_eq!(body["usage"]["total_tokens"], 10);
}

#[test]
fn a_stream_begins_with_the_role_and_ends_with_usage() {
    let server = plain(&[]);
    let body =
        json!({ "messages": user("hello"), "stream": true, "stream_options": { "include_usage": true } });
    let chunks = chat(&server, &body).chunks();
    assert_eq!(chunks[0]["object"], "chat.completion.chunk");
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({ "role": "assistant", "content": "" }));
    let (usage, pieces) = chunks.split_last().unwrap();
    assert_eq!((&usage["choices"], &usage["usage"]["prompt_tokens"]), (&json!([]), &json!(5)));
    assert_eq!(usage["usage"]["prompt_tokens_details"], json!({ "cached_tokens": 2 }));
    let (content, _, _, reason) = gathered(pieces);
    assert_eq!((content.as_str(), reason), ("hello", json!("length")));
    assert_eq!(pieces.last().unwrap()["choices"][0]["delta"], json!({}));
}

#[test]
fn messages_may_have_every_shape_that_clients_send() {
    let server = plain(&[]);
    let call = json!({ "id": "c1", "type": "function", "function": { "name": "f", "arguments": "{}" } });
    let messages = json!([
        { "role": "system", "content": "a" },
        { "role": "developer", "content": "b", "name": "dev" },
        { "role": "user", "content": [{ "type": "text", "text": "c" }, { "type": "text", "text": "d" }] },
        { "role": "assistant", "content": null, "tool_calls": [call], "reasoning_content": "thought" },
        { "role": "tool", "tool_call_id": "c1", "content": "e", "unknown": 1 },
        { "role": "assistant", "content": "f", "reasoning": "also thought", "refusal": null },
    ]);
    let body = chat(&server, &json!({ "messages": messages, "max_completion_tokens": 50 })).json();
    let text = body["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(text.starts_with("abc\nd") && text.ends_with("ef"), "{body}");
}

#[test]
fn every_part_at_fault_is_named() {
    let server = plain(&[]);
    let image = json!([{ "type": "image_url", "image_url": { "url": "data:" } }]);
    for (messages, param) in [
        (Value::Null, "messages"),
        (json!([]), "messages"),
        (json!("hi"), "messages"),
        (json!(["hi"]), "messages[0]"),
        (json!([{ "content": "x" }]), "messages[0].role"),
        (json!([{ "role": "robot", "content": "x" }]), "messages[0].role"),
        (json!([{ "role": "user" }]), "messages[0].content"),
        (json!([{ "role": "user", "content": 1 }]), "messages[0].content"),
        (json!([{ "role": "user", "content": image }]), "messages[0].content[0]"),
        (json!([{ "role": "user", "content": "x", "name": 1 }]), "messages[0].name"),
        (json!([{ "role": "assistant", "tool_calls": [{}] }]), "messages[0].tool_calls[0]"),
        (
            json!([{ "role": "user", "content": "x", "tool_calls": [{ "id": "a", "function": { "name": "f", "arguments": "" } }] }]),
            "messages[0].tool_calls",
        ),
    ] {
        refused(&server, &json!({ "messages": messages }), param);
    }
    let with = |field: &str, value: &Value| {
        let mut body = json!({ "messages": user("x") });
        body[field] = value.clone();
        body
    };
    for (field, value, param) in [
        ("tools", json!({}), "tools"),
        ("tools", json!([{ "type": "web_search" }]), "tools[0].type"),
        ("tools", json!([{ "type": "function" }]), "tools[0].function.name"),
        ("tools", json!([{ "function": { "name": "a b" } }]), "tools[0].function.name"),
        ("tools", json!([{ "function": { "name": "f", "parameters": [] } }]), "tools[0].function.parameters"),
        ("tools", json!([{ "function": { "name": "f", "strict": 1 } }]), "tools[0].function.strict"),
        ("tools", json!([{ "function": { "name": "f", "strict": true } }]), "tools[0].function.strict"),
        ("tool_choice", json!("required"), "tool_choice"),
        ("tool_choice", json!("sometimes"), "tool_choice"),
        ("tool_choice", json!({ "type": "function", "function": { "name": "f" } }), "tool_choice"),
        ("response_format", json!("json"), "response_format"),
        ("response_format", json!({ "type": "xml" }), "response_format"),
        ("response_format", json!({ "type": "json_schema", "json_schema": {} }), "response_format"),
        ("reasoning_effort", json!("enormous"), "reasoning_effort"),
        ("top_logprobs", json!(2), "top_logprobs"),
        ("logprobs", json!(2), "logprobs"),
        ("functions", json!([{}]), "functions"),
        ("modalities", json!(["audio"]), "modalities"),
        ("parallel_tool_calls", json!("no"), "parallel_tool_calls"),
        ("max_completion_tokens", json!(0), "max_completion_tokens"),
        ("chat_template", json!("{{ messages }}"), "chat_template"),
        ("prediction", json!({ "type": "content" }), "prediction"),
    ] {
        refused(&server, &with(field, &value), param);
    }
    assert!(server.worker.submitted.lock().unwrap().is_empty());
    let long = user(&"x".repeat(mock::CONTEXT));
    assert_eq!(refused(&server, &json!({ "messages": long }), "prompt"), "context_length_exceeded");
    let mute = Server::start(&[]);
    refused(&mute, &json!({ "messages": user("x") }), "messages");
}

#[test]
fn fields_that_ask_for_nothing_are_accepted() {
    let server = plain(&[]);
    let body = json!({
        "messages": user("x"), "response_format": { "type": "text" }, "tool_choice": "none", "tools": weather(),
        "modalities": ["text"], "store": false, "metadata": { "a": "b" }, "user": "u", "service_tier": "auto",
        "reasoning_effort": "low", "parallel_tool_calls": true, "logprobs": false, "top_logprobs": 0,
        "stream_options": null, "n": 1, "no_stop_trim": false, "separate_reasoning": true, "audio": null,
    });
    assert_eq!(chat(&server, &body).status, 200);
}

#[test]
fn logprobs_describe_every_token_of_the_answer() {
    let server = plain(&[]);
    let body = json!({ "messages": user("hé"), "logprobs": true, "top_logprobs": 2 });
    let whole = chat(&server, &body).json();
    let tokens = whole["choices"][0]["logprobs"]["content"].as_array().unwrap().clone();
    assert_eq!(tokens.len(), 3);
    let bytes: Vec<u64> = tokens
        .iter()
        .flat_map(|token| token["bytes"].as_array().unwrap())
        .map(|byte| byte.as_u64().unwrap())
        .collect();
    assert_eq!(bytes, "hé".bytes().map(u64::from).collect::<Vec<_>>());
    assert_eq!((&tokens[0]["token"], &tokens[0]["logprob"]), (&json!("h"), &json!(-0.5)));
    assert_eq!(tokens[0]["top_logprobs"].as_array().unwrap().len(), 2);
    let mut streaming = body;
    streaming["stream"] = json!(true);
    let chunks = chat(&server, &streaming).chunks();
    let streamed: Vec<Value> = chunks
        .iter()
        .flat_map(|chunk| chunk["choices"][0]["logprobs"]["content"].as_array().cloned().unwrap_or_default())
        .collect();
    assert_eq!(streamed, tokens);
}

#[test]
fn tool_calls_are_streamed_with_their_very_bytes() {
    let server = Server::start_chat(&[], mock::byte_tokenizer(), Some(TOOL_TEMPLATE));
    let arguments = r#"{"city":  "Zürich 🙂\n", "n": 1.50}"#;
    server.script(&format!("Let me see.\n<tool_call>\n{{\"name\": \"weather\", \"arguments\": {arguments}}}\n</tool_call>\n<tool_call>\n{{\"name\": \"weather\", \"arguments\": {{}}}}\n</tool_call><|endoftext|>"));
    let body = json!({ "messages": user("x"), "tools": weather(), "max_tokens": 500 });
    let whole = chat(&server, &body).json();
    let choice = &whole["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls");
    assert_eq!(
        choice["message"]["tool_calls"][0]["function"],
        json!({ "name": "weather", "arguments": arguments })
    );
    let mut streaming = body.clone();
    streaming["stream"] = json!(true);
    let (content, _, calls, reason) = gathered(&chat(&server, &streaming).chunks());
    assert_eq!((content.trim(), reason, calls.len()), ("Let me see.", json!("tool_calls"), 2));
    assert_eq!((calls[0].1.as_str(), calls[0].2.as_str()), ("weather", arguments));
    assert_ne!(calls[0].0, calls[1].0, "ids differ");
    // One call only, when the client cannot take more.
    streaming["parallel_tool_calls"] = json!(false);
    let (_, _, calls, reason) = gathered(&chat(&server, &streaming).chunks());
    assert_eq!((calls.len(), reason), (1, json!("tool_calls")));
    // No tools, no calls: the same bytes are text.
    let mut toolless = body;
    toolless["tool_choice"] = json!("none");
    let whole = chat(&server, &toolless).json();
    assert!(whole["choices"][0]["message"]["content"].as_str().unwrap().contains("<tool_call>"));
    assert_eq!(whole["choices"][0]["finish_reason"], "stop");
}

#[test]
fn harmony_becomes_reasoning_content_and_calls() {
    let server = Server::start_chat(&[], mock::harmony_tokenizer(), None);
    server.script(
        "<|channel|>analysis<|message|>Think <b>hard</b>.<|end|><|start|>assistant<|channel|>final<|message|>Answer.<|return|>",
    );
    let body = json!({ "messages": user("x"), "max_tokens": 500, "stream": true, "reasoning_effort": "high",
        "stream_options": { "include_usage": true } });
    let chunks = chat(&server, &body).chunks();
    let (usage, pieces) = chunks.split_last().unwrap();
    let (content, reasoning, calls, reason) = gathered(pieces);
    assert_eq!((content.as_str(), reasoning.as_str()), ("Answer.", "Think <b>hard</b>."));
    assert_eq!((calls.len(), reason), (0, json!("stop")));
    let counted = usage["usage"]["completion_tokens_details"]["reasoning_tokens"].as_u64().unwrap();
    assert!((18..40).contains(&counted), "{usage}");
    let prompt = server.worker.submitted.lock().unwrap()[0].prompt.clone();
    let shown = server.state.model().unwrap().tokenizer.decode(&prompt);
    assert!(shown.contains("Reasoning: high"), "{shown}");

    server.script(
        "<|channel|>analysis<|message|>Call.<|end|><|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{\"city\":\"Bern\"}<|call|>",
    );
    let body = json!({ "messages": user("x"), "max_tokens": 500, "tools": weather() });
    let whole = chat(&server, &body).json();
    let choice = &whole["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls", "{whole}");
    assert_eq!(choice["message"]["content"], Value::Null);
    assert_eq!(choice["message"]["reasoning_content"], "Call.");
    let function = &choice["message"]["tool_calls"][0]["function"];
    assert_eq!(function, &json!({ "name": "weather", "arguments": "{\"city\":\"Bern\"}" }));
    // The answer and the tool's result go back as the client got them.
    let result = json!({ "role": "tool", "tool_call_id": choice["message"]["tool_calls"][0]["id"], "content": "sunny" });
    let messages = json!([{ "role": "user", "content": "x" }, choice["message"], result]);
    assert_eq!(chat(&server, &json!({ "messages": messages, "tools": weather() })).status, 200);
}

#[test]
fn malformed_harmony_is_an_answer_and_never_a_fault() {
    let server = Server::start_chat(&[], mock::harmony_tokenizer(), None);
    for script in [
        "<|channel|><|channel|><|message|>",
        "<|start|>robot<|message|>?<|end|>",
        "<|channel|>commentary to=functions.weather<|message|>{\"city\": <|call|>",
        "no markers at all",
        "<|constrain|><|end|><|start|>",
    ] {
        server.script(script);
        for stream in [false, true] {
            let body =
                json!({ "messages": user("x"), "tools": weather(), "max_tokens": 400, "stream": stream });
            let reply = chat(&server, &body);
            assert_eq!(reply.status, 200, "{script}");
            if stream {
                let (content, ..) = gathered(&reply.chunks());
                assert!(!content.contains("<|"), "{script}: {content}");
            }
        }
    }
}

#[test]
fn fifty_streams_at_once_are_each_their_own() {
    let server = plain(&[]);
    let addr = server.addr;
    let threads: Vec<_> = (0..50)
        .map(|n| {
            std::thread::spawn(move || {
                let text = format!("stream number {n}, and nothing else");
                let body = json!({ "messages": user(&text), "stream": true });
                let chunks = post(addr, "/v1/chat/completions", &body).chunks();
                assert_eq!(gathered(&chunks).0, text);
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}
