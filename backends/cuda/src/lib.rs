//! The CUDA backend: runs recorded programs on one NVIDIA GPU of compute capability 8.0 or above.
//!
//! * [`driver`](self) wraps the few driver calls used; all `unsafe` code is there.
//! * `nvrtc` and `module` compile `cuda/*.cu` for the device found, through a disk cache.
//! * `memory`, `kv`, `layout`, `upload`: what lies where, and how weights get there.
//! * `lower` turns a program into launches; `plan` captures them into a CUDA graph and replays it.
//!
//! The crate builds without CUDA. The driver and NVRTC are loaded at run time; when one is absent or too old,
//! [`CudaBackend::open`] says so in one [`worker_orcd_core::BackendError::Unavailable`].

mod arch;
mod backend;
mod bandwidth;
#[cfg(test)]
mod compile_tests;
mod driver;
mod embedded;
#[cfg(test)]
mod emulation;
mod footprint;
mod inputs;
mod kernel_set;
mod kernels;
mod kv;
mod launch;
mod layout;
mod lower;
mod memory;
mod module;
mod nvrtc;
mod plan;
mod summary;
mod upload;

pub use arch::Arch;
pub use backend::CudaBackend;
pub use footprint::CudaFootprint;
pub use module::{BuildReport, CACHE_VARIABLE, build};
pub use nvrtc::{NVRTC_VARIABLE, NvrtcError};
pub use plan::PlanOptions;
pub use summary::{DeviceSummary, enumerate};

/// How far the cases of one operation may be from the reference on this backend, where the table asks for the accuracy
/// of 32-bit activations.
///
/// Products with quantised weights take activations as 12-bit integers with one scale per 32 elements, which are exact to
/// 2^-12 of a block's largest element: some 1e-7 of a row's square (half a step of 1 / 2047 of the largest, over sqrt(3),
/// squared; the largest of 32 is a few times their root mean square), nine times that where one spike is all a block's scale
/// is for, and more of a lone output that is a small difference of large sums. Two layers of a block, seven products each
/// that read what the ones before them rounded, make 5e-6 of it.
/// Attention adds its probabilities in two 16-bit halves.
pub fn least_nmse(stem: &str) -> f64 {
    match stem {
        "linear" | "moe_linear" => 3e-5,
        "block" => 1e-5,
        "kv_write" => 1e-13,
        _ => 0.0,
    }
}
