//! The products of warpgroups, for prefill on 9.0a: where `linear` and `moe_linear` send steps of many tokens.
//!
//! `cuda/common/group_product.cuh` describes the kernels. They read activation records of binary16
//! ([`super::Lowering::record_use`]), and give the bits that every other shape gives. Neighbouring products of one input
//! share a launch, which fills the device better, and gate and up become their activation's records in one.

use bytemuck::{Pod, Zeroable};
use worker_orcd_core::{BackendError, DType, Op, RowSet, SwiGluKind, ValueId, WeightSpec};

use super::linear::{self, ActivationArgs, CODE_BYTES, format_unit_of, kernel_name};
use super::moe::{self, MoeLinearArgs, RoutingArgs};
use super::single::gate_args;
use super::{DeviceWeight, Lowering, Rule, output};
use crate::kernels::{Kernel, Unit};
use crate::launch::{DevicePtr, Launch};
use crate::layout::{WeightArgs, has_minimum, is_plain};

/// Columns up to which the other shapes are used: weights that stream through shared memory are read faster. Tests on the
/// emulated machine come to the sweeps of older devices as well.
pub(super) const LEAST_COLUMNS: u32 = if cfg!(test) { 128 } else { 64 };
/// Row tiles of a CTA.
pub(super) const TILES: u32 = 6;
/// Most columns of a CTA.
pub(super) const COLUMNS: u32 = 128;
/// Columns that are multiplied at a time: what a CTA takes is a multiple.
const PIECE_COLUMNS: u32 = 32;
/// Threads of a CTA: three warpgroups multiply, one copies.
const THREADS: u32 = 512;
/// What the blocks of a row of sums are rounded up to (`sums_stride`).
pub(super) const SUMS_ALIGNMENT: usize = 8;
/// Stages in shared memory, and blocks of each.
const STAGES: u32 = 4;
const BLOCKS: u32 = 2;
/// Warps that multiply.
const WARPS: u32 = 12;
/// The capability they are for.
const CAPABILITY: u32 = 90;
/// Products of one launch.
pub(super) const PARTS: usize = 3;

/// `struct LinearGroupPart` and `struct LinearStreamPart`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(super) struct LinearGroupPart {
    pub(super) weight: WeightArgs,
    pub(super) bias: DevicePtr,
    pub(super) residual: DevicePtr,
    pub(super) y: DevicePtr,
    pub(super) outputs: u32,
    /// Set by whoever makes the launch.
    pub(super) end: u32,
}

/// `struct LinearGroupArgs`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct LinearGroupArgs {
    x: ActivationArgs,
    columns: DevicePtr,
    per_cta: u32,
    reserved: u32,
    parts: [LinearGroupPart; PARTS],
}

/// `struct GatedProduct`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct GatedProduct {
    gate: WeightArgs,
    up: WeightArgs,
    gate_bias: DevicePtr,
    up_bias: DevicePtr,
    y: ActivationArgs,
    kind: u32,
    alpha: f32,
    limit: f32,
    record_use: u32,
}

/// `struct LinearGroupGatedArgs`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct LinearGroupGatedArgs {
    x: ActivationArgs,
    columns: DevicePtr,
    per_cta: u32,
    reserved: u32,
    product: GatedProduct,
}

/// `struct MoeLinearGroupGatedArgs`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct MoeLinearGroupGatedArgs {
    x: ActivationArgs,
    routing: RoutingArgs,
    product: GatedProduct,
}

/// Gate, up and activation, of all or of the chosen experts, when nothing but products reads the result.
pub(super) const GATED: Rule = Rule { name: "group.gated", apply: gated };

/// `sizeof(GroupShared)`.
const fn shared_bytes(dtype: DType) -> u32 {
    let supers = dtype.block_elements() == 256;
    let minimum = has_minimum(dtype);
    // Of a row tile and block, or super-block; what a format lacks still takes 16 bytes of a tile.
    let codes = match dtype {
        DType::Q8_0 => 1024,
        DType::Q2_K | DType::Q3_K => 256,
        _ => 512,
    };
    let high = match dtype {
        DType::Q6_K => 256,
        DType::Q5_0 | DType::Q5_1 | DType::Q5_K | DType::Q3_K => 128,
        _ => 16,
    };
    let scales = match dtype {
        DType::Q4_1 | DType::Q5_1 => 128,
        DType::MXFP4 => 32,
        _ if supers => 16,
        _ => 64,
    };
    let record = if supers { 512 } else { 16 };
    let scales_of_warp = match dtype {
        DType::Q2_K => 8 * 8 * 32,
        _ if supers => 8 * 8 * 16,
        _ => 16,
    };
    let super_scales = match dtype {
        DType::Q2_K => 128,
        DType::Q6_K => 64,
        _ => 16,
    };
    // Of places for blocks and planes.
    let sums = match dtype {
        DType::Q2_K => 12 * 3,
        _ if minimum => 16 * 2,
        _ => 16,
    };
    let sums = sums * COLUMNS * size_of::<f32>() as u32;
    let block = COLUMNS * CODE_BYTES as u32 + TILES * (codes + high + scales);
    // A sum for each output, four addresses for each tile, two barriers for each stage, two words for each column.
    STAGES * BLOCKS * block
        + sums
        + WARPS * scales_of_warp
        + TILES * (record + super_scales)
        + (TILES * 32 * COLUMNS + COLUMNS / 8 * 16) * size_of::<f32>() as u32
        + TILES * 4 * 8
        + STAGES * 2 * 8
        + 2 * COLUMNS * size_of::<u32>() as u32
}

