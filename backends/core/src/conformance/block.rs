//! Cases of whole layers: operations as models chain them, with and without every value tapped.

use super::Case;
use super::attention::{MIXED, Pager};
use super::pointwise::rope_table;
use super::recipe::{Data, Recipe};
use crate::backend::BackendError;
use crate::dtype::DType;
use crate::kv::KvLayer;
use crate::op::{Op, RopeStyle, SwiGluKind};
use crate::program::{ProgramBuilder, ValueId};
use crate::step::StepShape;
use crate::weight::{WeightId, WeightSpec};

const HIDDEN: usize = 256;
const WIDE: usize = 512;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 64;
const EXPERTS: usize = 8;
const TOP_K: usize = 2;
const VOCAB: usize = 50;

/// Which family's layers.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Family {
    /// RMS norms, rotation, gated feed-forward, no biases.
    Llama,
    /// Layer norms, learned positions, tanh feed-forward, biases.
    Gpt2,
    /// Sinks, a window on every other layer, experts, biases.
    Experts,
}

struct Norm {
    weight: WeightId,
    bias: WeightId,
}

struct Projection {
    weight: WeightId,
    bias: Option<WeightId>,
}

struct Layer {
    window: Option<usize>,
    cache: KvLayer,
    norms: [Norm; 2],
    qkvo: [Projection; 4],
    sinks: Option<WeightId>,
    /// Dense: gate, up, down (gate unused by gpt2). Experts: the same, with the router.
    feed_forward: [Projection; 3],
    router: Option<WeightId>,
}

struct Model {
    family: Family,
    embedding: WeightId,
    positions: WeightId,
    rope: WeightId,
    layers: Vec<Layer>,
    norm: Norm,
    lm_head: WeightId,
}

pub(super) fn push_cases(cases: &mut Vec<Case>) -> Result<(), BackendError> {
    for (family, dtype) in
        [(Family::Llama, DType::Q4_K), (Family::Gpt2, DType::F16), (Family::Experts, DType::MXFP4)]
    {
        for tapped in [false, true] {
            cases.push(block(family, dtype, tapped)?);
        }
    }
    Ok(())
}

fn block(family: Family, dtype: DType, tapped: bool) -> Result<Case, BackendError> {
    let mut recipe = Recipe::new(format!("block({family:?},{dtype}{})", if tapped { ",tapped" } else { "" }));
    let windows: &[Option<usize>] = if family == Family::Experts { &[Some(12), None] } else { &[None] };
    let layers_per_group = 2 / windows.len();
    let heads = (KV_HEADS, HEAD_DIM);
    let mut pager = Pager::new(windows, layers_per_group, heads, 16, &mut recipe.rng);
    recipe.kv = Some(pager.layout.clone());
    let model = model(&mut recipe, family, dtype, windows);
    for chunks in MIXED {
        let (inputs, row_keys) = pager.step(chunks, VOCAB);
        let tokens = inputs.tokens.len().next_power_of_two();
        let shape = StepShape { tokens, rows: 3, sequences: 3 };
        recipe.step(shape, inputs, row_keys, |builder| {
            let hidden = model.record(builder)?;
            let rows = builder.gather_rows("rows", hidden)?;
            let rows = model.norm(builder, "norm", rows, &model.norm)?;
            let logits = builder.linear("lm_head", rows, model.lm_head, None)?;
            Ok(if tapped { (0..=logits.0).map(ValueId).collect() } else { vec![hidden, logits] })
        })?;
    }
    Ok(recipe.finish(1e-8, "two layers of f32 sums; cached keys that differ in the last bit may round apart"))
}

fn model(recipe: &mut Recipe, family: Family, dtype: DType, windows: &[Option<usize>]) -> Model {
    let embedding = recipe.activations("embedding", VOCAB, HIDDEN, Data::Normal);
    let positions = recipe.activations("positions", 300, HIDDEN, Data::Normal);
    let table = rope_table(HEAD_DIM, 300, 1.0);
    let rope = recipe.values(WeightSpec::vector("rope", 300, HEAD_DIM), table);
    let layers = (0..2).map(|index| layer(recipe, family, dtype, index, windows)).collect();
    let norm = norm(recipe);
    let lm_head = recipe.matrix("lm_head", dtype, VOCAB, HIDDEN);
    Model { family, embedding, positions, rope, layers, norm, lm_head }
}

fn layer(
    recipe: &mut Recipe,
    family: Family,
    dtype: DType,
    index: usize,
    windows: &[Option<usize>],
) -> Layer {
    let biased = family != Family::Llama;
    let experts = family == Family::Experts;
    let projection = |recipe: &mut Recipe, rows: usize, cols: usize, stacked: bool| {
        let std = 1.0 / (cols as f32).sqrt();
        let spec = if stacked {
            WeightSpec::experts("experts", dtype, EXPERTS, rows, cols)
        } else {
            WeightSpec::matrix("weight", dtype, rows, cols)
        };
        let weight = recipe.random(spec, std);
        let bias = biased.then(|| recipe.vector("bias", if stacked { EXPERTS } else { 1 }, rows));
        Projection { weight, bias }
    };
    let kv = KV_HEADS * HEAD_DIM;
    Layer {
        window: windows[index % windows.len()],
        cache: KvLayer { group: index % windows.len(), index: index / windows.len() },
        qkvo: [
            projection(recipe, HEADS * HEAD_DIM, HIDDEN, false),
            projection(recipe, kv, HIDDEN, false),
            projection(recipe, kv, HIDDEN, false),
            projection(recipe, HIDDEN, HEADS * HEAD_DIM, false),
        ],
        feed_forward: [
            projection(recipe, WIDE, HIDDEN, experts),
            projection(recipe, WIDE, HIDDEN, experts),
            projection(recipe, HIDDEN, WIDE, experts),
        ],
        norms: [norm(recipe), norm(recipe)],
        sinks: experts.then(|| recipe.vector("sinks", 1, HEADS)),
        router: experts.then(|| recipe.matrix("router", DType::F32, EXPERTS, HIDDEN)),
    }
}

