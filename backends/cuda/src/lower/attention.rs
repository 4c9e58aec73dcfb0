//! Lowering of `attention`: the streaming kernel for prefill, the split one for decode; same bits from both. The split one also makes
//! the activation records of a product that reads it.

use bytemuck::{Pod, Zeroable};
use worker_orcd_core::{BackendError, Node, Op, RowSet};

use super::linear::ActivationArgs;
use super::{Lowering, output, program_error};
use crate::inputs::Field;
use crate::kernels::{Kernel, Unit};
use crate::launch::{DevicePtr, Launch};

/// Positions per tile (`ATTENTION_TILE`).
const TILE: u32 = 64;
/// Warps per CTA (`ATTENTION_WARPS`).
pub(super) const WARPS: u32 = 4;
/// Threads per CTA of every kernel here.
pub(super) const THREADS: u32 = 32 * WARPS;
/// Query rows of one warp.
pub(super) const WARP_ROWS: u32 = 16;
/// Head sizes kernels are compiled for; a head uses the next one up.
pub(super) const PADDED_HEAD_DIMS: [u32; 4] = [32, 64, 96, 128];
/// Most tokens of a step that is split over tiles.
const MAX_SPLIT_TOKENS: u32 = 64;
/// Most scratch the partial results of one node may take.
pub(super) const MAX_PARTIAL_BYTES: usize = 256 << 20;

/// `struct AttentionArgs`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(super) struct AttentionArgs {
    pub(super) q: DevicePtr,
    pub(super) keys: DevicePtr,
    pub(super) values: DevicePtr,
    pub(super) positions: DevicePtr,
    pub(super) sequences: DevicePtr,
    pub(super) block_table: DevicePtr,
    pub(super) tokens: DevicePtr,
    pub(super) sinks: DevicePtr,
    pub(super) y: DevicePtr,
    pub(super) partial: DevicePtr,
    pub(super) partial_softmax: DevicePtr,
    pub(super) arrivals: DevicePtr,
    pub(super) activations: ActivationArgs,
    pub(super) heads: u32,
    pub(super) num_kv_heads: u32,
    pub(super) head_dim: u32,
    pub(super) block_size: u32,
    pub(super) num_blocks: u32,
    pub(super) table_width: u32,
    pub(super) window: u32,
    pub(super) tiles: u32,
    pub(super) scale: f32,
    pub(super) reserved: u32,
}

/// Emits the launches of a node.
pub(super) fn lower(lowering: &mut Lowering<'_>, node: &Node) -> Result<(), BackendError> {
    let mut args = arguments(lowering, node)?;
    let (heads, head_dim) = (args.heads, args.head_dim);
    let tokens = lowering.grid_rows(node, RowSet::Tokens)?;
    let padded = PADDED_HEAD_DIMS.into_iter().find(|padded| *padded >= head_dim);
    let Some(padded) = padded.filter(|_| head_dim.is_multiple_of(8)) else {
        return Err(program_error(
            node,
            format!("head size {head_dim}, the kernels take multiples of 8 to 128"),
        ));
    };
    let group = heads / args.num_kv_heads;
    let warp_heads = args.num_kv_heads * group.div_ceil(WARP_ROWS);
    let per_tile = head_dim as usize * size_of::<f32>();
    let results = tokens as usize * heads as usize * args.tiles as usize;
    let block = [THREADS, 1, 1];
    if tokens > MAX_SPLIT_TOKENS || results * per_tile > MAX_PARTIAL_BYTES {
        let per_warp = (WARP_ROWS / group).max(1);
        let grid = [warp_heads, tokens.div_ceil(WARPS * per_warp), 1];
        let (kernel, shared) = (kernel_name("rows", padded), rows_shared_bytes(padded));
        lowering.launch(Launch::grid(&node.label, kernel, grid, block, shared, &args));
        return Ok(());
    }
    args.partial = lowering.scratch(results * per_tile);
    args.partial_softmax = lowering.scratch(results * 2 * size_of::<f32>());
    args.arrivals = lowering.counters(node, (tokens * warp_heads) as usize)?;
    let y = output(node)?;
    if lowering.readers(y).codes && head_dim.is_multiple_of(32) {
        args.activations = lowering.make_codes(y);
    }
    // Eight warps' worth of CTAs per multiprocessor; longer contexts loop.
    let wanted = (2 * lowering.traits().multiprocessors).div_ceil(tokens * warp_heads).max(1);
    let grid = [tokens, warp_heads, wanted.min(args.tiles.div_ceil(WARPS))];
    lowering.launch(Launch::grid(&node.label, kernel_name("split", padded), grid, block, 0, &args));
    Ok(())
}

