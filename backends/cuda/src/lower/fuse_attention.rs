//! Fusing of `Rope` of queries, `Rope` of keys, `KvWrite` and `Attention` in a step of one token: one launch whose only new
//! key is the token's own.

use bytemuck::{Pod, Zeroable};
use worker_orcd_core::{BackendError, Node, Op};

use super::attention::{self, AttentionArgs, MAX_PARTIAL_BYTES, PADDED_HEAD_DIMS, WARP_ROWS};
use super::position::{RotationArgs, kv_write_args, rotation};
use super::{Lowering, Rule, output};
use crate::kernels::{Kernel, Unit};
use crate::launch::{DevicePtr, Launch};

/// Tiles that a CTA works on at once (`TEAMS`).
const fn teams(padded: u32) -> u32 {
    if padded <= 64 { 4 } else { 2 }
}

/// Threads per CTA (`STEP_THREADS`): four warps a team.
const fn threads(padded: u32) -> u32 {
    teams(padded) * 128
}

/// CTAs that a multiprocessor holds, by the kernel's launch bounds: one loads while the other multiplies.
const fn resident(padded: u32) -> u32 {
    if padded == 96 { 2 } else { 1 }
}

/// `struct AttentionStepArgs`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct AttentionStepArgs {
    attention: AttentionArgs,
    rotation: RotationArgs,
    k: DevicePtr,
    v: DevicePtr,
    slots: DevicePtr,
    num_slots: u32,
    reserved: u32,
}

/// Queries and keys rotated alike and read by nothing but the attention and the cache, for one token; the same bits as
/// apart.
pub(super) const STEP: Rule = Rule { name: "attention.step", apply: step };

fn step(lowering: &mut Lowering<'_>, index: usize) -> Result<usize, BackendError> {
    let program = lowering.program();
    let Some([first, second, third, last]) = program.nodes().get(index..index + 4) else { return Ok(0) };
    let (Op::Rope { x: q, .. }, Op::Rope { x: k, .. }, Op::KvWrite { k: stored, v, layer }) =
        (&first.op, &second.op, &third.op)
    else {
        return Ok(0);
    };
    let Op::Attention { q: asked, layer: read, .. } = &last.op else { return Ok(0) };
    let (queries, keys) = (output(first)?, output(second)?);
    let chained = (asked, stored, read) == (&queries, &keys, layer)
        && lowering.is_private(queries)
        && lowering.is_private(keys);
    let angles = rotation(lowering, first)?;
    if program.shape().tokens != 1 || !chained || angles != rotation(lowering, second)? {
        return Ok(0);
    }
    let kv = kv_write_args(lowering, third, (*k, *v), *layer)?;
    let mut args = attention::arguments(lowering, last)?;
    let padded = PADDED_HEAD_DIMS.into_iter().find(|padded| *padded >= args.head_dim);
    let Some(padded) = padded.filter(|_| args.head_dim.is_multiple_of(8)) else { return Ok(0) };
    let results = args.heads as usize * args.tiles as usize * size_of::<f32>();
    if results * args.head_dim as usize > MAX_PARTIAL_BYTES {
        return Ok(0);
    }
    args.q = lowering.value(*q);
    args.partial = lowering.scratch(results * args.head_dim as usize);
    args.partial_softmax = lowering.scratch(results * 2);
    let head_groups = (args.heads / args.num_kv_heads).div_ceil(WARP_ROWS);
    let warp_heads = args.num_kv_heads * head_groups;
    args.arrivals = lowering.counters(last, warp_heads as usize)?;
    write_result(lowering, last, &mut args)?;
    let resident = lowering.traits().multiprocessors * resident(padded);
    let wanted = (resident / warp_heads).max(1);
    let grid = [1, warp_heads, wanted.min(args.tiles.div_ceil(teams(padded)))];
    let args = AttentionStepArgs {
        attention: args,
        rotation: angles,
        k: kv.k,
        v: kv.v,
        slots: kv.slots,
        num_slots: kv.num_slots,
        reserved: 0,
    };
    let label = [first, second, third, last].map(|node| node.label.as_str()).join("+");
    lowering.launch(Launch::grid(&label, kernel_name(padded), grid, [threads(padded), 1, 1], 0, &args));
    Ok(4)
}

/// Where the output goes: records where products read it, floats where anything else does.
fn write_result(
    lowering: &mut Lowering<'_>,
    node: &Node,
    args: &mut AttentionArgs,
) -> Result<(), BackendError> {
    let y = output(node)?;
    let readers = lowering.readers(y);
    if readers.codes && args.head_dim.is_multiple_of(32) {
        args.activations = lowering.make_codes(y);
        if !readers.floats {
            args.y = DevicePtr::NULL;
        }
    }
    Ok(())
}

fn kernel_name(padded: u32) -> String {
    format!("attention_step_f32_f16_d{padded}")
}

/// The units it needs.
pub(super) fn units() -> Vec<Unit> {
    let of = |padded: u32| {
        let name = kernel_name(padded);
        let kernel = Kernel::of::<AttentionStepArgs>(name.clone(), threads(padded));
        let source = include_str!("../../../../cuda/attention_step.cu");
        Unit::new(format!("attention_step_d{padded}"), "attention_step.cu", source, vec![kernel])
            .define("HEAD_DIM_PADDED", padded)
            .define("ATTENTION_STEP", name)
    };
    PADDED_HEAD_DIMS.into_iter().map(of).collect()
}
