//! Names the quantisation a file really holds, from its tensors rather than from what its metadata claims.

use std::collections::BTreeMap;

use worker_orcd_core::DType;

use super::ModelError;
use crate::gguf::Gguf;

/// `MXFP4`, `Q4_K_M`, `Q4_0`, `F16`, …: the storage type of most matrix weights; for K-quant mixtures the mixture's
/// name when the file type says so and the tensors agree.
///
/// # Errors
/// `general.file_type` is not an integer.
pub fn quant_kind(gguf: &Gguf) -> Result<String, ModelError> {
    let mut elements: BTreeMap<DType, u64> = BTreeMap::new();
    for tensor in gguf.tensors().iter().filter(|tensor| tensor.dims[1] > 1) {
        *elements.entry(tensor.dtype).or_default() += tensor.elements();
    }
    let most = elements.iter().max_by_key(|(_, count)| **count).map_or(DType::F32, |(dtype, _)| *dtype);
    let mixture = match gguf.file_type()? {
        Some(10) => Some(("Q2_K", DType::Q2_K)),
        Some(11) => Some(("Q3_K_S", DType::Q3_K)),
        Some(12) => Some(("Q3_K_M", DType::Q3_K)),
        Some(13) => Some(("Q3_K_L", DType::Q3_K)),
        Some(14) => Some(("Q4_K_S", DType::Q4_K)),
        Some(15) => Some(("Q4_K_M", DType::Q4_K)),
        Some(16) => Some(("Q5_K_S", DType::Q5_K)),
        Some(17) => Some(("Q5_K_M", DType::Q5_K)),
        _ => None,
    };
    // Rows that are no multiple of 256 fall back to 32-wide formats, so presence, not majority, decides a mixture.
    let named = mixture.filter(|(_, dtype)| elements.contains_key(dtype)).map(|(name, _)| name);
    Ok(named.unwrap_or(most.name()).to_owned())
}
