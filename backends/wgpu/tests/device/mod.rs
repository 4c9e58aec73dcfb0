//! What the device tests share: opening the preferred adapter, and what to say when there is none.
#![allow(clippy::panic, clippy::print_stdout, reason = "a test stops by panicking and says what it skips")]

use worker_orcd_core::BackendError;
use worker_orcd_wgpu::{AdapterChoice, WgpuBackend, WgpuOptions};

/// Set to let the suite pass on a machine without any adapter.
const ALLOW_NO_GPU: &str = "WORKER_ORCD_ALLOW_NO_GPU";

/// The preferred adapter; `None`, said loudly, when there is none and the environment allows that.
///
/// # Panics
/// There is no adapter and the environment does not allow that, or opening one goes wrong in any other way.
pub(crate) fn open(options: &WgpuOptions) -> Option<WgpuBackend> {
    match WgpuBackend::open(&AdapterChoice::Preferred, options) {
        Ok(backend) => Some(backend),
        Err(BackendError::Unavailable { reason, .. }) if std::env::var_os(ALLOW_NO_GPU).is_some() => {
            println!("SKIPPED: {reason}");
            None
        }
        Err(error) => panic!("{error}; set {ALLOW_NO_GPU}=1 to skip the tests that need a device"),
    }
}
