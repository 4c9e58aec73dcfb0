//! Qwen2 and Qwen2.5: RMSNorm, biases on q, k and v, SwiGLU, tied embeddings unless the file has a head.

use super::ModelError;
use super::layers::{Layer, Transformer};
use super::parts::{AttentionNames, Parts};

const NAMES: AttentionNames<'_> = AttentionNames { norm: "attn_norm", output: &["attn_output"], sinks: None };

/// Declares the weights.
pub(super) fn declare(parts: &mut Parts<'_, '_>) -> Result<Transformer, ModelError> {
    let (embedding, head) = parts.embedding_and_head()?;
    let mut layers = Vec::with_capacity(parts.config.num_layers);
    for index in 0..parts.config.num_layers {
        let norm = parts.rms_norm(&format!("blk.{index}.{}", NAMES.norm))?;
        let attention = parts.attention(index, norm, &NAMES)?;
        let norm = parts.rms_norm(&format!("blk.{index}.ffn_norm"))?;
        layers.push(Layer { attention, norm, feed_forward: parts.gated(index)? });
    }
    let norm = parts.rms_norm("output_norm")?;
    Ok(Transformer { embedding, position_embedding: None, layers, norm, head })
}
