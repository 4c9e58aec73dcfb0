//! What a model will need on a device, computed from its weights and the engine's settings alone.

use worker_orcd_core::{Footprint, KvLayout, MemoryReport, WeightSpec};

use super::config::{EngineConfig, StartError};
use super::plans;
use crate::model::Recorder;

/// Device bytes by purpose, before anything is allocated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// By purpose.
    pub report: MemoryReport,
    /// The cache behind the figure.
    pub kv: KvLayout,
}

/// Plans the device memory of a model: what `footprint`'s backend will allocate for it.
///
/// # Errors
/// A setting out of range, or a shape that does not fit.
pub fn memory_plan(
    weights: &[WeightSpec],
    recorder: &dyn Recorder,
    config: &EngineConfig,
    footprint: &dyn Footprint,
) -> Result<MemoryPlan, StartError> {
    let kv = config.kv_layout(&recorder.kv_groups())?;
    let programs = plans::record(recorder, config)?;
    Ok(MemoryPlan { report: footprint.memory(weights, &kv, &programs)?, kv })
}
