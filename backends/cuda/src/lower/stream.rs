//! Products of 2 to 64 columns over weights that stream through shared memory, beside the activations they are multiplied
//! with (`cuda/common/batch.cuh`): for as many columns as the device's shared memory has room for.

use bytemuck::{Pod, Zeroable};
use worker_orcd_core::{BackendError, DType, RowSet};

use super::fuse_experts::GatedArgs;
use super::group::{self, LinearGroupPart, PARTS};
use super::linear::{self, ActivationArgs, CODE_BYTES, format_unit_of, kernel_name};
use super::moe::MoeLinearArgs;
use super::single::{chunk_bytes, gate_args};
use super::{DeviceTraits, DeviceWeight, Lowering, Rule};
use crate::kernels::{Kernel, Unit};
use crate::launch::{DevicePtr, Launch};
use crate::layout::{WeightArgs, is_plain};

/// Most columns of a step.
const MAX_COLUMNS: u32 = 64;
/// Most pairs of token and chosen expert (`MAX_GROUPED_PAIRS`).
const MAX_PAIRS: u32 = 512;
/// Most experts (`MAX_GROUPED_EXPERTS`).
const MAX_EXPERTS: u32 = 256;
/// `sizeof(PairGroups)`.
const PAIR_GROUP_BYTES: u32 = 2 * MAX_PAIRS + 4 * MAX_PAIRS + MAX_EXPERTS / 32 * 4;
/// Pairs per expert, on average, up to which CTAs have 8 columns: hardly any expert has more than that then.
const PAIRS_OF_8: u32 = 4;
/// Warps of a team, one for each slice (`SLICES`).
const SLICES: u32 = 8;
/// Shared memory that a multiprocessor has beyond what one CTA may ask for, and keeps of every CTA.
const KEPT_BYTES: u32 = 1024;
/// What the largest device gives a CTA; lowering asks what its own does.
const MAX_SHARED_BYTES: u32 = 227 << 10;

/// `struct LinearStreamArgs`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct LinearStreamArgs {
    x: ActivationArgs,
    columns: DevicePtr,
    tiles: u32,
    reserved: u32,
    parts: [LinearGroupPart; PARTS],
}

/// `struct LinearStreamGatedArgs`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct LinearStreamGatedArgs {
    gate: WeightArgs,
    up: WeightArgs,
    x: ActivationArgs,
    columns: DevicePtr,
    gate_bias: DevicePtr,
    up_bias: DevicePtr,
    y: ActivationArgs,
    kind: u32,
    alpha: f32,
    limit: f32,
    reserved: u32,
}

/// Gate, up and activation of all rows, when nothing but products reads the result.
pub(super) const GATED: Rule = Rule { name: "stream.gated", apply: gated };

/// The capability they are for.
const CAPABILITY: u32 = 90;

/// What a CTA is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// One team of eight warps, 8 columns.
    Of8,
    /// One team, 16 columns.
    Of16,
    /// Two teams on two row tiles, 16 columns.
    Twin16,
}

impl Kind {
    const fn teams(self) -> u32 {
        if matches!(self, Self::Twin16) { 2 } else { 1 }
    }

    const fn columns(self) -> u32 {
        if matches!(self, Self::Of8) { 8 } else { 16 }
    }

    const fn threads(self) -> u32 {
        32 * SLICES * self.teams()
    }

    /// End of a kernel's algorithm.
    const fn name(self) -> &'static str {
        match self {
            Self::Of8 => "8",
            Self::Of16 => "16",
            Self::Twin16 => "_twin16",
        }
    }

    /// End of the macro that names a kernel.
    const fn entry(self) -> &'static str {
        match self {
            Self::Of8 => "_8",
            Self::Of16 => "_16",
            Self::Twin16 => "_TWIN_16",
        }
    }
}

/// How a launch is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    kind: Kind,
    shared_bytes: u32,
    /// CTAs that are resident together.
    ctas: u32,
}

