//! Weights on the device: repacked row by row into whole words, split into slices that fit one binding.
//!
//! A slice holds some rows as two planes. The first has `row_words` words per row: the quant blocks without those bytes
//! that would leave the rest unaligned. The second has those bytes (the block scales), `tail_words` words per row. The
//! planes together hold the stored bits and at most three bytes of padding per row and plane; plain floats are padded
//! with zeros to rows of whole units of eight columns. Vectors are kept as they come.

use worker_orcd_core::{BackendError, DType, WeightKind, WeightSpec};

use crate::NAME;
use crate::gpu::{Gpu, Purpose};

/// Columns one shader lane decodes at a time.
pub(crate) const UNIT_COLUMNS: usize = 8;
/// Rows per slice a grid can cover: 65535 workgroups of sixteen rows.
const MAX_SLICE_ROWS: usize = 65_535 * 16;
/// Repacked bytes gathered on the host before they are handed to the device.
const PENDING_BYTES: usize = 4 << 20;
/// Bytes handed to the device before they are waited for, which bounds staging memory.
const UNFLUSHED_BYTES: usize = 64 << 20;

/// How one row of a weight is laid out on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RowLayout {
    /// Words per row of the first plane.
    pub(crate) row_words: usize,
    /// Words per row of the second plane.
    pub(crate) tail_words: usize,
    block_bytes: usize,
    /// Bytes of each block that go to the second plane: where they start, how many.
    tail_at: usize,
    tail_bytes: usize,
}

impl RowLayout {
    fn of(spec: &WeightSpec) -> Self {
        let (tail_at, tail_bytes) = match spec.dtype {
            DType::Q4_0 | DType::Q5_0 | DType::Q8_0 => (0, 2),
            DType::MXFP4 => (0, 1),
            DType::Q3_K => (108, 2),
            DType::Q6_K => (208, 2),
            _ => (0, 0),
        };
        let block_bytes = spec.dtype.block_bytes();
        let blocks = match spec.kind {
            WeightKind::Vector => spec.cols,
            // Plain floats are padded to whole units; quant blocks are whole units already.
            _ => spec.cols.next_multiple_of(UNIT_COLUMNS) / spec.dtype.block_elements(),
        };
        Self {
            row_words: (blocks * (block_bytes - tail_bytes)).div_ceil(4),
            tail_words: (blocks * tail_bytes).div_ceil(4),
            block_bytes,
            tail_at,
            tail_bytes,
        }
    }

    const fn bytes(&self) -> usize {
        (self.row_words + self.tail_words) * 4
    }

    /// Appends one stored row to both planes.
    fn repack(&self, row: &[u8], planes: &mut [Vec<u8>; 2]) {
        let [body, tail] = planes;
        let body_end = body.len() + self.row_words * 4;
        let tail_end = tail.len() + self.tail_words * 4;
        if self.tail_bytes == 0 {
            body.extend_from_slice(row);
        } else {
            for block in row.chunks_exact(self.block_bytes) {
                let (before, rest) = block.split_at(self.tail_at);
                let (scale, after) = rest.split_at(self.tail_bytes);
                body.extend_from_slice(before);
                body.extend_from_slice(after);
                tail.extend_from_slice(scale);
            }
        }
        body.resize(body_end, 0);
        tail.resize(tail_end, 0);
    }
}

/// Some consecutive rows of a weight in one buffer.
#[derive(Debug)]
pub(crate) struct Slice {
    pub(crate) buffer: wgpu::Buffer,
    /// First row, counted over all experts.
    pub(crate) start: usize,
    pub(crate) rows: usize,
    /// Word where the second plane starts.
    pub(crate) tail_at: usize,
}

/// One weight on the device.
#[derive(Debug)]
pub(crate) struct Weight {
    pub(crate) spec: WeightSpec,
    pub(crate) layout: RowLayout,
    pub(crate) slices: Vec<Slice>,
}

