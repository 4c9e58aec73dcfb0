//! Lowering of `RmsNorm` and `LayerNorm`: one CTA per row.

use bytemuck::{Pod, Zeroable};
use worker_orcd_core::{BackendError, Node, Op};

use super::{Lowering, output, program_error};
use crate::kernels::{Kernel, Unit};
use crate::launch::{DevicePtr, Launch};

/// Threads per CTA; part of the order of the sum.
const THREADS: u32 = 256;

/// `struct RmsNormArgs`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct RmsNormArgs {
    x: DevicePtr,
    weight: DevicePtr,
    y: DevicePtr,
    rows: DevicePtr,
    width: u32,
    eps: f32,
}

/// `struct LayerNormArgs`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct LayerNormArgs {
    x: DevicePtr,
    weight: DevicePtr,
    bias: DevicePtr,
    y: DevicePtr,
    rows: DevicePtr,
    width: u32,
    eps: f32,
}

/// Emits the launch of a node.
pub(super) fn lower(lowering: &mut Lowering<'_>, node: &Node) -> Result<(), BackendError> {
    let y = output(node)?;
    let rows = lowering.rows(y);
    let grid = lowering.max_rows(rows);
    let (width, rows) = (lowering.width(y), lowering.row_count(rows));
    let launch = match node.op {
        Op::RmsNorm { x, weight, eps } => {
            let (x, y) = (lowering.value(x), lowering.value(y));
            let weight = lowering.vector(node, Some(weight))?;
            let args = RmsNormArgs { x, weight, y, rows, width, eps };
            Launch::linear(&node.label, "rms_norm_f32", grid, THREADS, &args)
        }
        Op::LayerNorm { x, weight, bias, eps } => {
            let (x, y) = (lowering.value(x), lowering.value(y));
            let weight = lowering.vector(node, Some(weight))?;
            let bias = lowering.vector(node, Some(bias))?;
            let args = LayerNormArgs { x, weight, bias, y, rows, width, eps };
            Launch::linear(&node.label, "layer_norm_f32", grid, THREADS, &args)
        }
        _ => return Err(program_error(node, "is not a norm".to_owned())),
    };
    lowering.launch(launch);
    Ok(())
}

/// The units of these operations.
pub(super) fn units() -> Vec<Unit> {
    vec![
        Unit::new(
            "rms_norm",
            "rms_norm.cu",
            include_str!("../../../../cuda/rms_norm.cu"),
            vec![Kernel::of::<RmsNormArgs>("rms_norm_f32", THREADS)],
        ),
        Unit::new(
            "layer_norm",
            "layer_norm.cu",
            include_str!("../../../../cuda/layer_norm.cu"),
            vec![Kernel::of::<LayerNormArgs>("layer_norm_f32", THREADS)],
        ),
    ]
}
