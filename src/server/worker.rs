//! The seam below HTTP: who computes tokens.
//!
//! It is a trait so that the server is tested over real sockets with neither a model nor a device.

use std::time::Instant;

use worker_orcd_core::MemoryReport;

use crate::engine::{Engine, EngineError, EngineHistograms, EngineStats, Health, Job, JobStream};

/// The engine, as the server sees it. No call waits for the device.
pub trait Worker: Send + Sync + 'static {
    /// Queues a job.
    ///
    /// # Errors
    ///
    /// The queue is full, the worker drains, the prompt does not fit, or the device has failed.
    fn submit(&self, job: Job) -> Result<JobStream, EngineError>;

    /// Ends the sequence of this name, if there is one.
    fn cancel(&self, job_id: &str);

    /// The state of this moment.
    fn health(&self) -> WorkerHealth;

    /// Figures of this moment.
    fn stats(&self) -> EngineStats;

    /// Distributions since the start.
    fn histograms(&self) -> EngineHistograms;

    /// Takes no more jobs; those that run end by `deadline`.
    fn drain(&self, deadline: Instant);
}

/// The changing part of `/health`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerHealth {
    /// Whether it can serve.
    pub health: Health,
    /// Why it cannot, when the device has failed.
    pub fault: Option<String>,
    /// Everything the last check saw lies in plain device memory.
    pub resident: bool,
    /// Device bytes by purpose.
    pub memory: MemoryReport,
    /// Requests that ended because the key/value cache was dry.
    pub oom_events: u64,
    /// Sequences in the batch.
    pub running: u64,
    /// Sequences that wait for a place in it.
    pub waiting: u64,
}

/// What is known of the model once it is loaded, and never changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelCard {
    /// Name for people and for `started.model`.
    pub name: String,
    /// What the file really holds: `MXFP4`, `Q4_K_M`, …
    pub quant_kind: String,
    /// Positions of the longest sequence.
    pub context_length: Option<usize>,
    /// Positions in a block of the key/value cache.
    pub kv_block_size: usize,
    /// `cuda`, `wgpu` or `reference`.
    pub backend: String,
    /// The device's own name.
    pub device: String,
    /// CUDA compute capability without its dot, `90`.
    pub sm: Option<String>,
    /// As the driver says it, `13.0`.
    pub cuda_driver_version: Option<String>,
}

impl Worker for Engine {
    fn submit(&self, job: Job) -> Result<JobStream, EngineError> {
        self.submit(job)
    }

    fn cancel(&self, job_id: &str) {
        self.cancel(job_id);
    }

    fn health(&self) -> WorkerHealth {
        let stats = self.stats();
        WorkerHealth {
            health: self.health(),
            fault: self.fault().map(str::to_owned),
            resident: self.is_resident(),
            memory: self.memory(),
            oom_events: stats.kv_exhaustions,
            running: stats.running,
            waiting: stats.waiting,
        }
    }

    fn stats(&self) -> EngineStats {
        self.stats()
    }

    fn histograms(&self) -> EngineHistograms {
        self.histograms()
    }

    fn drain(&self, deadline: Instant) {
        self.drain(deadline);
    }
}
