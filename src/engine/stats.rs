//! What the engine tells of itself while it runs: atomics the step loop writes and anybody reads.
//!
//! Reading never waits for the device. A job's last event is sent after the figures that count it are written.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use worker_orcd_core::MemoryReport;

use super::histogram::Histograms;

/// Whether the worker can serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It can.
    Ready,
    /// A sequence failed for lack of cache, and none has finished since.
    Degraded,
    /// No new jobs; running ones end.
    Draining,
    /// The device failed, or its memory is not where it should be.
    Unhealthy,
}

/// Figures of one moment; totals count since start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Sequences being computed.
    pub running: u64,
    /// Sequences waiting for admission, preempted ones included.
    pub waiting: u64,
    /// Cache blocks held, all groups.
    pub kv_blocks_used: u64,
    /// Cache blocks there are, all groups.
    pub kv_blocks_total: u64,
    /// Steps run.
    pub steps: u64,
    /// Cache blocks that hold a prefix others can take, held or not, all groups.
    pub kv_blocks_cached: u64,
    /// Tokens of prompts, counted when they are admitted.
    pub prompt_tokens: u64,
    /// Prompt tokens looked up in the prefix cache.
    pub prefix_cache_queries: u64,
    /// Prompt tokens found there.
    pub prefix_cache_hits: u64,
    /// Nanoseconds the device waited for the host: from a step's outputs to the next step, while there was work.
    pub host_time_ns: u64,
    /// Tokens computed of prompts, and again after a preemption.
    pub prefill_tokens: u64,
    /// Tokens handed to listeners.
    pub generated_tokens: u64,
    /// Jobs taken.
    pub submitted: u64,
    /// Jobs refused because the queue was full.
    pub rejected: u64,
    /// Sequences that ended with a stop token.
    pub finished_stop: u64,
    /// Sequences that ended at their length.
    pub finished_length: u64,
    /// Sequences cancelled or abandoned by their listener.
    pub cancelled: u64,
    /// Sequences that missed their deadline.
    pub deadlines_exceeded: u64,
    /// Sequences that failed for lack of cache.
    pub kv_exhaustions: u64,
    /// Sequences whose logits were not finite.
    pub non_finite: u64,
    /// Sequences that failed otherwise.
    pub failed: u64,
    /// Times a sequence lost its blocks to an older one.
    pub preemptions: u64,
}

impl EngineStats {
    /// Share of the cache blocks that are held, 0 to 1.
    pub fn kv_cache_usage(&self) -> f64 {
        self.kv_blocks_used as f64 / self.kv_blocks_total.max(1) as f64
    }
}

/// Names the fields once for the atomics, their snapshot and nothing else.
macro_rules! counters {
    ($($field:ident),* $(,)?) => {
        /// [`EngineStats`] in atomics.
        #[derive(Debug, Default)]
        pub(super) struct Counters {
            $(pub(super) $field: AtomicU64,)*
        }

        impl Counters {
            /// The figures of this moment.
            pub(super) fn snapshot(&self) -> EngineStats {
                EngineStats { $($field: self.$field.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counters!(
    running,
    waiting,
    kv_blocks_used,
    kv_blocks_total,
    kv_blocks_cached,
    prompt_tokens,
    prefix_cache_queries,
    prefix_cache_hits,
    steps,
    host_time_ns,
    prefill_tokens,
    generated_tokens,
    submitted,
    rejected,
    finished_stop,
    finished_length,
    cancelled,
    deadlines_exceeded,
    kv_exhaustions,
    non_finite,
    failed,
    preemptions,
);

/// Adds to a total.
pub(super) fn add(counter: &AtomicU64, amount: usize) {
    counter.fetch_add(amount as u64, Ordering::Relaxed);
}

/// What the step loop and every handle share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) counters: Counters,
    pub(super) histograms: Histograms,
    pub(super) memory: MemoryReport,
    /// Jobs submitted and not yet admitted; bounds the queue.
    pub(super) queued: AtomicUsize,
    pub(super) max_queue: usize,
    pub(super) context: usize,
    /// Positions per block of sequences that share blocks; `None` = they do not.
    pub(super) prefix_block_size: Option<usize>,
    pub(super) vocab_size: usize,
    pub(super) draining: AtomicBool,
    pub(super) degraded: AtomicBool,
    /// Why the worker is unhealthy; the first reason stands.
    pub(super) fault: OnceLock<String>,
    /// What ended the step loop, if a device error did.
    pub(super) broken: OnceLock<String>,
    /// What the last residency check said.
    pub(super) resident: AtomicBool,
}

impl Shared {
    /// The worst of what is known.
    pub(super) fn health(&self) -> Health {
        if self.fault.get().is_some() {
            Health::Unhealthy
        } else if self.draining.load(Ordering::Relaxed) {
            Health::Draining
        } else if self.degraded.load(Ordering::Relaxed) {
            Health::Degraded
        } else {
            Health::Ready
        }
    }

    /// Takes a place in the queue; the length of the queue when it is full.
    pub(super) fn enter_queue(&self) -> Result<(), usize> {
        let enter = |waiting: usize| (waiting < self.max_queue).then_some(waiting + 1);
        self.queued.fetch_update(Ordering::Relaxed, Ordering::Relaxed, enter).map(|_| ())
    }

    /// Gives a place in the queue back.
    pub(super) fn leave_queue(&self) {
        let leave = |waiting: usize| Some(waiting.saturating_sub(1));
        let _ = self.queued.fetch_update(Ordering::Relaxed, Ordering::Relaxed, leave);
    }
}
