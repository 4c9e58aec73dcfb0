//! The table of kernels: which source file each comes from, how it is compiled and what it accepts.
//!
//! A *unit* is one NVRTC compilation: a `.cu` file with a set of defines. Units are small so that a cold build spreads
//! over all cores. Adding a kernel is one entry in the `units()` of its operation's lowering file.

use crate::arch::Arch;
use crate::launch::KernelName;
use crate::lower;

/// What a kernel declares about itself; launches are checked against it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kernel {
    /// `extern "C"` name.
    pub(crate) name: KernelName,
    /// Size of its parameter structure; the `.cu` file asserts the same with `CHECK_ARGS`.
    pub(crate) args_bytes: usize,
    /// Its launch bound.
    pub(crate) max_threads: u32,
    /// Most dynamic shared memory it may be given.
    pub(crate) max_shared_bytes: u32,
}

impl Kernel {
    /// A kernel whose parameter is `A`, without dynamic shared memory.
    pub(crate) fn of<A>(name: impl Into<KernelName>, max_threads: u32) -> Self {
        Self { name: name.into(), args_bytes: size_of::<A>(), max_threads, max_shared_bytes: 0 }
    }

    /// The same kernel with room for `bytes` of dynamic shared memory.
    pub(crate) fn with_shared(self, bytes: u32) -> Self {
        Self { max_shared_bytes: bytes, ..self }
    }
}

/// One compilation.
#[derive(Clone, Debug)]
pub(crate) struct Unit {
    /// Unique name; the cubin's name in the cache.
    pub(crate) name: String,
    /// File name under `cuda/`, for messages.
    pub(crate) file: &'static str,
    /// Its text.
    pub(crate) source: &'static str,
    /// `-D` defines, name and value.
    pub(crate) defines: Vec<(String, String)>,
    /// More NVRTC options.
    pub(crate) options: Vec<&'static str>,
    /// The kernels it holds.
    pub(crate) kernels: Vec<Kernel>,
    /// The one compute capability it is for (`major * 10 + minor`); every supported one when absent.
    pub(crate) only_capability: Option<u32>,
}

impl Unit {
    /// A unit compiled once, for every supported capability.
    pub(crate) fn new(
        name: impl Into<String>,
        file: &'static str,
        source: &'static str,
        kernels: Vec<Kernel>,
    ) -> Self {
        Self {
            name: name.into(),
            file,
            source,
            defines: vec![],
            options: vec![],
            kernels,
            only_capability: None,
        }
    }

    /// The same unit with one more define.
    #[allow(clippy::needless_pass_by_value, reason = "numbers and names read better without a reference")]
    pub(crate) fn define(mut self, name: &str, value: impl ToString) -> Self {
        self.defines.push((name.to_owned(), value.to_string()));
        self
    }

    /// The same unit with one more NVRTC option.
    pub(crate) fn option(mut self, option: &'static str) -> Self {
        self.options.push(option);
        self
    }

    /// The same unit for one capability alone.
    pub(crate) fn only(self, capability: u32) -> Self {
        Self { only_capability: Some(capability), ..self }
    }

    /// Whether the unit exists on `arch`.
    pub(crate) fn supports(&self, arch: Arch) -> bool {
        self.only_capability.is_none_or(|capability| capability == arch.capability())
    }
}

