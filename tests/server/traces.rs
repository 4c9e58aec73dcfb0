//! Traces: the caller's trace goes on in headers, log and span, and a collector gets one span a request.

use std::net::TcpListener;

use serde_json::json;

use crate::collector::{Collector, holds};
use crate::http::{get, request};
use crate::{Server, check_stream, wait_until};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

fn unhex(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

fn execute(server: &Server, job: &str, prompt: &str, headers: &[(&str, &str)]) -> crate::http::Reply {
    let body = json!({ "job_id": job, "prompt": prompt }).to_string();
    let headers = [&[("content-type", "application/json")], headers].concat();
    request(server.addr, "POST", "/execute", &headers, body.as_bytes())
}

#[test]
fn the_caller_s_trace_comes_back_with_a_span_of_its_own() {
    let server = Server::start(&[]);
    let caller = format!("00-{TRACE}-{CALLER}-01");
    let reply = execute(&server, "t", "abc", &[("traceparent", &caller)]);
    let answered = reply.header("traceparent").unwrap().to_owned();
    assert!(answered.starts_with(&format!("00-{TRACE}-")) && answered.ends_with("-01"), "{answered}");
    assert_ne!(answered, caller, "the worker's own span");
    check_stream(&reply.events());
    let began = execute(&server, "u", "abc", &[("traceparent", "00-nonsense")]);
    let answered = began.header("traceparent").unwrap();
    assert!(answered.len() == 55 && !answered.contains(TRACE), "a trace of its own: {answered}");
    let refused = execute(&server, "", "abc", &[("traceparent", &caller)]);
    assert!(refused.status == 400 && refused.header("traceparent").unwrap().contains(TRACE));
    assert_eq!(request(server.addr, "GET", "/health", &[], b"").header("traceparent"), None);
}

#[test]
fn a_collector_gets_a_span_of_every_request_and_nothing_of_what_it_says() {
    let collector = Collector::start();
    let mut server = Server::start(&["--otlp-endpoint", &collector.endpoint()]);
    let secret = "Zanzibar8 rendezvous";
    let caller = format!("00-{TRACE}-{CALLER}-01");
    check_stream(&execute(&server, "span-fine", secret, &[("traceparent", &caller)]).events());
    check_stream(&execute(&server, "span-oom-x", secret, &[]).events());
    assert_eq!(execute(&server, "span-bad", "", &[]).status, 400);
    let unwanted = format!("00-{}-{CALLER}-00", TRACE.replace('4', "5"));
    check_stream(&execute(&server, "span-unwanted", secret, &[("traceparent", &unwanted)]).events());
    get(server.addr, "/health");
    wait_until(|| collector.has("span-oom-x"));
    // What comes last is sent before the end.
    check_stream(&execute(&server, "span-last", secret, &[]).events());
    server.signal();
    server.ended();

    let bytes = collector.bytes();
    for part in [
        "text_completion echo",
        "gen_ai.operation.name",
        "gen_ai.usage.output_tokens",
        "span-fine",
        "span-last",
        "VRAM_OOM",
        "INVALID_REQUEST",
        "service.name",
        "worker-orcd",
        "w-test",
    ] {
        assert!(holds(&bytes, part.as_bytes()), "{part}");
    }
    assert!(holds(&bytes, &unhex(TRACE)) && holds(&bytes, &unhex(CALLER)), "the caller's trace and span");
    for part in ["Zanzibar8", "rendezvous", "span-unwanted", "/health"] {
        assert!(!holds(&bytes, part.as_bytes()), "{part}");
    }
    let posts = collector.posts.lock().unwrap();
    assert!(posts.iter().all(|(head, _)| head.starts_with("POST /v1/traces HTTP/1.1\r\n")), "{posts:?}");
}

#[test]
fn a_collector_that_is_away_or_silent_holds_up_nothing() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let away = "http://127.0.0.1:9".to_owned();
    for endpoint in [away, format!("http://{}", silent.local_addr().unwrap())] {
        let mut server = Server::start(&["--otlp-endpoint", &endpoint]);
        for job in 0..4 {
            check_stream(&execute(&server, &job.to_string(), "abc", &[]).events());
        }
        let signalled = std::time::Instant::now();
        server.signal();
        // The last spans get a fifth of a second; a busy machine needs some more.
        assert!(server.ended() - signalled < std::time::Duration::from_secs(3));
    }
}