pub(super) fn arguments(lowering: &Lowering<'_>, node: &Node) -> Result<AttentionArgs, BackendError> {
    let Op::Attention { q, layer, heads, num_kv_heads, head_dim, scale, window, sinks } = node.op else {
        return Err(program_error(node, "is no attention".to_owned()));
    };
    let kv = lowering.kv_layer(node, layer)?;
    if (kv.num_kv_heads as usize, kv.head_dim as usize) != (num_kv_heads, head_dim) {
        return Err(program_error(
            node,
            format!("the cache holds {} heads of {}", kv.num_kv_heads, kv.head_dim),
        ));
    }
    let table_width = lowering.table_width(layer.group);
    let window = window.and_then(|window| i32::try_from(window).ok()).map_or(0, i32::cast_unsigned);
    let all = table_width.saturating_mul(kv.block_size).div_ceil(TILE).max(1);
    // A window that begins inside a tile touches one more.
    let tiles = if window == 0 { all } else { all.min(window.div_ceil(TILE) + 1) };
    Ok(AttentionArgs {
        q: lowering.value(q),
        keys: kv.keys,
        values: kv.values,
        positions: lowering.input(node, Field::Positions)?,
        sequences: lowering.input(node, Field::Sequences)?,
        block_table: lowering.input(node, Field::BlockTable(layer.group))?,
        tokens: lowering.row_count(RowSet::Tokens),
        sinks: lowering.vector(node, sinks)?,
        y: lowering.value(output(node)?),
        partial: DevicePtr::NULL,
        partial_softmax: DevicePtr::NULL,
        arrivals: DevicePtr::NULL,
        activations: ActivationArgs::NONE,
        heads: heads as u32,
        num_kv_heads: kv.num_kv_heads,
        head_dim: kv.head_dim,
        block_size: kv.block_size,
        num_blocks: kv.num_blocks,
        table_width,
        window,
        tiles,
        scale,
        reserved: 0,
    })
}

fn kernel_name(shape: &str, padded: u32) -> String {
    format!("attention_{shape}_f32_f16_d{padded}")
}

/// `sizeof(RowsShared)`: two stages of padded keys and values, and query fragments of every warp where registers do not hold them.
const fn rows_shared_bytes(padded: u32) -> u32 {
    let key_stride = if padded >= 96 { padded / 8 } else { padded / 8 + 1 };
    let queries = if padded > 64 { WARPS * padded * 64 } else { 0 };
    queries + 2 * TILE * 16 * (key_stride + padded / 8 + 1)
}

/// The units it needs.
pub(super) fn units() -> Vec<Unit> {
    let split = |padded: u32| {
        let kernel = Kernel::of::<AttentionArgs>(kernel_name("split", padded), THREADS);
        let source = include_str!("../../../../cuda/attention.cu");
        Unit::new(format!("attention_d{padded}"), "attention.cu", source, vec![kernel])
            .define("HEAD_DIM_PADDED", padded)
            .define("ATTENTION_SPLIT", kernel_name("split", padded))
    };
    let rows = |padded: u32| {
        let bytes = rows_shared_bytes(padded);
        let kernel = Kernel::of::<AttentionArgs>(kernel_name("rows", padded), THREADS).with_shared(bytes);
        let source = include_str!("../../../../cuda/attention_rows.cu");
        Unit::new(format!("attention_rows_d{padded}"), "attention_rows.cu", source, vec![kernel])
            .define("HEAD_DIM_PADDED", padded)
            .define("ATTENTION_ROWS", kernel_name("rows", padded))
            .define("ROWS_SHARED_BYTES", bytes)
    };
    PADDED_HEAD_DIMS.into_iter().flat_map(|padded| [split(padded), rows(padded)]).collect()
}
