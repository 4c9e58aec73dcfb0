//! `POST /v1/completions` and `/v1/models`: the wire of OpenAI's clients, without a chat template.

use std::time::Duration;

use serde_json::{Value, json};

use crate::http::{Reply, get, post, request};
use crate::{Server, mock, wait_until};

const PATH: &str = "/v1/completions";

fn complete(server: &Server, body: &Value) -> Reply {
    post(server.addr, PATH, body)
}

fn named(server: &Server, id: &str, body: &Value) -> Reply {
    let headers = [("content-type", "application/json"), ("x-request-id", id)];
    request(server.addr, "POST", PATH, &headers, body.to_string().as_bytes())
}

fn refused(server: &Server, body: &Value, status: u16, param: &str) -> Value {
    let reply = complete(server, body);
    let (got, error) = (reply.status, reply.json());
    assert_eq!((got, &error["error"]["param"]), (status, &json!(param)), "{body}: {error}");
    assert_eq!(error["error"]["type"], "invalid_request_error");
    assert!(error["error"]["message"].as_str().is_some_and(|message| message.contains(param)), "{error}");
    error["error"]["code"].clone()
}

#[test]
fn a_whole_completion_has_every_field() {
    let server = Server::start(&[]);
    let reply = complete(&server, &json!({ "model": "echo", "prompt": "hello", "seed": -1 }));
    assert_eq!(reply.status, 200);
    let mut body = reply.json();
    assert!(body["id"].take().as_str().unwrap().starts_with("cmpl-"));
    assert!(body["created"].take().as_u64() > Some(1_700_000_000));
    let expected = json!({
        "id": null,
        "object": "text_completion",
        "created": null,
        "model": "echo",
        "system_fingerprint": concat!("worker-orcd-", env!("CARGO_PKG_VERSION"), "-cuda-Q4_K_M"),
        "choices": [{ "index": 0, "text": "hello", "logprobs": null, "finish_reason": "length" }],
        "usage": {
            "prompt_tokens": 5,
            "completion_tokens": 5,
            "total_tokens": 10,
            "prompt_tokens_details": { "cached_tokens": 2 },
            "completion_tokens_details": { "reasoning_tokens": 0 },
        },
    });
    assert_eq!(body, expected);
    let jobs = server.worker.submitted.lock().unwrap();
    assert_eq!((jobs[0].max_tokens, jobs[0].sampling.seed), (16, u64::MAX));
}

#[test]
fn a_stream_says_the_same_in_chunks() {
    let server = Server::start(&[]);
    let body = json!({ "prompt": "héllo", "stream": true, "stream_options": { "include_usage": true } });
    let reply = complete(&server, &body);
    assert_eq!(reply.header("content-type"), Some("text/event-stream"));
    assert_eq!(reply.header("cache-control"), Some("no-cache"));
    assert_eq!(reply.header("x-accel-buffering"), Some("no"));
    let chunks = reply.chunks();
    let (usage, pieces) = chunks.split_last().unwrap();
    assert_eq!((&usage["choices"], &usage["usage"]["completion_tokens"]), (&json!([]), &json!(6)));
    let text: String = pieces.iter().map(|chunk| chunk["choices"][0]["text"].as_str().unwrap()).collect();
    assert_eq!(text, "héllo");
    for chunk in pieces {
        assert_eq!((&chunk["object"], &chunk["usage"]), (&json!("text_completion"), &Value::Null));
        assert_eq!(chunk["id"], usage["id"]);
    }
    let reasons: Vec<&Value> = pieces.iter().map(|chunk| &chunk["choices"][0]["finish_reason"]).collect();
    assert_eq!(reasons.iter().filter(|reason| !reason.is_null()).count(), 1);
    assert_eq!(*reasons.last().unwrap(), "length");
    let plain = complete(&server, &json!({ "prompt": "x", "stream": true })).chunks();
    assert!(plain.iter().all(|chunk| chunk.get("usage").is_none()), "{plain:?}");
}

#[test]
fn stop_strings_end_the_text_and_are_not_part_of_it() {
    let server = Server::start(&[]);
    for stop in [json!("lo w"), json!(["zzz", "lo w"])] {
        let body = complete(&server, &json!({ "prompt": "hello world", "stop": stop })).json();
        let choice = &body["choices"][0];
        assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!("hel"), &json!("stop")));
        // The engine was still at work then, and yet it is known what it found cached.
        assert_eq!(body["usage"]["prompt_tokens_details"], json!({ "cached_tokens": 5 }));
    }
    let body = complete(&server, &json!({ "prompt": "hello", "stop_token_ids": [108] })).json();
    assert_eq!(
        (&body["choices"][0]["text"], &body["choices"][0]["finish_reason"]),
        (&json!("he"), &json!("stop"))
    );
}

