//! Checks tensor data for values no healthy model holds: quant-block scales, or plain floats, that are not finite.
//!
//! One such scale in one expert would otherwise surface as NaN logits long after loading. Loaders call this per chunk
//! while the bytes pass by anyway, so it must keep up with the disk.

use worker_orcd_core::DType;

/// Where a chunk of tensor data is at fault. Offsets are relative to the chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RowFault {
    /// An f16 scale, or minimum, is NaN or infinite.
    #[error("quant block {block}: f16 scale {bits:#06x} at byte {offset} is not finite")]
    Scale {
        /// Index of the quant block in the chunk.
        block: usize,
        /// Byte offset in the chunk.
        offset: usize,
        /// The f16.
        bits: u16,
    },
    /// The E8M0 scale is 0xff, which is NaN.
    #[error("quant block {block}: scale byte at byte {offset} is 0xff (NaN)")]
    Exponent {
        /// Index of the quant block in the chunk.
        block: usize,
        /// Byte offset in the chunk.
        offset: usize,
    },
    /// A plain float is NaN or infinite.
    #[error("element {element} is not finite")]
    Element {
        /// Index of the element in the chunk.
        element: usize,
    },
    /// The chunk ends within a quant block.
    #[error("{bytes} bytes are not whole quant blocks of {block_bytes} ({dtype})")]
    PartialBlock {
        /// Bytes in the chunk.
        bytes: usize,
        /// Bytes of one quant block.
        block_bytes: usize,
        /// The format.
        dtype: DType,
    },
}

/// Checks the scales in `bytes`, whole quant blocks of `dtype`. Plain floats have none and pass.
///
/// # Errors
/// The first scale that is not finite, or a chunk that ends within a quant block.
pub fn validate_rows(dtype: DType, bytes: &[u8]) -> Result<(), RowFault> {
    whole_blocks(dtype, bytes)?;
    match dtype {
        DType::F32 | DType::F16 | DType::BF16 => Ok(()),
        DType::Q4_0 => scales::<18, 0, 0>(bytes),
        DType::Q4_1 => scales::<20, 0, 2>(bytes),
        DType::Q5_0 => scales::<22, 0, 0>(bytes),
        DType::Q5_1 => scales::<24, 0, 2>(bytes),
        DType::Q8_0 => scales::<34, 0, 0>(bytes),
        DType::Q2_K => scales::<84, 80, 82>(bytes),
        DType::Q3_K => scales::<110, 108, 108>(bytes),
        DType::Q4_K => scales::<144, 0, 2>(bytes),
        DType::Q5_K => scales::<176, 0, 2>(bytes),
        DType::Q6_K => scales::<210, 208, 208>(bytes),
        DType::MXFP4 => exponents(bytes),
    }
}

/// Checks that every element in `bytes` is finite, for the plain floats; the quantised formats pass.
///
/// # Errors
/// The first element that is not finite, or a chunk that ends within an element.
pub fn validate_finite(dtype: DType, bytes: &[u8]) -> Result<(), RowFault> {
    whole_blocks(dtype, bytes)?;
    let element = match dtype {
        DType::F32 => {
            let (words, _) = bytes.as_chunks();
            words.iter().position(|&word| u32::from_le_bytes(word) & 0x7f80_0000 == 0x7f80_0000)
        }
        DType::F16 => position_of_saturated(bytes, 0x7c00),
        DType::BF16 => position_of_saturated(bytes, 0x7f80),
        _ => None,
    };
    element.map_or(Ok(()), |element| Err(RowFault::Element { element }))
}

fn position_of_saturated(bytes: &[u8], exponent: u16) -> Option<usize> {
    let (words, _) = bytes.as_chunks();
    words.iter().position(|&word| u16::from_le_bytes(word) & exponent == exponent)
}

fn whole_blocks(dtype: DType, bytes: &[u8]) -> Result<(), RowFault> {
    let block_bytes = dtype.block_bytes();
    if bytes.len().is_multiple_of(block_bytes) {
        return Ok(());
    }
    Err(RowFault::PartialBlock { bytes: bytes.len(), block_bytes, dtype })
}

