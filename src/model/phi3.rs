//! Phi-3: as llama, with q, k, v in one tensor, gate and up in one tensor (`ffn_up`: gate rows first), a sliding window
//! on every layer and, for the long variants, two sets of rotary divisors.

use super::ModelError;
use super::layers::{FeedForward, Layer, Transformer};
use super::parts::{AttentionNames, Parts};

const NAMES: AttentionNames<'_> = AttentionNames { norm: "attn_norm", output: &["attn_output"], sinks: None };

/// Declares the weights.
pub(super) fn declare(parts: &mut Parts<'_, '_>) -> Result<Transformer, ModelError> {
    let (hidden, width) = (parts.config.hidden_size, parts.config.intermediate_size);
    let (embedding, head) = parts.embedding_and_head()?;
    let mut layers = Vec::with_capacity(parts.config.num_layers);
    for index in 0..parts.config.num_layers {
        let norm = parts.rms_norm(&format!("blk.{index}.{}", NAMES.norm))?;
        let attention = parts.attention(index, norm, &NAMES)?;
        let norm = parts.rms_norm(&format!("blk.{index}.ffn_norm"))?;
        let gate_up = parts.fused(&format!("blk.{index}.ffn_up"), [width, width], hidden)?;
        let down = parts.projection(&format!("blk.{index}.ffn_down"), hidden, width)?;
        layers.push(Layer { attention, norm, feed_forward: FeedForward::Gated { gate_up, down } });
    }
    let norm = parts.rms_norm("output_norm")?;
    Ok(Transformer { embedding, position_embedding: None, layers, norm, head })
}
