//! The paged key/value cache on the device: one buffer of keys and one of values per layer.
//!
//! Two binary16 share a word; a slot (one position of one layer) takes whole words, so that a slot of odd width is padded
//! by one element and never shares a word with its neighbour.

use worker_orcd_core::{BackendError, KvElement, KvGroup, KvLayer, KvLayout};

use crate::NAME;
use crate::gpu::{Gpu, Purpose};

/// The pools of one layer.
#[derive(Debug)]
pub(crate) struct Pools {
    pub(crate) keys: wgpu::Buffer,
    pub(crate) values: wgpu::Buffer,
}

/// Every pool, with the layout it was made for.
#[derive(Debug)]
pub(crate) struct Cache {
    pub(crate) layout: KvLayout,
    groups: Vec<Vec<Pools>>,
}

/// Words per slot of a group.
pub(crate) const fn slot_words(group: &KvGroup) -> usize {
    (group.num_kv_heads * group.head_dim).div_ceil(2)
}

impl Cache {
    pub(crate) fn create(gpu: &Gpu, layout: &KvLayout) -> Result<Self, BackendError> {
        if layout.element != KvElement::F16 {
            return Err(BackendError::Unsupported {
                backend: NAME,
                what: format!("a cache of {:?}", layout.element),
            });
        }
        let mut groups = vec![];
        for (index, group) in layout.groups.iter().enumerate() {
            let bytes = (group.num_blocks * layout.block_size * slot_words(group) * 4) as u64;
            if bytes > gpu.max_binding() {
                return Err(BackendError::Unsupported {
                    backend: NAME,
                    what: format!(
                        "{bytes} bytes of keys per layer in group {index} on a device whose bindings hold {}; \
                         use a smaller cache",
                        gpu.max_binding()
                    ),
                });
            }
            let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
            let pool = |what: &str, layer: usize| {
                gpu.buffer(Purpose::KvCache, &format!("kv.{index}.{layer}.{what}"), bytes, usage)
            };
            let layers = (0..group.layers)
                .map(|layer| Ok(Pools { keys: pool("keys", layer)?, values: pool("values", layer)? }))
                .collect::<Result<Vec<_>, BackendError>>()?;
            groups.push(layers);
        }
        Ok(Self { layout: layout.clone(), groups })
    }

    /// The group and pools of a layer; `None` when there is no such layer.
    pub(crate) fn layer(&self, layer: KvLayer) -> Option<(&KvGroup, &Pools)> {
        let group = self.layout.groups.get(layer.group)?;
        Some((group, self.groups.get(layer.group)?.get(layer.index)?))
    }

    /// Every pool.
    pub(crate) fn buffers(&self) -> impl Iterator<Item = &wgpu::Buffer> {
        self.groups.iter().flatten().flat_map(|pools| [&pools.keys, &pools.values])
    }
}
