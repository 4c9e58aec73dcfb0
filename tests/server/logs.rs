//! What the log says of a request, and what it must not.

use std::io::Write;
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};
use worker_orcd::config::LogFormat;
use worker_orcd::server::log::{TextPrint, subscriber};

use crate::http::{post, request};
use crate::{Server, check_stream};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

static LOG: Mutex<Vec<u8>> = Mutex::new(vec![]);

struct Sink;

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        LOG.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Lines of these jobs; other tests of this process may write to the same log.
fn lines_of(jobs: &[&str]) -> Vec<Value> {
    let log = LOG.lock().unwrap();
    let lines =
        std::str::from_utf8(&log).unwrap().lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter(|line| line["job_id"].as_str().is_some_and(|job| jobs.contains(&job))).collect()
}

#[test]
fn the_log_follows_a_request_and_holds_no_text() {
    // Everything, also what libraries say at their most talkative.
    let filter = tracing_subscriber::EnvFilter::new("trace");
    tracing::subscriber::set_global_default(subscriber(LogFormat::Json, "w-log", filter, || Sink)).unwrap();
    let server = Server::start(&[]);
    let secret = "Zanzibar7 rendezvous🙂";
    let jobs = ["log-fine", "hang-log", "oom-log", "full-log"];
    let traced = json!({ "job_id": "log-fine", "prompt": secret, "stop": ["qqq"] }).to_string();
    let place = format!("00-{TRACE}-00f067aa0ba902b7-01");
    let headers = [("content-type", "application/json"), ("traceparent", &place)];
    check_stream(&request(server.addr, "POST", "/execute", &headers, traced.as_bytes()).events());
    let failing = json!({ "job_id": "oom-log", "prompt": secret, "stop": ["qqq"] });
    check_stream(&post(server.addr, "/execute", &failing).events());
    post(server.addr, "/execute", &json!({ "job_id": "full-log", "prompt": secret }));
    post(server.addr, "/execute", &json!({ "job_id": "bad-log", "prompt": secret, "temperature": secret }));
    let mut gone = post(server.addr, "/execute", &json!({ "job_id": "hang-log", "prompt": secret }));
    gone.next_event();
    drop(gone);
    crate::wait_until(|| server.state.jobs.is_empty());
    crate::wait_until(|| lines_of(&["hang-log"]).len() == 2);

    let lines = lines_of(&jobs);
    let events = |job: &str| -> Vec<Value> {
        lines.iter().filter(|line| line["job_id"] == job).map(|line| line["event"].clone()).collect()
    };
    assert_eq!(events("log-fine"), ["execute_start", "execute_end"]);
    assert_eq!(events("oom-log"), ["execute_start", "execute_end", "error"]);
    assert_eq!(events("full-log"), ["error"]);
    assert_eq!(events("hang-log"), ["execute_start", "execute_end"]);
    assert!(lines.iter().all(|line| line["worker_id"] == "w-log" && line["timestamp"].is_string()));
    let traces = |job: &str| -> Vec<Value> {
        lines.iter().filter(|line| line["job_id"] == job).map(|line| line["trace_id"].clone()).collect()
    };
    assert_eq!(traces("log-fine"), [TRACE, TRACE], "the caller's, from the first line to the last");
    let own = traces("oom-log");
    assert!(own.iter().all(|id| *id == own[0] && id.as_str().is_some_and(|id| id.len() == 32)), "{own:?}");

    let line = |job: &str, event: &str| {
        lines.iter().find(|line| line["job_id"] == job && line["event"] == event).unwrap().clone()
    };
    let start = line("log-fine", "execute_start");
    let print = TextPrint::of(secret);
    assert_eq!(
        (&start["prompt_sha256"], &start["prompt_chars"]),
        (&json!(print.sha256()), &json!(print.chars()))
    );
    assert_eq!(start["tokens_in"], secret.len());
    let end = line("log-fine", "execute_end");
    assert_eq!((&end["outcome"], &end["tokens_out"]), (&json!("length"), &json!(secret.len())));
    assert_eq!((&end["tokens_in"], &end["output_chars"]), (&json!(secret.len()), &json!(print.chars())));
    assert_eq!(end["output_sha256"], print.sha256(), "the mock echoes");
    assert!(end["ttft_ms"].is_number() && end["decode_time_ms"].is_number());
    assert_eq!(line("hang-log", "execute_end")["outcome"], "disconnected");
    assert_eq!(line("oom-log", "error")["code"], "VRAM_OOM");
    assert_eq!(line("full-log", "error")["status"], 429);

    let log = String::from_utf8(LOG.lock().unwrap().clone()).unwrap();
    for word in ["Zanzibar7", "rendezvous", "🙂"] {
        assert!(!log.contains(word), "{:?}", log.lines().find(|line| line.contains(word)));
    }
}
