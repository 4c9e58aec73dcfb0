//! What a model will need on a device, computed from its weights and the engine's settings alone.

use worker_orcd_core::{KvLayout, MemoryReport, WeightSpec, arena};

use super::config::{EngineConfig, StartError};
use crate::model::{Recorder, StepHead};

/// Device bytes by purpose, before anything is allocated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// By purpose.
    pub report: MemoryReport,
    /// The cache behind the figure.
    pub kv: KvLayout,
}

/// Plans the device memory of a model. Backends pad each weight to 256 bytes; what else they add is below the plan's
/// tolerance.
///
/// # Errors
/// A setting out of range, or a shape that does not fit.
pub fn memory_plan(
    weights: &[WeightSpec],
    recorder: &dyn Recorder,
    config: &EngineConfig,
) -> Result<MemoryPlan, StartError> {
    let kv = config.kv_layout(&recorder.kv_groups())?;
    let mut report = MemoryReport {
        weights_bytes: weights
            .iter()
            .map(|spec| spec.bytes().unwrap_or(0).next_multiple_of(256) as u64)
            .sum(),
        kv_cache_bytes: kv.bytes() as u64,
        ..MemoryReport::default()
    };
    for shape in config.step_shapes() {
        let program = recorder.record(shape, StepHead::Logits)?;
        let tables: usize = kv.groups.iter().map(|g| g.max_blocks_per_sequence * shape.sequences * 4).sum();
        let inputs = shape.tokens * (3 + kv.groups.len()) * 4 + shape.rows * 36 + tables;
        let outputs = shape.rows * recorder.vocab_size() * 4;
        report.activations_bytes = report.activations_bytes.max(arena::plan(&program).bytes as u64);
        report.workspace_bytes = report.workspace_bytes.max((inputs + outputs) as u64);
    }
    Ok(MemoryPlan { report, kv })
}
