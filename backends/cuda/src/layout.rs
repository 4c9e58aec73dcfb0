//! How weights lie in device memory: planes, alignment, and the kernels that bring stored bytes into that order.
//!
//! Quantised matrices are cut into tiles of 32 rows by 32 columns, stored in the order the tensor cores take them, with
//! scales in planes of their own; plain floats into row tiles of 8 with 16-byte chunks side by side. One layout serves
//! products of any number of tokens and row gathers, and holds no more than the stored bytes, rows padded to whole
//! tiles. `cuda/common/weight.cuh` describes it to the kernels; the tests here prove its index arithmetic against the
//! decoders of the storage formats.
//!
//! Upload stages whole rows and asks [`WeightLayout::repack`] for the launch that moves them to their place.

use bytemuck::{Pod, Zeroable};
use worker_orcd_core::{BackendError, DType, WeightKind, WeightSpec};

use crate::kernels::{Kernel, Unit};
use crate::launch::{DevicePtr, Launch};

/// Rows per tile of a quantised matrix.
const TILE_ROWS: usize = 32;
/// Rows per tile of plain floats.
const PLAIN_TILE_ROWS: usize = 8;
/// Columns per tile of a quantised matrix.
pub(crate) const TILE_COLUMNS: usize = 32;
/// Bytes per chunk of plain floats.
const CHUNK_BYTES: usize = 16;
/// Every plane begins at a multiple of this.
const PLANE_ALIGNMENT: usize = 256;
/// Threads per CTA of the repack kernels.
const THREADS: u32 = 256;

/// Bytes per 32 rows of each plane: codes and high bits per 32-column block, scales and supers per scale unit.
pub(crate) struct PlaneBytes {
    pub(crate) codes: usize,
    pub(crate) high: usize,
    pub(crate) scales: usize,
    pub(crate) supers: usize,
}

pub(crate) const fn plane_bytes(dtype: DType) -> PlaneBytes {
    let (codes, high, scales, supers) = match dtype {
        DType::F32 | DType::F16 | DType::BF16 => (0, 0, 0, 0),
        DType::Q4_0 => (512, 0, 64, 0),
        DType::Q4_1 => (512, 0, 128, 0),
        DType::Q5_0 => (512, 128, 64, 0),
        DType::Q5_1 => (512, 128, 128, 0),
        DType::Q8_0 => (1024, 0, 64, 0),
        DType::Q2_K => (256, 0, 512, 128),
        DType::Q3_K => (256, 128, 512, 0),
        DType::Q4_K => (512, 0, 512, 0),
        DType::Q5_K => (512, 128, 512, 0),
        DType::Q6_K => (512, 256, 512, 64),
        DType::MXFP4 => (512, 0, 32, 0),
    };
    PlaneBytes { codes, high, scales, supers }
}

/// Whether a format adds a minimum to its scaled codes.
pub(crate) const fn has_minimum(dtype: DType) -> bool {
    matches!(dtype, DType::Q4_1 | DType::Q5_1 | DType::Q2_K | DType::Q4_K | DType::Q5_K)
}

/// Whether a format is plain floats.
pub(crate) const fn is_plain(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F16 | DType::BF16)
}

/// The layout of one weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WeightLayout {
    dtype: DType,
    kind: WeightKind,
    bytes: usize,
    high: usize,
    scales: usize,
    supers: usize,
    row_tiles: usize,
    blocks: usize,
    columns: usize,
}

/// A weight as a kernel argument; `struct Weight` in `cuda/common/weight.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct WeightArgs {
    /// First plane: codes.
    pub(crate) base: DevicePtr,
    /// Byte offset of the plane of high bits.
    pub(crate) high: u64,
    /// Byte offset of the plane of scales.
    pub(crate) scales: u64,
    /// Byte offset of the plane of super-block scales.
    pub(crate) supers: u64,
    /// Row tiles of one expert.
    pub(crate) row_tiles: u32,
    /// 32-column blocks of a row; 16-byte chunks for plain floats.
    pub(crate) blocks: u32,
    /// Columns.
    pub(crate) columns: u32,
    /// GGUF type id.
    pub(crate) format: u32,
}

/// `struct RepackArgs`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct RepackArgs {
    source: DevicePtr,
    weight: WeightArgs,
    row_bytes: u64,
    first_tile: u32,
    rows: u32,
}

