//! What a backend will allocate, told before a device is opened.
//!
//! `plan` prints it, and serving refuses to load a model that does not fit; so it must be what the backend's own
//! accounting reports afterwards.

use crate::arena;
use crate::backend::{BackendError, MemoryReport};
use crate::kv::KvLayout;
use crate::program::Program;
use crate::weight::WeightSpec;

/// Foretells a backend's allocations.
pub trait Footprint {
    /// Device bytes by purpose of a model with these weights, this cache, and these programs compiled together.
    ///
    /// # Errors
    /// A weight or program that the backend refuses.
    fn memory(
        &self,
        weights: &[WeightSpec],
        kv: &KvLayout,
        programs: &[Program],
    ) -> Result<MemoryReport, BackendError>;
}

/// Alignment of a weight wherever it is uploaded.
const WEIGHT_ALIGNMENT: usize = 256;

/// A backend that keeps what a program names and nothing else. Right for the interpreter, and within a few per cent for
/// backends whose scratch memory is small.
#[derive(Clone, Copy, Debug, Default)]
pub struct PlainFootprint;

impl Footprint for PlainFootprint {
    fn memory(
        &self,
        weights: &[WeightSpec],
        kv: &KvLayout,
        programs: &[Program],
    ) -> Result<MemoryReport, BackendError> {
        let weight = |spec: &WeightSpec| spec.bytes().unwrap_or(0).next_multiple_of(WEIGHT_ALIGNMENT) as u64;
        let mut report = MemoryReport {
            weights_bytes: weights.iter().map(weight).sum(),
            kv_cache_bytes: kv.bytes() as u64,
            ..MemoryReport::default()
        };
        for program in programs {
            let shape = program.shape();
            let tables: usize =
                kv.groups.iter().map(|g| g.max_blocks_per_sequence * shape.sequences * 4).sum();
            let inputs = shape.tokens * (3 + kv.groups.len()) * 4 + shape.rows * 36 + tables;
            let outputs: usize = program.outputs().iter().map(|&id| program.value(id).bytes(shape)).sum();
            report.activations_bytes = report.activations_bytes.max(arena::plan(program).bytes as u64);
            report.workspace_bytes = report.workspace_bytes.max((inputs + outputs) as u64);
        }
        Ok(report)
    }
}