impl Shape {
    /// For rows of `blocks` blocks of `dtype`, with `beside` bytes that the kernel adds, where the device has room. Devices of
    /// other capabilities keep the shapes that need less until someone can measure them.
    fn of(traits: DeviceTraits, kind: Kind, (dtype, blocks): (DType, u32), beside: u32) -> Option<Self> {
        if traits.arch.capability() != CAPABILITY {
            return None;
        }
        let warps = SLICES * kind.teams();
        let records = blocks.checked_mul(kind.columns() * (CODE_BYTES as u32 + kept_sum_bytes(dtype)))?;
        let partial = warps * kind.columns() * 32 * 4;
        let shared_bytes = records.checked_add(warps * ring_bytes(dtype, kind) + partial + beside)?;
        let resident = (traits.max_shared_bytes + KEPT_BYTES) / (shared_bytes + KEPT_BYTES);
        // More than two do not fit the registers.
        let most = if kind == Kind::Of8 { 2 } else { 1 };
        let ctas = traits.multiprocessors * resident.min(most);
        (resident > 0).then_some(Self { kind, shared_bytes, ctas })
    }

    /// A launch of `grid` CTAs of the kernel of this many columns; `op` and algorithm.
    pub(super) fn launch<A: Pod>(
        &self,
        label: &str,
        [op, algorithm]: [&str; 2],
        dtype: DType,
        grid: u32,
        args: &A,
    ) -> Launch {
        let kernel = kernel_name(op, &format!("{algorithm}{}", self.kind.name()), dtype);
        Launch::grid(label, kernel, [grid, 1, 1], [self.kind.threads(), 1, 1], self.shared_bytes, args)
    }

    /// CTAs for `groups` groups of columns times `tiles` row tiles: no more than there are tasks.
    fn grid(&self, groups: u32, tiles: u32) -> u32 {
        self.ctas.min(groups.saturating_mul(tiles.div_ceil(self.kind.teams()))).max(1)
    }
}

/// Bytes of a block's sums that are kept for a column, `4 * KeptSums::WORDS`.
const fn kept_sum_bytes(dtype: DType) -> u32 {
    match dtype {
        DType::Q2_K => 16,
        DType::Q4_1 | DType::Q5_1 | DType::Q4_K | DType::Q5_K | DType::MXFP4 => 8,
        _ => 4,
    }
}

/// Bytes of a warp's ring, `BatchMemory::RING`.
const fn ring_bytes(dtype: DType, kind: Kind) -> u32 {
    let chunk = chunk_bytes(dtype) as u32;
    let limit = match kind {
        Kind::Of8 => 6600,
        Kind::Of16 => 8800,
        Kind::Twin16 => 4400,
    };
    if limit / chunk < 2 { 2 * chunk } else { limit / chunk * chunk }
}

/// How the product of the chosen experts is cut, where these kernels take it.
pub(super) fn experts(lowering: &Lowering<'_>, weight: &DeviceWeight, top_k: u32) -> Option<Shape> {
    let (dtype, count) = (weight.spec.dtype, weight.spec.experts as u32);
    let tokens = lowering.max_rows(RowSet::Tokens);
    let few = (2..=MAX_COLUMNS).contains(&tokens) && tokens * top_k <= MAX_PAIRS && count <= MAX_EXPERTS;
    if is_plain(dtype) || !few {
        return None;
    }
    let rows = (dtype, weight.layout.blocks());
    let of = |kind| Shape::of(lowering.traits(), kind, rows, PAIR_GROUP_BYTES);
    let many = tokens * top_k > PAIRS_OF_8 * count;
    many.then(|| of(Kind::Twin16)).flatten().or_else(|| of(Kind::Of8))
}

/// CTAs for experts of `row_tiles` tiles, of which `pairs` pairs choose: no more than there can be tasks.
pub(super) fn expert_grid(shape: &Shape, row_tiles: u32, pairs: u32, experts: u32) -> u32 {
    shape.grid((pairs / shape.kind.columns() + experts).min(pairs), row_tiles)
}

