//! Lists the devices without opening a model on any.

use worker_orcd_core::BackendError;

use crate::driver::{self, Device, DriverError};

/// One CUDA device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceSummary {
    /// What [`crate::CudaBackend::open`] takes.
    pub index: usize,
    /// Name, compute capability and driver.
    pub description: String,
    /// Device memory in bytes.
    pub total_memory_bytes: u64,
}

/// Every CUDA device of this machine.
///
/// # Errors
/// [`BackendError::Unavailable`]: no driver, or no device.
pub fn enumerate() -> Result<Vec<DeviceSummary>, BackendError> {
    (0..driver::device_count()?).map(summary).collect()
}

fn summary(index: usize) -> Result<DeviceSummary, BackendError> {
    let device = Device::open(index)?;
    let failed = |error: DriverError| driver::unavailable(format!("device {index}: {error}"));
    let name = device.name().map_err(failed)?;
    let capability = device.arch().map_err(failed)?.capability();
    let (_, total_memory_bytes) = device.memory().map_err(failed)?;
    let (major, minor) = (capability / 10, capability % 10);
    let description = format!("{name} (compute capability {major}.{minor}, {})", device.driver());
    Ok(DeviceSummary { index, description, total_memory_bytes })
}
