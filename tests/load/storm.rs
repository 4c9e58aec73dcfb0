//! Clients that all go away at once.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::Server;
use crate::http::get;

/// As many as a proxy that restarts drops at once.
const CLIENTS: usize = 1000;

/// A client with its first token.
fn begun(server: &Server, number: usize) -> TcpStream {
    let body = format!(
        "{{\"messages\":[{{\"role\":\"user\",\"content\":\"{number}\"}}],\"stream\":true,\"max_tokens\":1900}}"
    );
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
    let request = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
    let mut stream = TcpStream::connect(server.addr).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    stream
}

/// Reads until the answer says something.
fn first_piece(stream: &mut TcpStream) {
    let (mut seen, mut bytes) = (vec![], [0; 4096]);
    while !seen.windows(14).any(|window| window == b"\"content\":\"The") {
        let count = stream.read(&mut bytes).unwrap();
        assert!(count > 0, "{}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&bytes[..count]);
    }
}

#[test]
fn a_thousand_clients_that_drop_mid_stream_free_every_block() {
    // Slow enough that every client has its first token before any has its last.
    let server = Server::start(CLIENTS, Duration::from_millis(20));
    let mut clients: Vec<TcpStream> = (0..CLIENTS).map(|number| begun(&server, number)).collect();
    clients.iter_mut().for_each(first_piece);
    let stats = server.engine.stats();
    assert_eq!((stats.running, stats.cancelled), (CLIENTS as u64, 0), "{stats:?}");
    drop(clients);
    let took = server.wait_idle();
    let stats = server.engine.stats();
    assert_eq!(stats.cancelled, CLIENTS as u64, "{stats:?}");
    eprintln!("load: {CLIENTS} clients left; every block free after {took:?}");
    let (status, health) = get(server.addr, "/health");
    assert_eq!((status, &health["requests_running"]), (200, &0.into()));
    first_piece(&mut begun(&server, 0));
}
