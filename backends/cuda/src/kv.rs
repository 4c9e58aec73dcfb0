//! The paged cache in device memory: one allocation, each layer's pools at fixed offsets.

use worker_orcd_core::{KvLayer, KvLayout};

use crate::launch::DevicePtr;

/// Alignment of a pool.
const POOL_ALIGNMENT: usize = 256;

/// The cache's layout and address.
#[derive(Clone, Debug)]
pub(crate) struct KvPools {
    /// Shape.
    pub(crate) layout: KvLayout,
    /// Where the first pool begins.
    pub(crate) base: DevicePtr,
}

impl KvPools {
    /// Bytes the cache takes, pools aligned; `None` when the product overflows.
    pub(crate) fn bytes(layout: &KvLayout) -> Option<usize> {
        (0..layout.groups.len()).try_fold(0_usize, |sum, group| {
            let layers = layout.groups.get(group)?.layers.checked_mul(2)?;
            sum.checked_add(Self::pool_stride(layout, group)?.checked_mul(layers)?)
        })
    }

    /// Addresses of a layer's pools of keys and of values.
    pub(crate) fn addresses(&self, layer: KvLayer) -> Option<(DevicePtr, DevicePtr)> {
        let group = self.layout.groups.get(layer.group)?;
        if layer.index >= group.layers {
            return None;
        }
        let mut offset = 0;
        for earlier in 0..layer.group {
            offset += 2 * self.layout.groups.get(earlier)?.layers * Self::pool_stride(&self.layout, earlier)?;
        }
        let stride = Self::pool_stride(&self.layout, layer.group)?;
        let keys = self.base.offset(offset + 2 * layer.index * stride);
        Some((keys, keys.offset(stride)))
    }

    /// Bytes from one pool of a group to the next.
    fn pool_stride(layout: &KvLayout, group: usize) -> Option<usize> {
        let group = layout.groups.get(group)?;
        let elements = group
            .num_blocks
            .checked_mul(layout.block_size)?
            .checked_mul(group.num_kv_heads)?
            .checked_mul(group.head_dim)?;
        elements.checked_mul(layout.element.bytes())?.checked_next_multiple_of(POOL_ALIGNMENT)
    }
}

#[cfg(test)]
mod tests {
    use worker_orcd_core::{KvElement, KvGroup};

    use super::*;

    fn pools() -> KvPools {
        let group = |layers, num_blocks| KvGroup {
            layers,
            num_kv_heads: 2,
            head_dim: 20,
            num_blocks,
            max_blocks_per_sequence: 4,
        };
        let layout =
            KvLayout { block_size: 16, element: KvElement::F16, groups: vec![group(2, 3), group(1, 5)] };
        KvPools { layout, base: DevicePtr(0x1000) }
    }

    #[test]
    fn pools_follow_each_other_without_overlap() {
        let pools = pools();
        let (first, second) = ((3 * 16 * 40 * 2_usize).next_multiple_of(256), 5 * 16 * 40 * 2);
        let address = |group, index| pools.addresses(KvLayer { group, index });
        let at = |bytes: usize| DevicePtr(0x1000 + bytes as u64);
        assert_eq!(address(0, 0), Some((at(0), at(first))));
        assert_eq!(address(0, 1), Some((at(2 * first), at(3 * first))));
        assert_eq!(address(1, 0), Some((at(4 * first), at(4 * first + second))));
        assert_eq!(address(0, 2), None);
        assert_eq!(address(2, 0), None);
        assert_eq!(KvPools::bytes(&pools.layout), Some(4 * first + 2 * second));
    }

    #[test]
    fn an_absurd_cache_overflows_to_nothing() {
        let mut layout = pools().layout;
        layout.groups[0].num_blocks = usize::MAX / 8;
        assert_eq!(KvPools::bytes(&layout), None);
    }
}