impl Weight {
    /// Bytes held on the device.
    pub(crate) fn device_bytes(&self) -> u64 {
        self.slices.iter().map(|slice| slice.buffer.size()).sum()
    }

    /// Units of eight columns per row.
    pub(crate) const fn units(&self) -> usize {
        self.spec.cols.div_ceil(UNIT_COLUMNS)
    }

    /// Makes room for a weight and fills it from chunks of any size.
    pub(crate) fn upload(
        gpu: &Gpu,
        spec: &WeightSpec,
        chunks: &mut dyn Iterator<Item = &[u8]>,
    ) -> Result<Self, BackendError> {
        let broken = |reason: String| BackendError::Weight { label: spec.label.clone(), reason };
        let total = spec.bytes().ok_or_else(|| broken("rows are not whole quant blocks".into()))?;
        let row_bytes = spec.row_bytes().unwrap_or_default();
        if total == 0 {
            return Err(broken("empty".into()));
        }
        if spec.kind == WeightKind::Vector && spec.dtype != DType::F32 {
            return Err(broken(format!("a vector of {}", spec.dtype)));
        }
        let layout = RowLayout::of(spec);
        let slices = allocate(gpu, spec, layout)?;
        let weight = Self { spec: spec.clone(), layout, slices };
        let mut writer = Writer::new(gpu, &weight);
        let mut partial: Vec<u8> = Vec::with_capacity(row_bytes);
        let mut received = 0_usize;
        for mut chunk in chunks {
            received = received.saturating_add(chunk.len());
            if received > total {
                return Err(broken(format!("more than the expected {total} bytes")));
            }
            while !chunk.is_empty() {
                let (taken, rest) = chunk.split_at(chunk.len().min(row_bytes - partial.len()));
                chunk = rest;
                if partial.is_empty() && taken.len() == row_bytes {
                    writer.row(taken)?;
                    continue;
                }
                partial.extend_from_slice(taken);
                if partial.len() == row_bytes {
                    writer.row(&partial)?;
                    partial.clear();
                }
            }
        }
        if received != total {
            return Err(broken(format!("expected {total} bytes, got {received}")));
        }
        writer.finish()?;
        Ok(weight)
    }
}

fn allocate(gpu: &Gpu, spec: &WeightSpec, layout: RowLayout) -> Result<Vec<Slice>, BackendError> {
    let rows = spec.experts * spec.rows;
    let whole_only = spec.kind == WeightKind::Vector;
    let room = if whole_only { gpu.max_binding() } else { gpu.max_slice() };
    let held = (room / layout.bytes() as u64) as usize;
    if held == 0 || (whole_only && held < rows) {
        return Err(BackendError::Unsupported {
            backend: NAME,
            what: format!(
                "{}: {} bytes in one binding on a device that allows {}",
                spec.label,
                if whole_only { rows * layout.bytes() } else { layout.bytes() },
                room
            ),
        });
    }
    let per_slice = if whole_only { rows } else { held.min(MAX_SLICE_ROWS) };
    let mut slices = vec![];
    let mut start = 0;
    while start < rows {
        let rows = per_slice.min(rows - start);
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
        let bytes = (rows * layout.bytes()) as u64;
        let buffer = gpu.buffer(Purpose::Weights, &spec.label, bytes, usage)?;
        slices.push(Slice { buffer, start, rows, tail_at: rows * layout.row_words });
        start += rows;
    }
    Ok(slices)
}

/// Gathers repacked rows and writes them to the slice they belong to.
struct Writer<'a> {
    gpu: &'a Gpu,
    weight: &'a Weight,
    planes: [Vec<u8>; 2],
    slice: usize,
    /// Rows of the slice already written, and rows gathered behind them.
    written: usize,
    gathered: usize,
    unflushed: usize,
}

