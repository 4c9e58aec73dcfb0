//! Fusing of `Rope` of queries, `Rope` of keys and `KvWrite`: three small launches become one.

use bytemuck::{Pod, Zeroable};
use worker_orcd_core::{BackendError, Op, RowSet};

use super::position::{KvWriteArgs, RotationArgs, kv_write_args, rotation};
use super::{Lowering, Rule, output};
use crate::inputs::Field;
use crate::kernels::{Kernel, Unit};
use crate::launch::{DevicePtr, Launch};

/// Most threads per CTA.
const MAX_THREADS: u32 = 256;
/// Elements of a head that a thread takes.
const PART: u32 = 8;
/// Heads that a thread takes (`HEADS`).
const HEADS: u32 = 4;

/// `struct RopeKvWriteArgs`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct RopeKvWriteArgs {
    q: DevicePtr,
    y: DevicePtr,
    positions: DevicePtr,
    rotation: RotationArgs,
    kv: KvWriteArgs,
    q_width: u32,
    reserved: u32,
}

/// Queries and keys rotated alike, the keys read by nothing but the cache, in every shape of a step.
pub(super) const ROTATE_AND_STORE: Rule = Rule { name: "rope.kv_write", apply: rotate_and_store };

fn rotate_and_store(lowering: &mut Lowering<'_>, index: usize) -> Result<usize, BackendError> {
    let program = lowering.program();
    let Some([first, second, third]) = program.nodes().get(index..index + 3) else { return Ok(0) };
    let (Op::Rope { x: q, .. }, Op::Rope { x: k, .. }, Op::KvWrite { k: stored, v, layer }) =
        (&first.op, &second.op, &third.op)
    else {
        return Ok(0);
    };
    let (y, rotated) = (output(first)?, output(second)?);
    // The rotated keys stay unwritten: their place may still hold the queries.
    if *stored != rotated || *q == *k || !lowering.is_private(rotated) {
        return Ok(0);
    }
    let angles = rotation(lowering, first)?;
    if angles != rotation(lowering, second)? || !angles.splits_into(PART) {
        return Ok(0);
    }
    let mut kv = kv_write_args(lowering, third, (*stored, *v), *layer)?;
    kv.k = lowering.value(*k);
    let args = RopeKvWriteArgs {
        q: lowering.value(*q),
        y: lowering.value(y),
        positions: lowering.input(first, Field::Positions)?,
        rotation: angles,
        kv,
        q_width: lowering.width(y),
        reserved: 0,
    };
    let label = format!("{}+{}+{}", first.label, second.label, third.label);
    let groups = |width: u32| (width / angles.head_dim).div_ceil(HEADS);
    // A token's threads share a CTA where they can; whole warps of it.
    let threads = (groups(args.q_width) + groups(kv.width)) * (angles.head_dim / PART);
    let columns = threads.div_ceil(MAX_THREADS);
    let block = threads.div_ceil(columns).next_multiple_of(32);
    let grid = [columns, lowering.grid_rows(first, RowSet::Tokens)?, 1];
    lowering.launch(Launch::grid(&label, "rope_kv_write_f32_f16", grid, [block, 1, 1], 0, &args));
    Ok(3)
}

/// The unit it needs.
pub(super) fn units() -> Vec<Unit> {
    vec![Unit::new(
        "rope_kv_write",
        "rope_kv_write.cu",
        include_str!("../../../../cuda/rope_kv_write.cu"),
        vec![Kernel::of::<RopeKvWriteArgs>("rope_kv_write_f32_f16", MAX_THREADS)],
    )]
}
