//! What this backend will allocate for a model, byte for byte, without a device: lowering is pure arithmetic.

use worker_orcd_core::{BackendError, Footprint, KvLayout, MemoryReport, Program, WeightSpec};

use crate::arch::Arch;
use crate::kv::KvPools;
use crate::launch::DevicePtr;
use crate::layout::WeightLayout;
use crate::lower::{DeviceTraits, DeviceWeight, Target};
use crate::memory;
use crate::plan::Needs;

/// The CUDA backend's allocations on a device of some architecture.
///
/// The number of multiprocessors decides a few kilobytes of scratch; the reference device's is taken.
#[derive(Clone, Copy, Debug)]
pub struct CudaFootprint {
    traits: DeviceTraits,
}

impl CudaFootprint {
    /// On a device of `arch`.
    pub const fn of(arch: Arch) -> Self {
        Self { traits: DeviceTraits { arch, multiprocessors: 132, max_shared_bytes: 232_448 } }
    }
}

impl Default for CudaFootprint {
    /// On the reference architecture, compute capability 9.0.
    fn default() -> Self {
        Self::of(Arch::of(90))
    }
}

impl Footprint for CudaFootprint {
    fn memory(
        &self,
        weights: &[WeightSpec],
        kv: &KvLayout,
        programs: &[Program],
    ) -> Result<MemoryReport, BackendError> {
        let overflow = || BackendError::Unsupported { backend: "cuda", what: "a size beyond 64 bits".into() };
        let mut placed = Vec::with_capacity(weights.len());
        for spec in weights {
            let layout = WeightLayout::of(spec)?;
            placed.push(DeviceWeight { spec: spec.clone(), address: DevicePtr(0), layout });
        }
        let pools = KvPools { layout: kv.clone(), base: DevicePtr(0) };
        let target = Target { traits: self.traits, weights: &placed, kv: Some(&pools) };
        let needs = Needs::of_all(programs, Some(kv), target)?;
        let total = |ranges: &mut dyn Iterator<Item = usize>| {
            memory::padded_sum(ranges).map(|bytes| bytes as u64).ok_or_else(overflow)
        };
        Ok(MemoryReport {
            weights_bytes: total(&mut placed.iter().map(|weight| weight.layout.bytes()))?,
            kv_cache_bytes: total(&mut KvPools::bytes(kv).into_iter())?,
            activations_bytes: total(&mut std::iter::once(needs.activations()))?,
            workspace_bytes: total(&mut needs.workspace().into_iter())?,
        })
    }
}

#[cfg(test)]
mod tests {
    use worker_orcd_core::conformance::cases;

    use super::*;

    #[test]
    fn every_whole_layer_has_a_footprint_of_its_weights_and_its_programs() {
        let cases = cases().unwrap();
        let blocks = cases.iter().filter(|case| case.name.starts_with("block(") && case.kv.is_some());
        let mut seen = 0;
        for case in blocks {
            let specs: Vec<WeightSpec> = case.weights.iter().map(|weight| weight.spec.clone()).collect();
            let programs: Vec<Program> = case.steps.iter().map(|step| step.program.clone()).collect();
            let kv = case.kv.as_ref().unwrap();
            let report = CudaFootprint::default().memory(&specs, kv, &programs).unwrap();
            let stored: usize = specs.iter().map(|spec| spec.bytes().unwrap()).sum();
            assert!(report.weights_bytes >= stored as u64, "{}", case.name);
            assert!(report.kv_cache_bytes >= kv.bytes() as u64, "{}", case.name);
            assert!(report.activations_bytes > 0 && report.workspace_bytes > 0, "{}", case.name);
            // One program alone needs no more than it does beside others.
            let alone = CudaFootprint::default().memory(&specs, kv, &programs[..1]).unwrap();
            assert!(alone.total_bytes() <= report.total_bytes(), "{}", case.name);
            seen += 1;
        }
        assert!(seen > 0);
    }
}
