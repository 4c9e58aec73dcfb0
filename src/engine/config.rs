//! Sizes the engine is started with, and what follows from them: step shapes and the cache layout.

use std::time::Duration;

use worker_orcd_core::{BackendError, KvElement, KvLayout, StepShape};

use crate::model::{KvGroupSpec, Recorder};

/// Most cache groups a model may have; step inputs are gathered into an array of this size without allocating.
pub const MAX_KV_GROUPS: usize = 8;

/// How much cache there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvBudget {
    /// Blocks of each full-attention group; window groups get at most what their windows can use.
    Blocks(usize),
    /// Bytes of the whole cache.
    Bytes(usize),
}

/// Sizes the engine keeps for life.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Most sequences in one step.
    pub max_batch: usize,
    /// Most jobs that wait for admission.
    pub max_queue: usize,
    /// Positions a sequence may have; the model's own limit holds too.
    pub context: usize,
    /// Positions per cache block.
    pub block_size: usize,
    /// Size of the cache; never more than `max_batch` full contexts.
    pub kv_budget: KvBudget,
    /// Storage format of the cache.
    pub kv_element: KvElement,
    /// Token budget of a step: running sequences take one each, prefill shares the rest.
    pub prefill_chunk: usize,
    /// Read logits back and choose every token on the host.
    pub host_sampling: bool,
    /// Most distinct ids a repetition penalty acts on without the host.
    pub max_penalty_tokens: usize,
    /// Time between residency checks.
    pub residency_interval: Duration,
    /// Share the cache blocks of common beginnings; the tokens are the same either way.
    pub prefix_cache: bool,
    /// Run every plan once before the first request, which would otherwise pay what the device does on first use. Only
    /// an interpreter of a large model has a reason not to.
    pub warm_up: bool,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            max_batch: 16,
            max_queue: 64,
            context: 4096,
            block_size: 16,
            kv_budget: KvBudget::Bytes(usize::MAX),
            kv_element: KvElement::F16,
            prefill_chunk: 512,
            host_sampling: false,
            max_penalty_tokens: 256,
            residency_interval: Duration::from_secs(60),
            prefix_cache: true,
            warm_up: true,
        }
    }
}

/// Why the engine did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting is out of range.
    #[error("engine setting {field}: {reason}")]
    Setting {
        /// Field of [`EngineConfig`], or of what the model declares.
        field: &'static str,
        /// Rule broken.
        reason: String,
    },
    /// The device refused the cache or a program.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The operating system refused the engine's thread.
    #[error("engine thread: {0}")]
    Thread(#[from] std::io::Error),
}

impl EngineConfig {
    /// Positions the cache holds by default, unless one context is longer.
    pub const DEFAULT_POSITIONS: usize = 8192;

    /// Settings for a model: its whole context, and a cache of `kv_cache_mb` MiB; without it, room for one full context
    /// or [`Self::DEFAULT_POSITIONS`], whichever is more.
    pub fn for_model(recorder: &dyn Recorder, kv_cache_mb: Option<usize>) -> Self {
        let defaults = Self::default();
        let context = recorder.context_length();
        let positions = context.max(Self::DEFAULT_POSITIONS);
        let kv_budget = match kv_cache_mb {
            Some(mib) => KvBudget::Bytes(mib.saturating_mul(1 << 20)),
            None => KvBudget::Blocks(positions.div_ceil(defaults.block_size)),
        };
        Self { context, kv_budget, ..defaults }
    }

    /// Checks the settings against each other and the model.
    ///
    /// # Errors
    /// [`StartError::Setting`] naming the first one that is out of range.
    pub fn validate(&self, groups: &[KvGroupSpec]) -> Result<(), StartError> {
        let positive = [
            ("max_batch", self.max_batch),
            ("max_queue", self.max_queue),
            ("block_size", self.block_size),
            ("prefill_chunk", self.prefill_chunk),
        ];
        for (field, value) in positive {
            require(field, value >= 1, || "is 0".into())?;
        }
        require("context", self.context >= 2, || format!("{} leaves no room to generate", self.context))?;
        let count = groups.len();
        require("kv_groups", (1..=MAX_KV_GROUPS).contains(&count), || {
            format!("model has {count}, supported are 1 to {MAX_KV_GROUPS}")
        })?;
        let whole = groups.iter().all(|group| {
            group.layers >= 1 && group.num_kv_heads >= 1 && group.head_dim >= 1 && group.window != Some(0)
        });
        require("kv_groups", whole, || "a size is 0".into())
    }

    /// Tokens a step may hold. Every running sequence can decode, whatever is being prefilled.
    pub fn token_budget(&self) -> usize {
        self.prefill_chunk.max(self.max_batch)
    }

    /// The shapes plans are compiled for, ascending: decode batches in powers of two, prefill chunks in powers of four.
    /// A sequence has at least one token in a step, so the first shape with room for the tokens has room for all.
    pub fn step_shapes(&self) -> Vec<StepShape> {
        let budget = self.token_budget();
        let decode = std::iter::successors(Some(1_usize), |tokens| tokens.checked_mul(2));
        let prefill = std::iter::successors(Some(16_usize), |tokens| tokens.checked_mul(4));
        let mut tokens: Vec<usize> = decode.take_while(|&tokens| tokens < self.max_batch).collect();
        tokens.extend(prefill.take_while(|&tokens| tokens < budget));
        tokens.extend([self.max_batch, budget]);
        tokens.sort_unstable();
        tokens.dedup();
        let shape = |tokens: usize| {
            let rows = tokens.min(self.max_batch);
            StepShape { tokens, rows, sequences: rows }
        };
        tokens.into_iter().map(shape).collect()
    }

