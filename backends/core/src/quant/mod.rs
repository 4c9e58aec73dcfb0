//! Decoders of the storage formats, bit-exact, and a generator of valid random rows.
//!
//! One file per family. Arithmetic is f32 in the written order without fused multiply-add, which reproduces the bits
//! of the format's published reference.

mod block32;
mod float;
mod mxfp4;
mod random;
mod super_block;

pub use random::random_row;

use crate::dtype::DType;
use half::f16;

/// Decodes one row: `out.len()` elements from exactly [`DType::row_bytes`] bytes.
///
/// Lengths that do not belong together decode the quant blocks both slices hold and leave the rest of `out` alone;
/// whoever owns the bytes has checked them (`upload` does).
pub fn dequantize_row(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        DType::F32 => float::f32_row(bytes, out),
        DType::F16 => float::f16_row(bytes, out),
        DType::BF16 => float::bf16_row(bytes, out),
        DType::Q4_0 => blocks(bytes, out, block32::q4_0),
        DType::Q4_1 => blocks(bytes, out, block32::q4_1),
        DType::Q5_0 => blocks(bytes, out, block32::q5_0),
        DType::Q5_1 => blocks(bytes, out, block32::q5_1),
        DType::Q8_0 => blocks(bytes, out, block32::q8_0),
        DType::Q2_K => blocks(bytes, out, super_block::q2_k),
        DType::Q3_K => blocks(bytes, out, super_block::q3_k),
        DType::Q4_K => blocks(bytes, out, super_block::q4_k),
        DType::Q5_K => blocks(bytes, out, super_block::q5_k),
        DType::Q6_K => blocks(bytes, out, super_block::q6_k),
        DType::MXFP4 => blocks(bytes, out, mxfp4::mxfp4),
    }
}

fn blocks<const BYTES: usize, const ELEMENTS: usize>(
    bytes: &[u8],
    out: &mut [f32],
    decode: impl Fn(&[u8; BYTES], &mut [f32; ELEMENTS]),
) {
    let (blocks, _) = bytes.as_chunks::<BYTES>();
    let (outs, _) = out.as_chunks_mut::<ELEMENTS>();
    for (block, out) in blocks.iter().zip(outs) {
        decode(block, out);
    }
}

/// The f16 at bytes `at`, `at + 1`.
fn half_at<const BYTES: usize>(block: &[u8; BYTES], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(dtype: DType, bytes: &[u8]) -> Vec<f32> {
        let elements = bytes.len() / dtype.block_bytes() * dtype.block_elements();
        let mut out = vec![f32::NAN; elements];
        dequantize_row(dtype, bytes, &mut out);
        out
    }

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap()).collect()
    }

    #[test]
    fn published_vectors_decode_to_the_same_bits() {
        let text = include_str!("../../tests/fixtures/quant_vectors.json");
        let vectors: serde_json::Value = serde_json::from_str(text).unwrap();
        let vectors = vectors.as_object().unwrap();
        let mut seen = std::collections::BTreeSet::new();
        for (name, vector) in vectors {
            let dtype = DType::from_gguf_id(vector["type_id"].as_u64().unwrap() as u32).unwrap();
            let bytes = hex(vector["hex"].as_str().unwrap());
            let expected = vector["f32"].as_array().unwrap();
            // Three blocks in a row: the stride between blocks is tested too.
            let decoded = decode(dtype, &bytes.repeat(3));
            assert_eq!(decoded.len(), 3 * expected.len(), "{name}");
            for (i, got) in decoded.iter().enumerate() {
                let want = expected[i % expected.len()].as_f64().unwrap() as f32;
                assert_eq!(got.to_bits(), want.to_bits(), "{name}[{i}]: {got} is not {want}");
            }
            seen.insert(dtype);
        }
        assert_eq!(seen.len(), 11, "every quantised format has vectors");
    }

    #[test]
    fn plain_floats_decode_to_the_same_bits() {
        assert_eq!(decode(DType::F32, &hex("0000803f000020c1")), [1.0, -10.0]);
        assert_eq!(decode(DType::F16, &hex("003c00c50100ff7b")), [1.0, -5.0, 5.960_464_5e-8, 65504.0]);
        assert_eq!(decode(DType::BF16, &hex("803f49c07f7f")), [1.0, -3.140_625, 3.389_531_4e38]);
        let every: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        for (bits, got) in decode(DType::F16, &every).into_iter().enumerate() {
            let want = f16::from_bits(bits as u16).to_f32();
            assert!(got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan()), "{bits:#06x}");
        }
    }

    #[test]
    #[allow(clippy::float_cmp, reason = "decoding is exact")]
    fn mxfp4_edge_scales() {
        let first = |scale: u8, code: u8| {
            let mut block = [0x00; 17];
            block[0] = scale;
            block[1] = code;
            decode(DType::MXFP4, &block)[0]
        };
        assert_eq!(first(0, 2), f32::from_bits(0x0040_0000));
        assert_eq!(first(0, 1), f32::from_bits(0x0020_0000));
        assert_eq!(first(1, 2), f32::MIN_POSITIVE);
        assert_eq!(first(253, 7), f32::INFINITY);
        assert_eq!(first(254, 2), 1.701_411_8e38);
        assert!(first(255, 2).is_nan() && first(255, 0).is_nan());
    }

    #[test]
    fn lengths_that_differ_do_not_panic() {
        for dtype in DType::ALL {
            let mut out = [0.0; 300];
            dequantize_row(dtype, &[1; 50], &mut out);
            dequantize_row(dtype, &[1; 500], &mut out[..7]);
        }
    }
}
