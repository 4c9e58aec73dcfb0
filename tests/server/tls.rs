//! HTTPS: what encrypted clients get, and that those who do not finish their handshake are in nobody's way.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use worker_orcd::server::ServerState;
use worker_orcd::server::tls::Tls;

use crate::{Line, Server};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tls").join(name)
}

fn start() -> Server {
    let (certificate, key) = (fixture("localhost.pem"), fixture("localhost.key.pem"));
    Server::start(&["--ssl-certfile", certificate.to_str().unwrap(), "--ssl-keyfile", key.to_str().unwrap()])
}

/// A client that trusts the fixture alone and offers these protocols.
fn connect(addr: SocketAddr, protocols: &[&str]) -> StreamOwned<ClientConnection, TcpStream> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(fixture("localhost.pem")).unwrap()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    let name = ServerName::try_from("localhost").unwrap();
    let stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), stream)
}

/// Everything the server answers to one request with `connection: close`.
fn ask(addr: SocketAddr, request: &str) -> String {
    let mut stream = connect(addr, &["h2", "http/1.1"]);
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    // A server that closes without saying so is met after the last byte, which is all that counts here.
    let _ = stream.read_to_string(&mut answer);
    assert_eq!(stream.conn.alpn_protocol(), Some(&b"http/1.1"[..]));
    answer
}

fn health(addr: SocketAddr) -> String {
    ask(addr, "GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
}

#[test]
fn https_answers_and_streams() {
    let server = start();
    assert!(health(server.addr).starts_with("HTTP/1.1 200 OK"));
    let body = r#"{"job_id":"tls","prompt":"over the wire"}"#;
    let head =
        format!("content-type: application/json\r\ncontent-length: {}\r\nconnection: close", body.len());
    let answer =
        ask(server.addr, &format!("POST /execute HTTP/1.1\r\nhost: localhost\r\n{head}\r\n\r\n{body}"));
    assert!(answer.contains("event: started") && answer.contains("event: end"), "{answer}");
}

#[test]
fn other_protocols_and_plain_http_are_not_answered() {
    let server = start();
    let mut only_h2 = connect(server.addr, &["h2"]);
    assert!(only_h2.write_all(b"GET / HTTP/1.1\r\n\r\n").and_then(|()| only_h2.flush()).is_err());
    let mut plain = TcpStream::connect(server.addr).unwrap();
    plain.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    plain.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    let mut answer = vec![];
    let _ = plain.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    assert!(health(server.addr).starts_with("HTTP/1.1 200 OK"));
}

#[test]
fn unfinished_handshakes_hold_up_nobody_and_no_shutdown() {
    let mut server = start();
    let silent: Vec<TcpStream> = (0..64).map(|_| TcpStream::connect(server.addr).unwrap()).collect();
    let mut babbling = TcpStream::connect(server.addr).unwrap();
    // The head of a handshake record that never goes on.
    babbling.write_all(&[22, 3, 1, 2, 0, 1]).unwrap();
    let began = Instant::now();
    assert!(health(server.addr).starts_with("HTTP/1.1 200 OK"));
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let signalled = Instant::now();
    server.signal();
    // Well below the ten seconds a handshake may take; a busy machine needs some of it.
    assert!(server.ended() - signalled < Duration::from_secs(3));
    drop((silent, babbling));
}

#[test]
fn files_that_do_not_serve_are_named_at_the_start() {
    let (good, key) = (fixture("localhost.pem"), fixture("localhost.key.pem"));
    for (certificate, key, named, reason) in [
        (fixture("absent.pem"), key.clone(), "absent.pem", "No such file"),
        (good.clone(), fixture("absent.pem"), "absent.pem", "No such file"),
        (key.clone(), key.clone(), "localhost.key.pem", "expected a PEM certificate"),
        (good.clone(), good.clone(), "localhost.pem", "expected a PEM private key"),
        (good.clone(), fixture("other.key.pem"), "other.key.pem", "KeyMismatch"),
    ] {
        let error = Tls::load(&certificate, &key).unwrap_err().to_string();
        assert!(error.contains(named) && error.contains(reason), "{error}");
    }
    let (absent, key) = (fixture("absent.pem"), key.to_str().unwrap().to_owned());
    let flags = ["w", "--model", "m", "--ssl-certfile", absent.to_str().unwrap(), "--ssl-keyfile", &key];
    let config = Line::try_parse_from(flags).unwrap().config;
    assert!(ServerState::loading(&config).unwrap_err().to_string().contains("absent.pem"));
}
