//! server
pub mod random;
