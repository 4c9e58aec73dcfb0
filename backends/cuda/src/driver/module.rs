//! Loaded machine code and kernel launches.

use std::ffi::{CString, c_int, c_void};

use cudarc::driver::sys;

use super::error::check;
use super::{DriverError, Stream};
use crate::launch::Launch;

/// A loaded cubin.
#[derive(Debug)]
pub(crate) struct Module {
    handle: sys::CUmodule,
}

// SAFETY: modules may be used from any thread that has their context current.
unsafe impl Send for Module {}

/// A kernel of a loaded module. Lives as long as the module, which the kernel set never unloads before its plans.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Function {
    handle: sys::CUfunction,
}

// SAFETY: as for modules.
unsafe impl Send for Function {}

impl Module {
    /// Loads machine code for this device.
    pub(crate) fn load(cubin: &[u8]) -> Result<Self, DriverError> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: a context is current; the image is a whole ELF file, whose length the driver reads from its header.
        let code = unsafe { sys::cuModuleLoadData(&raw mut handle, cubin.as_ptr().cast::<c_void>()) };
        check("cuModuleLoadData", code)?;
        Ok(Self { handle })
    }

    /// Looks a kernel up and lets it use `shared_bytes` of dynamic shared memory.
    pub(crate) fn function(&self, name: &str, shared_bytes: u32) -> Result<Function, DriverError> {
        let text = CString::new(name).unwrap_or_default();
        let mut handle = std::ptr::null_mut();
        // SAFETY: the module is live, the name NUL-terminated.
        let code = unsafe { sys::cuModuleGetFunction(&raw mut handle, self.handle, text.as_ptr()) };
        check("cuModuleGetFunction", code)?;
        // Without this a kernel gets 48 KiB at most, its static shared memory counted in.
        if shared_bytes > 0 {
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is live; the driver checks the value.
            let code = unsafe { sys::cuFuncSetAttribute(handle, attribute, shared_bytes as c_int) };
            check("cuFuncSetAttribute", code)?;
        }
        Ok(Function { handle })
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: loaded once; plans, which hold its functions, are dropped before.
        let _ = unsafe { sys::cuModuleUnload(self.handle) };
    }
}

impl Function {
    /// Queues a launch. `dependent`: it may start before its predecessor has ended, and waits for it itself.
    ///
    /// The launch was checked against the kernel's limits, its argument size included.
    pub(crate) fn launch(self, stream: &Stream, launch: &Launch, dependent: bool) -> Result<(), DriverError> {
        let value = sys::CUlaunchAttributeValue_union {
            programmaticStreamSerializationAllowed: c_int::from(dependent),
        };
        let id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
        let mut attributes = [sys::CUlaunchAttribute { id, pad: [0; 4], value }];
        let [grid_x, grid_y, grid_z] = launch.grid;
        let [block_x, block_y, block_z] = launch.block;
        let config = sys::CUlaunchConfig {
            gridDimX: grid_x,
            gridDimY: grid_y,
            gridDimZ: grid_z,
            blockDimX: block_x,
            blockDimY: block_y,
            blockDimZ: block_z,
            sharedMemBytes: launch.shared_bytes,
            hStream: stream.handle(),
            attrs: attributes.as_mut_ptr(),
            numAttrs: u32::from(dependent),
        };
        let mut parameters = [launch.args.as_ptr().cast_mut().cast::<c_void>()];
        // SAFETY: the kernel takes one parameter of exactly `args.len()` bytes (checked by `Launch::check`), which the
        // driver copies before it returns; the configuration and attributes outlive the call.
        let code = unsafe {
            sys::cuLaunchKernelEx(
                &raw const config,
                self.handle,
                parameters.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        check("cuLaunchKernelEx", code)
    }
}
