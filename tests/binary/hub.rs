//! A hub of two servers on this machine: one that tells what files are, and one that has their bytes. Faults on demand.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::json;
use sha2::{Digest, Sha256};

pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What was asked: method and path, and some headers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Asked {
    pub(crate) line: String,
    pub(crate) range: Option<String>,
    pub(crate) authorization: Option<String>,
}

/// What the hub has, and how it fails.
#[derive(Clone, Debug)]
pub(crate) struct Shelf {
    pub(crate) files: Vec<String>,
    pub(crate) bytes: Vec<u8>,
    /// What the hub says the bytes' name is; their SHA-256 when nothing is set.
    pub(crate) etag: Option<String>,
    /// Bytes after which the next answers are cut, one a request.
    pub(crate) cuts: Vec<usize>,
    /// Whether the server of bytes knows of ranges.
    pub(crate) ranges: bool,
    /// The only token that is good.
    pub(crate) token: Option<&'static str>,
    /// What every question is refused with.
    pub(crate) status: Option<u16>,
}

#[derive(Clone)]
pub(crate) struct Hub {
    pub(crate) addr: SocketAddr,
    bytes_addr: SocketAddr,
    pub(crate) shelf: Arc<Mutex<Shelf>>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Hub {
    /// A hub with these files of one repository, `org/model`; all have the same bytes.
    pub(crate) fn start(files: &[&str]) -> Self {
        let bytes: Vec<u8> = (0..70_001_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let files = files.iter().map(|&file| file.to_owned()).collect();
        let shelf = Shelf { files, bytes, etag: None, cuts: vec![], ranges: true, token: None, status: None };
        let (hub, store) =
            (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
        let (addr, bytes_addr) = (hub.local_addr().unwrap(), store.local_addr().unwrap());
        let it = Self { addr, bytes_addr, shelf: Arc::new(Mutex::new(shelf)), asked: Arc::default() };
        it.clone().serve(hub, Self::tell);
        it.clone().serve(store, Self::give);
        it
    }

    fn serve(self, listener: TcpListener, answer: fn(&Self, &Asked, &mut TcpStream)) {
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (hub, mut stream) = (self.clone(), stream.unwrap());
                std::thread::spawn(move || {
                    let asked = read(&stream);
                    hub.asked.lock().unwrap().push(asked.clone());
                    answer(&hub, &asked, &mut stream);
                });
            }
        });
    }

    pub(crate) fn etag(&self) -> String {
        let shelf = self.shelf.lock().unwrap();
        let hex = |hex: String, byte: &u8| format!("{hex}{byte:02x}");
        let sha256 = || Sha256::digest(&shelf.bytes).iter().fold(String::new(), hex);
        shelf.etag.clone().unwrap_or_else(sha256)
    }

    /// Requests for bytes.
    pub(crate) fn fetched(&self) -> Vec<Asked> {
        let asked = self.asked.lock().unwrap();
        asked.iter().filter(|asked| asked.line.starts_with("GET /bytes")).cloned().collect()
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    fn tell(&self, asked: &Asked, stream: &mut TcpStream) {
        let (etag, shelf) = (self.etag(), self.shelf.lock().unwrap().clone());
        let size = shelf.bytes.len();
        let wanted = shelf.token.map(|token| format!("Bearer {token}"));
        let mut refuse = |status: u16| send(stream, &format!("{status} Refused"), "", b"");
        if let Some(status) = shelf.status {
            return refuse(status);
        }
        if wanted.is_some() && asked.authorization != wanted {
            return refuse(401);
        }
        let path = asked.line.split(' ').nth(1).unwrap_or_default();
        if path == "/api/models/org/model/revision/main?blobs=true" {
            let siblings: Vec<_> =
                shelf.files.iter().map(|file| json!({ "rfilename": file, "size": size })).collect();
            let body = json!({ "sha": COMMIT, "siblings": siblings }).to_string();
            return send(stream, "200 OK", "content-type: application/json\r\n", body.as_bytes());
        }
        let file = path.strip_prefix(&format!("/org/model/resolve/{COMMIT}/"));
        if file.is_none_or(|file| !shelf.files.iter().any(|f| f == file)) {
            return refuse(404);
        }
        let headers = format!(
            "x-linked-etag: \"{etag}\"\r\nx-linked-size: {size}\r\nx-repo-commit: {COMMIT}\r\n\
             location: http://{}/bytes?signature=s\r\n",
            self.bytes_addr
        );
        send(stream, "302 Found", &headers, b"");
    }

    fn give(&self, asked: &Asked, stream: &mut TcpStream) {
        let mut shelf = self.shelf.lock().unwrap();
        let cut = if shelf.cuts.is_empty() { usize::MAX } else { shelf.cuts.remove(0) };
        let size = shelf.bytes.len();
        let range = asked.range.as_ref().filter(|_| shelf.ranges);
        let from = range.map(|range| range["bytes=".len()..].trim_end_matches('-').parse::<usize>().unwrap());
        let (status, extra) = match from {
            Some(from) => ("206 Partial", format!("content-range: bytes {from}-{}/{size}\r\n", size - 1)),
            None => ("200 OK", String::new()),
        };
        let bytes = &shelf.bytes[from.unwrap_or(0)..];
        let head = format!(
            "HTTP/1.1 {status}\r\n{extra}content-length: {}\r\nconnection: close\r\n\r\n",
            bytes.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        // A client may have had enough.
        let _ = stream.write_all(&bytes[..bytes.len().min(cut)]);
    }
}

fn read(stream: &TcpStream) -> Asked {
    let mut asked = Asked::default();
    for line in BufReader::new(stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty()) {
        match line.split_once(": ") {
            Some(("range", value)) => asked.range = Some(value.to_owned()),
            Some(("authorization", value)) => asked.authorization = Some(value.to_owned()),
            Some(_) => {}
            None => asked.line = line,
        }
    }
    asked
}

fn send(stream: &mut TcpStream, status: &str, headers: &str, body: &[u8]) {
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n");
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
}
