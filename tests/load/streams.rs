//! Hundreds of streams at once: every one whole, everybody else served meanwhile, memory flat.

use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::http::get;
use crate::process::{cpu_ns, resident_bytes};
use crate::{Server, setting};

/// Memory may grow by this between a quarter of the run and its end: what the allocator keeps for 256 streams, but no
/// trace of the tens of thousands of answers.
const GROWTH_BYTES: u64 = 48 << 20;

/// Asks for `/health` a hundred times a second; how long each answer took.
fn watch_health(addr: SocketAddr, over: Arc<AtomicBool>) -> JoinHandle<Vec<Duration>> {
    std::thread::spawn(move || {
        let mut times = vec![];
        while !over.load(Ordering::Relaxed) {
            let began = Instant::now();
            assert_eq!(get(addr, "/health").0, 200);
            times.push(began.elapsed());
            std::thread::sleep(Duration::from_millis(10));
        }
        times.sort_unstable();
        times
    })
}

/// `bench serve` against the server, in a process of its own so that its time is not ours.
fn bench(server: &Server, streams: u64, seconds: u64) -> Value {
    let url = format!("http://{}", server.addr);
    let (streams, seconds) = (streams.to_string(), seconds.to_string());
    let output = Command::new(env!("CARGO_BIN_EXE_worker-orcd"))
        .args(["bench", "serve", "--url", &url, "--concurrency", &streams, "--seconds", &seconds])
        .args(["--requests", "1000000", "--max-tokens", "512"])
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(output.status.success());
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn hundreds_of_streams_are_whole_and_leave_nothing_behind() {
    let (seconds, streams) = (setting("LOAD_SECONDS", 4), setting("LOAD_STREAMS", 256));
    // With what the engine does between steps: 256 tokens each 2.5 ms, 100,000 a second.
    let step = Duration::from_micros(setting("LOAD_STEP_US", 2200));
    let server = Server::start(streams as usize, step);
    let warm = bench(&server, streams, 1 + seconds / 4);
    assert_eq!(warm["failed"], 0, "{warm}");
    let over = Arc::new(AtomicBool::new(false));
    let health = watch_health(server.addr, Arc::clone(&over));
    let (before, memory, tokens) = (cpu(), resident_bytes(), server.engine.stats().generated_tokens);
    let report = bench(&server, streams, seconds);
    let (after, memory_after) = (cpu(), resident_bytes());
    over.store(true, Ordering::Relaxed);
    let health = health.join().unwrap();
    server.wait_idle();

    assert_eq!(report["failed"], 0, "{report}");
    let said = server.engine.stats().generated_tokens - tokens;
    assert_eq!(report["completion_tokens"], said, "every token arrived, and none twice");
    assert_eq!(report["completed"].as_u64().unwrap() * 512, said);
    if let (Some(before), Some(after)) = (memory, memory_after) {
        assert!(after < before + GROWTH_BYTES, "memory grew from {before} to {after} bytes");
        eprintln!("load: memory {} MiB, then {} MiB", before >> 20, after >> 20);
    }
    if let (Some(before), Some(after)) = (before, after) {
        let per_token = |index: usize| (after[index] - before[index]) as f64 / said as f64 / 1e3;
        eprintln!("load: {:.2} us of front end and {:.2} us of engine a token", per_token(0), per_token(1));
    }
    let share = |share: usize| health[(health.len() - 1) * share / 100];
    eprintln!("load: /health p50 {:?} p99 {:?} of {}", share(50), share(99), health.len());
    eprintln!("load: {report}");
}

/// Time of the front end's threads and of the engine's.
fn cpu() -> Option<[u64; 2]> {
    Some([cpu_ns(&["tokio-"])?, cpu_ns(&["engine"])?])
}
