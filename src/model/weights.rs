//! The table of a model's weights: what each is called, what shape it has, and where its bytes come from.
//!
//! An adapter declares weights through a [`Declarer`]; the table's order is the upload order, so that `WeightId(i)` is
//! entry `i` on every backend. Fused tensors become several entries over row ranges of one tensor, and the reverse.

use std::collections::HashSet;
use std::ops::Range;

use worker_orcd_core::{DType, WeightId, WeightKind, WeightSpec, quant};

use super::ModelError;
use crate::gguf::{Gguf, TensorInfo};

/// Where a weight's bytes come from.
#[derive(Clone, Debug)]
pub enum WeightSource {
    /// Byte ranges of a tensor, in order, as stored.
    Stored {
        /// Index into `Gguf::tensors`.
        tensor: usize,
        /// Whole rows each.
        ranges: Vec<Range<usize>>,
    },
    /// A small float tensor widened to f32.
    Widened {
        /// Index into `Gguf::tensors`.
        tensor: usize,
        /// Elements.
        elements: Range<usize>,
    },
    /// Computed at load: rotary tables.
    Computed(Vec<f32>),
}

/// One weight.
#[derive(Clone, Debug)]
pub struct WeightEntry {
    /// Shape and format.
    pub spec: WeightSpec,
    /// Bytes.
    pub source: WeightSource,
}

/// Collects the weights an adapter asks for.
#[derive(Debug)]
pub(super) struct Declarer<'g> {
    gguf: &'g Gguf,
    entries: Vec<WeightEntry>,
    used: HashSet<usize>,
}

type Declared = Result<WeightId, ModelError>;

impl<'g> Declarer<'g> {
    /// An empty table over a file.
    pub(super) fn new(gguf: &'g Gguf) -> Self {
        Self { gguf, entries: vec![], used: HashSet::new() }
    }

    /// The finished table, and the names of tensors nobody asked for.
    pub(super) fn finish(self) -> (Vec<WeightEntry>, Vec<String>) {
        let tensors = self.gguf.tensors().iter().enumerate();
        let unused =
            tensors.filter(|(index, _)| !self.used.contains(index)).map(|(_, t)| t.name().to_owned());
        (self.entries, unused.collect())
    }

    /// Whether the file has a tensor.
    pub(super) fn has(&self, name: &str) -> bool {
        self.gguf.tensor(name).is_some()
    }