#[test]
fn prompts_may_be_many_and_have_many_answers() {
    let server = Server::start(&[]);
    let body = complete(&server, &json!({ "prompt": ["ab", "cde"], "n": 2, "seed": 7 })).json();
    let texts: Vec<&Value> =
        body["choices"].as_array().unwrap().iter().map(|choice| &choice["text"]).collect();
    assert_eq!(texts, ["ab", "ab", "cde", "cde"]);
    let usage = &body["usage"];
    assert_eq!((&usage["prompt_tokens"], &usage["completion_tokens"]), (&json!(5), &json!(10)));
    assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], 2);
    let seeds: Vec<u64> =
        server.worker.submitted.lock().unwrap().iter().map(|job| job.sampling.seed).collect();
    assert_eq!(seeds, [7, 8, 7, 8]);
    let ids = complete(&server, &json!({ "prompt": [104, 105] })).json();
    assert_eq!(ids["choices"][0]["text"], "hi");
    let lists = complete(&server, &json!({ "prompt": [[104], [105, 33]] })).json();
    assert_eq!(lists["choices"][1]["text"], "i!");
    let streamed = complete(&server, &json!({ "prompt": "xyz", "n": 16, "stream": true })).chunks();
    for index in 0..16 {
        let of_this = streamed.iter().filter(|chunk| chunk["choices"][0]["index"] == index);
        let text: String = of_this.map(|chunk| chunk["choices"][0]["text"].as_str().unwrap()).collect();
        assert_eq!(text, "xyz", "{index}");
    }
}

#[test]
fn logprobs_are_parallel_lists() {
    let server = Server::start(&[]);
    let body = complete(&server, &json!({ "prompt": "abé", "logprobs": 2 })).json();
    let logprobs = &body["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"].as_array().unwrap().len(), 4);
    assert_eq!(logprobs["token_logprobs"], json!([-0.5, -0.5, -0.5, -0.5]));
    assert_eq!(logprobs["top_logprobs"][0], json!({ "a": -0.5, "b": -1.5 }));
    assert_eq!((&logprobs["text_offset"][0], &logprobs["text_offset"][1]), (&json!(0), &json!(1)));
    let chunks = complete(&server, &json!({ "prompt": "ab", "logprobs": 0, "stream": true })).chunks();
    assert_eq!(chunks[1]["choices"][0]["logprobs"]["tokens"], json!(["b"]));
    assert_eq!(chunks[1]["choices"][0]["logprobs"]["text_offset"], json!([1]));
}

#[test]
fn every_sampling_field_reaches_the_engine() {
    let server = Server::start(&[]);
    let body = json!({
        "prompt": "x", "max_tokens": 3, "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.1,
        "repetition_penalty": 1.5, "frequency_penalty": -2, "presence_penalty": 2, "seed": 42,
        "logit_bias": { "65": -100, "66": 1.5 }, "stop_token_ids": [7], "ignore_eos": true, "cache_salt": "tenant",
        // What sglang-router adds, at its neutral values, and what nobody knows.
        "no_stop_trim": false, "continue_final_message": false, "skip_special_tokens": true,
        "separate_reasoning": true, "stream_reasoning": true, "return_hidden_states": false, "unheard_of": [1],
        "user": "u", "best_of": 1, "echo": false, "suffix": null,
    });
    assert_eq!(complete(&server, &body).status, 200);
    let jobs = server.worker.submitted.lock().unwrap();
    let (job, sampling) = (&jobs[0], &jobs[0].sampling);
    assert_eq!((job.max_tokens, &job.stop_ids[..], job.cache_salt.as_deref()), (3, &[7][..], Some("tenant")));
    assert_eq!((sampling.temperature, sampling.top_p, sampling.top_k), (0.5, 0.9, 40));
    assert_eq!((sampling.min_p, sampling.repetition_penalty, sampling.seed), (0.1, 1.5, 42));
    assert_eq!((sampling.frequency_penalty, sampling.presence_penalty), (-2.0, 2.0));
    assert_eq!(sampling.logit_bias, [(65, -100.0), (66, 1.5)]);
}

