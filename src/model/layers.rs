//! The shared recorders: one transformer, assembled from the parts an architecture declares.

use worker_orcd_core::{BackendError, KvLayer, Op, ProgramBuilder, RopeStyle, SwiGluKind, ValueId, WeightId};

/// A norm with its weights.
#[derive(Clone, Copy, Debug)]
pub enum Norm {
    /// Root-mean-square.
    Rms {
        /// Scale.
        weight: WeightId,
        /// Epsilon.
        eps: f32,
    },
    /// Mean and variance.
    Layer {
        /// Scale.
        weight: WeightId,
        /// Shift.
        bias: WeightId,
        /// Epsilon.
        eps: f32,
    },
}

/// A matrix with an optional bias.
#[derive(Clone, Copy, Debug)]
pub struct Projection {
    /// Matrix `[out, in]`.
    pub weight: WeightId,
    /// Vector of `out`.
    pub bias: Option<WeightId>,
}

/// Rotary embedding of one layer.
#[derive(Clone, Copy, Debug)]
pub struct Rotary {
    /// Vector `[positions, rotary_dim]`.
    pub table: WeightId,
    /// Pairing.
    pub style: RopeStyle,
}

/// Attention of one layer.
#[derive(Clone, Debug)]
pub struct Attention {
    /// Before the projections.
    pub norm: Norm,
    /// Query, key, value.
    pub qkv: [Projection; 3],
    /// Back to the residual stream.
    pub output: Projection,
    /// Absent for learned positions.
    pub rotary: Option<Rotary>,
    /// One extra logit per head.
    pub sinks: Option<WeightId>,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub num_kv_heads: usize,
    /// Elements per head.
    pub head_dim: usize,
    /// Multiplies q·k.
    pub scale: f32,
    /// Visible positions.
    pub window: Option<usize>,
    /// Place in the cache.
    pub layer: KvLayer,
}

/// An expert matrix with an optional bias per expert.
#[derive(Clone, Copy, Debug)]
pub struct ExpertProjection {
    /// Experts `[experts, out, in]`.
    pub weight: WeightId,
    /// Vector `[experts, out]`.
    pub bias: Option<WeightId>,
}

/// The second half of a layer.
#[derive(Clone, Debug)]
pub enum FeedForward {
    /// `down(silu(gate) * up)`.
    Gated {
        /// Gate and up.
        gate_up: [Projection; 2],
        /// Back to the residual stream.
        down: Projection,
    },
    /// `down(gelu(up))`.
    Gelu {
        /// Up.
        up: Projection,
        /// Back to the residual stream.
        down: Projection,
    },
    /// A mixture of gated experts.
    Moe {
        /// Router logits.
        router: Projection,
        /// Experts per token.
        top_k: usize,
        /// Gate and up.
        gate_up: [ExpertProjection; 2],
        /// Back to the residual stream.
        down: ExpertProjection,
        /// Activation between.
        activation: SwiGluKind,
    },
}

/// One transformer layer.
#[derive(Clone, Debug)]
pub struct Layer {
    /// First half.
    pub attention: Attention,
    /// Before the second half.
    pub norm: Norm,
    /// Second half.
    pub feed_forward: FeedForward,
}

/// A whole decoder.
#[derive(Clone, Debug)]
pub struct Transformer {
    /// Matrix `[vocab, hidden]`.
    pub embedding: WeightId,
    /// Matrix `[positions, hidden]` for learned positions.
    pub position_embedding: Option<WeightId>,
    /// Layers in order.
    pub layers: Vec<Layer>,
    /// Before the head.
    pub norm: Norm,
    /// Matrix `[vocab, hidden]`; the embedding itself when tied.
    pub head: WeightId,
}

type Recorded = Result<ValueId, BackendError>;

