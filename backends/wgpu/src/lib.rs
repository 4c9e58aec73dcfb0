//! The portable backend: one operation, one WGSL file, one dispatch, on Vulkan, Metal or DX12 through wgpu; for one token
//! at a time, several operations in one dispatch.
//!
//! - [`adapter`]: which devices there are, and opening one.
//! - `gpu`: buffers and faults; every driver error becomes a `BackendError`, none a panic.
//! - `shader`: the WGSL sources, composed by concatenation, and the pipelines made of them.
//! - `weights`: repacking of stored formats into whole words, split into slices no binding limit refuses.
//! - `cache`: the paged key/value pools, two binary16 per word.
//! - `inputs`: one packed upload per step.
//! - `fuse`: what a step of one token does in one dispatch.
//! - `lower`: operation → dispatches. `fused`: the same for fused work. `plan`: pre-built bind groups, one compute pass per step, readback.
//!
//! Results do not depend on what else is in a step: every sum has an order fixed by its row's shape. Activations are
//! f32; quantised weights are read as packed words and never expanded in memory.

pub mod adapter;
mod backend;
mod bandwidth;
mod cache;
mod fuse;
mod fused;
mod gpu;
mod inputs;
mod lower;
mod plan;
mod profile;
pub mod shader;
mod weights;

pub use adapter::{AdapterChoice, AdapterKind, AdapterSummary, WgpuOptions, enumerate};
pub use backend::WgpuBackend;

/// Name of this backend in errors and logs.
pub const NAME: &str = "wgpu";
