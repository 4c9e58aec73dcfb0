//! Lowering of the operations that work element by element or row by row on activations: `Add`, `SwiGlu`, `Gelu`,
//! `GatherRows`, `MoeCombine`; and the sum of experts that is added to something at once.

use bytemuck::{Pod, Zeroable};
use worker_orcd_core::{BackendError, Node, Op, Program, RowSet, SwiGluKind, ValueId};

use super::{Lowering, Rule, is_private, output, program_error};
use crate::inputs::Field;
use crate::kernels::{Kernel, Unit};
use crate::launch::{DevicePtr, KernelName, Launch};

/// Threads per CTA of every kernel here.
const THREADS: u32 = 256;
/// Elements that a thread of `moe_combine` makes.
const COMBINED_ELEMENTS: u32 = 4;

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
    residual: DevicePtr,
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
        Op::MoeCombine { x, weights } => {
            let sum = CombinedSum { x, weights, residual: None, y: output(node)? };
            moe_combine(lowering, node, &node.label, sum)
        }
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

/// A weighted sum of experts, and what it is added to.
#[derive(Clone, Copy, Debug)]
struct CombinedSum {
    x: ValueId,
    weights: ValueId,
    residual: Option<ValueId>,
    y: ValueId,
}

/// The sum of experts at `index` whose only reader, the next node, adds it to something.
fn combined_sum(program: &Program, index: usize) -> Option<CombinedSum> {
    let [combine, add] = program.nodes().get(index..index + 2)? else { return None };
    let (&Op::MoeCombine { x, weights }, &Op::Add { a, b }) = (&combine.op, &add.op) else { return None };
    let sum = *combine.outputs.first()?;
    let residual = match (a == sum, b == sum) {
        (true, false) => b,
        (false, true) => a,
        _ => return None,
    };
    let y = *add.outputs.first()?;
    is_private(program, sum).then_some(CombinedSum { x, weights, residual: Some(residual), y })
}

/// The node until whose end what node `index` reads must stay: a sum of experts is written where its reader's result lives.
pub(super) fn reads_until(program: &Program, index: usize) -> usize {
    index + usize::from(combined_sum(program, index).is_some())
}

/// `combine, add` in one launch, in every shape of a step.
pub(super) const COMBINE_AND_ADD: Rule = Rule { name: "moe_combine.add", apply: combine_and_add };

fn combine_and_add(lowering: &mut Lowering<'_>, index: usize) -> Result<usize, BackendError> {
    let program = lowering.program();
    let Some([combine, add]) = program.nodes().get(index..index + 2) else { return Ok(0) };
    let Some(sum) = combined_sum(program, index) else { return Ok(0) };
    moe_combine(lowering, combine, &format!("{}+{}", combine.label, add.label), sum)?;
    Ok(2)
}

fn moe_combine(
    lowering: &mut Lowering<'_>,
    node: &Node,
    label: &str,
    sum: CombinedSum,
) -> Result<(), BackendError> {
    let args = MoeCombineArgs {
        x: lowering.value(sum.x),
        weights: lowering.value(sum.weights),
        residual: sum.residual.map_or(DevicePtr::NULL, |residual| lowering.value(residual)),
        y: lowering.value(sum.y),
        rows: lowering.row_count(RowSet::Tokens),
        width: lowering.width(sum.y),
        top_k: lowering.width(sum.weights),
    };
    let columns = args.width.div_ceil(THREADS * COMBINED_ELEMENTS);
    let grid = [columns, lowering.grid_rows(node, RowSet::Tokens)?, 1];
    lowering.launch(Launch::grid(label, "moe_combine_f32", grid, [THREADS, 1, 1], 0, &args));
    Ok(())
}

#[cfg(test)]
mod tests {
    use worker_orcd_core::conformance::cases;

    use super::*;
    use crate::lower::activation_plan;

    #[test]
    fn a_sum_added_at_once_never_lies_where_its_experts_do() {
        let mut sums = 0;
        for case in cases().unwrap() {
            for program in case.steps.iter().map(|step| &step.program) {
                let plan = activation_plan(program);
                let place = |id: ValueId| {
                    let offset = plan.offset(id);
                    offset..offset + program.value(id).bytes(program.shape())
                };
                for sum in (0..program.nodes().len()).filter_map(|index| combined_sum(program, index)) {
                    let y = place(sum.y);
                    for read in [sum.x, sum.weights].map(place) {
                        assert!(read.end <= y.start || y.end <= read.start, "{}: {read:?}, {y:?}", case.name);
                    }
                    sums += 1;
                }
            }
        }
        assert!(sums > 0, "no case adds a sum of experts");
    }
}
