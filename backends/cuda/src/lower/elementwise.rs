//! Lowering of the operations that work element by element or row by row on activations: `Add`, `SwiGlu`, `Gelu`,
//! `GatherRows`, `MoeCombine`.

use bytemuck::{Pod, Zeroable};
use worker_orcd_core::{BackendError, Node, Op, RowSet, SwiGluKind, ValueId};

use super::{Lowering, output, program_error};
use crate::inputs::Field;
use crate::kernels::{Kernel, Unit};
use crate::launch::{DevicePtr, KernelName, Launch};

/// Threads per CTA of every kernel here.
const THREADS: u32 = 256;

/// `struct ElementwiseArgs`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct ElementwiseArgs {
    a: DevicePtr,
    b: DevicePtr,
    y: DevicePtr,
    rows: DevicePtr,
    width: u32,
    kind: u32,
    alpha: f32,
    limit: f32,
}

/// `struct GatherRowsArgs`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct GatherRowsArgs {
    x: DevicePtr,
    out_rows: DevicePtr,
    y: DevicePtr,
    rows: DevicePtr,
    width: u32,
    reserved: u32,
}

/// `struct MoeCombineArgs`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct MoeCombineArgs {
    x: DevicePtr,
    weights: DevicePtr,
    y: DevicePtr,
    rows: DevicePtr,
    width: u32,
    top_k: u32,
}

/// Emits the launch of a node.
pub(super) fn lower(lowering: &mut Lowering<'_>, node: &Node) -> Result<(), BackendError> {
    match node.op {
        Op::Add { a, b } => elementwise(lowering, node, "add_f32", (a, b), None),
        Op::SwiGlu { gate, up, kind } => elementwise(lowering, node, "swiglu_f32", (gate, up), Some(kind)),
        Op::Gelu { x } => elementwise(lowering, node, "gelu_f32", (x, x), None),
        Op::GatherRows { x } => gather_rows(lowering, node, x),
        Op::MoeCombine { x, weights } => moe_combine(lowering, node, x, weights),
        _ => Err(program_error(node, "is not element-wise".to_owned())),
    }
}

/// The units of these operations.
pub(super) fn units() -> Vec<Unit> {
    let kernel = |name: &'static str| Kernel::of::<ElementwiseArgs>(name, THREADS);
    vec![
        Unit::new("add", "add.cu", include_str!("../../../../cuda/add.cu"), vec![kernel("add_f32")]),
        Unit::new(
            "swiglu",
            "swiglu.cu",
            include_str!("../../../../cuda/swiglu.cu"),
            vec![kernel("swiglu_f32")],
        ),
        Unit::new("gelu", "gelu.cu", include_str!("../../../../cuda/gelu.cu"), vec![kernel("gelu_f32")]),
        Unit::new(
            "gather_rows",
            "gather_rows.cu",
            include_str!("../../../../cuda/gather_rows.cu"),
            vec![Kernel::of::<GatherRowsArgs>("gather_rows_f32", THREADS)],
        ),
        Unit::new(
            "moe_combine",
            "moe_combine.cu",
            include_str!("../../../../cuda/moe_combine.cu"),
            vec![Kernel::of::<MoeCombineArgs>("moe_combine_f32", THREADS)],
        ),
    ]
}

fn elementwise(
    lowering: &mut Lowering<'_>,
    node: &Node,
    kernel: impl Into<KernelName>,
    (a, b): (ValueId, ValueId),
    gate: Option<SwiGluKind>,
) -> Result<(), BackendError> {
    let y = output(node)?;
    let (kind, alpha, limit) = match gate {
        None | Some(SwiGluKind::Silu) => (0, 0.0, 0.0),
        Some(SwiGluKind::Clamped { alpha, limit }) => (1, alpha, limit),
    };
    let args = ElementwiseArgs {
        a: lowering.value(a),
        b: lowering.value(b),
        y: lowering.value(y),
        rows: lowering.row_count(lowering.rows(y)),
        width: lowering.width(y),
        kind,
        alpha,
        limit,
    };
    let grid = [args.width.div_ceil(THREADS), lowering.grid_rows(node, lowering.rows(y))?, 1];
    lowering.launch(Launch::grid(&node.label, kernel, grid, [THREADS, 1, 1], 0, &args));
    Ok(())
}

fn gather_rows(lowering: &mut Lowering<'_>, node: &Node, x: ValueId) -> Result<(), BackendError> {
    let y = output(node)?;
    let args = GatherRowsArgs {
        x: lowering.value(x),
        out_rows: lowering.input(node, Field::OutRows)?,
        y: lowering.value(y),
        rows: lowering.row_count(RowSet::Outputs),
        width: lowering.width(y),
        reserved: 0,
    };
    let grid = [args.width.div_ceil(THREADS), lowering.grid_rows(node, RowSet::Outputs)?, 1];
    lowering.launch(Launch::grid(&node.label, "gather_rows_f32", grid, [THREADS, 1, 1], 0, &args));
    Ok(())
}

fn moe_combine(
    lowering: &mut Lowering<'_>,
    node: &Node,
    x: ValueId,
    weights: ValueId,
) -> Result<(), BackendError> {
    let y = output(node)?;
    let args = MoeCombineArgs {
        x: lowering.value(x),
        weights: lowering.value(weights),
        y: lowering.value(y),
        rows: lowering.row_count(RowSet::Tokens),
        width: lowering.width(y),
        top_k: lowering.width(weights),
    };
    let grid = [args.width.div_ceil(THREADS), lowering.grid_rows(node, RowSet::Tokens)?, 1];
    lowering.launch(Launch::grid(&node.label, "moe_combine_f32", grid, [THREADS, 1, 1], 0, &args));
    Ok(())
}
