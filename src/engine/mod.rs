//! Sequences, cache blocks, batches and the step loop. Knows tokens, never text.
//!
//! One thread owns the device. A [`Job`] becomes a sequence; each step the scheduler packs tokens of many sequences
//! under a token budget, the batch gathers their inputs, a plan runs them, and every output row's token goes to its
//! listener. What a sequence says never depends on the others: it may be chunked, batched, preempted and computed
//! again, and the tokens stay the same.
//!
//! * `handle` starts the engine and is its face; `step_loop` is its thread.
//! * `scheduler` and [`blocks`] decide; they know no device. `pool` keeps the blocks of a group, `prefix` names what is
//!   in them, so that a sequence begins with the blocks another has filled.
//! * `batch` and `plans` feed the device; `sampler` chooses when the device cannot.

mod batch;
pub mod blocks;
mod config;
mod constraint;
pub mod direct;
mod handle;
mod histogram;
pub mod job;
mod memory;
mod plans;
mod pool;
mod prefix;
mod sampler;
mod scheduler;
mod sequence;
mod stats;
mod step_loop;

pub use config::{EngineConfig, KvBudget, MAX_KV_GROUPS, StartError};
pub use constraint::{Constraint, TokenRules};
pub use handle::Engine;
pub use histogram::{EngineHistograms, Histogram};
pub use job::{EngineError, FinishReason, Job, JobStream, Sampling, TokenEvent, TokenLogprobs, Usage};
pub use memory::{MemoryPlan, memory_plan};
pub use stats::{EngineStats, Health};
