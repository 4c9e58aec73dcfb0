//! Declarations that several architectures share: projections that may be fused, attention, gated feed-forward.

use worker_orcd_core::{KvLayer, WeightId};

use super::ModelError;
use super::config::{ModelConfig, Parity, RopeScaling};
use super::layers::{Attention, FeedForward, Norm, Projection, Rotary};
use super::rope;
use super::weights::Declarer;

/// Names of one layer's attention tensors, without `.weight` and `.bias`.
pub(super) struct AttentionNames<'n> {
    pub(super) norm: &'n str,
    pub(super) output: &'n [&'n str],
    pub(super) sinks: Option<&'n [&'n str]>,
}

/// Everything an architecture's declaration works with.
pub(super) struct Parts<'d, 'g> {
    pub(super) config: &'d ModelConfig,
    pub(super) weights: &'d mut Declarer<'g>,
    pub(super) rotary: Option<Rotary>,
    pub(super) kv_layers: &'d [KvLayer],
}

impl<'d, 'g> Parts<'d, 'g> {
    pub(super) fn new(
        config: &'d ModelConfig,
        weights: &'d mut Declarer<'g>,
        kv_layers: &'d [KvLayer],
        context: usize,
        parity: Parity,
    ) -> Result<Self, ModelError> {
        let rotary = declare_rotary(config, weights, context, parity)?;
        Ok(Self { config, weights, rotary, kv_layers })
    }

    pub(super) fn rms_norm(&mut self, name: &str) -> Result<Norm, ModelError> {
        let weight = self.weights.vector(&format!("{name}.weight"), self.config.hidden_size)?;
        Ok(Norm::Rms { weight, eps: self.config.norm_eps })
    }

    pub(super) fn layer_norm(&mut self, name: &str) -> Result<Norm, ModelError> {
        let weight = self.weights.vector(&format!("{name}.weight"), self.config.hidden_size)?;
        let bias = self.weights.vector(&format!("{name}.bias"), self.config.hidden_size)?;
        Ok(Norm::Layer { weight, bias, eps: self.config.norm_eps })
    }

    /// A matrix and, if the file has one, its bias.
    pub(super) fn projection(
        &mut self,
        name: &str,
        out: usize,
        cols: usize,
    ) -> Result<Projection, ModelError> {
        let weight = self.weights.matrix(&format!("{name}.weight"), out, cols)?;
        let bias = self.weights.optional_vector(&format!("{name}.bias"), out)?;
        Ok(Projection { weight, bias })
    }

    /// Consecutive row ranges of one fused matrix and, if the file has one, of its bias.
    pub(super) fn fused<const N: usize>(
        &mut self,
        name: &str,
        rows: [usize; N],
        cols: usize,
    ) -> Result<[Projection; N], ModelError> {
        let total = rows.iter().sum();
        let bias_name = format!("{name}.bias");
        let has_bias = self.weights.has(&bias_name);
        let mut projections = [Projection { weight: WeightId(0), bias: None }; N];
        let mut start = 0;
        for (projection, count) in projections.iter_mut().zip(rows) {
            let part = start..start + count;
            start = part.end;
            projection.weight =
                self.weights.matrix_rows(&format!("{name}.weight"), part.clone(), (total, cols))?;
            if has_bias {
                projection.bias = Some(self.weights.vector_part(&bias_name, part, total)?);
            }
        }
        Ok(projections)
    }

