//! A worker and a tokenizer without a model: one token a byte, and the continuation of a prompt is the prompt.
//!
//! The job's name says how the sequence behaves: see [`MockWorker::submit`].

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use worker_orcd::engine::job::{EngineError, FinishReason, Job, JobStream, TokenEvent, Usage};
use worker_orcd::server::worker::{
    Condition, ModelCard, TextDecoder, TextModel, VramBytes, Worker, WorkerHealth,
};

/// Tokens of the mock's longest sequence.
pub(crate) const CONTEXT: usize = 200_000;

pub(crate) fn card() -> ModelCard {
    ModelCard {
        name: "echo".into(),
        quant_kind: "Q4_K_M".into(),
        context_length: Some(CONTEXT),
        backend: "cuda".into(),
        sm: Some("90".into()),
        cuda_driver_version: Some("13.0".into()),
    }
}

#[derive(Debug)]
pub(crate) struct MockWorker {
    /// Every job taken.
    pub(crate) submitted: Mutex<Vec<Job>>,
    /// Names of sequences that ended early, and when that was noticed.
    pub(crate) ended_early: std::sync::Arc<Mutex<Vec<(String, Instant)>>>,
    pub(crate) health: Mutex<WorkerHealth>,
    pub(crate) draining: AtomicBool,
    runtime: tokio::runtime::Handle,
}

impl MockWorker {
    pub(crate) fn on(runtime: tokio::runtime::Handle) -> Self {
        let health = WorkerHealth {
            condition: Condition::Healthy,
            resident: true,
            vram: VramBytes { weights: 1000, kv_cache: 200, activations: 30, workspace: 4 },
            oom_events: 0,
            running: 0,
            waiting: 0,
        };
        Self {
            submitted: Mutex::default(),
            ended_early: std::sync::Arc::default(),
            health: Mutex::new(health),
            draining: AtomicBool::new(false),
            runtime,
        }
    }

    pub(crate) fn ended_early_at(&self, job_id: &str) -> Option<Instant> {
        self.ended_early.lock().unwrap().iter().find(|(id, _)| id == job_id).map(|(_, at)| *at)
    }
}

impl Worker for MockWorker {
    /// Echoes the prompt; a name's beginning asks for more: `slow` (20 ms a token), `endless` (the prompt again and
    /// again, 1 ms a token), `hang` (one token, then nothing), `oom`, `nan`, `device`, `vanish` (one token, then that
    /// end), `full` and `long` (not taken), `stoptoken` (ends by a stop id).
    fn submit(&self, job: Job) -> Result<JobStream, EngineError> {
        if self.draining.load(Ordering::SeqCst) {
            return Err(EngineError::ShuttingDown);
        }
        match job.id.split('-').next().unwrap_or_default() {
            "full" => return Err(EngineError::QueueFull { waiting: 64 }),
            "long" => return Err(EngineError::PromptTooLong { prompt_tokens: job.prompt.len(), context: 4 }),
            _ => {}
        }
        self.submitted.lock().unwrap().push(job.clone());
        let (events, receiver) = mpsc::channel(job.max_tokens + 1);
        let ended_early = std::sync::Arc::clone(&self.ended_early);
        self.runtime.spawn(async move {
            tokio::select! {
                () = run(&job, &events) => {}
                () = events.closed() => ended_early.lock().unwrap().push((job.id, Instant::now())),
            }
        });
        Ok(JobStream { events: receiver })
    }

    fn cancel(&self, _: &str) {}

    fn health(&self) -> WorkerHealth {
        self.health.lock().unwrap().clone()
    }

    fn drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
    }
}

async fn run(job: &Job, events: &mpsc::Sender<TokenEvent>) {
    let kind = job.id.split('-').next().unwrap_or_default();
    let pause = match kind {
        "slow" => Duration::from_millis(20),
        "endless" => Duration::from_millis(1),
        _ => Duration::ZERO,
    };
    let failure = match kind {
        "oom" => Some(EngineError::KvExhausted),
        "nan" => Some(EngineError::NonFiniteLogits),
        "device" => Some(EngineError::Device { reason: "lost".into() }),
        _ => None,
    };
    let ids: Box<dyn Iterator<Item = u32> + Send> = if kind == "endless" {
        Box::new(job.prompt.iter().copied().cycle())
    } else {
        Box::new(job.prompt.iter().copied())
    };
    let mut generated = 0;
    for (index, id) in ids.take(job.max_tokens).enumerate() {
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        let _ = events.send(TokenEvent::Token { id, index, logprobs: None }).await;
        generated = index + 1;
        match kind {
            "hang" => std::future::pending::<()>().await,
            "vanish" => return,
            _ => {}
        }
        if let Some(error) = failure {
            let _ = events.send(TokenEvent::Failed { error }).await;
            return;
        }
    }
    let stopped = kind == "stoptoken" && generated < job.max_tokens;
    let reason = if stopped { FinishReason::Stop } else { FinishReason::Length };
    let usage = Usage { prompt_tokens: job.prompt.len(), generated_tokens: generated, ..Usage::default() };
    let _ = events.send(TokenEvent::Finished { reason, usage }).await;
}

/// Ids are bytes. A prompt that begins with `SLEEP` takes two seconds to tokenise.
#[derive(Debug)]
pub(crate) struct ByteText;

impl TextModel for ByteText {
    fn kind(&self) -> &'static str {
        "gguf-bpe"
    }

    fn vocab_size(&self) -> usize {
        256
    }

    fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, String> {
        if text.starts_with("SLEEP") {
            std::thread::sleep(Duration::from_secs(2));
        }
        Ok(text.bytes().map(u32::from).collect())
    }

    fn count_tokens(&self, text: &str) -> Result<usize, String> {
        Ok(text.len())
    }

    fn stop_ids(&self) -> Vec<u32> {
        vec![0]
    }

    fn decoder(&self) -> Box<dyn TextDecoder> {
        Box::<ByteDecoder>::default()
    }
}

#[derive(Default)]
struct ByteDecoder(Vec<u8>);

impl TextDecoder for ByteDecoder {
    fn push(&mut self, id: u32) -> String {
        self.0.push(u8::try_from(id).unwrap());
        match std::str::from_utf8(&self.0) {
            Ok(text) => {
                let text = text.to_owned();
                self.0.clear();
                text
            }
            Err(_) => String::new(),
        }
    }

    fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.0)).into_owned()
    }
}
