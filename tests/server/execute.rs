//! `POST /execute`: what is refused, and what a stream looks like.

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::http::{self, post, raw, request};
use crate::{Server, check_stream};

fn body(job_id: &str, changes: &Value) -> Value {
    let mut body = json!({ "job_id": job_id, "prompt": "hello" });
    for (field, value) in changes.as_object().unwrap() {
        body[field] = value.clone();
    }
    body
}

fn refused(server: &Server, body: &Value, field: &str) {
    let reply = post(server.addr, "/execute", body);
    let (status, error) = (reply.status, reply.json());
    let shown = body.to_string().chars().take(200).collect::<String>();
    assert_eq!(status, 400, "{shown}");
    assert_eq!(error["code"], "INVALID_REQUEST", "{shown}");
    assert_eq!(error["field"], field, "{shown}: {error}");
    assert_eq!(error["retriable"], false);
    assert!(error["message"].as_str().unwrap().contains(field), "{error}");
}

#[test]
fn every_bound_of_the_request_holds_on_both_sides() {
    let server = Server::start(&["--max-tokens-out", "100", "--max-tokens-in", "40000"]);
    let long = |count: usize| "x".repeat(count);
    let cases = [
        ("job_id", json!(long(256)), vec![json!(""), json!(1), Value::Null, json!(long(257))]),
        ("prompt", json!("x"), vec![json!(""), json!(["x"]), Value::Null, json!(long(32_769))]),
        ("prompt", json!("é".repeat(20_000)), vec![json!("🙂".repeat(10_001))]),
        ("max_tokens", json!(1), vec![json!(0), json!(101), json!(-1), json!(1.5), json!("5")]),
        ("max_tokens", json!(100), vec![]),
        ("temperature", json!(0), vec![json!(-0.01), json!(2.01), json!("1"), json!(true)]),
        ("temperature", json!(2.0), vec![]),
        ("top_p", json!(0.0), vec![json!(-0.1), json!(1.1)]),
        ("top_p", json!(1), vec![]),
        ("top_k", json!(0), vec![json!(-1), json!(258), json!(0.5)]),
        ("top_k", json!(257), vec![]),
        ("min_p", json!(0), vec![json!(-0.1), json!(1.1)]),
        ("min_p", json!(1), vec![]),
        ("repetition_penalty", json!(0.01), vec![json!(0), json!(-1), json!(2.1)]),
        ("repetition_penalty", json!(2), vec![]),
        ("seed", json!(0), vec![json!(-1), json!(1.5), json!("x"), json!([1])]),
        ("seed", json!(u64::MAX), vec![json!("18446744073709551616")]),
        ("stop", json!([]), vec![json!("x"), json!([1]), json!([""]), json!(["a", "b", "c", "d", "e"])]),
        ("stop", json!(["a", "b", "c", "d"]), vec![]),
        ("stop", json!([long(32)]), vec![json!([long(33)])]),
        ("stop", Value::Null, vec![]),
        ("tolerated", json!({"any": "thing"}), vec![]),
    ];
    for (n, (field, good, bad)) in cases.iter().enumerate() {
        let reply = post(server.addr, "/execute", &body(&format!("bound-{n}"), &json!({ *field: good })));
        assert_eq!(reply.status, 200, "{field} {n}");
        check_stream(&reply.events());
        for bad in bad {
            refused(&server, &body(&format!("bound-{n}"), &json!({ *field: bad })), field);
        }
    }
    let submitted = server.worker.submitted.lock().unwrap();
    assert_eq!(submitted.len(), cases.len(), "nothing refused reached the engine");
}

#[test]
fn missing_fields_are_named() {
    let server = Server::start(&[]);
    refused(&server, &json!({ "prompt": "x" }), "job_id");
    refused(&server, &json!({ "job_id": "x" }), "prompt");
}

#[test]
fn defaults_reach_the_engine() {
    let server = Server::start(&[]);
    post(server.addr, "/execute", &body("defaults", &json!({}))).events();
    let jobs = server.worker.submitted.lock().unwrap();
    let job = &jobs[0];
    assert_eq!((job.id.as_str(), job.max_tokens, job.stop_ids.as_slice()), ("defaults", 2048, &[256][..]));
    assert_eq!(job.prompt, [104, 101, 108, 108, 111]);
    let sampling = &job.sampling;
    assert_eq!((sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p), (1.0, 1.0, 0, 0.0));
    assert_eq!((sampling.repetition_penalty, sampling.logprobs), (1.0, None));
    assert!(job.deadline.is_some());
}

