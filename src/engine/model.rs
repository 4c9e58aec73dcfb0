//! What the engine needs to know of a loaded model: sizes, what it caches, and how to record a step of it.

use worker_orcd_core::{BackendError, KvElement, KvGroup, Program, StepShape};

/// What the layers of one cache group have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvGroupSpec {
    /// Layers in the group.
    pub layers: usize,
    /// Key/value heads per layer.
    pub num_kv_heads: usize,
    /// Elements per head.
    pub head_dim: usize,
    /// Positions a query sees, its own included; `None` = all before it.
    pub window: Option<usize>,
}

impl KvGroupSpec {
    /// Bytes of one block of `block_size` positions in every layer of the group, keys and values together.
    pub const fn block_bytes(&self, block_size: usize, element: KvElement) -> usize {
        2 * self.layers * self.num_kv_heads * self.head_dim * block_size * element.bytes()
    }

    /// The group's place in the cache layout.
    pub const fn layout(&self, num_blocks: usize, max_blocks_per_sequence: usize) -> KvGroup {
        KvGroup {
            layers: self.layers,
            num_kv_heads: self.num_kv_heads,
            head_dim: self.head_dim,
            num_blocks,
            max_blocks_per_sequence,
        }
    }
}

/// What a recorded step hands back: its single declared output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StepHead {
    /// Logits of the output rows, `[R, vocab]`: the host chooses.
    Logits,
    /// One chosen token per output row, `[R, 1]` ids: the device chooses.
    Sample {
        /// Width of `StepInputs::penalty_tokens`.
        max_penalty_tokens: usize,
    },
}

/// A loaded model, as the engine sees it.
pub trait Recorder: Send {
    /// Tokens the logits are over.
    fn vocab_size(&self) -> usize;

    /// Positions the model can serve.
    fn context_length(&self) -> usize;

    /// The cache groups, in the order of the program's `KvLayer::group`.
    fn kv_groups(&self) -> Vec<KvGroupSpec>;

    /// Records one forward pass for steps of at most `shape`, ending in `head`.
    ///
    /// # Errors
    /// The model's shapes do not fit each other.
    fn record(&self, shape: StepShape, head: StepHead) -> Result<Program, BackendError>;
}
