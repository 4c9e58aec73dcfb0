//! The operations: LLM meanings with fixed shapes, not tensor algebra.
//!
//! Shapes in brackets are row-major with the last dimension contiguous. `T` = tokens of the step, `R` = output rows.
//! The reference interpreter is the exact meaning of each; every backend is judged against it.
//!
//! One stem names an operation everywhere: `Op::RmsNorm`, `reference::rms_norm`, `shaders/rms_norm.wgsl`,
//! `cuda/rms_norm.cu`, conformance cases `rms_norm(..)`.

use crate::kv::KvLayer;
use crate::program::ValueId;
use crate::weight::WeightId;

/// Which elements of a head are rotated together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeStyle {
    /// `(x[i], x[i + n/2])`: qwen2, phi3, gpt-oss.
    HalfSplit,
    /// `(x[2i], x[2i + 1])`: llama files.
    Interleaved,
}

/// Gated activation of a feed-forward block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SwiGluKind {
    /// `silu(gate) * up`.
    Silu,
    /// gpt-oss: `g = min(gate, limit)`, `u = clamp(up, -limit, limit)`, `(u + 1) * g * sigmoid(alpha * g)`.
    Clamped {
        /// Slope of the sigmoid, 1.702.
        alpha: f32,
        /// 7.0.
        limit: f32,
    },
}

/// One operation. Every reduction accumulates in f32 or better; the order depends on the row's shape only.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// `[T, cols]`: row `tokens[t]` of the table.
    Embed {
        /// Matrix `[vocab, hidden]`.
        table: WeightId,
    },
    /// `[T, cols]`: row `positions[t]` of the table.
    PositionEmbed {
        /// Matrix `[positions, hidden]`.
        table: WeightId,
    },
    /// `x * weight / sqrt(mean(x^2) + eps)`.
    RmsNorm {
        /// `[_, n]`.
        x: ValueId,
        /// Vector `[1, n]`.
        weight: WeightId,
        /// Added to the mean square.
        eps: f32,
    },
    /// `(x - mean) / sqrt(var + eps) * weight + bias`, population variance.
    LayerNorm {
        /// `[_, n]`.
        x: ValueId,
        /// Vector `[1, n]`.
        weight: WeightId,
        /// Vector `[1, n]`.
        bias: WeightId,
        /// Added to the variance.
        eps: f32,
    },
    /// `y[o] = sum_i weight[o][i] * x[i] + bias[o]`.
    Linear {
        /// `[_, cols]`.
        x: ValueId,
        /// Matrix `[rows, cols]`.
        weight: WeightId,
        /// Vector `[1, rows]`.
        bias: Option<WeightId>,
    },
    /// Element-wise sum.
    Add {
        /// `[_, n]`.
        a: ValueId,
        /// `[_, n]`.
        b: ValueId,
    },
    /// Rotates the first `n` elements of each head by the angles of `positions[t]`; the rest passes through.
    Rope {
        /// `[T, heads * head_dim]`.
        x: ValueId,
        /// Vector `[positions, n]`: `n/2` cosines then `n/2` sines, attention factor multiplied in.
        table: WeightId,
        /// Heads in `x`.
        heads: usize,
        /// Elements per head.
        head_dim: usize,
        /// Pairing.
        style: RopeStyle,
    },
    /// Stores keys and values at `slots[group][t]`, rounded to the cache's element; padding tokens are skipped.
    KvWrite {
        /// `[T, num_kv_heads * head_dim]`, after rotation.
        k: ValueId,
        /// `[T, num_kv_heads * head_dim]`.
        v: ValueId,
        /// Where.
        layer: KvLayer,
    },
    /// Causal attention over the cached positions `p` of the token's sequence with `p <= positions[t]` and, with a
    /// window `w`, `positions[t] - p < w`. Query head `h` reads kv head `h / (heads / num_kv_heads)`.
    Attention {
        /// `[T, heads * head_dim]`, after rotation.
        q: ValueId,
        /// Whose cache.
        layer: KvLayer,
        /// Query heads.
        heads: usize,
        /// Key/value heads.
        num_kv_heads: usize,
        /// Elements per head.
        head_dim: usize,
        /// Multiplies q·k.
        scale: f32,
        /// Visible positions including the query's own.
        window: Option<usize>,
        /// Vector `[1, heads]`: one more logit per head in the softmax whose probability is dropped; not scaled.
        sinks: Option<WeightId>,
    },
    /// Gated activation, element by element.
    SwiGlu {
        /// `[_, n]`.
        gate: ValueId,
        /// `[_, n]`.
        up: ValueId,
        /// Formula.
        kind: SwiGluKind,
    },
    /// `0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`.
    Gelu {
        /// `[_, n]`.
        x: ValueId,
    },
    /// The `top_k` largest logits, descending, ties to the lowest index, and the softmax over those alone.
    /// Two outputs: expert ids `[T, top_k]` (u32) and weights `[T, top_k]` (f32).
    Router {
        /// `[T, experts]`.
        logits: ValueId,
        /// Experts per token.
        top_k: usize,
    },
    /// `y[t][k] = weight[experts[t][k]] · x + bias[experts[t][k]]`, `[T, top_k * rows]`.
    MoeLinear {
        /// `[T, cols]` (every expert sees the same row) or `[T, top_k * cols]` (one row per chosen expert).
        x: ValueId,
        /// `[T, top_k]` from `Router`.
        experts: ValueId,
        /// Experts `[experts, rows, cols]`.
        weight: WeightId,
        /// Vector `[experts, rows]`.
        bias: Option<WeightId>,
    },
    /// `y = sum_k weights[t][k] * x[t][k]`, `[T, n]`.
    MoeCombine {
        /// `[T, top_k * n]`.
        x: ValueId,
        /// `[T, top_k]` from `Router`.
        weights: ValueId,
    },
    /// `[R, n]`: row `out_rows[r]` of `x`.
    GatherRows {
        /// `[T, n]`.
        x: ValueId,
    },
    /// `[R, 1]` (u32): one token per row, by the rules of [`crate::sampling`]; [`crate::step::NO_TOKEN`] when the
    /// logits are not finite.
    Sample {
        /// `[R, vocab]`.
        logits: ValueId,
        /// Width of `StepInputs::penalty_tokens`; 0 = no repetition penalty in this program.
        max_penalty_tokens: usize,
    },
}

