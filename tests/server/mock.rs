//! A worker without a model, and a tokenizer without a vocabulary to learn: one token a byte, and the continuation of a prompt is the prompt.
//!
//! The job's name says how the sequence behaves: see [`MockWorker::submit`]; a script replaces the echo.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use worker_orcd::engine::{
    Constraint, EngineError, EngineHistograms, EngineStats, FinishReason, Health, Histogram, Job, JobStream,
    TokenEvent, TokenLogprobs, Usage,
};
use worker_orcd::server::worker::{ModelCard, Worker, WorkerHealth};
use worker_orcd::text::{SpecialIds, Tokenizer, VocabSource};
use worker_orcd_core::MemoryReport;

/// Tokens of the mock's longest sequence.
pub(crate) const CONTEXT: usize = 200_000;

pub(crate) fn card() -> ModelCard {
    ModelCard {
        name: "echo".into(),
        quant_kind: "Q4_K_M".into(),
        context_length: Some(CONTEXT),
        kv_block_size: 16,
        backend: "cuda".into(),
        device: "An H100".into(),
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
    /// Said in place of the echo.
    pub(crate) script: Mutex<Option<Vec<u32>>>,
    /// Says harmony at random, by the seed, in place of anything else.
    pub(crate) at_random: AtomicBool,
    /// What a constrained answer says as far as it may.
    preferred: Mutex<Vec<u32>>,
    pub(crate) stats: Mutex<EngineStats>,
    pub(crate) draining: AtomicBool,
    runtime: tokio::runtime::Handle,
}

impl MockWorker {
    pub(crate) fn on(runtime: tokio::runtime::Handle) -> Self {
        let health = WorkerHealth {
            health: Health::Ready,
            fault: None,
            resident: true,
            memory: MemoryReport {
                weights_bytes: 1000,
                kv_cache_bytes: 200,
                activations_bytes: 30,
                workspace_bytes: 4,
            },
            oom_events: 0,
            running: 0,
            waiting: 0,
        };
        Self {
            submitted: Mutex::default(),
            ended_early: std::sync::Arc::default(),
            health: Mutex::new(health),
            script: Mutex::default(),
            preferred: Mutex::default(),
            at_random: AtomicBool::new(false),
            stats: Mutex::default(),
            draining: AtomicBool::new(false),
            runtime,
        }
    }

    /// Lets constrained answers be this text, as far as their constraint allows it.
    pub(crate) fn prefer(&self, text: &str, server: &crate::Server) {
        let ids =
            server.state.model().unwrap().tokenizer.encode(text, worker_orcd::text::SpecialParsing::Parse);
        *self.preferred.lock().unwrap() = ids;
    }

    pub(crate) fn ended_early_at(&self, job_id: &str) -> Option<Instant> {
        self.ended_early.lock().unwrap().iter().find(|(id, _)| id == job_id).map(|(_, at)| *at)
    }
}

impl Worker for MockWorker {
    /// Echoes the prompt; a word of the name asks for more: `slow` (20 ms a token), `endless` (the prompt again and
    /// again, 1 ms a token), `hang` (one token, then nothing), `oom`, `nan`, `device`, `vanish` (one token, then that
    /// end), `full` and `long` (not taken), `stoptoken` (ends by a stop id).
    fn submit(&self, job: Job) -> Result<JobStream, EngineError> {
        if self.draining.load(Ordering::SeqCst) {
            return Err(EngineError::ShuttingDown);
        }
        match kind(&job.id) {
            "full" => return Err(EngineError::QueueFull { waiting: 64 }),
            "long" => return Err(EngineError::PromptTooLong { prompt_tokens: job.prompt.len(), context: 4 }),
            _ => {}
        }
        self.submitted.lock().unwrap().push(job.clone());
        let (events, receiver) = mpsc::channel(job.max_tokens + 1);
        let preferred = self.preferred.lock().unwrap().clone();
        let constrained =
            job.sampling.constraint.as_ref().map(|constraint| ruled(constraint, &job, &preferred));
        let at_random = self.at_random.load(Ordering::Relaxed).then(|| harmony_at_random(job.sampling.seed));
        let said = at_random
            .or(constrained)
            .or_else(|| self.script.lock().unwrap().clone())
            .unwrap_or_else(|| job.prompt.clone());
        let cached_tokens = std::sync::Arc::new(std::sync::OnceLock::from(job.prompt.len() / 2));
        let ended_early = std::sync::Arc::clone(&self.ended_early);
        self.runtime.spawn(async move {
            tokio::select! {
                () = run(&job, &said, &events) => {}
                () = events.closed() => ended_early.lock().unwrap().push((job.id, Instant::now())),
            }
        });
        Ok(JobStream { events: receiver, cached_tokens })
    }

    fn cancel(&self, _: &str) {}

    fn health(&self) -> WorkerHealth {
        self.health.lock().unwrap().clone()
    }

    fn stats(&self) -> EngineStats {
        *self.stats.lock().unwrap()
    }

    fn histograms(&self) -> EngineHistograms {
        let some = || Histogram { bounds: &[0.5, 1.0], counts: vec![2, 1, 1], sum: 3.5 };
        EngineHistograms {
            time_to_first_token: some(),
            inter_token_latency: some(),
            queue_time: some(),
            prefill_time: some(),
            decode_time: some(),
            time_per_output_token: some(),
            request_time: some(),
            step_duration: some(),
            batch_size: some(),
        }
    }

    fn drain(&self, _: Instant) {
        self.draining.store(true, Ordering::SeqCst);
    }
}

/// The first word of a job's name that means something.
fn kind(job_id: &str) -> &str {
    const KINDS: [&str; 10] =
        ["slow", "endless", "hang", "oom", "nan", "device", "vanish", "full", "long", "stoptoken"];
    job_id.split('-').find(|word| KINDS.contains(word)).unwrap_or_default()
}

/// What a model at random would say under the constraint: logits are hashes, those of ends and closing marks larger.
/// A preferred id outranks all others.
fn ruled(constraint: &Constraint, job: &Job, preferred: &[u32]) -> Vec<u32> {
    let mut random = job.sampling.seed | 1;
    let mut said = vec![];
    while said.len() < job.max_tokens {
        let mut logits: Vec<f32> = (0..264)
            .map(|id: u32| {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let closes = id > 255 || b"\"}]".contains(&(id as u8));
                (random % 1000) as f32 + if closes { 900.0 } else { 0.0 }
            })
            .collect();
        if let Some(&id) = preferred.get(said.len()) {
            logits[id as usize] += 1e6;
        }
        constraint.mask(&mut logits);
        let best = (0..264).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
        assert!(logits[best].is_finite(), "{:?}", constraint.fault());
        constraint.accept(best as u32);
        said.push(best as u32);
        if job.stop_ids.contains(&(best as u32)) {
            break;
        }
    }
    said
}

/// Up to 40 words, markers and bytes, for [`harmony_tokenizer`].
fn harmony_at_random(seed: u64) -> Vec<u32> {
    const WORDS: [&str; 12] = [
        "analysis",
        "commentary",
        "final",
        "assistant",
        " to=functions.f",
        "functions.f",
        " json",
        "user",
        "{\"a\": 1}",
        "Hello",
        "é🦙",
        " ",
    ];
    let mut random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut below = |limit: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random >> 11) as usize % limit
    };
    let mut ids = vec![];
    for _ in 0..below(40) {
        match below(10) {
            0..=4 => ids.push(257 + below(7) as u32),
            5..=8 => ids.extend(WORDS[below(WORDS.len())].bytes().map(u32::from)),
            _ => ids.push(below(256) as u32),
        }
    }
    ids
}

