//! `--callback-url`: one POST when the worker serves, however the receiver behaves.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use worker_orcd::server::callback::{Patience, announce};

use crate::Server;

const HASTE: Patience =
    Patience { attempts: 4, answer_time: Duration::from_millis(300), first_pause: Duration::from_millis(10) };

/// Answers one connection after the other with these statuses, and returns what was posted. 0: no answer at all.
fn receiver(statuses: &'static [u16]) -> (String, std::thread::JoinHandle<Vec<Value>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/ready?key=1", listener.local_addr().unwrap());
    let thread = std::thread::spawn(move || {
        let mut posted = vec![];
        let mut silent = vec![];
        for &status in statuses {
            let (mut stream, _) = listener.accept().unwrap();
            if status == 0 {
                silent.push(stream);
                continue;
            }
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let (mut line, mut length) = (String::new(), 0);
            while reader.read_line(&mut line).unwrap() > 2 {
                let header = line.to_ascii_lowercase();
                if let Some(value) = header.strip_prefix("content-length: ") {
                    length = value.trim().parse().unwrap();
                }
                assert!(posted.len() > 4 || !line.starts_with("GET"), "{line}");
                line.clear();
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            posted.push(serde_json::from_slice(&body).unwrap());
            let answer = format!(
                "HTTP/1.1 {status} X\r\nlocation: /again\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            );
            stream.write_all(answer.as_bytes()).unwrap();
        }
        posted
    });
    (url, thread)
}

fn tell(server: &Server, url: &str, local: &str) -> Duration {
    let began = Instant::now();
    let local: SocketAddr = local.parse().unwrap();
    server.runtime.block_on(announce(Arc::clone(&server.state), url.to_owned(), local, HASTE));
    began.elapsed()
}

#[test]
fn the_receiver_is_told_once_who_serves_where_and_with_how_much_memory() {
    let server = Server::start(&[]);
    let (url, receiver) = receiver(&[204]);
    tell(&server, &url, "127.0.0.1:8099");
    let expected =
        json!({ "worker_id": "w-test", "url": "http://127.0.0.1:8099", "model": "echo", "vram_bytes": 1234 });
    assert_eq!(receiver.join().unwrap(), [expected]);
}

#[test]
fn a_receiver_that_stumbles_is_told_again() {
    let server = Server::start(&[]);
    let (url, receiver) = receiver(&[503, 0, 429, 200]);
    tell(&server, &url, "0.0.0.0:8099");
    let posted = receiver.join().unwrap();
    assert_eq!(posted.len(), 3);
    assert!(posted.iter().all(|report| report["url"] == "http://127.0.0.1:8099"), "{posted:?}");
}

#[test]
fn what_cannot_pass_is_not_repeated_and_silence_is_not_waited_for() {
    let server = Server::start(&[]);
    for status in [&[404_u16][..], &[302], &[401]] {
        let (url, receiver) = receiver(status);
        tell(&server, &url, "127.0.0.1:8099");
        assert_eq!(receiver.join().unwrap().len(), 1, "{status:?}");
    }
    tell(&server, "not a url", "127.0.0.1:8099");
    // Nobody listens there.
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert!(tell(&server, &format!("http://{closed}/"), "127.0.0.1:8099") < Duration::from_secs(5));
    server.state.close();
    assert!(tell(&server, &format!("http://{closed}/"), "127.0.0.1:8099") < Duration::from_millis(250));
}
