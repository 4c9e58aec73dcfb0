//! Starting the engine, and the handle the rest of the process talks to it through.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use tokio::sync::watch;
use worker_orcd_core::{Backend, MemoryReport};

use super::batch::Batch;
use super::blocks::CacheBlocks;
use super::config::{EngineConfig, StartError};
use super::histogram::{EngineHistograms, Histograms};
use super::job::{EngineError, Job, JobStream};
use super::plans::Plans;
use super::sampler::Sampler;
use super::scheduler::Scheduler;
use super::sequence::Sequence;
use super::stats::{Counters, EngineStats, Health, Shared, add};
use super::step_loop::{Command, StepLoop};
use crate::model::Recorder;

/// A handle to the running engine; clones talk to the same one. When all are gone, it ends what it has and stops.
#[derive(Clone, Debug)]
pub struct Engine {
    shared: Arc<Shared>,
    commands: Sender<Command>,
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
    stopped: watch::Receiver<()>,
}

/// Says that the thread died, should it panic.
struct PanicWatch(Arc<Shared>);

impl Drop for PanicWatch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fault.get_or_init(|| "engine thread panicked".into());
            self.0.broken.get_or_init(|| "engine thread panicked".into());
        }
    }
}

impl Engine {
    /// Creates the cache on `backend`, whose weights are uploaded, compiles every plan and starts the thread.
    ///
    /// # Errors
    /// A setting out of range, no room on the device, or a program it refuses.
    pub fn start(
        mut backend: Box<dyn Backend>,
        recorder: &dyn Recorder,
        mut config: EngineConfig,
    ) -> Result<Self, StartError> {
        config.context = config.context.min(recorder.context_length());
        let groups = recorder.kv_groups();
        let layout = config.kv_layout(&groups)?;
        backend.create_kv(&layout)?;
        let mut plans = Plans::compile(backend.as_mut(), recorder, &config)?;
        if config.warm_up {
            plans.warm_up(backend.as_mut(), &layout, config.max_penalty_tokens)?;
        }
        let windows: Vec<Option<usize>> = groups.iter().map(|group| group.window).collect();
        let blocks = CacheBlocks::new(&layout, &windows, config.token_budget());
        let shared = Arc::new(Shared {
            counters: Counters::default(),
            histograms: Histograms::default(),
            memory: backend.memory(),
            queued: AtomicUsize::new(0),
            max_queue: config.max_queue,
            context: config.context,
            prefix_block_size: config.prefix_cache.then_some(config.block_size),
            vocab_size: recorder.vocab_size(),
            draining: AtomicBool::new(false),
            degraded: AtomicBool::new(false),
            fault: OnceLock::new(),
            broken: OnceLock::new(),
            resident: AtomicBool::new(true),
        });
        add(&shared.counters.kv_blocks_total, blocks.total_blocks());
        let (commands, received) = std::sync::mpsc::channel();
        let step_loop = StepLoop {
            max_penalty_tokens: plans.has_device_chooser().then_some(config.max_penalty_tokens),
            backend,
            plans,
            batch: Batch::new(&layout, config.token_budget(), config.max_batch),
            scheduler: Scheduler::new(blocks, config.max_batch, config.token_budget()),
            shared: Arc::clone(&shared),
            commands: received,
            residency_interval: config.residency_interval,
            sampler: Sampler::default(),
            ended: Vec::new(),
            speaks_first: true,
            device_free: None,
            drain_by: None,
            last_check: Instant::now(),
        };
        let (alive, stopped) = watch::channel(());
        let panic_watch = PanicWatch(Arc::clone(&shared));
        let thread = std::thread::Builder::new().name("engine".into()).spawn(move || {
            let _alive = alive;
            let _panic_watch = panic_watch;
            step_loop.run();
        })?;
        Ok(Self { shared, commands, thread: Arc::new(Mutex::new(Some(thread))), stopped })
    }