/// Columns of a CTA where `row_groups` CTAs share them and there are at most `most`: what takes the device the shortest time.
/// What a CTA does for its weights costs as much as [`COLUMNS`] columns, however few it has.
fn columns_of(row_groups: u32, most: u32, multiprocessors: u32) -> u32 {
    let time = |columns: u32| {
        let rounds = (row_groups * most.div_ceil(columns)).div_ceil(multiprocessors.max(1));
        rounds * (COLUMNS + columns)
    };
    (1..=COLUMNS / PIECE_COLUMNS)
        .rev()
        .map(|pieces| pieces * PIECE_COLUMNS)
        .min_by_key(|&columns| time(columns))
        .unwrap_or(COLUMNS)
}

fn launch<A: Pod>(label: &str, op: &str, shape: &str, dtype: DType, grid: [u32; 3], args: &A) -> Launch {
    Launch::grid(label, kernel_name(op, shape, dtype), grid, [THREADS, 1, 1], shared_bytes(dtype), args)
}

/// Products of one input with weights of one format, as one launch. At most [`PARTS`].
pub(super) fn linear(
    lowering: &Lowering<'_>,
    (label, dtype): (&str, DType),
    (x, rows): (ActivationArgs, RowSet),
    parts: &[LinearGroupPart],
) -> Launch {
    let mut all = [LinearGroupPart::zeroed(); PARTS];
    let mut row_groups = 0;
    for (index, place) in all.iter_mut().enumerate() {
        if let Some(part) = parts.get(index) {
            row_groups += part.weight.row_tiles.div_ceil(TILES);
            *place = *part;
        }
        place.end = row_groups;
    }
    let most = lowering.max_rows(rows);
    let per_cta = columns_of(row_groups, most, lowering.traits().multiprocessors);
    let args = LinearGroupArgs { x, columns: lowering.row_count(rows), per_cta, reserved: 0, parts: all };
    launch(label, "linear", "group", dtype, [row_groups, most.div_ceil(per_cta), 1], &args)
}

/// A product of the chosen experts. `pairs`: how many an expert often has at most.
pub(super) fn moe_linear(label: &str, dtype: DType, pairs: u32, args: &MoeLinearArgs) -> Launch {
    let row_groups = args.weight.row_tiles.div_ceil(TILES);
    let grid = [pairs.div_ceil(COLUMNS), row_groups, args.routing.expert_count];
    launch(label, "moe_linear", "group", dtype, grid, args)
}

/// Gate and up as nodes have them.
pub(super) struct Pair<'a> {
    pub(super) x: ValueId,
    pub(super) experts: Option<ValueId>,
    pub(super) gate: &'a DeviceWeight,
    pub(super) up: &'a DeviceWeight,
    pub(super) gate_bias: DevicePtr,
    pub(super) up_bias: DevicePtr,
    /// What their activation is called and what it is.
    pub(super) y: ValueId,
    pub(super) kind: SwiGluKind,
    pub(super) label: String,
}

/// The pair of products at `index` and the activation that follows, when they are of one kind, input and quantised shape,
/// and nothing but products reads the result. A row tile is then a block of its records.
pub(super) fn pair<'a>(lowering: &Lowering<'a>, index: usize) -> Result<Option<Pair<'a>>, BackendError> {
    let Some([gate, up, active]) = lowering.program().nodes().get(index..index + 3) else { return Ok(None) };
    let Op::SwiGlu { gate: a, up: b, kind } = active.op else { return Ok(None) };
    let ((x, experts, gate_weight, gate_bias), (other_x, other_experts, up_weight, up_bias)) =
        match (&gate.op, &up.op) {
            (
                &Op::Linear { x, weight, bias },
                &Op::Linear { x: other_x, weight: up_weight, bias: up_bias },
            ) => ((x, None, weight, bias), (other_x, None, up_weight, up_bias)),
            (
                &Op::MoeLinear { x, experts, weight, bias },
                &Op::MoeLinear { x: other_x, experts: others, weight: up_weight, bias: up_bias },
            ) => ((x, Some(experts), weight, bias), (other_x, Some(others), up_weight, up_bias)),
            _ => return Ok(None),
        };
    let (left, right) = (lowering.weight(gate, gate_weight)?, lowering.weight(up, up_weight)?);
    let shape = |spec: &WeightSpec| (spec.dtype, spec.experts, spec.rows, spec.cols);
    let alike = (x, experts) == (other_x, other_experts) && shape(&left.spec) == shape(&right.spec);
    let (gate_y, up_y, y) = (output(gate)?, output(up)?, output(active)?);
    let readers = lowering.readers(y);
    let legal = (a, b) == (gate_y, up_y)
        && gate_y != up_y
        && lowering.is_private(gate_y)
        && lowering.is_private(up_y)
        && readers.codes
        && !readers.floats;
    if !alike || !legal || is_plain(left.spec.dtype) || !left.spec.rows.is_multiple_of(32) {
        return Ok(None);
    }
    let (gate_bias, up_bias) = (lowering.vector(gate, gate_bias)?, lowering.vector(up, up_bias)?);
    let label = format!("{}+{}+{}", gate.label, up.label, active.label);
    Ok(Some(Pair { x, experts, gate: left, up: right, gate_bias, up_bias, y, kind, label }))
}

