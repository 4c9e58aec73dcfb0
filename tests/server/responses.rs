//! `POST /v1/responses`: items in, items out, and every event of a stream in its place.

use serde_json::{Value, json};

use crate::chat::{TEMPLATE, TOOL_TEMPLATE};
use crate::http::{Reply, SseEvent, post, request};
use crate::{Server, mock};

const HARMONY: &str = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary<|message|>Let me see.<|end|><|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{\"city\": \"Bern\"}<|call|>";

fn plain(flags: &[&str]) -> Server {
    Server::start_chat(flags, mock::byte_tokenizer(), Some(TEMPLATE))
}

fn respond(server: &Server, body: &Value) -> Reply {
    post(server.addr, "/v1/responses", body)
}

fn weather() -> Value {
    let parameters = json!({ "type": "object", "properties": { "city": { "enum": ["Bern", "Basel"] } },
        "required": ["city"], "additionalProperties": false });
    json!([{ "type": "function", "name": "weather", "parameters": parameters }])
}

/// Checks what every stream of events keeps to, and returns the response of its last event.
pub(crate) fn check_events(events: &[SseEvent]) -> (String, Value) {
    for (index, event) in events.iter().enumerate() {
        assert_eq!(event.data["type"], event.name.as_str());
        assert_eq!(event.data["sequence_number"], index, "{event:?}");
    }
    let names: Vec<&str> = events.iter().map(|event| event.name.as_str()).collect();
    assert_eq!(names[..2], ["response.created", "response.in_progress"]);
    let last = events.last().unwrap();
    let response = &last.data["response"];
    assert_eq!(events[0].data["response"]["id"], response["id"]);
    // What a client puts together from the events is what the last one says.
    let mut items: Vec<Value> = vec![];
    for event in events {
        let data = &event.data;
        let at = data["output_index"].as_u64().unwrap_or_default() as usize;
        let append = |value: &mut Value| {
            let text = value.as_str().unwrap().to_owned() + data["delta"].as_str().unwrap();
            *value = json!(text);
        };
        match event.name.as_str() {
            "response.output_item.added" => {
                assert_eq!((at, &data["item"]["status"]), (items.len(), &json!("in_progress")));
                items.push(data["item"].clone());
            }
            "response.content_part.added" => {
                assert_eq!(data["content_index"], 0);
                items[at]["content"] = json!([data["part"]]);
            }
            "response.output_text.delta" | "response.reasoning_text.delta" => {
                append(&mut items[at]["content"][0]["text"]);
                let reported = data["logprobs"].as_array().cloned().unwrap_or_default();
                let part = items[at]["content"][0].as_object_mut().unwrap();
                if let Some(Value::Array(logprobs)) = part.get_mut("logprobs") {
                    logprobs.extend(reported);
                }
            }
            "response.function_call_arguments.delta" => append(&mut items[at]["arguments"]),
            "response.output_text.done" | "response.reasoning_text.done" => {
                assert_eq!(items[at]["content"][0]["text"], data["text"]);
            }
            "response.function_call_arguments.done" => assert_eq!(items[at]["arguments"], data["arguments"]),
            "response.content_part.done" => assert_eq!(items[at]["content"][0], data["part"]),
            "response.output_item.done" => {
                items[at]["status"] = data["item"]["status"].clone();
                assert_eq!(items[at], data["item"]);
            }
            _ => assert!(data["response"].is_object(), "{event:?}"),
        }
        if data.get("item_id").is_some() {
            assert_eq!(items[at]["id"], data["item_id"]);
        }
    }
    if last.name != "response.failed" {
        assert_eq!(response["output"], json!(items));
    }
    (last.name.clone(), response.clone())
}

#[test]
fn a_whole_response_has_every_field() {
    let server = plain(&[]);
    let body = json!({ "model": "echo", "input": "hello", "instructions": "say:", "metadata": { "k": "v" },
        "temperature": 0.5, "max_output_tokens": 200, "user": "u" });
    let reply = respond(&server, &body);
    assert_eq!(reply.status, 200);
    let response = reply.json();
    assert!(response["id"].as_str().unwrap().starts_with("resp_"));
    let message = &response["output"][0];
    let part = json!({ "type": "output_text", "text": "say:hello", "annotations": [], "logprobs": [] });
    assert_eq!((&message["type"], &message["role"]), (&json!("message"), &json!("assistant")));
    assert_eq!((&message["status"], &message["content"]), (&json!("incomplete"), &json!([part])));
    for (field, expected) in [
        ("object", json!("response")),
        ("status", json!("incomplete")),
        ("incomplete_details", json!({ "reason": "max_output_tokens" })),
        ("error", Value::Null),
        ("model", json!("echo")),
        ("instructions", json!("say:")),
        ("metadata", json!({ "k": "v" })),
        ("temperature", json!(0.5)),
        ("top_p", json!(1.0)),
        ("max_output_tokens", json!(200)),
        ("store", json!(false)),
        ("previous_response_id", Value::Null),
        ("text", json!({ "format": { "type": "text" }, "verbosity": "medium" })),
        ("tool_choice", json!("auto")),
        ("tools", json!([])),
        ("user", json!("u")),
    ] {
        assert_eq!(response[field], expected, "{field}");
    }
    let usage = &response["usage"];
    assert_eq!((&usage["input_tokens"], &usage["total_tokens"]), (&json!(9), &json!(18)));
    assert_eq!(usage["input_tokens_details"], json!({ "cached_tokens": 4 }));
    server.script("done<|endoftext|>");
    let response = respond(&server, &body).json();
    assert_eq!((&response["status"], &response["incomplete_details"]), (&json!("completed"), &Value::Null));
    server.script("<|endoftext|>");
    let response = respond(&server, &body).json();
    assert_eq!(response["output"][0]["content"][0]["text"], "", "silence is a message");
}

#[test]
fn a_stream_tells_every_step_in_order() {
    let server = Server::start_chat(&[], mock::harmony_tokenizer(), None);
    server.script(HARMONY);
    let body = json!({ "input": "x", "tools": weather(), "stream": true, "reasoning": { "effort": "high", "summary": "auto" } });
    let events = respond(&server, &body).events();
    let (last, response) = check_events(&events);
    assert_eq!((last.as_str(), &response["status"]), ("response.completed", &json!("completed")));
    let output = response["output"].as_array().unwrap();
    let kinds: Vec<_> = output.iter().map(|item| item["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["reasoning", "message", "function_call"]);
    assert_eq!(output[0]["content"], json!([{ "type": "reasoning_text", "text": "Hm." }]));
    assert_eq!(output[2]["arguments"], "{\"city\": \"Bern\"}");
    assert!(output[2]["call_id"].as_str().is_some_and(|id| id.starts_with("call_")));
    assert_eq!(response["reasoning"], json!({ "effort": "high", "summary": null }));
    assert_eq!(response["tools"][0]["strict"], false);
    assert!(response["usage"]["output_tokens_details"]["reasoning_tokens"].as_u64() > Some(3));
    // The same without a stream, but for what is the response's own.
    let mut whole = body;
    whole["stream"] = json!(false);
    let whole = respond(&server, &whole).json();
    assert_eq!(whole["usage"], response["usage"]);
    // The items go back as they came, with the call's result.
    let mut input = vec![json!({ "role": "user", "content": "x" })];
    input.extend(output.iter().cloned());
    input.push(json!({ "type": "function_call_output", "call_id": output[2]["call_id"], "output": "sunny" }));
    let body = json!({ "input": input, "tools": weather() });
    assert_eq!(respond(&server, &body).status, 200);
    let prompt = server.worker.submitted.lock().unwrap().last().unwrap().prompt.clone();
    let shown = server.state.model().unwrap().tokenizer.decode(&prompt);
    assert!(shown.contains("Hm.") && shown.contains("Let me see.") && shown.contains("sunny"), "{shown}");
}

#[test]
fn promises_are_kept_in_responses_too() {
    let schema = json!({ "type": "object", "properties": { "n": { "enum": [1, 2] } }, "required": ["n"],
        "additionalProperties": false });
    let format =
        json!({ "format": { "type": "json_schema", "name": "s", "schema": schema, "strict": true } });
    for server in [
        Server::start_chat(&[], mock::byte_tokenizer(), Some(TOOL_TEMPLATE)),
        Server::start_chat(&[], mock::harmony_tokenizer(), None),
    ] {
        for seed in 1..5 {
            let body = json!({ "input": "x", "text": format, "seed": seed * 77_777, "stream": true });
            let (last, response) = check_events(&respond(&server, &body).events());
            assert_eq!(last, "response.completed");
            let message = response["output"].as_array().unwrap().last().unwrap();
            let text = message["content"][0]["text"].as_str().unwrap();
            let value: Value = serde_json::from_str(text).unwrap();
            assert!(value == json!({ "n": 1 }) || value == json!({ "n": 2 }), "{text}");
            for choice in [json!("required"), json!({ "type": "function", "name": "weather" })] {
                let body = json!({ "input": "x", "tools": weather(), "tool_choice": choice, "seed": seed * 77_777,
                    "parallel_tool_calls": false });
                let response = respond(&server, &body).json();
                let call = response["output"].as_array().unwrap().last().unwrap();
                assert_eq!((&call["type"], &call["status"]), (&json!("function_call"), &json!("completed")));
                let arguments: Value = serde_json::from_str(call["arguments"].as_str().unwrap()).unwrap();
                assert!(arguments["city"] == "Bern" || arguments["city"] == "Basel");
                assert_eq!(
                    (&response["parallel_tool_calls"], &response["tool_choice"]),
                    (&json!(false), &choice)
                );
            }
        }
    }
}

#[test]
fn log_probabilities_come_where_they_are_asked_for() {
    let server = plain(&[]);
    let body = json!({ "input": "hé", "include": ["message.output_text.logprobs"], "top_logprobs": 2, "stream": true });
    let events = respond(&server, &body).events();
    let (_, response) = check_events(&events);
    let logprobs = response["output"][0]["content"][0]["logprobs"].as_array().unwrap().clone();
    assert_eq!(logprobs.len(), 3);
    assert_eq!((&logprobs[0]["token"], &logprobs[0]["logprob"]), (&json!("h"), &json!(-0.5)));
    assert_eq!(logprobs[0]["top_logprobs"].as_array().unwrap().len(), 2);
}

#[test]
fn every_field_of_a_response_is_honoured_or_refused() {
    let server = plain(&[]);
    let refused = |field: &str, value: Value, param: &str| {
        let mut body = json!({ "input": "x" });
        body[field] = value;
        let reply = respond(&server, &body);
        let (status, error) = (reply.status, reply.json());
        assert_eq!((status, &error["error"]["param"]), (400, &json!(param)), "{body}: {error}");
    };
    for (field, value, param) in [
        ("input", Value::Null, "input"),
        ("input", json!([{ "type": "item_reference", "id": "x" }]), "input[0].type"),
        ("store", json!(true), "store"),
        ("previous_response_id", json!("resp_1"), "previous_response_id"),
        ("conversation", json!("conv_1"), "conversation"),
        ("background", json!(true), "background"),
        ("truncation", json!("auto"), "truncation"),
        ("prompt", json!({ "id": "p" }), "prompt"),
        ("include", json!(["file_search_call.results"]), "include"),
        ("max_output_tokens", json!(0), "max_output_tokens"),
        ("metadata", json!({ "a": 1 }), "metadata"),
        ("reasoning", json!({ "effort": "enormous" }), "reasoning.effort"),
        ("reasoning", json!({ "summary": "detailed" }), "reasoning.summary"),
        ("text", json!({ "format": { "type": "xml" } }), "text.format"),
        ("text", json!({ "verbosity": "low" }), "text.verbosity"),
        ("tools", json!([{ "type": "web_search" }]), "tools[0].type"),
        ("tools", json!([{ "type": "function", "name": "a b" }]), "tools[0].name"),
        ("tools", json!([{ "type": "function", "name": "f", "strict": true }]), "tools[0].strict"),
        ("tool_choice", json!("required"), "tool_choice"),
        ("n", json!(2), "n"),
        ("stream_options", json!({ "include_obfuscation": true }), "stream_options.include_obfuscation"),
    ] {
        refused(field, value, param);
    }
    assert!(server.worker.submitted.lock().unwrap().is_empty());
    let neutral = json!({ "input": "x", "store": false, "previous_response_id": null, "background": false,
        "truncation": "disabled", "include": ["reasoning.encrypted_content"], "reasoning": { "summary": "auto" },
        "text": { "format": { "type": "text" }, "verbosity": "medium" }, "service_tier": "auto", "max_tool_calls": 3,
        "prompt_cache_key": "k", "safety_identifier": "s", "unheard_of": 1 });
    assert_eq!(respond(&server, &neutral).status, 200);
}

#[test]
fn a_response_that_fails_says_so_as_its_last_event() {
    let server = plain(&[]);
    let body = json!({ "input": "abc", "stream": true });
    let named = |body: &Value| {
        let headers = [("content-type", "application/json"), ("x-request-id", "x-oom")];
        request(server.addr, "POST", "/v1/responses", &headers, body.to_string().as_bytes())
    };
    let (last, response) = check_events(&named(&body).events());
    assert_eq!((last.as_str(), &response["status"]), ("response.failed", &json!("failed")));
    assert_eq!(response["error"]["code"], "server_error");
    let whole = named(&json!({ "input": "abc" }));
    assert_eq!(whole.status, 500);
    assert_eq!(whole.json()["error"]["code"], "vram_oom");
}
