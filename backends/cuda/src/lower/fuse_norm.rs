//! Fusing of `RmsNorm` with what its readers do first: a norm that products read writes their activation records itself.

use bytemuck::{Pod, Zeroable};
use worker_orcd_core::{BackendError, Op};

use super::linear::ActivationArgs;
use super::{Lowering, Rule, output};
use crate::kernels::{Kernel, Unit};
use crate::launch::{DevicePtr, Launch};

/// Threads per CTA; part of the order of the sum.
const THREADS: u32 = 512;
/// The same where there are more than [`FEW_ROWS`] of at most [`MAX_HELD_WIDTH`] elements.
const ROW_THREADS: u32 = 256;
const FEW_ROWS: u32 = 64;
const MAX_HELD_WIDTH: u32 = 4096;

/// `struct RmsNormQuantizeArgs`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct RmsNormQuantizeArgs {
    x: DevicePtr,
    weight: DevicePtr,
    y: DevicePtr,
    activations: ActivationArgs,
    rows: DevicePtr,
    width: u32,
    eps: f32,
    record_use: u32,
    reserved: u32,
}

/// A norm read by products with quantised weights, in every shape of a step.
pub(super) const QUANTIZE: Rule = Rule { name: "rms_norm.quantize", apply: quantize };

fn quantize(lowering: &mut Lowering<'_>, index: usize) -> Result<usize, BackendError> {
    let Some(node) = lowering.program().nodes().get(index) else { return Ok(0) };
    let Op::RmsNorm { x, weight, eps } = node.op else { return Ok(0) };
    let y = output(node)?;
    let readers = lowering.readers(y);
    let width = lowering.width(y);
    if !readers.codes || !width.is_multiple_of(32) {
        return Ok(0);
    }
    let rows = lowering.rows(y);
    let args = RmsNormQuantizeArgs {
        x: lowering.value(x),
        weight: lowering.vector(node, Some(weight))?,
        y: if readers.floats { lowering.value(y) } else { DevicePtr::NULL },
        activations: lowering.make_codes(y),
        rows: lowering.row_count(rows),
        width,
        eps,
        record_use: lowering.record_use(y),
        reserved: 0,
    };
    let grid = lowering.max_rows(rows);
    let (kernel, threads) = if grid > FEW_ROWS && width <= MAX_HELD_WIDTH {
        ("rms_norm_quantize_rows_f32", ROW_THREADS)
    } else {
        ("rms_norm_quantize_f32", THREADS)
    };
    lowering.launch(Launch::linear(&node.label, kernel, grid, threads, &args));
    Ok(1)
}

/// The unit it needs.
pub(super) fn units() -> Vec<Unit> {
    vec![Unit::new(
        "rms_norm_quantize",
        "rms_norm_quantize.cu",
        include_str!("../../../../cuda/rms_norm_quantize.cu"),
        vec![
            Kernel::of::<RmsNormQuantizeArgs>("rms_norm_quantize_f32", THREADS),
            Kernel::of::<RmsNormQuantizeArgs>("rms_norm_quantize_rows_f32", ROW_THREADS),
        ],
    )]
}
