//! Lowering of `Router` and `Sample`: choices.

use bytemuck::{Pod, Zeroable};
use worker_orcd_core::{BackendError, Node, Op, RowSet, ValueId};

use super::{Lowering, output, program_error};
use crate::inputs::Field;
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

/// Logits per tile; `TILE` in `sample.cu`.
const TILE: u32 = 4096;

/// Most tiles of a row; `MAX_TILES` in `sample.cu`.
const MAX_TILES: u32 = 256;

/// `struct SampleArgs`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct SampleArgs {
    logits: DevicePtr,
    penalised: DevicePtr,
    weights: DevicePtr,
    tile_best: DevicePtr,
    tile_totals: DevicePtr,
    sampling: DevicePtr,
    penalty_tokens: DevicePtr,
    y: DevicePtr,
    rows: DevicePtr,
    vocab: u32,
    tiles: u32,
    max_penalty_tokens: u32,
    reserved: u32,
}

/// Emits the launches of a node.
pub(super) fn lower(lowering: &mut Lowering<'_>, node: &Node) -> Result<(), BackendError> {
    match node.op {
        Op::Router { logits, top_k } => router(lowering, node, logits, top_k),
        Op::Sample { logits, max_penalty_tokens } => sample(lowering, node, logits, max_penalty_tokens),
        _ => Err(program_error(node, "chooses nothing".to_owned())),
    }
}

fn sample(
    lowering: &mut Lowering<'_>,
    node: &Node,
    logits: ValueId,
    max_penalty_tokens: usize,
) -> Result<(), BackendError> {
    let vocab = lowering.width(logits);
    let tiles = vocab.div_ceil(TILE);
    if tiles > MAX_TILES {
        return Err(program_error(node, format!("{vocab} logits, the kernel takes {}", TILE * MAX_TILES)));
    }
    let rows = lowering.grid_rows(node, RowSet::Outputs)?;
    let elements = rows as usize * vocab as usize;
    let per_tile = (rows * tiles) as usize * size_of::<u64>();
    let logits = lowering.value(logits);
    let penalised =
        if max_penalty_tokens > 0 { lowering.scratch(elements * size_of::<f32>()) } else { logits };
    let args = SampleArgs {
        logits,
        penalised,
        weights: lowering.scratch(elements * size_of::<u32>()),
        tile_best: lowering.scratch(per_tile),
        tile_totals: lowering.scratch(per_tile),
        sampling: lowering.input(node, Field::Sampling)?,
        penalty_tokens: lowering.input(node, Field::PenaltyTokens)?,
        y: lowering.value(output(node)?),
        rows: lowering.row_count(RowSet::Outputs),
        vocab,
        tiles,
        max_penalty_tokens: max_penalty_tokens as u32,
        reserved: 0,
    };
    let label = &node.label;
    lowering.launch(Launch::grid(label, "sample_max", [tiles, rows, 1], [256, 1, 1], 0, &args));
    lowering.launch(Launch::grid(label, "sample_weigh", [tiles, rows, 1], [256, 1, 1], 0, &args));
    lowering.launch(Launch::linear(label, "sample_draw", rows, 1024, &args));
    Ok(())
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
    lowering.writes(ids);
    lowering.launch(Launch::linear(&node.label, "router_f32", grid, 32, &args));
    Ok(())
}

/// The units of these operations.
pub(super) fn units() -> Vec<Unit> {
    let router = vec![Kernel::of::<RouterArgs>("router_f32", 32)];
    let sample = vec![
        Kernel::of::<SampleArgs>("sample_max", 256),
        Kernel::of::<SampleArgs>("sample_weigh", 256),
        Kernel::of::<SampleArgs>("sample_draw", 1024),
    ];
    vec![
        Unit::new("router", "router.cu", include_str!("../../../../cuda/router.cu"), router),
        Unit::new("sample", "sample.cu", include_str!("../../../../cuda/sample.cu"), sample)
            .option("--fmad=false"),
    ]
}
