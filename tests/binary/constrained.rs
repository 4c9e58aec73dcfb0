//! What a request promises of an answer holds on a real model, however little it knows: valid JSON, or an honest
//! `length`.

use serde_json::{Value, json};

use super::http;
use super::worker::{WorkerProcess, haiku_model};

fn chat(worker: &WorkerProcess, body: &Value) -> Value {
    let reply = http::post(worker.addr, "/v1/chat/completions", body);
    assert_eq!(reply.status, 200, "{body}");
    let answer = reply.json();
    answer["choices"][0].clone()
}

#[test]
fn constrained_answers_of_the_bundled_model_are_valid_json_or_say_that_they_are_cut() {
    let worker = WorkerProcess::start("reference", &haiku_model(), &[]);
    let schema = json!({ "type": "object", "required": ["mood", "lines"], "additionalProperties": false, "properties": {
        "mood": { "enum": ["calm", "wild"] }, "lines": { "type": "integer", "minimum": 1, "maximum": 99 } } });
    let messages = json!([{ "role": "user", "content": "Write a haiku about the sea" }]);
    let tools = json!([{ "type": "function", "function": { "name": "publish", "parameters": schema } }]);
    let format = json!({ "type": "json_schema", "json_schema": { "name": "haiku", "schema": schema } });
    let promised = [
        json!({ "messages": messages, "response_format": format }),
        json!({ "messages": messages, "response_format": { "type": "json_object" } }),
        json!({ "messages": messages, "tools": tools, "tool_choice": "required" }),
    ];
    let (mut complete, mut cut) = (0, 0);
    for body in &promised {
        for (seed, max_tokens) in [(1, 96), (2, 96), (3, 5)] {
            let mut body = body.clone();
            body["seed"] = json!(seed);
            body["max_tokens"] = json!(max_tokens);
            let choice = chat(&worker, &body);
            if choice["finish_reason"] == "length" {
                cut += 1;
                continue;
            }
            let message = &choice["message"];
            let (text, reason) = match message["tool_calls"][0]["function"]["arguments"].as_str() {
                Some(arguments) => (arguments, "tool_calls"),
                None => (message["content"].as_str().unwrap(), "stop"),
            };
            assert_eq!(choice["finish_reason"], reason, "{choice}");
            let value: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {choice}"));
            assert!(value.is_object(), "{choice}");
            if body["response_format"]["type"] != "json_object" {
                assert!(value["mood"] == "calm" || value["mood"] == "wild", "{choice}");
                assert!(value["lines"].as_u64().is_some_and(|lines| (1..100).contains(&lines)), "{choice}");
            }
            complete += 1;
        }
    }
    // What a schema bounds must end within the tokens it was given; five are too few for any of them.
    assert!(complete >= 2 && cut >= 3, "{complete} complete, {cut} cut");
}