/// Checks the f16 at `A` and at `B` (which may be the same) of every block of `N` bytes.
fn scales<const N: usize, const A: usize, const B: usize>(bytes: &[u8]) -> Result<(), RowFault> {
    let (blocks, _) = bytes.as_chunks::<N>();
    let f16_at = |block: &[u8; N], at: usize| u16::from_le_bytes([block[at], block[at + 1]]);
    for (index, block) in blocks.iter().enumerate() {
        for at in [A, B] {
            let bits = f16_at(block, at);
            if bits & 0x7c00 == 0x7c00 {
                return Err(RowFault::Scale { block: index, offset: index * N + at, bits });
            }
        }
    }
    Ok(())
}

fn exponents(bytes: &[u8]) -> Result<(), RowFault> {
    const BLOCK: usize = DType::MXFP4.block_bytes();
    let (blocks, _) = bytes.as_chunks::<BLOCK>();
    match blocks.iter().position(|block| block[0] == 0xff) {
        Some(block) => Err(RowFault::Exponent { block, offset: block * BLOCK }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCALES: [(DType, &[usize]); 10] = [
        (DType::Q4_0, &[0]),
        (DType::Q4_1, &[0, 2]),
        (DType::Q5_0, &[0]),
        (DType::Q5_1, &[0, 2]),
        (DType::Q8_0, &[0]),
        (DType::Q2_K, &[80, 82]),
        (DType::Q3_K, &[108]),
        (DType::Q4_K, &[0, 2]),
        (DType::Q5_K, &[0, 2]),
        (DType::Q6_K, &[208]),
    ];

    #[test]
    fn every_scale_of_every_format_is_checked() {
        for (dtype, places) in SCALES {
            let block_bytes = dtype.block_bytes();
            for at in 0..block_bytes - 1 {
                for bad in [0x7c00_u16, 0xfc00, 0x7e01] {
                    // All other bytes 0x3b keep every scale finite, whichever two bytes one takes.
                    let mut bytes = vec![0x3b; 3 * block_bytes];
                    let offset = block_bytes + at;
                    bytes[offset..offset + 2].copy_from_slice(&bad.to_le_bytes());
                    let found = validate_rows(dtype, &bytes);
                    if places.contains(&at) {
                        assert_eq!(found, Err(RowFault::Scale { block: 1, offset, bits: bad }), "{dtype}");
                    } else if !places.iter().any(|&place| place.abs_diff(at) == 1) {
                        assert_eq!(found, Ok(()), "{dtype} byte {at}");
                    }
                }
            }
        }
    }

    #[test]
    fn largest_finite_scales_pass() {
        let mut block = [0; 144];
        block[..4].copy_from_slice(&[0xff, 0x7b, 0xff, 0xfb]);
        assert_eq!(validate_rows(DType::Q4_K, &block), Ok(()));
    }

    #[test]
    fn mxfp4_refuses_only_the_nan_exponent() {
        let mut bytes = vec![0xff; 4 * 17];
        for block in bytes.chunks_exact_mut(17) {
            block[0] = 0xfe;
        }
        assert_eq!(validate_rows(DType::MXFP4, &bytes), Ok(()));
        bytes[2 * 17] = 0xff;
        assert_eq!(validate_rows(DType::MXFP4, &bytes), Err(RowFault::Exponent { block: 2, offset: 34 }));
    }

    #[test]
    fn partial_blocks_are_refused() {
        for dtype in DType::ALL {
            let bytes = vec![0; 2 * dtype.block_bytes() - 1];
            let whole = dtype.block_bytes() == 1;
            assert_eq!(validate_rows(dtype, &bytes).is_ok(), whole, "{dtype}");
        }
    }

    #[test]
    fn plain_floats_are_checked_on_request() {
        let f32s: Vec<u8> = [1.0_f32, f32::MAX, f32::NAN].iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(validate_rows(DType::F32, &f32s), Ok(()));
        assert_eq!(validate_finite(DType::F32, &f32s), Err(RowFault::Element { element: 2 }));
        assert_eq!(
            validate_finite(DType::F16, &[0xff, 0x7b, 0x00, 0xfc]),
            Err(RowFault::Element { element: 1 })
        );
        assert_eq!(
            validate_finite(DType::BF16, &[0x7f, 0x7f, 0x80, 0x7f]),
            Err(RowFault::Element { element: 1 })
        );
        assert_eq!(validate_finite(DType::MXFP4, &[0xff; 17]), Ok(()));
    }
}
