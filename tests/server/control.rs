//! Ending a request before its time: cancel, disconnect, deadline, drain.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::http::{Reply, SseEvent, get, post, request};
use crate::{Server, check_stream, median, wait_until};

/// What is promised for cancel and disconnect.
const PROMPTLY: Duration = Duration::from_millis(100);

fn start(server: &Server, job_id: &str) -> Reply {
    let reply = post(server.addr, "/execute", &json!({ "job_id": job_id, "prompt": "again and " }));
    assert_eq!(reply.status, 200);
    reply
}

/// Reads up to the first token, so that the sequence runs.
fn first_token(reply: &mut Reply) -> Vec<SseEvent> {
    vec![reply.next_event().unwrap(), reply.next_event().unwrap()]
}

fn cancel(server: &Server, job_id: &str) -> u16 {
    post(server.addr, "/cancel", &json!({ "job_id": job_id })).status
}

#[test]
fn cancel_ends_the_stream_promptly() {
    let server = Server::start(&[]);
    let mut times = vec![];
    for kind in ["hang", "endless", "hang", "endless", "hang"] {
        let job_id = format!("{kind}-{}", times.len());
        let mut stream = start(&server, &job_id);
        let mut events = first_token(&mut stream);
        let began = Instant::now();
        assert_eq!(cancel(&server, &job_id), 202);
        events.extend(stream.events());
        times.push(began.elapsed());
        let (_, error) = check_stream(&events);
        assert_eq!((&error.data["code"], &error.data["retriable"]), (&json!("CANCELLED"), &json!(false)));
        wait_until(|| server.worker.ended_early_at(&job_id).is_some());
    }
    assert!(median(times.clone()) < PROMPTLY, "{times:?}");
}

#[test]
fn cancel_is_idempotent_and_checks_its_body() {
    let server = Server::start(&[]);
    assert_eq!(cancel(&server, "nobody"), 202);
    let mut stream = start(&server, "hang-idempotent");
    let mut events = first_token(&mut stream);
    for _ in 0..3 {
        assert_eq!(cancel(&server, "hang-idempotent"), 202);
    }
    events.extend(stream.events());
    check_stream(&events);
    for body in [json!({}), json!({ "job_id": "" }), json!({ "job_id": 1 })] {
        let reply = post(server.addr, "/cancel", &body);
        assert_eq!(reply.status, 400);
        assert_eq!(reply.json()["field"], "job_id");
    }
}

#[test]
fn cancel_while_tokenising_is_a_plain_499() {
    let server = Server::start(&[]);
    server.block_tokenizer(Duration::from_secs(2));
    let addr = server.addr;
    let request = std::thread::spawn(move || {
        let reply = post(addr, "/execute", &json!({ "job_id": "early", "prompt": "x" }));
        (reply.status, reply.json())
    });
    wait_until(|| server.state.jobs.len() == 1);
    assert_eq!(cancel(&server, "early"), 202);
    let (status, error) = request.join().unwrap();
    assert_eq!((status, &error["code"]), (499, &json!("CANCELLED")));
    assert!(server.worker.submitted.lock().unwrap().is_empty());
}

#[test]
fn a_client_that_goes_away_ends_its_sequence_promptly() {
    let server = Server::start(&[]);
    let mut times = vec![];
    for kind in ["hang", "endless", "hang", "endless", "hang"] {
        let job_id = format!("{kind}-gone-{}", times.len());
        let mut stream = start(&server, &job_id);
        first_token(&mut stream);
        let left = Instant::now();
        drop(stream);
        wait_until(|| server.worker.ended_early_at(&job_id).is_some());
        times.push(server.worker.ended_early_at(&job_id).unwrap().duration_since(left));
    }
    assert!(median(times.clone()) < PROMPTLY, "{times:?}");
    wait_until(|| server.state.jobs.is_empty());
}

