//! The 256-element formats whose sub-block scales are quantised themselves: Q2_K, Q3_K, Q4_K, Q5_K, Q6_K.

use super::half_at;

pub(super) fn q2_k(block: &[u8; 84], out: &mut [f32; 256]) {
    let (scale, minimum) = (half_at(block, 80), half_at(block, 82));
    for (sub, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let sub_scale = block[sub];
        let (d, m) = (scale * f32::from(sub_scale & 15), minimum * f32::from(sub_scale >> 4));
        let (half, pair, side) = (sub / 8, sub % 8 / 2, sub % 2);
        let codes = &block[16 + 32 * half + 16 * side..][..16];
        for (out, code) in out.iter_mut().zip(codes) {
            *out = d * f32::from((code >> (2 * pair)) & 3) - m;
        }
    }
}

pub(super) fn q3_k(block: &[u8; 110], out: &mut [f32; 256]) {
    let scale = half_at(block, 108);
    let scales = &block[96..108];
    for (sub, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let low = if sub < 8 { scales[sub] & 15 } else { scales[sub - 8] >> 4 };
        let high = (scales[8 + sub % 4] >> (2 * (sub / 4))) & 3;
        let d = scale * (i32::from(low | (high << 4)) - 32) as f32;
        let (half, pair, side) = (sub / 8, sub % 8 / 2, sub % 2);
        let masks = &block[16 * side..][..16];
        let codes = &block[32 + 32 * half + 16 * side..][..16];
        for ((out, code), mask) in out.iter_mut().zip(codes).zip(masks) {
            let code = i32::from((code >> (2 * pair)) & 3);
            let high = i32::from((mask >> (4 * half + pair)) & 1);
            *out = d * (code + 4 * high - 4) as f32;
        }
    }
}

/// Pair `j` of the 12-byte table of 6-bit (scale, minimum) pairs that starts at byte 4.
fn pair<const BYTES: usize>(block: &[u8; BYTES], j: usize) -> (u8, u8) {
    let table = &block[4..16];
    if j < 4 {
        (table[j] & 63, table[j + 4] & 63)
    } else {
        let packed = table[j + 4];
        ((packed & 15) | ((table[j - 4] >> 6) << 4), (packed >> 4) | ((table[j] >> 6) << 4))
    }
}

pub(super) fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
    for (j, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (sub_scale, sub_minimum) = pair(block, j);
        let (d, m) = (scale * f32::from(sub_scale), minimum * f32::from(sub_minimum));
        let codes = &block[16 + 32 * (j / 2)..][..32];
        let shift = 4 * (j % 2);
        for (out, code) in out.iter_mut().zip(codes) {
            *out = d * f32::from((code >> shift) & 15) - m;
        }
    }
}

pub(super) fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
    let highs = &block[16..48];
    for (j, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (sub_scale, sub_minimum) = pair(block, j);
        let (d, m) = (scale * f32::from(sub_scale), minimum * f32::from(sub_minimum));
        let codes = &block[48 + 32 * (j / 2)..][..32];
        let shift = 4 * (j % 2);
        for ((out, code), high) in out.iter_mut().zip(codes).zip(highs) {
            let code = ((code >> shift) & 15) | (((high >> j) & 1) << 4);
            *out = d * f32::from(code) - m;
        }
    }
}

pub(super) fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let scale = half_at(block, 208);
    for (sub, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let d = scale * f32::from(block[192 + sub].cast_signed());
        let (half, group, side) = (sub / 8, sub % 8 / 2, sub % 2);
        let lows = &block[64 * half + 32 * (group & 1) + 16 * side..][..16];
        let highs = &block[128 + 32 * half + 16 * side..][..16];
        for ((out, low), high) in out.iter_mut().zip(lows).zip(highs) {
            let low = (low >> (4 * (group >> 1))) & 15;
            let high = (high >> (2 * group)) & 3;
            *out = d * (i32::from(low | (high << 4)) - 32) as f32;
        }
    }
}
