//! GPT-2: LayerNorm, learned positions, one q/k/v tensor, GELU, a bias on everything.

use super::ModelError;
use super::layers::{FeedForward, Layer, Transformer};
use super::parts::{AttentionNames, Parts};

const NAMES: AttentionNames<'_> = AttentionNames { norm: "attn_norm", output: &["attn_output"], sinks: None };

/// Declares the weights.
pub(super) fn declare(parts: &mut Parts<'_, '_>) -> Result<Transformer, ModelError> {
    let config = parts.config;
    let (hidden, width) = (config.hidden_size, config.intermediate_size);
    let (embedding, head) = parts.embedding_and_head()?;
    let positions = parts.weights.matrix("position_embd.weight", config.context_length, hidden)?;
    let mut layers = Vec::with_capacity(config.num_layers);
    for index in 0..config.num_layers {
        let norm = parts.layer_norm(&format!("blk.{index}.{}", NAMES.norm))?;
        let attention = parts.attention(index, norm, &NAMES)?;
        let norm = parts.layer_norm(&format!("blk.{index}.ffn_norm"))?;
        let up = parts.projection(&format!("blk.{index}.ffn_up"), width, hidden)?;
        let down = parts.projection(&format!("blk.{index}.ffn_down"), hidden, width)?;
        layers.push(Layer { attention, norm, feed_forward: FeedForward::Gelu { up, down } });
    }
    let norm = parts.layer_norm("output_norm")?;
    Ok(Transformer { embedding, position_embedding: Some(positions), layers, norm, head })
}