/// Shared device code, by the name `#include` uses. Compiled into nothing by itself.
pub(crate) const HEADERS: &[(&str, &str)] = &[
    ("common/types.cuh", include_str!("../../../cuda/common/types.cuh")),
    ("common/reduce.cuh", include_str!("../../../cuda/common/reduce.cuh")),
    ("common/inputs.cuh", include_str!("../../../cuda/common/inputs.cuh")),
    ("common/sampling.cuh", include_str!("../../../cuda/common/sampling.cuh")),
    ("common/weight.cuh", include_str!("../../../cuda/common/weight.cuh")),
    ("common/async.cuh", include_str!("../../../cuda/common/async.cuh")),
    ("common/mma.cuh", include_str!("../../../cuda/common/mma.cuh")),
    ("common/approximate.cuh", include_str!("../../../cuda/common/approximate.cuh")),
    ("common/gated.cuh", include_str!("../../../cuda/common/gated.cuh")),
    ("common/norm.cuh", include_str!("../../../cuda/common/norm.cuh")),
    ("common/quantize.cuh", include_str!("../../../cuda/common/quantize.cuh")),
    ("common/single.cuh", include_str!("../../../cuda/common/single.cuh")),
    ("common/stream.cuh", include_str!("../../../cuda/common/stream.cuh")),
    ("common/activation.cuh", include_str!("../../../cuda/common/activation.cuh")),
    ("common/rotation.cuh", include_str!("../../../cuda/common/rotation.cuh")),
    ("common/quantize_warp.cuh", include_str!("../../../cuda/common/quantize_warp.cuh")),
    ("common/arrival.cuh", include_str!("../../../cuda/common/arrival.cuh")),
    ("common/warpgroup.cuh", include_str!("../../../cuda/common/warpgroup.cuh")),
    ("common/group_stage.cuh", include_str!("../../../cuda/common/group_stage.cuh")),
    ("common/group_product.cuh", include_str!("../../../cuda/common/group_product.cuh")),
    ("common/group_gated.cuh", include_str!("../../../cuda/common/group_gated.cuh")),
    ("common/batch.cuh", include_str!("../../../cuda/common/batch.cuh")),
    ("common/pair_groups.cuh", include_str!("../../../cuda/common/pair_groups.cuh")),
    ("common/moe_linear_args.cuh", include_str!("../../../cuda/common/moe_linear_args.cuh")),
    ("common/tile.cuh", include_str!("../../../cuda/common/tile.cuh")),
    ("common/product.cuh", include_str!("../../../cuda/common/product.cuh")),
    ("common/plain.cuh", include_str!("../../../cuda/common/plain.cuh")),
    ("common/routing_choice.cuh", include_str!("../../../cuda/common/routing_choice.cuh")),
    ("common/router.cuh", include_str!("../../../cuda/common/router.cuh")),
    ("common/routing.cuh", include_str!("../../../cuda/common/routing.cuh")),
    ("common/attention_join.cuh", include_str!("../../../cuda/common/attention_join.cuh")),
    ("common/attention_tile.cuh", include_str!("../../../cuda/common/attention_tile.cuh")),
];

/// Every unit of every operation.
pub(crate) fn units() -> Vec<Unit> {
    lower::units()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use worker_orcd_core::Op;

    use super::*;

    #[test]
    fn names_are_unique_and_every_operation_has_its_file() {
        let units = units();
        let names: HashSet<&str> = units.iter().map(|unit| unit.name.as_str()).collect();
        assert_eq!(names.len(), units.len());
        let kernels: Vec<&Kernel> = units.iter().flat_map(|unit| &unit.kernels).collect();
        let kernel_names: HashSet<&str> = kernels.iter().map(|kernel| kernel.name.as_ref()).collect();
        assert_eq!(kernel_names.len(), kernels.len());
        for stem in Op::STEMS {
            let file = format!("{stem}.cu");
            assert!(units.iter().any(|unit| unit.file == file), "no unit is compiled from {file}");
        }
    }

    #[test]
    fn headers_are_named_once() {
        let names: HashSet<&str> = HEADERS.iter().map(|(name, _)| *name).collect();
        assert_eq!(names.len(), HEADERS.len());
    }

    #[test]
    fn every_kernel_asserts_the_size_of_its_arguments() {
        for unit in units() {
            assert!(
                unit.source.contains("CHECK_ARGS(") || unit.source.contains("KERNEL("),
                "{} does not assert the size of its arguments",
                unit.file
            );
        }
    }
}
