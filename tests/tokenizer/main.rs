//! Tokenizers: published vectors, agreement of the backends with each other and with their oracle, long runs.

mod at_hand;
mod backends;
mod gguf_vocab;
mod runs;
mod vectors;
