//! The server over real loopback sockets, with a worker and a tokenizer that need no model.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a failed step of a test is a failed test"
)]

mod callback;
mod chat;
#[path = "../support/collector.rs"]
mod collector;
mod complaints;
mod completions;
mod constrained;
mod control;
mod deploy;
mod engine;
mod execute;
mod gate;
mod harmony_streams;
mod health;
mod http;
mod info;
mod logs;
mod metrics;
mod mock;
mod openapi;
mod responses;
mod status_page;
mod tls;
mod tokenize;
mod traces;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use tokio::sync::oneshot;
use worker_orcd::config::WorkerConfig;
use worker_orcd::engine::{EngineError, EngineHistograms, EngineStats, Job, JobStream};
use worker_orcd::server::ServerState;
use worker_orcd::server::worker::{Worker, WorkerHealth};
use worker_orcd::text::Tokenizer;
use worker_orcd::text::chat::ChatFormat;

use http::SseEvent;
use mock::MockWorker;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    config: WorkerConfig,
}

/// The server keeps one end of the mock, the test the other.
struct Shared(Arc<MockWorker>);

impl Worker for Shared {
    fn submit(&self, job: Job) -> Result<JobStream, EngineError> {
        self.0.submit(job)
    }

    fn cancel(&self, job_id: &str) {
        self.0.cancel(job_id);
    }

    fn health(&self) -> WorkerHealth {
        self.0.health()
    }

    fn stats(&self) -> EngineStats {
        self.0.stats()
    }

    fn histograms(&self) -> EngineHistograms {
        self.0.histograms()
    }

    fn drain(&self, deadline: Instant) {
        self.0.drain(deadline);
    }
}

/// A server on a free port, with its own runtime.
struct Server {
    addr: SocketAddr,
    worker: Arc<MockWorker>,
    state: Arc<ServerState>,
    runtime: tokio::runtime::Handle,
    signal: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<Instant>>,
}

impl Server {
    fn start(flags: &[&str]) -> Self {
        let server = Self::start_loading(flags);
        server.attach();
        server
    }

    /// A server whose model is not there yet.
    fn start_loading(flags: &[&str]) -> Self {
        let line = ["worker-orcd", "--model", "echo.gguf", "--worker-id", "w-test"].iter().chain(flags);
        let config = Line::try_parse_from(line).unwrap().config;
        config.validate().unwrap();
        let state = ServerState::loading(&config).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .max_blocking_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let handle = runtime.handle().clone();
        let worker = Arc::new(MockWorker::on(handle.clone()));
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let addr = listener.local_addr().unwrap();
        let (signal, signalled) = oneshot::channel::<()>();
        let served = Arc::clone(&state);
        let thread = std::thread::spawn(move || {
            let signal = async {
                let _ = signalled.await;
            };
            runtime.block_on(worker_orcd::server::serve(listener, served, signal)).unwrap();
            let ended = Instant::now();
            runtime.shutdown_background();
            ended
        });
        Self { addr, worker, state, runtime: handle, signal: Some(signal), thread: Some(thread) }
    }

    /// A server whose model converses as `template` says, or in harmony where its vocabulary has it.
    fn start_chat(flags: &[&str], tokenizer: Tokenizer, template: Option<&str>) -> Self {
        let server = Self::start_loading(flags);
        let tokenizer = Arc::new(tokenizer);
        let format = ChatFormat::detect(&tokenizer, template).unwrap();
        let worker = Box::new(Shared(Arc::clone(&server.worker)));
        server.state.attach(mock::card(), tokenizer, Some(Arc::new(format)), worker).unwrap();
        server
    }

    fn attach(&self) {
        let worker = Box::new(Shared(Arc::clone(&self.worker)));
        self.state.attach(mock::card(), Arc::new(mock::byte_tokenizer()), None, worker).unwrap();
    }

    /// Lets the model say this from now on.
    fn script(&self, text: &str) {
        let model = self.state.model().unwrap();
        let ids = model.tokenizer.encode(text, worker_orcd::text::SpecialParsing::Parse);
        *self.worker.script.lock().unwrap() = Some(ids);
    }

    /// Keeps the only thread for tokenising busy.
    fn block_tokenizer(&self, time: Duration) {
        self.runtime.spawn_blocking(move || std::thread::sleep(time));
    }

    /// What SIGTERM does.
    fn signal(&mut self) {
        let _ = self.signal.take().unwrap().send(());
    }

    /// When `serve` returned.
    fn ended(&mut self) -> Instant {
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let (Some(signal), Some(thread)) = (self.signal.take(), self.thread.take()) {
            let _ = signal.send(());
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking());
        }
    }
}

/// Checks the order that every stream keeps and returns its text and its terminal event.
fn check_stream(events: &[SseEvent]) -> (String, SseEvent) {
    let names: Vec<&str> = events.iter().map(|event| event.name.as_str()).collect();
    assert_eq!(names.first(), Some(&"started"), "{names:?}");
    let terminal = |name: &&str| matches!(*name, "end" | "error");
    assert_eq!(names.iter().filter(|name| terminal(name)).count(), 1, "{names:?}");
    assert!(names.last().is_some_and(terminal), "{names:?}");
    let after_tokens = names.iter().skip(1).position(|name| *name != "token").unwrap() + 1;
    assert!(matches!(names[after_tokens..], ["metrics", "end"] | ["end" | "error"]), "{names:?}");
    let tokens = &events[1..after_tokens];
    let indices: Vec<u64> = tokens.iter().map(|token| token.data["i"].as_u64().unwrap()).collect();
    assert!(indices.windows(2).all(|pair| pair[0] <= pair[1]), "{indices:?}");
    let pieces: Vec<&str> = tokens.iter().map(|token| token.data["t"].as_str().unwrap()).collect();
    assert!(pieces.iter().all(|piece| !piece.is_empty()));
    (pieces.concat(), events.last().unwrap().clone())
}

/// Waits until it holds; timings that are promised are asserted by their tests, this is only patience.
fn wait_until(mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(10), "waited for 10 s");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The middle one of several measurements: a busy machine may delay any single one.
fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}
