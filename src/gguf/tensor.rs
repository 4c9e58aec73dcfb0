//! Tensor descriptions: name, shape, storage format and the place of the data.

use worker_orcd_core::DType;

use super::error::Rule;

/// One tensor of a model file. Its shape, size and bounds were proven when the file was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    pub(super) name: Box<str>,
    /// Elements along each axis, the contiguous one first. Axes the file does not mention are 1: writers drop
    /// trailing ones, so compare all four rather than [`TensorInfo::rank`].
    pub dims: [u64; 4],
    pub(super) rank: u8,
    /// Storage format.
    pub dtype: DType,
    /// Index of the file that holds the data: 0, or the part of a split model.
    pub(super) part: u32,
    /// Offset of the data from the start of that file.
    pub(super) offset: u64,
    /// Bytes of data.
    pub bytes: u64,
}

impl TensorInfo {
    /// Name, unique in the model.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Number of axes the file wrote, 1 to 4.
    pub fn rank(&self) -> usize {
        usize::from(self.rank)
    }

    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.dims.iter().product()
    }

    /// Number of rows: elements over `dims[0]`.
    pub fn rows(&self) -> u64 {
        self.dims[1..].iter().product()
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> u64 {
        self.bytes / self.rows()
    }

    /// Index of the file that holds the data, into [`super::Gguf::paths`].
    pub fn part(&self) -> usize {
        self.part as usize
    }

    /// Offset of the data from the start of that file, in bytes.
    pub fn offset(&self) -> u64 {
        self.offset
    }
}

/// Most axes a tensor may have.
pub(super) const MAX_RANK: u64 = 4;

/// Longest tensor name, in bytes.
pub(super) const MAX_NAME_BYTES: u64 = 63;

/// Checks the axes of a tensor one by one and pads them to four with ones.
pub(super) fn padded_dims(dims: &[u64]) -> Result<[u64; 4], Rule> {
    let mut padded = [1; 4];
    if dims.is_empty() || dims.len() > padded.len() {
        return Err(Rule::Rank { found: dims.len() as u64 });
    }
    for (axis, (slot, &dim)) in padded.iter_mut().zip(dims).enumerate() {
        if dim == 0 {
            return Err(Rule::ZeroDimension { axis });
        }
        if i64::try_from(dim).is_err() {
            return Err(Rule::HugeDimension { axis, found: dim });
        }
        *slot = dim;
    }
    Ok(padded)
}

/// Bytes of a tensor of this shape, every step checked against overflow.
pub(super) fn data_bytes(dims: [u64; 4], dtype: DType) -> Result<u64, Rule> {
    let elements = dims
        .iter()
        .try_fold(1_u64, |product, &dim| product.checked_mul(dim))
        .filter(|&elements| i64::try_from(elements).is_ok())
        .ok_or(Rule::ElementOverflow)?;
    let block = dtype.block_elements() as u64;
    if !dims[0].is_multiple_of(block) {
        return Err(Rule::PartialBlock { row: dims[0], dtype });
    }
    (elements / block)
        .checked_mul(dtype.block_bytes() as u64)
        .filter(|&bytes| i64::try_from(bytes).is_ok())
        .ok_or(Rule::SizeOverflow)
}

/// Checks the bytes of a tensor name.
pub(super) fn checked_name(bytes: &[u8]) -> Result<&str, Rule> {
    if bytes.is_empty() {
        return Err(Rule::Empty { field: "tensor name" });
    }
    if bytes.len() as u64 > MAX_NAME_BYTES {
        let count = bytes.len() as u64;
        return Err(Rule::AboveLimit { field: "tensor name length", count, limit: MAX_NAME_BYTES });
    }
    let name = std::str::from_utf8(bytes).map_err(|_| Rule::Utf8)?;
    if name.chars().any(char::is_control) { Err(Rule::NameCharacter) } else { Ok(name) }
}

/// Indices of the tensors in the order of their names; the later of two of one name is the error.
pub(super) fn order_by_name(tensors: &[TensorInfo]) -> Result<Vec<u32>, &TensorInfo> {
    let named = |at: u32| tensors.get(at as usize).map(TensorInfo::name);
    let mut order: Vec<u32> = (0..tensors.len() as u32).collect();
    order.sort_unstable_by(|&a, &b| named(a).cmp(&named(b)).then(a.cmp(&b)));
    for pair in order.windows(2) {
        if let &[one, other] = pair
            && named(one) == named(other)
            && let Some(double) = tensors.get(other as usize)
        {
            return Err(double);
        }
    }
    Ok(order)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_follow_the_quant_blocks() {
        assert_eq!(data_bytes([2880, 5760, 32, 1], DType::MXFP4), Ok(90 * 17 * 5760 * 32));
        assert_eq!(data_bytes([3, 5, 1, 1], DType::F16), Ok(30));
        assert_eq!(
            data_bytes([100, 1, 1, 1], DType::Q4_K),
            Err(Rule::PartialBlock { row: 100, dtype: DType::Q4_K })
        );
        assert_eq!(data_bytes([1 << 62, 2, 1, 1], DType::F32), Err(Rule::ElementOverflow));
        assert_eq!(data_bytes([1 << 62, 1, 1, 1], DType::F32), Err(Rule::SizeOverflow));
    }

    #[test]
    fn missing_axes_are_one() {
        assert_eq!(padded_dims(&[7, 2]), Ok([7, 2, 1, 1]));
        assert_eq!(padded_dims(&[]), Err(Rule::Rank { found: 0 }));
        assert_eq!(padded_dims(&[1, 0]), Err(Rule::ZeroDimension { axis: 1 }));
    }
}
