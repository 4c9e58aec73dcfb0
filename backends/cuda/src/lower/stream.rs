//! Products of 2 to 64 columns over weights that stream through shared memory, beside the activations they are multiplied
//! with (`cuda/common/batch.cuh`): for as many columns as the device's shared memory has room for.

use bytemuck::Pod;
use worker_orcd_core::{DType, RowSet};

use super::fuse_experts::GatedArgs;
use super::linear::{CODE_BYTES, format_unit_of, kernel_name};
use super::moe::MoeLinearArgs;
use super::single::chunk_bytes;
use super::{DeviceTraits, DeviceWeight, Lowering};
use crate::kernels::{Kernel, Unit};
use crate::launch::Launch;
use crate::layout::is_plain;

/// Most tokens of a step.
const MAX_TOKENS: u32 = 64;
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

/// How a launch is cut: teams of eight warps, and eight columns for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    teams: u32,
    shared_bytes: u32,
    /// CTAs that are resident together.
    ctas: u32,
}

impl Shape {
    /// For rows of `blocks` blocks of `dtype` and `teams` teams, with `beside` bytes that the kernel adds, where the device
    /// has room.
    fn of(traits: DeviceTraits, (dtype, blocks): (DType, u32), teams: u32, beside: u32) -> Option<Self> {
        let warps = SLICES * teams;
        let columns = 8 * teams;
        let records = blocks.checked_mul(columns * (CODE_BYTES as u32 + kept_sum_bytes(dtype)))?;
        let partial = warps * columns * 32 * 4;
        let shared_bytes = records.checked_add(warps * ring_bytes(dtype, teams) + partial + beside)?;
        let resident = (traits.max_shared_bytes + KEPT_BYTES) / (shared_bytes + KEPT_BYTES);
        let ctas = traits.multiprocessors * resident.min(2 / teams);
        (resident > 0).then_some(Self { teams, shared_bytes, ctas })
    }

    /// Columns of a CTA.
    const fn columns(&self) -> u32 {
        8 * self.teams
    }

    /// A launch of `grid` CTAs of the kernel of this many columns.
    pub(super) fn launch<A: Pod>(
        &self,
        label: &str,
        op: &str,
        kernel: &str,
        dtype: DType,
        grid: u32,
        args: &A,
    ) -> Launch {
        let kernel = kernel_name(op, &format!("{kernel}{}", self.columns()), dtype);
        let threads = 32 * SLICES * self.teams;
        Launch::grid(label, kernel, [grid, 1, 1], [threads, 1, 1], self.shared_bytes, args)
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
const fn ring_bytes(dtype: DType, teams: u32) -> u32 {
    let chunk = chunk_bytes(dtype) as u32;
    let limit = if teams == 1 { 6600 } else { 4400 };
    if limit / chunk < 2 { 2 * chunk } else { limit / chunk * chunk }
}

/// How the product of the chosen experts is cut, where these kernels take it.
pub(super) fn experts(lowering: &Lowering<'_>, weight: &DeviceWeight, top_k: u32) -> Option<Shape> {
    let (dtype, count) = (weight.spec.dtype, weight.spec.experts as u32);
    let tokens = lowering.max_rows(RowSet::Tokens);
    let few = (2..=MAX_TOKENS).contains(&tokens) && tokens * top_k <= MAX_PAIRS && count <= MAX_EXPERTS;
    if is_plain(dtype) || !few {
        return None;
    }
    let rows = (dtype, weight.layout.blocks());
    let of = |teams| Shape::of(lowering.traits(), rows, teams, PAIR_GROUP_BYTES);
    if tokens * top_k > PAIRS_OF_8 * count { of(2).or_else(|| of(1)) } else { of(1) }
}

/// CTAs for experts of `row_tiles` tiles, of which `pairs` pairs choose: no more than there can be tasks.
pub(super) fn expert_grid(shape: &Shape, row_tiles: u32, pairs: u32, experts: u32) -> u32 {
    let groups = (pairs / shape.columns() + experts).min(pairs);
    shape.ctas.min(groups.saturating_mul(row_tiles.div_ceil(shape.teams))).max(1)
}

/// The units of these kernels.
pub(super) fn units() -> Vec<Unit> {
    let of = |dtype: DType| {
        let name = |shape: &str| kernel_name("moe_linear", shape, dtype);
        let plain = |shape: &str, teams: u32| {
            Kernel::of::<MoeLinearArgs>(name(shape), 32 * SLICES * teams).with_shared(MAX_SHARED_BYTES)
        };
        let gated = |shape: &str, teams: u32| {
            Kernel::of::<GatedArgs>(name(shape), 32 * SLICES * teams).with_shared(MAX_SHARED_BYTES)
        };
        let entries = [
            ("MOE_LINEAR_STREAM_8", plain("stream8", 1)),
            ("MOE_LINEAR_STREAM_16", plain("stream16", 2)),
            ("MOE_LINEAR_STREAM_GATED_8", gated("stream_gated8", 1)),
            ("MOE_LINEAR_STREAM_GATED_16", gated("stream_gated16", 2)),
        ];
        let source = include_str!("../../../../cuda/moe_linear_stream.cu");
        format_unit_of("moe_linear_stream", "moe_linear_stream.cu", source, dtype, &entries)
            .define("RING_BYTES_8", ring_bytes(dtype, 1))
            .define("RING_BYTES_16", ring_bytes(dtype, 2))
    };
    DType::ALL.into_iter().filter(|dtype| !is_plain(*dtype)).map(of).collect()
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
        let few = Shape::of(large, rows, 1, PAIR_GROUP_BYTES).unwrap();
        assert_eq!((few.ctas, few.shared_bytes), (264, 51_840 + 8 * 6528 + 8192 + PAIR_GROUP_BYTES));
        assert_eq!(Shape::of(large, rows, 2, PAIR_GROUP_BYTES).unwrap().ctas, 132);
        // 16 columns do not fit a device of compute capability 8.0, nothing one of 8.6.
        assert_eq!(Shape::of(traits(108, 166_912), rows, 1, 0).unwrap().ctas, 108);
        assert_eq!(Shape::of(traits(108, 166_912), rows, 2, 0), None);
        assert_eq!(Shape::of(traits(82, 101_376), rows, 1, 0), None);
    }

    #[test]
    fn no_cta_is_without_a_task_where_every_expert_is_chosen() {
        let shape = Shape { teams: 1, shared_bytes: 0, ctas: 264 };
        assert_eq!(expert_grid(&shape, 90, 32, 32), 264);
        assert_eq!(expert_grid(&shape, 2, 8, 32), 16);
        assert_eq!(expert_grid(&shape, 1, 512, 4), 68);
    }
}
