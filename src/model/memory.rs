//! What a model will need on a device, computed from the file and the served limits alone.

use worker_orcd_core::{BackendError, KvElement, KvGroup, KvLayout, MemoryReport, StepShape, arena};

use super::{KvGroupSpec, Model, Recorder, StepHead};

/// How much key/value cache to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvBudget {
    /// Positions per block.
    pub block_size: usize,
    /// Most sequences at once.
    pub max_batch: usize,
    /// Most tokens in a step: window layers hold the window and one chunk.
    pub chunk: usize,
    /// Bytes for the whole cache; `None` = room for one full context or [`KvBudget::DEFAULT_POSITIONS`], whichever is
    /// more.
    pub bytes: Option<u64>,
    /// Storage format.
    pub element: KvElement,
}

impl KvBudget {
    /// Positions held by default over all sequences.
    pub const DEFAULT_POSITIONS: usize = 8192;

    /// Shapes the cache of a model.
    pub fn layout(&self, groups: &[KvGroupSpec], context: usize) -> KvLayout {
        let blocks = |positions: usize| positions.div_ceil(self.block_size);
        let max_blocks_per_sequence = blocks(context);
        let window_blocks = |window: usize| {
            let per_sequence = (blocks(window - 1 + self.chunk) + 1).min(max_blocks_per_sequence);
            per_sequence * self.max_batch
        };
        let block_bytes = |group: &KvGroupSpec| {
            2 * group.layers * self.block_size * group.num_kv_heads * group.head_dim * self.element.bytes()
        };
        let windows: u64 = groups
            .iter()
            .filter_map(|group| Some((group.window?, group)))
            .map(|(window, group)| (window_blocks(window) * block_bytes(group)) as u64)
            .sum();
        let full: usize = groups.iter().filter(|group| group.window.is_none()).map(block_bytes).sum();
        let default = blocks(context.max(Self::DEFAULT_POSITIONS));
        let full_blocks = match self.bytes {
            Some(bytes) if full > 0 => (bytes.saturating_sub(windows) / full as u64) as usize,
            _ => default,
        };
        let group = |spec: &KvGroupSpec| KvGroup {
            layers: spec.layers,
            num_kv_heads: spec.num_kv_heads,
            head_dim: spec.head_dim,
            num_blocks: spec.window.map_or(full_blocks, window_blocks).max(1),
            max_blocks_per_sequence,
        };
        KvLayout {
            block_size: self.block_size,
            element: self.element,
            groups: groups.iter().map(group).collect(),
        }
    }
}

/// Device bytes by purpose, before anything is allocated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// By purpose.
    pub report: MemoryReport,
    /// The cache behind the figure.
    pub kv: KvLayout,
}

impl Model {
    /// Plans the device memory for steps of the given shapes.
    ///
    /// # Errors
    /// A shape that does not fit.
    pub fn memory_plan(&self, budget: &KvBudget, shapes: &[StepShape]) -> Result<MemoryPlan, BackendError> {
        let kv = budget.layout(&self.kv_groups(), self.context_length());
        let weights = self.specs().iter().map(|spec| spec.bytes().unwrap_or(0).next_multiple_of(256) as u64);
        let mut activations_bytes = 0;
        let mut workspace_bytes = 0;
        for &shape in shapes {
            let program = self.record(shape, StepHead::Logits)?;
            activations_bytes = activations_bytes.max(arena::plan(&program).bytes as u64);
            let tables: usize =
                kv.groups.iter().map(|g| g.max_blocks_per_sequence * shape.sequences * 4).sum();
            let inputs = shape.tokens * (3 + kv.groups.len()) * 4 + shape.rows * 36 + tables;
            workspace_bytes = workspace_bytes.max(inputs as u64);
        }
        let report = MemoryReport {
            weights_bytes: weights.sum(),
            kv_cache_bytes: kv.bytes() as u64,
            activations_bytes,
            workspace_bytes,
        };
        Ok(MemoryPlan { report, kv })
    }
}
