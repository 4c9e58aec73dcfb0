//! How weights lie in device memory: planes, alignment, and the kernels that bring stored bytes into that order.
//!
//! Upload stages whole rows and asks [`WeightLayout::repack`] for the launch that moves them to their place.

use bytemuck::{Pod, Zeroable};
use worker_orcd_core::{BackendError, WeightSpec};

use crate::kernels::Unit;
use crate::launch::{DevicePtr, Launch};

/// The layout of one weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WeightLayout {
    bytes: usize,
    row_bytes: u64,
}

/// A weight as a kernel argument; `struct Weight` in `cuda/common/weight.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct WeightArgs {
    /// First plane.
    pub(crate) base: DevicePtr,
    /// Bytes per row.
    pub(crate) row_bytes: u64,
}

impl WeightLayout {
    /// The layout for a weight.
    ///
    /// # Errors
    /// A shape the layouts cannot hold.
    pub(crate) fn of(spec: &WeightSpec) -> Result<Self, BackendError> {
        let overflow =
            || BackendError::Weight { label: spec.label.clone(), reason: "size overflows".to_owned() };
        Ok(Self {
            bytes: spec.bytes().ok_or_else(overflow)?,
            row_bytes: spec.row_bytes().unwrap_or(0) as u64,
        })
    }

    /// The weight at `base` as a kernel argument.
    pub(crate) const fn args(&self, base: DevicePtr) -> WeightArgs {
        WeightArgs { base, row_bytes: self.row_bytes }
    }

    /// Bytes it takes on the device.
    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Rows of one repack begin at a multiple of this inside their expert.
    pub(crate) const fn row_granule(&self) -> usize {
        1
    }

    /// The launch that moves `rows` whole rows staged at `source` to their place. Rows count through all experts;
    /// they all lie in one expert. `None`: stored bytes are the layout, and a plain copy does it.
    pub(crate) const fn repack(
        &self,
        _spec: &WeightSpec,
        _source: DevicePtr,
        _destination: DevicePtr,
        _first_row: usize,
        _rows: usize,
    ) -> Option<Launch> {
        None
    }
}

/// The units of the repack kernels.
pub(crate) const fn units() -> Vec<Unit> {
    vec![]
}
