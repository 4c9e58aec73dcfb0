//! What users of other servers complained of, each as a test named after the fault. Those of the parser, the tokenizer
//! and the engine stand with their parts.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::chat::{TOOL_TEMPLATE, chat, gathered, plain, user};
use crate::http::post;
use crate::{Server, mock};

fn weather() -> Value {
    json!([{ "type": "function", "function": { "name": "weather", "parameters": { "type": "object" } } }])
}

/// A history with a call whose arguments the model got wrong: clients send it back as it came.
#[test]
fn arguments_that_are_no_json_in_the_history_are_a_server_error() {
    let template = "{% for m in messages %}{% for c in m.tool_calls %}{{ c.function.arguments | tojson }}{% endfor %}\
                    {{ m.content }}{% endfor %}{# <tool_call> #}";
    for server in [
        Server::start_chat(&[], mock::byte_tokenizer(), Some(template)),
        Server::start_chat(&[], mock::harmony_tokenizer(), None),
    ] {
        for arguments in ["", "{", "{\"city\": \"Ber", "city=Bern", "[1]", "<|call|>", "null"] {
            let call = json!({ "id": "c", "type": "function", "function": { "name": "weather", "arguments": arguments } });
            let messages = json!([{ "role": "user", "content": "x" },
                { "role": "assistant", "content": null, "tool_calls": [call] },
                { "role": "tool", "tool_call_id": "c", "content": "error: bad arguments" }]);
            let reply = chat(&server, &json!({ "messages": messages, "tools": weather() }));
            let status = reply.status;
            assert_eq!(status, 200, "{arguments}: {}", reply.text());
        }
    }
}

#[test]
fn a_call_with_arguments_that_are_no_json_is_lost_or_a_server_error() {
    let server = Server::start_chat(&[], mock::harmony_tokenizer(), None);
    server
        .script("<|channel|>commentary to=functions.weather <|constrain|>json<|message|>city: Bern<|call|>");
    let body = json!({ "messages": user("x"), "tools": weather(), "stream": true });
    let (_, _, calls, reason) = gathered(&chat(&server, &body).chunks());
    assert_eq!((calls[0].2.as_str(), reason), ("city: Bern", json!("tool_calls")));
}

#[test]
fn reasoning_without_end_becomes_the_answer() {
    let server = Server::start_chat(&[], mock::harmony_tokenizer(), None);
    server.script(&format!("<|channel|>analysis<|message|>{}", "Hm, let me think. ".repeat(200)));
    for stream in [false, true] {
        let body = json!({ "messages": user("x"), "max_tokens": 400, "stream": stream });
        let reply = chat(&server, &body);
        let (content, reasoning, reason) = if stream {
            let (content, reasoning, _, reason) = gathered(&reply.chunks());
            (content, reasoning, reason)
        } else {
            let whole = reply.json();
            let message = &whole["choices"][0]["message"];
            let text = |field: &str| message[field].as_str().unwrap_or_default().to_owned();
            assert!(whole["usage"]["completion_tokens_details"]["reasoning_tokens"].as_u64() > Some(380));
            (text("content"), text("reasoning_content"), whole["choices"][0]["finish_reason"].clone())
        };
        assert_eq!((content.as_str(), reason), ("", json!("length")));
        assert!(reasoning.starts_with("Hm, let me think. Hm,"), "{reasoning}");
    }
}

#[test]
fn a_grammar_of_a_deep_or_recursive_schema_crashes_the_server() {
    let server = plain(&[]);
    let mut deep = json!({ "type": "integer" });
    for _ in 0..60 {
        deep = json!({ "type": "array", "items": deep, "minItems": 1, "maxItems": 1 });
    }
    let mut wide = json!({ "type": "null" });
    for _ in 0..5 {
        wide = json!({ "anyOf": [wide, { "type": "object", "properties": { "a": wide, "b": wide } }] });
    }
    let recursive = json!({ "$ref": "#/$defs/n", "$defs": { "n": { "anyOf": [
        { "type": "array", "items": { "$ref": "#/$defs/n" } }, { "type": "integer" }] } } });
    let endless = json!({ "$ref": "#/$defs/n", "$defs": { "n": { "$ref": "#/$defs/n" } } });
    let nested_pattern = json!({ "type": "object", "properties": { "a": { "type": "string", "pattern": "^((a{1,99}){1,99}){1,99}$" } } });
    for schema in [deep, wide, recursive, endless, nested_pattern] {
        let format = json!({ "type": "json_schema", "json_schema": { "name": "s", "schema": schema } });
        let began = Instant::now();
        let reply =
            chat(&server, &json!({ "messages": user("x"), "response_format": format, "max_tokens": 64 }));
        // Refused or answered; what counts is that the next one is served.
        let status = reply.status;
        assert!([200, 400].contains(&status), "{status}: {}", reply.text());
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    }
    // Deeper than any parser goes down.
    let text = format!("{{\"messages\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let headers = [("content-type", "application/json")];
    let reply = crate::http::request(server.addr, "POST", "/v1/chat/completions", &headers, text.as_bytes());
    assert_eq!(reply.status, 400);
    assert_eq!(chat(&server, &json!({ "messages": user("x") })).status, 200);
}

#[test]
fn a_run_of_26000_letters_crashes_the_tokenizer() {
    let server = plain(&[]);
    for letter in ["a", "é", " ", "\n", "🦙", "'s", "0"] {
        let began = Instant::now();
        let body = json!({ "messages": user(&letter.repeat(26_000)), "max_tokens": 1 });
        assert_eq!(chat(&server, &body).status, 200);
        assert!(began.elapsed() < Duration::from_secs(5), "{letter:?}: {:?}", began.elapsed());
    }
}

#[test]
fn seed_and_n_are_ignored_in_silence() {
    let server = plain(&[]);
    let body = json!({ "messages": user("x"), "seed": 7, "n": 3 });
    assert_eq!(chat(&server, &body).json()["choices"].as_array().unwrap().len(), 3);
    let seeds: Vec<u64> =
        server.worker.submitted.lock().unwrap().iter().map(|job| job.sampling.seed).collect();
    assert_eq!(seeds, [7, 8, 9]);
}

#[test]
fn an_overflowing_context_is_cut_or_shifted_instead_of_refused() {
    let server = plain(&[]);
    for (path, field) in [("/v1/chat/completions", "messages"), ("/v1/responses", "input")] {
        let body = json!({ field: user(&"x".repeat(mock::CONTEXT)), "stream": true });
        let reply = post(server.addr, path, &body);
        assert_eq!(reply.status, 400);
        assert_eq!(reply.json()["error"]["code"], "context_length_exceeded");
    }
}

#[test]
fn a_constrained_answer_of_a_model_with_tool_tags_is_taken_for_a_call() {
    let server = Server::start_chat(&[], mock::byte_tokenizer(), Some(TOOL_TEMPLATE));
    let format = json!({ "type": "json_schema", "json_schema": { "name": "s", "schema": {
        "const": { "name": "weather", "arguments": {} } } } });
    let body = json!({ "messages": user("x"), "response_format": format, "tools": weather(), "tool_choice": "none" });
    let whole = chat(&server, &body).json();
    assert_eq!(whole["choices"][0]["finish_reason"], "stop", "{whole}");
    assert!(whole["choices"][0]["message"].get("tool_calls").is_none(), "{whole}");
}
