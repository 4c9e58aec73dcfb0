//! Fusing of gate, up and activation of the chosen experts in steps of a few tokens.

use bytemuck::{Pod, Zeroable};
use worker_orcd_core::{BackendError, DType, Op, RowSet, SwiGluKind};

use super::linear::{ActivationArgs, THREADS, format_unit_of, kernel_name};
use super::moe::{Operands, RoutingArgs, Spread, operands, prepare, spread};
use super::{Lowering, Rule, output, stream};
use crate::kernels::{Kernel, Unit};
use crate::launch::{DevicePtr, Launch};
use crate::layout::{WeightArgs, is_plain};

/// `struct MoeLinearSplitGatedArgs` and `struct MoeLinearStreamGatedArgs`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(super) struct GatedArgs {
    gate: WeightArgs,
    up: WeightArgs,
    x: ActivationArgs,
    routing: RoutingArgs,
    gate_bias: DevicePtr,
    up_bias: DevicePtr,
    y: ActivationArgs,
    kind: u32,
    alpha: f32,
    limit: f32,
    /// Whether the experts were chosen before the launch before.
    early: u32,
}

/// Gate, up and activation of the chosen experts for 2 to 64 tokens, when nothing but products reads the result.
pub(super) const GATED: Rule = Rule { name: "moe_linear.gated", apply: gated };

fn gated(lowering: &mut Lowering<'_>, index: usize) -> Result<usize, BackendError> {
    let program = lowering.program();
    let Some([gate_node, up_node, active]) = program.nodes().get(index..index + 3) else { return Ok(0) };
    let (Ok(gate), Ok(up), &Op::SwiGlu { gate: a, up: b, kind }) =
        (operands(gate_node), operands(up_node), &active.op)
    else {
        return Ok(0);
    };
    let (gate_y, up_y, y) = (output(gate_node)?, output(up_node)?, output(active)?);
    let (left, right) = (lowering.weight(gate_node, gate.weight)?, lowering.weight(up_node, up.weight)?);
    let shape = |spec: &worker_orcd_core::WeightSpec| (spec.dtype, spec.experts, spec.rows, spec.cols);
    let shared = lowering.width(gate.x) as usize == left.spec.cols;
    let readers = lowering.readers(y);
    let legal = (a, b) == (gate_y, up_y)
        && gate_y != up_y
        && (gate.x, gate.experts) == (up.x, up.experts)
        && shape(&left.spec) == shape(&right.spec)
        && lowering.is_private(gate_y)
        && lowering.is_private(up_y);
    let (tokens, top_k) = (lowering.max_rows(RowSet::Tokens), lowering.width(gate.experts));
    let streamed = stream::experts(lowering, left, top_k);
    let few = streamed.is_some() || spread(tokens, top_k) == Spread::Split8;
    let quantised = !is_plain(left.spec.dtype) && left.spec.rows.is_multiple_of(32);
    if !legal || !few || !quantised || !shared || !readers.codes || readers.floats {
        return Ok(0);
    }
    let prepared = prepare(lowering, gate_node, gate)?;
    let Some(x) = prepared.activations else { return Ok(0) };
    let (kind, alpha, limit) = match kind {
        SwiGluKind::Silu => (0, 0.0, 0.0),
        SwiGluKind::Clamped { alpha, limit } => (1, alpha, limit),
    };
    let vector = |operands: Operands| lowering.vector(gate_node, operands.bias);
    let (gate_bias, up_bias) = (vector(gate)?, vector(up)?);
    let args = GatedArgs {
        gate: left.layout.args(left.address),
        up: right.layout.args(right.address),
        x,
        routing: prepared.routing,
        gate_bias,
        up_bias,
        y: lowering.make_codes(y),
        kind,
        alpha,
        limit,
        early: u32::from(lowering.is_settled(gate.experts)),
    };
    let label = format!("{}+{}+{}", gate_node.label, up_node.label, active.label);
    let (dtype, experts, row_tiles) = (left.spec.dtype, left.spec.experts as u32, args.gate.row_tiles);
    lowering.launch(if let Some(shape) = streamed {
        let grid = stream::expert_grid(&shape, row_tiles, tokens * top_k, experts);
        shape.launch(&label, ["moe_linear", "stream_gated"], dtype, grid, &args)
    } else {
        let kernel = kernel_name("moe_linear", "split_gated", dtype);
        Launch::grid(&label, kernel, [row_tiles, experts, 1], [THREADS, 1, 1], 0, &args)
    });
    Ok(3)
}

/// The units it needs.
pub(super) fn units() -> Vec<Unit> {
    let gated = |dtype: DType| {
        let source = include_str!("../../../../cuda/moe_linear_split_gated.cu");
        let kernel = Kernel::of::<GatedArgs>(kernel_name("moe_linear", "split_gated", dtype), THREADS);
        let entries = [("MOE_LINEAR_SPLIT_GATED", kernel)];
        format_unit_of("moe_linear_split_gated", "moe_linear_split_gated.cu", source, dtype, &entries)
    };
    DType::ALL.into_iter().filter(|dtype| !is_plain(*dtype)).map(gated).collect()
}
