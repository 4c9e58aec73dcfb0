//! Llama 2 and 3 and what shares their files: as qwen2, with interleaved rotary pairs (the converter permuted q and k
//! for that) and optional biases anywhere. `rope_freqs` holds Llama 3's frequency divisors.

use super::ModelError;
use super::layers::Transformer;
use super::parts::Parts;

/// Declares the weights.
pub(super) fn declare(parts: &mut Parts<'_, '_>) -> Result<Transformer, ModelError> {
    super::qwen2::declare(parts)
}
