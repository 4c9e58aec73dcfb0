//! The two seams below HTTP: who computes tokens ([`Worker`]) and who knows text ([`TextModel`]).
//!
//! They are traits so that the server is tested over real sockets with neither a model nor a device.

use crate::engine::job::{EngineError, Job, JobStream};

/// The engine, as the server sees it. No call blocks on the device.
pub trait Worker: Send + Sync + 'static {
    /// Queues a job.
    ///
    /// # Errors
    ///
    /// The queue is full, the worker drains, the prompt does not fit, or the device has failed.
    fn submit(&self, job: Job) -> Result<JobStream, EngineError>;

    /// Ends the sequence of this name, if there is one; its stream ends with `Cancelled`.
    fn cancel(&self, job_id: &str);

    /// The last published state. Answers at once, whatever the device does.
    fn health(&self) -> WorkerHealth;

    /// Takes no more jobs; those taken go on.
    fn drain(&self);
}

/// How well the worker is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// As it should be.
    Healthy,
    /// Serving, but the last request ran out of memory.
    Degraded,
    /// Serving no more.
    Unhealthy,
}

/// The changing part of `/health`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerHealth {
    /// How well it is.
    pub condition: Condition,
    /// Every weight lies in device memory.
    pub resident: bool,
    /// Device bytes by purpose.
    pub vram: VramBytes,
    /// Requests that ended because the key/value cache was dry.
    pub oom_events: u64,
    /// Sequences in the batch.
    pub running: usize,
    /// Jobs in the queue.
    pub waiting: usize,
}

/// Device memory by purpose, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct VramBytes {
    /// Model weights.
    pub weights: u64,
    /// Key/value cache.
    pub kv_cache: u64,
    /// Values between operations.
    pub activations: u64,
    /// Inputs, outputs and scratch.
    pub workspace: u64,
}

impl VramBytes {
    /// All of it.
    pub const fn total(&self) -> u64 {
        self.weights + self.kv_cache + self.activations + self.workspace
    }
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
    /// `cuda`, `wgpu` or `reference`.
    pub backend: String,
    /// CUDA compute capability without its dot, `90`.
    pub sm: Option<String>,
    /// As the driver says it, `13.0`.
    pub cuda_driver_version: Option<String>,
}

/// The model's tokenizer, as the server sees it. Calls may take long: the server makes them off its own threads.
pub trait TextModel: Send + Sync + 'static {
    /// `hf-json` or `gguf-bpe`.
    fn kind(&self) -> &'static str;

    /// Ids there are.
    fn vocab_size(&self) -> usize;

    /// A prompt's ids, with the tokens the model wants around it. Special-token text in it is plain text.
    ///
    /// # Errors
    ///
    /// The tokenizer's own message; it holds no part of the text.
    fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, String>;

    /// How many tokens the text has by itself.
    ///
    /// # Errors
    ///
    /// The tokenizer's own message; it holds no part of the text.
    fn count_tokens(&self, text: &str) -> Result<usize, String>;

    /// Ids that end a sequence.
    fn stop_ids(&self) -> Vec<u32>;

    /// A decoder for one sequence.
    fn decoder(&self) -> Box<dyn TextDecoder>;
}

/// Turns one sequence's ids into text, whole characters at a time.
pub trait TextDecoder: Send {
    /// The characters this id completes, possibly none.
    fn push(&mut self, id: u32) -> String;

    /// What is left when the sequence ends inside a character.
    fn finish(&mut self) -> String;
}
