//! Valid random rows of every format, fast enough to forge whole models.
//!
//! Codes are uniform bytes; only the scales are made. Each scale takes a random sign, so weights have mean 0, and is
//! chosen so that they have about the wanted standard deviation.

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::mxfp4::E2M1;
use crate::dtype::DType;
use crate::rng::Rng;

/// Appends one row of `elements` (whole quant blocks) with mean 0 and standard deviation about `std` (0 < `std` < 1e4
/// for formats with half-precision scales).
pub fn random_row(dtype: DType, elements: usize, std: f32, rng: &mut Rng, out: &mut Vec<u8>) {
    let start = out.len();
    out.resize(start + elements / dtype.block_elements() * dtype.block_bytes(), 0);
    let row = &mut out[start..];
    match dtype {
        DType::F32 => f32_row(row, std, rng),
        DType::F16 => f16_row(row, std, rng),
        DType::BF16 => bf16_row(row, std, rng),
        DType::MXFP4 => mxfp4_row(row, std, rng),
        _ => scaled_row(dtype, row, std, rng),
    }
}

/// Uniform with standard deviation `std`: 32 random bits as a signed fraction.
fn uniform(bits: u32, std: f32) -> f32 {
    bits.cast_signed() as f32 * (std * 1.732_050_8 / 2_147_483_648.0)
}

fn f32_row(row: &mut [u8], std: f32, rng: &mut Rng) {
    for pair in row.chunks_mut(8) {
        let bits = rng.next_u64();
        let values = [uniform(bits as u32, std), uniform((bits >> 32) as u32, std)];
        pair.copy_from_slice(&bytemuck::cast_slice(&values)[..pair.len()]);
    }
}

fn f16_row(row: &mut [u8], std: f32, rng: &mut Rng) {
    const CHUNK: usize = 64;
    let (mut values, mut halves) = ([0.0; CHUNK], [f16::ZERO; CHUNK]);
    for chunk in row.chunks_mut(2 * CHUNK) {
        fill(&mut values, std, rng);
        halves.convert_from_f32_slice(&values);
        chunk.copy_from_slice(&bytemuck::cast_slice(&halves)[..chunk.len()]);
    }
}

fn bf16_row(row: &mut [u8], std: f32, rng: &mut Rng) {
    const CHUNK: usize = 64;
    let mut values = [0.0; CHUNK];
    for chunk in row.chunks_mut(2 * CHUNK) {
        fill(&mut values, std, rng);
        for (bytes, value) in chunk.as_chunks_mut::<2>().0.iter_mut().zip(values) {
            *bytes = ((value.to_bits() >> 16) as u16).to_le_bytes();
        }
    }
}

fn fill(values: &mut [f32; 64], std: f32, rng: &mut Rng) {
    for four in values.as_chunks_mut::<4>().0 {
        let bits = rng.next_u64();
        // 16 bits are more than either half format keeps.
        *four = [0, 16, 32, 48].map(|shift| uniform(((bits >> shift) as u32) << 16, std));
    }
}

fn mxfp4_row(row: &mut [u8], std: f32, rng: &mut Rng) {
    rng.fill_bytes(row);
    let mean_square = E2M1.iter().map(|code| code * code).sum::<f32>() / 16.0;
    let wanted = std * std / mean_square;
    // Of two neighbouring powers of four, mixed so that the mean square is the wanted one.
    let exponent = (wanted.log2() / 2.0).floor();
    let upper = ((wanted / (2.0 * exponent).exp2() - 1.0) / 3.0 * 256.0) as u8;
    let base = (127.0 + exponent).clamp(0.0, 250.0) as u8;
    for block in row.as_chunks_mut::<17>().0 {
        block[0] = base + u8::from(block[0] < upper);
    }
}

/// Where a format keeps its scales and what its uniform codes are worth.
struct Scales {
    /// Byte offset of the f16 scale.
    scale_at: usize,
    /// Byte offset of the f16 minimum and its ratio to the scale which cancels the mean.
    minimum: Option<(usize, f32)>,
    /// Standard deviation of the decoded codes at scale 1, sub-block scales and minimum included.
    std: f32,
}

fn scales_of(dtype: DType) -> Option<Scales> {
    let (scale_at, minimum, std) = match dtype {
        DType::Q4_0 => (0, None, 4.637),
        DType::Q4_1 => (0, Some((2, -7.5)), 4.61),
        DType::Q5_0 => (0, None, 9.246),
        DType::Q5_1 => (0, Some((2, -15.5)), 9.233),
        DType::Q8_0 => (0, None, 73.9),
        DType::Q2_K => (80, Some((82, 1.5)), 13.9),
        DType::Q3_K => (108, None, 43.3),
        DType::Q4_K => (0, Some((2, 7.5)), 258.3),
        DType::Q5_K => (0, Some((2, 15.5)), 526.9),
        DType::Q6_K => (208, None, 1366.0),
        DType::F32 | DType::F16 | DType::BF16 | DType::MXFP4 => return None,
    };
    Some(Scales { scale_at, minimum, std })
}

fn scaled_row(dtype: DType, row: &mut [u8], std: f32, rng: &mut Rng) {
    let Some(scales) = scales_of(dtype) else { return };
    rng.fill_bytes(row);
    // 32 signed scales between 0.75 and 1.25 of the wanted one; converting to f16 once per row, not once per block.
    let wanted = std / scales.std;
    let table: [([u8; 2], [u8; 2]); 32] = std::array::from_fn(|i| {
        let magnitude = wanted * (0.75 + (i >> 1) as f32 / 30.0);
        let scale = if i % 2 == 0 { magnitude } else { -magnitude };
        let ratio = scales.minimum.map_or(0.0, |(_, ratio)| ratio);
        (f16::from_f32(scale).to_le_bytes(), f16::from_f32(scale * ratio).to_le_bytes())
    });
    for block in row.chunks_exact_mut(dtype.block_bytes()) {
        let (scale, minimum) = table[usize::from(block[scales.scale_at] % 32)];
        block[scales.scale_at..scales.scale_at + 2].copy_from_slice(&scale);
        if let Some((at, _)) = scales.minimum {
            block[at..at + 2].copy_from_slice(&minimum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::dequantize_row;

    #[test]
    fn rows_of_every_format_have_the_wanted_spread() {
        for dtype in DType::ALL {
            for wanted in [0.01, 0.02, 1.0] {
                let (mut rng, mut bytes) = (Rng::seeded(3), vec![]);
                random_row(dtype, 65536, wanted, &mut rng, &mut bytes);
                assert_eq!(Some(bytes.len()), dtype.row_bytes(65536));
                let mut values = vec![0.0; 65536];
                dequantize_row(dtype, &bytes, &mut values);
                assert!(values.iter().all(|value| value.is_finite()), "{dtype}");
                let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / 65536.0;
                let square = values.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / 65536.0;
                let std = square.sqrt() / f64::from(wanted);
                assert!((0.9..1.12).contains(&std), "{dtype}: {std} of the wanted {wanted}");
                assert!(mean.abs() < 0.1 * f64::from(wanted), "{dtype}: mean {mean}");
            }
        }
    }

    #[test]
    fn ragged_tails_are_filled() {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let mut bytes = vec![9];
            random_row(dtype, 67, 1.0, &mut Rng::seeded(1), &mut bytes);
            assert_eq!(bytes.len(), 1 + 67 * dtype.block_bytes());
            assert_ne!(&bytes[bytes.len() - 2..], [0, 0]);
        }
    }
}
