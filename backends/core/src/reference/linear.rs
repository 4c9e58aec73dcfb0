//! Weights and the operations that read them: table look-ups and matrix products.

use crate::backend::BackendError;
use crate::quant::dequantize_row;
use crate::weight::{WeightKind, WeightSpec};

/// One uploaded weight: vectors decoded, everything else as stored.
#[derive(Debug)]
pub(super) struct Weight {
    pub(super) spec: WeightSpec,
    row_bytes: usize,
    bytes: Vec<u8>,
    /// All elements of a [`WeightKind::Vector`], else empty.
    pub(super) vector: Vec<f32>,
}

impl Weight {
    pub(super) fn upload(
        spec: &WeightSpec,
        chunks: &mut dyn Iterator<Item = &[u8]>,
    ) -> Result<Self, BackendError> {
        let error = |reason: String| BackendError::Weight { label: spec.label.clone(), reason };
        let ragged = || error(format!("{} columns are not whole {} blocks", spec.cols, spec.dtype));
        let row_bytes = spec.row_bytes().ok_or_else(ragged)?;
        let expected = spec.bytes().ok_or_else(|| error("size overflows".into()))?;
        let mut bytes = Vec::with_capacity(expected);
        for chunk in chunks {
            if bytes.len() + chunk.len() > expected {
                return Err(error(format!("more than the expected {expected} bytes")));
            }
            bytes.extend_from_slice(chunk);
        }
        if bytes.len() != expected {
            return Err(error(format!("{} bytes, expected {expected}", bytes.len())));
        }
        let mut vector = vec![];
        if spec.kind == WeightKind::Vector {
            vector.resize(spec.elements(), 0.0);
            dequantize_row(spec.dtype, &bytes, &mut vector);
            bytes = vec![];
        }
        Ok(Self { spec: spec.clone(), row_bytes, bytes, vector })
    }

    pub(super) fn host_bytes(&self) -> usize {
        self.bytes.len() + self.vector.len() * 4
    }

    /// Decodes row `row` counted over all experts.
    fn row(&self, row: usize, out: &mut [f32]) {
        dequantize_row(self.spec.dtype, &self.bytes[row * self.row_bytes..][..self.row_bytes], out);
    }

    /// Decodes row `row` for a product; `narrow` is a buffer of one row.
    fn wide_row(&self, row: usize, narrow: &mut [f32], out: &mut [f64]) {
        self.row(row, narrow);
        for (out, &value) in out.iter_mut().zip(narrow.iter()) {
            *out = f64::from(value);
        }
    }
}

/// `Op::Embed`, `Op::PositionEmbed`.
pub(super) fn embed(rows: &[u32], table: &Weight) -> Vec<f32> {
    let mut out = vec![0.0; rows.len() * table.spec.cols];
    for (out, &row) in out.chunks_exact_mut(table.spec.cols).zip(rows) {
        table.row(row as usize, out);
    }
    out
}

/// `Op::Linear`.
pub(super) fn linear(x: &[f32], weight: &Weight, bias: Option<&[f32]>) -> Vec<f32> {
    let (rows, cols) = (weight.spec.rows, weight.spec.cols);
    let x = widen(x);
    let mut y = vec![0.0; x.len() / cols * rows];
    let (mut narrow, mut wide) = (vec![0.0; cols], vec![0.0; cols]);
    for row in 0..rows {
        weight.wide_row(row, &mut narrow, &mut wide);
        let bias = bias.map_or(0.0, |bias| f64::from(bias[row]));
        for (x, y) in x.chunks_exact(cols).zip(y.chunks_exact_mut(rows)) {
            y[row] = (dot(&wide, x) + bias) as f32;
        }
    }
    y
}

/// `Op::MoeLinear`: experts outside, so that each chosen expert's rows are decoded once.
pub(super) fn moe_linear(
    x: &[f32],
    experts: &[u32],
    top_k: usize,
    weight: &Weight,
    bias: Option<&[f32]>,
) -> Vec<f32> {
    let (rows, cols) = (weight.spec.rows, weight.spec.cols);
    let x = widen(x);
    // Choice c of the step reads its own row of x, or shares its token's.
    let shared = if x.len() == experts.len() * cols { 1 } else { top_k };
    let mut y = vec![0.0; experts.len() * rows];
    let (mut narrow, mut wide) = (vec![0.0; cols], vec![0.0; cols]);
    for expert in 0..weight.spec.experts {
        let choices: Vec<usize> = (0..experts.len()).filter(|&c| experts[c] as usize == expert).collect();
        if choices.is_empty() {
            continue;
        }
        for row in 0..rows {
            weight.wide_row(expert * rows + row, &mut narrow, &mut wide);
            let bias = bias.map_or(0.0, |bias| f64::from(bias[expert * rows + row]));
            for &choice in &choices {
                let x = &x[choice / shared * cols..][..cols];
                y[choice * rows + row] = (dot(&wide, x) + bias) as f32;
            }
        }
    }
    y
}

fn widen(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

/// A product of two rows in eight fixed partial sums, so that it vectorises and never depends on anything else.
pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    let (a, a_rest) = a.as_chunks::<8>();
    let (b, b_rest) = b.as_chunks::<8>();
    let mut sums = [0.0; 8];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..8 {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f64>() + rest
}
