//! A collector of traces on this machine, which keeps what it gets.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};

/// What one POST brought: its head and its body.
pub(crate) type Post = (String, Vec<u8>);

/// A collector that keeps what it gets.
pub(crate) struct Collector {
    addr: SocketAddr,
    pub(crate) posts: Arc<Mutex<Vec<Post>>>,
}

impl Collector {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let posts = Arc::<Mutex<Vec<Post>>>::default();
        let kept = Arc::clone(&posts);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let kept = Arc::clone(&kept);
                std::thread::spawn(move || {
                    let mut reader = BufReader::new(stream.unwrap());
                    while let Some(post) = read_post(&mut reader) {
                        kept.lock().unwrap().push(post);
                        let answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n";
                        reader.get_mut().write_all(answer).unwrap();
                    }
                });
            }
        });
        Self { addr, posts }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Whether a body held this.
    pub(crate) fn has(&self, part: &str) -> bool {
        holds(&self.bytes(), part.as_bytes())
    }

    /// Everything the bodies held, one after the other.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.posts.lock().unwrap().iter().flat_map(|(_, body)| body.clone()).collect()
    }
}

fn read_post(reader: &mut impl BufRead) -> Option<Post> {
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length: ") {
            length = value.trim().parse().unwrap();
        }
        if line == "\r\n" {
            break;
        }
        head.push_str(&line);
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((head, body))
}

/// Whether one is in the other.
pub(crate) fn holds(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}