/// Falls by one from -0.5 on.
fn logprobs(id: u32, count: usize) -> TokenLogprobs {
    let top = (0..count).map(|rank| ((id + rank as u32) % 256, -0.5 - rank as f32)).collect();
    TokenLogprobs { chosen: -0.5, top }
}

async fn run(job: &Job, said: &[u32], events: &mpsc::Sender<TokenEvent>) {
    let kind = kind(&job.id);
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
        Box::new(said.iter().copied().cycle())
    } else {
        Box::new(said.iter().copied())
    };
    let (mut generated, mut stopped) = (0, false);
    for (index, id) in ids.take(job.max_tokens).enumerate() {
        if job.stop_ids.contains(&id) {
            stopped = true;
            break;
        }
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        let logprobs = job.sampling.logprobs.map(|count| logprobs(id, count));
        let _ = events.send(TokenEvent::Token { id, index, logprobs }).await;
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
    let stopped = stopped || kind == "stoptoken" && generated < job.max_tokens;
    let reason = if stopped { FinishReason::Stop } else { FinishReason::Length };
    let (prompt_tokens, cached_tokens) = (job.prompt.len(), job.prompt.len() / 2);
    let usage = Usage { prompt_tokens, cached_tokens, generated_tokens: generated, ..Usage::default() };
    let _ = events.send(TokenEvent::Finished { reason, usage }).await;
}

/// A tokenizer whose ids are bytes, and 256 the end.
pub(crate) fn byte_tokenizer() -> Tokenizer {
    tokenizer_with(&["<|endoftext|>"])
}

/// The same with harmony's markers from 257 on.
pub(crate) fn harmony_tokenizer() -> Tokenizer {
    tokenizer_with(&[
        "<|endoftext|>",
        "<|start|>",
        "<|end|>",
        "<|message|>",
        "<|channel|>",
        "<|constrain|>",
        "<|call|>",
        "<|return|>",
    ])
}

/// The byte tokenizer with the tags of calls as tokens that are text, as Qwen's vocabularies have them.
pub(crate) fn tags_tokenizer() -> Tokenizer {
    tokenizer_of_types(&["<|endoftext|>", "<tool_call>", "</tool_call>"], vec![3, 4, 4])
}

fn tokenizer_with(special: &[&str]) -> Tokenizer {
    tokenizer_of_types(special, vec![3; special.len()])
}

fn tokenizer_of_types(special: &[&str], types: Vec<i32>) -> Tokenizer {
    let special = special.iter().map(|&text| text.to_owned());
    let tokens: Vec<String> = (0..=255).map(spelled).chain(special).collect();
    let source = VocabSource {
        model: "gpt2",
        pre: Some("gpt-2"),
        tokens: tokens.iter().map(String::as_bytes).collect(),
        token_types: Some([vec![1; 256], types].concat()),
        merges: Some(vec![]),
        ids: SpecialIds { eos: Some(256), ..SpecialIds::default() },
        ..VocabSource::default()
    };
    Tokenizer::from_gguf(&source).unwrap()
}

/// How vocabularies of byte-level models spell a byte: printable ones as they are, the others from U+0100 on.
fn spelled(byte: u8) -> String {
    let printable = |byte: u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let rank = (0..byte).filter(|&before| !printable(before)).count() as u32;
    let code = if printable(byte) { u32::from(byte) } else { 0x100 + rank };
    char::from_u32(code).unwrap().to_string()
}
