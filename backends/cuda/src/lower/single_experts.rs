//! Fusing rules for the experts of a step of one token: gate, up and their activation in one launch, down and the weighted
//! sum in another (`single.rs` has the rest and the reasons).

use bytemuck::{Pod, Zeroable};
use worker_orcd_core::{BackendError, DType, Node, Op, RowSet, ValueId, WeightId};

use super::linear::{ActivationArgs, format_unit_of, kernel_name};
use super::single::{
    InputArgs, SINGLE_THREADS, floats_or_records, gate_args, gate_of, is_single, kernel, labels, residual_of,
    result_args, ring_bytes, shared_bytes, takes,
};
use super::{DeviceWeight, Lowering, Rule, output};
use crate::kernels::Unit;
use crate::launch::{DevicePtr, Launch};
use crate::layout::{WeightArgs, is_plain};

/// Most experts of a token (`MOST_CHOSEN`).
const MOST_CHOSEN: usize = 32;
/// `struct MoeLinearGatedArgs`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct MoeLinearGatedArgs {
    gate: WeightArgs,
    up: WeightArgs,
    x: InputArgs,
    experts: DevicePtr,
    logits: DevicePtr,
    weights: DevicePtr,
    tokens: DevicePtr,
    gate_bias: DevicePtr,
    up_bias: DevicePtr,
    y: DevicePtr,
    records: ActivationArgs,
    outputs: u32,
    top_k: u32,
    expert_count: u32,
    kind: u32,
    alpha: f32,
    limit: f32,
}

/// `struct MoeLinearCombinedArgs`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct MoeLinearCombinedArgs {
    weight: WeightArgs,
    x: InputArgs,
    experts: DevicePtr,
    weights: DevicePtr,
    tokens: DevicePtr,
    bias: DevicePtr,
    residual: DevicePtr,
    y: DevicePtr,
    products: DevicePtr,
    arrivals: DevicePtr,
    outputs: u32,
    top_k: u32,
    expert_count: u32,
    early: u32,
}

/// `[router,] gate, up, swiglu` of the chosen experts in one launch.
pub(super) const GATED: Rule = Rule { name: "single_experts.gated", apply: gated };
/// `down, combine[, add]` of the chosen experts in one launch.
pub(super) const COMBINED: Rule = Rule { name: "single_experts.combined", apply: combined };

/// An expert product of one token over a quantised weight.
struct ExpertProduct<'a> {
    node: &'a Node,
    x: ValueId,
    experts: ValueId,
    weight: &'a DeviceWeight,
    bias: Option<WeightId>,
    y: ValueId,
    top_k: u32,
    /// Whether x has one row for all experts.
    shared: bool,
}

fn expert_product<'a>(
    lowering: &Lowering<'a>,
    index: usize,
) -> Result<Option<ExpertProduct<'a>>, BackendError> {
    let Some(node) = lowering.program().nodes().get(index) else { return Ok(None) };
    let Op::MoeLinear { x, experts, weight, bias } = node.op else { return Ok(None) };
    let weight = lowering.weight(node, weight)?;
    let top_k = lowering.width(experts);
    let shared = lowering.width(x) as usize == weight.spec.cols;
    let fits = is_single(lowering, RowSet::Tokens) && takes(lowering, weight);
    Ok(fits.then_some(ExpertProduct { node, x, experts, weight, bias, y: output(node)?, top_k, shared }))
}

/// The router at `index`, if it is one of few enough choices: its logits, and the values it writes.
fn router(lowering: &Lowering<'_>, index: usize) -> Option<(ValueId, ValueId, ValueId)> {
    let node = lowering.program().nodes().get(index)?;
    match (&node.op, node.outputs.as_slice()) {
        (&Op::Router { logits, top_k }, &[ids, weights]) if top_k <= MOST_CHOSEN => {
            Some((logits, ids, weights))
        }
        _ => None,
    }
}

