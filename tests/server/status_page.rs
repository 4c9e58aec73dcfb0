//! `GET /` and `GET /status`; how the page looks and behaves is tried in a browser, by `tests/clients`.

use serde_json::{Value, json};

use crate::http::{get, post, request};
use crate::{Server, wait_until};

#[test]
fn the_page_is_there_in_every_state_and_lets_nothing_else_in() {
    let server = Server::start_loading(&[]);
    let fetch = || request(server.addr, "GET", "/", &[], b"");
    let mut nonces = vec![];
    for _ in 0..2 {
        let reply = fetch();
        assert_eq!((reply.status, reply.header("content-type")), (200, Some("text/html; charset=utf-8")));
        assert_eq!(
            (reply.header("cache-control"), reply.header("referrer-policy")),
            (Some("no-store"), Some("no-referrer"))
        );
        let policy = reply.header("content-security-policy").unwrap().to_owned();
        assert!(policy.starts_with("default-src 'none'; ") && !policy.contains("unsafe"), "{policy}");
        assert!(policy.contains("frame-ancestors 'none'"), "{policy}");
        let nonce = policy.split("'nonce-").nth(1).unwrap().split('\'').next().unwrap().to_owned();
        let page = reply.text();
        assert_eq!(page.matches(&format!("nonce=\"{nonce}\"")).count(), 2);
        assert!(!page.contains("__"), "every place is filled");
        nonces.push(nonce);
    }
    assert_ne!(nonces[0], nonces[1]);
    assert_eq!(request(server.addr, "POST", "/", &[], b"").status, 405);
}

#[test]
fn status_is_health_with_figures_and_always_200() {
    let server = Server::start_loading(&[]);
    let (status, report) = get(server.addr, "/status");
    assert_eq!((status, &report["status"], &report["stats"]), (200, &json!("loading"), &Value::Null));
    server.attach();
    server.worker.stats.lock().unwrap().generated_tokens = 77;
    drop(post(server.addr, "/execute", &json!({ "job_id": "a", "prompt": "ab" })).events());
    wait_until(|| get(server.addr, "/status").1["stats"]["requests"]["length"] == 1);
    let (_, mut report) = get(server.addr, "/status");
    let stats = report["stats"].take();
    assert_eq!((&stats["tokens_generated"], &report["locked"]), (&json!(77), &json!(false)));
    assert_eq!(stats["time_to_first_token"], json!({ "sum": 3.5, "count": 4 }));
    let (_, health) = get(server.addr, "/health");
    for (name, value) in health.as_object().unwrap() {
        assert!(name == "uptime_seconds" || report[name] == *value, "{name}");
    }
}

#[test]
fn figures_are_for_those_who_bring_a_key() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "secret-key\n").unwrap();
    let server = Server::start(&["--api-key-file", file.path().to_str().unwrap()]);
    assert_eq!(request(server.addr, "GET", "/", &[], b"").status, 200);
    let report = |key: &str| request(server.addr, "GET", "/status", &[("authorization", key)], b"").json();
    let locked = report("Bearer wrong");
    assert_eq!(
        (&locked["locked"], &locked["stats"], &locked["status"]),
        (&json!(true), &Value::Null, &json!("healthy"))
    );
    let open = report("Bearer secret-key");
    assert_eq!((&open["locked"], open["stats"].is_object()), (&json!(false), true));
}