/// How products of `most` columns with `tiles` row tiles of `rows` blocks of a format are cut, where these kernels take
/// them.
fn columns(traits: DeviceTraits, rows: (DType, u32), tiles: u32, most: u32) -> Option<Shape> {
    if is_plain(rows.0) || !(1..=MAX_COLUMNS).contains(&most) {
        return None;
    }
    let of = |kind| Shape::of(traits, kind, rows, 0);
    if most <= Kind::Of8.columns() {
        return of(Kind::Of8);
    }
    // How long the CTA with most tasks takes: two tiles by twice the warps a quarter longer than one.
    let rounds = |shape: &Shape, cost: u32| {
        let tasks = most.div_ceil(shape.kind.columns()) * tiles.div_ceil(shape.kind.teams());
        tasks.div_ceil(shape.ctas) * cost
    };
    let candidates = [
        of(Kind::Of16).map(|shape| (rounds(&shape, 4), shape)),
        of(Kind::Twin16).map(|shape| (rounds(&shape, 5), shape)),
    ];
    let best = candidates.into_iter().flatten().min_by_key(|(cost, _)| *cost);
    best.map(|(_, shape)| shape).or_else(|| of(Kind::Of8))
}

/// Products of one input with weights of one format, as one launch, where these kernels take them. At most [`PARTS`].
pub(super) fn linear(
    lowering: &Lowering<'_>,
    (label, dtype): (&str, DType),
    (x, rows): (ActivationArgs, RowSet),
    parts: &[LinearGroupPart],
) -> Option<Launch> {
    let mut all = [LinearGroupPart::zeroed(); PARTS];
    let mut tiles = 0;
    for (index, place) in all.iter_mut().enumerate() {
        if let Some(part) = parts.get(index) {
            tiles += part.weight.row_tiles;
            *place = *part;
        }
        place.end = tiles;
    }
    let most = lowering.max_rows(rows);
    let shape = columns(lowering.traits(), (dtype, parts.first()?.weight.blocks), tiles, most)?;
    let args = LinearStreamArgs { x, columns: lowering.row_count(rows), tiles, reserved: 0, parts: all };
    let grid = shape.grid(most.div_ceil(shape.kind.columns()), tiles);
    Some(shape.launch(label, ["linear", "stream"], dtype, grid, &args))
}

fn gated(lowering: &mut Lowering<'_>, index: usize) -> Result<usize, BackendError> {
    let Some(node) = lowering.program().nodes().get(index) else { return Ok(0) };
    let Some(pair) = group::pair(lowering, index)? else { return Ok(0) };
    let rows = lowering.rows(pair.x);
    let (most, tiles) = (lowering.max_rows(rows), pair.gate.layout.row_tiles());
    let (dtype, blocks) = (pair.gate.spec.dtype, pair.gate.layout.blocks());
    let shape = columns(lowering.traits(), (dtype, blocks), 2 * tiles, most);
    let (Some(shape), None, false) = (shape, pair.experts, lowering.codes_of_groups(pair.x)) else {
        return Ok(0);
    };
    let (kind, alpha, limit) = gate_args(pair.kind);
    let args = LinearStreamGatedArgs {
        gate: pair.gate.layout.args(pair.gate.address),
        up: pair.up.layout.args(pair.up.address),
        x: linear::quantize(lowering, node, pair.x, (rows, 1), blocks)?,
        columns: lowering.row_count(rows),
        gate_bias: pair.gate_bias,
        up_bias: pair.up_bias,
        y: lowering.make_codes(pair.y),
        kind,
        alpha,
        limit,
        reserved: 0,
    };
    let grid = shape.grid(most.div_ceil(shape.kind.columns()), tiles);
    lowering.launch(shape.launch(&pair.label, ["linear", "stream_gated"], dtype, grid, &args));
    Ok(3)
}

/// A unit with every kernel of some operation: one of each kind, plain and gated.
fn unit<P, G>(op: &str, file: &'static str, source: &'static str, dtype: DType, kinds: &[Kind]) -> Unit {
    let upper = op.to_ascii_uppercase();
    let entries: Vec<(String, Kernel)> = kinds
        .iter()
        .flat_map(|&kind| {
            let named = |algorithm: &str| kernel_name(op, &format!("{algorithm}{}", kind.name()), dtype);
            let plain = Kernel::of::<P>(named("stream"), kind.threads());
            let gated = Kernel::of::<G>(named("stream_gated"), kind.threads());
            [
                (format!("{upper}_STREAM{}", kind.entry()), plain.with_shared(MAX_SHARED_BYTES)),
                (format!("{upper}_STREAM_GATED{}", kind.entry()), gated.with_shared(MAX_SHARED_BYTES)),
            ]
        })
        .collect();
    let entries: Vec<(&str, Kernel)> =
        entries.iter().map(|(entry, kernel)| (entry.as_str(), kernel.clone())).collect();
    let unit = format_unit_of(&format!("{op}_stream"), file, source, dtype, &entries);
    kinds.iter().fold(unit, |unit, &kind| {
        unit.define(&format!("RING_BYTES{}", kind.entry()), ring_bytes(dtype, kind))
    })
}

