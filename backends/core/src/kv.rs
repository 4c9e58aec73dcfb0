//! Shape of the paged key/value cache.
//!
//! Layers that keep the same positions share a *group*: full-attention layers form one, sliding-window layers another,
//! so that window layers hold only their window. Every layer of a group uses the group's block table; each layer has
//! its own pool `[num_blocks, block_size, num_kv_heads, head_dim]` for keys and one for values.

/// Storage format of cached keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvElement {
    /// IEEE binary16, rounded to nearest even on write. What every backend serves with.
    F16,
    /// IEEE binary32. Only the reference interpreter offers it, for comparison with float32 goldens.
    F32,
}

impl KvElement {
    /// Bytes per element.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F16 => 2,
            Self::F32 => 4,
        }
    }
}

/// One set of layers that share a block table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvGroup {
    /// Layers in the group.
    pub layers: usize,
    /// Key/value heads per layer.
    pub num_kv_heads: usize,
    /// Elements per head.
    pub head_dim: usize,
    /// Blocks in each layer's pool.
    pub num_blocks: usize,
    /// Width of a block-table row: logical blocks of the longest sequence.
    pub max_blocks_per_sequence: usize,
}

/// The whole cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvLayout {
    /// Positions per block.
    pub block_size: usize,
    /// Storage format.
    pub element: KvElement,
    /// The groups, indexed by [`KvLayer::group`].
    pub groups: Vec<KvGroup>,
}

impl KvLayout {
    /// Bytes of every pool of keys and values together.
    pub fn bytes(&self) -> usize {
        let per_group = |group: &KvGroup| {
            2 * group.layers
                * group.num_blocks
                * self.block_size
                * group.num_kv_heads
                * group.head_dim
                * self.element.bytes()
        };
        self.groups.iter().map(per_group).sum()
    }
}

/// One layer's place in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KvLayer {
    /// Which group.
    pub group: usize,
    /// Which layer inside the group.
    pub index: usize,
}