#[test]
fn broken_bodies_are_json_errors() {
    let server = Server::start(&[]);
    let json_type = [("content-type", "application/json")];
    for (headers, body, status) in [
        (&json_type[..], &b"{\"job_id\": \"a\", "[..], 400),
        (&json_type, b"[1]", 400),
        (&json_type, b"\"SECRET\"", 400),
        (&json_type, b"", 400),
        (&json_type, b"{\"prompt\": \"\xff\"}", 400),
        (&[("content-type", "text/plain")], b"{}", 400),
        (&[], b"{}", 400),
    ] {
        let reply = request(server.addr, "POST", "/execute", headers, body);
        assert_eq!(reply.status, status);
        let error = reply.json();
        assert_eq!(error["code"], "INVALID_REQUEST");
        assert!(!error.to_string().contains("SECRET"));
    }
}

#[test]
fn a_body_over_the_limit_is_413_whether_declared_or_chunked() {
    let server = Server::start(&[]);
    let head = "POST /execute HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
    let declared = format!("{head}content-length: 1048577\r\n\r\n");
    let mut chunked = format!("{head}transfer-encoding: chunked\r\n\r\n").into_bytes();
    for _ in 0..17 {
        chunked.extend_from_slice(b"10000\r\n");
        chunked.extend_from_slice(" ".repeat(0x10000).as_bytes());
        chunked.extend_from_slice(b"\r\n");
    }
    for bytes in [declared.as_bytes(), &chunked] {
        let reply = raw(server.addr, bytes);
        assert_eq!(reply.status, 413);
        assert_eq!(reply.json()["code"], "INVALID_REQUEST");
    }
}

#[test]
fn the_longest_prompt_fits_the_body_limit_in_its_longest_spelling() {
    let server = Server::start(&[]);
    let prompt = "\\ud83d\\ude42".repeat(32_768);
    let body = format!("{{\"job_id\": \"escapes\", \"prompt\": \"{prompt}\", \"max_tokens\": 4}}");
    let reply =
        request(server.addr, "POST", "/execute", &[("content-type", "application/json")], body.as_bytes());
    assert_eq!(reply.status, 200);
    assert_eq!(check_stream(&reply.events()).0, "🙂");
}

#[test]
fn unknown_paths_and_methods_are_json_errors() {
    let server = Server::start(&[]);
    let (status, error) = http::get(server.addr, "/nowhere");
    assert_eq!((status, error["code"].as_str()), (404, Some("NOT_FOUND")));
    let reply = request(server.addr, "GET", "/execute", &[], b"");
    assert_eq!((reply.status, reply.header("allow")), (405, Some("POST")));
    assert_eq!(reply.json()["code"], "METHOD_NOT_ALLOWED");
}

#[test]
fn a_stream_has_its_headers_and_its_figures() {
    let server = Server::start(&[]);
    let reply =
        post(server.addr, "/execute", &body("figures", &json!({ "seed": u64::MAX, "prompt": "añ🙂b" })));
    assert_eq!(reply.header("content-type"), Some("text/event-stream"));
    assert_eq!(reply.header("cache-control"), Some("no-cache"));
    assert_eq!(reply.header("x-accel-buffering"), Some("no"));
    let events = reply.events();
    let started = &events[0].data;
    assert_eq!((&started["job_id"], &started["model"]), (&json!("figures"), &json!("echo")));
    assert_eq!(started["seed"].as_u64(), Some(u64::MAX));
    assert!(started["started_at"].as_str().unwrap().ends_with('Z'));
    let tokens: Vec<_> =
        events.iter().filter(|event| event.name == "token").map(|event| &event.data).collect();
    // The index is that of the newest token: bytes 0; 1-2; 3-6; 7.
    let expected = [("a", 0), ("ñ", 2), ("🙂", 6), ("b", 7)].map(|(t, i)| json!({ "t": t, "i": i }));
    assert_eq!(tokens, expected.iter().collect::<Vec<_>>());
    let (_, end) = check_stream(&events);
    assert_eq!((&end.data["tokens_in"], &end.data["tokens_out"]), (&json!(8), &json!(8)));
    assert_eq!(end.data["finish_reason"], "length");
    assert!(end.data["decode_time_ms"].is_number() && end.data["ttft_ms"].is_number());
    assert_eq!(events[events.len() - 2].data["prompt_tokens"], 8);
}

#[test]
fn a_generated_seed_is_reported_and_used() {
    let server = Server::start(&[]);
    let seeds: Vec<u64> = (0..3)
        .map(|n| {
            let events = post(server.addr, "/execute", &body(&format!("seed-{n}"), &json!({}))).events();
            events[0].data["seed"].as_u64().unwrap()
        })
        .collect();
    let used: Vec<u64> =
        server.worker.submitted.lock().unwrap().iter().map(|job| job.sampling.seed).collect();
    assert_eq!(seeds, used);
    assert!(seeds[0] != seeds[1] && seeds[1] != seeds[2]);
}

