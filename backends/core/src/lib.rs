//! What every backend shares: storage formats, operations, programs, the `Backend` contract and the reference interpreter.

pub mod dtype;
pub mod quant;

pub use dtype::DType;