#[test]
fn every_field_is_honoured_or_refused() {
    let server = Server::start(&["--max-tokens-out", "100"]);
    let with = |field: &str, value: &Value| {
        let mut body = json!({ "prompt": "x" });
        body[field] = value.clone();
        body
    };
    for (field, bad) in [
        (
            "prompt",
            vec![json!(1), json!({}), json!([]), json!([257]), json!(["a", 1]), json!([[]]), json!("")],
        ),
        ("prompt", vec![json!(vec!["x"; 65]), json!([-1]), Value::Null]),
        ("max_tokens", vec![json!(0), json!(101), json!("5"), json!(1.5)]),
        ("temperature", vec![json!(-0.1), json!(2.1), json!("1")]),
        ("top_p", vec![json!(-0.1), json!(1.1)]),
        ("top_k", vec![json!(-2), json!(0.5)]),
        ("min_p", vec![json!(1.1)]),
        ("n", vec![json!(0), json!(17)]),
        ("stop", vec![json!(1), json!([1]), json!(""), json!(vec!["x"; 17]), json!("x".repeat(1025))]),
        ("stop_token_ids", vec![json!([257]), json!(1), json!(["a"])]),
        ("logprobs", vec![json!(21), json!(-1), json!(true)]),
        ("logit_bias", vec![json!([]), json!({ "a": 1 }), json!({ "257": 1 }), json!({ "1": 101 })]),
        ("frequency_penalty", vec![json!(2.1)]),
        ("presence_penalty", vec![json!(-2.1)]),
        ("repetition_penalty", vec![json!(0)]),
        ("seed", vec![json!(1.5), json!("x")]),
        ("stream", vec![json!("yes"), json!(1)]),
        ("stream_options", vec![json!({ "include_usage": true })]),
        ("best_of", vec![json!(2)]),
        ("echo", vec![json!(true)]),
        ("suffix", vec![json!("end")]),
        ("guided_json", vec![json!({})]),
        ("response_format", vec![json!({ "type": "json_object" })]),
        ("min_tokens", vec![json!(5)]),
        ("cache_salt", vec![json!(""), json!(1)]),
    ] {
        for value in bad {
            refused(&server, &with(field, &value), 400, field);
        }
    }
    assert!(server.worker.submitted.lock().unwrap().is_empty(), "nothing refused reached the engine");
    assert_eq!(refused(&server, &with("echo", &json!(true)), 400, "echo"), "unsupported_parameter");
    assert_eq!(refused(&server, &with("model", &json!("gpt-5")), 404, "model"), "model_not_found");
    for broken in ["", "{", "[]", "1"] {
        let reply =
            request(server.addr, "POST", PATH, &[("content-type", "application/json")], broken.as_bytes());
        assert_eq!(reply.status, 400, "{broken:?}");
        assert_eq!(reply.json()["error"]["param"], Value::Null);
    }
}

#[test]
fn what_does_not_fit_the_context_is_refused_up_front() {
    let server = Server::start(&["--max-tokens-out", "300000"]);
    let exact = json!({ "prompt": "x".repeat(mock::CONTEXT - 1), "max_tokens": 1 });
    assert_eq!(complete(&server, &exact).status, 200);
    for (prompt, max_tokens) in [(mock::CONTEXT, 1), (mock::CONTEXT - 1, 2), (10, 200_000)] {
        let body = json!({ "prompt": "x".repeat(prompt), "max_tokens": max_tokens });
        let code = refused(&server, &body, 400, "prompt");
        assert_eq!(code, "context_length_exceeded");
    }
    let limited = Server::start(&["--max-tokens-in", "3"]);
    assert_eq!(refused(&limited, &json!({ "prompt": "abcd" }), 400, "prompt"), "context_length_exceeded");
}

#[test]
fn a_large_body_is_parsed_off_the_server_s_threads() {
    let server = Server::start(&[]);
    let prompt = "x".repeat(100_000);
    assert_eq!(complete(&server, &json!({ "prompt": prompt, "max_tokens": 1 })).status, 200);
    server.block_tokenizer(Duration::from_millis(300));
    let began = std::time::Instant::now();
    let broken = format!("{{\"prompt\": \"{prompt}\",");
    let headers = [("content-type", "application/json")];
    let reply = request(server.addr, "POST", PATH, &headers, broken.as_bytes());
    assert_eq!(reply.status, 400);
    assert!(reply.json()["error"]["message"].as_str().unwrap().contains("broken JSON"));
    assert!(began.elapsed() > Duration::from_millis(150), "it waited for the thread that does such work");
}

#[test]
fn no_room_is_told_before_the_first_byte() {
    let server = Server::start(&[]);
    for stream in [false, true] {
        let reply = named(&server, "full", &json!({ "prompt": "x", "stream": stream }));
        assert_eq!((reply.status, reply.header("retry-after")), (429, Some("1")));
        let error = reply.json();
        assert_eq!(
            (&error["error"]["code"], &error["error"]["type"]),
            (&json!("queue_full"), &json!("rate_limit_error"))
        );
    }
    server.state.close();
    let reply = complete(&server, &json!({ "prompt": "x", "stream": true }));
    assert_eq!((reply.status, reply.header("retry-after")), (503, Some("1")));
    assert_eq!(reply.json()["error"]["code"], "shutting_down");
    let loading = Server::start_loading(&[]);
    let reply = complete(&loading, &json!({ "prompt": "x" }));
    assert_eq!((reply.status, reply.header("retry-after")), (503, Some("5")));
    assert_eq!(reply.json()["error"]["code"], "loading");
    assert_eq!(get(loading.addr, "/v1/models").0, 503);
}