fn gated(lowering: &mut Lowering<'_>, index: usize) -> Result<usize, BackendError> {
    let (Some(gate_node), Some(pair)) = (lowering.program().nodes().get(index), pair(lowering, index)?)
    else {
        return Ok(0);
    };
    let (spec, rows, y) = (&pair.gate.spec, lowering.rows(pair.x), pair.y);
    if !lowering.codes_of_groups(pair.x) || !lowering.codes_of_groups(y) {
        return Ok(0);
    }
    let (kind, alpha, limit) = gate_args(pair.kind);
    let record_use = lowering.record_use(y);
    let label = &pair.label;
    let product = |y: ActivationArgs| GatedProduct {
        gate: pair.gate.layout.args(pair.gate.address),
        up: pair.up.layout.args(pair.up.address),
        gate_bias: pair.gate_bias,
        up_bias: pair.up_bias,
        y,
        kind,
        alpha,
        limit,
        record_use,
    };
    let row_groups = pair.gate.layout.row_tiles().div_ceil(TILES / 2);
    let launch = if pair.experts.is_some() {
        let prepared = moe::prepare(lowering, gate_node, moe::operands(gate_node)?)?;
        let (Some(x), routing) = (prepared.activations, prepared.routing) else { return Ok(0) };
        let args = MoeLinearGroupGatedArgs { x, routing, product: product(lowering.make_codes(y)) };
        let pairs = moe::often(lowering.max_rows(rows), &routing);
        let grid = [pairs.div_ceil(COLUMNS), row_groups, routing.expert_count];
        launch(label, "moe_linear", "group_gated", spec.dtype, grid, &args)
    } else {
        let x = linear::quantize(lowering, gate_node, pair.x, (rows, 1), pair.gate.layout.blocks())?;
        let most = lowering.max_rows(rows);
        let per_cta = columns_of(row_groups, most, lowering.traits().multiprocessors);
        let (columns, product) = (lowering.row_count(rows), product(lowering.make_codes(y)));
        let args = LinearGroupGatedArgs { x, columns, per_cta, reserved: 0, product };
        launch(label, "linear", "group_gated", spec.dtype, [row_groups, most.div_ceil(per_cta), 1], &args)
    };
    lowering.launch(launch);
    Ok(3)
}

/// The units it needs.
pub(super) fn units() -> Vec<Unit> {
    let linear = include_str!("../../../../cuda/linear_group.cu");
    let moe = include_str!("../../../../cuda/moe_linear_group.cu");
    let of = |dtype: DType| {
        let linear_entries = [
            ("LINEAR_GROUP", kernel::<LinearGroupArgs>("linear", "group", dtype)),
            ("LINEAR_GROUP_GATED", kernel::<LinearGroupGatedArgs>("linear", "group_gated", dtype)),
        ];
        let moe_entries = [
            ("MOE_LINEAR_GROUP", kernel::<MoeLinearArgs>("moe_linear", "group", dtype)),
            ("MOE_LINEAR_GROUP_GATED", kernel::<MoeLinearGroupGatedArgs>("moe_linear", "group_gated", dtype)),
        ];
        let units = [
            format_unit_of("linear_group", "linear_group.cu", linear, dtype, &linear_entries),
            format_unit_of("moe_linear_group", "moe_linear_group.cu", moe, dtype, &moe_entries),
        ];
        units.map(|unit| unit.define("GROUP_SHARED_BYTES", shared_bytes(dtype)).only(CAPABILITY))
    };
    let quantised = DType::ALL.into_iter().filter(|dtype| !is_plain(*dtype));
    quantised.flat_map(of).collect()
}

fn kernel<A>(op: &str, shape: &str, dtype: DType) -> Kernel {
    Kernel::of::<A>(kernel_name(op, shape, dtype), THREADS).with_shared(shared_bytes(dtype))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_shrink_where_the_device_would_wait_for_few() {
        assert_eq!(columns_of(15, 2048, 132), 128);
        assert_eq!(columns_of(15, 512, 132), 64);
        assert_eq!(columns_of(27, 512, 132), 128);
        assert_eq!(columns_of(3, 2048, 132), 64);
        assert_eq!(columns_of(1, 129, 132), 32);
    }
}