fn gated(lowering: &mut Lowering<'_>, index: usize) -> Result<usize, BackendError> {
    let router = router(lowering, index);
    let begin = index + usize::from(router.is_some());
    let (Some(gate), Some(up)) = (expert_product(lowering, begin)?, expert_product(lowering, begin + 1)?)
    else {
        return Ok(0);
    };
    let shape = |product: &ExpertProduct<'_>| {
        let spec = &product.weight.spec;
        (product.x, product.experts, product.shared, spec.dtype, spec.rows, spec.experts)
    };
    let Some((kind, y)) = gate_of(lowering, begin + 2, (gate.y, up.y))? else { return Ok(0) };
    let routed = router.is_none_or(|(logits, ids, _)| {
        ids == gate.experts && lowering.width(logits) as usize == gate.weight.spec.experts
    });
    if shape(&gate) != shape(&up) || !gate.shared || !routed || gate.top_k as usize > MOST_CHOSEN {
        return Ok(0);
    }
    let (kind, alpha, limit) = gate_args(kind);
    let (y, records) = result_args(lowering, y, gate.weight.spec.rows);
    let (logits, weights) = router.map_or((DevicePtr::NULL, DevicePtr::NULL), |(logits, _, weights)| {
        (lowering.value(logits), lowering.value(weights))
    });
    let args = MoeLinearGatedArgs {
        gate: gate.weight.layout.args(gate.weight.address),
        up: up.weight.layout.args(up.weight.address),
        x: floats_or_records(lowering, gate.x),
        experts: lowering.value(gate.experts),
        logits,
        weights,
        tokens: lowering.row_count(RowSet::Tokens),
        gate_bias: lowering.vector(gate.node, gate.bias)?,
        up_bias: lowering.vector(up.node, up.bias)?,
        y,
        records,
        outputs: gate.weight.spec.rows as u32,
        top_k: gate.top_k,
        expert_count: gate.weight.spec.experts as u32,
        kind,
        alpha,
        limit,
    };
    let taken = begin + 3 - index;
    let label = labels(lowering.program().nodes().get(index..index + taken).unwrap_or_default());
    let grid = [args.gate.row_tiles, args.top_k, 1];
    let kernel = kernel_name("moe_linear", "gated", gate.weight.spec.dtype);
    let shared = shared_bytes(gate.weight.spec.dtype, args.gate.blocks);
    if let Some((_, ids, _)) = router {
        lowering.writes(ids);
    }
    lowering.launch(Launch::grid(&label, kernel, grid, [SINGLE_THREADS, 1, 1], shared, &args));
    Ok(taken)
}

fn combined(lowering: &mut Lowering<'_>, index: usize) -> Result<usize, BackendError> {
    let program = lowering.program();
    let Some(down) = expert_product(lowering, index)? else { return Ok(0) };
    let Some(combine) = program.nodes().get(index + 1) else { return Ok(0) };
    let weights = match combine.op {
        Op::MoeCombine { x, weights } if x == down.y && lowering.is_private(down.y) => weights,
        _ => return Ok(0),
    };
    if (down.shared && down.top_k > 1) || down.top_k as usize > MOST_CHOSEN {
        return Ok(0);
    }
    let combined = output(combine)?;
    let next = program.nodes().get(index + 2);
    let residual = next.and_then(|next| residual_of(lowering, combined, next));
    let (y, taken) = match (residual, next) {
        (Some(_), Some(next)) => (output(next)?, 3),
        _ => (combined, 2),
    };
    let row_tiles = down.weight.layout.row_tiles();
    let args = MoeLinearCombinedArgs {
        weight: down.weight.layout.args(down.weight.address),
        x: floats_or_records(lowering, down.x),
        experts: lowering.value(down.experts),
        weights: lowering.value(weights),
        tokens: lowering.row_count(RowSet::Tokens),
        bias: lowering.vector(down.node, down.bias)?,
        residual: residual.map_or(DevicePtr::NULL, |value| lowering.value(value)),
        y: lowering.value(y),
        products: lowering.scratch(down.top_k as usize * down.weight.spec.rows * size_of::<f32>()),
        arrivals: lowering.counters(combine, row_tiles as usize)?,
        outputs: down.weight.spec.rows as u32,
        top_k: down.top_k,
        expert_count: down.weight.spec.experts as u32,
        early: u32::from(lowering.is_settled(down.experts)),
    };
    let label = labels(program.nodes().get(index..index + taken).unwrap_or_default());
    let grid = [row_tiles, args.top_k, 1];
    let kernel = kernel_name("moe_linear", "combined", down.weight.spec.dtype);
    let shared = shared_bytes(down.weight.spec.dtype, args.weight.blocks);
    lowering.launch(Launch::grid(&label, kernel, grid, [SINGLE_THREADS, 1, 1], shared, &args));
    Ok(taken)
}

/// The units these rules need.
pub(super) fn units() -> Vec<Unit> {
    let of = |dtype: DType| {
        format_unit_of(
            "moe_linear_single",
            "moe_linear_single.cu",
            include_str!("../../../../cuda/moe_linear_single.cu"),
            dtype,
            &[
                (
                    "MOE_LINEAR_GATED",
                    kernel::<MoeLinearGatedArgs>("moe_linear", "gated", dtype, SINGLE_THREADS),
                ),
                (
                    "MOE_LINEAR_COMBINED",
                    kernel::<MoeLinearCombinedArgs>("moe_linear", "combined", dtype, SINGLE_THREADS),
                ),
            ],
        )
        .define("RING_BYTES", ring_bytes(dtype))
    };
    DType::ALL.into_iter().filter(|dtype| !is_plain(*dtype)).map(of).collect()
}
