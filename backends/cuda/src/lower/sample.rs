//! Lowering of `Router` and `Sample`: choices.

use bytemuck::{Pod, Zeroable};
use worker_orcd_core::{BackendError, Node, Op, RowSet, ValueId};

use super::{Lowering, program_error};
use crate::kernels::{Kernel, Unit};
use crate::launch::{DevicePtr, Launch};

/// Most experts the router takes: 32 per lane of a warp.
const MAX_EXPERTS: u32 = 1024;

/// `struct RouterArgs`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct RouterArgs {
    logits: DevicePtr,
    ids: DevicePtr,
    weights: DevicePtr,
    rows: DevicePtr,
    experts: u32,
    top_k: u32,
}

/// Emits the launch of a node.
pub(super) fn lower(lowering: &mut Lowering<'_>, node: &Node) -> Result<(), BackendError> {
    match node.op {
        Op::Router { logits, top_k } => router(lowering, node, logits, top_k),
        _ => Err(program_error(node, "chooses nothing".to_owned())),
    }
}

fn router(
    lowering: &mut Lowering<'_>,
    node: &Node,
    logits: ValueId,
    top_k: usize,
) -> Result<(), BackendError> {
    let &[ids, weights] = node.outputs.as_slice() else {
        return Err(program_error(node, "a router writes ids and weights".to_owned()));
    };
    let experts = lowering.width(logits);
    if experts > MAX_EXPERTS || top_k > experts as usize {
        let reason = format!("top {top_k} of {experts} experts, the kernel takes {MAX_EXPERTS}");
        return Err(program_error(node, reason));
    }
    let args = RouterArgs {
        logits: lowering.value(logits),
        ids: lowering.value(ids),
        weights: lowering.value(weights),
        rows: lowering.row_count(RowSet::Tokens),
        experts,
        top_k: top_k as u32,
    };
    let grid = lowering.max_rows(RowSet::Tokens);
    lowering.launch(Launch::linear(&node.label, "router_f32", grid, 32, &args));
    Ok(())
}

/// The units of these operations.
pub(super) fn units() -> Vec<Unit> {
    vec![Unit::new(
        "router",
        "router.cu",
        include_str!("../../../../cuda/router.cu"),
        vec![Kernel::of::<RouterArgs>("router_f32", 32)],
    )]
}
