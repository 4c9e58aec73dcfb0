//! Recording refuses every shape that does not fit, naming the node.

use super::*;
use crate::dtype::DType;
use crate::kv::{KvElement, KvGroup};

const TABLE: WeightId = WeightId(0);
const VECTOR: WeightId = WeightId(1);
const NARROW: WeightId = WeightId(2);
const EXPERTS: WeightId = WeightId(3);
const EXPERT_BIAS: WeightId = WeightId(4);
const MISSING: WeightId = WeightId(9);

fn weights() -> Vec<WeightSpec> {
    vec![
        WeightSpec::matrix("table", DType::F32, 10, 8),
        WeightSpec::vector("vector", 1, 8),
        WeightSpec::matrix("narrow", DType::F32, 3, 4),
        WeightSpec::experts("experts", DType::F32, 3, 5, 8),
        WeightSpec::vector("bias", 3, 5),
    ]
}

/// Records `x` `[T, 8]`, rows of it `[R, 8]` and router outputs, then `record`; whether that is refused at `label`.
fn refused(
    record: impl FnOnce(&mut ProgramBuilder<'_>, &Values) -> Result<(), BackendError>,
) -> Option<String> {
    let weights = weights();
    let shape = StepShape { tokens: 4, rows: 2, sequences: 1 };
    let mut builder = ProgramBuilder::new("p", shape, &weights);
    let x = builder.embed("x", TABLE).unwrap();
    let rows = builder.gather_rows("rows", x).unwrap();
    let (ids, weights) = builder.router("router", x, 2).unwrap();
    match record(&mut builder, &Values { x, rows, ids, weights }) {
        Ok(()) => None,
        Err(BackendError::Program { label, .. }) => Some(label),
        Err(other) => panic!("{other}"),
    }
}

struct Values {
    x: ValueId,
    rows: ValueId,
    ids: ValueId,
    weights: ValueId,
}

fn attention(q: ValueId, heads: usize, num_kv_heads: usize, head_dim: usize) -> Op {
    let layer = KvLayer { group: 0, index: 0 };
    Op::Attention { q, layer, heads, num_kv_heads, head_dim, scale: 1.0, window: None, sinks: None }
}

macro_rules! assert_refused {
    ($($record:expr),+ $(,)?) => {
        $(assert_eq!(refused($record).as_deref(), Some("node"), "line {}: {}", line!(), stringify!($record));)+
    };
}

#[test]
fn fitting_shapes_are_recorded() {
    assert_eq!(
        refused(|b, v| {
            b.linear("y", v.x, TABLE, None)?;
            b.moe_linear("shared", v.x, v.ids, EXPERTS, Some(EXPERT_BIAS))?;
            b.moe_combine("combine", v.x, v.weights)?;
            b.attention("attention", attention(v.x, 2, 1, 4))?;
            b.sample("token", v.rows, 0).map(drop)
        }),
        None
    );
}

#[test]
fn weights_of_the_wrong_kind_or_shape_are_refused() {
    assert_refused!(
        |b, _| b.embed("node", VECTOR).map(drop),
        |b, _| b.embed("node", MISSING).map(drop),
        |b, _| b.position_embed("node", EXPERTS).map(drop),
        |b, v| b.rms_norm("node", v.x, TABLE, 0.1).map(drop),
        |b, v| b.rms_norm("node", v.x, EXPERT_BIAS, 0.1).map(drop),
        |b, v| b.layer_norm("node", v.x, VECTOR, EXPERT_BIAS, 0.1).map(drop),
        |b, v| b.linear("node", v.x, NARROW, None).map(drop),
        |b, v| b.linear("node", v.x, TABLE, Some(VECTOR)).map(drop),
        |b, v| b.linear("node", v.x, EXPERTS, None).map(drop),
        |b, v| b.moe_linear("node", v.x, v.ids, TABLE, None).map(drop),
        |b, v| b.moe_linear("node", v.x, v.ids, EXPERTS, Some(VECTOR)).map(drop),
        |b, v| b.rope("node", v.x, VECTOR, (2, 4), RopeStyle::HalfSplit).map(drop),
        |b, v| b.rope("node", v.x, VECTOR, (3, 8), RopeStyle::HalfSplit).map(drop),
    );
}

#[test]
fn values_of_the_wrong_kind_or_shape_are_refused() {
    assert_refused!(
        |b, v| b.add("node", v.x, v.rows).map(drop),
        |b, v| b.add("node", v.x, v.weights).map(drop),
        |b, v| b.add("node", v.x, ValueId(99)).map(drop),
        |b, v| b.gelu("node", v.ids).map(drop),
        |b, v| b.swiglu("node", v.x, v.weights, SwiGluKind::Silu).map(drop),
        |b, v| b.gather_rows("node", v.rows).map(drop),
        |b, v| b.router("node", v.x, 9).map(drop),
        |b, v| b.router("node", v.x, 0).map(drop),
        |b, v| b.router("node", v.rows, 1).map(drop),
        |b, v| b.moe_linear("node", v.weights, v.ids, EXPERTS, None).map(drop),
        |b, v| b.moe_linear("node", v.x, v.weights, EXPERTS, None).map(drop),
        |b, v| b.moe_combine("node", v.x, v.ids).map(drop),
        |b, v| b.sample("node", v.x, 0).map(drop),
        |b, v| b.kv_write("node", v.x, v.weights, KvLayer { group: 0, index: 0 }),
        |b, v| b.kv_write("node", v.rows, v.rows, KvLayer { group: 0, index: 0 }),
        |b, v| b.attention("node", attention(v.x, 3, 1, 4)).map(drop),
        |b, v| b.attention("node", attention(v.x, 2, 0, 4)).map(drop),
        |b, v| b.attention("node", attention(v.x, 4, 3, 2)).map(drop),
        |b, v| b.attention("node", attention(v.rows, 2, 1, 4)).map(drop),
        |b, v| b.attention("node", Op::Gelu { x: v.x }).map(drop),
    );
}

#[test]
fn check_compares_with_the_cache_and_the_uploaded_weights() {
    let specs = weights();
    let shape = StepShape { tokens: 4, rows: 2, sequences: 1 };
    let mut builder = ProgramBuilder::new("p", shape, &specs);
    let x = builder.embed("x", TABLE).unwrap();
    builder.kv_write("write", x, x, KvLayer { group: 0, index: 0 }).unwrap();
    builder.attention("attention", attention(x, 2, 2, 4)).unwrap();
    let program = builder.finish();
    let layout = |layers, num_kv_heads, head_dim| {
        let group = KvGroup { layers, num_kv_heads, head_dim, num_blocks: 1, max_blocks_per_sequence: 1 };
        KvLayout { block_size: 1, element: KvElement::F16, groups: vec![group] }
    };
    assert!(program.check(&specs, Some(&layout(1, 2, 4))).is_ok());
    assert!(program.check(&specs, None).is_err(), "no cache");
    assert!(program.check(&specs, Some(&layout(0, 2, 4))).is_err(), "no such layer");
    assert!(program.check(&specs, Some(&layout(1, 1, 4))).is_err(), "too narrow");
    assert!(program.check(&specs, Some(&layout(1, 1, 8))).is_err(), "other heads");
    assert!(program.check(&[], Some(&layout(1, 2, 4))).is_err(), "no such weight");
}
