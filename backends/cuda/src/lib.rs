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
/// Products with quantised weights take activations as two 8-bit planes with one scale per 32 elements, which is exact to
/// about 2^-15 of a block's largest element: some 4e-10 of a row's square, more where the result is a small difference of
/// large sums (rows of one element, spikes), and what two layers make of it. Attention adds its probabilities in two
/// 16-bit halves.
pub fn least_nmse(stem: &str) -> f64 {
    match stem {
        "linear" | "moe_linear" | "block" => 1e-6,
        "kv_write" => 1e-13,
        _ => 0.0,
    }
}