impl<'a> Writer<'a> {
    fn new(gpu: &'a Gpu, weight: &'a Weight) -> Self {
        Self { gpu, weight, planes: [vec![], vec![]], slice: 0, written: 0, gathered: 0, unflushed: 0 }
    }

    fn row(&mut self, row: &[u8]) -> Result<(), BackendError> {
        self.weight.layout.repack(row, &mut self.planes);
        self.gathered += 1;
        let slice_full = self.written + self.gathered == self.weight.slices[self.slice].rows;
        if slice_full || self.planes[0].len() + self.planes[1].len() >= PENDING_BYTES {
            self.write()?;
        }
        if slice_full {
            self.slice += 1;
            self.written = 0;
        }
        Ok(())
    }

    fn write(&mut self) -> Result<(), BackendError> {
        let slice = &self.weight.slices[self.slice];
        let layout = self.weight.layout;
        let starts = [self.written * layout.row_words, slice.tail_at + self.written * layout.tail_words];
        for (plane, start) in self.planes.iter_mut().zip(starts) {
            if !plane.is_empty() {
                self.gpu.queue.write_buffer(&slice.buffer, start as u64 * 4, plane);
                self.unflushed += plane.len();
                plane.clear();
            }
        }
        self.written += self.gathered;
        self.gathered = 0;
        if self.unflushed >= UNFLUSHED_BYTES {
            self.unflushed = 0;
            self.gpu.flush(&self.weight.spec.label)?;
        }
        Ok(())
    }

    fn finish(self) -> Result<(), BackendError> {
        if self.unflushed >= PENDING_BYTES {
            return self.gpu.flush(&self.weight.spec.label);
        }
        // Small writes ride along with the next submission.
        self.gpu.check(&self.weight.spec.label)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planes(spec: &WeightSpec, row: &[u8]) -> [Vec<u8>; 2] {
        let layout = RowLayout::of(spec);
        let mut planes = [vec![], vec![]];
        layout.repack(row, &mut planes);
        assert_eq!([planes[0].len(), planes[1].len()], [layout.row_words * 4, layout.tail_words * 4]);
        planes
    }

    #[test]
    fn repacking_splits_scales_off_and_keeps_every_byte() {
        for dtype in DType::ALL {
            let spec = WeightSpec::matrix("w", dtype, 1, 768);
            let row: Vec<u8> = (0..spec.row_bytes().unwrap_or_default()).map(|i| i as u8).collect();
            let [body, tail] = planes(&spec, &row);
            let mut stored = row.clone();
            let mut held = [body, tail].concat();
            assert!(held.len() - stored.len() < 8, "{dtype}: {} bytes for {}", held.len(), stored.len());
            stored.resize(held.len(), 0);
            stored.sort_unstable();
            held.sort_unstable();
            assert_eq!(held, stored, "{dtype}");
        }
    }

    #[test]
    fn block_scales_lie_side_by_side_in_the_second_plane() {
        let spec = WeightSpec::matrix("w", DType::MXFP4, 1, 96);
        let row: Vec<u8> = (0..51).collect();
        let [body, tail] = planes(&spec, &row);
        assert_eq!(tail, [0, 17, 34, 0]);
        assert_eq!(body[..16], row[1..17]);
        assert_eq!(body[32..], row[35..]);
        let spec = WeightSpec::matrix("w", DType::Q6_K, 1, 256);
        let row: Vec<u8> = (0..210).collect();
        let [body, tail] = planes(&spec, &row);
        assert_eq!(tail, [208, 209, 0, 0]);
        assert_eq!(body, row[..208]);
    }

    #[test]
    fn float_rows_are_padded_to_whole_units_and_vectors_are_not() {
        let matrix = WeightSpec::matrix("w", DType::F16, 2, 13);
        assert_eq!(planes(&matrix, &[1; 26])[0].len(), 32);
        let vector = WeightSpec::vector("v", 2, 13);
        assert_eq!(planes(&vector, &[1; 52])[0].len(), 52);
    }
}
