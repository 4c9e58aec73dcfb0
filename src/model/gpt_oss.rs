//! gpt-oss: attention sinks, sliding window on alternating layers, YaRN, a mixture of experts with clamped SwiGLU,
//! biases everywhere. Legacy files (`gptoss`) call some tensors by other names.

use worker_orcd_core::SwiGluKind;

use super::ModelError;
use super::config::MoeConfig;
use super::layers::{ExpertProjection, FeedForward, Layer, Transformer};
use super::parts::{AttentionNames, Parts};

const NAMES: AttentionNames<'_> = AttentionNames {
    norm: "attn_norm",
    output: &["attn_output", "attn_out"],
    sinks: Some(&["attn_sinks.weight", "attn_sinks"]),
};

/// Constants of the architecture; files do not carry them.
const ACTIVATION: SwiGluKind = SwiGluKind::Clamped { alpha: 1.702, limit: 7.0 };

/// Declares the weights.
pub(super) fn declare(parts: &mut Parts<'_, '_>) -> Result<Transformer, ModelError> {
    let moe = parts.config.moe.ok_or_else(|| ModelError::MissingTensor { name: "experts".into() })?;
    let (embedding, head) = parts.embedding_and_head()?;
    let mut layers = Vec::with_capacity(parts.config.num_layers);
    for index in 0..parts.config.num_layers {
        let blk = format!("blk.{index}");
        let norm = parts.rms_norm(&format!("{blk}.{}", NAMES.norm))?;
        let attention = parts.attention(index, norm, &NAMES)?;
        // Named after its place in the original checkpoint: it is the norm before the experts.
        let name = parts.aliased(&blk, &["post_attention_norm", "ffn_norm"], ".weight");
        let norm = parts.rms_norm(name.trim_end_matches(".weight"))?;
        layers.push(Layer { attention, norm, feed_forward: experts(parts, &blk, moe)? });
    }
    let norm = parts.rms_norm("output_norm")?;
    Ok(Transformer { embedding, position_embedding: None, layers, norm, head })
}

fn experts(parts: &mut Parts<'_, '_>, blk: &str, moe: MoeConfig) -> Result<FeedForward, ModelError> {
    let (hidden, width, count) = (parts.config.hidden_size, moe.intermediate_size, moe.num_experts);
    let router = parts.projection(&format!("{blk}.ffn_gate_inp"), count, hidden)?;
    let fused = format!("{blk}.ffn_gate_up_exps.weight");
    let gate_up = if parts.weights.has(&fused) {
        let mut half = |start: usize| -> Result<ExpertProjection, ModelError> {
            let rows = start..start + width;
            let weight = parts.weights.expert_rows(&fused, count, rows, (2 * width, hidden))?;
            Ok(ExpertProjection { weight, bias: None })
        };
        [half(0)?, half(width)?]
    } else {
        [
            expert_projection(parts, &format!("{blk}.ffn_gate_exps"), (width, hidden), count)?,
            expert_projection(parts, &format!("{blk}.ffn_up_exps"), (width, hidden), count)?,
        ]
    };
    let down = expert_projection(parts, &format!("{blk}.ffn_down_exps"), (hidden, width), count)?;
    let top_k = moe.num_experts_per_token;
    Ok(FeedForward::Moe { router, top_k, gate_up, down, activation: ACTIVATION })
}

fn expert_projection(
    parts: &mut Parts<'_, '_>,
    name: &str,
    (out, cols): (usize, usize),
    experts: usize,
) -> Result<ExpertProjection, ModelError> {
    let weight = parts.weights.expert_rows(&format!("{name}.weight"), experts, 0..out, (out, cols))?;
    let bias = format!("{name}.bias");
    let bias = if parts.weights.has(&bias) {
        Some(parts.weights.expert_vectors(&bias, experts, out)?)
    } else {
        None
    };
    Ok(ExpertProjection { weight, bias })
}
