//! The 32-element formats with a half-precision scale (and minimum): Q4_0, Q4_1, Q5_0, Q5_1, Q8_0.
//!
//! Low nibbles are elements 0–15, high nibbles 16–31.

use super::half_at;

pub(super) fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let scale = half_at(block, 0);
    for i in 0..16 {
        let byte = i32::from(block[2 + i]);
        out[i] = scale * ((byte & 15) - 8) as f32;
        out[i + 16] = scale * ((byte >> 4) - 8) as f32;
    }
}

pub(super) fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
    for i in 0..16 {
        let byte = block[4 + i];
        out[i] = scale * f32::from(byte & 15) + minimum;
        out[i + 16] = scale * f32::from(byte >> 4) + minimum;
    }
}

pub(super) fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let scale = half_at(block, 0);
    let high = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
    for i in 0..16 {
        let byte = u32::from(block[6 + i]);
        let low_element = (byte & 15) | (((high >> i) & 1) << 4);
        let high_element = (byte >> 4) | (((high >> (i + 16)) & 1) << 4);
        out[i] = scale * (low_element as i32 - 16) as f32;
        out[i + 16] = scale * (high_element as i32 - 16) as f32;
    }
}

pub(super) fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
    let high = u32::from_le_bytes([block[4], block[5], block[6], block[7]]);
    for i in 0..16 {
        let byte = u32::from(block[8 + i]);
        out[i] = scale * ((byte & 15) | (((high >> i) & 1) << 4)) as f32 + minimum;
        out[i + 16] = scale * ((byte >> 4) | (((high >> (i + 16)) & 1) << 4)) as f32 + minimum;
    }
}

pub(super) fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let scale = half_at(block, 0);
    for i in 0..32 {
        out[i] = scale * f32::from(block[2 + i].cast_signed());
    }
}
