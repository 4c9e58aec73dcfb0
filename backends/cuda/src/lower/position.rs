//! Lowering of `Rope` and `KvWrite`: what depends on where a token stands.

use bytemuck::{Pod, Zeroable};
use worker_orcd_core::{BackendError, KvLayer, Node, Op, RopeStyle, RowSet, ValueId};

use super::{Lowering, output, program_error};
use crate::inputs::Field;
use crate::kernels::{Kernel, Unit};
use crate::launch::{DevicePtr, Launch};

/// Threads per CTA.
const THREADS: u32 = 256;

/// `struct Rotation`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(super) struct RotationArgs {
    table: DevicePtr,
    pub(super) head_dim: u32,
    rotated: u32,
    table_rows: u32,
    interleaved: u32,
}

impl RotationArgs {
    /// Whether heads and their rotated parts are whole parts of so many elements.
    pub(super) const fn splits_into(&self, part: u32) -> bool {
        self.head_dim >= part && self.head_dim.is_multiple_of(part) && self.rotated.is_multiple_of(part)
    }
}

/// `struct RopeArgs`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct RopeArgs {
    x: DevicePtr,
    y: DevicePtr,
    positions: DevicePtr,
    rows: DevicePtr,
    rotation: RotationArgs,
    width: u32,
    reserved: u32,
}

/// `struct KvWriteArgs`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(super) struct KvWriteArgs {
    pub(super) k: DevicePtr,
    pub(super) v: DevicePtr,
    keys: DevicePtr,
    values: DevicePtr,
    pub(super) slots: DevicePtr,
    rows: DevicePtr,
    pub(super) width: u32,
    pub(super) num_slots: u32,
}

/// Emits the launch of a node.
pub(super) fn lower(lowering: &mut Lowering<'_>, node: &Node) -> Result<(), BackendError> {
    match node.op {
        Op::Rope { .. } => rope(lowering, node),
        Op::KvWrite { k, v, layer } => kv_write(lowering, node, (k, v), layer),
        _ => Err(program_error(node, "does not depend on positions".to_owned())),
    }
}

/// The units of these operations.
pub(super) fn units() -> Vec<Unit> {
    vec![
        Unit::new(
            "rope",
            "rope.cu",
            include_str!("../../../../cuda/rope.cu"),
            vec![Kernel::of::<RopeArgs>("rope_f32", THREADS)],
        ),
        Unit::new(
            "kv_write",
            "kv_write.cu",
            include_str!("../../../../cuda/kv_write.cu"),
            vec![Kernel::of::<KvWriteArgs>("kv_write_f32_f16", THREADS)],
        ),
    ]
}

fn rope(lowering: &mut Lowering<'_>, node: &Node) -> Result<(), BackendError> {
    let Op::Rope { x, .. } = node.op else {
        return Err(program_error(node, "is no rotation".to_owned()));
    };
    let y = output(node)?;
    let args = RopeArgs {
        x: lowering.value(x),
        y: lowering.value(y),
        positions: lowering.input(node, Field::Positions)?,
        rows: lowering.row_count(RowSet::Tokens),
        rotation: rotation(lowering, node)?,
        width: lowering.width(y),
        reserved: 0,
    };
    let grid = [args.width.div_ceil(THREADS), lowering.grid_rows(node, RowSet::Tokens)?, 1];
    lowering.launch(Launch::grid(&node.label, "rope_f32", grid, [THREADS, 1, 1], 0, &args));
    Ok(())
}

/// How a rotating node rotates.
pub(super) fn rotation(lowering: &Lowering<'_>, node: &Node) -> Result<RotationArgs, BackendError> {
    let Op::Rope { table, head_dim, style, .. } = node.op else {
        return Err(program_error(node, "is no rotation".to_owned()));
    };
    let spec = &lowering.weight(node, table)?.spec;
    Ok(RotationArgs {
        table: lowering.vector(node, Some(table))?,
        head_dim: head_dim as u32,
        rotated: spec.cols as u32,
        table_rows: spec.rows as u32,
        interleaved: u32::from(style == RopeStyle::Interleaved),
    })
}

fn kv_write(
    lowering: &mut Lowering<'_>,
    node: &Node,
    (k, v): (ValueId, ValueId),
    layer: KvLayer,
) -> Result<(), BackendError> {
    let args = kv_write_args(lowering, node, (k, v), layer)?;
    let grid = [args.width.div_ceil(THREADS), lowering.grid_rows(node, RowSet::Tokens)?, 1];
    lowering.launch(Launch::grid(&node.label, "kv_write_f32_f16", grid, [THREADS, 1, 1], 0, &args));
    Ok(())
}

/// What `kv_write` needs to know.
pub(super) fn kv_write_args(
    lowering: &Lowering<'_>,
    node: &Node,
    (k, v): (ValueId, ValueId),
    layer: KvLayer,
) -> Result<KvWriteArgs, BackendError> {
    let pools = lowering.kv_layer(node, layer)?;
    let width = lowering.width(k);
    if width != pools.num_kv_heads * pools.head_dim {
        return Err(program_error(node, format!("keys are {width} wide, the cache holds {pools:?}")));
    }
    Ok(KvWriteArgs {
        k: lowering.value(k),
        v: lowering.value(v),
        keys: pools.keys,
        values: pools.values,
        slots: lowering.input(node, Field::Slots(layer.group))?,
        rows: lowering.row_count(RowSet::Tokens),
        width,
        num_slots: pools.num_blocks * pools.block_size,
    })
}