impl Op {
    /// The operation's stem: file name of its shader and kernel, prefix of its conformance cases.
    pub const fn stem(&self) -> &'static str {
        match self {
            Self::Embed { .. } => "embed",
            Self::PositionEmbed { .. } => "position_embed",
            Self::RmsNorm { .. } => "rms_norm",
            Self::LayerNorm { .. } => "layer_norm",
            Self::Linear { .. } => "linear",
            Self::Add { .. } => "add",
            Self::Rope { .. } => "rope",
            Self::KvWrite { .. } => "kv_write",
            Self::Attention { .. } => "attention",
            Self::SwiGlu { .. } => "swiglu",
            Self::Gelu { .. } => "gelu",
            Self::Router { .. } => "router",
            Self::MoeLinear { .. } => "moe_linear",
            Self::MoeCombine { .. } => "moe_combine",
            Self::GatherRows { .. } => "gather_rows",
            Self::Sample { .. } => "sample",
        }
    }

    /// Every stem, for the test that nothing is missing.
    pub const STEMS: [&'static str; 16] = [
        "embed",
        "position_embed",
        "rms_norm",
        "layer_norm",
        "linear",
        "add",
        "rope",
        "kv_write",
        "attention",
        "swiglu",
        "gelu",
        "router",
        "moe_linear",
        "moe_combine",
        "gather_rows",
        "sample",
    ];

    /// The values the operation reads.
    pub fn reads(&self) -> Vec<ValueId> {
        match *self {
            Self::Embed { .. } | Self::PositionEmbed { .. } => vec![],
            Self::RmsNorm { x, .. }
            | Self::LayerNorm { x, .. }
            | Self::Linear { x, .. }
            | Self::Rope { x, .. }
            | Self::Gelu { x }
            | Self::GatherRows { x } => vec![x],
            Self::Add { a, b } => vec![a, b],
            Self::KvWrite { k, v, .. } => vec![k, v],
            Self::Attention { q, .. } => vec![q],
            Self::SwiGlu { gate, up, .. } => vec![gate, up],
            Self::Router { logits, .. } | Self::Sample { logits, .. } => vec![logits],
            Self::MoeLinear { x, experts, .. } => vec![x, experts],
            Self::MoeCombine { x, weights } => vec![x, weights],
        }
    }

    /// The weights the operation reads.
    pub fn weights(&self) -> Vec<WeightId> {
        match *self {
            Self::Embed { table } | Self::PositionEmbed { table } | Self::Rope { table, .. } => vec![table],
            Self::RmsNorm { weight, .. } => vec![weight],
            Self::LayerNorm { weight, bias, .. } => vec![weight, bias],
            Self::Linear { weight, bias, .. } | Self::MoeLinear { weight, bias, .. } => {
                std::iter::once(weight).chain(bias).collect()
            }
            Self::Attention { sinks, .. } => sinks.into_iter().collect(),
            Self::Add { .. }
            | Self::KvWrite { .. }
            | Self::SwiGlu { .. }
            | Self::Gelu { .. }
            | Self::Router { .. }
            | Self::MoeCombine { .. }
            | Self::GatherRows { .. }
            | Self::Sample { .. } => vec![],
        }
    }
}