    /// Hands a job over. Its events end with `Finished` or `Failed`; should the thread die, they just end.
    ///
    /// # Errors
    /// The queue is full, the worker drains or is broken, or the job cannot fit the context.
    pub fn submit(&self, job: Job) -> Result<JobStream, EngineError> {
        let shared = &self.shared;
        if let Some(reason) = shared.broken.get() {
            return Err(EngineError::Device { reason: reason.clone() });
        }
        if shared.draining.load(Ordering::Relaxed) {
            return Err(EngineError::ShuttingDown);
        }
        if job.prompt.len() >= shared.context {
            let (prompt_tokens, context) = (job.prompt.len(), shared.context);
            return Err(EngineError::PromptTooLong { prompt_tokens, context });
        }
        if let Some(reason) = broken_rule(&job, shared.vocab_size) {
            return Err(EngineError::InvalidJob { reason });
        }
        shared.enter_queue().map_err(|waiting| {
            add(&shared.counters.rejected, 1);
            EngineError::QueueFull { waiting }
        })?;
        let (sender, events) = tokio::sync::mpsc::channel(Sequence::events_needed(&job, shared.context));
        // Made here, on the caller's thread: naming a long prompt's blocks takes longer than a step may wait.
        let salt = job.cache_salt.clone();
        let mut sequence = Sequence::new(job, shared.context, sender, Instant::now());
        let cached_tokens = Arc::clone(&sequence.told_prefix);
        if let Some(block_size) = shared.prefix_block_size {
            sequence.share_blocks(block_size, salt.as_deref());
        }
        let command = Command::Submit(Box::new(sequence));
        if self.commands.send(command).is_err() {
            shared.leave_queue();
            return Err(EngineError::ShuttingDown);
        }
        add(&shared.counters.submitted, 1);
        Ok(JobStream { events, cached_tokens })
    }

    /// Ends every sequence of this id with `Cancelled`, within a step; does nothing when there is none.
    pub fn cancel(&self, id: &str) {
        // A thread that is gone has no sequence to cancel.
        let _ = self.commands.send(Command::Cancel(id.to_owned()));
    }

    /// Takes no more jobs and stops when the present ones have ended; those that have not by `deadline` are cancelled.
    pub fn drain(&self, deadline: Instant) {
        self.shared.draining.store(true, Ordering::Relaxed);
        let _ = self.commands.send(Command::Drain(deadline));
    }

    /// Takes no more jobs, cancels the present ones and stops.
    pub fn shutdown(&self) {
        self.drain(Instant::now());
    }

    /// Why the device can compute no more; unlike a residency violation, after which it still can.
    pub fn device_failure(&self) -> Option<&str> {
        self.shared.broken.get().map(String::as_str)
    }

    /// Resolves when the thread has ended.
    pub async fn stopped(&self) {
        let mut stopped = self.stopped.clone();
        while stopped.changed().await.is_ok() {}
    }

    /// Blocks until the thread has ended, and the device is given back.
    pub fn join(&self) {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = thread.take() {
            // A panic is reported as the worker's fault already.
            let _ = thread.join();
        }
    }

    /// Figures of this moment; never waits for the device.
    pub fn stats(&self) -> EngineStats {
        self.shared.counters.snapshot()
    }

    /// Distributions since the start; never waits for the device.
    pub fn histograms(&self) -> EngineHistograms {
        self.shared.histograms.snapshot()
    }

    /// Whether the worker can serve.
    pub fn health(&self) -> Health {
        self.shared.health()
    }

    /// Why the worker is unhealthy, when it is.
    pub fn fault(&self) -> Option<&str> {
        self.shared.fault.get().map(String::as_str)
    }

    /// Whether the last residency check found every allocation in plain device memory.
    pub fn is_resident(&self) -> bool {
        self.shared.resident.load(Ordering::Relaxed)
    }

    /// Device bytes by purpose. Nothing is allocated after the start, so they never change.
    pub fn memory(&self) -> MemoryReport {
        self.shared.memory
    }

    /// Positions a sequence may have.
    pub fn context_length(&self) -> usize {
        self.shared.context
    }
}

/// The first promise of [`Job`] that `job` breaks.
fn broken_rule(job: &Job, vocab_size: usize) -> Option<&'static str> {
    if job.prompt.is_empty() {
        return Some("prompt is empty");
    }
    if job.max_tokens == 0 {
        return Some("max_tokens is 0");
    }
    if job.prompt.iter().any(|&id| id as usize >= vocab_size) {
        return Some("prompt holds an id outside the vocabulary");
    }
    job.sampling.broken_rule()
}