fn norm(recipe: &mut Recipe) -> Norm {
    Norm { weight: recipe.vector("norm.weight", 1, HIDDEN), bias: recipe.vector("norm.bias", 1, HIDDEN) }
}

type Recorded = Result<ValueId, BackendError>;

impl Model {
    fn record(&self, builder: &mut ProgramBuilder<'_>) -> Recorded {
        let mut hidden = builder.embed("embedding", self.embedding)?;
        if self.family == Family::Gpt2 {
            let positions = builder.position_embed("positions", self.positions)?;
            hidden = builder.add("embedded", hidden, positions)?;
        }
        for (index, layer) in self.layers.iter().enumerate() {
            let attention = self.attention(builder, index, layer, hidden)?;
            hidden = builder.add(format!("layers.{index}.attn.add"), hidden, attention)?;
            let label = format!("layers.{index}.ffn");
            let x = self.norm(builder, &format!("{label}.norm"), hidden, &layer.norms[1])?;
            let x = match layer.router {
                Some(router) => experts(builder, &label, layer, router, x)?,
                None => self.dense(builder, &label, layer, x)?,
            };
            hidden = builder.add(format!("{label}.add"), hidden, x)?;
        }
        Ok(hidden)
    }

    fn norm(&self, builder: &mut ProgramBuilder<'_>, label: &str, x: ValueId, norm: &Norm) -> Recorded {
        match self.family {
            Family::Gpt2 => builder.layer_norm(label, x, norm.weight, norm.bias, 1e-5),
            _ => builder.rms_norm(label, x, norm.weight, 1e-5),
        }
    }

    fn attention(
        &self,
        builder: &mut ProgramBuilder<'_>,
        index: usize,
        layer: &Layer,
        hidden: ValueId,
    ) -> Recorded {
        let label = |part: &str| format!("layers.{index}.attn.{part}");
        let x = self.norm(builder, &label("norm"), hidden, &layer.norms[0])?;
        let [q, k, v, o] = &layer.qkvo;
        let mut queries = builder.linear(label("q"), x, q.weight, q.bias)?;
        let mut keys = builder.linear(label("k"), x, k.weight, k.bias)?;
        let values = builder.linear(label("v"), x, v.weight, v.bias)?;
        if self.family != Family::Gpt2 {
            let style =
                if self.family == Family::Llama { RopeStyle::Interleaved } else { RopeStyle::HalfSplit };
            queries = builder.rope(label("q.rope"), queries, self.rope, (HEADS, HEAD_DIM), style)?;
            keys = builder.rope(label("k.rope"), keys, self.rope, (KV_HEADS, HEAD_DIM), style)?;
        }
        builder.kv_write(label("kv_write"), keys, values, layer.cache)?;
        let op = Op::Attention {
            q: queries,
            layer: layer.cache,
            heads: HEADS,
            num_kv_heads: KV_HEADS,
            head_dim: HEAD_DIM,
            scale: 0.125,
            window: layer.window,
            sinks: layer.sinks,
        };
        let mixed = builder.attention(label("attention"), op)?;
        builder.linear(label("o"), mixed, o.weight, o.bias)
    }

    fn dense(&self, builder: &mut ProgramBuilder<'_>, label: &str, layer: &Layer, x: ValueId) -> Recorded {
        let [gate, up, down] = &layer.feed_forward;
        let up = builder.linear(format!("{label}.up"), x, up.weight, up.bias)?;
        let activated = if self.family == Family::Gpt2 {
            builder.gelu(format!("{label}.gelu"), up)?
        } else {
            let gate = builder.linear(format!("{label}.gate"), x, gate.weight, gate.bias)?;
            builder.swiglu(format!("{label}.swiglu"), gate, up, SwiGluKind::Silu)?
        };
        builder.linear(format!("{label}.down"), activated, down.weight, down.bias)
    }
}

fn experts(
    builder: &mut ProgramBuilder<'_>,
    label: &str,
    layer: &Layer,
    router: WeightId,
    x: ValueId,
) -> Recorded {
    let logits = builder.linear(format!("{label}.logits"), x, router, None)?;
    let (ids, weights) = builder.router(format!("{label}.router"), logits, TOP_K)?;
    let [gate, up, down] = &layer.feed_forward;
    let gate = builder.moe_linear(format!("{label}.gate"), x, ids, gate.weight, gate.bias)?;
    let up = builder.moe_linear(format!("{label}.up"), x, ids, up.weight, up.bias)?;
    let kind = SwiGluKind::Clamped { alpha: 1.702, limit: 7.0 };
    let activated = builder.swiglu(format!("{label}.swiglu"), gate, up, kind)?;
    let down = builder.moe_linear(format!("{label}.down"), activated, ids, down.weight, down.bias)?;
    builder.moe_combine(format!("{label}.combine"), down, weights)
}
