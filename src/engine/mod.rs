//! Sequences, cache blocks, batches and the step loop. Knows tokens, never text.

pub mod job;

pub use job::{EngineError, FinishReason, Job, JobStream, Sampling, TokenEvent, TokenLogprobs, Usage};