#[test]
fn generation_ends_by_length_or_by_a_stop_id() {
    let server = Server::start(&[]);
    for (job_id, max_tokens, text, reason) in [
        ("cut", 3, "hel", "length"),
        ("stoptoken-a", 9, "hello", "stop"),
        ("stoptoken-b", 5, "hello", "length"),
    ] {
        let reply = post(server.addr, "/execute", &body(job_id, &json!({ "max_tokens": max_tokens })));
        let (streamed, end) = check_stream(&reply.events());
        assert_eq!((streamed.as_str(), &end.data["finish_reason"]), (text, &json!(reason)), "{job_id}");
    }
    // A character cut short by the limit ends as the decoder says.
    let reply = post(server.addr, "/execute", &body("half", &json!({ "prompt": "🙂", "max_tokens": 2 })));
    assert_eq!(check_stream(&reply.events()).0, "\u{fffd}");
}

#[test]
fn stop_strings_end_the_text_and_never_leave() {
    let server = Server::start(&[]);
    let endless = body("endless-stop", &json!({ "prompt": "one two🙂🙃 three ", "stop": ["never", "🙂🙃"] }));
    let (text, end) = check_stream(&post(server.addr, "/execute", &endless).events());
    assert_eq!(text, "one two");
    assert_eq!((&end.data["finish_reason"], &end.data["tokens_out"]), (&json!("stop"), &json!(15)));
    crate::wait_until(|| server.worker.ended_early_at("endless-stop").is_some());

    let held = body("held", &json!({ "prompt": "see STO", "stop": ["STOP"] }));
    let (text, end) = check_stream(&post(server.addr, "/execute", &held).events());
    assert_eq!((text.as_str(), &end.data["finish_reason"]), ("see STO", &json!("length")));
}

#[test]
fn the_engine_s_failures_are_terminal_events() {
    let server = Server::start(&[]);
    for (job_id, code, retriable) in [
        ("oom", "VRAM_OOM", true),
        ("nan", "INTERNAL", false),
        ("device", "CUDA_ERROR", true),
        ("vanish", "INTERNAL", false),
    ] {
        let (_, error) = check_stream(&post(server.addr, "/execute", &body(job_id, &json!({}))).events());
        assert_eq!(error.name, "error");
        assert_eq!((&error.data["code"], &error.data["retriable"]), (&json!(code), &json!(retriable)));
        assert!(error.data["message"].is_string());
        // The worker goes on.
        let (text, _) = check_stream(&post(server.addr, "/execute", &body("after", &json!({}))).events());
        assert_eq!(text, "hello");
    }
}

#[test]
fn what_the_engine_does_not_take_is_a_plain_error() {
    let server = Server::start(&[]);
    let reply = post(server.addr, "/execute", &body("full", &json!({})));
    assert_eq!((reply.status, reply.header("retry-after")), (429, Some("1")));
    let error = reply.json();
    assert_eq!((&error["code"], &error["retriable"]), (&json!("BUSY"), &json!(true)));
    refused(&server, &body("long", &json!({})), "prompt");
    let capped = Server::start(&["--max-tokens-in", "4"]);
    refused(&capped, &body("in", &json!({})), "prompt");
}

#[test]
fn a_live_name_is_taken_and_free_again() {
    let server = Server::start(&[]);
    let mut first = post(server.addr, "/execute", &body("hang-twice", &json!({})));
    assert_eq!(first.next_event().unwrap().name, "started");
    let second = post(server.addr, "/execute", &body("hang-twice", &json!({})));
    assert_eq!(second.status, 409);
    let error = second.json();
    assert_eq!((&error["code"], &error["field"]), (&json!("INVALID_REQUEST"), &json!("job_id")));
    post(server.addr, "/cancel", &json!({ "job_id": "hang-twice" }));
    check_stream(
        &[vec![crate::http::SseEvent { name: "started".into(), data: json!({}) }], first.events()].concat(),
    );
    let third = post(server.addr, "/execute", &body("hang-twice", &json!({})));
    assert_eq!(third.status, 200, "the name is free as soon as the stream has ended");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn the_events_of_any_text_concatenate_to_it(prompt in "\\PC{1,60}|[a🙂é\n\u{0}\u{301}👩‍🚀]{1,30}") {
        static SERVER: std::sync::OnceLock<Server> = std::sync::OnceLock::new();
        let server = SERVER.get_or_init(|| Server::start(&[]));
        let reply = post(server.addr, "/execute", &json!({ "job_id": "any", "prompt": prompt }));
        let (text, end) = check_stream(&reply.events());
        prop_assert_eq!(&text, &prompt);
        prop_assert_eq!(end.data["tokens_out"].as_u64(), Some(prompt.len() as u64));
    }
}
