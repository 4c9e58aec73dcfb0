//! Lowering of `Embed` and `PositionEmbed`: rows of a table in any storage format.

use bytemuck::{Pod, Zeroable};
use worker_orcd_core::{BackendError, Node, Op, RowSet};

use super::{Lowering, output, program_error};
use crate::inputs::Field;
use crate::kernels::{Kernel, Unit};
use crate::launch::{DevicePtr, Launch};
use crate::layout::WeightArgs;

/// Threads per CTA.
const THREADS: u32 = 256;

/// `struct EmbedArgs`, `struct PositionEmbedArgs`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct EmbedArgs {
    table: WeightArgs,
    ids: DevicePtr,
    y: DevicePtr,
    rows: DevicePtr,
    width: u32,
    table_rows: u32,
}

/// Emits the launch of a node.
pub(super) fn lower(lowering: &mut Lowering<'_>, node: &Node) -> Result<(), BackendError> {
    let (table, ids, kernel) = match node.op {
        Op::Embed { table } => (table, Field::Tokens, "embed_f32"),
        Op::PositionEmbed { table } => (table, Field::Positions, "position_embed_f32"),
        _ => return Err(program_error(node, "reads no table".to_owned())),
    };
    let y = output(node)?;
    let weight = lowering.weight(node, table)?;
    let args = EmbedArgs {
        table: weight.layout.args(weight.address),
        ids: lowering.input(node, ids)?,
        y: lowering.value(y),
        rows: lowering.row_count(RowSet::Tokens),
        width: lowering.width(y),
        table_rows: weight.spec.rows as u32,
    };
    let grid = [args.width.div_ceil(THREADS), lowering.grid_rows(node, RowSet::Tokens)?, 1];
    lowering.launch(Launch::grid(&node.label, kernel, grid, [THREADS, 1, 1], 0, &args));
    Ok(())
}

/// The units of these operations.
pub(super) fn units() -> Vec<Unit> {
    vec![
        Unit::new(
            "embed",
            "embed.cu",
            include_str!("../../../../cuda/embed.cu"),
            vec![Kernel::of::<EmbedArgs>("embed_f32", THREADS)],
        ),
        Unit::new(
            "position_embed",
            "position_embed.cu",
            include_str!("../../../../cuda/position_embed.cu"),
            vec![Kernel::of::<EmbedArgs>("position_embed_f32", THREADS)],
        ),
    ]
}
