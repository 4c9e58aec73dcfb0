//! Tokenizers: published vectors, agreement of the backends with each other and with their oracle, long runs.
//!
//! The modules are marked as tests so that the lints for tests apply to their helper functions too.

#[cfg(test)]
mod at_hand;
#[cfg(test)]
mod backends;
#[cfg(test)]
mod gguf_vocab;
#[cfg(test)]
mod runs;
#[cfg(test)]
mod sentence;
#[cfg(test)]
mod vectors;