/// The units of these kernels.
pub(super) fn units() -> Vec<Unit> {
    let linear = include_str!("../../../../cuda/linear_stream.cu");
    let moe = include_str!("../../../../cuda/moe_linear_stream.cu");
    let of = |dtype: DType| {
        let kinds = [Kind::Of8, Kind::Of16, Kind::Twin16];
        let linear = unit::<LinearStreamArgs, LinearStreamGatedArgs>(
            "linear",
            "linear_stream.cu",
            linear,
            dtype,
            &kinds,
        );
        let kinds = [Kind::Of8, Kind::Twin16];
        let moe = unit::<MoeLinearArgs, GatedArgs>("moe_linear", "moe_linear_stream.cu", moe, dtype, &kinds);
        [linear, moe].map(|unit| unit.only(CAPABILITY))
    };
    DType::ALL.into_iter().filter(|dtype| !is_plain(*dtype)).flat_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::Arch;

    fn traits(multiprocessors: u32, max_shared_bytes: u32) -> DeviceTraits {
        DeviceTraits { arch: Arch::of(90), multiprocessors, max_shared_bytes }
    }

    #[test]
    fn two_ctas_of_few_columns_share_a_multiprocessor_and_one_of_many_has_it_alone() {
        let large = traits(132, 232_448);
        let rows = (DType::MXFP4, 90);
        let few = Shape::of(large, Kind::Of8, rows, PAIR_GROUP_BYTES).unwrap();
        assert_eq!((few.ctas, few.shared_bytes), (264, 51_840 + 8 * 6528 + 8192 + PAIR_GROUP_BYTES));
        assert_eq!(Shape::of(large, Kind::Twin16, rows, PAIR_GROUP_BYTES).unwrap().ctas, 132);
        // 16 columns do not fit where there is as little shared memory as on 8.0, nothing where there is as on 8.6.
        assert_eq!(Shape::of(traits(108, 166_912), Kind::Of8, rows, 0).unwrap().ctas, 108);
        assert_eq!(Shape::of(traits(108, 166_912), Kind::Twin16, rows, 0), None);
        assert_eq!(Shape::of(traits(82, 101_376), Kind::Of8, rows, 0), None);
    }

    #[test]
    fn no_cta_is_without_a_task_where_every_expert_is_chosen() {
        let shape = Shape { kind: Kind::Of8, shared_bytes: 0, ctas: 264 };
        assert_eq!(expert_grid(&shape, 90, 32, 32), 264);
        assert_eq!(expert_grid(&shape, 2, 8, 32), 16);
        assert_eq!(expert_grid(&shape, 1, 512, 4), 68);
    }

    #[test]
    fn two_tiles_go_to_a_cta_where_that_spares_a_round() {
        let kind = |(dtype, blocks), tiles, most| {
            columns(traits(132, 232_448), (dtype, blocks), tiles, most).map(|shape| shape.kind)
        };
        // Query, key and value of gpt-oss-20b, its output, and its logits.
        assert_eq!(kind((DType::Q8_0, 90), 160, 8), Some(Kind::Of8));
        assert_eq!(kind((DType::Q8_0, 90), 160, 16), Some(Kind::Twin16));
        assert_eq!(kind((DType::Q8_0, 128), 90, 16), Some(Kind::Of16));
        assert_eq!(kind((DType::Q8_0, 90), 6284, 64), Some(Kind::Twin16));
        // Long rows leave room for eight columns, longer ones for none.
        assert_eq!(kind((DType::Q4_K, 256), 96, 64), Some(Kind::Of8));
        assert_eq!(kind((DType::Q4_K, 448), 96, 64), None);
        assert_eq!(kind((DType::Q8_0, 90), 160, 65), None);
    }
}
