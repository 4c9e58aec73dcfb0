//! The CUDA driver API as this backend uses it: few calls, each checked, each owned.
//!
//! All `unsafe` code that touches the device is in this module. What it upholds: handles are destroyed once, after
//! their last use; host memory of an asynchronous copy cannot be touched or freed before the copy is done
//! ([`PinnedMemory`]). What it cannot uphold is what a kernel does with the addresses in its arguments: lowering
//! computes those from the arenas, and a wrong one can hurt device memory only, since no host memory is ever mapped into
//! the device's address space for a kernel.
#![allow(unsafe_code, reason = "foreign functions of the CUDA driver")]

mod error;
mod memory;
mod module;
mod stream;

use std::ffi::{CStr, c_int};

use cudarc::driver::sys;
use worker_orcd_core::BackendError;

use crate::arch::Arch;

pub(crate) use error::DriverError;
use error::check;
pub(crate) use memory::{DeviceMemory, PinnedMemory, Residency};
pub(crate) use module::{Function, Module};
pub(crate) use stream::{Event, GraphExec, Stream};

/// Name of this backend in errors.
pub(crate) const BACKEND: &str = "cuda";

/// Oldest driver, as it numbers itself: CUDA 13.0, which is release 580.
const MINIMUM_DRIVER: i32 = 13_000;

/// A device attribute's name.
pub(crate) type Attribute = sys::CUdevice_attribute;

/// A device's primary context, retained.
#[derive(Debug)]
pub(crate) struct Device {
    ordinal: usize,
    number: sys::CUdevice,
    handle: sys::CUcontext,
    driver_version: i32,
}

// SAFETY: contexts may be made current on any thread; every public entry of the backend does so before other calls.
unsafe impl Send for Device {}

/// An error about what is not there, with what would help.
pub(crate) fn unavailable(reason: impl Into<String>) -> BackendError {
    BackendError::Unavailable { backend: BACKEND, reason: reason.into() }
}

/// Loads the driver and checks its version, which it returns.
fn load_driver() -> Result<i32, BackendError> {
    // SAFETY: only tries to load the library by its standard names.
    if !unsafe { sys::is_culib_present() } {
        return Err(unavailable(
            "the NVIDIA driver (libcuda) was not found; install it, or choose another backend (wgpu, reference)",
        ));
    }
    // SAFETY: the library is there, and cuInit may be called any number of times.
    check("cuInit", unsafe { sys::cuInit(0) }).map_err(|error| unavailable(error.to_string()))?;
    let mut version = 0;
    // SAFETY: the pointer is to a live integer.
    let code = unsafe { sys::cuDriverGetVersion(&raw mut version) };
    check("cuDriverGetVersion", code).map_err(|error| unavailable(error.to_string()))?;
    if version < MINIMUM_DRIVER {
        return Err(unavailable(format!(
            "the driver supports CUDA {}.{}, {}.{} or newer is needed (driver release 580)",
            version / 1000,
            version % 1000 / 10,
            MINIMUM_DRIVER / 1000,
            MINIMUM_DRIVER % 1000 / 10
        )));
    }
    Ok(version)
}

/// Number of CUDA devices.
///
/// # Errors
/// No usable driver.
pub(crate) fn device_count() -> Result<usize, BackendError> {
    load_driver()?;
    let mut count = 0;
    // SAFETY: the driver is initialised; the pointer is to a live integer.
    let code = unsafe { sys::cuDeviceGetCount(&raw mut count) };
    check("cuDeviceGetCount", code).map_err(|error| unavailable(error.to_string()))?;
    Ok(count as usize)
}

impl Device {
    /// Opens the device with this ordinal and makes its context current on this thread.
    ///
    /// # Errors
    /// No usable driver, or no such device.
    pub(crate) fn open(ordinal: usize) -> Result<Self, BackendError> {
        let driver_version = load_driver()?;
        let count = device_count()?;
        if ordinal >= count {
            return Err(unavailable(format!("no device {ordinal}: the driver reports {count}")));
        }
        let failed = |error: DriverError| unavailable(format!("device {ordinal}: {error}"));
        let mut device = 0;
        // SAFETY: the ordinal was checked; the pointer is to a live integer.
        let code = unsafe { sys::cuDeviceGet(&raw mut device, ordinal as c_int) };
        check("cuDeviceGet", code).map_err(failed)?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: the device is valid; the reference is released in `drop`.
        let code = unsafe { sys::cuDevicePrimaryCtxRetain(&raw mut handle, device) };
        check("cuDevicePrimaryCtxRetain", code).map_err(failed)?;
        let opened = Self { ordinal, number: device, handle, driver_version };
        opened.bind().map_err(failed)?;
        Ok(opened)
    }

    /// Makes the context current on this thread.
    pub(crate) fn bind(&self) -> Result<(), DriverError> {
        // SAFETY: the context is retained for as long as `self` lives.
        check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(self.handle) })
    }

    /// Takes away the heap that kernels could allocate from, so that no memory is used unaccounted. A driver that refuses
    /// keeps its default, which no kernel here touches.
    pub(crate) fn forbid_device_heap(&self) -> Result<(), DriverError> {
        self.bind()?;
        // SAFETY: the context is current; the limit takes any value.
        let _ = unsafe { sys::cuCtxSetLimit(sys::CUlimit::CU_LIMIT_MALLOC_HEAP_SIZE, 0) };
        Ok(())
    }

    /// Which device.
    pub(crate) const fn ordinal(&self) -> usize {
        self.ordinal
    }

    /// The driver's CUDA version, `13.0`.
    pub(crate) fn driver(&self) -> String {
        format!("CUDA {}.{}", self.driver_version / 1000, self.driver_version % 1000 / 10)
    }

    /// What the driver calls the device.
    pub(crate) fn name(&self) -> Result<String, DriverError> {
        let mut name = [0; 256];
        // SAFETY: the buffer has the length given; the driver terminates it with NUL.
        let code = unsafe { sys::cuDeviceGetName(name.as_mut_ptr(), name.len() as c_int, self.number) };
        check("cuDeviceGetName", code)?;
        // SAFETY: NUL-terminated, as above, and alive.
        Ok(unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned())
    }

    /// An attribute of the device.
    pub(crate) fn attribute(&self, attribute: Attribute) -> Result<u32, DriverError> {
        let mut value = 0;
        // SAFETY: the pointer is to a live integer.
        let code = unsafe { sys::cuDeviceGetAttribute(&raw mut value, attribute, self.number) };
        check("cuDeviceGetAttribute", code)?;
        Ok(value.max(0) as u32)
    }

    /// Its architecture.
    pub(crate) fn arch(&self) -> Result<Arch, DriverError> {
        let major = self.attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = self.attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        Ok(Arch::of(major * 10 + minor))
    }

    /// Free and total device memory in bytes.
    pub(crate) fn memory(&self) -> Result<(u64, u64), DriverError> {
        self.bind()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: the context is current; both pointers are to live integers.
        check("cuMemGetInfo", unsafe { sys::cuMemGetInfo_v2(&raw mut free, &raw mut total) })?;
        Ok((free as u64, total as u64))
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: retained once in `open`; everything that lives in the context was dropped before (field order of the
        // backend), and the driver keeps the context alive for other owners.
        let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.number) };
    }
}
