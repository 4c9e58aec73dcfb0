//! worker-orcd: one process, one GGUF model, one GPU.

pub mod commands;
pub mod config;
pub mod device;
pub mod engine;
pub mod gguf;
pub mod model;
mod random;
pub mod server;
pub mod text;