    /// Attention of layer `index`; q, k and v may be one tensor in any architecture.
    pub(super) fn attention(
        &mut self,
        index: usize,
        norm: Norm,
        names: &AttentionNames<'_>,
    ) -> Result<Attention, ModelError> {
        let config = self.config;
        let (q, kv) = (config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim);
        let hidden = config.hidden_size;
        let blk = format!("blk.{index}");
        let fused = format!("{blk}.attn_qkv");
        let qkv = if self.weights.has(&format!("{fused}.weight")) {
            self.fused(&fused, [q, kv, kv], hidden)?
        } else {
            [
                self.projection(&format!("{blk}.attn_q"), q, hidden)?,
                self.projection(&format!("{blk}.attn_k"), kv, hidden)?,
                self.projection(&format!("{blk}.attn_v"), kv, hidden)?,
            ]
        };
        let output = self.aliased(&blk, names.output, ".weight");
        let output = output.trim_end_matches(".weight");
        let sinks = match names.sinks {
            None => None,
            Some(names) => {
                let name = self.aliased(&blk, names, "");
                Some(self.weights.vector(&name, config.num_heads)?)
            }
        };
        Ok(Attention {
            norm,
            qkv,
            output: self.projection(output, hidden, q)?,
            rotary: self.rotary,
            sinks,
            heads: config.num_heads,
            num_kv_heads: config.num_kv_heads,
            head_dim: config.head_dim,
            scale: config.attention_scale,
            window: config.window(index),
            layer: self.kv_layers[index],
        })
    }

    /// The first name of a layer's part that the file has, in full.
    pub(super) fn aliased(&self, blk: &str, names: &[&str], suffix: &str) -> String {
        let full: Vec<String> = names.iter().map(|name| format!("{blk}.{name}{suffix}")).collect();
        let borrowed: Vec<&str> = full.iter().map(String::as_str).collect();
        self.weights.first_of(&borrowed).to_owned()
    }

    /// Separate gate, up and down matrices.
    pub(super) fn gated(&mut self, index: usize) -> Result<FeedForward, ModelError> {
        let (hidden, width) = (self.config.hidden_size, self.config.intermediate_size);
        let gate = self.projection(&format!("blk.{index}.ffn_gate"), width, hidden)?;
        let up = self.projection(&format!("blk.{index}.ffn_up"), width, hidden)?;
        let down = self.projection(&format!("blk.{index}.ffn_down"), hidden, width)?;
        Ok(FeedForward::Gated { gate_up: [gate, up], down })
    }

    /// Embedding and head: the head is the embedding when the file has no `output.weight`.
    pub(super) fn embedding_and_head(&mut self) -> Result<(WeightId, WeightId), ModelError> {
        let (vocab, hidden) = (self.config.vocab_size, self.config.hidden_size);
        let embedding = self.weights.matrix("token_embd.weight", vocab, hidden)?;
        let head = if self.weights.has("output.weight") {
            self.weights.matrix("output.weight", vocab, hidden)?
        } else {
            embedding
        };
        Ok((embedding, head))
    }
}

fn declare_rotary(
    config: &ModelConfig,
    weights: &mut Declarer<'_>,
    context: usize,
    parity: Parity,
) -> Result<Option<Rotary>, ModelError> {
    let Some(rope) = &config.rope else { return Ok(None) };
    let pairs = rope.rotary_dim / 2;
    let divisors = match rope.scaling {
        RopeScaling::LongRope { original_context, .. } => {
            // Decided once for the served context: switching sets in mid-sequence would invalidate cached keys.
            let (long, short) = ("rope_factors_long.weight", "rope_factors_short.weight");
            let (long, short) = (weights.values(long, pairs)?, weights.values(short, pairs)?);
            Some(if context > original_context { long } else { short })
        }
        _ if weights.has("rope_freqs.weight") => Some(weights.values("rope_freqs.weight", pairs)?),
        _ => None,
    };
    if divisors.iter().flatten().any(|divisor| !divisor.is_finite() || *divisor <= 0.0) {
        return Err(ModelError::Key {
            key: "rope factors".into(),
            found: "a value that is not positive".into(),
            rule: "every divisor must be finite and positive".into(),
        });
    }
    let frequencies = rope::frequencies(rope, divisors.as_deref(), parity);
    let table = rope::table(&frequencies, context);
    Ok(Some(Rotary {
        table: weights.computed("rope_table", context, rope.rotary_dim, table),
        style: rope.style,
    }))
}
