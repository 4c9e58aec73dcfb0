//! What a backend is told about a weight before its bytes arrive.

use crate::dtype::DType;

/// A weight held by a backend. Ids are given out in upload order, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WeightId(pub u32);

/// The place a weight takes in an operation; it decides the layout a backend may repack it into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightKind {
    /// Small, always [`DType::F32`]: norm weights, biases (one row per expert), sinks, rotary tables.
    Vector,
    /// `[rows, cols]` of any format, read by `Linear`, `Embed` and `PositionEmbed`.
    Matrix,
    /// `[experts, rows, cols]` of any format, read by `MoeLinear`.
    Experts,
}

/// Name, format and shape of one weight. Rows are packed; `cols` is the contiguous (contraction) dimension.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightSpec {
    /// What errors and profiles call it, e.g. `layers.3.attn.q.weight`.
    pub label: String,
    /// Storage format of the bytes handed to `upload`.
    pub dtype: DType,
    /// Where it is used.
    pub kind: WeightKind,
    /// Number of experts; 1 unless `kind` is [`WeightKind::Experts`].
    pub experts: usize,
    /// Output features (rows of the matrix); for a vector, its rows.
    pub rows: usize,
    /// Input features; a multiple of the format's block size.
    pub cols: usize,
}

impl WeightSpec {
    /// An f32 vector of `[rows, cols]`.
    pub fn vector(label: impl Into<String>, rows: usize, cols: usize) -> Self {
        Self { label: label.into(), dtype: DType::F32, kind: WeightKind::Vector, experts: 1, rows, cols }
    }

    /// A matrix of `[rows, cols]`.
    pub fn matrix(label: impl Into<String>, dtype: DType, rows: usize, cols: usize) -> Self {
        Self { label: label.into(), dtype, kind: WeightKind::Matrix, experts: 1, rows, cols }
    }

    /// A stack of expert matrices, `[experts, rows, cols]`.
    pub fn experts(label: impl Into<String>, dtype: DType, experts: usize, rows: usize, cols: usize) -> Self {
        Self { label: label.into(), dtype, kind: WeightKind::Experts, experts, rows, cols }
    }

    /// Bytes of one row; `None` when `cols` is not a whole number of quant blocks.
    pub fn row_bytes(&self) -> Option<usize> {
        self.dtype.row_bytes(self.cols)
    }

    /// Bytes of the whole weight in its stored format; `None` on overflow or a ragged row.
    pub fn bytes(&self) -> Option<usize> {
        self.row_bytes()?.checked_mul(self.rows)?.checked_mul(self.experts)
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.experts * self.rows * self.cols
    }
}