#[test]
fn a_failure_on_the_way_is_the_last_thing_said() {
    let server = Server::start(&[]);
    let mut reply = named(&server, "oom", &json!({ "prompt": "abc", "stream": true }));
    assert_eq!(reply.status, 200);
    let data: Vec<Value> =
        std::iter::from_fn(|| reply.next_data()).map(|data| serde_json::from_str(&data).unwrap()).collect();
    let (last, before) = data.split_last().unwrap();
    assert_eq!(
        (&last["error"]["code"], &last["error"]["type"]),
        (&json!("vram_oom"), &json!("server_error"))
    );
    assert!(before.iter().all(|chunk| chunk["choices"][0]["finish_reason"].is_null()), "{before:?}");
    let whole = named(&server, "oom", &json!({ "prompt": "abc" }));
    assert_eq!(whole.status, 500);
    assert_eq!(whole.json()["error"]["code"], "vram_oom");
}

#[test]
fn a_client_that_leaves_stops_all_its_answers() {
    let server = Server::start(&[]);
    for stream in [true, false] {
        let id = format!("hang-{stream}");
        let body = json!({ "prompt": "abc", "n": 3, "stream": stream }).to_string();
        let head = format!(
            "POST {PATH} HTTP/1.1\r\nhost: x\r\nx-request-id: {id}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let mut socket = std::net::TcpStream::connect(server.addr).unwrap();
        std::io::Write::write_all(&mut socket, (head + &body).as_bytes()).unwrap();
        wait_until(|| server.state.jobs.len() == 1);
        std::thread::sleep(Duration::from_millis(20));
        drop(socket);
        for choice in 0..3 {
            wait_until(|| server.worker.ended_early_at(&format!("cmpl-{id}-{choice}")).is_some());
        }
        wait_until(|| server.state.jobs.is_empty());
    }
}

#[test]
fn an_answer_can_be_cancelled_by_its_id() {
    let server = Server::start(&[]);
    let mut reply = named(&server, "hang-c", &json!({ "prompt": "abc", "n": 2, "stream": true }));
    let first: Value = serde_json::from_str(&reply.next_data().unwrap()).unwrap();
    assert_eq!(first["id"], "cmpl-hang-c");
    assert_eq!(post(server.addr, "/cancel", &json!({ "job_id": first["id"] })).status, 202);
    let mut data: Vec<String> = std::iter::from_fn(|| reply.next_data()).collect();
    let last: Value = serde_json::from_str(&data.pop().unwrap()).unwrap();
    assert_eq!(last["error"]["code"], "cancelled");
    // The name is taken while its request lives; a second one gets another.
    let held = named(&server, "hang-d", &json!({ "prompt": "abc", "stream": true }));
    let mut second = named(&server, "hang-d", &json!({ "prompt": "abc", "stream": true }));
    let id = serde_json::from_str::<Value>(&second.next_data().unwrap_or_default());
    assert_ne!(id.unwrap()["id"], "cmpl-hang-d");
    drop(held);
}

#[test]
fn the_model_is_listed_under_its_names() {
    let server = Server::start(&[]);
    let (status, models) = get(server.addr, "/v1/models");
    assert_eq!(status, 200);
    let model = &models["data"][0];
    assert_eq!(
        (&models["object"], &model["id"], &model["object"]),
        (&json!("list"), &json!("echo"), &json!("model"))
    );
    assert_eq!((&model["max_model_len"], &model["owned_by"]), (&json!(mock::CONTEXT), &json!("worker-orcd")));
    assert_eq!(get(server.addr, "/v1/models/echo").0, 200);
    assert_eq!(get(server.addr, "/v1/models/other").1["error"]["code"], "model_not_found");
    let named = Server::start(&["--served-model-name", "org/first,second"]);
    let ids: Vec<Value> = get(named.addr, "/v1/models").1["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|model| model["id"].clone())
        .collect();
    assert_eq!(ids, ["org/first", "second"]);
    assert_eq!(get(named.addr, "/v1/models/org/first").0, 200);
    for (name, status) in [("org/first", 200), ("second", 200), ("echo", 404)] {
        let reply = complete(&named, &json!({ "prompt": "x", "model": name }));
        assert_eq!(reply.status, status, "{name}");
    }
    let error = get(server.addr, "/v1/nothing");
    assert_eq!((error.0, &error.1["error"]["code"]), (404, &json!("not_found")));
    assert_eq!(get(server.addr, PATH).1["error"]["code"], "method_not_allowed");
}
