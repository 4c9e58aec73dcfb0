//! Who is let in: keys, origins, sizes.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::Server;
use crate::http::{raw, request};

fn with_keys(flags: &[&str]) -> (Server, tempfile::NamedTempFile) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "# ours\nsecret-key\n").unwrap();
    let path = file.path().display().to_string();
    (Server::start(&[&["--api-key-file", &path], flags].concat()), file)
}

#[test]
fn keys_guard_everything_but_probes() {
    let (server, _file) = with_keys(&[]);
    let ask = |method, path, headers: &[(&str, &str)]| request(server.addr, method, path, headers, b"");
    for path in ["/health", "/ready", "/live"] {
        assert_eq!(ask("GET", path, &[]).status, 200, "{path}");
    }
    for (method, path) in [
        ("GET", "/metrics"),
        ("GET", "/v1/models"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/execute"),
        ("POST", "/cancel"),
        ("POST", "/shutdown"),
        ("GET", "/nowhere"),
    ] {
        assert_eq!(ask(method, path, &[]).status, 401, "{path}");
        assert_eq!(ask(method, path, &[("authorization", "Bearer secret-ke")]).status, 401, "{path}");
    }
    let error = ask("GET", "/v1/models", &[]).json();
    assert_eq!(error["error"]["code"], "invalid_api_key");
    assert_eq!(error["error"]["type"], "authentication_error");
    assert_eq!(ask("POST", "/execute", &[]).json()["code"], "UNAUTHORIZED");
    assert_eq!(ask("GET", "/v1/models", &[("Authorization", "Bearer secret-key")]).status, 200);
    assert_eq!(ask("GET", "/metrics", &[("x-api-key", "secret-key")]).status, 200);
    assert!(!server.state.jobs.is_closed(), "nobody without a key has stopped it");
}

#[test]
fn pages_of_other_origins_can_stop_nothing() {
    let server = Server::start(&[]);
    for origin in ["http://evil.example", "null", "http://localhost:1"] {
        let reply = request(server.addr, "POST", "/shutdown", &[("origin", origin)], b"");
        assert_eq!(reply.status, 403, "{origin}");
        assert_eq!(reply.header("access-control-allow-origin"), None);
        assert_eq!(request(server.addr, "OPTIONS", "/shutdown", &[("origin", origin)], b"").status, 403);
    }
    assert!(!server.state.jobs.is_closed());
    let own = format!("http://{}", server.addr);
    assert_eq!(request(server.addr, "POST", "/shutdown", &[("origin", &own)], b"").status, 202);
}

#[test]
fn named_origins_may_ask() {
    let (server, _file) = with_keys(&["--cors-origin", "http://ours.example,http://localhost:3000"]);
    let origin = ("origin", "http://localhost:3000");
    let wanted = [
        origin,
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "authorization,content-type"),
    ];
    let reply = request(server.addr, "OPTIONS", "/v1/chat/completions", &wanted, b"");
    assert_eq!(reply.status, 204, "a preflight carries no key");
    assert_eq!(reply.header("access-control-allow-origin"), Some("http://localhost:3000"));
    assert_eq!(reply.header("access-control-allow-headers"), Some("authorization,content-type"));
    assert_eq!(reply.header("vary"), Some("origin"));
    let reply = request(server.addr, "GET", "/v1/models", &[origin, ("x-api-key", "secret-key")], b"");
    assert_eq!(reply.header("access-control-allow-origin"), Some("http://localhost:3000"));
    let refused = request(server.addr, "POST", "/v1/completions", &[origin], b"");
    assert_eq!(
        (refused.status, refused.header("access-control-allow-origin")),
        (401, Some("http://localhost:3000"))
    );
    let other = request(server.addr, "POST", "/v1/completions", &[("origin", "http://evil.example")], b"");
    assert_eq!((other.status, other.header("access-control-allow-origin")), (403, None));
}

#[test]
fn heads_have_their_bounds() {
    let server = Server::start(&[]);
    let many: Vec<String> = (0..200).map(|n| format!("x-{n}: y\r\n")).collect();
    let many = many.concat();
    assert_eq!(
        raw(server.addr, format!("GET /live HTTP/1.1\r\nhost: x\r\n{many}\r\n").as_bytes()).status,
        431
    );
    let long = format!("GET /live HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "y".repeat(256 << 10));
    assert_eq!(raw(server.addr, long.as_bytes()).status, 431);
    let fits = format!("GET /live HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "y".repeat(8 << 10));
    assert_eq!(raw(server.addr, fits.as_bytes()).status, 200);
}

#[test]
fn bodies_have_their_bounds() {
    let server = Server::start(&[]);
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        (32 << 20) + 1
    );
    let reply = raw(server.addr, head.as_bytes());
    assert_eq!(reply.status, 413);
    assert_eq!(reply.json()["error"]["type"], "invalid_request_error");
}

#[test]
fn a_client_that_sends_nothing_holds_up_nobody() {
    let server = Server::start(&[]);
    let mut idle: Vec<TcpStream> = (0..100).map(|_| TcpStream::connect(server.addr).unwrap()).collect();
    for stream in &mut idle {
        stream.write_all(b"GET /live HTTP/1.1\r\nhost:").unwrap();
    }
    assert_eq!(crate::http::get(server.addr, "/live").0, 200);
    let last = idle.last_mut().unwrap();
    last.write_all(b" x\r\n\r\n").unwrap();
    last.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut answer = [0; 15];
    last.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
}
