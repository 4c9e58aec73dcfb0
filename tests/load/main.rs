//! The whole worker under load, on a device that takes no arithmetic: what the front end costs, and that nothing is
//! lost, doubled or kept.
//!
//! Speed is printed, not judged: a busy machine is no fault of ours. `LOAD_SECONDS` and `LOAD_STEP_US` make the run
//! longer and the device slower; `LOAD_STREAMS` sets how many streams there are.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a failed step of a test is a failed test"
)]

#[path = "../server/http.rs"]
#[allow(dead_code, reason = "shared with the server's own tests, which use more of it")]
mod http;
#[path = "../support/paced.rs"]
mod paced;
mod process;
mod storm;
mod streams;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use clap::Parser;
use tokio::sync::oneshot;
use worker_orcd::config::WorkerConfig;
use worker_orcd::engine::{Engine, EngineConfig, KvBudget};
use worker_orcd::server::ServerState;
use worker_orcd::server::worker::ModelCard;
use worker_orcd::text::chat::ChatFormat;
use worker_orcd::text::{SpecialParsing, Tokenizer};

use paced::{PacedBackend, PacedModel};

/// Positions of a sequence.
const CONTEXT: usize = 2048;
/// What every answer says, in words and pieces of words as models say them.
const STORY: &str = "The keeper climbed the stair each evening, a hundred and ninety-nine steps, and trimmed the wick; \
    \"good light,\" he said to nobody. Ships went by like thoughts — some near, some far — and the naïve gulls \
    called 🌊 over the grey water until morning.\n";

/// Held by each test: what one measures, another must not spend.
static ALONE: Mutex<()> = Mutex::new(());

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    config: WorkerConfig,
}

/// A server on a free port whose device is paced.
struct Server {
    addr: SocketAddr,
    engine: Engine,
    state: Arc<ServerState>,
    signal: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
    _alone: MutexGuard<'static, ()>,
}

impl Server {
    /// Room for `sequences` at once, and for as many in the queue.
    fn start(sequences: usize, step: Duration) -> Self {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let line = ["worker-orcd", "--model", "paced.gguf", "--drain-timeout-sec", "1"];
        let config = Line::try_parse_from(line).unwrap().config;
        let state = ServerState::loading(&config).unwrap();
        let (engine, step_us) = attach(&state, sequences);
        step_us.store(step.as_micros() as u64, Ordering::Relaxed);
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let addr = listener.local_addr().unwrap();
        let (signal, signalled) = oneshot::channel::<()>();
        let served = Arc::clone(&state);
        let thread = std::thread::spawn(move || {
            let signal = async {
                let _ = signalled.await;
            };
            runtime.block_on(worker_orcd::server::serve(listener, served, signal)).unwrap();
            runtime.shutdown_background();
        });
        Self { addr, engine, state, signal: Some(signal), thread: Some(thread), _alone: alone }
    }

    /// Waits until nothing runs, waits or holds a block; the longest that took.
    fn wait_idle(&self) -> Duration {
        let began = Instant::now();
        loop {
            let stats = self.engine.stats();
            if (stats.running, stats.waiting, stats.kv_blocks_used) == (0, 0, 0) && self.state.jobs.is_empty()
            {
                return began.elapsed();
            }
            assert!(began.elapsed() < Duration::from_secs(20), "never idle: {stats:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let (Some(signal), Some(thread)) = (self.signal.take(), self.thread.take()) {
            let _ = signal.send(());
            assert!(thread.join().is_ok() || std::thread::panicking());
        }
    }
}

/// Loads the model that is not there: the bundled model's tokenizer and format, a paced device.
fn attach(state: &ServerState, sequences: usize) -> (Engine, Arc<AtomicU64>) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/haiku-moe/tokenizer.json");
    let tokenizer = Arc::new(Tokenizer::load_json(&file).unwrap());
    let format = ChatFormat::detect(&tokenizer, None).unwrap();
    let opening = tokenizer.encode("<|channel|>final<|message|>", SpecialParsing::Parse);
    let script = tokenizer.encode(STORY, SpecialParsing::Plain);
    let model = PacedModel { vocab: tokenizer.vocab_size(), context: CONTEXT };
    let (backend, step_us) = PacedBackend::saying(&model, &opening, &script);
    let config = EngineConfig {
        max_batch: sequences,
        max_queue: sequences,
        context: CONTEXT,
        kv_budget: KvBudget::Blocks(sequences * CONTEXT / 16),
        // Prompts cost this device nothing: what is measured is streaming.
        prefill_chunk: 4096,
        warm_up: false,
        ..EngineConfig::default()
    };
    let engine = Engine::start(backend, &model, config).unwrap();
    let card = ModelCard {
        name: "paced".into(),
        quant_kind: "F32".into(),
        context_length: Some(CONTEXT),
        kv_block_size: 16,
        backend: "paced".into(),
        device: "none".into(),
        sm: None,
        cuda_driver_version: None,
    };
    state.attach(card, tokenizer, Some(Arc::new(format)), Box::new(engine.clone())).unwrap();
    (engine, step_us)
}

/// A number of the environment's, or the usual one.
fn setting(name: &str, usual: u64) -> u64 {
    std::env::var(name).ok().map_or(usual, |value| value.parse().unwrap())
}