    /// The first of several names that the file has; the first of all when it has none, for the error.
    pub(super) fn first_of<'n>(&self, names: &[&'n str]) -> &'n str {
        names.iter().copied().find(|name| self.has(name)).unwrap_or(names.first().copied().unwrap_or(""))
    }

    /// A whole matrix of `[rows, cols]`.
    ///
    /// # Errors
    /// The tensor is missing or has another shape.
    pub(super) fn matrix(&mut self, name: &str, rows: usize, cols: usize) -> Declared {
        self.matrix_rows(name, 0..rows, (rows, cols))
    }

    /// Some rows of a fused matrix of `[total, cols]`.
    ///
    /// # Errors
    /// The tensor is missing or has another shape.
    pub(super) fn matrix_rows(
        &mut self,
        name: &str,
        rows: Range<usize>,
        (total, cols): (usize, usize),
    ) -> Declared {
        let (tensor, info) = self.tensor(name, [cols, total, 1])?;
        let row_bytes = info.row_bytes() as usize;
        let spec = WeightSpec::matrix(part_label(name, &rows, total), info.dtype, rows.len(), cols);
        let bytes = rows.start * row_bytes..rows.end * row_bytes;
        Ok(self.push(spec, WeightSource::Stored { tensor, ranges: [bytes].into() }))
    }

    /// Some rows of every expert of a stack of `[experts, total, cols]`.
    ///
    /// # Errors
    /// The tensor is missing or has another shape.
    pub(super) fn expert_rows(
        &mut self,
        name: &str,
        experts: usize,
        rows: Range<usize>,
        (total, cols): (usize, usize),
    ) -> Declared {
        let (tensor, info) = self.tensor(name, [cols, total, experts])?;
        let row_bytes = info.row_bytes() as usize;
        let spec = WeightSpec::experts(part_label(name, &rows, total), info.dtype, experts, rows.len(), cols);
        let range = |first: usize| (first + rows.start) * row_bytes..(first + rows.end) * row_bytes;
        // Whole experts lie one after the other: one range serves.
        let whole = 0..experts * total * row_bytes;
        let pieces: Vec<_> = std::iter::once(whole).filter(|_| rows.len() == total).collect();
        let ranges =
            if pieces.is_empty() { (0..experts).map(|e| range(e * total)).collect() } else { pieces };
        Ok(self.push(spec, WeightSource::Stored { tensor, ranges }))
    }

    /// A vector of `n`, widened to f32.
    ///
    /// # Errors
    /// The tensor is missing, quantised, or has another shape.
    pub(super) fn vector(&mut self, name: &str, n: usize) -> Declared {
        self.vector_part(name, 0..n, n)
    }

    /// Part of a fused vector of `total`.
    ///
    /// # Errors
    /// The tensor is missing, quantised, or has another shape.
    pub(super) fn vector_part(&mut self, name: &str, part: Range<usize>, total: usize) -> Declared {
        let (tensor, info) = self.tensor(name, [total, 1, 1])?;
        widenable(info)?;
        let spec = WeightSpec::vector(part_label(name, &part, total), 1, part.len());
        Ok(self.push(spec, WeightSource::Widened { tensor, elements: part }))
    }

    /// A vector of `n` if the file has it.
    ///
    /// # Errors
    /// The tensor is quantised or has another shape.
    pub(super) fn optional_vector(&mut self, name: &str, n: usize) -> Result<Option<WeightId>, ModelError> {
        if self.has(name) { self.vector(name, n).map(Some) } else { Ok(None) }
    }

    /// One bias row per expert, `[experts, n]`.
    ///
    /// # Errors
    /// The tensor is missing, quantised, or has another shape.
    pub(super) fn expert_vectors(&mut self, name: &str, experts: usize, n: usize) -> Declared {
        let (tensor, info) = self.tensor(name, [n, experts, 1])?;
        widenable(info)?;
        let spec = WeightSpec::vector(name, experts, n);
        Ok(self.push(spec, WeightSource::Widened { tensor, elements: 0..experts * n }))
    }

    /// A table computed at load.
    pub(super) fn computed(&mut self, label: &str, rows: usize, cols: usize, values: Vec<f32>) -> WeightId {
        self.push(WeightSpec::vector(label, rows, cols), WeightSource::Computed(values))
    }

    /// The values of a small float tensor.
    ///
    /// # Errors
    /// The tensor is missing, quantised, or has another shape.
    pub(super) fn values(&mut self, name: &str, n: usize) -> Result<Vec<f32>, ModelError> {
        let (_, info) = self.tensor(name, [n, 1, 1])?;
        widenable(info)?;
        Ok(widen(info.dtype, self.gguf.tensor_bytes(info)))
    }

    fn push(&mut self, spec: WeightSpec, source: WeightSource) -> WeightId {
        self.entries.push(WeightEntry { spec, source });
        WeightId(self.entries.len() as u32 - 1)
    }

    fn tensor(&mut self, name: &str, dims: [usize; 3]) -> Result<(usize, &'g TensorInfo), ModelError> {
        let tensors = self.gguf.tensors();
        let info = self.gguf.tensor(name).ok_or_else(|| ModelError::MissingTensor { name: name.into() })?;
        let expected = [dims[0] as u64, dims[1] as u64, dims[2] as u64, 1];
        if info.dims != expected {
            let shape = |dims: &[u64]| dims.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
            return Err(ModelError::TensorShape {
                name: name.into(),
                expected: shape(&expected[..3]),
                found: shape(&info.dims),
            });
        }
        let index = tensors.iter().position(|other| std::ptr::eq(other, info)).unwrap_or_default();
        self.used.insert(index);
        Ok((index, info))
    }
}

fn part_label(name: &str, part: &Range<usize>, total: usize) -> String {
    if part.len() == total { name.to_owned() } else { format!("{name}[{}..{}]", part.start, part.end) }
}

fn widenable(info: &TensorInfo) -> Result<(), ModelError> {
    match info.dtype {
        DType::F32 | DType::F16 | DType::BF16 => Ok(()),
        other => Err(ModelError::TensorType { name: info.name().into(), found: other.name() }),
    }
}

fn widen(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    let elements = bytes.len() / dtype.block_bytes();
    let mut values = vec![0.0; elements];
    quant::dequantize_row(dtype, bytes, &mut values);
    values
}

impl WeightEntry {
    /// The bytes to upload, in chunks of at most `chunk_bytes`.
    pub fn with_chunks<T>(
        &self,
        gguf: &Gguf,
        chunk_bytes: usize,
        upload: impl FnOnce(&mut dyn Iterator<Item = &[u8]>) -> T,
    ) -> T {
        let chunk_bytes = chunk_bytes.max(1);
        let tensor_bytes =
            |tensor: usize| gguf.tensors().get(tensor).map_or(&[][..], |t| gguf.tensor_bytes(t));
        match &self.source {
            WeightSource::Stored { tensor, ranges } => {
                let bytes = tensor_bytes(*tensor);
                let part = |range: &Range<usize>| bytes.get(range.clone()).unwrap_or_default();
                upload(&mut ranges.iter().map(part).flat_map(|part| part.chunks(chunk_bytes)))
            }
            WeightSource::Widened { tensor, elements } => {
                let dtype = gguf.tensors().get(*tensor).map_or(DType::F32, |t| t.dtype);
                let values = widen(dtype, tensor_bytes(*tensor));
                let values = values.get(elements.clone()).unwrap_or_default();
                upload(&mut bytemuck::cast_slice::<f32, u8>(values).chunks(chunk_bytes))
            }
            WeightSource::Computed(values) => {
                upload(&mut bytemuck::cast_slice::<f32, u8>(values).chunks(chunk_bytes))
            }
        }
    }

    /// Whether the weight's bytes are quantised blocks whose scales need checking.
    pub fn is_quantised(&self) -> bool {
        self.spec.kind != WeightKind::Vector && self.spec.dtype.block_elements() > 1
    }
}
