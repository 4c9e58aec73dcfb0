//! The products of warpgroups, for prefill on 9.0a: where `linear` and `moe_linear` send steps of many tokens.
//!
//! `cuda/common/group_product.cuh` describes the kernels. They read activation records whose high and low bytes lie apart
//! ([`super::Lowering::planes_apart`]), and give the bits that every other shape gives.

use bytemuck::Pod;
use worker_orcd_core::DType;

use super::linear::{CODE_BYTES, LinearArgs, SUM_BYTES, format_unit_of, kernel_name};
use super::moe::MoeLinearArgs;
use crate::kernels::{Kernel, Unit};
use crate::launch::Launch;
use crate::layout::is_plain;

/// Columns up to which the other shapes are used.
pub(super) const LEAST_COLUMNS: u32 = 128;
/// Row tiles of a CTA.
pub(super) const TILES: u32 = 6;
/// Columns of a CTA.
pub(super) const COLUMNS: u32 = 128;
/// Threads of a CTA.
const THREADS: u32 = 384;
/// Activation blocks in shared memory.
const BLOCKS: u32 = 8;
/// The capability they are for.
const CAPABILITY: u32 = 90;

/// `sizeof(GroupShared)`.
const fn shared_bytes(dtype: DType) -> u32 {
    let minimum =
        matches!(dtype, DType::Q4_1 | DType::Q5_1 | DType::Q2_K | DType::Q4_K | DType::Q5_K);
    let sums = if minimum { SUM_BYTES } else { size_of::<f32>() };
    let stages = BLOCKS * COLUMNS * (CODE_BYTES + sums) as u32;
    // A sum of each thread for each of its outputs, and two words a column.
    stages + TILES * 32 * COLUMNS * size_of::<f32>() as u32 + 2 * COLUMNS * size_of::<u32>() as u32
}

/// A launch of the kernel of `op`.
pub(super) fn launch<A: Pod>(label: &str, op: &str, dtype: DType, grid: [u32; 3], args: &A) -> Launch {
    Launch::grid(label, kernel_name(op, "group", dtype), grid, [THREADS, 1, 1], shared_bytes(dtype), args)
}

/// The units it needs.
pub(super) fn units() -> Vec<Unit> {
    let linear = include_str!("../../../../cuda/linear_group.cu");
    let moe = include_str!("../../../../cuda/moe_linear_group.cu");
    let of = |dtype: DType| {
        let kernel = |kernel: Kernel| kernel.with_shared(shared_bytes(dtype));
        let name = |op: &str| kernel_name(op, "group", dtype);
        let linear_kernel = kernel(Kernel::of::<LinearArgs>(name("linear"), THREADS));
        let moe_kernel = kernel(Kernel::of::<MoeLinearArgs>(name("moe_linear"), THREADS));
        let linear_entries = [("LINEAR_GROUP", linear_kernel)];
        let moe_entries = [("MOE_LINEAR_GROUP", moe_kernel)];
        let units = [
            format_unit_of("linear_group", "linear_group.cu", linear, dtype, &linear_entries),
            format_unit_of("moe_linear_group", "moe_linear_group.cu", moe, dtype, &moe_entries),
        ];
        units.map(|unit| unit.define("GROUP_SHARED_BYTES", shared_bytes(dtype)).only(CAPABILITY))
    };
    let quantised = DType::ALL.into_iter().filter(|dtype| !is_plain(*dtype));
    quantised.flat_map(of).collect()
}