    /// Lays the cache out within the budget. Window groups hold what every sequence's window can need at most; the
    /// rest goes to the groups that keep everything.
    ///
    /// # Errors
    /// The budget holds not even one block of each group.
    pub fn kv_layout(&self, groups: &[KvGroupSpec]) -> Result<KvLayout, StartError> {
        self.validate(groups)?;
        let table = self.context.div_ceil(self.block_size);
        let most = table.saturating_mul(self.max_batch);
        let held = |group: &KvGroupSpec, blocks: usize| {
            let per_sequence = blocks_held(group.window, self.context, self.block_size, self.token_budget());
            blocks.min(per_sequence.saturating_mul(self.max_batch))
        };
        let bytes = |blocks: usize| {
            groups.iter().fold(0_usize, |sum, group| {
                let block = group.block_bytes(self.block_size, self.kv_element);
                sum.saturating_add(block.saturating_mul(held(group, blocks)))
            })
        };
        let blocks = match self.kv_budget {
            KvBudget::Blocks(blocks) => blocks.min(most),
            KvBudget::Bytes(budget) => largest(most, |blocks| bytes(blocks) <= budget),
        };
        require("kv_budget", blocks >= 1, || {
            format!("{:?} is less than one block of {} bytes", self.kv_budget, bytes(1))
        })?;
        require("kv_budget", u32::try_from(blocks.saturating_mul(self.block_size)).is_ok(), || {
            format!("{blocks} blocks of {} positions exceed 32-bit slots", self.block_size)
        })?;
        let layout = |group: &KvGroupSpec| group.layout(held(group, blocks), table);
        Ok(KvLayout {
            block_size: self.block_size,
            element: self.kv_element,
            groups: groups.iter().map(layout).collect(),
        })
    }
}

/// Most blocks a sequence of `tokens` positions holds at once in a group, when a step adds at most `chunk` of them.
pub(super) fn blocks_held(window: Option<usize>, tokens: usize, block_size: usize, chunk: usize) -> usize {
    let all = tokens.div_ceil(block_size);
    match window {
        None => all,
        Some(window) => all.min((window - 1).saturating_add(chunk).div_ceil(block_size) + 1),
    }
}

/// The largest value up to `most` that `fits`; `fits` is monotone.
fn largest(most: usize, fits: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, most);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if fits(middle) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    low
}

fn require(field: &'static str, holds: bool, reason: impl FnOnce() -> String) -> Result<(), StartError> {
    if holds { Ok(()) } else { Err(StartError::Setting { field, reason: reason() }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: KvGroupSpec = KvGroupSpec { layers: 2, num_kv_heads: 1, head_dim: 8, window: None };
    const WINDOW: KvGroupSpec = KvGroupSpec { window: Some(8), ..FULL };

    fn small() -> EngineConfig {
        EngineConfig { max_batch: 3, context: 64, block_size: 4, prefill_chunk: 8, ..EngineConfig::default() }
    }

    #[test]
    fn shapes_cover_decode_batches_and_chunks() {
        let shapes =
            EngineConfig { max_batch: 6, prefill_chunk: 100, ..EngineConfig::default() }.step_shapes();
        let tokens: Vec<usize> = shapes.iter().map(|shape| shape.tokens).collect();
        assert_eq!(tokens, [1, 2, 4, 6, 16, 64, 100]);
        assert!(
            shapes.iter().all(|shape| shape.rows == shape.tokens.min(6) && shape.sequences == shape.rows)
        );
        let single = EngineConfig { max_batch: 1, prefill_chunk: 1, ..EngineConfig::default() };
        assert_eq!(single.step_shapes(), [StepShape { tokens: 1, rows: 1, sequences: 1 }]);
    }

    #[test]
    fn cache_takes_no_more_than_its_budget_nor_than_it_can_use() {
        let unlimited = small().kv_layout(&[FULL, WINDOW]).unwrap();
        assert_eq!(unlimited.groups[0].num_blocks, 3 * 16);
        // 7 positions behind and a chunk of 8 touch at most 5 blocks of 4.
        assert_eq!(unlimited.groups[1].num_blocks, 3 * 5);
        let budget = unlimited.bytes() - 1;
        let config = EngineConfig { kv_budget: KvBudget::Bytes(budget), ..small() };
        let tight = config.kv_layout(&[FULL, WINDOW]).unwrap();
        assert_eq!(tight.groups[0].num_blocks, 3 * 16 - 1);
        assert!(tight.bytes() <= budget);
    }

    #[test]
    fn impossible_settings_are_named() {
        let field = |config: EngineConfig, groups: &[KvGroupSpec]| match config.kv_layout(groups) {
            Err(StartError::Setting { field, .. }) => field,
            other => panic!("expected a refused setting, got {other:?}"),
        };
        assert_eq!(field(EngineConfig { max_batch: 0, ..small() }, &[FULL]), "max_batch");
        assert_eq!(field(EngineConfig { context: 1, ..small() }, &[FULL]), "context");
        assert_eq!(field(EngineConfig { kv_budget: KvBudget::Bytes(10), ..small() }, &[FULL]), "kv_budget");
        assert_eq!(field(small(), &[]), "kv_groups");
        assert_eq!(field(small(), &[KvGroupSpec { window: Some(0), ..FULL }]), "kv_groups");
    }
}
