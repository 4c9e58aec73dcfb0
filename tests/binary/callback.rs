//! `--callback-url`: whoever starts a worker hears when and where it serves.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;

use serde_json::Value;

use super::worker::{WorkerProcess, haiku_model};

#[test]
fn the_caller_hears_where_a_started_worker_serves() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/workers", listener.local_addr().unwrap());
    let flags = ["--callback-url", &url, "--worker-id", "w-7"];
    let worker = WorkerProcess::start("reference", &haiku_model(), &flags);
    let (mut stream, _) = listener.accept().unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let (mut line, mut head, mut length) = (String::new(), String::new(), 0);
    while reader.read_line(&mut line).unwrap() > 2 {
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length: ") {
            length = value.trim().parse().unwrap();
        }
        head += &line;
        line.clear();
    }
    assert!(head.starts_with("POST /workers HTTP/1.1"), "{head}");
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
    let report: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((&report["worker_id"], &report["model"]), (&"w-7".into(), &"haiku-moe".into()));
    assert_eq!(report["url"], format!("http://{}", worker.addr));
    assert!(report["vram_bytes"].as_u64() > Some(11_000_000), "{report}");
}
