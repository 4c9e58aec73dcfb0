//! A plain HTTP/1.1 client over a blocking socket: it shows exactly what went over the wire.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// One response; its body is read on demand.
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    reader: BufReader<TcpStream>,
    /// Bytes of the current chunk that are not read yet.
    decoded: Vec<u8>,
    ended: bool,
}

/// One server-sent event.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SseEvent {
    pub(crate) name: String,
    pub(crate) data: Value,
}

pub(crate) fn request(
    addr: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Reply {
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {addr}\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in headers {
        head.extend([name, ": ", value, "\r\n"]);
    }
    let mut bytes = (head + "\r\n").into_bytes();
    bytes.extend_from_slice(body);
    raw(addr, &bytes)
}

/// Sends these very bytes and reads the head of the answer.
pub(crate) fn raw(addr: SocketAddr, bytes: &[u8]) -> Reply {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    // The server may answer, and close, before it has read a body it refuses.
    let _ = stream.write_all(bytes);
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let status = line.split(' ').nth(1).unwrap_or_else(|| panic!("status line {line:?}")).parse().unwrap();
    let mut headers = vec![];
    loop {
        line.clear();
        reader.read_line(&mut line).unwrap();
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.push((name.to_ascii_lowercase(), value.to_owned()));
    }
    Reply { status, headers, reader, decoded: vec![], ended: false }
}

pub(crate) fn get(addr: SocketAddr, path: &str) -> (u16, Value) {
    let reply = request(addr, "GET", path, &[], b"");
    (reply.status, reply.json())
}

pub(crate) fn post(addr: SocketAddr, path: &str, body: &Value) -> Reply {
    request(addr, "POST", path, &[("content-type", "application/json")], body.to_string().as_bytes())
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// The whole body as JSON.
    pub(crate) fn json(self) -> Value {
        let body = self.text();
        serde_json::from_str(&body).unwrap_or_else(|e| panic!("{e}: {body}"))
    }

    /// The whole body.
    pub(crate) fn text(mut self) -> String {
        let mut body = vec![];
        if let Some(length) = self.header("content-length") {
            body.resize(length.parse().unwrap(), 0);
            self.reader.read_exact(&mut body).unwrap();
        } else {
            while self.read_chunk() {}
            body = self.decoded;
        }
        String::from_utf8(body).unwrap()
    }

    /// The data of the next event without a name; comments are passed over. `None` at the end of the body.
    pub(crate) fn next_data(&mut self) -> Option<String> {
        loop {
            let text = self.next_block()?;
            if let Some(data) = text.strip_prefix("data: ") {
                assert_eq!(data.trim_end().lines().count(), 1, "{text:?}");
                return Some(data.trim_end().to_owned());
            }
            assert!(text.starts_with(':'), "{text:?}");
        }
    }

    /// All chunks up to `[DONE]`, which must be there and last.
    pub(crate) fn chunks(mut self) -> Vec<Value> {
        let status = self.status;
        assert!(status == 200, "{status}: {}", self.text());
        let mut data: Vec<String> = std::iter::from_fn(|| self.next_data()).collect();
        assert_eq!(data.pop().as_deref(), Some("[DONE]"), "{data:?}");
        data.iter().map(|data| serde_json::from_str(data).unwrap()).collect()
    }

    /// The next event; comments are passed over. `None` at the end of the body.
    pub(crate) fn next_event(&mut self) -> Option<SseEvent> {
        loop {
            let text = self.next_block()?;
            let value = |prefix| text.lines().find_map(|line: &str| line.strip_prefix(prefix));
            if let (Some(name), Some(data)) = (value("event: "), value("data: ")) {
                return Some(SseEvent { name: name.into(), data: serde_json::from_str(data).unwrap() });
            }
            assert!(text.starts_with(':'), "{text:?}");
        }
    }

    /// Everything up to the next blank line.
    fn next_block(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.decoded.windows(2).position(|pair| pair == b"\n\n") {
                let text: Vec<u8> = self.decoded.drain(..end + 2).collect();
                return Some(String::from_utf8(text).expect("an event is whole UTF-8"));
            }
            if !self.read_chunk() {
                assert!(self.decoded.is_empty(), "an event without its blank line");
                return None;
            }
        }
    }

    /// All events until the body ends.
    pub(crate) fn events(mut self) -> Vec<SseEvent> {
        std::iter::from_fn(|| self.next_event()).collect()
    }

    fn read_chunk(&mut self) -> bool {
        let mut line = String::new();
        if self.ended || self.reader.read_line(&mut line).unwrap() == 0 {
            return false;
        }
        let size =
            usize::from_str_radix(line.trim_end(), 16).unwrap_or_else(|_| panic!("chunk size {line:?}"));
        let mut chunk = vec![0; size + 2];
        self.reader.read_exact(&mut chunk).unwrap();
        self.decoded.extend_from_slice(&chunk[..size]);
        self.ended = size == 0;
        size > 0
    }
}