#[test]
fn deadlines_end_a_request() {
    let server = Server::start(&["--inference-timeout-sec", "1"]);
    let with_deadline = |job_id: &str, deadline: &str| {
        let body = json!({ "job_id": job_id, "prompt": "x" }).to_string();
        let headers = [("content-type", "application/json"), ("X-Deadline", deadline)];
        request(server.addr, "POST", "/execute", &headers, body.as_bytes())
    };
    for (job_id, deadline, at_least) in [("hang-client", "80", 80), ("hang-worker", "60000", 1000)] {
        let began = Instant::now();
        let (_, error) = check_stream(&with_deadline(job_id, deadline).events());
        let took = began.elapsed();
        assert_eq!(
            (&error.data["code"], &error.data["retriable"]),
            (&json!("INFERENCE_TIMEOUT"), &json!(true))
        );
        assert!(took >= Duration::from_millis(at_least), "{took:?}");
        assert!(took < Duration::from_millis(at_least + 900), "{took:?}");
        wait_until(|| server.worker.ended_early_at(job_id).is_some());
    }
    let reply = with_deadline("none-left", "0");
    assert_eq!(reply.status, 504);
    assert_eq!(reply.json()["code"], "INFERENCE_TIMEOUT");
    for bad in ["soon", "-1", "1.5", ""] {
        let reply = with_deadline("bad", bad);
        assert_eq!(reply.status, 400, "{bad:?}");
        assert_eq!(reply.json()["field"], "X-Deadline");
    }
    assert_eq!(with_deadline("fine", "18446744073709551615").status, 200);
}

#[test]
fn a_drain_lets_requests_finish_and_refuses_others() {
    let mut server = Server::start(&[]);
    let streams: Vec<Reply> = (0..4).map(|n| start(&server, &format!("slow-{n}"))).collect();
    let reply = request(server.addr, "POST", "/shutdown", &[], b"");
    assert_eq!(reply.status, 202);
    let refused = post(server.addr, "/execute", &json!({ "job_id": "late", "prompt": "x" }));
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")));
    assert_eq!(refused.json()["code"], "SHUTTING_DOWN");
    let (status, health) = get(server.addr, "/health");
    assert_eq!((status, &health["status"]), (503, &json!("draining")));
    assert_eq!(get(server.addr, "/ready").0, 503);
    assert_eq!(get(server.addr, "/live").0, 200);
    for stream in streams {
        let (text, end) = check_stream(&stream.events());
        assert_eq!((text.as_str(), end.name.as_str()), ("again and ", "end"));
    }
    server.ended();
}

#[test]
fn what_outlives_the_drain_is_cancelled_with_one_terminal_event() {
    let mut server = Server::start(&["--drain-timeout-sec", "1"]);
    let readers: Vec<std::thread::JoinHandle<Vec<SseEvent>>> = (0..32)
        .map(|n| {
            let mut stream = start(&server, &format!("{}-{n}", ["hang", "endless", "slow"][n % 3]));
            std::thread::spawn(move || {
                let mut events = first_token(&mut stream);
                events.extend(stream.events());
                events
            })
        })
        .collect();
    // A client that never reads: its socket fills up, and it must not hold up the end.
    let body = json!({ "job_id": "endless-deaf", "prompt": "x".repeat(30_000) }).to_string();
    let deaf =
        request(server.addr, "POST", "/execute", &[("content-type", "application/json")], body.as_bytes());
    let began = Instant::now();
    server.signal();
    let took = server.ended().duration_since(began);
    assert!(took >= Duration::from_secs(1) && took < Duration::from_secs(2), "{took:?}");
    let mut codes: Vec<Value> = vec![];
    for reader in readers {
        let (_, last) = check_stream(&reader.join().unwrap());
        codes.push(if last.name == "end" { json!("end") } else { last.data["code"].clone() });
    }
    let cancelled = codes.iter().filter(|code| **code == json!("CANCELLED")).count();
    let finished = codes.iter().filter(|code| **code == json!("end")).count();
    assert_eq!(cancelled + finished, 32, "{codes:?}");
    assert!(cancelled >= 11 && finished >= 10, "{codes:?}");
    drop(deaf);
}

#[test]
fn an_idle_server_ends_at_once() {
    let mut server = Server::start(&[]);
    let idle = std::net::TcpStream::connect(server.addr).unwrap();
    let began = Instant::now();
    server.signal();
    let took = server.ended().duration_since(began);
    assert!(took < Duration::from_secs(1), "{took:?}");
    drop(idle);
}