impl WeightLayout {
    /// The layout for a weight.
    ///
    /// # Errors
    /// A shape the layouts cannot hold.
    pub(crate) fn of(spec: &WeightSpec) -> Result<Self, BackendError> {
        let error =
            |reason: &str| BackendError::Weight { label: spec.label.clone(), reason: reason.to_owned() };
        let overflow = || error("size overflows");
        let stored = spec.bytes().ok_or_else(overflow)?;
        let plain = is_plain(spec.dtype);
        let tile_rows = if plain { PLAIN_TILE_ROWS } else { TILE_ROWS };
        let row_tiles = spec.rows.div_ceil(tile_rows);
        let blocks = if plain {
            (spec.cols * spec.dtype.block_bytes()).div_ceil(CHUNK_BYTES)
        } else {
            spec.cols / TILE_COLUMNS
        };
        let mut layout = Self {
            dtype: spec.dtype,
            kind: spec.kind,
            bytes: stored,
            high: 0,
            scales: 0,
            supers: 0,
            row_tiles,
            blocks,
            columns: spec.cols,
        };
        if u32::try_from(spec.cols).is_err() || u32::try_from(spec.rows.saturating_mul(spec.experts)).is_err()
        {
            return Err(error("more than 2^32 rows or columns"));
        }
        if spec.kind == WeightKind::Vector {
            return Ok(layout);
        }
        let tiles = row_tiles * spec.experts;
        let in_tiles = tiles.checked_mul(blocks).ok_or_else(overflow)?;
        if plain {
            layout.bytes = in_tiles.checked_mul(PLAIN_TILE_ROWS * CHUNK_BYTES).ok_or_else(overflow)?;
            return Ok(layout);
        }
        let per = plane_bytes(spec.dtype);
        let units = in_tiles / (spec.dtype.block_elements() / TILE_COLUMNS);
        let plane =
            |count: usize, bytes: usize| count.checked_mul(bytes)?.checked_next_multiple_of(PLANE_ALIGNMENT);
        layout.high = plane(in_tiles, per.codes).ok_or_else(overflow)?;
        layout.scales = layout.high + plane(in_tiles, per.high).ok_or_else(overflow)?;
        layout.supers = layout.scales + plane(units, per.scales).ok_or_else(overflow)?;
        layout.bytes = layout.supers + plane(units, per.supers).ok_or_else(overflow)?;
        Ok(layout)
    }

    /// The weight at `base` as a kernel argument.
    pub(crate) const fn args(&self, base: DevicePtr) -> WeightArgs {
        WeightArgs {
            base,
            high: self.high as u64,
            scales: self.scales as u64,
            supers: self.supers as u64,
            row_tiles: self.row_tiles as u32,
            blocks: self.blocks as u32,
            columns: self.columns as u32,
            format: self.dtype.gguf_id(),
        }
    }

    /// Bytes it takes on the device, exactly.
    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Row tiles of one expert.
    pub(crate) const fn row_tiles(&self) -> u32 {
        self.row_tiles as u32
    }

    /// 32-column blocks of a row; 16-byte chunks for plain floats.
    pub(crate) const fn blocks(&self) -> u32 {
        self.blocks as u32
    }

    /// Rows of one repack begin at a multiple of this inside their expert.
    pub(crate) const fn row_granule(&self) -> usize {
        match self.kind {
            WeightKind::Vector => 1,
            WeightKind::Matrix | WeightKind::Experts if is_plain(self.dtype) => PLAIN_TILE_ROWS,
            WeightKind::Matrix | WeightKind::Experts => TILE_ROWS,
        }
    }

    /// The launch that moves `rows` whole rows staged at `source` to their place. Rows count through all experts; they
    /// all lie in one expert, begin at a multiple of [`Self::row_granule`] in it and end at one or at its last row.
    /// `None`: stored bytes are the layout, and a plain copy does it.
    pub(crate) fn repack(
        &self,
        spec: &WeightSpec,
        source: DevicePtr,
        destination: DevicePtr,
        first_row: usize,
        rows: usize,
    ) -> Option<Launch> {
        if self.kind == WeightKind::Vector {
            return None;
        }
        let plain = is_plain(self.dtype);
        let (expert, row) = (first_row / spec.rows, first_row % spec.rows);
        let args = RepackArgs {
            source,
            weight: self.args(destination),
            row_bytes: spec.row_bytes()? as u64,
            first_tile: (expert * self.row_tiles + row / self.row_granule()) as u32,
            rows: rows as u32,
        };
        // One thread per lane of a tile, or per row of a chunk.
        let lanes = if plain { PLAIN_TILE_ROWS } else { TILE_ROWS };
        let threads = rows.div_ceil(self.row_granule()) * self.blocks * lanes;
        let kernel = if plain { "repack_plain" } else { "repack_blocks" };
        let grid = threads.div_ceil(THREADS as usize) as u32;
        Some(Launch::linear(&spec.label, kernel, grid, THREADS, &args))
    }
}

/// The units of the repack kernels.
pub(crate) fn units() -> Vec<Unit> {
    let source = include_str!("../../../cuda/repack.cu");
    let kernel = |name: &'static str| Kernel::of::<RepackArgs>(name, THREADS);
    vec![Unit::new("repack", "repack.cu", source, vec![kernel("repack_blocks"), kernel("repack_plain")])]
}

#[cfg(test)]
mod tests;