impl Transformer {
    /// Records the forward pass up to the logits of the output rows, `[R, vocab]`.
    ///
    /// # Errors
    /// A shape that does not fit, naming the node.
    pub fn record_logits(&self, b: &mut ProgramBuilder<'_>) -> Recorded {
        let mut x = b.embed("embed", self.embedding)?;
        if let Some(table) = self.position_embedding {
            let positions = b.position_embed("position_embed", table)?;
            x = b.add("embed.sum", x, positions)?;
        }
        for (index, layer) in self.layers.iter().enumerate() {
            let prefix = format!("layers.{index}");
            x = record_attention(b, &prefix, x, &layer.attention)?;
            let normed = record_norm(b, format!("{prefix}.ffn.norm"), x, layer.norm)?;
            let change = record_feed_forward(b, &format!("{prefix}.ffn"), normed, &layer.feed_forward)?;
            x = b.add(format!("{prefix}.ffn.residual"), x, change)?;
        }
        let rows = b.gather_rows("out_rows", x)?;
        let normed = record_norm(b, "norm".into(), rows, self.norm)?;
        b.linear("lm_head", normed, self.head, None)
    }
}

fn record_norm(b: &mut ProgramBuilder<'_>, label: String, x: ValueId, norm: Norm) -> Recorded {
    match norm {
        Norm::Rms { weight, eps } => b.rms_norm(label, x, weight, eps),
        Norm::Layer { weight, bias, eps } => b.layer_norm(label, x, weight, bias, eps),
    }
}

fn record_projection(b: &mut ProgramBuilder<'_>, label: String, x: ValueId, p: Projection) -> Recorded {
    b.linear(label, x, p.weight, p.bias)
}

/// `x + output(attention(rope(q), rope(k), v))`.
fn record_attention(b: &mut ProgramBuilder<'_>, prefix: &str, x: ValueId, a: &Attention) -> Recorded {
    let label = |part: &str| format!("{prefix}.attn.{part}");
    let normed = record_norm(b, label("norm"), x, a.norm)?;
    let [q, k, v] = a.qkv;
    let mut q = record_projection(b, label("q"), normed, q)?;
    let mut k = record_projection(b, label("k"), normed, k)?;
    let v = record_projection(b, label("v"), normed, v)?;
    if let Some(Rotary { table, style }) = a.rotary {
        q = b.rope(label("q_rope"), q, table, (a.heads, a.head_dim), style)?;
        k = b.rope(label("k_rope"), k, table, (a.num_kv_heads, a.head_dim), style)?;
    }
    b.kv_write(label("kv"), k, v, a.layer)?;
    let op = Op::Attention {
        q,
        layer: a.layer,
        heads: a.heads,
        num_kv_heads: a.num_kv_heads,
        head_dim: a.head_dim,
        scale: a.scale,
        window: a.window,
        sinks: a.sinks,
    };
    let mixed = b.attention(label("mix"), op)?;
    let change = record_projection(b, label("output"), mixed, a.output)?;
    b.add(label("residual"), x, change)
}

fn record_feed_forward(b: &mut ProgramBuilder<'_>, prefix: &str, x: ValueId, ffn: &FeedForward) -> Recorded {
    let label = |part: &str| format!("{prefix}.{part}");
    match *ffn {
        FeedForward::Gated { gate_up: [gate, up], down } => {
            let gate = record_projection(b, label("gate"), x, gate)?;
            let up = record_projection(b, label("up"), x, up)?;
            let active = b.swiglu(label("act"), gate, up, SwiGluKind::Silu)?;
            record_projection(b, label("down"), active, down)
        }
        FeedForward::Gelu { up, down } => {
            let up = record_projection(b, label("up"), x, up)?;
            let active = b.gelu(label("act"), up)?;
            record_projection(b, label("down"), active, down)
        }
        FeedForward::Moe { router, top_k, gate_up: [gate, up], down, activation } => {
            let logits = record_projection(b, label("router"), x, router)?;
            let (experts, weights) = b.router(label("route"), logits, top_k)?;
            let gate = b.moe_linear(label("gate"), x, experts, gate.weight, gate.bias)?;
            let up = b.moe_linear(label("up"), x, experts, up.weight, up.bias)?;
            let active = b.swiglu(label("act"), gate, up, activation)?;
            let down = b.moe_linear(label("down"), active, experts, down.weight, down.bias)?;
            b.moe_combine(label("combine"), down, weights)
        }
    }
}
