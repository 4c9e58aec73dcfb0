//! What the driver answers, and what that means to the engine.

use std::ffi::CStr;

use cudarc::driver::sys::{self, CUresult};
use worker_orcd_core::BackendError;

/// A driver call that did not succeed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{call}: {text} (error {code})")]
pub(crate) struct DriverError {
    /// Which call.
    pub(crate) call: &'static str,
    /// `CUresult`.
    pub(crate) code: u32,
    /// The driver's words.
    pub(crate) text: String,
}

/// Turns a result code into a `Result`.
pub(super) fn check(call: &'static str, code: CUresult) -> Result<(), DriverError> {
    if code == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let mut text = std::ptr::null();
    // SAFETY: the pointer is to a live pointer; the driver writes a static string or null.
    let known = unsafe { sys::cuGetErrorString(code, &raw mut text) };
    let text = if known == CUresult::CUDA_SUCCESS && !text.is_null() {
        // SAFETY: not null, static and NUL-terminated, as the driver's documentation says.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    } else {
        "unknown error".to_owned()
    };
    Err(DriverError { call, code: code as u32, text })
}

impl DriverError {
    /// Whether the context is beyond use: every later call fails, whatever it asks for.
    pub(crate) const fn is_sticky(&self) -> bool {
        matches!(
            self.code,
            4 // deinitialised
            | 46 // device unavailable
            | 214 // uncorrectable ECC error
            | 220 // uncorrectable NVLink error
            | 226 // contained error
            | 700 // illegal address
            | 702 // launch timeout
            | 709 // context destroyed
            | 710 // assertion
            | 714
                ..=719 // stack, instruction, alignment, address space, program counter, launch failed
            | 721 // tensor memory leak
            | 999 // unknown
        )
    }

    /// Whether there is no room.
    pub(crate) const fn is_out_of_memory(&self) -> bool {
        self.code == CUresult::CUDA_ERROR_OUT_OF_MEMORY as u32
    }

    /// The error as the engine sees it; `label` names the node or phase.
    pub(crate) fn at(self, label: &str) -> BackendError {
        if self.is_sticky() {
            BackendError::DeviceLost { reason: format!("{label}: {self}") }
        } else {
            BackendError::Execution { label: label.to_owned(), reason: self.to_string() }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(code: u32) -> DriverError {
        DriverError { call: "cuEventSynchronize", code, text: "words".to_owned() }
    }

    #[test]
    fn sticky_errors_lose_the_device_and_others_do_not() {
        for code in [214, 700, 702, 715, 716, 719, 999] {
            let lost = error(code).at("layers.3.attn");
            assert!(
                matches!(&lost, BackendError::DeviceLost { reason } if reason.contains("layers.3.attn")),
                "{lost}"
            );
        }
        for code in [1, 2, 98, 209, 701, 801] {
            let failed = error(code).at("layers.3.attn");
            assert!(
                matches!(&failed, BackendError::Execution { label, .. } if label == "layers.3.attn"),
                "{failed}"
            );
        }
        assert!(error(2).is_out_of_memory() && !error(1).is_out_of_memory());
    }
}
