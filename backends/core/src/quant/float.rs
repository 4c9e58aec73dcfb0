//! The plain floats: F32, F16, BF16.

use half::f16;
use half::slice::HalfFloatSliceExt;

pub(super) fn f32_row(bytes: &[u8], out: &mut [f32]) {
    let (words, _) = bytes.as_chunks::<4>();
    for (out, word) in out.iter_mut().zip(words) {
        *out = f32::from_le_bytes(*word);
    }
}

pub(super) fn f16_row(bytes: &[u8], out: &mut [f32]) {
    // File bytes may be unaligned: a small aligned buffer lets the conversion use vector instructions.
    const CHUNK: usize = 64;
    let mut aligned = [f16::ZERO; CHUNK];
    for (bytes, out) in bytes.chunks(2 * CHUNK).zip(out.chunks_mut(CHUNK)) {
        let (words, _) = bytes.as_chunks::<2>();
        let count = words.len().min(out.len());
        for (half, word) in aligned.iter_mut().zip(words) {
            *half = f16::from_le_bytes(*word);
        }
        aligned[..count].convert_to_f32_slice(&mut out[..count]);
    }
}

pub(super) fn bf16_row(bytes: &[u8], out: &mut [f32]) {
    let (words, _) = bytes.as_chunks::<2>();
    for (out, word) in out.iter_mut().zip(words) {
        *out = f32::from_bits(u32::from(u16::from_le_bytes(*word)) << 16);
    }
}
